"""Features drawn for a judge."""

from __future__ import annotations

import numpy as np
import pytest

from tc_adapters_lens.errors import JudgeError
from tc_adapters_lens.judge.sample import sample_features
from tests.features.builder import synthetic_store


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return synthetic_store(tmp_path_factory.mktemp("sample") / "features", 3, 60, dead=0.3)


def test_only_features_that_are_active_often_enough_are_drawn(store) -> None:
    for least in (0.0, 0.001, 0.05):
        samples = sample_features(store, 1000, least, seed=1)
        assert [sample.layer for sample in samples] == [0, 1, 2]
        for sample in samples:
            alive = [feature for feature in range(60) if store[sample.layer, feature].n_active > 0]
            wanted = [feature for feature in alive if store[sample.layer, feature].frequency >= least]
            assert sample.features.tolist() == wanted  # all of them, where more are asked for than there are
            assert sample.n_eligible == len(wanted)
    assert sum(sample.n_eligible for sample in sample_features(store, 5, 0.05, 1)) < 180


def test_more_of_a_layer_are_the_same_and_more(store) -> None:
    few, many = (sample_features(store, n, 0.0, seed=7) for n in (8, 20))
    for one, other in zip(few, many, strict=True):
        assert len(one.features) == 8
        assert len(other.features) == 20
        assert {*one.features.tolist()} < {*other.features.tolist()}
        assert (np.diff(other.features) > 0).all()


def test_features_stay_drawn_when_rare_ones_are_left_out(store) -> None:
    everywhere, often = (sample_features(store, 10, least, seed=7) for least in (0.0, 0.01))
    for one, other in zip(everywhere, often, strict=True):
        still = {feature for feature in one.features.tolist() if store[one.layer, feature].frequency >= 0.01}
        assert still <= {*other.features.tolist()}


def test_seeds_and_layers_draw_differently(store) -> None:
    drawn = [sample.features.tolist() for seed in (1, 2) for sample in sample_features(store, 10, 0.0, seed)]
    assert len({tuple(features) for features in drawn}) == 6
    again = [sample.features.tolist() for sample in sample_features(store, 10, 0.0, 2)]
    assert again == drawn[3:]


def test_draws_are_uniform(store) -> None:
    counts = np.zeros(60)
    for seed in range(300):
        counts[sample_features(store, 10, 0.0, seed)[0].features] += 1
    alive = np.array([store[0, feature].n_active > 0 for feature in range(60)])
    assert not counts[~alive].any()
    share, n = 10 / alive.sum(), alive.sum()
    expected, spread = 300 * share, np.sqrt(300 * share * (1 - share))
    assert abs(counts[alive] - expected).max() < 4 * spread
    assert counts.sum() == 3000
    assert n > 30


def test_nothing_to_draw_from(store, tmp_path) -> None:
    with pytest.raises(JudgeError, match=r"active at 1\.5 of the positions.*lower --min-frequency"):
        sample_features(store, 10, 1.5, seed=1)
    silent = synthetic_store(tmp_path / "silent", 1, 5, dead=1.0)
    with pytest.raises(JudgeError, match=r"active somewhere. None of .*silent is\."):
        sample_features(silent, 10, 0.0, seed=1)
