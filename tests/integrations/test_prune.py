"""Influence and pruning from a graph's edges, against circuit-tracer's dense code and by hand."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from tc_adapters_lens.errors import GraphError
from tests.integrations.tiny_graph import graph_of, random_graph

pytest.importorskip("circuit_tracer")

from tc_adapters_lens.integrations.circuit_tracer.influence import influence_shares, node_influences
from tc_adapters_lens.integrations.circuit_tracer.prune import prune


class Config:
    """As much of a model's configuration as circuit-tracer's graph wants."""

    n_layers = 3

    def to_dict(self) -> dict:
        names = "d_model d_head n_heads n_key_value_heads d_mlp d_vocab dtype tokenizer_name model_name"
        return {"n_layers": self.n_layers, "original_architecture": "", **dict.fromkeys(names.split(), 1)}


def dense_mask(graph, edge_mask):
    """Edges that stay, as circuit-tracer's matrix of nodes by nodes."""
    mask = torch.zeros(graph.n_nodes, graph.n_nodes, dtype=torch.bool)
    for row in range(graph.n_rows):
        for edge in range(int(graph.row_starts[row]), int(graph.row_starts[row + 1])):
            source = int(graph.node_of_source[graph.columns[edge]])
            if edge_mask[edge]:
                assert source >= 0
                mask[row if row < graph.n_selected else row + graph.n_nodes - graph.n_rows, source] = True
    return mask


def test_by_hand() -> None:
    """Two layers, one token; feature A of layer 0, B of layer 1, no errors, one target:

    B = 3 A - 1 token, A = 2 token, target = 2 B + 2 A + 4 token
    """
    dense = torch.tensor(
        [
            # A  B  e0 e1 token
            [0.0, 0, 0, 0, 2],
            [3, 0, 0, 0, -1],
            [2, 2, 0, 0, 4],
        ]
    )
    zeros = torch.zeros(3, dtype=torch.float64)
    active = torch.tensor([[0, 0, 7], [1, 0, 8]])
    graph = graph_of(dense, active, torch.tensor([0, 1]), 2, torch.tensor([0.5]), {}, zeros, zeros)
    # target's shares: A 1/4, B 1/4, token 1/2; B's: A 3/4, token 1/4; A's: token 1
    a, b = 0.25 + 0.25 * 0.75, 0.25
    token = 0.5 + b * 0.25 + a
    assert node_influences(graph).tolist() == pytest.approx([a, b, 0, 0, token, 0])

    found = prune(graph, 0.8, 0.98)  # token 1, a 0.4375, b 0.25 of 1.6875: with a 0.85 is reached, without b
    assert found.node_mask.tolist() == [True, False, False, False, True, True]
    assert found.edge_mask.tolist() == [True, False, False, True, False, True]
    total = a + b + token
    expected = [(token + a) / total, 1, 1, 1, token / total, 1]
    assert found.cumulative_scores.tolist() == pytest.approx(expected)
    # what is left: target = 2 A + 4 token, A = 2 token
    assert found.edge_scores.tolist() == pytest.approx([1 / 3, 1 / 3, 2 / 3])

    shares = influence_shares(graph)
    assert shares.tokens_direct == pytest.approx(0.5)
    assert shares.tokens_through_features == pytest.approx(0.5)
    assert shares.of_tokens == pytest.approx((1.0,))
    assert shares.first_hop["features"] == pytest.approx(0.5)

    # A bias of 2 in A's row, 4 in the target's, 1 of |B|'s row dropped, and no row for B at all
    terms = {"own": torch.tensor([2.0, 0, -4])}
    graph = graph_of(
        dense, active, torch.tensor([0, 1]), 2, torch.tensor([0.5]), terms, zeros + torch.tensor([0, 1, 0]), zeros
    )
    # target's shares: A 2/12, B 2/12, token 4/12, own 4/12; B's: A 3/5, token 1/5, dropped 1/5; A's: token 1/2, own 1/2
    a = 2 / 12 + 2 / 12 * 3 / 5
    shares = influence_shares(graph)
    assert shares.tokens_direct == pytest.approx(4 / 12)
    assert shares.tokens_through_features == pytest.approx(2 / 12 / 5 + a / 2)
    assert shares.terms == pytest.approx({"own": 4 / 12 + a / 2})
    assert shares.dropped == pytest.approx(2 / 12 / 5)
    assert (shares.errors, shares.without_rows) == (0, 0)
    expected = {"features": 4 / 12, "features without rows": 0, "tokens": 4 / 12, "errors": 0, "dropped": 0}
    assert shares.first_hop == pytest.approx({**expected, "terms.own": 4 / 12})


