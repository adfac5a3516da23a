"""Random groups to compare a group with: as many features of the same layers, about as often active."""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from tc_adapters_lens.errors import ConfigError, FeatureGroupError
from tc_adapters_lens.features.choice import group_of, rows_of
from tc_adapters_lens.features.store import FeatureStore
from tc_adapters_lens.models.feature_group import FeatureGroup

__all__ = ["random_like"]

MOST, LEAST = 20, 3  # features that each one is drawn from
DECADES = 0.1  # how far all but LEAST of them may be


def random_like(
    store: FeatureStore,
    group: FeatureGroup,
    seed: int,
    draw: int = 0,
    *,
    times: int = 1,
    exclude: Sequence[FeatureGroup] = (),
) -> FeatureGroup:
    """For each feature of a group, the most frequent first, other features of its layer: drawn uniformly, without
    replacement, from the nearest in log frequency, which are at most 20, and all but three of them within 0.1 decades.
    None is of the group, and none never active; a feature of the group that never is counts as active at half a
    position.

    Args:
        seed, draw: the same two draw the same features; draws of a seed are independent of each other.
        times: how many for each.
        exclude: groups whose features are not drawn either.
    Returns:
        "NAME random DRAW". Its rule has the mean distance in log10 frequency of a drawn feature to the one it is for,
        and both groups' mean frequencies.
    Raises:
        ConfigError: a negative seed or draw, or `times` below 1.
        FeatureGroupError: a layer has too few features to draw from, or a group is of other adapters.
    """
    if seed < 0 or draw < 0 or times < 1:
        raise ConfigError(
            f"Seed and draw must be at least 0, and times at least 1. Got {seed} and {draw}, and {times}."
        )
    rows = rows_of(store, group)
    n_active = store.column("n_active")
    frequency = np.log10(np.maximum(n_active, 0.5) / max(store.info.n_counted, 1))
    free = n_active > 0
    for other in (group, *exclude):
        free[rows_of(store, other)] = False
    rng = np.random.default_rng([seed, draw])
    layers = rows // store.info.n_features
    drawn: list[int] = []
    distances: list[float] = []
    for layer in np.unique(layers):
        own = np.repeat(rows[layers == layer], times)
        start = int(layer) * store.info.n_features
        candidates = start + np.flatnonzero(free[start : start + store.info.n_features])
        if len(candidates) < len(own):
            fix = "Narrow the groups." if times == 1 else "Narrow the groups, or draw fewer times as many."
            raise FeatureGroupError(
                f"A random group must have {len(own):,} features of layer {layer}, active ones that are not in "
                f"{', '.join(repr(other.name) for other in (group, *exclude))}. "
                f"Got {len(candidates):,} to draw from. {fix}"
            )
        for_each = own[(-frequency[own]).argsort(kind="stable")]
        found = _draw(frequency[for_each], rng.permutation(candidates), frequency, rng)
        drawn += found
        distances += np.abs(frequency[found] - frequency[for_each]).tolist()
    rule = {
        "random_like": {"name": group.name, "rule": dict(group.rule)},
        "exclude": [{"name": other.name, "rule": dict(other.rule)} for other in exclude],
        "seed": seed,
        "draw": draw,
        "times": times,
        "mean_frequency": float(n_active[drawn].mean() / max(store.info.n_counted, 1)),
        "mean_frequency_of_group": float(n_active[rows].mean() / max(store.info.n_counted, 1)),
        "mean_log10_frequency_distance": round(float(np.mean(distances)), 4),
        "n_for_never_active": int((n_active[rows] == 0).sum()) * times,
    }
    return group_of(store, f"{group.name} random {draw}", np.array(drawn), rule)


def _draw(
    wanted: Float[np.ndarray, " n"],
    candidates: Int[np.ndarray, " n_candidates"],
    frequency: Float[np.ndarray, " n_rows"],
    rng: np.random.Generator,
) -> list[int]:
    """A candidate for each log frequency that is wanted. Of equal candidates the order given decides which are near."""
    candidates = candidates[frequency[candidates].argsort(kind="stable")]
    left, values = candidates.tolist(), frequency[candidates].tolist()
    found = []
    for value in wanted.tolist():
        first = last = bisect.bisect_left(values, value)
        while last - first < min(MOST, len(left)):
            below = value - values[first - 1] if first > 0 else math.inf
            above = values[last] - value if last < len(left) else math.inf
            if last - first >= LEAST and min(below, above) > DECADES:
                break
            first, last = (first, last + 1) if above < below else (first - 1, last)
        index = int(rng.integers(first, last))
        found.append(left.pop(index))
        values.pop(index)
    return found
