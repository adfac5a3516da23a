"""circuit-tracer's pruning of a graph, from its edges alone: no matrix of all nodes by all nodes."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tc_adapters_lens.errors import GraphError
from tc_adapters_lens.integrations.circuit_tracer.influence import (
    TINY,
    known_edges,
    nodes_of,
    source_influences,
    target_shares,
)
from tc_adapters_lens.integrations.circuit_tracer.sparse_graph import SparseGraph

__all__ = ["Pruned", "prune"]


class Pruned(NamedTuple):
    """What is left of a graph.

    node_mask: nodes that stay, in circuit-tracer's order, `[n_nodes]`.
    edge_mask: the graph's edges that stay, `[n_edges]`.
    cumulative_scores: share of all influence that a node and those with more have, float32 `[n_nodes]`.
    edge_scores: influence along each edge that stays, in their order, float64.
    """

    node_mask: Bool[Tensor, "n_nodes"]
    edge_mask: Bool[Tensor, "n_edges"]
    cumulative_scores: Float[Tensor, "n_nodes"]
    edge_scores: Float[Tensor, "n_kept"]


def prune(graph: SparseGraph, node_threshold: float = 0.8, edge_threshold: float = 0.98) -> Pruned:
    """`prune_graph` of circuit-tracer's own graph of the kept edges.

    Nodes with the most influence stay until they have the share `node_threshold` of it, tokens and targets always; of
    the edges between those, the strongest until they have the share `edge_threshold`; then nodes that nothing reaches,
    or that reach nothing, go. Edges without influence never stay.

    Raises:
        GraphError: a threshold is not between 0 and 1.
    """
    for name, threshold in (("node threshold", node_threshold), ("edge threshold", edge_threshold)):
        if not 0 <= threshold <= 1:
            raise GraphError(f"The {name} must be between 0 and 1. Got {threshold}.")
    n_fixed = graph.n_pos + len(graph.targets)
    n_free = graph.n_nodes - n_fixed  # features and errors, which are never kept for what they are

    edges, known = known_edges(graph)
    of_targets = target_shares(graph.probabilities)
    of_nodes = nodes_of(graph, source_influences(graph, edges, edges.sums(), of_targets))
    node_mask = of_nodes >= _threshold(of_nodes, node_threshold)
    node_mask[n_free:] = True

    node_of_row = torch.arange(graph.n_rows, dtype=torch.int32)
    node_of_row[graph.n_selected :] += graph.n_nodes - graph.n_rows
    between = node_mask[graph.node_of_source[edges.sources]] & node_mask[edges.spread(node_of_row)]
    places = known.nonzero().squeeze(1)[between]
    edges = edges.where(between)
    sums = edges.sums().clamp(min=TINY)
    influence = source_influences(graph, edges, sums, of_targets)
    of_rows = torch.cat([influence[graph.selected], of_targets])
    scores = edges.weights.abs() * edges.spread(of_rows / sums)
    strong = (scores > 0) & (scores >= _threshold(scores, edge_threshold))

    above = edges.spread(node_of_row)[strong]
    below = graph.node_of_source[edges.sources[strong]]
    places, scores = places[strong], scores[strong]
    while True:
        reaching = torch.zeros(graph.n_nodes, dtype=torch.bool)
        reached = torch.zeros(graph.n_nodes, dtype=torch.bool)
        reaching[below] = reached[above] = True
        reaching[n_free:] = reached[graph.n_selected :] = True
        node_mask &= reaching & reached
        stays = node_mask[above] & node_mask[below]
        if stays.all():
            break
        above, below, places, scores = above[stays], below[stays], places[stays], scores[stays]
    edge_mask = torch.zeros(graph.n_edges, dtype=torch.bool)
    edge_mask[places] = True

    order = of_nodes.argsort(descending=True, stable=True)
    cumulative = torch.zeros(graph.n_nodes)
    cumulative[order] = (of_nodes[order].cumsum(0) / of_nodes.sum().clamp(min=TINY)).float()
    return Pruned(node_mask, edge_mask, cumulative, scores)


def _threshold(scores: Float[Tensor, "n"], share: float) -> Tensor:
    """The score of the last of the highest that together have a share of all."""
    if not len(scores):
        return scores.new_zeros(())
    if share == 1:  # circuit-tracer's sums may reach 1 before the last
        return scores.min()
    ordered = scores.sort(descending=True).values
    cumulative = ordered.cumsum(0) / ordered.sum().clamp(min=TINY)
    return ordered[min(int(torch.searchsorted(cumulative, share)), len(scores) - 1)]
