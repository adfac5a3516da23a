"""Which texts a feature is described and tested on."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from tc_adapters_lens.features.text import Text
from tc_adapters_lens.judge.detection_texts import N_EXEMPLARS, N_TEXTS, FeatureTexts, texts_of_layer
from tc_adapters_lens.judge.similar import hardness, token_profiles
from tests.judge.planted import at, on_tokens, planted_store, random_text, sequence_of

TEXT = random_text()
N_FEATURES = 30
BOTH = ("top", "sampled")
QUIET = "fewer than 5 random texts in which it is quiet"


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return planted_store(tmp_path_factory.mktemp("planted") / "features", TEXT, [on_tokens(TEXT, N_FEATURES)] * 2)


def texts(store, layer=0, features=range(N_FEATURES), kinds=BOTH, seed=42, negatives="random") -> list[FeatureTexts]:
    return list(texts_of_layer(store, layer, np.array(list(features)), kinds, seed, negatives))


def where(shown) -> set[tuple[int, int]]:
    return {(shown.sequence, position) for position in range(shown.start, shown.stop)}


@pytest.mark.parametrize("negatives", ["random", "similar"])
def test_texts_are_what_they_are_said_to_be(store, negatives):
    """Feature i is active on token 10 + i, and nowhere else."""
    found = texts(store, negatives=negatives)
    assert [one.feature for one in found] == list(range(N_FEATURES))
    for one in found:
        assert not one.left_out
        assert 1 <= len(one.exemplars) <= N_EXEMPLARS
        assert set(one.sortings) == set(BOTH)
        word = f" w{10 + one.feature}"
        seen = {shown.sequence for shown in one.exemplars}
        assert all(f"<<{word}>>" in shown.with_marks for shown in one.exemplars)
        for sorting in one.sortings.values():
            assert sum(sorting.active) == N_TEXTS == len(sorting.texts) - N_TEXTS
            for shown, active in zip(sorting.texts, sorting.active, strict=True):
                assert (word in shown.tokens) == active
                assert shown.sequence not in seen
                assert not any(shown.marked)
                assert "<<" not in shown.plain
            for one_text, other in itertools.combinations(sorting.texts, 2):
                assert not where(one_text) & where(other)


def test_exemplars_and_held_out_texts_are_the_highest(store):
    """Of each of the first 15 sequences among the 20 highest examples, those of 5 drawn ones are held out."""
    drawn = set()
    for one in texts(store):
        top = store[0, one.feature].top
        sequences = list(dict.fromkeys(example.sequence for example in top))[:15]
        held_out = [shown for shown, active in zip(*_parts(one, "top"), strict=True) if active]
        assert {shown.sequence for shown in held_out} <= set(sequences)
        for shown in held_out:
            best = next(example for example in top if example.sequence == shown.sequence)
            assert (shown.start, len(shown.tokens)) == (best.start, len(best.tokens))
        rest = [example for example in top if example.sequence in set(sequences) - {s.sequence for s in held_out}]
        expected = [(example.sequence, example.start) for example in rest[:10]]
        assert [(shown.sequence, shown.start) for shown in one.exemplars] == expected
        drawn |= {sequences.index(shown.sequence) for shown in held_out}
    assert drawn == set(range(15))  # 30 * 5 draws of 15: none is never drawn


def _parts(one, kind):
    return one.sortings[kind].texts, one.sortings[kind].active


def test_sampled_texts_are_drawn_from_all_uniform_examples(store):
    """Which of the 20, in the order of the text, are taken: on average the middle. 5 of about 14, 30 times."""
    places = []
    for one in texts(store):
        starts = [(example.sequence, example.start) for example in store[0, one.feature].sampled]
        for shown, active in zip(*_parts(one, "sampled"), strict=True):
            if active:
                places.append(starts.index((shown.sequence, shown.start)) / (len(starts) - 1))
    assert len(places) == 150
    assert abs(np.mean(places) - 0.5) < 4 * 0.3 / np.sqrt(150)


def test_order_says_nothing(store):
    """Of 2 * 2 * 30 sortings each place is active in half: 60, with standard deviation sqrt(120 / 4) = 5.5."""
    rows = [one.sortings[kind].active for layer in (0, 1) for one in texts(store, layer) for kind in BOTH]
    assert abs(np.sum(rows, axis=0) - 60).max() < 4 * 5.5
    assert len(set(rows)) > 80


def test_a_features_texts_depend_on_nothing_but_seed_layer_and_feature(store):
    for negatives in ("random", "similar"):
        whole = texts(store, negatives=negatives)
        assert texts(store, negatives=negatives, features=[7, 3]) == [whole[7], whole[3]]
        (alone,) = texts(store, negatives=negatives, features=[3], kinds=("sampled",))
        assert alone.sortings == {"sampled": whole[3].sortings["sampled"]}
        assert texts(store, negatives=negatives, seed=1)[3] != whole[3]
        other_layer = texts(store, 1, negatives=negatives)[3]  # of the same activations
        assert other_layer.sortings["top"].texts != whole[3].sortings["top"].texts


def test_random_texts_are_drawn_from_all_quiet_windows(store):
    places = {(shown.sequence, shown.start) for one in texts(store) for shown, active in _sorted(one) if not active}
    assert len(places) > 80  # of 300 windows, 30 * 5 draws


def _sorted(one):
    return zip(*_parts(one, "top"), strict=True)


def _holds(window, shown):
    sequence, start, stop = window
    return sequence == shown.sequence and start <= shown.start and shown.stop <= stop


def test_lengths_tell_nothing_and_a_cut_text_keeps_its_peak(tmp_path):
    """Short sequences; features active from the fourth position on, so that only short windows are quiet."""
    offsets = np.arange(0, 2401, 40)
    text = Text(TEXT.tokens[:2400], offsets, np.ones(2400, bool))
    within = np.tile(np.arange(40), 60)
    sequence = np.repeat(np.arange(60), 40)
    acts = at((sequence % 2 == 0) & (within % 9 == 4)) + at((sequence % 2 == 1) & (within == 39) & (sequence % 3 > 0))
    store = planted_store(tmp_path / "features", text, [acts[:, None]])
    n_cut = 0
    for seed in range(20):
        (one,) = texts(store, features=[0], seed=seed)
        for kind in one.sortings:
            pairs = list(zip(*_parts(one, kind), strict=True))
            lengths = [sorted(len(shown.tokens) for shown, active in pairs if active is side) for side in (True, False)]
            assert lengths[0] == lengths[1]
            for shown, active in pairs:
                there = acts[40 * shown.sequence + shown.start : 40 * shown.sequence + shown.stop]
                assert (there > 0).any() == active
                n_cut += any(
                    _holds(window, shown) and window[2] - window[1] > len(shown.tokens) for window in store.windows
                )
    assert n_cut > 20


def test_what_is_left_out_is_said(tmp_path):
    """Active everywhere; in five sequences; in six; at one position of each of eight sequences."""
    sequence = sequence_of(TEXT)
    first = np.append(True, np.diff(sequence) > 0)
    acts = [
        at(sequence >= 0),
        at((sequence < 5) & (TEXT.tokens < 200)),
        at((sequence < 6) & (TEXT.tokens < 200)),
        at((sequence < 8) & first),
    ]
    store = planted_store(tmp_path / "features", TEXT, [np.stack(acts, 1)])
    everywhere, five, six, eight = texts(store, features=range(4))
    (why,) = everywhere.left_out
    assert why == QUIET
    assert five.left_out == ("its highest examples are of fewer than 6 sequences",)
    for one in (everywhere, five):
        assert not one.sortings
        assert not one.exemplars
    assert {shown.sequence for shown in six.exemplars} | {s.sequence for s, active in _sorted(six) if active} == {
        *range(6)
    }
    assert len({shown.sequence for shown in six.exemplars}) == 1
    assert set(eight.sortings) == {"top", "sampled"}  # 5 of 8 sequences are left, three describe
    (alone,) = texts(store, features=[0], kinds=("top",))
    assert alone.left_out == everywhere.left_out


def test_too_few_sampled_texts(tmp_path):
    """7 sequences, of which 5 are held out; the uniform sample of 20 from 1,000 positions in the two that describe
    and 5 in the others has few of these."""
    sequence = sequence_of(TEXT)
    last = np.append(np.diff(sequence) > 0, True)
    long = (sequence < 2) | ((sequence < 7) & last)
    heights = at(long)
    heights[(sequence < 7) & last] = 9
    store = planted_store(tmp_path / "features", TEXT, [heights[:, None]])
    found = [texts(store, features=[0], seed=seed)[0] for seed in range(6)]
    without = [one for one in found if "sampled" not in one.sortings]
    assert without
    for one in without:
        assert "top" in one.sortings
        assert one.left_out == ("fewer than 5 sampled texts that the description did not see",)


def test_neurons_are_quiet_below_a_tenth_of_their_maximum(tmp_path):
    """Above zero everywhere: 0.1 to 0.3 where quiet, 4 to 8 on a token of its own; the maximum is near 8."""
    rng = np.random.default_rng(0)
    acts = 4 * on_tokens(TEXT, 4) + rng.uniform(0.1, 0.3, (len(TEXT.tokens), 4))
    neurons = {
        "model": "target",
        "hook": "blocks.{layer}.mlp.hook_post",
        "adapters": None,
        "adapters_fingerprint": None,
    }
    store = planted_store(tmp_path / "neurons", TEXT, [acts], **neurons)
    for one in texts(store, features=range(4), kinds=("top",)):
        for shown, active in _sorted(one):
            assert (f" w{10 + one.feature}" in shown.tokens) == active
    adapters = planted_store(tmp_path / "features", TEXT, [acts])
    assert all(one.left_out == (QUIET,) for one in texts(adapters, features=range(4)))


def test_profiles_are_activations_summed_by_token(tmp_path):
    """Features on three tokens each, of which the first makes them most active."""
    rng = np.random.default_rng(5)
    acts = [at(TEXT.tokens == a) + at(np.isin(TEXT.tokens, (b, c))) / 4 for a, b, c in rng.integers(0, 400, (5, 3))]
    store = planted_store(tmp_path / "features", TEXT, [np.stack(acts, 1)])
    profiles = token_profiles(store, 0).to_dense().numpy()
    ids = np.unique(TEXT.tokens)
    for feature in range(5):
        summed = np.zeros(len(ids))
        found = store[0, feature]
        for example in (*found.top, *found.sampled):
            for token, activation in zip(example.tokens, example.activations, strict=True):
                summed[np.searchsorted(ids, token)] += activation
        np.testing.assert_allclose(profiles[feature], summed / np.sqrt((summed**2).sum()), rtol=1e-5, atol=1e-7)


def test_hard_windows_are_those_with_features_alike(tmp_path, monkeypatch):
    """By loops over features and windows; features are active on a few tokens each, some of them shared."""
    rng = np.random.default_rng(3)
    tokens_of = [rng.choice(40, 4, replace=False) for _ in range(12)]
    acts = np.stack([at(np.isin(TEXT.tokens, chosen), seed) for seed, chosen in enumerate(tokens_of)], 1)
    store = planted_store(tmp_path / "features", TEXT, [np.hstack([acts, np.zeros_like(acts[:, :1])])])
    loud = store.window_maxima(0) > 0
    profiles = token_profiles(store, 0).to_dense().numpy()
    chosen = np.array([2, 5, 12, 11])
    expected = np.zeros((4, loud.shape[1]))
    for row, feature in enumerate(chosen):
        for window in range(loud.shape[1]):
            others = [i for i in range(13) if loud[i, window] and i != feature]
            expected[row, window] = max((float(profiles[feature] @ profiles[i]) for i in others), default=0)
    np.testing.assert_allclose(hardness(store, 0, chosen, loud), expected, atol=1e-6)
    monkeypatch.setattr("tc_adapters_lens.judge.similar._AT_ONCE", 5)
    monkeypatch.setattr("tc_adapters_lens.judge.similar._COMPARED", 3)
    assert np.array_equal(hardness(store, 0, chosen, loud), hardness(store, 0, chosen, loud))
    np.testing.assert_allclose(hardness(store, 0, chosen, loud), expected, atol=1e-6)

    (one,) = texts(store, features=[2], kinds=("top",), negatives="similar")
    quiet = ~loud[2]
    taken = {s.sequence for s in one.exemplars} | {s.sequence for s, active in _sorted(one) if active}
    free = [i for i, window in enumerate(store.windows) if quiet[i] and window[0] not in taken]
    quiet_texts = [shown for shown, active in _sorted(one) if not active]
    for shown in quiet_texts:
        got = max(expected[0, i] for i in free if _holds(store.windows[i], shown))
        assert got > 0
        for window in store.windows[[i for i in free if expected[0, i] > got]]:  # none of these could be taken
            short = window[2] - window[1] < len(shown.tokens)
            assert short or any(s.sequence == window[0] and s is not shown for s in quiet_texts)
