"""The strongest paths of a graph, from what the prompt gives to what the model says.

A path's weight is the product of its edges' shares, a edge's share being its part of all that enters the node above,
biases and dropped edges included: the share of the target's influence that comes along this path alone.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from itertools import count, islice
from typing import Literal, NamedTuple

from tc_adapters_lens.integrations.circuit_tracer.influence import TINY
from tc_adapters_lens.integrations.circuit_tracer.sparse_graph import SparseGraph

__all__ = ["GraphNode", "GraphPath", "node_of", "strongest_paths"]

_MOST_STEPS = 200_000  # edges looked at


class GraphNode(NamedTuple):
    """A node of a graph. Tokens have layer -1, targets layer n_layers.

    index: a feature's number in its layer, a token's id, a target's place; an error has 0.
    """

    kind: Literal["token", "feature", "error", "target"]
    layer: int
    position: int
    index: int


class GraphPath(NamedTuple):
    """weight: above 0, at most 1. sign: of the product of its edges. nodes: from the prompt to the target."""

    weight: float
    sign: Literal[1, -1]
    nodes: tuple[GraphNode, ...]


def node_of(graph: SparseGraph, source: int) -> GraphNode:
    """The node of a source's number."""
    if source < graph.n_active:
        layer, position, feature = graph.active_features[source].tolist()
        return GraphNode("feature", layer, position, feature)
    layer, position = divmod(source - graph.n_active, graph.n_pos)
    if layer < graph.n_layers:
        return GraphNode("error", layer, position, 0)
    return GraphNode("token", -1, position, int(graph.tokens[position]))


def strongest_paths(graph: SparseGraph, n: int, target: int = 0) -> list[GraphPath]:
    """The n strongest paths to a target that lead through a feature, the strongest first.

    They begin at a token, an error or a feature whose own input was not computed. Fewer are given where there are no
    more, or where none is found among the strongest 200,000 edges.
    """
    return list(islice(_paths(graph, target), n))


def _paths(graph: SparseGraph, target: int) -> Iterator[GraphPath]:
    row_of = {source: row for row, source in enumerate(graph.selected.tolist())}
    totals = (graph.row_abs + sum(term.double().abs() for term in graph.terms.values())).clamp(min=TINY).tolist()
    ranked: dict[int, list[tuple[float, int, int]]] = {}

    def edges(row: int) -> list[tuple[float, int, int]]:
        """(share, sign, source) of a row's edges, the strongest first."""
        if row not in ranked:
            own = slice(int(graph.row_starts[row]), int(graph.row_starts[row + 1]))
            weights, sources = graph.weights[own], graph.columns[own]
            order = weights.abs().argsort(descending=True, stable=True)
            found = zip(weights[order].tolist(), sources[order].tolist(), strict=True)
            ranked[row] = [(abs(weight) / totals[row], 1 if weight > 0 else -1, source) for weight, source in found]
        return ranked[row]

    heap: list[tuple[float, int, int, int, int, tuple[int, ...]]] = []
    order = count()

    def push(weight: float, sign: int, row: int, rank: int, above: tuple[int, ...]) -> None:
        """Queue a row's edge of that rank, at the end of a path that has come down to the row."""
        if rank < len(edges(row)):
            share, own_sign, _ = edges(row)[rank]
            heapq.heappush(heap, (-weight * share, next(order), sign * own_sign, row, rank, above))

    end = GraphNode("target", graph.n_layers, graph.n_pos - 1, target)
    push(1.0, 1, graph.n_selected + target, 0, ())
    for _ in range(_MOST_STEPS):
        if not heap:
            return
        negative, _, sign, row, rank, above = heapq.heappop(heap)
        share, own_sign, source = edges(row)[rank]
        push(-negative / share, sign * own_sign, row, rank + 1, above)
        if source in row_of:
            push(-negative, sign, row_of[source], 0, (source, *above))
        elif above or source < graph.n_active:
            nodes = tuple(node_of(graph, step) for step in (source, *above))
            yield GraphPath(-negative, 1 if sign > 0 else -1, (*nodes, end))
