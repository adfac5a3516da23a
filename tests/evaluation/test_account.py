"""The account sums up, and its models are what their names say."""

from __future__ import annotations

import numpy as np
import pytest

from tc_adapters_lens.evaluation.account import account, variant_name
from tc_adapters_lens.models.parts import PARTS

# KL of the base with these parts of the target; one row: no replicates
KL = {
    "base": 5.0,
    "base+embedding": 4.0,
    "base+attention": 4.5,
    "base+norms": 5.5,
    "base+MLP": 2.5,
    "base+unembedding": 4.25,
    "base+embedding+attention": 3.5,
    "base+embedding+attention+norms": 3.25,
    "base+embedding+attention+norms+MLP": 1.0,
    "base+embedding+attention+MLP+unembedding": 0.25,
    "base+embedding+norms+MLP+unembedding": 1.5,
    "base+attention+norms+MLP+unembedding": 0.75,
    "hybrid": 2.0,
}


def test_figures_by_hand() -> None:
    found = account(lambda name: np.array([KL[name]]), np.array([0.125]))
    assert [s.added for s in found.cumulative] == list(PARTS)
    assert [s.kl.value for s in found.cumulative] == [4, 3.5, 3.25, 1, 0]
    assert [s.recovered.value for s in found.cumulative] == [1, 0.5, 0.25, 2.25, 1]
    assert [s.added for s in found.mlps_last] == ["embedding", "attention", "norms", "unembedding", "MLP"]
    assert [s.kl.value for s in found.mlps_last] == [4, 3.5, 3.25, 2, 0]
    for steps in (found.cumulative, found.mlps_last):
        assert sum(s.recovered.value for s in steps) == KL["base"]
    assert {part: s.recovered.value for part, s in found.alone.items()} == {
        "embedding": 1,
        "attention": 0.5,
        "norms": -0.5,
        "MLP": 2.5,
        "unembedding": 0.75,
    }
    assert {part: s.kl.value for part, s in found.without.items()} == {
        "embedding": 0.75,
        "attention": 1.5,
        "norms": 0.25,
        "MLP": 2.0,
        "unembedding": 1.0,
    }
    assert found.adapters.recovered.value + found.adapters.left.value == KL["hybrid"]
    assert found.adapters.left.value == 0.125


@pytest.mark.parametrize(
    ("parts", "name"),
    [((), "base"), (("MLP",), "base+MLP"), (("norms", "embedding"), "base+embedding+norms")],
)
def test_names_do_not_depend_on_order(parts, name) -> None:
    assert variant_name(parts) == name
