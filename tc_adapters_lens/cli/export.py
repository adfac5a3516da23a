"""`tc-adapters export`: adapters in another layout, features for other tools."""

from __future__ import annotations

from typing import Any, Literal

from jsonargparse import Namespace

from tc_adapters_lens.cli import options
from tc_adapters_lens.cli.parser import Parser
from tc_adapters_lens.errors import ConfigError

SUMMARY = (
    "write trained adapters in the authors' layout (with --base and --target as a whole model), "
    "or collected features for other tools"
)
EXAMPLE = """\
examples:
  tc-adapters export --adapters runs/toy/adapters --format authors --out exported
  tc-adapters export --adapters runs/toy/adapters --base toy:base --target toy:target --out exported
  tc-adapters export --features runs/toy/features --format circuit-tracer --out graphs --layers 2,3
  tc-adapters export --features runs/toy/features --format csv --out features.csv"""

_OF_FEATURES = ("circuit-tracer", "neuronpedia", "csv", "parquet")


def add_arguments(parser: Parser) -> None:
    parser.add_argument("--adapters", type=str | None, metavar="DIR", help="directory or hub id of trained adapters")
    parser.add_argument("--features", type=str | None, metavar="DIR", help="a feature store, in place of --adapters")
    parser.add_argument(
        "--format",
        type=Literal["authors", "circuit-tracer", "neuronpedia", "csv", "parquet"],
        default="authors",
        help="layout to write: of adapters authors; of features circuit-tracer (a JSON file each, "
        "for its page), neuronpedia (as sae-dashboard writes), csv, parquet (a table)",
    )
    parser.add_argument("--layers", type=str | None, metavar="N,N", help="of features: these layers only")
    options.add_pair(parser, required=False)
    parser.add_argument(
        "--allow-other-pair",
        action="store_true",
        help="accept models other than those the adapters were trained on",
    )
    parser.add_argument(
        "--out", type=str, required=True, metavar="PATH", help="directory to write; for csv and parquet a file"
    )
    options.add_json(parser)


def run(args: Namespace) -> dict[str, Any]:
    if (args.adapters is None) == (args.features is None):
        got = "neither" if args.adapters is None else "both"
        raise ConfigError(f"Either --adapters or --features must be given. Got {got}.")
    return _export_adapters(args) if args.features is None else _export_features(args)


def _export_adapters(args: Namespace) -> dict[str, Any]:
    from tc_adapters_lens.models.adapter_set import AdapterSet
    from tc_adapters_lens.models.authors_format import export_authors
    from tc_adapters_lens.models.checkpoints import Checkpoint

    if args.format in _OF_FEATURES:
        raise ConfigError(f"--format of --adapters must be authors. Got {args.format}, which is for --features.")
    if args.layers is not None:
        raise ConfigError("--layers is for --features; adapters are written whole. Leave it out.")
    if (args.base is None) != (args.target is None):
        raise ConfigError("--base and --target must be given together, or neither. Got one. Add the other.")
    adapters = AdapterSet.from_pretrained(args.adapters)
    base, target = (
        None if name is None else Checkpoint.open(name, revision)
        for name, revision in ((args.base, args.base_revision), (args.target, args.target_revision))
    )
    export_authors(adapters, args.out, base, target, allow_other_pair=args.allow_other_pair)
    what = "adapters alone" if target is None else "whole model with adapters"
    print(f"{what} ({adapters.n_layers} layers, {adapters.n_features} features each) written to {args.out}")
    return {"checkpoint": str(args.out), "format": args.format, "whole_model": target is not None}


def _export_features(args: Namespace) -> dict[str, Any]:
    from tc_adapters_lens.features.exports import export_features
    from tc_adapters_lens.features.store import FeatureStore

    if args.format not in _OF_FEATURES:
        raise ConfigError(
            f"--format of --features must be one of {', '.join(_OF_FEATURES)}. "
            f"Got {args.format}, which is for --adapters."
        )
    unused = ("base", "target", "base_revision", "target_revision", "allow_other_pair")
    if given := [f"--{name.replace('_', '-')}" for name in unused if args[name]]:
        raise ConfigError(f"{given[0]} is for --adapters; features are written without a model. Leave it out.")
    layers = None if args.layers is None else _parse_layers(args.layers)
    n_written = export_features(FeatureStore.open(args.features), args.out, args.format, layers)
    print(f"{n_written:,} features written to {args.out} ({args.format})")
    return {"out": str(args.out), "format": args.format, "n_features": n_written}


def _parse_layers(text: str) -> list[int]:
    try:
        return [int(number) for number in text.split(",")]
    except ValueError as error:
        raise ConfigError(f"--layers must be numbers with commas between, as 2,3. Got {text!r}.") from error
