"""Overlaps in a few numbers: by hand, and the interval of a mean as that of the normal distribution."""

from __future__ import annotations

import numpy as np
import pytest

from tc_adapters_lens.evaluation.bootstrap import Bootstrap
from tc_adapters_lens.evaluation.overlap import EDGES, summarise_overlap

NAN = float("nan")


def test_figures_by_hand() -> None:
    target = np.array([[1.0, 0.5, NAN, 0.15], [NAN, NAN, NAN, NAN], [0.0, 0.05, 3 / 20, 1.0]])
    base = np.where(np.isnan(target), NAN, 0.25)
    found = summarise_overlap({"target": target, "base": base}, Bootstrap(100))
    layers, overall = found["target"]
    assert [layer.n_features for layer in layers] == [3, 0, 4]
    assert layers[0].mean.value == pytest.approx(1.65 / 3)
    assert layers[0].mean.interval is None  # of three features
    assert (layers[0].median, layers[2].median) == (0.5, pytest.approx(0.1))
    assert (layers[1].mean, layers[1].median, layers[1].histogram) == (None, None, [0] * 20)
    bins = np.zeros((2, 20), int)
    bins[0, [19, 10, 3]] = 1  # 0.15 is where the fourth bin begins, 1 is in the last
    bins[1, [0, 1, 3, 19]] = 1
    assert (layers[0].histogram, layers[2].histogram) == (bins[0].tolist(), bins[1].tolist())
    assert overall.n_features == 7
    assert overall.mean.value == pytest.approx((1.65 + 1.2) / 7)
    assert overall.histogram == bins.sum(0).tolist()
    assert found["base"][1].histogram[5] == 7
    assert len(EDGES) == 21
    assert (EDGES[0], EDGES[3], EDGES[-1]) == (0, 3 / 20, 1)


def test_interval_is_over_features() -> None:
    """500 features a layer, uniform: 95% of the means lie within 1.96 * sqrt(1 / 12 / 500)."""
    overlap = np.random.default_rng(0).random((2, 600))
    overlap[:, :100] = NAN
    layers, overall = summarise_overlap({"target": overlap}, Bootstrap(2000, seed=1))["target"]
    half = 1.96 * np.sqrt(1 / 12 / 500)
    for summary, width in ((layers[0], half), (layers[1], half), (overall, half / np.sqrt(2))):
        low, high = summary.mean.interval
        assert (high - low) / 2 == pytest.approx(width, rel=0.1)
        assert low < summary.mean.value < high
    assert overall.mean.value == pytest.approx(np.nanmean(overlap))


def test_models_are_resampled_together() -> None:
    """The same features of both: what is half of the target has an interval of half the width."""
    overlap = np.random.default_rng(2).random((2, 40))
    found = summarise_overlap({"target": overlap, "base": overlap / 2}, Bootstrap(100))
    for target, base in zip(found["target"][0], found["base"][0], strict=True):
        assert base.mean.interval == pytest.approx([end / 2 for end in target.mean.interval])
