"""`tc-adapters evaluate`: how faithful trained adapters are, beside base, hybrid and other baselines."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from jsonargparse import Namespace

from tc_adapters_lens.cli import baselines, of_run, options
from tc_adapters_lens.cli.parser import Parser
from tc_adapters_lens.errors import ConfigError

if TYPE_CHECKING:
    from tc_adapters_lens.cli.evaluation import Settings

SUMMARY = "measure how faithful trained adapters are to the target, with intervals, beside baselines"
EXAMPLE = f"""\
examples:
  tc-adapters evaluate --run runs/toy --tokens toy --baselines all --account
  tc-adapters evaluate --run runs/r1-distill-qwen-7b --tokens sampled.jsonl \\
      --sample 700 --prompts open-thoughts/OpenThoughts3-1.2M --partial-sequences 50
  tc-adapters evaluate --base Qwen/Qwen2.5-Math-1.5B --target deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B \\
      --adapters runs/r1-distill-qwen-1.5b/adapters --tokens responses.jsonl --json faithfulness.json

baselines:
{chr(10).join(f"  {name:12} {what}" for name, what in baselines.BASELINES.items())}
The last three are trained first, as the adapters were, into RUN/baselines/."""


def add_arguments(parser: Parser) -> None:
    of_run.add_adapters(parser, "evaluation.json, which `report` reads")
    options.add_text(
        parser,
        "jsonl rows with `input_ids` and `prompt_length` sampled from the target, as `generate` writes them; or any "
        "dataset of text or chats; toy: the built-in pair's",
        positions="response",
        verb="measure",
    )
    parser.add_argument(
        "--sample",
        type=int | None,
        metavar="N",
        help="first sample N responses from the target into --tokens, at temperature 0.7, as `generate` does",
    )
    parser.add_argument("--prompts", type=str | None, metavar="DATA", help="what --sample continues; as in `generate`")
    parser.add_argument("--max-new-tokens", type=int | None, metavar="N", help="of each response that --sample takes")
    parser.add_argument(
        "--baselines", type=str, default="base", metavar="NAMES", help="all, none, or names with commas"
    )
    parser.add_argument(
        "--account", action="store_true", help="swap the target's parts into the base: where the difference lives"
    )
    parser.add_argument(
        "--skyline-lrs",
        type=str | None,
        metavar="LRS",
        help="learning rates to try for the skyline; default: a 100th, a 30th and a 10th of the adapters'",
    )
    parser.add_argument(
        "--no-partial", action="store_true", help="leave out replacing the first, last and single layers"
    )
    parser.add_argument(
        "--partial-sequences", type=int | None, metavar="N", help="measure partial replacement on N sequences"
    )
    parser.add_argument("--bootstrap", type=int, default=1000, metavar="N", help="replicates; 0: no intervals")
    parser.add_argument("--seed", type=int, default=42, help="of every draw: bootstrap, shuffling, which N sequences")
    of_run.add_allowances(parser)
    options.add_placement(parser, of_run=True)
    options.add_json(parser)


def run(args: Namespace) -> dict[str, Any]:
    names = baselines.parse_baselines(args.baselines)
    lrs = baselines.parse_lrs(args.skyline_lrs)
    _check(args, names)
    from tc_adapters_lens.cli.evaluation import Settings, evaluate
    from tc_adapters_lens.evaluation.bootstrap import Bootstrap
    from tc_adapters_lens.evaluation.record import EVALUATION_FILE
    from tc_adapters_lens.report.faithfulness import faithfulness_table

    run_directory = of_run.take_from_run(args)
    place = {"dtype": options.torch_dtype(args.dtype), "device": options.torch_device(args.device)}
    settings = Settings(
        **{name: args[name] for name in ("base", "target", "base_revision", "target_revision", "adapters")},
        data=options.text_config(args),
        baselines=names,
        account=args.account,
        skyline_lrs=lrs,
        partial=not args.no_partial,
        partial_sequences=args.partial_sequences,
        bootstrap=Bootstrap(args.bootstrap, args.seed),
        batch_size=args.batch_size,
        allow_other_pair=args.allow_other_pair,
        allow_tokenizer_mismatch=args.allow_tokenizer_mismatch,
    )
    if args.sample is not None:
        _sample(args, settings)
    evaluation = evaluate(settings, run_directory, **place)
    print(faithfulness_table({"adapters": evaluation.faithfulness}))
    if run_directory is not None:
        print(f"Written: {run_directory / EVALUATION_FILE}. A page of it: tc-adapters report {run_directory}")
    return evaluation.to_dict()


def _check(args: Namespace, names: list[str]) -> None:
    options.require_at_least(args, 1, "batch_size", "partial_sequences")
    trained = [name for name in names if name in baselines.TRAINED]
    of_run.check_adapters_named(args)
    if args.run is None and trained:
        raise ConfigError(
            f"--baselines {','.join(trained)} are trained into a run's directory. Got no --run; name it, or leave "
            "them out."
        )
    if (args.sample is None) != (args.prompts is None):
        raise ConfigError("--sample and --prompts go together: how many responses, and to what. Got one of them.")
    if args.max_new_tokens is not None and args.sample is None:
        raise ConfigError("--max-new-tokens is for --sample. Got no --sample; add it, or cut text with --context-size.")
    if args.account and "base" not in names:
        raise ConfigError(f"--account starts at the base. Got --baselines {args.baselines}; add base to them.")


def _sample(args: Namespace, settings: Settings) -> None:
    from tc_adapters_lens.cli.generate import sample_to_file
    from tc_adapters_lens.models.sampling import Sampling

    sample_to_file(
        settings.target,
        args.prompts,
        args.tokens,
        Sampling(max_new_tokens=args.max_new_tokens, seed=args.seed),
        n=args.sample,
        target_revision=settings.target_revision,
        chat_template=args.chat_template,
        dtype=args.dtype,
        device=args.device,
    )
