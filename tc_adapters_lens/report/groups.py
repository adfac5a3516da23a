"""Which evaluations belong together: runs of one recipe and several seeds, recipes that differ in sparsity alone."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# Keys that may differ between runs of one group, and between groups that lie on one line of the trade-off.
_NOT_RECIPE = ("seed", "logger", "device", "warm_start", "base", "target", "base_revision", "target_revision")
_SPARSITY_ONLY = (("objective", "l1_coefficient"), ("training", "lr"), ("training", "training_tokens"))


@dataclass(frozen=True)
class Group:
    """Runs of one recipe that differ in their seed.

    labels: the runs, by seed.
    family: recipes of one family differ in sparsity weight, learning rate and length of training only.
    weight: the sparsity weight; None where the recipe is not known (imported adapters).
    bridged: whether it trained with bridging.
    l0: mean over the runs.
    """

    labels: tuple[str, ...]
    family: int
    weight: float | None
    bridged: bool
    l0: float

    @property
    def name(self) -> str:
        """The run's label, or what the runs have in common."""
        if len(self.labels) == 1:
            return self.labels[0]
        return f"sparsity weight {self.weight:g}, {len(self.labels)} seeds"


@dataclass(frozen=True)
class Ablation:
    """One recipe with and without bridging; both sides have l0, nmse, nmse_per_layer and partial_kl.

    label: the bridged run.
    other: the run without bridging, or None where the evaluation of `label` holds its figures.
    """

    label: str
    other: str | None
    bridged: Mapping[str, Any]
    without: Mapping[str, Any]


def config_of(evaluation: Mapping[str, Any]) -> dict[str, Any]:
    """The training configuration an evaluation names; {} for imported adapters."""
    return evaluation["recipe"].get("config") or {}


def sparsity_groups(evaluations: Mapping[str, Mapping[str, Any]]) -> tuple[Group, ...]:
    """All runs in groups, from sparse to dense.

    Args:
        evaluations: label -> evaluation.
    """
    members: dict[str, list[str]] = {}
    for label, evaluation in evaluations.items():
        members.setdefault(_key(label, evaluation, ()), []).append(label)
    families: dict[str, int] = {}
    groups = []
    for labels in members.values():
        ordered = sorted(labels, key=lambda label: (config_of(evaluations[label]).get("seed", 0), label))
        config = config_of(evaluations[ordered[0]])
        objective = config.get("objective", {})
        family = _key("imported", evaluations[ordered[0]], _SPARSITY_ONLY)
        groups.append(
            Group(
                labels=tuple(ordered),
                family=families.setdefault(family, len(families)),
                weight=objective.get("l1_coefficient"),
                bridged=objective.get("bridging_weight", 1) > 0,
                l0=sum(evaluations[label]["l0"]["value"] for label in labels) / len(labels),
            )
        )
    return tuple(sorted(groups, key=lambda group: group.l0))


def ablations(evaluations: Mapping[str, Mapping[str, Any]]) -> tuple[Ablation, ...]:
    """Every measured pair of runs with and without bridging.

    A run that trained without bridging is set beside the bridged run of the same sparsity weight (and seed, if there
    is one), else beside the one of nearest L0.
    """
    groups = sparsity_groups(evaluations)
    bridged = [label for group in groups if group.bridged for label in group.labels]
    found = [
        Ablation(label, None, evaluations[label], evaluations[label]["no_bridging"])
        for label in bridged
        if evaluations[label]["no_bridging"] is not None
    ]
    for label in (label for group in groups if not group.bridged for label in group.labels):
        if bridged:
            nearest = min(bridged, key=lambda candidate: _distance(evaluations[candidate], evaluations[label]))
            found.append(Ablation(nearest, label, evaluations[nearest], evaluations[label]))
    return tuple(found)


def _key(label: str, evaluation: Mapping[str, Any], leave_out: tuple[tuple[str, str], ...]) -> str:
    config = config_of(evaluation)
    if not config:
        return f"no recipe: {label}"
    kept = {name: value for name, value in config.items() if name not in _NOT_RECIPE}
    for section, name in leave_out:
        if isinstance(kept.get(section), dict):
            kept[section] = {key: value for key, value in kept[section].items() if key != name}
    if not leave_out:
        kept["warm_start"] = bool(config.get("warm_start"))
    return json.dumps(kept, sort_keys=True, default=str)


def _distance(one: Mapping[str, Any], other: Mapping[str, Any]) -> tuple[bool, bool, float]:
    configs = config_of(one), config_of(other)
    weights = [config.get("objective", {}).get("l1_coefficient") for config in configs]
    seeds = [config.get("seed") for config in configs]
    l0s = [max(evaluation["l0"]["value"], 1e-12) for evaluation in (one, other)]
    return weights[0] != weights[1], seeds[0] != seeds[1], abs(math.log(l0s[0] / l0s[1]))
