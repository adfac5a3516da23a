"""Attribution through circuit-tracer on the package's replacement model, against plain autograd on every family."""

from __future__ import annotations

import copy
from functools import cache

import pytest
import torch
from torch import Tensor

from tc_adapters_lens.models.adapter_set import AdapterSet, AdapterSetInfo
from tc_adapters_lens.models.diff_transformer import HookedDiffTransformer
from tc_adapters_lens.models.pair import load_pair
from tests.integrations.naive_graph import KINDS, Edges, NaiveGraph, Trace
from tests.tiny import D_MODEL, D_VOCAB, N_LAYERS, tiny_pair, word_tokenizer

pytest.importorskip("circuit_tracer")
pytestmark = pytest.mark.filterwarnings("ignore:Full backward hook is firing:UserWarning")

FAMILIES = ("qwen2", "qwen3", "llama", "mistral", "gemma2", "neox", "neox_sequential")
CAPS = {"gemma2": {"attn_logit_softcapping": 1.0, "final_logit_softcapping": 2.0}}  # low enough to matter
N_FEATURES, N_POS = 20, 10
TOKENS = torch.randint(3, D_VOCAB, (N_POS,), generator=torch.Generator().manual_seed(0))
TOKENS[0] = 1  # the tokenizer's BOS; without one circuit-tracer adds it
TARGETS = torch.tensor([5, 17, 40])
SAMPLED = ("replacement", "target")
RULES = ("relp", "gate-detach")
ROUTES = ("frozen", "upstream")


def parameters() -> dict[str, Tensor]:
    """Adapters about half of whose features are active, all biases included."""
    shapes = {
        "W_enc": (N_LAYERS, D_MODEL, N_FEATURES),
        "b_enc": (N_LAYERS, N_FEATURES),
        "W_dec": (N_LAYERS, N_FEATURES, D_MODEL),
        "b_dec": (N_LAYERS, D_MODEL),
    }
    generator = torch.Generator().manual_seed(3)
    return {name: torch.randn(shape, generator=generator) * 0.2 for name, shape in shapes.items()}


class Case:
    """One family: the package's pair and adapters in a dtype, and the slow graphs of the same weights in float64."""

    def __init__(self, family: str) -> None:
        self.models = tiny_pair(family, **CAPS.get(family, {}))
        self.pair = cache(self._pair)
        self.model = cache(self._model)
        self.trace = cache(self._trace)
        self.edges = cache(self._edges)

    def _pair(self, dtype: torch.dtype) -> tuple[HookedDiffTransformer, AdapterSet]:
        base, target = ((model, word_tokenizer()) for model in self.models)
        pair = load_pair(base, target, dtype=dtype)
        state = {name: tensor.to(dtype) for name, tensor in parameters().items()}
        return pair, AdapterSet.from_state(state, AdapterSetInfo(pair.pair))

    def _model(self, dtype: torch.dtype, **options: object):
        from tc_adapters_lens.integrations.circuit_tracer.replacement import replacement_model

        return replacement_model(*self.pair(dtype), **options)

    def graph(self, sampled: str, rule: str) -> NaiveGraph:
        base, target = (copy.deepcopy(model).double() for model in self.models)
        return NaiveGraph(base, target, {n: t.double() for n, t in parameters().items()}, sampled, rule)

    def _trace(self, sampled: str, rule: str) -> Trace:
        return self.graph(sampled, rule).run(TOKENS)

    def _edges(self, sampled: str, rule: str) -> tuple[Tensor, Edges, Edges]:
        """Active features [n 3], what flows into them, what flows into the demeaned logits of all tokens."""
        trace = self.trace(sampled, rule)
        active = trace.acts.nonzero()
        return active, trace.feature_edges(active), trace.logit_edges(torch.arange(D_VOCAB))


@pytest.fixture(scope="module", params=FAMILIES)
def case(request: pytest.FixtureRequest) -> Case:
    return Case(request.param)


def near(got: Tensor, expected: Tensor, tolerance: float) -> None:
    """Relative to the largest entry of a row (of a vector)."""
    assert got.shape == expected.shape
    size = expected.detach().abs().amax(-1, keepdim=True).clamp(min=1e-6)
    torch.testing.assert_close(got.double() / size, expected.double() / size, atol=tolerance, rtol=0)


