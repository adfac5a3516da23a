"""`tc-adapters report`: a page on how faithful the adapters of evaluated runs are."""

from __future__ import annotations

from typing import Any

from jsonargparse import Namespace

from tc_adapters_lens.cli import options
from tc_adapters_lens.cli.parser import Parser

SUMMARY = "write a page with tables and plots on how faithful the adapters of evaluated runs are"
EXAMPLE = """\
examples:
  tc-adapters report runs/toy
  tc-adapters report runs/sparse runs/dense --out comparison.html"""


def add_arguments(parser: Parser) -> None:
    parser.add_argument(
        "runs", type=str, nargs="*", metavar="RUN", help="directory of a run that `tc-adapters evaluate` has measured"
    )
    parser.add_argument(
        "--out",
        type=str | None,
        metavar="FILE.html",
        help="the page; its figures are written beside it as .json (default: report.html in the first run)",
    )
    options.add_json(parser)


def run(args: Namespace) -> dict[str, Any]:
    from tc_adapters_lens.report.page import default_out, write_report

    out = args.out or default_out(args.runs)
    result = write_report(args.runs, out)
    outcomes = [expectation["outcome"] for expectation in result["expectations"]]
    counts = ", ".join(f"{outcomes.count(outcome)} {outcome}" for outcome in ("held", "failed", "not measured"))
    runs = "1 run" if len(args.runs) == 1 else f"{len(args.runs)} runs"
    print(f"{runs} on {result['n_tokens']:,} tokens; expectations: {counts}")
    for expectation in result["expectations"]:
        if expectation["outcome"] == "failed":
            print(f"  failed: {expectation['statement']}")
    print(f"report written to {out}")
    return result
