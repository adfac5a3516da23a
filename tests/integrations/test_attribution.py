"""Attribution through circuit-tracer on the package's replacement model, against plain autograd on every family."""

from __future__ import annotations

import pytest
import torch

from tc_adapters_lens.errors import ConfigError
from tc_adapters_lens.models.adapter_set import PARAMETERS
from tests.integrations.attribution_case import (
    FAMILIES,
    N_POS,
    ROUTES,
    SAMPLED,
    TARGETS,
    TOKENS,
    Case,
    demeaned,
    near,
    rows_of,
)
from tests.integrations.naive_graph import KINDS
from tests.tiny import D_VOCAB, N_LAYERS

pytest.importorskip("circuit_tracer")
pytestmark = pytest.mark.filterwarnings("ignore:Full backward hook is firing:UserWarning")


@pytest.fixture(scope="module", params=FAMILIES)
def case(request: pytest.FixtureRequest) -> Case:
    return Case(request.param)


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


@pytest.mark.parametrize("sampled", SAMPLED)
def test_rows_are_the_slow_edges_to_the_last_digits(case: Case, sampled: str) -> None:
    for rule in case.rules:
        active, into, out = case.edges(sampled, rule)
        expected = torch.cat([into.rows(active), out.rows(active)[TARGETS]])
        for route in ROUTES:
            ctx, rows = rows_of(case.model(torch.float64, sampled=sampled, rule=rule, route=route))
            assert ctx.activation_matrix.indices().T.tolist() == active.tolist()
            near(rows, expected, 1e-9)
            if sampled == "replacement":
                assert not ctx.error_vectors.any()
                assert not rows[:, len(active) : -N_POS].any()
            else:
                assert ctx.error_vectors.abs().amax(-1).min() > 1e-3
    assert torch.equal(into.features, case.edges(sampled, "relp")[1].features) == (len(case.rules) == 1)


@pytest.mark.parametrize("zero_first", [False, True])
@pytest.mark.parametrize("sampled", SAMPLED)
def test_rows_and_terms_sum_to_every_node(case: Case, sampled: str, zero_first: bool) -> None:
    for rule in case.rules:
        active, into, out = case.edges(sampled, rule)
        kept = active[:, 1] >= int(zero_first)
        expected = torch.cat([into.rows(active[kept])[kept], out.rows(active[kept])[TARGETS]])
        if zero_first:
            expected[:, int(kept.sum()) : -N_POS : N_POS] = 0  # errors at position 0
        models = [case.model(torch.float64, sampled=sampled, rule=rule, zero_first=zero_first, route=r) for r in ROUTES]
        for model in models:
            ctx, rows = rows_of(model)
            assert ctx.activation_matrix.indices().T.tolist() == active[kept].tolist()
            near(rows, expected, 1e-9)
        trace, account = case.trace(sampled, rule), models[0].account(TOKENS)
        vectors, own = demeaned(models[0]), torch.zeros(len(TARGETS), dtype=torch.float64)
        values = account.target_values(vectors, own)
        near(account.preactivations, trace.pre[tuple(active[kept].T)], 1e-9)
        near(values, trace.demeaned[-1, TARGETS], 1e-9)

        terms = [account.feature_terms, account.target_terms(vectors, own)]
        for got, edges, nodes in zip(terms, (into, out), (kept, TARGETS), strict=True):
            wanted = {kind: edges.terms[kind][nodes] for kind in KINDS} | {"zeroed": zero_first * edges.zeroed()[nodes]}
            assert set(got) == set(wanted)
            for kind, term in wanted.items():
                torch.testing.assert_close(got[kind], term, atol=1e-9, rtol=0)
            assert bool(wanted["zeroed"].any()) == zero_first
        sums = rows.sum(1) + torch.cat([torch.stack(list(kinds.values())).sum(0) for kinds in terms])
        near(sums, torch.cat([account.preactivations, values]), 1e-9)


def test_the_unembeddings_bias_is_a_targets_own(case: Case) -> None:
    model = case.model(torch.float64)
    account, own = model.account(TOKENS), torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64)
    assert torch.equal(account.target_terms(demeaned(model), own)["own"], own)
    without = account.target_values(demeaned(model), 0 * own)
    torch.testing.assert_close(account.target_values(demeaned(model), own), without + own)


def test_plain_mlps_have_no_gate_to_detach(case: Case) -> None:
    if "gate-detach" in case.rules:
        assert case.model(torch.float32, rule="gate-detach").cfg.gated_mlp
    else:
        with pytest.raises(ConfigError, match="rule gate-detach needs gated MLPs"):
            case.model(torch.float32, rule="gate-detach")


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


def test_a_long_prompts_rows_are_the_slow_ones(case: Case) -> None:
    """Longer than the blocks in which rows are computed, and asked for in any order."""
    tokens = torch.randint(3, D_VOCAB, (270,), generator=torch.Generator().manual_seed(1))
    trace = case.graph("target", "relp").run(tokens)
    active = trace.acts.nonzero()
    model = case.model(torch.float64, sampled="target")
    ctx = model.setup_attribution(tokens)
    assert ctx.activation_matrix.indices().T.tolist() == active.tolist()
    order = torch.randperm(len(active), generator=torch.Generator().manual_seed(2))[:1000]
    rows = ctx.compute_batch(active[order, 0], active[order, 1], ctx.encoder_vecs[order])
    near(rows[:4], trace.feature_edges(active[order[:4]]).rows(active), 1e-9)
    last = torch.full_like(TARGETS, len(tokens) - 1)
    rows = ctx.compute_batch(torch.full_like(last, N_LAYERS), last, demeaned(model))
    near(rows, trace.logit_edges(TARGETS).rows(active), 1e-9)
    near(model.account(tokens).preactivations, trace.pre[tuple(active.T)], 1e-9)