@pytest.mark.parametrize("thresholds", [(0.8, 0.98), (0.5, 0.9), (0.95, 0.6), (0.2, 0.5), (0.0, 0.7)])
@pytest.mark.parametrize("selected", [1.0, 0.6])
def test_as_circuit_tracer_does_it(thresholds, selected) -> None:
    from circuit_tracer.graph import compute_node_influence, prune_graph

    for seed in range(20):
        graph = random_graph(seed, n_active=8 + seed, selected=selected)
        dense = graph.to_graph(Config())
        weights = torch.zeros(graph.n_nodes)
        weights[-2:] = graph.probabilities / graph.probabilities.sum()
        theirs = compute_node_influence(dense.adjacency_matrix, weights)
        torch.testing.assert_close(node_influences(graph).float(), theirs, atol=1e-6, rtol=1e-5)
        theirs = prune_graph(dense, *thresholds)
        ours = prune(graph, *thresholds)
        assert ours.node_mask.equal(theirs.node_mask)
        assert dense_mask(graph, ours.edge_mask).equal(theirs.edge_mask & (dense.adjacency_matrix != 0))
        torch.testing.assert_close(ours.cumulative_scores, theirs.cumulative_scores, atol=1e-5, rtol=0)
        assert len(ours.edge_scores) == int(ours.edge_mask.sum())
        assert (ours.edge_scores > 0).all()


@pytest.mark.parametrize("selected", [1.0, 0.5, 0.0])
def test_shares_add_up_to_one(selected) -> None:
    for seed in range(20):
        graph = random_graph(seed, selected=selected)
        shares = influence_shares(graph)
        whole = shares.tokens_direct + shares.tokens_through_features + shares.errors + sum(shares.terms.values())
        assert whole + shares.dropped + shares.without_rows == pytest.approx(1)
        assert sum(shares.first_hop.values()) == pytest.approx(1)
        assert sum(shares.of_tokens) == pytest.approx(shares.tokens_direct + shares.tokens_through_features)
        assert shares.first_hop["tokens"] == shares.tokens_direct
        if selected == 0:
            assert shares.first_hop["features without rows"] == pytest.approx(shares.without_rows)
            assert shares.tokens_through_features == pytest.approx(0)
        if selected == 1:
            assert shares.without_rows == 0


def test_shares_of_a_walk() -> None:
    """The shares are where a random walk from the targets ends, each step as likely as its share of the row."""
    graph = random_graph(3, selected=0.7)
    place_of = {int(source): row for row, source in enumerate(graph.selected)}
    tokens = graph.n_active + graph.n_layers * graph.n_pos
    ends = dict.fromkeys(("tokens", "errors", "attention", "own", "dropped", "without_rows"), 0.0)

    def walk(row: int, share: float) -> None:
        first, last = graph.row_starts[row : row + 2].tolist()
        edges = list(zip(graph.columns[first:last].tolist(), graph.weights[first:last].tolist(), strict=True))
        rest = {kind: abs(float(term[row])) for kind, term in graph.terms.items()}
        rest["dropped"] = float(graph.dropped_abs[row])
        whole = sum(abs(weight) for _, weight in edges) + sum(rest.values())
        for kind, size in rest.items():
            ends[kind] += share * size / whole
        for source, weight in edges:
            part = share * abs(weight) / whole
            if source in place_of:
                walk(place_of[source], part)
            else:
                kind = "tokens" if source >= tokens else "errors" if source >= graph.n_active else "without_rows"
                ends[kind] += part

    for target, probability in enumerate((7 / 9, 2 / 9)):
        walk(graph.n_selected + target, probability)
    shares = influence_shares(graph)
    assert shares.tokens_direct + shares.tokens_through_features == pytest.approx(ends["tokens"])
    assert shares.terms == pytest.approx({kind: ends[kind] for kind in ("attention", "own")})
    assert shares.errors == pytest.approx(ends["errors"])
    assert shares.dropped == pytest.approx(ends["dropped"])
    assert shares.without_rows == pytest.approx(ends["without_rows"])


def test_all_thresholds_at_one_keep_every_edge_with_influence() -> None:
    graph = random_graph(0)
    found = prune(graph, 1.0, 1.0)
    influence = node_influences(graph)
    reached = torch.cat([influence[: graph.n_selected] > 0, torch.ones(2, dtype=torch.bool)])
    assert found.edge_mask.equal(reached.repeat_interleave(graph.row_starts.diff()))


def test_a_graph_without_edges() -> None:
    graph = random_graph(0)
    none = torch.zeros(0)
    graph = dataclasses.replace(
        graph,
        columns=none.int(),
        weights=none,
        row_starts=torch.zeros_like(graph.row_starts),
        row_abs=graph.dropped_abs,
    )
    found = prune(graph)
    assert found.node_mask.nonzero().squeeze(1).tolist() == list(range(graph.n_nodes - 6, graph.n_nodes))
    assert not found.edge_mask.any()
    assert found.cumulative_scores.isfinite().all()


@pytest.mark.parametrize(
    ("nodes", "edges", "line"), [(1.5, 0.9, "node threshold .* Got 1.5"), (0.5, -1, "edge threshold .* Got -1")]
)
def test_thresholds_out_of_range(nodes, edges, line) -> None:
    with pytest.raises(GraphError, match=line):
        prune(random_graph(0), nodes, edges)
