"""`tc-adapters graph`: which features of the adapters, at which tokens, make the model say what it says next."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from jsonargparse import Namespace

from tc_adapters_lens.cli import of_run, options
from tc_adapters_lens.cli.output import write_json
from tc_adapters_lens.cli.parser import Parser
from tc_adapters_lens.errors import ConfigError, DataError, FeatureStoreError, GraphError, MissingExtraError
from tc_adapters_lens.models.names import FEATURE_STORES, GRAPHS

if TYPE_CHECKING:
    from tc_adapters_lens.cli.graph_prompts import GraphPrompt
    from tc_adapters_lens.integrations.circuit_tracer.replacement import AdapterReplacementModel
    from tc_adapters_lens.integrations.circuit_tracer.summary import Words
    from tc_adapters_lens.models.adapter_set import AdapterSet
    from tc_adapters_lens.models.diff_transformer import HookedDiffTransformer

SUMMARY = "trace attribution graphs through adapter features, with circuit-tracer, and sum them up"
EXAMPLE = """\
examples:
  tc-adapters graph --run runs/toy --prompt "What is 17 + 25 - 8?" --chat
  tc-adapters graph --run runs/toy --tokens toy --before wait --n 5
  tc-adapters graph --run runs/toy --tokens responses.jsonl --rows 3 --before wait --contrast ' Wait' ' So'
  tc-adapters graph --run runs/r1-distill-qwen-7b --prompts prompts/ --dtype bfloat16 --max-features 5000

