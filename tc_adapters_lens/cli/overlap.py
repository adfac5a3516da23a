"""`tc-adapters overlap`: do features fire on target and base where they fire in the replacement model?"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import Namespace

from tc_adapters_lens.cli import of_run, options
from tc_adapters_lens.cli.parser import Parser
from tc_adapters_lens.errors import ConfigError
from tc_adapters_lens.models.names import FEATURE_STORES, OVERLAP, OVERLAP_FORMAT, OVERLAP_VERSION

if TYPE_CHECKING:
    from tc_adapters_lens.features.overlap import ActivationOverlap
    from tc_adapters_lens.models.adapter_set import AdapterSet

SUMMARY = "measure whether features fire on the hidden states of target and base where they do in the replacement model"
EXAMPLE = """\
examples:
  tc-adapters overlap --run runs/toy --tokens toy
  tc-adapters overlap --run runs/r1-distill-qwen-7b --tokens responses.jsonl --max-sequences 500 --dtype bfloat16

A feature active at n of N positions is given the n positions where its pre-activation, computed from the MLP inputs of
target or base, is highest. Its overlap is the share of these at which it is active in the replacement model. Hidden
states that have nothing to do with each other would give n / N: chance. Layer 0's MLP reads the same in the target as
in the replacement model, so overlap is 100% there, and "1 on" is of the other layers.