def rows_of(model, batch: int = 64) -> tuple[object, Tensor]:
    """A context and the rows of every active feature, then of `TARGETS`, in the model's dtype."""
    ctx = model.setup_attribution(TOKENS)
    model.run_forward_pass(TOKENS, batch, ctx)
    layers, positions, _ = ctx.activation_matrix.indices()
    layers = torch.cat([layers, torch.full_like(TARGETS, N_LAYERS)])
    positions = torch.cat([positions, torch.full_like(TARGETS, N_POS - 1)])
    vectors = torch.cat([ctx.encoder_vecs, demeaned(model)])
    chosen = torch.arange(len(layers)).split(batch)
    return ctx, torch.cat([ctx.compute_batch(layers[b], positions[b], vectors[b]) for b in chosen])


def demeaned(model) -> Tensor:
    """[n_targets d_model]"""
    unembed = model.unembed_proj
    return (unembed[:, TARGETS] - unembed.mean(1, keepdim=True)).T


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("sampled", SAMPLED)
def test_attribute_gives_the_slow_edges(case: Case, sampled: str, route: str) -> None:
    from circuit_tracer import attribute

    active, into, out = case.edges(sampled, "relp")
    model = case.model(torch.float32, sampled=sampled, route=route)
    graph = attribute(TOKENS, model, attribution_targets=TARGETS, batch_size=64)
    assert graph.input_tokens.tolist() == TOKENS.tolist()
    assert graph.active_features.tolist() == active.tolist()
    near(graph.activation_values, case.trace(sampled, "relp").acts[tuple(active.T)], 1e-4)
    n_active, n_targets = len(active), len(TARGETS)
    assert len(graph.adjacency_matrix) == n_active + (N_LAYERS + 1) * N_POS + n_targets
    near(graph.adjacency_matrix[:n_active, :-n_targets], into.rows(active), 1e-4)
    near(graph.adjacency_matrix[-n_targets:, :-n_targets], out.rows(active)[TARGETS], 1e-4)
    assert not graph.adjacency_matrix[n_active:-n_targets].any()
    assert not graph.adjacency_matrix[:, -n_targets:].any()
    probabilities = case.trace(sampled, "relp").logits[-1].softmax(0)[TARGETS]
    near(graph.logit_probabilities, probabilities, 1e-4)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("sampled", SAMPLED)
def test_rows_are_the_slow_edges_to_the_last_digits(case: Case, sampled: str, rule: str) -> None:
    active, into, out = case.edges(sampled, rule)
    expected = torch.cat([into.rows(active), out.rows(active)[TARGETS]])
    for route in ROUTES:
        ctx, rows = rows_of(case.model(torch.float64, sampled=sampled, rule=rule, route=route))
        assert ctx.activation_matrix.indices().T.tolist() == active.tolist()
        near(rows, expected, 1e-9)
        if sampled == "replacement":
            assert not ctx.error_vectors.any()
            assert not rows[:, len(active) : len(active) + N_LAYERS * N_POS].any()
        else:
            assert ctx.error_vectors.abs().amax(-1).min() > 1e-3


@pytest.mark.parametrize("zero_first", [False, True])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("sampled", SAMPLED)
def test_rows_and_terms_sum_to_every_node(case: Case, sampled: str, rule: str, zero_first: bool) -> None:
    active, into, out = case.edges(sampled, rule)
    kept = torch.ones(len(active), dtype=torch.bool) if not zero_first else active[:, 1] > 0
    model = case.model(torch.float64, sampled=sampled, rule=rule, zero_first=zero_first)
    account = model.account(TOKENS)
    ctx, rows = rows_of(model)
    assert ctx.activation_matrix.indices().T.tolist() == active[kept].tolist()

    trace = case.trace(sampled, rule)
    near(account.preactivations, trace.pre[tuple(active[kept].T)], 1e-9)
    own = torch.zeros(len(TARGETS), dtype=torch.float64)
    values = account.target_values(demeaned(model), own)
    near(values, trace.demeaned[-1, TARGETS], 1e-9)

    terms = [account.feature_terms, account.target_terms(demeaned(model), own)]
    expected = [
        {**{kind: edges.terms[kind][nodes] for kind in KINDS}, "zeroed": zero_first * edges.zeroed()[nodes]}
        for edges, nodes in ((into, kept), (out, TARGETS))
    ]
    for got, wanted in zip(terms, expected, strict=True):
        assert set(got) <= set(wanted)
        for kind, term in wanted.items():
            torch.testing.assert_close(got.get(kind, torch.zeros_like(term)), term, atol=1e-9, rtol=0)
    assert bool(expected[0]["zeroed"].any()) == zero_first
    sums = rows.sum(1) + torch.cat([torch.stack(list(kinds.values())).sum(0) for kinds in terms])
    near(sums, torch.cat([account.preactivations, values]), 1e-9)


