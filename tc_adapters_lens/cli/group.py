"""`tc-adapters group`: chooses features by rule and keeps them as a group, or draws random ones like a group."""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Iterator
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import Namespace

from tc_adapters_lens.cli import options
from tc_adapters_lens.cli.feature_choice import parse_features
from tc_adapters_lens.cli.parser import Parser
from tc_adapters_lens.errors import ConfigError
from tc_adapters_lens.models.names import FEATURE_STORES, GROUPS

if TYPE_CHECKING:
    from tc_adapters_lens.features.choice import Choice
    from tc_adapters_lens.features.store import FeatureStore
    from tc_adapters_lens.models.feature_group import FeatureGroup

SUMMARY = "choose features by rule and keep them as a named group, with random groups to compare with"
EXAMPLE = """\
examples:
  tc-adapters group --run runs/toy --rule hesitation
  tc-adapters group --run runs/toy --promotes wait,hmm --top 5 --where 'domain:math >= 0.8' --name doubt
  tc-adapters group --run runs/toy --template '<think>' --template '<think>+1' --share 0.5 --name opening
  tc-adapters group --run runs/toy --where 'class == reasoning output' --where 'frequency < 0.01' --name output
  tc-adapters group --run runs/toy --graph runs/toy/graphs/add.json --top-nodes 20 --name circuit
  tc-adapters group --run runs/toy --or runs/toy/groups/doubt.json --minus runs/toy/groups/opening.json --name rest
  tc-adapters group --run runs/toy --random-like runs/toy/groups/hesitation.json --draws 3

Rules given together must all hold. Then the features of --or are added, only those of --and are kept, and those of
--minus are taken away, in this order; without a rule, --or or else the first --and is the start. A rule also chooses
features that are never active in the store's text, where it holds of them: --where 'n_active > 0' leaves them out.

The file is JSON: name, rule, adapters, and "features": [[layer, feature], ...]. One written by hand needs "features"
alone. Columns for --where are those of the store (its table.parquet) and of labels added to it."""

_RULES = ("rule", "promotes", "template", "where", "graph", "named")
_ALGEBRA = ("or", "and", "minus")
_ONLY_WITH = {
    "top": "promotes",
    "share": "template",
    "top_nodes": "graph",
    "draws": "random_like",
    "seed": "random_like",
    "times": "random_like",
    "not": "random_like",
}
_SHOWN = 5


def add_arguments(parser: Parser) -> None:
    parser.add_argument("--run", type=str | None, metavar="DIR", help="a training run with features/; gets groups/")
    parser.add_argument("--features", type=str | None, metavar="DIR", help="a feature store, in place of --run")
    parser.add_argument(
        "--rule",
        type=str | None,
        metavar="NAME",
        help="hesitation-output: wait, hmm, but or alternatively among the 10 most promoted tokens; template: 0.8 of "
        "the highest examples at one position that opens a chat, up to the first token of thinking; hesitation: either",
    )
    parser.add_argument(
        "--promotes",
        type=str | None,
        metavar="WORD,WORD",
        help="one of these words is among the most promoted tokens, in any case",
    )
    parser.add_argument(
        "--top", type=int | None, metavar="N", help="how many promoted tokens, at most 20 (default: 10)"
    )
    parser.add_argument(
        "--template",
        type=str,
        action="append",
        metavar="NAME",
        help="many of the highest examples are at this position of the chat template; any: at any one; may be repeated",
    )
    parser.add_argument("--share", type=float | None, help="how many of them, as a share (default: 0.8)")
    parser.add_argument(
        "--where",
        type=str,
        action="append",
        metavar="CONDITION",
        help="a column, one of >= <= == != > <, and a number or text, such as 'domain:math >= 0.8'; may be repeated",
    )
    parser.add_argument("--graph", type=str | None, metavar="FILE", help="nodes of this attribution graph's JSON")
    parser.add_argument("--top-nodes", type=int | None, metavar="M", help="only its M most influential features")
    parser.add_argument(
        "--named", type=str | None, metavar="NAMES", help="LAYER.FEATURE with commas; 2.5-2.9 is a range"
    )
    parser.add_argument(
        "--or", type=str, action="append", metavar="FILE", help="add this group's features; may be repeated"
    )
    parser.add_argument(
        "--and", type=str, action="append", metavar="FILE", help="keep this group's only; may be repeated"
    )
    parser.add_argument(
        "--minus", type=str, action="append", metavar="FILE", help="take this group's away; may be repeated"
    )
    parser.add_argument(
        "--random-like",
        type=str | None,
        metavar="FILE",
        help="in place of rules: for each feature of this group another of its layer, about as often active",
    )
    parser.add_argument(
        "--draws",
        type=int | None,
        metavar="N",
        help="N such groups, named NAME 0 and so on, in files that end in -0, ...",
    )
    parser.add_argument("--times", type=int | None, metavar="N", help="N for each feature (default: 1)")
    parser.add_argument(
        "--not", type=str, action="append", metavar="FILE", help="draw none of this group; may be repeated"
    )
    parser.add_argument("--seed", type=int | None, help="of the draws (default: 42)")
    parser.add_argument(
        "--name", type=str | None, help="of the group (default: the rule's, that of --out, or GROUP random)"
    )
    parser.add_argument("--out", type=str | None, metavar="FILE", help="where to write (default: RUN/groups/NAME.json)")
    options.add_json(parser)


