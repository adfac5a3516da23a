"""Tracing a prompt: circuit-tracer's own graph, cut to its largest edges."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from tc_adapters_lens.errors import GraphError
from tc_adapters_lens.models.adapter_set import AdapterSet, AdapterSetInfo
from tc_adapters_lens.models.pair import load_pair
from tests.tiny import D_MODEL, D_VOCAB, N_LAYERS, tiny_pair, word_tokenizer

pytest.importorskip("circuit_tracer")

from tc_adapters_lens.integrations.circuit_tracer import kept_rows
from tc_adapters_lens.integrations.circuit_tracer.influence import (
    edges_of,
    influence_shares,
    source_influences,
    target_shares,
)
from tc_adapters_lens.integrations.circuit_tracer.replacement import replacement_model
from tc_adapters_lens.integrations.circuit_tracer.targets import contrast, direction, token_id, tokens
from tc_adapters_lens.integrations.circuit_tracer.trace import trace
from tests.integrations.tiny_graph import N_POS, TOKENS, made_up_account, upstream_model

pytestmark = pytest.mark.filterwarnings("ignore:Full backward hook is firing:UserWarning")


@pytest.fixture(scope="module")
def model():
    return upstream_model()


def same_as_upstream(model, graph, **options) -> None:
    """Every field of circuit-tracer's own graph."""
    from circuit_tracer import attribute

    theirs = attribute(TOKENS, model, **options)
    ours = graph.to_graph(model.cfg)
    assert ours.input_string == theirs.input_string
    assert ours.input_tokens.equal(theirs.input_tokens)
    assert ours.active_features.equal(theirs.active_features)
    assert ours.selected_features.equal(theirs.selected_features)
    assert ours.activation_values.equal(theirs.activation_values)
    assert ours.logit_targets == theirs.logit_targets
    assert (ours.scan, ours.vocab_size, ours.n_pos) == (theirs.scan, theirs.vocab_size, theirs.n_pos)
    assert ours.logit_probabilities.equal(theirs.logit_probabilities)
    torch.testing.assert_close(ours.adjacency_matrix, theirs.adjacency_matrix, atol=1e-6, rtol=1e-5)
    assert ((ours.adjacency_matrix != 0) == (theirs.adjacency_matrix != 0)).all()


@pytest.mark.parametrize(
    "targets",
    [
        None,
        torch.tensor([5, 90]),
        ["w5", "w90", "w3"],
        [("up", 0.75, torch.linspace(-1, 1, D_MODEL)), ("down", 0.25, torch.ones(D_MODEL))],
    ],
)
def test_all_features(model, targets) -> None:
    graph = trace(TOKENS, model, targets=targets, max_n_logits=3, batch_size=16, keep=1.0)
    assert graph.n_selected == graph.n_active > 100
    same_as_upstream(model, graph, attribution_targets=targets, max_n_logits=3, batch_size=16)


@pytest.mark.parametrize("n_features", [1, 37, 80])
def test_the_most_influential_features(model, n_features) -> None:
    options = {"max_n_logits": 2, "batch_size": 7, "max_feature_nodes": n_features}
    told = []
    graph = trace(TOKENS, model, keep=1.0, update_interval=2, progress=lambda *at: told.append(at), **options)
    assert graph.n_selected == n_features
    same_as_upstream(model, graph, update_interval=2, **options)
    assert told[-1] == (n_features + 2, n_features + 2)
    assert [done for done, _ in told] == sorted({done for done, _ in told})


def test_the_account_is_taken_for_the_rows(model) -> None:
    graph = trace(TOKENS, model, targets=["w5", "w90"], batch_size=16, max_feature_nodes=30, keep=1.0)
    account = made_up_account(graph.n_active)
    vectors = (model.unembed_proj[:, [5, 90]] - model.unembed_proj.mean(1, keepdim=True)).T
    own = model.unembed.b_U[[5, 90]] - model.unembed.b_U.mean()
    assert list(graph.terms) == ["attention", "own"]
    assert graph.values[:30].equal(account.preactivations[graph.selected])
    assert graph.terms["attention"][:30].equal(account.feature_terms["attention"][graph.selected])
    torch.testing.assert_close(graph.terms["own"][30:], own)
    torch.testing.assert_close(graph.values[30:], vectors[:, 0] + own)