@pytest.mark.parametrize("zero_first", [False, True])
def test_sources_may_be_missing(case: Case, zero_first: bool) -> None:
    """Layers without active features, none at all, and a prompt of few positions."""
    for silent in ([0, 2], [0, 1, 2]):
        few = Case(case.family, silent)
        for tokens in (TOKENS, TOKENS[:2]):
            trace = few.graph("replacement", "relp").run(tokens)
            active = trace.acts.nonzero()
            active = active[active[:, 1] >= int(zero_first)]
            model = few.model(torch.float64, zero_first=zero_first)
            ctx, rows = rows_of(model, tokens)
            assert ctx.activation_matrix.indices().T.tolist() == active.tolist()
            near(rows[len(active) :], trace.logit_edges(TARGETS).rows(active), 1e-9)
            terms = sum(model.account(tokens).feature_terms.values())
            assert terms.shape == (len(active),)
            if len(active):
                near(rows[: len(active)], trace.feature_edges(active).rows(active), 1e-9)
                near(rows[: len(active)].sum(1) + terms, trace.pre[tuple(active.T)], 1e-9)


@pytest.mark.parametrize("keep", [1.0, 0.9])
@pytest.mark.parametrize("sampled", SAMPLED)
def test_a_kept_graph_has_the_slow_edges_and_sums(case: Case, sampled: str, keep: float) -> None:
    from tc_adapters_lens.integrations.circuit_tracer.trace import trace as trace_graph

    active, into, out = case.edges(sampled, "relp")
    trace = case.trace(sampled, "relp")
    graph = trace_graph(TOKENS, case.model(torch.float64, sampled=sampled), targets=TARGETS, keep=keep)
    assert graph.active_features.tolist() == active.tolist()
    rows = torch.zeros(graph.n_rows, graph.n_sources)
    rows[torch.arange(graph.n_rows).repeat_interleave(graph.row_starts.diff()), graph.columns] = graph.weights
    expected = torch.cat([into.rows(active), out.rows(active)[TARGETS]])
    near(torch.where(rows == 0, expected, rows.double()), expected, 1e-5)
    dropped = torch.where(rows == 0, expected, 0)
    torch.testing.assert_close(dropped.abs().sum(1), graph.dropped_abs, atol=2e-5, rtol=1e-5)
    assert bool(dropped.any()) == (keep < 1)
    values = torch.cat([trace.pre[tuple(active.T)], trace.demeaned[-1, TARGETS]]).detach()
    torch.testing.assert_close(graph.values.double(), values, atol=1e-5, rtol=1e-5)
    sums = rows.sum(1) + graph.dropped_sum + sum(graph.terms.values())
    torch.testing.assert_close(sums.double(), values, atol=2e-5, rtol=1e-5)


def test_the_pair_is_shared_and_left_as_it_was(case: Case) -> None:
    pair, adapters = case.pair(torch.float32)
    before = {name: (param.data_ptr(), param.requires_grad) for name, param in pair.named_parameters()}
    prints, logits = adapters.fingerprint(), pair(TOKENS[None])
    for sampled in SAMPLED:
        model = case.model(torch.float32, sampled=sampled)
        model.account(TOKENS)
        model.feature_intervention(TOKENS, [(0, 3, 0, 2.0)], freeze_attention=False)
        owned = {param.data_ptr() for param in model.parameters()}
        stored = {pointer for pointer, _ in before.values()} | {
            adapter.get_parameter(name).data_ptr() for adapter in adapters.values() for name in PARAMETERS
        }
        assert owned <= stored | {0}  # empty tensors have no storage
    assert {name: (param.data_ptr(), param.requires_grad) for name, param in pair.named_parameters()} == before
    assert adapters.fingerprint() == prints
    assert torch.equal(pair(TOKENS[None]), logits)


def test_a_text_is_its_tokens_in_graphs_and_interventions(case: Case) -> None:
    from circuit_tracer import attribute

    text = " ".join(f"w{token}" for token in TOKENS[1:])  # begins with no special token
    model = case.model(torch.float32)
    graphs = [attribute(prompt, model, attribution_targets=TARGETS) for prompt in (text, TOKENS[1:])]
    assert graphs[0].input_tokens.tolist() == TOKENS[1:].tolist()
    assert torch.equal(graphs[0].adjacency_matrix, graphs[1].adjacency_matrix)
    change = [(0, 3, 0, 2.0)]
    for options in ({"freeze_attention": False}, {"constrained_layers": range(N_LAYERS)}):
        logits = [model.feature_intervention(prompt, change, **options)[0] for prompt in (text, TOKENS[1:])]
        assert torch.equal(*logits)
    graph = attribute(TOKENS[1:], case.model(torch.float32, zero_first=True), attribution_targets=TARGETS)
    assert graph.input_tokens.tolist() == TOKENS.tolist()
    assert graph.active_features[:, 1].min() > 0
