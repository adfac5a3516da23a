"""Shares and their intervals, against Wilson's definition."""

from __future__ import annotations

import math

import pytest

from tc_adapters_lens.evaluation.estimate import Estimate
from tc_adapters_lens.evaluation.shares import share

Z = 1.959963984540054


@pytest.mark.parametrize(("k", "n"), [(0, 1), (1, 1), (3, 10), (0, 250), (250, 250), (21, 250), (602, 7000), (1, 3)])
def test_ends_are_where_the_normal_test_stops_rejecting(k, n) -> None:
    found = share(k, n)
    assert found is not None
    assert found.low is not None
    assert found.high is not None
    assert found.value == k / n
    assert 0 <= found.low <= found.value <= found.high <= 1
    for end in (found.low, found.high):  # |k/n - p| = z sqrt(p (1 - p) / n) is what defines them
        assert abs(k / n - end) == pytest.approx(Z * math.sqrt(end * (1 - end) / n), abs=1e-9)


def test_a_case_worked_by_hand() -> None:
    # p 0.2, n 50: centre (0.2 + 3.8415/100) / (1 + 3.8415/50) = 0.238415 / 1.0768292 = 0.221405;
    # half 1.96 sqrt(0.2 * 0.8 / 50 + 3.8415 / 10000) / 1.0768292 = 1.96 * 0.0598669 / 1.0768292 = 0.108965
    found = share(10, 50)
    assert found is not None
    assert (found.low, found.high) == (pytest.approx(0.112440, abs=1e-5), pytest.approx(0.330370, abs=1e-5))


def test_as_statsmodels_has_it() -> None:
    proportion = pytest.importorskip("statsmodels.stats.proportion")
    for k, n in ((0, 40), (7, 40), (40, 40), (86, 1000)):
        low, high = proportion.proportion_confint(k, n, method="wilson")
        found = share(k, n)
        assert found is not None
        assert (found.low, found.high) == (pytest.approx(low, abs=1e-12), pytest.approx(high, abs=1e-12))


def test_a_share_of_nothing_is_none() -> None:
    assert share(0, 0) is None
    assert share(1, 2) == Estimate(0.5, pytest.approx(0.0945, abs=1e-4), pytest.approx(0.9055, abs=1e-4))
