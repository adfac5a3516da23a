"""`tc-adapters import`: adapters from a checkpoint in the authors' layout."""

from __future__ import annotations

from typing import Any

from jsonargparse import Namespace

from tc_adapters_lens.cli import options
from tc_adapters_lens.cli.parser import Parser

SUMMARY = "read adapters out of a checkpoint in the layout of the paper's authors"
EXAMPLE = """\
example:
  tc-adapters import --checkpoint checkpoint-50000 --base Qwen/Qwen2.5-Math-7B \\
      --target deepseek-ai/DeepSeek-R1-Distill-Qwen-7B --out adapters"""


def add_arguments(parser: Parser) -> None:
    parser.add_argument(
        "--checkpoint",
        type=str,
        required=True,
        metavar="DIR_OR_ID",
        help="directory or hub id of the checkpoint",
    )
    parser.add_argument(
        "--revision",
        type=str | None,
        metavar="REVISION",
        help="branch, tag or commit of the checkpoint on the hub",
    )
    options.add_pair(parser)
    parser.add_argument("--out", type=str, required=True, metavar="DIR", help="where the adapters are written")
    options.add_json(parser)


def run(args: Namespace) -> dict[str, Any]:
    from tc_adapters_lens.models.authors_format import import_authors
    from tc_adapters_lens.models.checkpoints import Checkpoint
    from tc_adapters_lens.models.pair_checks import check_configs
    from tc_adapters_lens.models.pair_info import PairInfo

    base = Checkpoint.open(args.base, args.base_revision)
    target = Checkpoint.open(args.target, args.target_revision)
    check_configs(base.config, target.config)
    pair = PairInfo.of(base, target)
    adapters = import_authors(
        args.checkpoint,
        pair,
        target.config.num_hidden_layers,
        target.config.hidden_size,
        revision=args.revision,
    )
    adapters.save(args.out)
    print(f"{adapters.n_layers} adapters of {adapters.n_features} features written to {args.out}")
    return {
        "adapters": str(args.out),
        "n_layers": adapters.n_layers,
        "n_features": adapters.n_features,
        "d_model": adapters.d_model,
        "recipe": adapters.info.recipe,
    }
