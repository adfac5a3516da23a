"""Influence: how much of the targets' input can be traced back to a node.

A row's absolute direct effects, divided by their sum, are the shares in which a node hands its influence down. A
feature's row comes from lower layers only, so one pass over the edges, from the targets down by layers, is exact.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tc_adapters_lens.integrations.circuit_tracer.sparse_graph import SparseGraph

__all__ = ["TINY", "Edges", "InfluenceShares", "influence_shares", "node_influences", "target_shares"]

TINY = 1e-10  # circuit-tracer's least sum of a row


class Edges(NamedTuple):
    """Rows of edges, in the order of a graph's rows.

    starts: where each row's edges begin; one more than rows.
    sources: of the edges, int32.
    weights: of the edges.
    """

    starts: Int[Tensor, "n_rows+1"]
    sources: Int[Tensor, "n_edges"]
    weights: Float[Tensor, "n_edges"]

    def of_rows(self, first: int, last: int) -> Edges:
        """Those of some rows, shared."""
        begin, end = int(self.starts[first]), int(self.starts[last])
        return Edges(self.starts[first : last + 1] - begin, self.sources[begin:end], self.weights[begin:end])

    def where(self, kept: Bool[Tensor, "n_edges"]) -> Edges:
        """Some of them, copied."""
        before = torch.zeros(len(kept) + 1, dtype=torch.int64)
        torch.cumsum(kept, 0, out=before[1:])
        return Edges(before[self.starts], self.sources[kept], self.weights[kept])

    def spread(self, of_rows: Tensor) -> Tensor:
        """A number per row as a number per edge."""
        return of_rows.repeat_interleave(self.starts.diff())

    def sums(self) -> Float[Tensor, "n_rows"]:
        """Of each row's absolute weights, float64."""
        totals = torch.zeros(len(self.starts) - 1, dtype=torch.float64)
        rows = self.spread(torch.arange(len(totals), dtype=torch.int32))
        return totals.index_add_(0, rows, self.weights.abs().double())

    def hand_down(self, shares: Float[Tensor, "n_rows"], influence: Float[Tensor, "n_sources"]) -> None:
        """Add to the sources' influence what each row's has per unit of weight, times the weights."""
        influence.index_add_(0, self.sources, self.spread(shares) * self.weights.abs())


def edges_of(graph: SparseGraph) -> Edges:
    """All of a graph's edges, shared with it."""
    return Edges(graph.row_starts, graph.columns, graph.weights)


def known_edges(graph: SparseGraph) -> tuple[Edges, Bool[Tensor, "n_edges"]]:
    """Edges from anything but features without a row, as circuit-tracer leaves those out, and which they are."""
    known = graph.node_of_source[graph.columns] >= 0
    return (edges_of(graph) if known.all() else edges_of(graph).where(known)), known


def target_shares(probabilities: Float[Tensor, "n_targets"]) -> Float[Tensor, "n_targets"]:
    """The targets' own influence: by the size of their probabilities or weights, the same where all are 0; float64."""
    sizes = probabilities.double().abs()
    return sizes / sizes.sum() if sizes.any() else torch.full_like(sizes, 1 / len(sizes))


def source_influences(
    graph: SparseGraph, edges: Edges, sums: Float[Tensor, "n_rows"], of_targets: Float[Tensor, "n_targets"]
) -> Float[Tensor, "n_sources"]:
    """Every source's influence, float64.

    Args:
        edges: the graph's, or some of them.
        sums: what each row's weights are divided by.
        of_targets: the targets' own influence.
    """
    influence = torch.zeros(graph.n_sources, dtype=torch.float64)
    divisors = sums.double().clamp(min=TINY)
    targets = edges.of_rows(graph.n_selected, graph.n_rows)
    targets.hand_down(of_targets.double() / divisors[graph.n_selected :], influence)
    for first, last in zip(reversed(graph.layer_rows[:-1]), reversed(graph.layer_rows[1:]), strict=True):
        own = influence[graph.selected[first:last]]
        edges.of_rows(first, last).hand_down(own / divisors[first:last], influence)
    return influence


