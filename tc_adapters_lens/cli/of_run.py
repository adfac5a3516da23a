"""Verbs about adapters take them from a run, or from options that name pair and adapters."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from jsonargparse import Namespace

from tc_adapters_lens.cli import options
from tc_adapters_lens.cli.parser import Parser
from tc_adapters_lens.errors import ConfigError

if TYPE_CHECKING:
    import torch

    from tc_adapters_lens.models.diff_transformer import HookedDiffTransformer


class NamesPair(Protocol):
    """Whatever names a pair: a verb's arguments, or its settings."""

    @property
    def base(self) -> str: ...
    @property
    def target(self) -> str: ...
    @property
    def base_revision(self) -> str | None: ...
    @property
    def target_revision(self) -> str | None: ...
    @property
    def allow_tokenizer_mismatch(self) -> bool: ...


_TAKEN = ("base", "target", "base_revision", "target_revision", "adapters", "dtype", "chat_template")


def add_adapters(parser: Parser, run_gets: str) -> None:
    """--run, or --base, --target and --adapters.

    Args:
        run_gets: what the verb writes into a run, for the help.
    """
    parser.add_argument(
        "--run",
        type=str | None,
        metavar="DIR",
        help=f"a training run: names pair and adapters, and gets {run_gets}",
    )
    options.add_pair(parser, required=False)
    parser.add_argument("--adapters", type=str | None, metavar="DIR", help="directory or hub id of trained adapters")


def add_allowances(parser: Parser) -> None:
    """--allow-other-pair and --allow-tokenizer-mismatch."""
    parser.add_argument("--allow-other-pair", action="store_true", help="accept adapters trained on another pair")
    parser.add_argument("--allow-tokenizer-mismatch", action="store_true", help="accept tokenizers that disagree")


def check_adapters_named(args: Namespace) -> None:
    """Raises ConfigError: neither a run nor all of pair and adapters."""
    if args.run is None:
        missing = [f"--{name}" for name in ("base", "target", "adapters") if args[name] is None]
        if missing:
            raise ConfigError(
                f"Either --run, or --base, --target and --adapters must be given. {missing[0]} is missing."
            )


def take_from_run(args: Namespace) -> Path | None:
    """What is not given becomes what the run's configuration says.

    Returns:
        The run's directory; None without a run.
    Raises:
        ConfigError: not a run, or one without trained adapters.
    """
    directory = None if args.run is None else Path(args.run)
    if directory is not None:
        from tc_adapters_lens.models.adapter_set import is_adapter_set
        from tc_adapters_lens.models.names import ADAPTERS
        from tc_adapters_lens.training.config import TrainingConfig
        from tc_adapters_lens.training.runner import CONFIG_FILE

        path = directory / CONFIG_FILE
        if not path.is_file():
            runs = sorted(found.parent.name for found in directory.glob(f"*/{CONFIG_FILE}"))
            holds = f" but holds the runs {', '.join(runs)}: name one" if runs else ""
            raise ConfigError(
                f"--run must be the directory of a training run. Got {directory}, which has no {CONFIG_FILE}{holds}."
            )
        config = TrainingConfig.from_yaml(path.read_text(encoding="utf-8"))
        if args.adapters is None and not is_adapter_set(directory / ADAPTERS):
            why = (
                "it is not finished; start it again" if config.trained == "adapters" else f"it trained {config.trained}"
            )
            raise ConfigError(f"--run must have trained adapters. Got {directory}: {why}.")
        of_run = {**dataclasses.asdict(config), "adapters": str(directory / ADAPTERS)}
        of_run["chat_template"] = config.data.chat_template
        for name in _TAKEN:
            args[name] = of_run[name] if args[name] is None else args[name]
        args.allow_tokenizer_mismatch = args.allow_tokenizer_mismatch or config.allow_tokenizer_mismatch
    args.dtype = args.dtype or "float32"
    return directory


def load_named_pair(
    named: NamesPair | Namespace, dtype: torch.dtype, device: str | torch.device
) -> HookedDiffTransformer:
    """The pair, loaded; errors as in `load_pair`."""
    from tc_adapters_lens.models.pair import load_pair

    return load_pair(
        named.base,
        named.target,
        base_revision=named.base_revision,
        target_revision=named.target_revision,
        allow_tokenizer_mismatch=named.allow_tokenizer_mismatch,
        dtype=dtype,
        device=device,
    )
