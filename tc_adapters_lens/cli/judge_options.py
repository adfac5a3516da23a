"""Who judges which features: options that the verbs of `tc-adapters judge` share."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import Namespace

from tc_adapters_lens.cli.options import add_units, flag, require_at_least
from tc_adapters_lens.cli.parser import Parser
from tc_adapters_lens.errors import ConfigError
from tc_adapters_lens.models.names import FEATURE_STORES

if TYPE_CHECKING:
    from tc_adapters_lens.features.store import FeatureStore
    from tc_adapters_lens.judge.asking import Asker
    from tc_adapters_lens.judge.budget import Cost
    from tc_adapters_lens.judge.request import Judge
    from tc_adapters_lens.judge.sample import LayerSample

__all__ = ["RULES", "add_features", "add_judge", "open_asker", "open_features", "print_cost"]

RULES = "rules"
_OF_ENDPOINT = ("judge_model", "base_url", "api_key_env", "concurrency", "max_requests", "max_tokens")


def add_features(parser: Parser, per_layer: int, min_frequency: float) -> None:
    """Which features are judged, and under which name the result is kept.

    Args:
        per_layer, min_frequency: the defaults of these options.
    """
    parser.add_argument(
        "--run", type=str, required=True, metavar="DIR", help="a training run with features/; gets judge/"
    )
    add_units(parser)
    parser.add_argument("--per-layer", type=int, default=per_layer, metavar="N", help="features drawn from each layer")
    parser.add_argument(
        "--min-frequency",
        type=float,
        default=min_frequency,
        metavar="SHARE",
        help="draw features active at this share of positions at least",
    )
    parser.add_argument("--seed", type=int, default=42, help="of all that is drawn")
    parser.add_argument("--name", type=str | None, help="keeps the result beside others of this run and model")


def open_features(args: Namespace) -> tuple[FeatureStore, list[LayerSample]]:
    """The store of the run, and which of its features are judged.

    Raises:
        ConfigError: an option is not what it must be.
        FeatureStoreError: the run has no such store.
        JudgeError: no feature can be drawn.
    """
    from tc_adapters_lens.features.store import FeatureStore
    from tc_adapters_lens.judge.sample import sample_features

    require_at_least(args, 1, "per_layer")
    require_at_least(args, 0, "seed")
    if not 0 <= args.min_frequency <= 1:
        raise ConfigError(f"--min-frequency must be a share, from 0 to 1. Got {args.min_frequency:g}.")
    store = FeatureStore.open(Path(args.run).expanduser() / FEATURE_STORES[args.model])
    return store, sample_features(store, args.per_layer, args.min_frequency, args.seed)


def add_judge(parser: Parser) -> None:
    """Who judges, how often the same is asked, and what it may cost."""
    parser.add_argument(
        "--judge",
        type=str | None,
        metavar="JUDGE",
        help=f"{RULES}, which needs no network, or the YAML file of an OpenAI-compatible endpoint",
    )
    parser.add_argument(
        "--judge-model",
        type=str | None,
        metavar="MODEL",
        help="model that the endpoint is asked for; by default the file's, else that of $TC_ADAPTERS_JUDGE_MODEL",
    )
    parser.add_argument(
        "--base-url",
        type=str | None,
        metavar="URL",
        help="endpoint, such as http://localhost:11434/v1; by default the file's, else $OPENAI_BASE_URL, else OpenAI's",
    )
    parser.add_argument(
        "--api-key-env",
        type=str | None,
        metavar="VARIABLE",
        help="name of the variable that holds the key; by default the file's, else OPENAI_API_KEY",
    )
    parser.add_argument(
        "--concurrency", type=int | None, metavar="N", help="requests at a time; by default the file's, else 16"
    )
    parser.add_argument(
        "--repeat",
        type=int,
        default=0,
        metavar="N",
        help="ask everything anew as asking number N, to see how far a judge agrees with itself",
    )
    parser.add_argument("--max-requests", type=int | None, metavar="N", help="send N requests at most, then stop")
    parser.add_argument(
        "--max-tokens", type=int | None, metavar="N", help="use N tokens at most, of prompts and replies, then stop"
    )
    parser.add_argument("--dry-run", action="store_true", help="say what it would take, and send nothing")


def open_asker(args: Namespace, run: Path) -> Asker:
    """Whoever the options name, with the replies that a run keeps.

    Args:
        run: its directory.
    Raises:
        ConfigError: nobody is named, or an option, the file or the key is not what it must be.
        MissingExtraError: an endpoint is named and its client is not installed.
    """
    from tc_adapters_lens.judge.asking import Asker
    from tc_adapters_lens.judge.budget import Budget
    from tc_adapters_lens.judge.replies import Replies
    from tc_adapters_lens.judge.results import REPLIES
    from tc_adapters_lens.models.names import JUDGE

    require_at_least(args, 1, "concurrency", "max_requests", "max_tokens")
    require_at_least(args, 0, "repeat")
    return Asker(
        _judge(args),
        replies=Replies(run / JUDGE / REPLIES),
        budget=Budget(args.max_requests, args.max_tokens),
        repeat=args.repeat,
    )


def print_cost(parts: Mapping[str, Cost], asker: Asker) -> dict[str, Any]:
    """Say what asking would take.

    Args:
        parts: by what is asked.
    Returns:
        The same, for --json.
    """
    costs = list(parts.values())
    prompts = sum(cost.prompt_tokens for cost in costs)
    limits = [cost.completion_tokens for cost in costs]
    prices = [cost.price for cost in costs]
    completions = None if None in limits else sum(filter(None, limits))
    price = None if None in prices else sum(filter(None, prices))
    print(f"{'':12}{'requests':>12}{'to send':>12}{'prompt tokens':>18}{'reply tokens':>18}")
    for name, cost in parts.items():
        most = "no limit" if cost.completion_tokens is None else f"<= {cost.completion_tokens:,}"
        print(f"{name:12}{cost.n_requests:12,}{cost.n_to_send:12,}{f'~ {cost.prompt_tokens:,}':>18}{most:>18}")
    if price is not None and any(cost.n_to_send for cost in costs):
        print(f"At the prices given: {price:,.4f} at most, about.")
    print("Replies that are not as asked for are asked for again, which is not counted here. Nothing was sent.")
    return {
        "dry_run": True,
        "judge": asker.identity,
        "parts": {name: cost.to_dict() for name, cost in parts.items()},
        "n_to_send": sum(cost.n_to_send for cost in costs),
        "prompt_tokens": prompts,
        "completion_tokens": completions,
        "price": price,
    }


def _judge(args: Namespace) -> Judge:
    if args.judge == RULES:
        from tc_adapters_lens.judge.rules import RulesJudge

        if given := [flag(name) for name in _OF_ENDPOINT if args[name] is not None]:
            raise ConfigError(f"{given[0]} is about an endpoint, and --judge {RULES} asks none. Leave one of them out.")
        return RulesJudge()
    from tc_adapters_lens.integrations.openai.judge import EndpointJudge, require_openai
    from tc_adapters_lens.integrations.openai.secrets import find_key
    from tc_adapters_lens.judge.endpoint_config import endpoint_config

    options = {key: args[key] for key in ("base_url", "api_key_env", "concurrency")}
    config = endpoint_config(args.judge, {"model": args.judge_model, **options}, os.environ)
    if args.dry_run:
        return EndpointJudge(config, None)
    require_openai()
    return EndpointJudge(config, find_key(config, os.environ))