def node_influences(graph: SparseGraph) -> Float[Tensor, "n_nodes"]:
    """Every node's influence, float64, in circuit-tracer's order. Targets: 0.

    It is `compute_node_influence` of its graph, where the targets' weights add up to 1.
    """
    edges, _ = known_edges(graph)
    return nodes_of(graph, source_influences(graph, edges, edges.sums(), target_shares(graph.probabilities)))


def nodes_of(graph: SparseGraph, of_sources: Float[Tensor, "n_sources"]) -> Float[Tensor, "n_nodes"]:
    """Numbers of sources as numbers of nodes; 0 for targets."""
    targets = of_sources.new_zeros(len(graph.targets))
    return torch.cat([of_sources[graph.selected], of_sources[graph.n_active :], targets])


@dataclass(frozen=True)
class InfluenceShares:
    """Where the targets' influence ends, as shares of it. Here biases and dropped edges count as sources.

    Attributes:
        tokens_direct, tokens_through_features: in tokens, along no feature, and along at least one.
        errors: in what the adapters leave unexplained.
        terms: kind of bias -> share.
        dropped: in edges that were not kept.
        without_rows: in features whose own input was not computed.
        of_tokens: `tokens_direct + tokens_through_features` by position, `[n_pos]`.
        first_hop: the targets' own rows: "features", "features without rows", "tokens", "errors", "dropped", and each
            kind of term as "terms.KIND".
    """

    tokens_direct: float
    tokens_through_features: float
    errors: float
    terms: dict[str, float]
    dropped: float
    without_rows: float
    of_tokens: tuple[float, ...]
    first_hop: dict[str, float]


def influence_shares(graph: SparseGraph) -> InfluenceShares:
    """Where the targets' influence ends. `tokens_direct` to `without_rows` add up to 1, and so does `first_hop`.

    A row that holds nothing at all counts as one that was not computed.
    """
    terms = {kind: term.double().abs() for kind, term in graph.terms.items()}
    sums = sum(terms.values(), graph.row_abs.double())
    of_targets = target_shares(graph.probabilities)
    edges = edges_of(graph)
    influence = source_influences(graph, edges, sums, of_targets)
    of_rows = torch.cat([influence[graph.selected], of_targets])
    shares = of_rows / sums.clamp(min=TINY)

    first = torch.zeros(graph.n_sources, dtype=torch.float64)
    edges.of_rows(graph.n_selected, graph.n_rows).hand_down(shares[graph.n_selected :], first)
    errors, tokens = graph.n_active, graph.n_active + graph.n_layers * graph.n_pos
    has_row = torch.zeros(graph.n_active, dtype=torch.bool)
    has_row[graph.selected] = True
    targets = slice(graph.n_selected, None)
    empty = sums == 0
    direct = float(first[tokens:].sum())
    return InfluenceShares(
        tokens_direct=direct,
        tokens_through_features=float(influence[tokens:].sum()) - direct,
        errors=float(influence[errors:tokens].sum()),
        terms={kind: float((shares * term).sum()) for kind, term in terms.items()},
        dropped=float((shares * graph.dropped_abs).sum()),
        without_rows=float(influence[:errors][~has_row].sum() + of_rows[empty].sum()),
        of_tokens=tuple(influence[tokens:].tolist()),
        first_hop={
            "features": float(first[:errors][has_row].sum()),
            "features without rows": float(first[:errors][~has_row].sum() + of_targets[empty[targets]].sum()),
            "tokens": direct,
            "errors": float(first[errors:tokens].sum()),
            "dropped": float((shares * graph.dropped_abs)[targets].sum()),
            **{f"terms.{kind}": float((shares * term)[targets].sum()) for kind, term in terms.items()},
        },
    )
