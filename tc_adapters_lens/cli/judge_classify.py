"""`tc-adapters judge classify`."""

from __future__ import annotations

from typing import Any

from jsonargparse import Namespace

from tc_adapters_lens.cli.parser import Parser

SUMMARY = "classify"
EXAMPLE = """\
examples:
  tc-adapters judge classify --help"""


def add_arguments(parser: Parser) -> None:
    parser.add_argument("--seed", type=int, default=42)


def run(args: Namespace) -> dict[str, Any]:
    return {"seed": args.seed}
