"""Adapter sets with features switched off, kept alone, scaled or negated: stock adapter sets of the same shapes.

A feature that is off has zeros in its column of W_enc, in b_enc and in its row of W_dec: it is never active. Biases of
decoders (b_dec) belong to no feature: they stay, but for `negate`, whose adapters are added to the target.

Source: Hu et al. 2026, section 6 (arXiv 2602.20904).
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from tc_adapters_lens.errors import AdapterSetError
from tc_adapters_lens.models.adapter_set import AdapterSet
from tc_adapters_lens.models.feature_group import FeatureGroup

__all__ = ["biases", "keep", "negate", "remove", "scale"]

INTERVENTIONS = "interventions"
"""Key of an adapter set's recipe: what was done to it since it was trained, in order."""


def remove(adapters: AdapterSet, group: FeatureGroup) -> AdapterSet:
    """All features but the group.

    Raises:
        FeatureGroupError: the group is not of these adapters.
    """
    state = adapters.state()
    _switch_off(state, _chosen(adapters, group))
    return _changed(adapters, state, {"remove": _about(group)})


def keep(adapters: AdapterSet, group: FeatureGroup) -> AdapterSet:
    """The group alone. Errors as `remove`."""
    state = adapters.state()
    _switch_off(state, ~_chosen(adapters, group))
    return _changed(adapters, state, {"keep": _about(group)})


def biases(adapters: AdapterSet) -> AdapterSet:
    """No feature at all, b_dec alone: what `keep` of any group is to be held against."""
    state = adapters.state()
    _switch_off(state, torch.ones_like(state["b_enc"], dtype=torch.bool))
    return _changed(adapters, state, {"keep": None})


def scale(adapters: AdapterSet, group: FeatureGroup, factor: float) -> AdapterSet:
    """All features, what those of the group write multiplied by a factor; when they are active stays as it was.

    Raises:
        FeatureGroupError: the group is not of these adapters.
        AdapterSetError: the factor is not a finite number.
    """
    state = adapters.state()
    state["W_dec"] *= torch.where(_chosen(adapters, group), _finite(factor), 1.0).to(state["W_dec"]).unsqueeze(-1)
    return _changed(adapters, state, {"scale": _about(group), "factor": factor})


def negate(adapters: AdapterSet, group: FeatureGroup, factor: float = 1.0) -> AdapterSet:
    """The group alone, writing the opposite of what it wrote, times a factor. b_dec is zero.

    Added to the target's MLPs (`added`, or an export of the target) it takes away what the group stands for, as far as
    the target does the same.

    Errors as `scale`.
    """
    state = adapters.state()
    _switch_off(state, ~_chosen(adapters, group))
    state["W_dec"] *= -_finite(factor)
    state["b_dec"].zero_()
    return _changed(adapters, state, {"negate": _about(group), "factor": factor})


def _chosen(adapters: AdapterSet, group: FeatureGroup) -> Bool[Tensor, "n_layers n_features"]:
    group.require_in(adapters)
    chosen = torch.zeros(adapters.n_layers, adapters.n_features, dtype=torch.bool, device=adapters.device)
    layers, features = torch.tensor(group.features, device=adapters.device).T
    chosen[layers, features] = True
    return chosen


def _switch_off(state: dict[str, Tensor], off: Bool[Tensor, "n_layers n_features"]) -> None:
    state["W_enc"].masked_fill_(off.unsqueeze(1), 0)
    state["b_enc"].masked_fill_(off, 0)
    state["W_dec"].masked_fill_(off.unsqueeze(-1), 0)


def _changed(adapters: AdapterSet, state: dict[str, Tensor], done: dict[str, Any]) -> AdapterSet:
    """A set of these tensors, whose recipe tells what was done; what was measured before is not true of it."""
    recipe = adapters.info.recipe
    recipe = {**recipe, INTERVENTIONS: [*recipe.get(INTERVENTIONS, []), done]}
    return AdapterSet.from_state(state, dataclasses.replace(adapters.info, recipe=recipe, measured={}))


def _about(group: FeatureGroup) -> dict[str, Any]:
    return {"name": group.name, "n_features": len(group), "rule": dict(group.rule)}


def _finite(factor: float) -> float:
    if not math.isfinite(factor):
        raise AdapterSetError(f"A factor must be a finite number. Got {factor}.")
    return factor