def some(active: Tensor) -> list[tuple[int, int, int]]:
    """An active feature of every layer, none of them at the last position."""
    return [
        tuple(nodes[len(nodes) // 2].tolist())
        for layer in range(N_LAYERS)
        if len(nodes := active[(active[:, 0] == layer) & (active[:, 1] < N_POS - 1)])
    ]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("sampled", SAMPLED)
def test_frozen_interventions_are_edges_times_the_relative_change(case: Case, sampled: str, rule: str) -> None:
    trace = case.trace(sampled, rule)
    active, into, out = case.edges(sampled, rule)
    model = case.model(torch.float32, sampled=sampled, rule=rule)
    before = trace.demeaned[-1].detach()
    for at in some(active):
        value = trace.acts[at].item()
        for factor in (0.0, -2.0):
            logits, pre = model.feature_intervention(
                TOKENS,
                [(*at, factor * value)],
                constrained_layers=range(N_LAYERS),
                apply_activation_function=False,
            )
            slow = trace.frozen({at: factor * value})
            near(logits[0], slow.logits, 1e-4)
            near(pre.flatten(1), slow.pre.flatten(1), 1e-4)
            change = (pre.double() - trace.pre)[tuple(active.T)]
            size = into.features[(slice(None), *at)].abs().max().item()
            expected = (factor - 1) * into.features[(slice(None), *at)]
            torch.testing.assert_close(change, expected, atol=1e-4 * size + 1e-5, rtol=0)
            near(slow.demeaned[-1] - before, (factor - 1) * out.features[(slice(None), *at)], 1e-9)


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("sampled", SAMPLED)
def test_nothing_frozen_everything_after_a_feature_is_recomputed(case: Case, sampled: str, route: str) -> None:
    trace = case.trace(sampled, "relp")
    model = case.model(torch.float32, sampled=sampled, route=route)
    torch.testing.assert_close(model(TOKENS[None])[0].double(), trace.logits, atol=1e-5, rtol=0)
    found = some(case.edges(sampled, "relp")[0])
    changes = [{at: 0.0} for at in found] + [dict.fromkeys(found, 1.5), {(0, 3, f): 0.0 for f in range(N_FEATURES)}]
    for change in changes:
        asked = [(*at, value) for at, value in change.items()]
        logits, acts = model.feature_intervention(TOKENS, asked, freeze_attention=False)
        slow = trace.graph.run(TOKENS, change)
        torch.testing.assert_close(logits[0].double(), slow.logits, atol=1e-5, rtol=0)
        torch.testing.assert_close(acts.double(), slow.pre.clamp(min=0), atol=1e-5, rtol=0)
        assert (logits[0] - trace.logits).abs().max() > 1e-4


def test_a_graph_of_some_features_has_their_rows(case: Case) -> None:
    from circuit_tracer import attribute

    active, into, _ = case.edges("replacement", "relp")
    model = case.model(torch.float32)
    graph = attribute(TOKENS, model, attribution_targets=TARGETS, batch_size=16, max_feature_nodes=40)
    chosen = graph.selected_features
    assert len(chosen) == 40
    rows = into.rows(active)[chosen]
    columns = torch.cat([chosen, torch.arange(len(active), rows.shape[1])])
    near(graph.adjacency_matrix[:40, : -len(TARGETS)], rows[:, columns], 1e-4)
