"""Options that several verbs share, and what their words mean to torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from jsonargparse import Namespace

from tc_adapters_lens.cli.parser import Parser
from tc_adapters_lens.errors import ConfigError

if TYPE_CHECKING:
    import torch

    from tc_adapters_lens.training.config import DataConfig

DTYPES = Literal["float32", "bfloat16", "float16"]


def add_pair(parser: Parser, *, required: bool = True) -> None:
    """--base, --target and their revisions."""
    for role, when in (("base", "before"), ("target", "after")):
        parser.add_argument(
            f"--{role}",
            type=str if required else str | None,
            required=required,
            metavar="MODEL",
            help=f"model {when} fine-tuning: hub id, local directory, or toy:{role}",
        )
    for role in ("base", "target"):
        parser.add_argument(
            f"--{role}-revision",
            type=str | None,
            metavar="REVISION",
            help=f"branch, tag or commit of the {role} on the hub",
        )


def add_placement(parser: Parser, *, of_run: bool = False) -> None:
    """--dtype and --device.

    Args:
        of_run: --dtype is None where it is not given, so that a run's own can be taken.
    """
    if of_run:
        parser.add_argument(
            "--dtype", type=DTYPES | None, help="number type of the weights; by default the run's, else float32"
        )
    else:
        parser.add_argument("--dtype", type=DTYPES, default="float32", help="number type of the weights")
    parser.add_argument(
        "--device",
        type=str | None,
        metavar="DEVICE",
        help="cpu, cuda, cuda:1, mps; by default cuda where there is one",
    )


def add_text(parser: Parser, tokens: str, positions: Literal["all", "response"], verb: str) -> None:
    """--tokens and what of it is taken.

    Args:
        tokens: help of --tokens.
        positions: which positions count by default.
        verb: what is done with sequences, for the help.
    """
    parser.add_argument("--tokens", type=str, required=True, metavar="DATA", help=tokens)
    parser.add_argument(
        "--positions",
        type=Literal["all", "response"],
        default=positions,
        help="positions that count; response needs chats, or rows with `prompt_length`",
    )
    parser.add_argument("--max-sequences", type=int | None, metavar="N", help=f"{verb} N sequences drawn at random")
    parser.add_argument("--context-size", type=int | None, metavar="N", help="cut sequences to N tokens")
    parser.add_argument("--chat-template", type=str | None, metavar="FILE", help="Jinja, for chats")
    parser.add_argument("--batch-size", type=int, default=8, help="sequences in one forward pass")


def add_held_out(parser: Parser) -> None:
    """`add_text`, for text in which features are looked for."""
    add_text(
        parser,
        "held-out text: jsonl rows with `input_ids`, as `generate` writes them, or any dataset of text or chats; "
        "toy: the built-in pair's",
        positions="all",
        verb="read",
    )


def add_units(parser: Parser) -> None:
    """--model, whose units a feature store is about: a `ModelKind`."""
    parser.add_argument(
        "--model",
        type=Literal["replacement", "target", "base"],
        default="replacement",
        help="whose units: adapter features of the replacement model, or MLP neurons of target or base",
    )


def text_config(args: Namespace) -> DataConfig:
    """The text that the options of `add_text` name; --seed draws its --max-sequences."""
    from tc_adapters_lens.training.config import DataConfig

    return DataConfig(
        path=args.tokens,
        loss_on=args.positions,
        context_size=args.context_size,
        max_sequences=args.max_sequences,
        subset_seed=args.seed,
        chat_template=args.chat_template,
    )


def add_draws(parser: Parser, batch_size: int) -> None:
    """--temperature, --top-p, --max-new-tokens and --batch-size, as `Sampling` takes them.

    Args:
        batch_size: its default.
    """
    parser.add_argument("--temperature", type=float, default=0.7, help="0 takes the likeliest token every time")
    parser.add_argument("--top-p", type=float, default=1.0, help="draw among the fewest tokens of this probability")
    parser.add_argument(
        "--max-new-tokens",
        type=int | None,
        metavar="N",
        help="most tokens of a response; default: what the longest prompt leaves of the context, at most 2048",
    )
    parser.add_argument("--batch-size", type=int, default=batch_size, help="prompts continued together")


def add_json(parser: Parser) -> None:
    """--json, where `main` writes what the verb returns."""
    parser.add_argument("--json", type=str | None, metavar="FILE", help="also write the result there, as JSON")


def flag(option: str) -> str:
    """The option as it is typed: "max_features" -> "--max-features"."""
    return f"--{option.replace('_', '-')}"


def require_at_least(args: Namespace, least: int, *names: str) -> None:
    """Raises ConfigError: an option that is given is below that."""
    for name in names:
        if args[name] is not None and args[name] < least:
            raise ConfigError(f"{flag(name)} must be at least {least}. Got {args[name]}.")


def torch_dtype(name: str) -> torch.dtype:
    """The dtype of one of DTYPES."""
    import torch

    return getattr(torch, name)


def torch_device(name: str | None) -> torch.device:
    """The device of that name; None is the first accelerator there is, else the CPU.

    Raises:
        ConfigError: no such kind of device, or this machine has none.
    """
    import torch

    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as unusable:
        raise ConfigError(f"--device must be one that this machine and this torch have. Got '{name}'.") from unusable
    return device
