"""What a graph says, in numbers and words: what it explains, whether it adds up, which features and paths matter."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from tc_adapters_lens.integrations.circuit_tracer.influence import (
    InfluenceShares,
    influence_shares,
    node_influences,
    target_shares,
)
from tc_adapters_lens.integrations.circuit_tracer.paths import GraphNode, GraphPath, strongest_paths
from tc_adapters_lens.integrations.circuit_tracer.sparse_graph import SparseGraph

__all__ = ["FeatureWords", "GraphSummary", "Words", "largest_gap", "summarise", "top_features"]

FORMAT, FORMAT_VERSION = "tc_adapters_lens.graph_summary", 1


@dataclass(frozen=True)
class FeatureWords:
    """What is known of a feature.

    label: its name in a word or a few.
    promoted, inhibited: tokens, those first that it moves most.
    frequency: share of positions where it is active; None where nobody counted.
    examples: its highest activations, each text before, the token, text behind, and the activation.
    """

    label: str
    promoted: tuple[str, ...] = ()
    inhibited: tuple[str, ...] = ()
    frequency: float | None = None
    examples: tuple[Mapping[str, Any], ...] = ()


class Words(Protocol):
    """Where words on features come from.

    source: other words have another.
    """

    @property
    def source(self) -> str: ...
    def __getitem__(self, feature: tuple[int, int], /) -> FeatureWords: ...


@dataclass(frozen=True)
class GraphSummary:
    """A graph in numbers.

    graph: the graph.
    largest_gap: by how much its worst row fails to add up, as `largest_gap` has it.
    shares: where influence ends.
    replacement_score, completeness_score: circuit-tracer's own two, of the graph's kept edges.
    features: (layer, feature) -> share of all features' influence, the largest first.
    paths: of the first target.
    """

    graph: SparseGraph
    largest_gap: float
    shares: InfluenceShares
    replacement_score: float
    completeness_score: float
    features: dict[tuple[int, int], float]
    paths: list[GraphPath]

    def to_dict(self, words: Words, n_features: int = 20) -> dict[str, Any]:
        """As JSON has words for it, with what is known of the n most influential features."""
        graph = self.graph
        return {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "prompt": graph.prompt,
            "n_tokens": graph.n_pos,
            **graph.info,
            "targets": [_target(graph, place) for place in range(len(graph.targets))],
            "size": {"active_features": graph.n_active, "features": graph.n_selected, "edges": graph.n_edges},
            "largest_gap": self.largest_gap,
            "shares": asdict(self.shares),
            "replacement_score": self.replacement_score,
            "completeness_score": self.completeness_score,
            "features": [
                {
                    "layer": layer,
                    "feature": feature,
                    "influence": share,
                    "nodes": _places(graph, layer, feature),
                    **asdict(words[layer, feature]),
                }
                for (layer, feature), share in list(self.features.items())[:n_features]
            ],
            "paths": [
                {
                    "weight": path.weight,
                    "sign": path.sign,
                    "nodes": [node._asdict() | {"text": node_text(graph, node, words)} for node in path.nodes],
                }
                for path in self.paths
            ],
        }


def summarise(graph: SparseGraph, n_paths: int = 20) -> GraphSummary:
    """A graph's summary, its strongest paths included."""
    influences = node_influences(graph)
    replacement, completeness = _scores(graph, influences)
    return GraphSummary(
        graph=graph,
        largest_gap=largest_gap(graph),
        shares=influence_shares(graph),
        replacement_score=replacement,
        completeness_score=completeness,
        features=top_features(graph, influences),
        paths=strongest_paths(graph, n_paths),
    )


def largest_gap(graph: SparseGraph) -> float:
    """How far the worst row is from adding up: |edges + terms - value|, as a share of all that enters the row."""
    rows = torch.arange(graph.n_rows).repeat_interleave(graph.row_starts.diff())
    total = graph.dropped_sum.double().index_add(0, rows, graph.weights.double())
    entering = graph.row_abs.double()
    for term in graph.terms.values():
        total, entering = total + term.double(), entering + term.double().abs()
    gaps = (total - graph.values.double()).abs() / entering.clamp(min=torch.finfo(torch.float32).tiny)
    return float(gaps.max())


