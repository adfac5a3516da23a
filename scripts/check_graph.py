"""Do a graph's edges say what really happens? Features are switched off, and the change is set beside the prediction.

    python scripts/check_graph.py runs/toy --before wait --n 20 --picture ablations.png --json ablations.json

A prompt each from N responses, which ends before the word; explained is the demeaned logit of the token that comes
next there. Ablated, one at a time: every prompt's most influential features (each at its position), and as many other
active ones of the same layers, drawn at random. The pair itself runs, with its adapters attached and nothing frozen.

    direct    minus the feature's edge to the target
    total     what the graph passes on through later features as well, in one pass over its rows; a feature that would
              fall below 0 falls to 0, and none that is off comes on
    frozen    the same ablation with all but direct effects held: it must be the edge, or the exit status is 1

Held: the pair again, with the attention patterns and norm denominators of the prompt as it is, which edges are made
with. What then is left between prediction and change is the MLPs' own nonlinearity.

Intervals are of a bootstrap over prompts. Shuffled: predictions change places among the features of their prompt.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from scripts.check_graph_figures import Ablations, draw, figures, shown
from tc_adapters_lens.cli.graph_prompts import GraphPrompt, TokenPrompts
from tc_adapters_lens.cli.of_run import load_named_pair
from tc_adapters_lens.core.relp import Rule
from tc_adapters_lens.errors import AdapterLensError, ConfigError
from tc_adapters_lens.integrations.circuit_tracer import targets as graph_targets
from tc_adapters_lens.integrations.circuit_tracer.influence import edges_of, node_influences
from tc_adapters_lens.integrations.circuit_tracer.replacement import AdapterReplacementModel, replacement_model
from tc_adapters_lens.integrations.circuit_tracer.sparse_graph import SparseGraph
from tc_adapters_lens.integrations.circuit_tracer.trace import trace
from tc_adapters_lens.models.adapter_set import AdapterSet
from tc_adapters_lens.models.atomic import atomic_file, write_json
from tc_adapters_lens.models.diff_transformer import HookedDiffTransformer
from tc_adapters_lens.models.names import ADAPTERS, hook_acts
from tc_adapters_lens.training.config import DataConfig, TrainingConfig

ROWS_AT_ONCE = 64
HELD = ("hook_pattern", "hook_scale")
N_FROZEN = 5  # of each graph's features, the most influential
TOLERANCE = 1e-4  # of the largest edge


def direct_effects(graph: SparseGraph, nodes: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
    """Change of the first target where features, by their place among the active ones, no longer write to it."""
    last = edges_of(graph).of_rows(graph.n_selected, graph.n_selected + 1)
    whole = torch.zeros(graph.n_sources, dtype=torch.float64)
    whole[last.sources.long()] = last.weights.double()
    return -whole[nodes]


def total_effects(graph: SparseGraph, nodes: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
    """Change of the first target where each of the features alone is off, and later features follow.

    The graph has a row for every active feature.
    """
    edges, each = edges_of(graph), torch.arange(len(nodes))
    moved = torch.zeros(graph.n_sources, len(nodes), dtype=torch.float64)  # share of what a source writes
    bounds = [*graph.layer_rows, graph.n_selected + 1]
    for first, last in itertools.pairwise(bounds):
        rows = edges.of_rows(first, last)
        parts = rows.weights.double()[:, None] * moved[rows.sources.long()]
        changes = torch.zeros(last - first, len(nodes), dtype=torch.float64)
        changes.index_add_(0, rows.spread(torch.arange(last - first)), parts)
        if last > graph.n_selected:
            return changes[0]
        moved[first:last] = (changes / graph.activations[first:last, None]).clamp(min=-1)
        here = (first <= nodes) & (nodes < last)
        moved[nodes[here], each[here]] = -1
    raise AssertionError("a graph has a target")


@torch.no_grad()
def target_values(
    pair: HookedDiffTransformer,
    adapters: AdapterSet,
    tokens: Int[Tensor, " pos"],
    off: Int[Tensor, "n 3"],
    token: int,
    held: Sequence[str] = (),
) -> Float[Tensor, " n"]:
    """Demeaned logit of a token, before any soft cap, with each (layer, position, feature) at 0 alone.

    Args:
        off: a layer of -1: none.
        held: ends of hook points' names, whose values stay those without an ablation.
    """
    W_U, b_U = pair.unembed.W_U, pair.unembed.b_U
    direction, bias = (W_U[:, token] - W_U.mean(1)).double(), float(b_U[token] - b_U.mean())
    outputs: list[Tensor] = []
    kept: dict[str, Tensor] = {}

    def keep(value: Tensor, hook: Any) -> None:
        kept[hook.name] = value

    def hold(value: Tensor, hook: Any) -> Tensor:
        return kept[hook.name].expand_as(value)

    def is_held(name: str) -> bool:
        return name.endswith(tuple(held))

    with pair.adapters(adapters), pair.hooks(fwd_hooks=[(is_held, keep)]):
        pair(tokens[None])
    handle = pair.ln_final.register_forward_hook(lambda _, __, output: outputs.append(output[:, -1].double()))
    try:
        for chosen in off.split(ROWS_AT_ONCE):

            def switch_off(acts: Tensor, hook: Any, chosen: Tensor = chosen) -> Tensor:
                rows = (chosen[:, 0] == int(hook.name.split(".")[1])).nonzero().squeeze(1)
                changed = acts.clone()
                changed[rows, chosen[rows, 1], chosen[rows, 2]] = 0
                return changed

            hooks: list[Any] = [
                (hook_acts(layer), switch_off) for layer in chosen[:, 0].unique().tolist() if layer >= 0
            ]
            with pair.adapters(adapters), pair.hooks(fwd_hooks=[(is_held, hold), *hooks]):
                pair(tokens.expand(len(chosen), -1))
    finally:
        handle.remove()
    return (torch.cat(outputs) @ direction + bias).cpu()


def frozen_gap(model: AdapterReplacementModel, graph: SparseGraph, nodes: Int[Tensor, " n"], token: int) -> float:
    """How far ablations with all but direct effects held are from the edges, as a share of the largest edge."""
    tokens, every = graph.tokens.to(model.cfg.device), range(model.cfg.n_layers)
    found = []
    with torch.no_grad(), model.zero_softcap():
        logits = model(tokens[None])[0, -1].double()
        for node in nodes.tolist():
            off = [(*graph.active_features[node].tolist(), 0.0)]
            frozen = model.feature_intervention(tokens, off, constrained_layers=every)[0][0, -1].double()
            change = frozen - logits
            found.append(float(change[token] - change.mean()))
    edges = direct_effects(graph, nodes)
    return float((torch.tensor(found) - edges).abs().max() / edges.abs().max())


def ablate(
    pair: HookedDiffTransformer,
    adapters: AdapterSet,
    models: Mapping[Rule, AdapterReplacementModel],
    prompt: GraphPrompt,
    token: int,
    n_top: int,
    rng: np.random.Generator,
) -> Ablations:
    """A prompt's graphs, one per rule, and what they say of the same ablations."""
    tokens = torch.tensor(prompt.tokens, device=pair.cfg.device)
    graphs = {rule: trace(tokens, m, targets=graph_targets.tokens(m, [token])) for rule, m in models.items()}
    first = next(iter(graphs.values()))
    ranked = [node_influences(graph)[: graph.n_active].argsort(descending=True)[:n_top] for graph in graphs.values()]
    top = torch.cat(ranked).unique()
    layers, taken = first.active_features[:, 0], set(top.tolist())
    for layer in layers[top].tolist():
        others = [node for node in (layers == layer).nonzero().squeeze(1).tolist() if node not in taken]
        taken |= {int(rng.choice(others))} if others else set()
    nodes = torch.tensor([*top.tolist(), *sorted(taken - set(top.tolist()))])
    gaps = [
        frozen_gap(model, graph, best[:N_FROZEN], token)
        for model, graph, best in zip(models.values(), graphs.values(), ranked, strict=True)
    ]
    off = torch.cat([first.active_features[nodes], torch.tensor([[-1, 0, 0]])])
    free, held = (target_values(pair, adapters, tokens, off, token, names).numpy() for names in ((), HELD))
    predicted = {
        rule: {"direct": direct_effects(graph, nodes).numpy(), "total": total_effects(graph, nodes).numpy()}
        for rule, graph in graphs.items()
    }
    return Ablations(np.arange(len(nodes)) < len(top), free[:-1] - free[-1], held[:-1] - held[-1], predicted, max(gaps))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, metavar="RUN")
    parser.add_argument("--tokens", default="toy", metavar="DATA", help="sequences, as `tc-adapters graph` takes them")
    parser.add_argument("--n", type=int, default=20, help="prompts, the first that have the place")
    parser.add_argument("--before", metavar="WORD", help="prompts end before this word of the response")
    parser.add_argument("--end", type=int, metavar="N", help="or after N tokens (default: where the response begins)")
    parser.add_argument("--target-token", metavar="TOKEN", help="explain this token (default: the one that comes next)")
    parser.add_argument("--top", type=int, default=10, metavar="K", help="most influential features of each graph")
    parser.add_argument("--rules", nargs="+", choices=("relp", "gate-detach"), default=["relp"], help="to be compared")
    parser.add_argument("--seed", type=int, default=42, help="of random features and intervals")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--picture", type=Path, metavar="FILE", help=".png or .svg, of the first rule")
    args = parser.parse_args(arguments)
    config = TrainingConfig.from_yaml((args.run / "config.yaml").read_text(encoding="utf-8"))
    pair = load_named_pair(config, torch.float32, args.device)
    adapters = AdapterSet.from_pretrained(args.run / ADAPTERS, pair=pair.pair, device=args.device)
    data = DataConfig(path=args.tokens, loss_on="all", chat_template=config.data.chat_template)
    prompts = TokenPrompts(data, None, args.before, args.end, args.n).load(pair)
    models = {rule: replacement_model(pair, adapters, rule=rule) for rule in args.rules}
    rng = np.random.default_rng(args.seed)
    ablations = []
    for prompt in tqdm(prompts, disable=None):
        token = prompt.source["next"] if args.target_token is None else args.target_token
        if token is None:
            raise ConfigError(f"A target must come after the prompt. Got {prompt.name}, a whole text; --target-token.")
        token = graph_targets.token_id(models[args.rules[0]], token)
        ablations.append(ablate(pair, adapters, models, prompt, token, args.top, rng))
    found = {"prompts": [prompt.source for prompt in prompts], **figures(ablations, args.seed)}
    sizes = found["features"]
    for group, size in sizes.items():
        print(f"{group:8s} {size['n']:6d} features  mean |change| {shown(size['mean_absolute_change'])}")
    print(f"\n{'rule':12s} {'effect':7s} {'features':12s} {'Pearson':22s} {'Spearman':22s} {'slope':22s}")
    for rule, kinds in found["rules"].items():
        for kind, groups in kinds.items():
            for group, of in groups.items():
                print(f"{rule:12s} {kind:7s} {group:12s} " + " ".join(f"{shown(value):22s}" for value in of.values()))
    gap = found["largest_frozen_gap"]
    print(f"\nfrozen ablations differ from the edges by at most {gap:.1e} of a prompt's largest edge")
    if args.json is not None:
        with atomic_file(args.json) as partial:
            write_json(partial, found)
    if args.picture is not None:
        draw(ablations, args.rules[0], args.picture)
    return int(not gap <= TOLERANCE)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except AdapterLensError as error:
        sys.exit(f"error: {error}")
