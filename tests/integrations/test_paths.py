"""Strongest paths against all paths, and by hand."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("circuit_tracer")

import itertools

from tc_adapters_lens.integrations.circuit_tracer import paths
from tc_adapters_lens.integrations.circuit_tracer.paths import GraphNode, node_of, strongest_paths
from tests.integrations.tiny_graph import graph_of, random_graph


def every_path(graph, target=0):
    """(weight, sign, sources from the prompt on) of all paths through a feature, from a dense matrix of shares."""
    dense = torch.zeros(graph.n_rows, graph.n_sources, dtype=torch.float64)
    rows = torch.arange(graph.n_rows).repeat_interleave(graph.row_starts.diff())
    dense[rows, graph.columns.long()] = graph.weights.double()
    whole = graph.row_abs + sum(term.double().abs() for term in graph.terms.values())
    shares = (dense / whole[:, None]).tolist()
    row_of = {int(source): row for row, source in enumerate(graph.selected)}
    found = []

    def down(row, weight, above):
        for source, share in enumerate(shares[row]):
            if share == 0:
                continue
            if source in row_of:
                down(row_of[source], weight * share, (source, *above))
            elif above or source < graph.n_active:
                found.append((abs(weight * share), 1 if weight * share > 0 else -1, (source, *above)))

    down(graph.n_selected + target, 1.0, ())
    return sorted(found, reverse=True)


@pytest.mark.parametrize("selected", [1.0, 0.6, 0.0])
@pytest.mark.parametrize("target", [0, 1])
def test_all_paths_of_small_graphs(selected, target) -> None:
    n_found = 0
    kinds = set()
    for seed in range(15):
        graph = random_graph(seed, n_pos=3, n_active=9, selected=selected)
        expected = every_path(graph, target)
        ours = strongest_paths(graph, 10**9, target)
        assert len(ours) == len(expected)
        by_nodes = {tuple(node_of(graph, source) for source in path): rest for *rest, path in expected}
        assert len(by_nodes) == len(expected)
        for path in ours:
            weight, sign = by_nodes.pop(path.nodes[:-1])
            assert path.weight == pytest.approx(weight, rel=1e-9)
            assert path.sign == sign
            assert path.nodes[-1] == GraphNode("target", 3, 2, target)
            kinds.add(path.nodes[0].kind)
        weights = [path.weight for path in ours]
        assert weights == pytest.approx([weight for weight, *_ in expected])
        assert all(one >= next_ * (1 - 1e-9) for one, next_ in itertools.pairwise(weights))
        few = strongest_paths(graph, 4, target)
        assert [path.nodes for path in few] == [path.nodes for path in ours[:4]]
        n_found += len(ours)
    assert n_found > 50
    assert kinds == ({"feature"} if selected == 0 else {"token", "error"} | ({"feature"} if selected < 1 else set()))


def test_by_hand() -> None:
    """Feature A of layer 0 and B of layer 1 at one token, one target:

    B = -3 A + 1 token, A = 2 token + 2 bias, target = 2 B + 2 A - 4 token + 2 dropped
    """
    dense = torch.tensor(
        [
            # A  B  e0 e1 token
            [0.0, 0, 0, 0, 2],
            [-3, 0, 0, 0, 1],
            [2, 2, 0, 0, -4],
        ]
    )
    zeros = torch.zeros(3, dtype=torch.float64)
    dropped = zeros + torch.tensor([0, 0, 2.0])
    terms = {"own": torch.tensor([2.0, 0, 0])}
    graph = graph_of(
        dense, torch.tensor([[0, 0, 7], [1, 0, 8]]), torch.arange(2), 2, torch.tensor([0.5]), terms, dropped, zeros
    )
    token, a, b = GraphNode("token", -1, 0, 3), GraphNode("feature", 0, 0, 7), GraphNode("feature", 1, 0, 8)
    end = GraphNode("target", 2, 0, 0)
    # of the target's 10: A 1/5, B 1/5; of B's 4: A 3/4, token 1/4; of A's 4: token 1/2
    assert strongest_paths(graph, 20) == [
        (pytest.approx(1 / 5 * 1 / 2), 1, (token, a, end)),
        (pytest.approx(1 / 5 * 3 / 4 * 1 / 2), -1, (token, a, b, end)),
        (pytest.approx(1 / 5 * 1 / 4), 1, (token, b, end)),
    ]
    assert strongest_paths(graph, 0) == []


def test_a_node_of_every_source() -> None:
    graph = random_graph(2, n_layers=2, n_pos=3, n_active=5)
    nodes = [node_of(graph, source) for source in range(graph.n_sources)]
    assert nodes[:5] == [("feature", *place) for place in [(r[0], r[1], r[2]) for r in graph.active_features.tolist()]]
    assert nodes[5:11] == [("error", layer, position, 0) for layer in range(2) for position in range(3)]
    assert nodes[11:] == [("token", -1, position, 3 + position) for position in range(3)]


def test_a_search_that_is_too_long_ends(monkeypatch) -> None:
    graph = random_graph(0)
    every = strongest_paths(graph, 10**9)
    monkeypatch.setattr(paths, "_MOST_STEPS", 30)
    some = strongest_paths(graph, 10**9)
    assert 0 < len(some) < len(every)
    assert some == every[: len(some)]
