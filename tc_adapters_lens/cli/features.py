"""`tc-adapters features`: where every feature fires and what it promotes, in one pass over held-out text."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import Namespace

from tc_adapters_lens.cli import of_run, options
from tc_adapters_lens.cli.parser import Parser
from tc_adapters_lens.errors import ConfigError
from tc_adapters_lens.models.names import FEATURE_STORES

if TYPE_CHECKING:
    from tc_adapters_lens.features.store import FeatureStore

SUMMARY = "find where every feature fires and what it promotes, and keep it in a store to be read"
EXAMPLE = """\
examples:
  tc-adapters features --run runs/toy --tokens toy --group-by domain
  tc-adapters features --run runs/r1-distill-qwen-7b --tokens responses.jsonl --dtype bfloat16
  tc-adapters features --run runs/toy --tokens toy --model target           # its MLP neurons

A large text can be divided: run the same command with --shard 0/4 to --shard 3/4, on as many machines as there are,
then once with --merge 4. The store is, to the bit, what one process makes."""


def add_arguments(parser: Parser) -> None:
    of_run.add_adapters(parser, "features/, which `serve`, `dashboard` and `export` read")
    options.add_held_out(parser)
    options.add_units(parser)
    parser.add_argument(
        "--hook",
        type=str | None,
        metavar="NAME",
        help="units of another hook point, the part after `blocks.L.`, such as mlp.base.hook_post",
    )
    parser.add_argument("--group-by", type=str | None, metavar="COLUMN", help="also tell shares by a dataset column")
    parser.add_argument("--k", type=int, default=20, help="examples of each kind and feature")
    parser.add_argument("--before", type=int, default=50, metavar="N", help="tokens of an example before its position")
    parser.add_argument("--after", type=int, default=20, metavar="N", help="tokens of an example after its position")
    parser.add_argument(
        "--windows",
        type=int,
        default=512,
        metavar="N",
        help="windows drawn at random; how high every unit goes in each is kept, for `judge detect`",
    )
    parser.add_argument("--shard", type=str | None, metavar="I/N", help="read one of N parts of the text, I from 0")
    parser.add_argument("--merge", type=int | None, metavar="N", help="make the store of N shards that are there")
    parser.add_argument("--out", type=str | None, metavar="DIR", help="the store; by default in the run's directory")
    parser.add_argument(
        "--seed", type=int, default=42, help="of uniform examples, of windows, and of which N sequences"
    )
    of_run.add_allowances(parser)
    options.add_placement(parser, of_run=True)
    options.add_json(parser)


def run(args: Namespace) -> dict[str, Any]:
    _check(args)
    from tc_adapters_lens.cli.feature_pass import Settings, find_features
    from tc_adapters_lens.cli.feature_shards import Shard
    from tc_adapters_lens.features.collect import Keeping

    shard = None if args.shard is None else Shard.parse(args.shard)
    directory = of_run.take_from_run(args)
    out = (directory or Path()) / FEATURE_STORES[args.model] if args.out is None else Path(args.out)
    settings = Settings(
        **{name: args[name] for name in ("base", "target", "base_revision", "target_revision", "adapters")},
        data=options.text_config(args),
        model=args.model,
        hook=args.hook,
        group_by=args.group_by,
        keeping=Keeping(args.k, args.before, args.after, args.seed, args.windows),
        batch_size=args.batch_size,
        allow_other_pair=args.allow_other_pair,
        allow_tokenizer_mismatch=args.allow_tokenizer_mismatch,
    )
    place = {"dtype": options.torch_dtype(args.dtype), "device": options.torch_device(args.device)}
    store = find_features(settings, out, shard=shard, merge=args.merge, **place)
    if store is None:
        assert shard is not None
        print(f"Shard {args.shard} of {out} is done. When all are: the same command with --merge {shard.n}.")
        return {"shard": args.shard, "store": str(out)}
    print(features_table(store))
    print(f"Written: {out}. To look through it: tc-adapters serve {out if args.out else directory}")
    return summary(store)


def summary(store: FeatureStore) -> dict[str, Any]:
    """A store in numbers: the whole, and per layer how many units are active and how often."""
    n_active = store.column("n_active").reshape(store.info.n_layers, -1)
    info = store.info
    return {
        "store": str(store.directory),
        "model": info.model,
        "n_layers": info.n_layers,
        "n_features": info.n_features,
        "n_sequences": info.n_sequences,
        "n_tokens": info.n_tokens,
        "n_counted": info.n_counted,
        "never_active": (n_active == 0).sum(1).tolist(),
        "l0": (n_active.sum(1) / info.n_counted).tolist(),
        "median_frequency": [_median(row[row > 0]) / info.n_counted for row in n_active],
    }


def features_table(store: FeatureStore) -> str:
    """The same, to be read."""
    found = summary(store)
    lines = [
        f"{found['n_sequences']:,} sequences, {found['n_counted']:,} of {found['n_tokens']:,} positions counted",
        "",
        "layer    active  never active      L0  median frequency",
    ]
    for layer in range(found["n_layers"]):
        never = found["never_active"][layer]
        lines.append(
            f"{layer:5} {found['n_features'] - never:9,} {never:13,} {found['l0'][layer]:7.2f} "
            f"{found['median_frequency'][layer]:17.2%}"
        )
    return "\n".join([*lines, ""])


def _median(counts: Any) -> float:
    import numpy as np

    return float(np.median(counts)) if len(counts) else 0.0


def _check(args: Namespace) -> None:
    options.require_at_least(args, 1, "k", "windows", "batch_size", "merge")
    if args.before < 0 or args.after < 0 or args.before + args.after > 255:
        raise ConfigError(
            f"--before and --after must not be negative, and at most 255 together. Got {args.before} and {args.after}."
        )
    if args.shard is not None and args.merge is not None:
        raise ConfigError("--shard and --merge exclude each other: one reads, the other puts together. Got both.")
    of_run.check_adapters_named(args)
    if args.run is None and args.out is None:
        raise ConfigError("--out must be given where there is no --run. It is missing.")