@pytest.mark.parametrize("zero_first", [False, True])
@pytest.mark.parametrize("sampled", ["replacement", "target"])
def test_edges_and_terms_add_up(sampled, zero_first) -> None:
    """Of the adapters' replacement model, for every row: kept and dropped edges and terms make its value."""
    base, target = tiny_pair("qwen2")
    pair = load_pair((base, word_tokenizer()), (target, word_tokenizer()))
    fresh = AdapterSet.fresh(N_LAYERS, D_MODEL, 20, AdapterSetInfo(pair.pair))
    generator = torch.Generator().manual_seed(0)
    state = {name: torch.randn(t.shape, generator=generator) * 0.1 for name, t in fresh.state().items()}
    adapted = replacement_model(pair, AdapterSet.from_state(state, fresh.info), sampled=sampled, zero_first=zero_first)
    for targets in (None, contrast(adapted, "w5", "w6")):
        graph = trace(TOKENS, adapted, targets=targets, keep=0.9)
        rows = torch.arange(graph.n_rows).repeat_interleave(graph.row_starts.diff())
        whole = graph.dropped_sum + sum(term.double() for term in graph.terms.values())
        whole.index_add_(0, rows, graph.weights.double())
        torch.testing.assert_close(whole.float(), graph.values, atol=5e-6, rtol=0)
        shares = influence_shares(graph)
        assert (shares.errors > 0) == (sampled == "target")
        assert 0 < shares.dropped < 0.3
    with torch.no_grad():
        logits = (pair(TOKENS[None]) if sampled == "target" else adapted(TOKENS[None]))[0, -1]
    assert float(graph.values[-1]) == pytest.approx(float(logits[5] - logits[6]), abs=1e-5)


@pytest.mark.parametrize("keep", [0.5, 0.9, 0.99])
def test_dropped_edges_are_the_smallest_and_few(model, keep) -> None:
    whole = trace(TOKENS, model, max_n_logits=2, batch_size=16, keep=1.0)
    graph = trace(TOKENS, model, max_n_logits=2, batch_size=16, keep=keep)
    assert (whole.dropped_abs == 0).all()
    of_targets = target_shares(graph.probabilities)
    own = torch.cat([source_influences(graph, edges_of(graph), graph.row_abs, of_targets)[graph.selected], of_targets])
    allowed = graph.row_abs * ((1 - keep) / graph.n_rows / own).clamp(min=1 - keep, max=1)
    assert (graph.dropped_abs <= allowed * (1 + 1e-9)).all()
    more = graph.dropped_abs > (1 - keep) * graph.row_abs
    assert more.any()
    assert float((own * graph.dropped_abs / graph.row_abs)[more].sum()) <= 1 - keep
    torch.testing.assert_close(graph.row_abs, whole.row_abs)
    for row in range(graph.n_rows):
        first, last = graph.row_starts[row : row + 2].tolist()
        begin, end = whole.row_starts[row : row + 2].tolist()
        edges = dict(zip(whole.columns[begin:end].tolist(), whole.weights[begin:end].tolist(), strict=True))
        kept = {column: edges.pop(column) for column in graph.columns[first:last].tolist()}
        assert list(kept.values()) == pytest.approx(graph.weights[first:last].tolist(), abs=1e-7)
        assert min(map(abs, kept.values())) >= max(map(abs, edges.values()), default=0)
        assert float(graph.dropped_sum[row]) == pytest.approx(sum(edges.values()), abs=1e-5)
        assert float(graph.dropped_abs[row]) == pytest.approx(sum(map(abs, edges.values())), abs=1e-5)
        # one edge less would be too few
        assert sum(map(abs, edges.values())) + min(map(abs, kept.values())) >= float(allowed[row]) * (1 - 1e-9)


def test_it_stops_when_little_influence_is_left(model) -> None:
    whole = trace(TOKENS, model, max_n_logits=2, batch_size=8, keep=1.0)
    for share in (0.7, 0.95):
        graph = trace(TOKENS, model, max_n_logits=2, batch_size=8, keep=1.0, influence_share=share, update_interval=1)
        assert 0 < graph.n_selected < whole.n_active
        graph = dataclasses.replace(graph, terms={})
        assert influence_shares(graph).without_rows <= 1 - share + 1e-9


def test_batches_do_not_matter(model, monkeypatch) -> None:
    one = trace(TOKENS, model, max_n_logits=2, batch_size=1, keep=0.95)
    monkeypatch.setattr(kept_rows, "_AT_ONCE", 1000)
    other = trace(TOKENS, model, max_n_logits=2, keep=0.95)
    assert one.columns.equal(other.columns)
    assert one.row_starts.equal(other.row_starts)
    torch.testing.assert_close(one.weights, other.weights)


def test_rows_come_in_any_order() -> None:
    rows = torch.tensor([[0.0, 1, 0, 2, 0], [0, 0, 3, 0, 0], [4, 0, 0, 0, 5], [6, 7, 0, 0, 0]])
    layers = torch.tensor([0, 0, 1])
    store = kept_rows.Store(layers, 2, 1)  # 3 features, 2 errors, 1 token
    rows = torch.nn.functional.pad(rows, (0, 1))
    store.add(torch.tensor([6]), kept_rows.largest(rows[3:], torch.ones(1)), torch.ones(1))
    store.add(torch.tensor([1, 2]), kept_rows.largest(rows[1:3], torch.ones(2)), torch.ones(2))
    store.add(torch.tensor([0]), kept_rows.largest(rows[:1], torch.ones(1)), torch.ones(1))
    ids, joined = store.joined()
    assert ids.tolist() == [0, 1, 2, 6]
    assert joined.edges.starts.tolist() == [0, 2, 3, 5, 7]
    assert joined.edges.sources.tolist() == [1, 3, 2, 0, 4, 0, 1]
    assert joined.edges.weights.tolist() == [1, 2, 3, 4, 5, 6, 7]
    assert joined.row_abs.tolist() == [3, 3, 9, 13]


