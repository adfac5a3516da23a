"""From an attribution graph to interventions on the features that it found active, in circuit-tracer's own form.

    graph = attribute(prompt, replacement_model)
    logits, _ = replacement_model.feature_intervention(graph.input_tokens, interventions_of(graph, group))

Works with a graph read back by `Graph.from_pt` as well; circuit-tracer itself is not needed here.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Protocol

from torch import Tensor

from tc_adapters_lens.errors import FeatureGroupError
from tc_adapters_lens.models.feature_group import FeatureGroup

__all__ = ["Traced", "interventions_of"]


class Traced(Protocol):
    """What is read of circuit-tracer's `Graph`.

    active_features: (layer, position, feature) of every active feature, `[n_active 3]`.
    activation_values: its activation, `[n_active]`.
    """

    active_features: Tensor
    activation_values: Tensor


def interventions_of(
    graph: Traced, group: FeatureGroup, factor: float = 0.0, *, positions: Collection[int] | None = None
) -> list[tuple[int, int, int, float]]:
    """Every active feature of the graph that is in the group, at its activation times a factor.

    circuit-tracer leaves position 0 out of its graphs, and so out of this.

    Args:
        factor: 0 switches them off.
        positions: there only; None: wherever they are active.
    Returns:
        (layer, position, feature, value), as `feature_intervention` and `feature_intervention_generate` take them.
    Raises:
        FeatureGroupError: none of the group is active in the graph there.
    """
    members = set(group.features)
    found = [
        (layer, position, feature, factor * value)
        for (layer, position, feature), value in zip(
            graph.active_features.tolist(), graph.activation_values.tolist(), strict=True
        )
        if (layer, feature) in members and (positions is None or position in positions)
    ]
    if not found:
        where = "" if positions is None else f" at positions {sorted(positions)}"
        raise FeatureGroupError(
            f"A feature of the group must be active in the graph. Got none of '{group.name}' ({len(group)} features) "
            f"among its {len(graph.active_features)} active ones{where}."
        )
    return found
