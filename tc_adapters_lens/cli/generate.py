"""`tc-adapters generate`: responses sampled from a target, as rows of token ids."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import Namespace

from tc_adapters_lens.cli import options
from tc_adapters_lens.cli.parser import Parser
from tc_adapters_lens.errors import ConfigError

if TYPE_CHECKING:
    from tc_adapters_lens.models.sampling import Sampled, Sampling

SUMMARY = "sample responses from a target, to measure on; the same command again resumes an interrupted run"
EXAMPLE = """\
examples:
  tc-adapters generate --target toy:target --prompts toy --n 64 --out responses.jsonl
  tc-adapters generate --target deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B --prompts HuggingFaceH4/MATH-500 \\
      --split test --prompt-column problem --max-new-tokens 8192 --dtype bfloat16 --out responses.jsonl

FILE.jsonl has a row {"input_ids", "prompt_length", "finished"} per prompt; FILE.jsonl.meta.json says how it was made
and whether it is whole."""


def add_arguments(parser: Parser) -> None:
    parser.add_argument(
        "--target", type=str, required=True, metavar="MODEL", help="hub id, local directory, or toy:target"
    )
    parser.add_argument(
        "--target-revision", type=str | None, metavar="REVISION", help="branch, tag or commit of the target on the hub"
    )
    parser.add_argument(
        "--prompts",
        type=str,
        required=True,
        metavar="DATA",
        help="file, directory or hub dataset of chats, questions, or token ids with prompt_length; or toy",
    )
    parser.add_argument("--split", type=str, default="train", metavar="NAME", help="which split of the prompts")
    parser.add_argument(
        "--prompt-column",
        type=str | None,
        metavar="COLUMN",
        help="where chats or questions are; default: messages, conversations, prompt or question",
    )
    parser.add_argument("--n", type=int | None, metavar="N", help="N prompts drawn at random; default: all, in order")
    parser.add_argument("--chat-template", type=str | None, metavar="FILE", help="Jinja; default: the tokenizer's")
    options.add_draws(parser, batch_size=16)
    parser.add_argument("--seed", type=int, default=42, help="of every draw")
    parser.add_argument("--out", type=str, required=True, metavar="FILE.jsonl", help="where the rows are written")
    options.add_placement(parser)
    options.add_json(parser)


def run(args: Namespace) -> dict[str, Any]:
    from tc_adapters_lens.models.sampling import Sampling

    result = sample_to_file(
        args.target,
        args.prompts,
        args.out,
        Sampling(args.temperature, args.top_p, args.max_new_tokens, args.seed, args.batch_size),
        n=args.n,
        target_revision=args.target_revision,
        split=args.split,
        prompt_column=args.prompt_column,
        chat_template=args.chat_template,
        dtype=args.dtype,
        device=args.device,
    )
    print(
        f"{result['n_rows']:,} responses of {result['n_response_tokens']:,} tokens in {result['path']}; "
        f"{result['n_finished']:,} reached their end"
    )
    return result


def sample_to_file(
    target: str,
    prompts: str,
    out: str | Path,
    sampling: Sampling,
    *,
    n: int | None = None,
    target_revision: str | None = None,
    split: str = "train",
    prompt_column: str | None = None,
    chat_template: str | None = None,
    dtype: str = "float32",
    device: str | None = None,
) -> dict[str, Any]:
    """Sample a response to every prompt, or go on with a file that was begun with the same arguments.

    Args:
        target, target_revision: as in `load_pair`.
        prompts, n, split, prompt_column, chat_template: as in `load_prompts`.
        out: a jsonl file; where it is whole already, the target is not loaded.
        sampling: how to draw.
        dtype, device: words of the options of that name.
    Returns:
        "path", and the description that `read_sampled` gives.
    Raises:
        ConfigError: wrong use.
        CheckpointError: the target cannot be read or cannot generate.
        DataError: no such prompts, or `out` is something else.
        KeyboardInterrupt: interrupted; says how many rows are there.
    """
    if Path(out).suffix != ".jsonl":
        raise ConfigError(f"--out must end in .jsonl. Got {out}.")
    if n is not None and n < 1:
        raise ConfigError(f"--n must be at least 1. Got {n}.")
    from tc_adapters_lens.models.checkpoints import Checkpoint
    from tc_adapters_lens.models.sampled_file import prompts_fingerprint, write_sampled
    from tc_adapters_lens.models.sampling import end_tokens, fit, load_target, sample
    from tc_adapters_lens.training.prompts import load_prompts

    place = {"dtype": options.torch_dtype(dtype), "device": options.torch_device(device)}
    checkpoint = Checkpoint.open(target, target_revision)
    ends = end_tokens(checkpoint)
    token_lists, report = load_prompts(
        prompts,
        checkpoint.tokenizer,
        n=n,
        seed=sampling.seed,
        split=split,
        column=prompt_column,
        chat_template=chat_template,
    )
    sampling = fit(sampling, token_lists, checkpoint.config)
    progress = _Progress(len(token_lists))

    def sample_from(start: int) -> Iterator[Sampled]:
        progress.n_whole = start
        model = load_target(checkpoint, **place)
        return progress.watch(sample(model, token_lists, sampling, end_tokens=ends, start=start, on_step=progress.step))

    try:
        found = write_sampled(
            out,
            token_lists,
            {
                "target_fingerprint": checkpoint.fingerprint(),
                "prompts_fingerprint": prompts_fingerprint(token_lists),
                "temperature": sampling.temperature,
                "top_p": sampling.top_p,
                "max_new_tokens": sampling.max_new_tokens,
                "end_tokens": ends,
                "seed": sampling.seed,
                "batch_size": sampling.batch_size,
                "dtype": dtype,
                "device": place["device"].type,
            },
            {"target": {"name": checkpoint.name, "revision": checkpoint.revision}, "prompts": report.to_dict()},
            sample_from,
        )
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"Stopped with {progress.n_whole:,} of {len(token_lists):,} responses in {out}; the same command goes on."
        ) from None
    return {"path": str(out), **found}


class _Progress:
    """A bar of rows, with tokens; `n_whole` rows are written."""

    def __init__(self, n_rows: int):
        self.n_rows, self.n_whole, self.n_tokens = n_rows, 0, 0

    def watch(self, rows: Iterator[Sampled]) -> Iterator[Sampled]:
        from tqdm.auto import tqdm

        with tqdm(total=self.n_rows, initial=self.n_whole, desc="sampling", unit=" rows", disable=None) as self.bar:
            for row in rows:
                yield row
                self.n_whole += 1
                self.n_tokens += len(row.input_ids) - row.prompt_length
                self.bar.update()

    def step(self, n_steps: int) -> None:
        self.bar.set_postfix_str(f"{self.n_tokens:,} tokens, {n_steps:,} in this batch", refresh=n_steps % 16 == 0)
