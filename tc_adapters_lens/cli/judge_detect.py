"""`tc-adapters judge detect`: how well descriptions of features tell where they are active."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from jsonargparse import Namespace

from tc_adapters_lens.cli import judge_options, options
from tc_adapters_lens.cli.parser import Parser
from tc_adapters_lens.errors import ConfigError, did_you_mean
from tc_adapters_lens.models.names import SCORE_KINDS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tc_adapters_lens.judge.detect import ScoreKind

SUMMARY = "describe features from examples, and score how well the descriptions tell where they are active"
EXAMPLE = """\
examples:
  tc-adapters judge detect --run runs/toy --judge rules
  tc-adapters judge detect --run runs/toy --judge endpoint.yaml --dry-run
  tc-adapters judge detect --run runs/toy --judge endpoint.yaml --model target      # its MLP neurons
  tc-adapters judge detect --run runs/toy --judge endpoint.yaml --negatives similar --name hard

A feature is described from at most 10 examples. The judge then sorts 10 texts by that description alone: 5 in which the
feature is active, of other sequences, and 5 in which it is not. The score is the share sorted right; chance is 0.5.
The result is RUN/judge/detect-MODEL.json, and columns of the store."""


def add_arguments(parser: Parser) -> None:
    judge_options.add_features(parser, per_layer=100, min_frequency=1e-4)
    parser.add_argument(
        "--kinds",
        type=str | None,
        metavar="KIND,KIND",
        help="scores on top: held-out examples of highest activation; sampled: uniform ones; shuffled: the first, by "
        "another feature's description, which is the chance check (default: all; for neurons, which are active nearly "
        "everywhere, top,shuffled)",
    )
    parser.add_argument(
        "--negatives",
        type=Literal["random", "similar"],
        default="random",
        help="texts without the feature: random ones, or those of them with features active on the same tokens",
    )
    parser.add_argument("--prompts-describe", type=str | None, metavar="FILE", help="YAML, in place of our own prompts")
    parser.add_argument("--prompts-detect", type=str | None, metavar="FILE", help="YAML, in place of our own prompts")
    judge_options.add_judge(parser)
    options.add_json(parser)


def run(args: Namespace) -> dict[str, Any]:
    kinds = _kinds(args)
    from tc_adapters_lens.evaluation.record import versions
    from tc_adapters_lens.judge.detect import Detection, labels
    from tc_adapters_lens.judge.detection_texts import N_EXEMPLARS, N_TEXTS
    from tc_adapters_lens.judge.prompt_files import load_prompts
    from tc_adapters_lens.judge.results import about_store, result_file, write_result

    directory = Path(args.run).expanduser()
    path = result_file(directory, "detect", args.model, args.name)
    prompts = {
        "describe": load_prompts("describe", args.prompts_describe),
        "detect": load_prompts("detect", args.prompts_detect),
    }
    store, samples = judge_options.open_features(args)
    detection = Detection.of(store, samples, kinds, args.seed, args.negatives, **prompts)
    asker = judge_options.open_asker(args, directory)
    if args.dry_run:
        describing, detecting = detection.requests()
        return judge_options.print_cost({"describe": asker.cost(describing), "detect": asker.cost(detecting)}, asker)
    found = detection.run(asker)
    result = {
        "store": about_store(store.info),
        "judge": dict(asker.identity),
        "repeat": args.repeat,
        "prompts": {task: used.to_dict() for task, used in prompts.items()},
        **{name: args[name] for name in ("seed", "per_layer", "min_frequency")},
        "n_exemplars": N_EXEMPLARS,
        "n_texts": N_TEXTS,
        "negatives": args.negatives,
        **found,
        "usage": asker.usage.to_dict(),
        "versions": versions(),
    }
    write_result(path, "detect", result)
    store.add_labels(f"detection_{args.name}" if args.name else "detection", labels(found["features"], args.name))
    print(detection_table(found))
    print(f"Written: {path}, and columns of {store.directory}")
    return {**result, "path": str(path)}


def detection_table(found: Mapping[str, Any]) -> str:
    """Mean scores of layers and of all, to be read."""
    kinds = list(found["overall"]["scores"])
    lines = [
        "share of 10 texts sorted right: mean (95% interval over features); 0.5 is chance",
        "",
        "layer  sampled  scored  unparsable" + "".join(f"{kind:>24}" for kind in kinds),
    ]
    for row in (*found["layers"], {"layer": "all", **found["overall"]}):
        counts = f"{row['layer']!s:>5} {row['n_sampled']:8,} {row['n_scored']:7,} {row['n_unparsable']:11,}"
        lines.append(counts + "".join(f"{_written(row['scores'][kind]['mean']):>24}" for kind in kinds))
    lines += [f"left out: {n:,} ({why})" for why, n in found["left_out"].items()]
    return "\n".join([*lines, ""])


def _written(mean: Mapping[str, float | None] | None) -> str:
    if mean is None:
        return "-"
    if mean["low"] is None:
        return f"{mean['value']:.3f}"
    return f"{mean['value']:.3f} ({mean['low']:.3f} to {mean['high']:.3f})"


def _kinds(args: Namespace) -> tuple[ScoreKind, ...]:
    """Raises ConfigError: not one or more of the kinds there are."""
    if args.kinds is None:
        return SCORE_KINDS if args.model == "replacement" else ("top", "shuffled")
    words = [word.strip() for word in args.kinds.split(",")]
    if unknown := [word for word in words if word not in SCORE_KINDS]:
        near = did_you_mean(unknown[0], SCORE_KINDS)
        raise ConfigError(f"--kinds must be of {', '.join(SCORE_KINDS)}, with commas. Got '{unknown[0]}'.{near}")
    return tuple(kind for kind in SCORE_KINDS if kind in words)
