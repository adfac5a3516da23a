"""`tc-adapters dashboard`: pages that show chosen features, drawn by sae-dashboard."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import Namespace

from tc_adapters_lens import assets
from tc_adapters_lens.cli import feature_choice, of_run, options
from tc_adapters_lens.cli.feature_choice import Order
from tc_adapters_lens.cli.parser import Parser
from tc_adapters_lens.errors import ConfigError
from tc_adapters_lens.models.names import FEATURE_STORES

if TYPE_CHECKING:
    from tc_adapters_lens.features.store import FeatureStore
    from tc_adapters_lens.integrations.sae_dashboard.text import HeldOutText
    from tc_adapters_lens.models.adapter_set import AdapterSet
    from tc_adapters_lens.models.diff_transformer import HookedDiffTransformer

SUMMARY = "draw dashboards of chosen features, pages to open without a network"
EXAMPLE = """\
examples:
  tc-adapters dashboard --run runs/toy --top 40
  tc-adapters dashboard --run runs/toy --features 0.12,3.7,2.5-2.9
  tc-adapters dashboard --run runs/toy --group runs/toy/groups/hesitation.json --out hesitation
  tc-adapters dashboard --run runs/toy --features 0.12 --tokens toy

Pages that are there already are not drawn again. Needs sae-dashboard:
  pip install "tc-adapters-lens[dashboard]" && pip install --no-deps "sae-dashboard==0.8.0\""""

DASHBOARDS = "dashboards"


def add_arguments(parser: Parser) -> None:
    of_run.add_adapters(parser, "dashboards/")
    parser.add_argument(
        "--features", type=str | None, metavar="NAMES", help="LAYER.FEATURE with commas; 2.5-2.9 is a range"
    )
    parser.add_argument("--top", type=int | None, metavar="N", help="the N features of RUN/features highest by --by")
    parser.add_argument("--by", type=Order, default="max", help="what --top goes by: highest activation, or frequency")
    parser.add_argument(
        "--group",
        type=str | None,
        metavar="FILE",
        help="a feature group, as `group` makes them; features never active are left out",
    )
    parser.add_argument(
        "--tokens",
        type=str | None,
        metavar="DATA",
        help="text to draw on, as in `evaluate`; toy: the built-in pair's (default: the held-out text of RUN/features)",
    )
    parser.add_argument("--per-page", type=int, default=8, metavar="N", help="features of one page")
    parser.add_argument("--max-tokens", type=int, default=2**17, metavar="N", help="tokens of one page")
    parser.add_argument(
        "--context-size", type=int, default=1024, metavar="N", help="use at most the first N tokens of a sequence"
    )
    parser.add_argument("--batch-size", type=int, default=8, help="sequences in one forward pass")
    parser.add_argument(
        "--out", type=str | None, metavar="DIR", help="directory of the pages (default: RUN/dashboards)"
    )
    parser.add_argument("--chat-template", type=str | None, metavar="FILE", help="Jinja, for chats in --tokens")
    of_run.add_allowances(parser)
    options.add_placement(parser, of_run=True)
    options.add_json(parser)