def test_a_contrast_and_a_direction(model) -> None:
    graph = trace(TOKENS, model, targets=contrast(model, "w5", 90), batch_size=16, keep=1.0)
    vector = model.unembed_proj[:, 5] - model.unembed_proj[:, 90]
    same_as_upstream(model, graph, attribution_targets=[("w5 - w90", 1.0, vector)], batch_size=16)
    assert float(graph.terms["own"][-1]) == pytest.approx(float(model.unembed.b_U[5] - model.unembed.b_U[90]))
    other = trace(TOKENS, model, targets=direction(model, "mine", vector), batch_size=16, keep=1.0)
    assert other.weights.equal(graph.weights)
    assert [target.label for target in other.targets] == ["mine"]
    assert float(other.terms["own"][-1]) == 0
    assert token_id(model, "w5") == token_id(model, 5) == 5


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"targets": ["w5 w6"]}, r"must be one token.* Got 'w5 w6', which is 2 tokens: \['w5', 'w6'\]\."),
        ({"targets": [""]}, r"must be one token.* Got '', which is no token\."),
        ({"targets": []}, r"must be one or more, each once\. Got \[\]\."),
        ({"targets": torch.tensor([3, D_VOCAB])}, rf"must be from 0 to {D_VOCAB - 1}\. Got {D_VOCAB}\."),
        ({"max_n_logits": D_VOCAB + 1}, rf"must be from 1 to {D_VOCAB}, .* Got {D_VOCAB + 1} and 0\.95\."),
        ({"desired_logit_prob": 0.0}, r"Got 10 and 0\.0\."),
        ({"keep": 0.0}, r"keep must be over 0 and at most 1\. Got 0\.0\."),
        ({"influence_share": 1.5}, r"influence_share must be over 0 and at most 1\. Got 1\.5\."),
        ({"max_feature_nodes": 0}, r"max_feature_nodes must be at least 1\. Got 0\."),
        ({"batch_size": -2}, r"batch_size must be at least 1\. Got -2\."),
        (
            {"memory_limit": 20_000},
            r"must fit into 0\.00 GiB\. Got about [\d,]+ of \d+ features, .* about \d features fit:",
        ),
    ],
)
def test_what_cannot_be_traced(model, options, line) -> None:
    with pytest.raises(GraphError, match=line) as failure:
        trace(TOKENS, model, **{"batch_size": 8, **options})
    assert "\n" not in str(failure.value)


def test_text_is_a_prompt(model) -> None:
    """The model's tokenizer puts its first token there."""
    graph = trace("w9 w8", model, batch_size=4, max_feature_nodes=1)
    assert graph.tokens.tolist() == [1, 9, 8]
    assert graph.token_texts == ("w1", "w9", "w8")
    assert graph.prompt == "w1 w9 w8"


def test_prompts_that_cannot_be_traced(model) -> None:
    n_ctx = model.cfg.n_ctx
    with pytest.raises(GraphError, match=rf"must be of 2 to {n_ctx:,} tokens, .* Got {n_ctx + 1:,}\."):
        trace(torch.ones(n_ctx + 1), model)
    for few in ([], [1]):
        with pytest.raises(GraphError, match=rf"Got {len(few)}\."):
            trace(few, model)
    with pytest.raises(GraphError, match=rf"must be from 0 to {D_VOCAB - 1}\. Got 1 to {D_VOCAB}\."):
        trace([1, D_VOCAB], model)
    with pytest.raises(GraphError, match=rf"needs active features\. Got none in the prompt's {N_POS} tokens"):
        trace(TOKENS, upstream_model(100.0))


def test_targets_that_are_none(model) -> None:
    with pytest.raises(GraphError, match=r"A contrast must be of two tokens\. Got 'w5' twice\."):
        contrast(model, "w5", 5)
    with pytest.raises(GraphError, match=r"each once\. Got \['w5', 5\]\."):
        tokens(model, ["w5", 5])
    with pytest.raises(GraphError, match=rf"must be {D_MODEL} finite numbers\. Got \(3,\) for 'short'\."):
        direction(model, "short", torch.ones(3))


def test_edges_that_are_not_finite() -> None:
    with pytest.raises(GraphError, match=r"must be finite\. Got NaN or infinity"):
        kept_rows.largest(torch.tensor([[1.0, float("nan")]]), torch.tensor([0.9]))


def test_the_memory_that_a_graph_takes_is_enough_for_it(model) -> None:
    whole = trace(TOKENS, model, max_n_logits=2, batch_size=16)
    limit = kept_rows.BYTES_PER_EDGE * whole.n_edges * 2
    assert trace(TOKENS, model, max_n_logits=2, batch_size=16, memory_limit=limit).columns.equal(whole.columns)
    assert whole.n_layers == N_LAYERS
