"""`tc-adapters evaluate`: how faithful trained adapters are, beside base and hybrid."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from jsonargparse import Namespace

from tc_adapters_lens.cli import options
from tc_adapters_lens.cli.parser import Parser
from tc_adapters_lens.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

    from tc_adapters_lens.training.sequences import TokenSequences

SUMMARY = "measure how faithful trained adapters are to the target, beside base and hybrid"
EXAMPLE = """\
example:
  tc-adapters evaluate --base Qwen/Qwen2.5-Math-1.5B --target deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B \\
      --adapters runs/r1-distill-qwen-1.5b/adapters --tokens responses.jsonl --json faithfulness.json"""


def add_arguments(parser: Parser) -> None:
    options.add_pair(parser)
    parser.add_argument(
        "--adapters", type=str, required=True, metavar="DIR", help="directory or hub id of trained adapters"
    )
    parser.add_argument(
        "--tokens",
        type=str,
        required=True,
        metavar="FILE",
        help="jsonl rows with `input_ids`, or any dataset of text or chats; best sampled from the target",
    )
    parser.add_argument(
        "--positions",
        type=Literal["all", "response"],
        default="all",
        help="positions that count; response needs chats, or rows with `prompt_length`",
    )
    parser.add_argument("--max-sequences", type=int | None, metavar="N", help="measure N sequences drawn at random")
    parser.add_argument("--context-size", type=int | None, metavar="N", help="cut sequences to N tokens")
    parser.add_argument("--chat-template", type=str | None, metavar="FILE", help="Jinja, for chats")
    parser.add_argument("--batch-size", type=int, default=8, help="sequences in one forward pass")
    parser.add_argument(
        "--no-base", action="store_true", help="leave out the base's own row, which loads the whole base"
    )
    parser.add_argument(
        "--allow-other-pair", action="store_true", help="measure adapters that were trained on another pair"
    )
    parser.add_argument("--allow-tokenizer-mismatch", action="store_true", help="accept tokenizers that disagree")
    options.add_placement(parser)
    options.add_json(parser)


def run(args: Namespace) -> dict[str, Any]:
    if args.batch_size < 1:
        raise ConfigError(f"--batch-size must be at least 1. Got {args.batch_size}.")
    from tc_adapters_lens.evaluation.faithfulness import measure_faithfulness
    from tc_adapters_lens.models.adapter_set import AdapterSet
    from tc_adapters_lens.models.pair import load_base, load_pair
    from tc_adapters_lens.report.faithfulness import faithfulness_table
    from tc_adapters_lens.training.config import DataConfig
    from tc_adapters_lens.training.data import load_sequences

    data = DataConfig(
        path=args.tokens,
        loss_on=args.positions,
        context_size=args.context_size,
        max_sequences=args.max_sequences,
        chat_template=args.chat_template,
    )
    place = {"dtype": options.torch_dtype(args.dtype), "device": options.torch_device(args.device)}
    model = load_pair(
        args.base,
        args.target,
        base_revision=args.base_revision,
        target_revision=args.target_revision,
        allow_tokenizer_mismatch=args.allow_tokenizer_mismatch,
        **place,
    )
    adapters = AdapterSet.from_pretrained(
        args.adapters, device=place["device"], pair=model.pair, allow_other_pair=args.allow_other_pair
    )
    sequences, report = load_sequences(data, model.tokenizer, model.cfg.d_vocab, model.cfg.n_ctx)
    whole_base = None if args.no_base else load_base(args.base, base_revision=args.base_revision, **place)
    result = measure_faithfulness(model, adapters, batches(sequences, args.batch_size), whole_base)
    print(faithfulness_table({Path(args.adapters).name: result}))
    return {
        **result.to_dict(),
        "positions": args.positions,
        "pair": model.pair.to_dict(),
        "adapters": args.adapters,
        "data": report.to_dict(),
    }


def batches(sequences: TokenSequences, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Tokens and mask of all sequences, those of similar length together, with a progress bar."""
    from tqdm.auto import tqdm

    order = sequences.lengths.argsort(kind="stable")[::-1]
    starts = range(0, len(order), batch_size)
    for start in tqdm(starts, desc="evaluating", unit=" batches", disable=None):
        batch = sequences.batch(order[start : start + batch_size])
        yield batch.tokens, batch.mask
