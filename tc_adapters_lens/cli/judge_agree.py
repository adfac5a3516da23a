"""`tc-adapters judge agree`: two results of `judge classify` compared."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from tc_adapters_lens.cli import options
from tc_adapters_lens.cli.parser import Parser
from tc_adapters_lens.errors import ConfigError

SUMMARY = "tell how far two judges give the same features the same classes, beyond chance"
EXAMPLE = """\
examples:
  tc-adapters judge agree runs/toy/judge/classify-replacement.json runs/toy/judge/classify-replacement-again.json

Compared are the features that both gave a class. Cohen's kappa is 1 where they always agree and 0 where they agree as
often as chance would, given how often each of them gives each class."""


def add_arguments(parser: Parser) -> None:
    for name, which in (("first", "one result of `judge classify`"), ("second", "another, of the same feature store")):
        parser.add_argument(name, type=str, metavar=f"{name.upper()}.json", help=which)
    parser.add_argument("--bootstrap", type=int, default=1000, metavar="N", help="replicates; 0: no intervals")
    parser.add_argument("--seed", type=int, default=42, help="of the bootstrap")
    options.add_json(parser)


def run(args: Namespace) -> dict[str, Any]:
    if args.seed < 0:
        raise ConfigError(f"--seed must not be negative. Got {args.seed}.")
    from tc_adapters_lens.evaluation.bootstrap import Bootstrap
    from tc_adapters_lens.judge.agreement import agreement
    from tc_adapters_lens.judge.results import read_result

    bootstrap = Bootstrap(args.bootstrap, args.seed)
    first, second = (read_result(Path(path).expanduser(), "classify") for path in (args.first, args.second))
    found = agreement(first, second, bootstrap)
    print(agreement_table(found))
    return {"first": args.first, "second": args.second, "replicates": args.bootstrap, "seed": args.seed, **found}


def agreement_table(found: Mapping[str, Any]) -> str:
    """What `agreement` found, to be read."""
    unparsable, sizes = found["n_unparsable"], f"{found['n_first']:,} and {found['n_second']:,}"
    lines = [
        f"{found['n_common']:,} features are in both results ({sizes}); {found['n']:,} have a class in both.",
        f"Without a class: {unparsable['first']:,} in the first, {unparsable['second']:,} in the second.",
        "",
        f"same class     {_figure(found['agreement'])}",
        f"Cohen's kappa  {_figure(found['kappa'])}",
        "",
        *_confusion_lines(found["classes"], found["confusion"]),
    ]
    if found["layers"]:
        lines += ["", "layer  features             same class          Cohen's kappa"]
        lines += [
            f"{one['layer']:5} {one['n']:9,}  {_figure(one['agreement']):>21}  {_figure(one['kappa']):>21}"
            for one in found["layers"]
        ]
    return "\n".join([*lines, ""])


def _figure(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return "undefined: both always gave one and the same class"
    interval = "" if found["low"] is None else f" ({found['low']:.3f} to {found['high']:.3f})"
    return f"{found['value']:.3f}{interval}"


def _confusion_lines(names: list[str], confusion: list[list[int]]) -> list[str]:
    """Rows are the first result's classes; columns, in the same order, the second's."""
    from tc_adapters_lens.report.shown_text import name as shown

    titles = [f"{index}  {shown(name)}" for index, name in enumerate(names, 1)]
    width = max(map(len, titles))
    cell = max(len(f"{n:,}") for n in [len(names), *(n for row in confusion for n in row)]) + 2
    head = "first \\ second".ljust(width) + "".join(f"{index:{cell}}" for index in range(1, len(names) + 1))
    rows = [
        title.ljust(width) + "".join(f"{n:{cell},}" for n in row) for title, row in zip(titles, confusion, strict=True)
    ]
    return [head, *rows]