def run(args: Namespace) -> dict[str, Any]:
    _check(args)
    from tc_adapters_lens.features.store import FeatureStore

    store = FeatureStore.open(args.features or Path(args.run) / FEATURE_STORES["replacement"])
    if args.random_like is None:
        name = args.name or (args.rule if args.out is None else Path(args.out).stem)
        if name is None:
            raise ConfigError("--name must say what the group is called, or --out where to write it. Both are missing.")
        groups = [(_chosen(args, store).group(name), _file(args, name))]
    else:
        groups = list(_random(args, store))
    made = []
    for group, path in groups:
        group.save(path)
        print(group_table(store, group))
        print(f"Written: {path}\n")
        made.append({**summary(store, group), "path": str(path)})
    return {"store": str(store.directory), "groups": made}


def summary(store: FeatureStore, group: FeatureGroup) -> dict[str, Any]:
    """A group in numbers: how many features it has, in all and per layer, and how often they are active on average."""
    from tc_adapters_lens.features.choice import rows_of

    rows = rows_of(store, group)
    frequency = store.column("frequency")[rows]
    per_layer = [len(group.by_layer().get(layer, ())) for layer in range(store.info.n_layers)]
    return {
        "name": group.name,
        "n_features": len(group),
        "per_layer": per_layer,
        "frequency": float(frequency.mean()),
        "never_active": int((frequency == 0).sum()),
        "rule": dict(group.rule),
    }


def group_table(store: FeatureStore, group: FeatureGroup) -> str:
    """The same, to be read, with what its most frequent features promote."""
    found = summary(store, group)
    active = f"active at {found['frequency']:.3%} of positions on average"
    never = f", {found['never_active']:,} of them never" if found["never_active"] else ""
    lines = [
        f"{group.name}: {found['n_features']:,} features, {active}{never}",
        f"rule: {textwrap.shorten(json.dumps(found['rule'], ensure_ascii=False), 300)}",
        "",
        "layer  features",
        *(f"{layer:5} {n:9,}" for layer, n in enumerate(found["per_layer"])),
        "",
        "feature  frequency  promotes",
    ]
    n_active, promoted = store.column("n_active"), store.column("promoted")
    by_frequency = sorted(group, key=lambda one: -n_active[one[0] * store.info.n_features + one[1]])
    for layer, feature in by_frequency[:_SHOWN]:
        row = layer * store.info.n_features + feature
        tokens = " ".join(map(repr, store.vocabulary.texts(promoted[row, :_SHOWN])))
        lines.append(f"{f'{layer}.{feature}':>7} {n_active[row] / max(store.info.n_counted, 1):10.3%}  {tokens}")
    return "\n".join(lines)