def top_features(graph: SparseGraph, influences: Float[Tensor, " n_nodes"]) -> dict[tuple[int, int], float]:
    """(layer, feature) -> its share of all features' influence, at all its positions together; the largest first."""
    own = influences[: graph.n_selected]
    whole = float(own.sum()) or 1.0
    found: dict[tuple[int, int], float] = {}
    for (layer, _, feature), influence in zip(
        graph.active_features[graph.selected].tolist(), own.tolist(), strict=True
    ):
        found[layer, feature] = found.get((layer, feature), 0.0) + influence / whole
    return dict(sorted(found.items(), key=lambda item: (-item[1], item[0])))


def node_text(graph: SparseGraph, node: GraphNode, words: Words) -> str:
    """A node in words."""
    if node.kind == "target":
        return graph.targets[node.index].label
    token = graph.token_texts[node.position]
    if node.kind == "token":
        return token
    return words[node.layer, node.index].label if node.kind == "feature" else f"error at {token}"


def _target(graph: SparseGraph, place: int) -> dict[str, Any]:
    """A target with the sums of what enters it."""
    row = graph.n_selected + place
    own = slice(int(graph.row_starts[row]), int(graph.row_starts[row + 1]))
    sources, weights = graph.columns[own], graph.weights[own].double()
    tokens = graph.n_active + graph.n_layers * graph.n_pos
    label, vocab_idx, kind = graph.targets[place]
    return {
        "label": label,
        "vocab_idx": vocab_idx,
        "kind": kind,
        "probability": float(graph.probabilities[place]),
        "value": float(graph.values[row]),
        "features": float(weights[sources < graph.n_active].sum()),
        "errors": float(weights[(sources >= graph.n_active) & (sources < tokens)].sum()),
        "tokens": float(weights[sources >= tokens].sum()),
        "terms": {kind: float(term[row]) for kind, term in graph.terms.items()},
        "dropped": float(graph.dropped_sum[row]),
    }


def _places(graph: SparseGraph, layer: int, feature: int) -> list[dict[str, Any]]:
    """Where a feature is a node."""
    found = graph.active_features[graph.selected]
    chosen = graph.selected[(found[:, 0] == layer) & (found[:, 2] == feature)]
    return [
        {
            "position": (position := int(graph.active_features[source, 1])),
            "token": graph.token_texts[position],
            "activation": float(graph.activations[source]),
        }
        for source in chosen.tolist()
    ]


def _scores(graph: SparseGraph, influences: Float[Tensor, " n_nodes"]) -> tuple[float, float]:
    """circuit-tracer's `compute_graph_scores`, from the edges."""
    errors, tokens = graph.n_selected, graph.n_selected + graph.n_layers * graph.n_pos
    of_tokens = float(influences[tokens : tokens + graph.n_pos].sum())
    of_errors = float(influences[errors:tokens].sum())
    replacement = of_tokens / (of_tokens + of_errors) if of_tokens + of_errors else 1.0
    rows = torch.arange(graph.n_rows).repeat_interleave(graph.row_starts.diff())
    nodes = graph.node_of_source[graph.columns]
    size = graph.weights.double().abs() * (nodes >= 0)
    from_errors = size * ((nodes >= errors) & (nodes < tokens))
    totals = torch.zeros(graph.n_rows, dtype=torch.float64).index_add_(0, rows, size)
    shares = torch.zeros(graph.n_rows, dtype=torch.float64).index_add_(0, rows, from_errors) / totals.clamp(min=1e-10)
    # circuit-tracer counts nodes without a row, tokens and errors, as explained
    of_targets = target_shares(graph.probabilities)
    output = torch.cat([influences[: graph.n_selected], of_targets])
    whole = float(influences.sum() + of_targets.sum())
    return replacement, 1 - float((shares * output).sum()) / whole
