"""The highest values of every feature, beside sorting all of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tc_adapters_lens.features import ragged_top
from tc_adapters_lens.features.ragged_top import RaggedTop

INF = float("inf")


def naive(values: np.ndarray, n: np.ndarray, positions: np.ndarray) -> list[list[int]]:
    """Positions by value, highest first, then by position."""
    return [
        [positions[row] for row in sorted(range(len(values)), key=lambda row: (-column[row], positions[row]))][:wanted]
        for column, wanted in zip(values.T, n, strict=True)
    ]


def held(top: RaggedTop, n_features: int) -> list[list[int]]:
    features, positions = (tensor.numpy() for tensor in top.positions())
    assert (np.diff(features) >= 0).all()
    return [positions[features == feature].tolist() for feature in range(n_features)]


def fed(values: np.ndarray, n: np.ndarray, positions: np.ndarray, sizes: list[int]) -> RaggedTop:
    """Given the rows in parts of these sizes."""
    top = RaggedTop(torch.from_numpy(n))
    for rows, at in zip(torch.from_numpy(values).split(sizes), torch.from_numpy(positions).split(sizes), strict=True):
        top.add(rows, at)
    return top


@pytest.mark.parametrize("waiting", [0, 40, 2**20])
@pytest.mark.parametrize("seed", range(8))
def test_random_values_with_ties_and_infinities(seed, waiting, monkeypatch):
    monkeypatch.setattr(ragged_top, "_LEAST_WAITING", waiting)
    monkeypatch.setattr(ragged_top, "_AT_ONCE", 64)
    rng = np.random.default_rng(seed)
    n_rows, n_features = int(rng.integers(1, 90)), int(rng.integers(1, 12))
    values = rng.normal(size=(n_rows, n_features)).round(seed % 3).astype(np.float32)
    special = np.array([INF, -INF, 0.0, -0.0, 1e-45, -1e-45, 3.4e38, -3.4e38], np.float32)
    values = np.where(rng.random(values.shape) < 0.3, rng.choice(special, values.shape), values)
    n = rng.integers(0, n_rows + 1, n_features)
    n[rng.integers(n_features)] = rng.choice([0, 1, n_rows])
    positions = rng.permutation(np.append(rng.choice(10**6, n_rows - 1, replace=False), 2**32 - 1))
    parts = np.diff([0, *np.sort(rng.integers(0, n_rows + 1, 4)), n_rows]).tolist()
    assert held(fed(values, n, positions, parts), n_features) == naive(values, n, positions)


def test_order_of_rows_does_not_matter():
    rng = np.random.default_rng(3)
    values, n = rng.integers(-2, 3, (60, 7)).astype(np.float32), np.array([0, 1, 5, 20, 59, 60, 30])
    positions, order = np.arange(60), rng.permutation(60)
    assert held(fed(values, n, positions, [60]), 7) == held(fed(values[order], n, positions[order], [1] * 60), 7)


def test_all_values_minus_infinity_keep_the_earliest():
    values = np.full((5, 2), -INF, np.float32)
    assert held(fed(values, np.array([2, 5]), np.arange(5)[::-1].copy(), [2, 3]), 2) == [[0, 1], [0, 1, 2, 3, 4]]


def test_fewer_values_than_asked_for_and_none():
    values = np.array([[1, 2], [3, -4]], np.float32)
    assert held(fed(values, np.array([3, 1]), np.array([7, 9]), [2]), 2) == [[9, 7], [7]]
    assert held(RaggedTop(torch.tensor([2, 0])), 2) == [[], []]
    assert held(fed(values, np.array([0, 0]), np.array([7, 9]), [1, 1]), 2) == [[], []]


def test_half_precision_sorts_as_it_is():
    values = torch.tensor([[0.1], [0.1001], [0.2]], dtype=torch.bfloat16)  # the first two are equal in bfloat16
    top = RaggedTop(torch.tensor([2]))
    top.add(values, torch.tensor([2, 1, 0]))
    assert held(top, 1) == [[0, 1]]


def test_state_goes_on_to_the_same():
    rng = np.random.default_rng(4)
    values, n, positions = rng.normal(size=(50, 6)).astype(np.float32), np.array([0, 1, 3, 9, 27, 50]), np.arange(50)
    begun, resumed = fed(values[:31], n, positions[:31], [31]), RaggedTop(torch.from_numpy(n))
    resumed.load_state(begun.state())
    resumed.add(torch.from_numpy(values[31:]), torch.from_numpy(positions[31:]))
    assert held(resumed, 6) == naive(values, n, positions)


def test_what_waits_does_not_grow_with_the_values(monkeypatch):
    monkeypatch.setattr(ragged_top, "_LEAST_WAITING", 100)
    monkeypatch.setattr(ragged_top, "_AT_ONCE", 80)
    top = RaggedTop(torch.full((8,), 5))
    generator = torch.Generator().manual_seed(0)
    for start in range(0, 4000, 50):
        top.add(torch.randn(50, 8, generator=generator), torch.arange(start, start + 50))
        assert sum(len(ranks) for _, ranks in top._waiting) <= 100 + 80
