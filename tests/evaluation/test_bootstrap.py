"""Intervals by the Poisson bootstrap: exact weights, known widths, and counts of rare features."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tc_adapters_lens.errors import ConfigError, DataError
from tc_adapters_lens.evaluation.bootstrap import Bootstrap, Sums, estimate, finite, ratio
from tc_adapters_lens.evaluation.estimate import Estimate


def test_weights_depend_on_seed_and_sequence_alone() -> None:
    bootstrap = Bootstrap(200, seed=3)
    together, alone = bootstrap.weights([4, 5, 6]), bootstrap.weights([5])
    assert together.shape == (201, 3)
    assert (together[0] == 1).all()
    assert (together[:, 1:2] == alone).all()
    assert not (bootstrap.weights([4]) == alone).all()
    assert not (Bootstrap(200, seed=4).weights([5]) == alone).all()


def test_weights_are_poisson_of_mean_one() -> None:
    weights = Bootstrap(1000).weights(range(200))[1:]
    assert weights.mean() == pytest.approx(1, abs=0.01)
    assert weights.var() == pytest.approx(1, abs=0.02)
    assert (weights == 0).mean() == pytest.approx(np.exp(-1), abs=0.005)


def test_sums_by_hand() -> None:
    bootstrap = Bootstrap(100)
    sums = Sums(bootstrap, "cpu")
    sums.add({"a": torch.tensor([[1.0, 2.0], [3.0, 4.0]]), "b": torch.tensor([5, 6])}, fewer={"b": 10})
    sums.add({"a": torch.tensor([[10.0, 20.0]]), "b": torch.tensor([7])}, fewer={"b": 10})
    weights = bootstrap.weights([0, 1, 2])
    assert sums.n_sequences == 3
    assert sums["a"][0].tolist() == [14, 26]
    assert np.allclose(sums["a"], weights @ np.array([[1, 2], [3, 4], [10, 20]]))
    assert sums["b"].shape == (11,)
    assert np.allclose(sums["b"], weights[:11] @ np.array([5, 6, 7]))


def test_interval_of_a_mean_is_that_of_the_normal_distribution() -> None:
    """300 values of standard deviation 2: 95% of the means lie within 1.96 * 2 / sqrt(300) = 0.226."""
    values = torch.from_numpy(np.random.default_rng(0).normal(10, 2, 300))
    sums = Sums(Bootstrap(4000), "cpu")
    sums.add({"x": values, "n": torch.ones(300)})
    found = finite(ratio(sums["x"], sums["n"]))
    assert found.value == pytest.approx(values.mean().item())
    half = 1.96 * values.std().item() / np.sqrt(300)
    assert (found.value - found.low, found.high - found.value) == pytest.approx((half, half), rel=0.08)


def test_intervals_cover_as_often_as_they_say() -> None:
    rng, covered = np.random.default_rng(1), 0
    for seed in range(200):
        sums = Sums(Bootstrap(200, seed), "cpu")
        sums.add({"x": torch.from_numpy(rng.exponential(3.0, 80)), "n": torch.ones(80)})
        found = finite(ratio(sums["x"], sums["n"]))
        covered += found.low <= 3.0 <= found.high
    assert 0.87 <= covered / 200 <= 0.99


def test_counts_of_rare_features_keep_an_interval_around_them() -> None:
    """Each of 50 features fires in one of 50 sequences: a replicate loses a share exp(-1) of them, yet 0 are dead."""
    sums = Sums(Bootstrap(500), "cpu")
    sums.add({"counts": torch.eye(50)})
    dead = (sums["counts"] == 0).sum(-1).astype(float)
    assert dead[1:].mean() == pytest.approx(50 / np.e, rel=0.05)
    found = estimate(dead)
    assert found.value == 0
    assert found.low == 0
    assert 0 < found.high < 10


def test_without_replicates_there_is_no_interval() -> None:
    sums = Sums(Bootstrap(0), "cpu")
    sums.add({"x": torch.tensor([1.0, 2.0])})
    assert estimate(sums["x"]) == Estimate(3.0)


def test_ratio_where_there_is_nothing() -> None:
    assert np.isnan(ratio(np.array([1.0]), np.array([0.0]))).all()
    assert ratio(np.ones((2, 3)), np.array([2.0, 4.0])).tolist() == [[0.5] * 3, [0.25] * 3]
    assert estimate(np.array([np.nan, 1.0])) is None
    with pytest.raises(DataError, match="must be finite"):
        finite(np.array([np.inf, 1.0]))


@pytest.mark.parametrize("n", [-1, 1, 99])
def test_too_few_replicates(n: int) -> None:
    with pytest.raises(ConfigError, match=f"at least 100 bootstrap replicates. Got {n}"):
        Bootstrap(n)


@pytest.mark.parametrize(("replicates", "n", "says"), [(0, 0, "must be sequences"), (100, 9, "at least 10 sequences")])
def test_too_few_sequences(replicates: int, n: int, says: str) -> None:
    with pytest.raises(DataError, match=says):
        Bootstrap(replicates).require(n)
    Bootstrap(0).require(1)
    Bootstrap(100).require(10)
