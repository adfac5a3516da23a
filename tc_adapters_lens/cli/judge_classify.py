"""`tc-adapters judge classify`: features sorted into classes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from tc_adapters_lens.cli import judge_options, options
from tc_adapters_lens.cli.parser import Parser

SUMMARY = "sort a sample of features into classes, and tell how many there are of each"
EXAMPLE = """\
examples:
  tc-adapters judge classify --run runs/toy --judge rules
  tc-adapters judge classify --run runs/toy --model target --judge rules          # its MLP neurons
  tc-adapters judge classify --run runs/toy --judge judge.yaml --name strict --prompts strict.yaml

It needs a feature store in the run, from `tc-adapters features`. The result is RUN/judge/classify-MODEL[-NAME].json;
the store gets a column `class` (`class_NAME`) for `serve` and `group --where 'class == domain'`. Nothing is written
before every feature is answered for.

--prompts is a YAML file of classes (name, description, and at will a group that several share), system and user prompt,
as tc_adapters_lens/judge/prompts/classify.yaml is. `rules` knows the classes of that one only."""


def add_arguments(parser: Parser) -> None:
    judge_options.add_features(parser, per_layer=250, min_frequency=0.0)
    parser.add_argument("--prompts", type=str | None, metavar="FILE", help="YAML file of classes and prompts")
    parser.add_argument("--examples", type=int, default=10, metavar="N", help="highest examples shown of a feature")
    judge_options.add_judge(parser)
    options.add_json(parser)


def run(args: Namespace) -> dict[str, Any]:
    options.require_at_least(args, 1, "examples")
    from tc_adapters_lens.evaluation.record import versions
    from tc_adapters_lens.judge.classify import ClassLabels, class_requests, classify, shares
    from tc_adapters_lens.judge.prompt_files import load_prompts
    from tc_adapters_lens.judge.results import about_store, result_file, write_result

    directory = Path(args.run).expanduser()
    path = result_file(directory, "classify", args.model, args.name)
    prompts = load_prompts("classify", args.prompts)
    store, samples = judge_options.open_features(args)
    labels = ClassLabels.named(args.name)
    labels.require_free(store)
    asker = judge_options.open_asker(args, directory)
    requests = class_requests(store, samples, prompts, args.examples)
    if args.dry_run:
        return judge_options.print_cost({"classify": asker.cost(requests)}, asker)
    classified = classify(asker, requests, samples)
    result = {
        "store": about_store(store.info),
        "judge": dict(asker.identity),
        "repeat": args.repeat,
        "prompts": {"classify": prompts.to_dict()},
        "seed": args.seed,
        "per_layer": args.per_layer,
        "min_frequency": args.min_frequency,
        "n_examples": args.examples,
        "classes": [one.to_dict() for one in prompts.classes],
        **shares(prompts.classes, samples, classified),
        "features": [one.to_dict() for one in classified],
        "usage": asker.usage.to_dict(),
        "versions": versions(),
    }
    labels.write(store, classified)
    write_result(path, "classify", result)
    print(classes_table(result))
    print(f"Written: {path}, and the column {labels.column} of {store.directory}")
    return {**result, "path": str(path)}


def classes_table(result: Mapping[str, Any]) -> str:
    """Shares of a result, to be read: of classes and groups overall, then per layer."""
    from tc_adapters_lens.report.shown_text import name as shown

    overall, model = result["overall"], result["store"]["model"]
    titles = {**{key: shown(key) for key in overall["classes"]}, **{key: shown(key) for key in overall["groups"]}}
    width = max(len("class"), *map(len, titles.values())) + 2
    whose = f"{model} model" if model == "replacement" else model
    judged = f"{overall['n_sampled']:,} of {overall['n_eligible']:,} features of the {whose} were judged"
    lines = [
        f"{judged}; {overall['n_unparsable']:,} of them have no class.",
        "",
        f"{'class':{width}}{'features':>8}   share  95% interval",
        *(_overall_line(titles[key].ljust(width), found) for key, found in overall["classes"].items()),
    ]
    if overall["groups"]:
        lines += ["", f"{'group':{width}}"]
        lines += [_overall_line(titles[key].ljust(width), found) for key, found in overall["groups"].items()]
    return "\n".join([*lines, "", *_layer_lines(result), ""])


def _overall_line(title: str, found: Mapping[str, Any]) -> str:
    share = found["share"]
    figures = "" if share is None else f"  {share['value']:6.1%}  {share['low']:.1%} to {share['high']:.1%}"
    return f"{title}{found['n']:8,}{figures}"


def _layer_lines(result: Mapping[str, Any]) -> list[str]:
    """Shares in whole percent, their intervals in brackets. Titles are cut into lines of one word."""
    from tc_adapters_lens.report.shown_text import name as shown

    heads = [["layer"], ["features"], ["no", "class"]]
    heads += [shown(key).split() for kind in ("classes", "groups") for key in result["overall"][kind]]
    rows = [
        [
            str(layer["layer"]),
            f"{layer['n_sampled']:,}",
            f"{layer['n_unparsable']:,}",
            *(_in_brackets(found["share"]) for kind in ("classes", "groups") for found in layer[kind].values()),
        ]
        for layer in result["layers"]
    ]
    widths = [max(map(len, [*head, *(row[column] for row in rows)])) for column, head in enumerate(heads)]
    deepest = max(map(len, heads))
    padded = [[""] * (deepest - len(head)) + head for head in heads]
    return [
        "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True))
        for line in [*map(list, zip(*padded, strict=True)), *rows]
    ]


def _in_brackets(share: Mapping[str, float] | None) -> str:
    return "" if share is None else f"{share['value']:.0%} ({share['low'] * 100:.0f}-{share['high'] * 100:.0f})"
