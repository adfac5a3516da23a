"""Activation overlaps of many features in a few numbers: mean with interval, median, histogram."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

from tc_adapters_lens.evaluation.bootstrap import MIN_SEQUENCES, Bootstrap, estimate, ratio
from tc_adapters_lens.evaluation.estimate import Estimate

__all__ = ["EDGES", "OverlapSummary", "summarise_overlap"]

EDGES = tuple(bin_ / 20 for bin_ in range(21))
"""Of histograms: twenty bins, each with its lower edge, the last also with 1."""


@dataclass(frozen=True)
class OverlapSummary:
    """Some features' overlaps with one model.

    n_features: features measured.
    mean: its interval is over features, and left out of fewer than 10; None of no features.
    median: None of no features.
    histogram: features in each bin of EDGES.
    """

    n_features: int
    mean: Estimate | None
    median: float | None
    histogram: list[int]


def summarise_overlap(
    overlap: Mapping[str, Float64[np.ndarray, "n_layers n_features"]], bootstrap: Bootstrap
) -> dict[str, tuple[list[OverlapSummary], OverlapSummary]]:
    """Per model: every layer's features, and all of them.

    Args:
        overlap: by model, 0 to 1, NaN where a feature is not measured; the same features of all models, which are
            resampled together.
        bootstrap: of the intervals.
    """
    values = np.stack(list(overlap.values()), axis=-1)
    n_layers, n_features, _ = values.shape
    layers = [_Resampled.of(values[layer], layer * n_features, bootstrap) for layer in range(n_layers)]
    overall = _Resampled(
        np.concatenate([layer.values for layer in layers]),
        np.sum([layer.totals for layer in layers], axis=0),
        np.sum([layer.counts for layer in layers], axis=0),
    )
    return {
        name: ([layer.summary(model) for layer in layers], overall.summary(model)) for model, name in enumerate(overlap)
    }


@dataclass(frozen=True)
class _Resampled:
    """Features and their bootstrap sums.

    values: of the features that are measured.
    totals, counts: row 0 their sums over features and how many these are, every other row a replicate's.
    """

    values: Float64[np.ndarray, "n_measured n_models"]
    totals: Float64[np.ndarray, "n_rows n_models"]
    counts: Float64[np.ndarray, " n_rows"]

    @classmethod
    def of(cls, values: Float64[np.ndarray, "n_features n_models"], first: int, bootstrap: Bootstrap) -> _Resampled:
        """One layer's; `first` is the number of its first feature among those of all layers."""
        measured = np.flatnonzero(~np.isnan(values).any(1))
        values = values[measured]
        weights = np.zeros((1 + bootstrap.n_replicates, 0))
        if len(measured):
            weights = bootstrap.weights((first + measured).tolist())
        return cls(values, weights @ values, weights.sum(1))

    def summary(self, model: int) -> OverlapSummary:
        """Of one model."""
        values = self.values[:, model]
        n = len(values)
        rows = ratio(self.totals[:, model], self.counts)
        return OverlapSummary(
            n_features=n,
            mean=estimate(rows if n >= MIN_SEQUENCES else rows[:1]),
            median=float(np.median(values)) if n else None,
            histogram=np.histogram(values, EDGES)[0].tolist(),
        )
