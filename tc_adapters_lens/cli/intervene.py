"""`tc-adapters intervene`: what features do, found by switching groups of them off, on alone, up, down and negated."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from tc_adapters_lens.cli import of_run, options
from tc_adapters_lens.cli.parser import Parser
from tc_adapters_lens.errors import ConfigError
from tc_adapters_lens.models.names import FEATURE_STORES

SUMMARY = "switch groups of features off, keep them alone, scale them, negate them on the target; sample and measure"
EXAMPLE = """\
examples:
  tc-adapters intervene --run runs/toy --group hesitation --problems toy
  tc-adapters intervene --run runs/r1-distill-qwen-7b --group hesitation-output --group groups/mine.json \\
      --problems HuggingFaceH4/MATH-500 --split test --prompt-column problem --max-new-tokens 16384 --dtype bfloat16

OUT gets index.html, interventions.png, interventions.json and responses/NAME.jsonl of every model. The same command
again goes on."""


def add_arguments(parser: Parser) -> None:
    of_run.add_adapters(parser, "interventions/GROUP/")
    parser.add_argument(
        "--group",
        type=str,
        action="append",
        metavar="GROUP",
        help="a group's file, or a built-in rule: hesitation, hesitation-output, template; may be given again",
    )
    parser.add_argument(
        "--features", type=str | None, metavar="DIR", help="the adapters' feature store; by default the run's"
    )
    parser.add_argument(
        "--problems",
        type=str,
        required=True,
        metavar="DATA",
        help="file, directory or hub dataset of questions or chats, with right answers if there are any; or toy",
    )
    parser.add_argument("--split", type=str, default="train", metavar="NAME", help="which split of the problems")
    parser.add_argument("--prompt-column", type=str | None, metavar="COLUMN", help="where questions or chats are")
    parser.add_argument("--answer-column", type=str | None, metavar="COLUMN", help="where right answers are")
    parser.add_argument("--chat-template", type=str | None, metavar="FILE", help="Jinja; default: the tokenizer's")
    parser.add_argument("--n", type=int | None, metavar="N", help="N problems drawn at random; default: all, in order")
    parser.add_argument("--draws", type=int, default=3, metavar="N", help="random groups like each group, as controls")
    parser.add_argument(
        "--scale", type=str, default="0.5,2", metavar="FACTORS", help="in the replacement model; none: leave out"
    )
    parser.add_argument(
        "--negate", type=str, default="0.5,1,2", metavar="FACTORS", help="on the target; none: leave out"
    )
    options.add_draws(parser, batch_size=64)
    parser.add_argument("--no-kl", action="store_true", help="do not measure KL to the target")
    parser.add_argument("--bootstrap", type=int, default=1000, metavar="N", help="replicates; 0: no intervals")
    parser.add_argument("--samples", type=int, default=12, metavar="N", help="problems whose responses the page shows")
    parser.add_argument("--seed", type=int, default=42, help="of every draw: responses, controls, bootstrap, problems")
    parser.add_argument("--out", type=str | None, metavar="DIR", help="default: RUN/interventions/GROUP")
    of_run.add_allowances(parser)
    options.add_placement(parser, of_run=True)
    options.add_json(parser)


def run(args: Namespace) -> dict[str, Any]:
    scale, negate = (parse_factors(name, args[name]) for name in ("scale", "negate"))
    _check(args)
    from tc_adapters_lens.cli.intervention import PAGE_FILE, PICTURE_FILE, Settings, intervene
    from tc_adapters_lens.evaluation.bootstrap import Bootstrap
    from tc_adapters_lens.features.store_files import is_feature_store
    from tc_adapters_lens.models.sampling import Sampling
    from tc_adapters_lens.report.interventions import conditions_table, draw_interventions, write_interventions_page

    chat_template = args.chat_template  # the run's is for whole chats: it need not open a response as the target's does
    directory = of_run.take_from_run(args)
    store = None if args.features is None else Path(args.features)
    if store is None and directory is not None and is_feature_store(directory / FEATURE_STORES["replacement"]):
        store = directory / FEATURE_STORES["replacement"]
    place = {"dtype": options.torch_dtype(args.dtype), "device": options.torch_device(args.device)}
    taken = ("base", "target", "base_revision", "target_revision", "adapters", "problems", "split", "prompt_column")
    allowed = ("answer_column", "n", "draws", "allow_other_pair", "allow_tokenizer_mismatch")
    settings = Settings(
        **{name: args[name] for name in (*taken, *allowed)},
        scale=scale,
        negate=negate,
        groups=args.group,
        chat_template=chat_template,
        store=store,
        sampling=Sampling(args.temperature, args.top_p, args.max_new_tokens, args.seed, args.batch_size),
        kl=not args.no_kl,
        bootstrap=Bootstrap(args.bootstrap, args.seed),
        n_samples=args.samples,
    )
    out = Path(args.out) if args.out else (directory or Path()) / "interventions" / "+".join(map(_stem, args.group))
    result = intervene(settings, out, **place)
    write_interventions_page(result, out / PAGE_FILE)
    draw_interventions(result, out / PICTURE_FILE)
    print(conditions_table(result))
    for condition in result["conditions"]:
        if condition["n_degenerate"] == result["problems"]["n"]:
            print(
                f"All {condition['n_degenerate']:,} responses of {condition['label']} degenerate: its figures are of "
                "what comes before."
            )
    print(f"Written: {out / PAGE_FILE}")
    return {key: value for key, value in result.items() if key != "samples"}


def parse_factors(option: str, text: str) -> list[float]:
    """ "0.5,2" as numbers; "none" as no number.

    Raises:
        ConfigError: anything else.
    """
    if text == "none":
        return []
    try:
        return [float(word) for word in text.split(",")]
    except ValueError:
        raise ConfigError(f"--{option} must be numbers with commas, such as 0.5,2, or none. Got '{text}'.") from None


def _check(args: Namespace) -> None:
    of_run.check_adapters_named(args)
    if not args.group:
        raise ConfigError("--group must be given: the file of a group, or hesitation, hesitation-output, template.")
    if args.run is None and args.out is None:
        raise ConfigError("--out must be given where there is no --run. It is missing.")
    options.require_at_least(args, 1, "n")
    options.require_at_least(args, 0, "draws", "samples")


def _stem(group: str) -> str:
    return Path(group).stem