OUT gets NAME.json (circuit-tracer's own graph file) and NAME/ with summary.json, graph.svg, graph.png and all edges.
`tc-adapters serve RUN` shows them. The same command again makes only what is not there; with other thresholds it traces
nothing again."""


def add_arguments(parser: Parser) -> None:
    of_run.add_adapters(parser, "graphs/")
    parser.add_argument("--prompt", type=str | None, metavar="TEXT", help="a text; what comes after it is explained")
    parser.add_argument("--prompts", type=str | None, metavar="DIR", help="a directory of .txt files, a prompt in each")
    parser.add_argument("--chat", action="store_true", help="texts are a user's messages, put into the chat template")
    parser.add_argument(
        "--chat-template", type=str | None, metavar="FILE", help="Jinja, for --chat and for chats in --tokens"
    )
    parser.add_argument(
        "--tokens",
        type=str | None,
        metavar="DATA",
        help="sequences, as `features` takes them, of which each gives a prompt; toy: the built-in pair's",
    )
    parser.add_argument("--rows", type=str | None, metavar="N,N-M", help="which sequences (default: all)")
    parser.add_argument(
        "--before", type=str | None, metavar="WORD", help="the prompt ends before this word of the response"
    )
    parser.add_argument(
        "--end", type=int | None, metavar="N", help="or after N tokens (default: where the response begins)"
    )
    parser.add_argument("--n", type=int | None, metavar="N", help="at most N sequences, the first that have the place")
    parser.add_argument(
        "--target-token",
        type=str,
        action="append",
        metavar="TOKEN",
        help="explain this token's logit, blank included, or #ID; may be repeated (default: the most probable tokens)",
    )
    parser.add_argument(
        "--contrast", type=str, nargs=2, metavar=("A", "B"), help="explain by how much A's logit is above B's"
    )
    parser.add_argument(
        "--direction", type=str | None, metavar="FILE", help="explain a direction: safetensors with one vector"
    )
    parser.add_argument("--max-logits", type=int, default=10, metavar="N", help="most probable tokens, at most N")
    parser.add_argument(
        "--logit-share", type=float, metavar="SHARE", default=0.95, help="... until they have this probability"
    )
    parser.add_argument(
        "--sampled",
        type=Literal["replacement", "target"],
        default="replacement",
        help="whose forward pass is explained: the replacement model's, or the target's, which has errors",
    )
    parser.add_argument(
        "--rule",
        type=Literal["relp", "gate-detach"],
        default="relp",
        help="what a gated MLP's product hands on: half to each factor, or all past the gate",
    )
    parser.add_argument(
        "--zero-first", action="store_true", help="leave out features and errors at position 0, as circuit-tracer does"
    )
    parser.add_argument(
        "--max-features", type=int | None, metavar="N", help="trace the N most influential features (default: all)"
    )
    parser.add_argument(
        "--influence-share",
        type=float,
        metavar="SHARE",
        default=1.0,
        help="... or until features that are not traced have no more than the rest of the influence",
    )
    parser.add_argument(
        "--keep",
        type=float,
        metavar="SHARE",
        default=0.999,
        help="share of what enters a node whose edges are kept; less where hardly any influence goes",
    )
    parser.add_argument(
        "--node-threshold", type=float, metavar="SHARE", default=0.9, help="share of influence whose nodes are shown"
    )
    parser.add_argument(
        "--edge-threshold", type=float, metavar="SHARE", default=0.98, help="share of influence whose edges are shown"
    )
    parser.add_argument("--max-edges", type=int, default=50_000, metavar="N", help="most edges that are shown")
    parser.add_argument(
        "--features", type=str | None, metavar="DIR", help="the adapters' feature store; by default the run's"
    )
    parser.add_argument("--name", type=str | None, help="of the graph, where it is one (default: from the prompt)")
    parser.add_argument("--out", type=str | None, metavar="DIR", help="default: RUN/graphs")
    of_run.add_allowances(parser)
    options.add_placement(parser, of_run=True)
    options.add_json(parser)


def run(args: Namespace) -> dict[str, Any]:
    _check(args)
    try:
        from tc_adapters_lens.integrations.circuit_tracer.graph_files import check_slug
    except ModuleNotFoundError as missing:
        if missing.name != "circuit_tracer":
            raise
        raise MissingExtraError(
            "`tc-adapters graph` needs circuit-tracer, which is not installed: "
            'pip install "tc-adapters-lens[attribution]"'
        ) from missing
    from tc_adapters_lens.cli.graph_output import GraphView
    from tc_adapters_lens.cli.graph_prompts import parse_rows
    from tc_adapters_lens.cli.graph_text import graph_text
    from tc_adapters_lens.cli.graph_tracing import GraphSettings, make_graphs
    from tc_adapters_lens.integrations.circuit_tracer.replacement import replacement_model
    from tc_adapters_lens.models.adapter_set import AdapterSet

    rows = None if args.rows is None else parse_rows(args.rows)
    if args.name is not None:
        try:
            check_slug(args.name)
        except GraphError as error:
            raise ConfigError(str(error)) from error
    prompt_template = args.chat_template  # the run's is for whole chats
    directory = of_run.take_from_run(args)
    place = {"dtype": options.torch_dtype(args.dtype), "device": options.torch_device(args.device)}
    pair = of_run.load_named_pair(args, **place)
    if pair.tokenizer is None:
        raise DataError(
            "A graph needs a tokenizer, to name tokens. Got a target without one; save its tokenizer there."
        )
    adapters = AdapterSet.from_pretrained(
        args.adapters, pair=pair.pair, allow_other_pair=args.allow_other_pair, device=place["device"]
    )
    words = _words(args, directory, pair, adapters)
    settings = GraphSettings(
        **{name: args[name] for name in ("sampled", "rule", "zero_first", "direction", "max_logits", "logit_share")},
        **{name: args[name] for name in ("max_features", "influence_share", "keep")},
        target_tokens=None if args.target_token is None else tuple(args.target_token),
        contrast=None if args.contrast is None else tuple(args.contrast),
    )
    model = replacement_model(
        pair,
        adapters,
        sampled=settings.sampled,
        rule=settings.rule,
        zero_first=settings.zero_first,
        allow_other_pair=args.allow_other_pair,
    )
    prompts = _prompts(args, rows, prompt_template, pair, model)
    out = Path(args.out).expanduser() if args.out else (directory or Path()) / GRAPHS
    view = GraphView(args.node_threshold, args.edge_threshold, args.max_edges)
    about = {"pair": pair.pair.to_dict(), "adapters_fingerprint": adapters.fingerprint(), "dtype": args.dtype}
    graphs: list[dict[str, Any]] = []
    failed: list[dict[str, str]] = []
    try:
        for outcome in make_graphs(model, prompts, settings, view, words, out, about, args.name):
            if outcome.summary is None:
                failed.append({"slug": outcome.slug, "error": outcome.failure})
            else:
                graphs.append({"slug": outcome.slug, "made": outcome.made, **outcome.summary})
                print(graph_text(outcome.slug, outcome.summary), flush=True)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"Stopped with {len(graphs)} of {len(prompts)} graphs in {out}; the same command goes on."
        ) from None
    result = {"graphs": graphs, "failed": failed}
    if failed:
        if args.json is not None:
            write_json(args.json, result)
        first = failed[0]
        raise GraphError(
            first["error"]
            if len(prompts) == 1
            else f"{len(failed)} of {len(prompts)} graphs could not be made, the others are in {out}. "
            f"{first['slug']}: {first['error']}"
        )
    n_made = sum(graph["made"] for graph in graphs)
    there = f", {len(graphs) - n_made} were there" if n_made < len(graphs) else ""
    served = directory is not None and out.resolve() == (directory / GRAPHS).resolve()
    print(
        f"Written: {n_made} of {len(graphs)} graphs{there}: {out}."
        + (f" To look at them: tc-adapters serve {directory}" if served else "")
    )
    return result


def _prompts(
    args: Namespace,
    rows: tuple[int, ...] | None,
    prompt_template: str | None,
    pair: HookedDiffTransformer,
    model: AdapterReplacementModel,
) -> list[GraphPrompt]:
    from tc_adapters_lens.cli.graph_prompts import TextPrompts, TokenPrompts
    from tc_adapters_lens.training.config import DataConfig

    if args.tokens is None:
        texts = TextPrompts(args.prompt, args.prompts, args.chat, prompt_template)
        return texts.load(pair, lambda text: model.ensure_tokenized(text).tolist())
    data = DataConfig(path=args.tokens, loss_on="all", chat_template=args.chat_template)
    return TokenPrompts(data, rows, args.before, args.end, args.n).load(pair)


def _words(args: Namespace, directory: Path | None, pair: HookedDiffTransformer, adapters: AdapterSet) -> Words:
    """From the feature store, where there is one of these adapters."""
    from tc_adapters_lens.features.store import FeatureStore
    from tc_adapters_lens.features.store_files import is_feature_store
    from tc_adapters_lens.integrations.circuit_tracer.words import DecoderWords, StoreWords
    from tc_adapters_lens.models.vocabulary import Vocabulary

    if args.features is not None:
        return StoreWords(FeatureStore.open(args.features, adapters))
    store = None if directory is None else directory / FEATURE_STORES["replacement"]
    if store is not None and is_feature_store(store):
        try:
            return StoreWords(FeatureStore.open(store, adapters))
        except FeatureStoreError as other:
            print(f"Features are named by what they promote alone: {other}")
    assert pair.tokenizer is not None
    return DecoderWords(pair, adapters, Vocabulary.of(pair.tokenizer, pair.cfg.d_vocab))


def _check(args: Namespace) -> None:
    of_run.check_adapters_named(args)
    if args.run is None and args.out is None:
        raise ConfigError("--out must be given where there is no --run. It is missing.")
    _require_one(args, ("prompt", "prompts", "tokens"), least=1)
    _require_one(args, ("target_token", "contrast", "direction"), least=0)
    _require_one(args, ("before", "end"), least=0)
    for option in ("rows", "before", "end", "n"):
        if args[option] is not None and args.tokens is None:
            raise ConfigError(f"--{option} goes with --tokens, which is missing.")
    if args.before is not None and not args.before.strip():
        raise ConfigError(f"--before must be a word. Got {args.before!r}.")
    if args.chat and args.tokens is not None:
        raise ConfigError("--chat goes with --prompt or --prompts. Got --tokens.")
    if args.chat_template is not None and not args.chat and args.tokens is None:
        raise ConfigError("--chat-template goes with --chat or --tokens, which are missing.")
    options.require_at_least(args, 1, "end", "n", "max_features", "max_logits", "max_edges")
    for option in ("logit_share", "influence_share", "keep"):
        if not 0 < args[option] <= 1:
            raise ConfigError(f"{options.flag(option)} must be over 0 and at most 1. Got {args[option]}.")
    for option in ("node_threshold", "edge_threshold"):
        if not 0 <= args[option] <= 1:
            raise ConfigError(f"{options.flag(option)} must be from 0 to 1. Got {args[option]}.")


def _require_one(args: Namespace, names: Sequence[str], least: int) -> None:
    given = [options.flag(name) for name in names if args[name] is not None]
    if not least <= len(given) <= 1:
        flags = ", ".join(map(options.flag, names))
        how = "One of" if least else "At most one of"
        raise ConfigError(f"{how} {flags} must be given. Got {' and '.join(given) or 'none'}.")