def _check(args: Namespace) -> None:
    if (args.run is None) == (args.features is None):
        got = "neither" if args.run is None else "both"
        raise ConfigError(f"Either --run or --features must say which store. Got {got}.")
    if args.run is None and args.out is None:
        raise ConfigError("--out must be given where there is no --run. It is missing.")
    for option, needed in _ONLY_WITH.items():
        if args[option] is not None and args[needed] is None:
            raise ConfigError(
                f"{options.flag(option)} is for {options.flag(needed)}, which is not given. Add that, or leave it out."
            )
    given = [options.flag(option) for option in (*_RULES, *_ALGEBRA) if args[option] is not None]
    if args.random_like is not None and given:
        raise ConfigError(f"--random-like is in place of rules. Got it with {given[0]}. Make that a group of its own.")
    if args.random_like is None and not {*given} - {"--minus"}:
        rules = ", ".join(map(options.flag, (*_RULES, "or", "and")))
        raise ConfigError(f"One of {rules} or --random-like must say which features. Got none of them.")
    options.require_at_least(args, 1, "draws", "times")
    if args.seed is not None and args.seed < 0:
        raise ConfigError(f"--seed must not be negative. Got {args.seed}.")


def _chosen(args: Namespace, store: FeatureStore) -> Choice:
    from tc_adapters_lens.features.choice import of_group
    from tc_adapters_lens.models.feature_group import FeatureGroup

    others = {word: [of_group(store, FeatureGroup.load(path)) for path in args[word] or ()] for word in _ALGEBRA}
    choices = list(_by_rule(args, store))
    start = [reduce(lambda a, b: a & b, choices)] if choices else []
    added = [*start, *others["or"]]
    kept = [reduce(lambda a, b: a | b, added)] if added else []
    found = reduce(lambda a, b: a & b, [*kept, *others["and"]])
    return reduce(lambda a, b: a - b, others["minus"], found)


def _by_rule(args: Namespace, store: FeatureStore) -> Iterator[Choice]:
    from tc_adapters_lens.features import rules
    from tc_adapters_lens.features.choice import named
    from tc_adapters_lens.features.conditions import where
    from tc_adapters_lens.features.graph_nodes import in_graph

    if args.rule is not None:
        yield rules.built_in_choice(store, args.rule)
    if args.promotes is not None:
        top = rules.N_PROMOTED if args.top is None else args.top
        yield rules.promotes(store, args.promotes.split(","), top)
    if args.template is not None:
        share = rules.TEMPLATE_SHARE if args.share is None else args.share
        yield rules.at_template(store, None if "any" in args.template else args.template, share)
    for condition in args.where or ():
        yield where(store, condition)
    if args.graph is not None:
        yield in_graph(store, args.graph, args.top_nodes)
    if args.named is not None:
        yield named(store, parse_features(args.named, "--named"))


def _random(args: Namespace, store: FeatureStore) -> Iterator[tuple[FeatureGroup, Path]]:
    """Each draw with its file."""
    from dataclasses import replace

    from tc_adapters_lens.features.random_groups import random_like
    from tc_adapters_lens.models.feature_group import FeatureGroup

    like = FeatureGroup.load(args.random_like)
    exclude = [FeatureGroup.load(path) for path in args["not"] or ()]
    name = args.name or (f"{like.name} random" if args.out is None else Path(args.out).stem)
    path, seed, draws = _file(args, name), 42 if args.seed is None else args.seed, args.draws or 1
    for draw in range(draws):
        group = random_like(store, like, seed, draw, times=args.times or 1, exclude=exclude)
        file = path if draws == 1 else path.with_name(f"{path.stem}-{draw}{path.suffix}")
        yield replace(group, name=f"{name} {draw}"), file


def _file(args: Namespace, name: str) -> Path:
    """--out, or a file in the run with the group's name, of which what a file name should not have becomes a dash."""
    if args.out is not None:
        return Path(args.out).expanduser()
    stem = re.sub(r"[^\w.-]+", "-", name).strip("-.") or "group"
    return Path(args.run) / GROUPS / f"{stem}.json"
