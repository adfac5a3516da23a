"""The slow attribution graph against Hugging Face, against itself, and against arithmetic."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from tests.integrations.naive_graph import Held, NaiveGraph, Trace
from tests.naive import ReplacedMLP, in_float64
from tests.tiny import D_MODEL, D_VOCAB, N_LAYERS, hybrid, tiny_pair

FAMILIES = ("qwen2", "qwen3", "llama", "mistral", "gemma2", "neox", "neox_sequential")
CAPS = {"gemma2": {"attn_logit_softcapping": 1.0, "final_logit_softcapping": 2.0}}  # low enough to matter
N_FEATURES = 20
TOKENS = torch.randint(0, D_VOCAB, (10,), generator=torch.Generator().manual_seed(0))
PARAMS = {
    name: torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 0.2
    for seed, (name, shape) in enumerate(
        {
            "W_enc": (N_LAYERS, D_MODEL, N_FEATURES),
            "b_enc": (N_LAYERS, N_FEATURES),
            "W_dec": (N_LAYERS, N_FEATURES, D_MODEL),
            "b_dec": (N_LAYERS, D_MODEL),
        }.items()
    )
}
# Hugging Face takes Gemma's softmax in float32, whatever the weights are.
TOLERANCE = {"gemma2": 1e-6}


def near(got: Tensor, expected: Tensor, family: str = "") -> None:
    torch.testing.assert_close(got, expected, atol=TOLERANCE.get(family, 1e-10), rtol=0)


@pytest.fixture(scope="module", params=FAMILIES)
def pair(request: pytest.FixtureRequest) -> tuple:
    base, target = tiny_pair(request.param, **CAPS.get(request.param, {}))
    return request.param, in_float64(base), in_float64(target)


@pytest.fixture(scope="module")
def traces(pair: tuple) -> dict[tuple[str, str], Trace]:
    _, base, target = pair
    return {
        (sampled, rule): NaiveGraph(base, target, PARAMS, sampled, rule).run(TOKENS)
        for sampled in ("replacement", "target")
        for rule in ("relp", "gate-detach")
    }


def replaced(pair: tuple) -> tuple:
    """Hugging Face's target with the replacement model's MLPs, and these."""
    _, base, target = pair
    model = hybrid(base, target)
    layers = model.get_submodule("gpt_neox.layers" if hasattr(model, "gpt_neox") else "model.layers")
    for layer, block in enumerate(layers):
        block.mlp = ReplacedMLP(block.mlp, [PARAMS[name][layer] for name in ("W_enc", "b_enc", "W_dec", "b_dec")])
    return model, [block.mlp for block in layers]


def test_logits_and_features_are_those_of_hugging_face(pair: tuple, traces: dict) -> None:
    family, _, target = pair
    model, mlps = replaced(pair)
    for rule in ("relp", "gate-detach"):
        near(traces["target", rule].logits, target(TOKENS[None]).logits[0], family)
        near(traces["replacement", rule].logits, model(TOKENS[None]).logits[0], family)
        near(traces["replacement", rule].acts, torch.cat([mlp.acts for mlp in mlps]), family)


def test_a_feature_set_to_a_value_goes_through_everything_after_it(pair: tuple) -> None:
    family, base, target = pair
    changes = {(0, 2, 5): 1.7, (0, 2, 6): 0.0, (1, 4, 3): -0.8}
    model, mlps = replaced(pair)
    for (layer, position, feature), value in changes.items():

        def add(module, args, out, at=(layer, position, feature), value=value):
            written = (value - module.acts[0, at[1], at[2]]) * PARAMS["W_dec"][at[0], at[2]]
            return out.index_add(1, torch.tensor([at[1]]), written[None, None])

        mlps[layer].register_forward_hook(add)
    got = NaiveGraph(base, target, PARAMS).run(TOKENS, changes)
    near(got.logits, model(TOKENS[None]).logits[0], family)
    assert (got.logits - NaiveGraph(base, target, PARAMS).run(TOKENS).logits).abs().max() > 1e-3
    # The target with the same changes: where nothing changes, it is the target still.
    got = NaiveGraph(base, target, PARAMS, "target").run(TOKENS, changes)
    near(got.logits[:2], target(TOKENS[None]).logits[0, :2], family)
    assert (got.logits[2:] - target(TOKENS[None]).logits[0, 2:]).abs().amax(-1).min() > 1e-4


@pytest.mark.parametrize("rule", ["relp", "gate-detach"])
@pytest.mark.parametrize("sampled", ["replacement", "target"])
def test_edges_and_terms_sum_to_every_node(traces: dict, sampled: str, rule: str) -> None:
    trace = traces[sampled, rule]
    nodes = trace.acts.nonzero()
    assert 200 < len(nodes) < trace.acts.numel()
    edges = trace.feature_edges(nodes)
    near(edges.total(), trace.pre.detach()[tuple(nodes.T)])
    logits = trace.logit_edges(torch.arange(D_VOCAB))
    near(logits.total(), trace.demeaned.detach()[-1])


def test_demeaned_logits_are_those_before_the_cap(pair: tuple, traces: dict) -> None:
    family, _, target = pair
    logits = target(TOKENS[None]).logits[0]
    cap = CAPS.get(family, {}).get("final_logit_softcapping")
    logits = cap * torch.atanh(logits / cap) if cap else logits
    near(traces["target", "relp"].demeaned, logits - logits.mean(-1, keepdim=True), family)


@pytest.mark.parametrize(("sampled", "rule"), [("replacement", "relp"), ("target", "relp"), ("target", "gate-detach")])
def test_an_edge_is_what_its_source_alone_makes(traces: dict, sampled: str, rule: str) -> None:
    trace = traces[sampled, rule]
    nodes = trace.acts.nonzero()[::3]
    into, out = trace.feature_edges(nodes), trace.logit_edges(torch.arange(D_VOCAB))

    def check(edges: Tensor, logits: Tensor, *names: str, index: tuple[int, ...] = ()) -> None:
        runs = [trace.alone(name, index) for name in names]
        own = trace.graph.params["b_enc"][:, None]
        near(edges, sum(run.pre - own for run in runs)[tuple(nodes.T)])
        near(logits, sum(run.demeaned for run in runs)[-1])

    for position in (0, 3, 9):
        check(into.tokens[:, position], out.tokens[:, position], "tokens", index=(position,))
    for layer, position, feature in nodes[[0, 5, 40, -1]].tolist():
        at = (layer, position, feature)
        check(into.features[(slice(None), *at)], out.features[(slice(None), *at)], f"features/{layer}", index=at[1:])
        at = at[:2]
        check(into.errors[(slice(None), *at)], out.errors[(slice(None), *at)], f"errors/{layer}", index=at[1:])
    for kind in ("attention", "norm", "mlp", "adapter"):
        names = [name for name in trace.held.leaves if name.startswith(f"{kind}/")]
        assert bool(names) == bool(into.terms[kind].any())
        if names:
            check(into.terms[kind], out.terms[kind], *names)
    assert (into.errors.abs().max() > 1e-3) == (sampled == "target")


def test_frozen_changes_are_edges_times_the_relative_change(traces: dict) -> None:
    for trace in traces.values():
        everything = torch.cartesian_prod(*(torch.arange(size) for size in trace.pre.shape))
        edges, logits = trace.feature_edges(everything), trace.logit_edges(torch.arange(D_VOCAB))
        for layer, position, feature in trace.acts.nonzero()[[0, 20, 90]].tolist():
            at = (layer, position, feature)
            for factor in (0.0, 3.0, 1 + 1e-3):
                changed = trace.frozen({at: factor * trace.acts[at].item()})
                expected = (factor - 1) * edges.features[(slice(None), *at)].view_as(trace.pre)
                near(changed.pre - trace.pre, expected)
                near((changed.demeaned - trace.demeaned)[-1], (factor - 1) * logits.features[(slice(None), *at)])
        assert expected.count_nonzero() > 0 or layer == N_LAYERS - 1


def test_a_products_gradient_goes_half_to_each_factor(pair: tuple) -> None:
    _, base, target = pair
    mlp = base.get_submodule("gpt_neox.layers.1.mlp" if hasattr(base, "gpt_neox") else "model.layers.1.mlp")
    x = torch.randn(4, D_MODEL, generator=torch.Generator().manual_seed(1), dtype=torch.float64, requires_grad=True)
    back = torch.randn(4, D_MODEL, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    for rule, share in (("relp", 0.5), ("gate-detach", 0.0)):
        graph = NaiveGraph(base, target, PARAMS, "replacement", rule)
        got = graph.mlp(graph.base, x, 1, Held())
        near(got, mlp(x))
        if hasattr(mlp, "gate_proj"):
            gate, up = mlp.gate_proj(x), mlp.up_proj(x)
            active = gate * (mlp.act_fn(gate) / gate).detach()
            product = share * active * up.detach() + (1 - share) * active.detach() * up
            expected = mlp.down_proj(product)
        else:
            hidden = mlp.dense_h_to_4h(x)
            expected = mlp.dense_4h_to_h(hidden * (mlp.act(hidden) / hidden).detach())
        near(*(torch.autograd.grad((out * back).sum(), x)[0] for out in (got, expected)))


def test_float32_gives_the_same_edges(pair: tuple, traces: dict) -> None:
    _, base, target = pair
    single = {name: tensor.float() for name, tensor in PARAMS.items()}
    models = [copy.deepcopy(model).float() for model in (base, target)]
    trace = NaiveGraph(*models, single, "target").run(TOKENS)
    wide = traces["target", "relp"]
    nodes = (wide.acts > 1e-4).nonzero()
    got, expected = trace.feature_edges(nodes).rows(nodes), wide.feature_edges(nodes).rows(nodes)
    assert got.shape == (len(nodes), len(nodes) + (N_LAYERS + 1) * len(TOKENS))
    torch.testing.assert_close(got.double(), expected, atol=1e-4 * expected.abs().max().item(), rtol=0)
