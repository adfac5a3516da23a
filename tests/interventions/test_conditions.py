"""What is switched in which model, and what it is held against."""

from __future__ import annotations

import pytest

from tc_adapters_lens.errors import ConfigError
from tc_adapters_lens.interventions.conditions import WithControls, plan
from tc_adapters_lens.interventions.operations import biases, keep, negate, remove, scale
from tc_adapters_lens.models.feature_group import FeatureGroup
from tests.interventions.conftest import GROUP

CONTROLS = [FeatureGroup(f"some random {draw}", ((1, draw), (2, 9))) for draw in range(2)]


def test_every_condition_in_order() -> None:
    found = plan([WithControls(GROUP, CONTROLS)], scale_factors=[0.5], negate_factors=[1, 0.25])
    rows = [(c.name, c.mlps, c.against, c.draw, c.factor) for c in found]
    assert rows == [
        ("base", None, None, None, None),
        ("hybrid", "base", None, None, None),
        ("biases", "base", None, None, None),
        ("replacement", "base", None, None, None),
        ("target", "target", None, None, None),
        ("remove-some", "base", "replacement", None, None),
        ("remove-some-random-0", "base", "replacement", 0, None),
        ("remove-some-random-1", "base", "replacement", 1, None),
        ("keep-some", "base", "biases", None, None),
        ("keep-some-random-0", "base", "biases", 0, None),
        ("keep-some-random-1", "base", "biases", 1, None),
        ("scale-some-0.5", "base", "replacement", None, 0.5),
        ("scale-some-random-0-0.5", "base", "replacement", 0, 0.5),
        ("negate-some-1", "target", "target", None, 1),
        ("negate-some-random-0-1", "target", "target", 0, 1),
        ("negate-some-0.25", "target", "target", None, 0.25),
        ("negate-some-random-0-0.25", "target", "target", 0, 0.25),
    ]
    assert {c.control_of for c in found if c.draw is not None} == {"some"}
    assert {c.control_of for c in found if c.draw is None} == {None}
    names = {c.name for c in found}
    assert len(names) == len(found)
    assert {c.against for c in found} - {None} <= names


def test_adapters_of_conditions(adapters) -> None:
    by_name = {c.name: c for c in plan([WithControls(GROUP, CONTROLS)], [3], [0.5])}
    expected = {
        "base": None,
        "hybrid": None,
        "target": None,
        "biases": biases(adapters),
        "replacement": adapters,
        "remove-some": remove(adapters, GROUP),
        "keep-some-random-1": keep(adapters, CONTROLS[1]),
        "scale-some-3": scale(adapters, GROUP, 3),
        "negate-some-random-0-0.5": negate(adapters, CONTROLS[0], 0.5),
    }
    for name, wanted in expected.items():
        found = by_name[name].adapters(adapters)
        assert (found and found.fingerprint()) == (wanted and wanted.fingerprint()), name


def test_wrong_use() -> None:
    with pytest.raises(ConfigError, match="needs a group"):
        plan([])
    with pytest.raises(ConfigError, match=r"--scale must name each factor once. Got 1, 1\."):
        plan([WithControls(GROUP)], [1, 1.0])
    with pytest.raises(ConfigError, match=r"names that differ in letters or digits. Got some, Some"):
        plan([WithControls(GROUP), WithControls(FeatureGroup("Some!", ((0, 0),)))])
