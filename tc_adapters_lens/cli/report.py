"""`tc-adapters report`: a page on how faithful the adapters of evaluated runs are."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from jsonargparse import Namespace

from tc_adapters_lens.cli import options
from tc_adapters_lens.cli.parser import Parser
from tc_adapters_lens.errors import ConfigError

SUMMARY = "write a page with tables and plots on how faithful the adapters of evaluated runs are"
EXAMPLE = """\
examples:
  tc-adapters report runs/toy
  tc-adapters report runs/sparse runs/dense --out comparison.html
  tc-adapters report --reproduce toy

--reproduce toy trains and measures everything that the page can show on the built-in pair, in under half an hour on two
cores. Started again, it goes on where it was."""


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
    parser.add_argument(
        "--reproduce",
        type=Literal["toy"] | None,
        metavar="toy",
        help="first make the runs, of the built-in pair, in the page's directory (default: runs/reproduce-toy)",
    )
    options.add_json(parser)


def run(args: Namespace) -> dict[str, Any]:
    from tc_adapters_lens.report.expectations import OUTCOMES
    from tc_adapters_lens.report.page import default_out, write_report

    if args.reproduce is None:
        runs, out, title = args.runs, args.out or default_out(args.runs), None
    else:
        if args.runs:
            raise ConfigError(f"--reproduce makes its own runs. Got {args.runs[0]} beside it; leave one of them out.")
        from tc_adapters_lens.cli.reproduce import TITLE, reproduce_toy

        out, title = Path(args.out or "runs/reproduce-toy/report.html"), TITLE
        runs = reproduce_toy(out.parent)
    result = write_report(runs, out, title)
    outcomes = [expectation["outcome"] for expectation in result["expectations"]]
    counts = ", ".join(f"{outcomes.count(outcome)} {outcome}" for outcome in OUTCOMES)
    print(f"{len(runs)} run{'' if len(runs) == 1 else 's'} on {result['n_tokens']:,} tokens; expectations: {counts}")
    for expectation in result["expectations"]:
        if expectation["outcome"] in ("failed", "undecided"):
            print(f"  {expectation['outcome']}: {expectation['statement']}")
    print(f"report written to {out}")
    return result
