"""Whether a sparse graph that was read is one: sizes agree, numbers are finite, every edge goes up."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from tc_adapters_lens.errors import GraphError

if TYPE_CHECKING:
    from tc_adapters_lens.integrations.circuit_tracer.sparse_graph import SparseGraph

# name of a tensor -> its dtype and shape
SHAPES: dict[str, tuple[torch.dtype, tuple[str | int, ...]]] = {
    "tokens": (torch.int64, ("n_pos",)),
    "active_features": (torch.int64, ("n_active", 3)),
    "activations": (torch.float32, ("n_active",)),
    "selected": (torch.int64, ("n_selected",)),
    "probabilities": (torch.float32, ("n_targets",)),
    "row_starts": (torch.int64, ("n_starts",)),
    "columns": (torch.int32, ("n_edges",)),
    "weights": (torch.float32, ("n_edges",)),
    "values": (torch.float32, ("n_rows",)),
    "row_abs": (torch.float64, ("n_rows",)),
    "dropped_sum": (torch.float64, ("n_rows",)),
    "dropped_abs": (torch.float64, ("n_rows",)),
}


def check(graph: SparseGraph) -> None:
    """Raises GraphError: one line, what does not hold."""
    sizes: dict[str | int, int] = {
        "n_pos": len(graph.token_texts),
        "n_active": len(graph.activations),
        "n_selected": len(graph.selected),
        "n_targets": len(graph.targets),
        "n_rows": len(graph.selected) + len(graph.targets),
        "n_starts": len(graph.selected) + len(graph.targets) + 1,
        "n_edges": len(graph.weights),
        3: 3,
    }
    tensors = {name: (getattr(graph, name), *form) for name, form in SHAPES.items()}
    tensors |= {kind: (term, torch.float32, ("n_rows",)) for kind, term in graph.terms.items()}
    for name, (tensor, dtype, shape) in tensors.items():
        expected = tuple(sizes[size] for size in shape)
        if tensor.dtype != dtype or tuple(tensor.shape) != expected:
            raise GraphError(f"A graph's {name} must be {dtype} {expected}. Got {tensor.dtype} {tuple(tensor.shape)}.")
        if dtype.is_floating_point and not tensor.isfinite().all():
            raise GraphError(f"A graph's {name} must be finite. Got {int((~tensor.isfinite()).sum())} that are not.")
    for name, holds in _rules(graph).items():
        if not holds:
            raise GraphError(f"In a graph {name}. Got one in which this does not hold.")


def _rules(graph: SparseGraph) -> dict[str, bool]:
    layers, positions, features = graph.active_features.T
    starts, columns, selected = graph.row_starts, graph.columns, graph.selected
    inside = bool((layers >= 0).all() and (layers < graph.n_layers).all())
    inside &= bool((positions >= 0).all() and (positions < graph.n_pos).all() and (features >= 0).all())
    known = len(selected) == 0 or bool(selected[0] >= 0 and selected[-1] < graph.n_active)
    rows = bool(starts[0] == 0 and starts[-1] == graph.n_edges and (starts.diff() >= 0).all())
    sources = graph.n_edges == 0 or bool(columns.min() >= 0 and columns.max() < graph.n_sources)
    rules = {
        "active features lie in its layers and positions": inside,
        "active features are in ascending layers": bool((layers.diff() >= 0).all()),
        "selected features are active ones, ascending": known and bool((selected.diff() > 0).all()),
        "rows follow each other": rows,
        "edges come from its nodes": sources,
    }
    if all(rules.values()):
        rules["edges of a feature come from lower layers"] = _upwards(graph)
    return rules


def _upwards(graph: SparseGraph) -> bool:
    layer_of = torch.full((graph.n_sources,), -1, dtype=torch.int64)  # of what a source writes to; tokens: none
    layer_of[: graph.n_active] = graph.active_features[:, 0]
    errors = torch.arange(graph.n_layers).repeat_interleave(graph.n_pos)
    layer_of[graph.n_active : graph.n_active + len(errors)] = errors
    for layer, (first, last) in enumerate(zip(graph.layer_rows[:-1], graph.layer_rows[1:], strict=True)):
        edges = graph.columns[graph.row_starts[first] : graph.row_starts[last]]
        if (layer_of[edges] >= layer).any():
            return False
    return True