Memory grows with how often features are active: about 30 bytes each time, 1.7 GB for 5 million tokens of 28 layers at
an L0 of 0.4 a layer. Where that is too much, read fewer with --max-sequences."""

LABELS = "overlap"
_MODELS = ("target", "base")


def add_arguments(parser: Parser) -> None:
    of_run.add_adapters(parser, f"{OVERLAP}, and the columns overlap_target and overlap_base in features/")
    options.add_held_out(parser)
    parser.add_argument(
        "--min-active", type=int, default=10, metavar="N", help="leave out features active at fewer positions"
    )
    parser.add_argument("--out", type=str | None, metavar="FILE", help=f"the result; by default {OVERLAP} in the run")
    parser.add_argument("--seed", type=int, default=42, help="of the intervals, and of which N sequences")
    of_run.add_allowances(parser)
    options.add_placement(parser, of_run=True)
    options.add_json(parser)


def run(args: Namespace) -> dict[str, Any]:
    _check(args)
    from tc_adapters_lens.cli.output import write_json
    from tc_adapters_lens.cli.text import named_text, require_fitting
    from tc_adapters_lens.evaluation.record import versions
    from tc_adapters_lens.features.overlap import activation_overlap
    from tc_adapters_lens.features.text import Text
    from tc_adapters_lens.models.adapter_set import AdapterSet
    from tc_adapters_lens.models.pair import load_base
    from tc_adapters_lens.models.progress import Progress
    from tc_adapters_lens.training.data import load_sequences

    directory = of_run.take_from_run(args)
    out = (directory or Path()) / OVERLAP if args.out is None else Path(args.out)
    dtype = options.torch_dtype(args.dtype)
    pair = of_run.load_named_pair(args, dtype, options.torch_device(args.device))
    device = pair.W_E.device
    adapters = AdapterSet.from_pretrained(
        args.adapters, device=device, pair=pair.pair, allow_other_pair=args.allow_other_pair
    )
    base = load_base(args.base, base_revision=args.base_revision, dtype=dtype, device=device, pair=pair)
    data = named_text(options.text_config(args))
    sequences, report = load_sequences(data, pair.tokenizer, pair.cfg.d_vocab, pair.cfg.n_ctx)
    require_fitting(data, report, pair)

    about = {
        "pair": pair.pair.to_dict(),
        "adapters_fingerprint": adapters.fingerprint(),
        "tokens": args.tokens,
        "tokens_fingerprint": sequences.fingerprint(),
        "positions": args.positions,
    }
    key = json.dumps({**about, "of": [args.min_active, args.batch_size, args.dtype]}, sort_keys=True)
    overlap = activation_overlap(
        pair,
        adapters,
        base,
        Text(sequences.tokens, sequences.offsets, sequences.mask),
        batch_size=args.batch_size,
        min_active=args.min_active,
        progress=Progress(out.with_name(f".{out.name}.partial.safetensors"), key),
    )
    result = {
        "format": OVERLAP_FORMAT,
        "format_version": OVERLAP_VERSION,
        **about,
        "n_sequences": len(sequences),
        **summary(overlap, args.seed),
        "versions": versions(),
    }
    write_json(out, result)
    print(overlap_table(result))
    print(f"Written: {out}.")
    if directory is not None:
        _label(directory / FEATURE_STORES["replacement"], adapters, overlap)
    return result


def summary(overlap: ActivationOverlap, seed: int) -> dict[str, Any]:
    """Overlaps in numbers, per layer and of all past layer 0.

    Args:
        seed: of the intervals.
    """
    from tc_adapters_lens.evaluation.bootstrap import Bootstrap
    from tc_adapters_lens.evaluation.overlap import EDGES, first_counted, summarise_overlap

    n_layers, n_features = overlap.n_active.shape
    found = summarise_overlap(overlap.overlap, Bootstrap(seed=seed))
    chance = [_mean(row) for row in overlap.chance]
    return {
        "n_positions": overlap.n_positions,
        "n_layers": n_layers,
        "n_features": n_features,
        "min_active": overlap.min_active,
        "edges": list(EDGES),
        "models": {
            model: {
                "layers": [{"layer": layer, **asdict(summary)} for layer, summary in enumerate(layers)],
                "overall": asdict(overall),
            }
            for model, (layers, overall) in found.items()
        },
        "chance": {"overall": _mean(overlap.chance[first_counted(n_layers) :]), "layers": chance},
    }


def _mean(values: Any) -> float | None:
    """Of those that are there."""
    import numpy as np

    there = values[~np.isnan(values)]
    return float(there.mean()) if len(there) else None


def overlap_table(result: dict[str, Any]) -> str:
    """The same, to be read."""
    models, chance = result["models"], result["chance"]
    counted = f"{result['n_sequences']:,} sequences, {result['n_positions']:,} positions counted"
    lines = [
        f"{counted}, features active at {result['min_active']:,} or more of them",
        "",
        "layer  features  target    95% interval    base    95% interval  chance",
    ]
    for layer in range(result["n_layers"]):
        rows = [models[model]["layers"][layer] for model in _MODELS]
        lines.append(_row(f"{layer}", rows, chance["layers"][layer]))
    lines.append(_row("1 on", [models[model]["overall"] for model in _MODELS], chance["overall"]))
    return "\n".join([*lines, ""])


def _row(name: str, rows: list[dict[str, Any]], chance: float | None) -> str:
    cells = f"{name:>5} {rows[0]['n_features']:9,}"
    for row in rows:
        mean = row["mean"] or {"value": None, "low": None, "high": None}
        interval = "" if mean["low"] is None else f"{mean['low']:.1%} to {mean['high']:.1%}"
        cells += f" {_percent(mean['value']):>7} {interval:>15}"
    return f"{cells} {_percent(chance):>7}".rstrip()


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"


def _label(directory: Path, adapters: AdapterSet, overlap: ActivationOverlap) -> None:
    """Every measured feature's overlaps become columns of the store, where there is one of these adapters."""
    import numpy as np
    import pandas as pd

    from tc_adapters_lens.errors import FeatureStoreError
    from tc_adapters_lens.features.store import FeatureStore
    from tc_adapters_lens.features.store_files import is_feature_store

    if not is_feature_store(directory):
        print(f"Not joined to features: there is no store in {directory}. `tc-adapters features` makes one.")
        return
    try:
        store = FeatureStore.open(directory, adapters)
    except FeatureStoreError as error:
        print(f"Not joined to features: {error}")
        return
    layer, feature = np.nonzero(overlap.measured)
    columns = {f"overlap_{model}": overlap.overlap[model][layer, feature] for model in _MODELS}
    store.add_labels(LABELS, pd.DataFrame({"layer": layer, "feature": feature, **columns}))
    print(f"Joined to features: the columns overlap_target and overlap_base of {directory}.")


def _check(args: Namespace) -> None:
    options.require_at_least(args, 1, "min_active", "batch_size")
    of_run.check_adapters_named(args)
    if args.run is None and args.out is None:
        raise ConfigError("--out must be given where there is no --run. It is missing.")
    if args.out is not None and Path(args.out).is_dir():
        raise ConfigError(f"--out must be a file. Got {args.out}, a directory.")
