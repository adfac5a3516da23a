"""`tc-adapters doctor`: is everything there, do the models fit together, will the training fit in memory."""

from __future__ import annotations

from typing import Any

from jsonargparse import Namespace

from tc_adapters_lens.cli import options
from tc_adapters_lens.cli.parser import Parser

SUMMARY = "check the installation, a pair of models and a training configuration before spending hours on them"
EXAMPLE = """\
examples:
  tc-adapters doctor
  tc-adapters doctor --base Qwen/Qwen2.5-Math-1.5B --target deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B
  tc-adapters doctor --config configs/r1-distill-qwen-7b.yaml"""


def add_arguments(parser: Parser) -> None:
    options.add_pair(parser, required=False)
    parser.add_argument("--config", type=str | None, metavar="FILE", help="training configuration to check")
    options.add_json(parser)


def run(args: Namespace) -> dict[str, Any]:
    raise NotImplementedError
