"""`tc-adapters train`: adapters, or dense weights, for a pair, from a configuration file and overrides."""

from __future__ import annotations

import argparse
import logging
import os
from pathlib import Path
from typing import Any, get_type_hints

import docstring_parser
from jsonargparse import Namespace

from tc_adapters_lens.cli import options
from tc_adapters_lens.cli.parser import Parser

SUMMARY = "train one adapter per layer for a pair; the same command again resumes an interrupted run"
EXAMPLE = """\
examples:
  tc-adapters train --config configs/toy.yaml --out runs/toy
  tc-adapters train --config configs/toy.yaml --training.lr 1e-3 --objective.l1_coefficient 3e-3
  tc-adapters train --config configs/toy.yaml --out runs/skyline --trained mlps
  torchrun --nproc-per-node 4 --no-python tc-adapters train --config configs/toy.yaml --out runs/toy

Tokenised data is cached: TC_ADAPTERS_CACHE=DIR says where, TC_ADAPTERS_CACHE=off switches it off."""


def add_arguments(parser: Parser) -> None:
    parser.usage = "tc-adapters train --config FILE [--out DIR] [--json FILE] [--KEY VALUE ...]"
    from tc_adapters_lens.training.config import TrainingConfig
    from tc_adapters_lens.training.schema import key_names

    parser.add_argument(
        "--config", type=str, required=True, metavar="FILE", help="YAML; configs/ has the published recipes"
    )
    parser.add_argument(
        "--out",
        type=str | None,
        metavar="DIR",
        help="where the run is written; default: runs/NAME for NAME.yaml",
    )
    options.add_json(parser)
    overrides = parser.add_argument_group(
        "overrides", "Any key of the configuration. What is not given stays as it is in the file."
    )
    for key in key_names(TrainingConfig):
        overrides.add_argument(
            f"--{key}",
            type=str,
            default=argparse.SUPPRESS,
            metavar="VALUE",
            help=_meaning(TrainingConfig, key),
        )


def run(args: Namespace) -> dict[str, Any] | None:
    """Several processes, started by torchrun or accelerate launch, are one run; the main one has its result."""
    processes = None
    if os.environ.get("WORLD_SIZE", "1") != "1":
        from tc_adapters_lens.training import distributed

        processes = distributed.join()
        if not processes.is_main:
            logging.getLogger("tc_adapters_lens").setLevel(logging.WARNING)
    result = _train(args)
    if processes is not None:
        distributed.leave()
        if not processes.is_main:
            return None
    if "adapters" in result:
        print(f"{result['n_layers']} adapters of {result['n_features']} features written to {result['adapters']}")
    else:
        print(f"{result['trained']} of {result['n_layers']} layers written to {result['weights']}")
    return result


def _train(args: Namespace) -> dict[str, Any]:
    from tc_adapters_lens.training.config import TrainingConfig, load_config
    from tc_adapters_lens.training.schema import key_names

    overrides = [f"{key}={args[key]}" for key in key_names(TrainingConfig) if key in args]
    out = Path(args.out) if args.out else Path("runs") / Path(args.config).stem
    config = load_config(args.config, overrides)

    from tc_adapters_lens.models.adapter_set import AdapterSet  # after the checks: torch takes seconds
    from tc_adapters_lens.models.names import ADAPTERS
    from tc_adapters_lens.training.runner import WEIGHTS, train

    trained = train(config, out)
    if isinstance(trained, AdapterSet):
        what = {"adapters": str(out / ADAPTERS), "n_layers": trained.n_layers, "n_features": trained.n_features}
    else:
        what = {"weights": str(out / WEIGHTS), "n_layers": trained.n_layers, "trained": trained.kind}
    return {**what, "measured": trained.info.measured, "config": config.to_dict()}


def _meaning(config: type, key: str) -> str:
    """What a dotted key means, from the docstrings of the nested dataclasses."""
    name, _, rest = key.partition(".")
    if rest:
        return _meaning(get_type_hints(config)[name], rest)
    documented = docstring_parser.parse(config.__doc__ or "").params
    return next((param.description or "" for param in documented if param.arg_name == name), "")
