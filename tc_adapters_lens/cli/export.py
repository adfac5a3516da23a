"""`tc-adapters export`: adapters in another layout."""

from __future__ import annotations

from typing import Any, Literal

from jsonargparse import Namespace

from tc_adapters_lens.cli import options
from tc_adapters_lens.cli.parser import Parser
from tc_adapters_lens.errors import ConfigError

SUMMARY = "write trained adapters in the authors' layout; with --base and --target as a whole model"
EXAMPLE = """\
examples:
  tc-adapters export --adapters runs/toy/adapters --format authors --out exported
  tc-adapters export --adapters runs/toy/adapters --base toy:base --target toy:target --out exported"""


def add_arguments(parser: Parser) -> None:
    parser.add_argument(
        "--adapters", type=str, required=True, metavar="DIR", help="directory or hub id of trained adapters"
    )
    parser.add_argument("--format", type=Literal["authors"], default="authors", help="layout to write")
    options.add_pair(parser, required=False)
    parser.add_argument(
        "--allow-other-pair",
        action="store_true",
        help="accept models other than those the adapters were trained on",
    )
    parser.add_argument("--out", type=str, required=True, metavar="DIR", help="where the checkpoint is written")
    options.add_json(parser)


def run(args: Namespace) -> dict[str, Any]:
    from tc_adapters_lens.models.adapter_set import AdapterSet
    from tc_adapters_lens.models.authors_format import export_authors
    from tc_adapters_lens.models.checkpoints import Checkpoint

    if (args.base is None) != (args.target is None):
        raise ConfigError("--base and --target must be given together, or neither. Got one. Add the other.")
    adapters = AdapterSet.from_pretrained(args.adapters)
    base, target = (
        None if name is None else Checkpoint.open(name, revision)
        for name, revision in ((args.base, args.base_revision), (args.target, args.target_revision))
    )
    export_authors(adapters, args.out, base, target, allow_other_pair=args.allow_other_pair)
    what = "adapters alone" if target is None else "whole model with adapters"
    print(f"{what} ({adapters.n_layers} layers, {adapters.n_features} features each) written to {args.out}")
    return {"checkpoint": str(args.out), "format": args.format, "whole_model": target is not None}