def run(args: Namespace) -> dict[str, Any]:
    _check(args)
    from tc_adapters_lens.integrations.sae_dashboard.dashboards import (
        Batch,
        require_sae_dashboard,
        write_dashboards,
    )
    from tc_adapters_lens.models.adapter_set import AdapterSet
    from tc_adapters_lens.models.pair_info import check_same_pair

    require_sae_dashboard()
    directory = of_run.take_from_run(args)
    device = options.torch_device(args.device)
    adapters = AdapterSet.from_pretrained(args.adapters, device=device)
    store = _open_store(args, directory, adapters)
    chosen = _choose(args, store, adapters)
    feature_choice.check_features(chosen, adapters.n_layers, adapters.n_features, store)
    model = of_run.load_named_pair(args, options.torch_dtype(args.dtype), device)
    if not args.allow_other_pair:
        check_same_pair(f"Adapters in {args.adapters}", adapters.info.pair, model.pair)
    store = store if args.tokens is None else None
    text = _text(args, model, store)

    def progress(batches: Sequence[Batch]) -> Iterable[Batch]:
        from tqdm.auto import tqdm

        return tqdm(batches, desc="drawing", unit=" pages", disable=None)

    out = (directory or Path()) / DASHBOARDS if args.out is None else Path(args.out).expanduser()
    index = write_dashboards(
        model,
        adapters,
        chosen,
        text,
        out,
        store=store,
        per_page=args.per_page,
        batch_size=args.batch_size,
        progress=progress,
    )
    if assets.find("d3") is None:
        print(f"d3 is not here, so the pages link it: {assets.ASSETS['d3'].cdn}. To have it beside them, run")
        print(f"  {assets.COMMAND}")
    print(f"{len(chosen)} features in {out / 'index.html'}")
    return index


def _check(args: Namespace) -> None:
    given = [f"--{name}" for name in ("features", "top", "group") if args[name] is not None]
    if len(given) != 1:
        got = " and ".join(given) or "none of them"
        raise ConfigError(f"One of --features, --top and --group must say which features. Got {got}.")
    of_run.check_adapters_named(args)
    if args.run is None and args.out is None:
        raise ConfigError("--out must be given where there is no --run. It is missing.")
    if args.run is None and (args.tokens is None or args.top is not None):
        raise ConfigError("Without --run there is no feature store: name --tokens, and --features or --group.")
    options.require_at_least(args, 1, "per_page", "max_tokens", "context_size", "batch_size")


def _open_store(args: Namespace, run: Path | None, adapters: AdapterSet) -> FeatureStore | None:
    """The run's, where text or choice come from it."""
    from tc_adapters_lens.features.store import FeatureStore
    from tc_adapters_lens.features.store_files import is_feature_store

    if run is None or (args.tokens is not None and args.top is None):
        return None
    directory = run / FEATURE_STORES["replacement"]
    if not is_feature_store(directory):
        fix = "name --tokens, and --features or --group" if args.top is not None else "name --tokens"
        raise ConfigError(
            f"{run} must have a feature store. Got none. Run `tc-adapters features --run {run}` first, or {fix}."
        )
    return FeatureStore.open(directory, adapters)


def _choose(args: Namespace, store: FeatureStore | None, adapters: AdapterSet) -> list[tuple[int, int]]:
    if args.features is not None:
        return feature_choice.parse_features(args.features)
    if args.group is not None:
        from tc_adapters_lens.models.feature_group import FeatureGroup

        return feature_choice.active_of(FeatureGroup.load(args.group, adapters), store)
    assert store is not None, "opened above"
    return feature_choice.top_features(store, args.top, args.by)


def _text(args: Namespace, model: HookedDiffTransformer, store: FeatureStore | None) -> HeldOutText:
    from tc_adapters_lens.cli.evaluation import load_text
    from tc_adapters_lens.errors import DataError
    from tc_adapters_lens.integrations.sae_dashboard.text import HeldOutText
    from tc_adapters_lens.models.vocabulary import Vocabulary
    from tc_adapters_lens.training.config import DataConfig

    limits = {"max_tokens": args.max_tokens, "longest": min(args.context_size, model.cfg.n_ctx)}
    if store is not None:
        return HeldOutText(store.tokens, store.offsets, store.vocabulary, str(store.directory), **limits)
    data = DataConfig(
        path=args.tokens,
        loss_on="all",
        context_size=limits["longest"],
        chat_template=args.chat_template,
    )
    sequences, _, _ = load_text(data, model)
    if model.tokenizer is None:
        raise DataError(f"Dashboards show text, which needs a tokenizer. Got none with {model.pair.target_name}.")
    vocabulary = Vocabulary.of(model.tokenizer, model.cfg.d_vocab)
    return HeldOutText(sequences.tokens, sequences.offsets, vocabulary, args.tokens, **limits)
