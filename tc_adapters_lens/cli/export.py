"""`tc-adapters export`: adapters in another layout, features for other tools."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from jsonargparse import Namespace

from tc_adapters_lens.cli import options
from tc_adapters_lens.cli.parser import Parser
from tc_adapters_lens.errors import ConfigError

if TYPE_CHECKING:
    from tc_adapters_lens.models.adapter_set import AdapterSet

SUMMARY = (
    "write trained adapters as a Hugging Face model that runs by itself, or in the authors' layout "
    "(with --base and --target as a whole model); or collected features for other tools"
)
EXAMPLE = """\
examples:
  tc-adapters export --adapters runs/toy/adapters --format authors --out exported
  tc-adapters export --adapters runs/toy/adapters --base toy:base --target toy:target --out exported
  tc-adapters export --run runs/toy --format hf --group hesitation.json --out replacement
  tc-adapters export --run runs/toy --format saelens --remove hesitation.json --out quiet
  tc-adapters export --run runs/toy --format hf --mlps target --negate hesitation.json --factor 0.5 --out quieter
  tc-adapters export --features runs/toy/features --format circuit-tracer --out graphs --layers 2,3
  tc-adapters export --features runs/toy/features --format csv --out features.csv"""

_OF_ADAPTERS = ("saelens", "authors", "hf")
_OPERATIONS = ("remove", "keep", "scale", "negate")
_OF_FEATURES = ("circuit-tracer", "neuronpedia", "csv", "parquet")


def add_arguments(parser: Parser) -> None:
    parser.add_argument("--run", type=str | None, metavar="DIR", help="a training run, in place of its adapters")
    parser.add_argument("--adapters", type=str | None, metavar="DIR", help="directory or hub id of trained adapters")
    parser.add_argument("--features", type=str | None, metavar="DIR", help="a feature store, in place of --adapters")
    parser.add_argument(
        "--format",
        type=Literal["saelens", "authors", "hf", "circuit-tracer", "neuronpedia", "csv", "parquet"],
        default="authors",
        help="layout to write: of adapters saelens (an adapter set, as trained), authors, hf (a whole model with its "
        "code, for transformers); "
        "of features circuit-tracer (a JSON file each, for its page), neuronpedia (as sae-dashboard writes), "
        "csv, parquet (a table)",
    )
    parser.add_argument(
        "--group",
        type=str,
        nargs="+",
        metavar="FILE",
        help="with hf: feature groups that the model can turn off by name",
    )
    parser.add_argument(
        "--mlps",
        type=Literal["base", "target"] | None,
        metavar="{base,target}",
        help="with hf: whose MLPs the adapters stand beside; default base, which makes the replacement model",
    )
    parser.add_argument(
        "--dtype",
        type=options.DTYPES | None,
        metavar="DTYPE",
        help="with hf: number type of the model; default: the target's own",
    )
    for name, what in {
        "remove": "features to switch off first",
        "keep": "features to keep alone",
        "scale": "features whose output to multiply by --factor",
        "negate": "features to keep alone with their output times minus --factor, to be added to the target",
    }.items():
        parser.add_argument(f"--{name}", type=str | None, metavar="FILE", help=f"of adapters: {what}; a group's file")
    parser.add_argument("--factor", type=float | None, metavar="F", help="of --scale and --negate")
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
    given = [f"--{name}" for name in ("run", "adapters", "features") if args[name] is not None]
    if len(given) != 1:
        got = " and ".join(given) or "none of them"
        raise ConfigError(f"One of --run, --adapters and --features must be given. Got {got}.")
    if args.features is not None:
        return _export_features(args)
    if args.format in _OF_FEATURES:
        raise ConfigError(
            f"--format of adapters must be one of {', '.join(_OF_ADAPTERS)}. "
            f"Got {args.format}, which is for --features."
        )
    if args.layers is not None:
        raise ConfigError("--layers is for --features; adapters are written whole. Leave it out.")
    if (args.base is None) != (args.target is None):
        raise ConfigError("--base and --target must be given together, or neither. Got one. Add the other.")
    if args.format == "hf":
        return _export_hf(args)
    _refuse(args, ("group", "mlps", "dtype"), "is for --format hf.")
    return _export_saelens(args) if args.format == "saelens" else _export_authors(args)


def _adapters(args: Namespace) -> AdapterSet:
    """The adapters named, after what is to be done to them."""
    operations = [name for name in _OPERATIONS if args[name] is not None]
    if len(operations) > 1:
        raise ConfigError(f"Adapters are changed in one way at a time. Got --{' and --'.join(operations)}; take one.")
    operation = operations[0] if operations else None
    if operation and args.group:
        raise ConfigError(f"--group is for adapters as they are. Got --{operation} too; leave one of them out.")
    if (operation in ("scale", "negate")) != (args.factor is not None):
        got = "--factor alone" if args.factor is not None else f"--{operation} alone"
        raise ConfigError(f"--factor goes with --scale or --negate. Got {got}; give both.")
    from tc_adapters_lens import interventions
    from tc_adapters_lens.models.adapter_set import AdapterSet
    from tc_adapters_lens.models.feature_group import FeatureGroup
    from tc_adapters_lens.models.names import ADAPTERS

    adapters = AdapterSet.from_pretrained(args.adapters if args.run is None else Path(args.run) / ADAPTERS)
    if operation is None:
        return adapters
    factor = () if args.factor is None else (args.factor,)
    return getattr(interventions, operation)(adapters, FeatureGroup.load(args[operation], adapters), *factor)


def _export_saelens(args: Namespace) -> dict[str, Any]:
    _refuse(args, ("base", "target"), "is for --format authors and hf.")
    adapters = _adapters(args)
    adapters.save(args.out)
    print(f"adapters ({adapters.n_layers} layers, {adapters.n_features} features each) written to {args.out}")
    return {"adapters": str(args.out), "format": args.format}


def _export_authors(args: Namespace) -> dict[str, Any]:
    from tc_adapters_lens.models.authors_format import export_authors
    from tc_adapters_lens.models.checkpoints import Checkpoint

    adapters = _adapters(args)
    base, target = (
        None if name is None else Checkpoint.open(name, revision)
        for name, revision in ((args.base, args.base_revision), (args.target, args.target_revision))
    )
    export_authors(adapters, args.out, base, target, allow_other_pair=args.allow_other_pair)
    what = "adapters alone" if target is None else "whole model with adapters"
    print(f"{what} ({adapters.n_layers} layers, {adapters.n_features} features each) written to {args.out}")
    return {"checkpoint": str(args.out), "format": args.format, "whole_model": target is not None}


def _export_hf(args: Namespace) -> dict[str, Any]:
    from tc_adapters_lens.integrations.hf.export import export_hf
    from tc_adapters_lens.models.checkpoints import IN_MEMORY, Checkpoint
    from tc_adapters_lens.models.feature_group import FeatureGroup

    adapters = _adapters(args)
    pair = adapters.info.pair
    if args.base is None:
        if IN_MEMORY in (pair.base_name, pair.target_name):
            raise ConfigError("--base and --target must be given. Got adapters of models that were only in memory.")
        args.base, args.base_revision = pair.base_name, args.base_revision or pair.base_revision
        args.target, args.target_revision = pair.target_name, args.target_revision or pair.target_revision
    mlps = args.mlps or "base"
    export_hf(
        args.out,
        Checkpoint.open(args.base, args.base_revision),
        Checkpoint.open(args.target, args.target_revision),
        adapters,
        mlps=mlps,
        groups=[FeatureGroup.load(path, adapters) for path in args.group or ()],
        dtype=None if args.dtype is None else options.torch_dtype(args.dtype),
        allow_other_pair=args.allow_other_pair,
    )
    what = "replacement model" if mlps == "base" else "target with adapters added"
    print(f"{what} ({adapters.n_layers} layers, {adapters.n_features} features each) written to {args.out}")
    return {"checkpoint": str(args.out), "format": args.format, "mlps": mlps, "groups": args.group or []}


def _export_features(args: Namespace) -> dict[str, Any]:
    from tc_adapters_lens.features.exports import export_features
    from tc_adapters_lens.features.store import FeatureStore

    if args.format not in _OF_FEATURES:
        raise ConfigError(
            f"--format of --features must be one of {', '.join(_OF_FEATURES)}. "
            f"Got {args.format}, which is for --adapters."
        )
    unused = ("base", "target", "base_revision", "target_revision", "allow_other_pair", "group", "mlps", "dtype")
    unused = (*unused, *_OPERATIONS, "factor")
    _refuse(args, unused, "is for --adapters; features are written without a model.")
    layers = None if args.layers is None else _parse_layers(args.layers)
    n_written = export_features(FeatureStore.open(args.features), args.out, args.format, layers)
    print(f"{n_written:,} features written to {args.out} ({args.format})")
    return {"out": str(args.out), "format": args.format, "n_features": n_written}


def _refuse(args: Namespace, names: tuple[str, ...], why: str) -> None:
    if given := [options.flag(name) for name in names if args[name]]:
        raise ConfigError(f"{given[0]} {why} Leave it out.")


def _parse_layers(text: str) -> list[int]:
    try:
        return [int(number) for number in text.split(",")]
    except ValueError as error:
        raise ConfigError(f"--layers must be numbers with commas between, as 2,3. Got {text!r}.") from error
