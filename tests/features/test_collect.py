"""Collecting features, beside loops over single activations; windows, order, merging, sampling."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from tc_adapters_lens.errors import DataError
from tc_adapters_lens.features.collect import Collector, Keeping, collect
from tc_adapters_lens.features.kept import Kept, activation_keys, random_keys
from tc_adapters_lens.features.records import HISTOGRAM_EDGES, KeptExamples, LayerFeatures, TokenEffects
from tc_adapters_lens.features.text import Text

N_FEATURES, KEEPING = 16, Keeping(k=3, before=4, after=2, seed=7)
EFFECTS = TokenEffects(np.zeros((N_FEATURES, 1), np.int32), np.zeros((N_FEATURES, 1), np.float32))


def make_text(lengths=(5, 9, 3, 12, 7, 8), seed=0) -> Text:
    rng = np.random.default_rng(seed)
    n = sum(lengths)
    return Text(
        tokens=rng.integers(0, 50, n),
        offsets=np.cumsum([0, *lengths]),
        counted=rng.random(n) < 0.8,
        regions=rng.integers(0, 2, n),
        template=rng.integers(0, 3, n),
        groups=rng.integers(0, 2, len(lengths)),
        region_names=("prompt", "answer"),
        template_names=("content", "a", "b"),
        group_names=("math", "code"),
    )


def make_acts(text: Text, density=0.2, n_features=N_FEATURES, seed=1) -> torch.Tensor:
    """Activations of every flat position, `[n_tokens n_features]`; some equal, some negative; feature 0 is silent."""
    generator = torch.Generator().manual_seed(seed)
    shape = len(text.tokens), n_features
    acts = torch.rand(shape, generator=generator) * 8
    acts = torch.where(torch.rand(shape, generator=generator) < density, (acts * 4).round() / 4 + 0.25, -0.5)
    acts[:, 0] = 0
    return acts


def collected(text: Text, acts: torch.Tensor, batches=None, keeping=KEEPING, n_features=N_FEATURES) -> Collector:
    collector = Collector(1, n_features, text, keeping)
    for chosen in text.batches(2) if batches is None else batches:
        batch = text.batch(chosen, "cpu")
        padded = acts[batch.positions]
        padded[~batch.inside] = 99.0  # what stands at padding must not matter
        collector.add(0, padded, batch)
    return collector


def result(collector: Collector, effects: TokenEffects = EFFECTS) -> LayerFeatures:
    return collector.features(0, effects, effects)


def windows(kept: KeptExamples, width: int) -> np.ndarray:
    dense = np.zeros((kept.positions.size, width), np.float32)
    for example, (start, end) in enumerate(itertools.pairwise(kept.starts)):
        dense[example, kept.offsets[start:end]] = kept.values[start:end]
    return dense.reshape(*kept.positions.shape, width)


def naive_window(text: Text, acts: torch.Tensor, flat: int, feature: int) -> list[float]:
    sequence = np.searchsorted(text.offsets, flat, side="right") - 1
    inside = range(text.offsets[sequence], text.offsets[sequence + 1])
    around = range(flat - KEEPING.before, flat + KEEPING.after + 1)
    return [max(0.0, float(acts[p, feature])) if p in inside else 0.0 for p in around]


def test_statistics_of_every_feature():
    text = make_text()
    acts = make_acts(text)
    found = result(collected(text, acts))
    counted = np.flatnonzero(text.counted)
    groups = np.repeat(text.groups, np.diff(text.offsets))
    for feature in range(N_FEATURES):
        active = [p for p in counted if acts[p, feature] > 0]
        values = [float(acts[p, feature]) for p in active]
        assert found.n_active[feature] == len(active)
        assert found.mean[feature] == pytest.approx(sum(values) / len(values) if values else 0)
        assert found.maximum[feature] == max(values, default=0)
        assert found.histogram[feature].tolist() == np.histogram(values, HISTOGRAM_EDGES)[0].tolist()
        for labels, counts in ((text.regions, found.regions), (groups, found.groups), (text.template, found.template)):
            assert counts[feature].tolist() == [sum(labels[p] == i for p in active) for i in range(counts.shape[1])]


def test_top_examples_are_the_highest_and_of_equal_ones_the_first():
    text = make_text()
    acts = make_acts(text)
    top = result(collected(text, acts)).top
    for feature in range(N_FEATURES):
        active = [p for p in np.flatnonzero(text.counted) if acts[p, feature] > 0]
        best = sorted(active, key=lambda p: (-acts[p, feature], p))[: KEEPING.k]
        assert top.positions[feature].tolist() == best + [-1] * (KEEPING.k - len(best))
        assert top.activations[feature, : len(best)].tolist() == [float(acts[p, feature]) for p in best]


@pytest.mark.parametrize("kind", ["top", "sampled"])
def test_windows_end_with_their_sequence(kind):
    text = make_text()
    acts = make_acts(text)
    kept = getattr(result(collected(text, acts)), kind)
    dense = windows(kept, KEEPING.window)
    checked = 0
    for feature, example in zip(*np.nonzero(kept.positions >= 0), strict=True):
        expected = naive_window(text, acts, kept.positions[feature, example], feature)
        assert dense[feature, example].tolist() == expected
        checked += 1
    assert checked > 30


def test_samples_are_active_counted_positions_in_order_without_repetition():
    text = make_text()
    acts = make_acts(text)
    found = result(collected(text, acts))
    for feature, positions in enumerate(found.sampled.positions):
        there = positions[positions >= 0]
        assert len(there) == min(KEEPING.k, found.n_active[feature])
        assert (positions[len(there) :] == -1).all()
        assert (np.diff(there) > 0).all()
        assert (acts[there, feature] > 0).all()
        assert text.counted[there].all()


def test_samples_are_uniform():
    """One feature active at 40 positions, of which 4 are drawn with each of 1,000 seeds: each is drawn 100 times on
    average, with standard deviation sqrt(1000 * 0.1 * 0.9) = 9.5; pairs of
    neighbours are drawn 1000 * 4*3/(40*39) = 7.7 times on average."""
    n_drawn, n_pairs = np.zeros(40), 0
    features, positions = torch.zeros(40, dtype=torch.int64), torch.arange(40) + 1000
    for seed in range(1000):
        keys = random_keys(seed, 0, features, positions)
        drawn = keys.topk(4).indices
        n_drawn[drawn] += 1
        n_pairs += int((drawn.sort().values.diff() == 1).sum())
    assert abs(n_drawn - 100).max() < 4 * 9.5
    assert ((n_drawn - 100) ** 2).sum() / 90 < 68  # chi squared, 39 degrees of freedom: 0.3% above 68
    assert abs(n_pairs / 39 - 7.7) < 1.0


def test_random_keys_of_features_layers_and_seeds_differ():
    positions = torch.arange(2000)
    zeros = torch.zeros_like(positions)
    ranks = [
        random_keys(seed, layer, zeros + feature, positions) >> 32
        for seed, layer, feature in [(0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0)]
    ]
    for one, other in itertools.combinations(ranks, 2):
        assert abs(np.corrcoef(one, other)[0, 1]) < 0.08  # 3.5 standard deviations of independent ones
    assert all((rank >= 0).all() and (rank < 2**31).all() for rank in ranks)


def test_keys_hold_rank_and_position():
    values = torch.tensor([0.5, 2.0, 2.0, 1e-30])
    positions = torch.tensor([3, 9, 4, 2**32 - 1])
    keys = activation_keys(values, positions)
    assert keys.argsort(descending=True).tolist() == [2, 1, 0, 3]
    kept = Kept(1, 4, 1, "cpu")
    kept.add(torch.zeros(4, dtype=torch.int64), keys, lambda entries: values[entries].unsqueeze(1))
    found = kept.examples(0, by_position=False)
    assert found.positions.tolist() == [[4, 9, 3, 2**32 - 1]]
    assert found.activations.tolist() == [[2.0, 2.0, 0.5, values[3].item()]]


@pytest.mark.parametrize("density", [0.02, 0.5, 1.0])
def test_order_and_size_of_batches_do_not_matter(density):
    text = make_text(lengths=tuple(range(3, 30)))
    acts = make_acts(text, density)
    one_by_one = [[sequence] for sequence in range(len(text))]
    expected = collected(text, acts, one_by_one).state()
    for batches in (text.batches(5), one_by_one[::-1], [list(range(len(text)))]):
        found = collected(text, acts, batches)
        for name, tensor in found.state().items():
            if not name.endswith(("keys", "windows")):
                assert torch.equal(tensor, expected[name]), name
        assert_equal_examples(result(found), result(collected(text, acts, one_by_one)))


def test_parts_merged_are_the_whole():
    text = make_text(lengths=tuple(range(3, 30)))
    acts = make_acts(text)
    batches = text.batches(4)
    whole = result(collected(text, acts, batches))
    parts = [collected(text, acts, batches[part::3]) for part in range(3)]
    for other in parts[1:]:
        parts[0].merge(other)
    merged = result(parts[0])
    assert_equal_examples(merged, whole)
    for name in ("n_active", "mean", "maximum", "histogram", "regions", "groups", "template"):
        assert np.array_equal(getattr(merged, name), getattr(whole, name)), name


def test_a_state_goes_on():
    text = make_text()
    acts = make_acts(text)
    whole = result(collected(text, acts))
    begun = collected(text, acts, text.batches(2)[:1])
    resumed = collected(text, acts, [])
    resumed.load_state({name: tensor.clone() for name, tensor in begun.state().items()})
    for chosen in text.batches(2)[1:]:
        batch = text.batch(chosen, "cpu")
        resumed.add(0, acts[batch.positions], batch)
    assert_equal_examples(result(resumed), whole)
    assert np.array_equal(result(resumed).mean, whole.mean)


def assert_equal_examples(found: LayerFeatures, expected: LayerFeatures) -> None:
    for kind in ("top", "sampled"):
        for name, array in getattr(expected, kind)._asdict().items():
            assert np.array_equal(getattr(getattr(found, kind), name), array), (kind, name)


def test_wide_layers_are_looked_at_in_parts(monkeypatch):
    text = make_text()
    acts = make_acts(text)
    whole = result(collected(text, acts))
    monkeypatch.setattr("tc_adapters_lens.features.collect._AT_ONCE", 3 * N_FEATURES)
    assert_equal_examples(result(collected(text, acts)), whole)
    assert np.array_equal(result(collected(text, acts)).regions, whole.regions)


def test_bfloat16_activations_are_kept_exactly():
    text = make_text()
    acts = make_acts(text)  # multiples of 1/4 below 9: bfloat16 has them all
    assert_equal_examples(result(collected(text, acts.bfloat16())), result(collected(text, acts)))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_activations_that_are_not_finite(bad):
    text = make_text()
    acts = make_acts(text)
    acts[np.flatnonzero(text.counted)[3], 5] = bad
    with pytest.raises(DataError, match=r"must be finite\. Got NaN or infinity in layer 0"):
        collected(text, acts)


def test_a_text_without_labels():
    text = make_text()
    plain = Text(text.tokens, text.offsets, text.counted)
    acts = make_acts(text)
    found = result(collected(plain, acts))
    assert found.regions.shape == (N_FEATURES, 0)
    assert np.array_equal(found.n_active, result(collected(text, acts)).n_active)
    assert list(plain.counts()) == [(), (), ()]


def test_counts_of_a_text():
    text = Text(
        tokens=np.arange(5),
        offsets=np.array([0, 2, 5]),
        counted=np.array([1, 1, 1, 0, 1], bool),
        regions=np.array([0, 1, 0, 1, 1]),
        groups=np.array([1, 0]),
        region_names=("prompt", "answer"),
        group_names=("math", "code"),
    )
    assert list(text.counts()) == [(2, 2), (2, 2), ()]


def test_nothing_active():
    text = make_text()
    collector = collected(text, torch.zeros(len(text.tokens), N_FEATURES))
    assert not collector.any_active
    assert (result(collector).top.positions == -1).all()


@pytest.mark.parametrize("attached", [True, False])
def test_activations_of_a_model_are_those_of_its_cache(attached, tiny_adapters):
    """Every sequence by itself, unpadded, through run_with_cache."""
    model, adapters = tiny_adapters
    text = make_text()
    name = "blocks.{}.mlp.hook_delta.hook_sae_acts_post" if attached else "blocks.{}.mlp.hook_post"
    hooks = [name.format(layer) for layer in range(model.cfg.n_layers)]
    keeping = Keeping(k=2, before=3, after=1)
    width = adapters.n_features if attached else model.cfg.d_mlp
    collector = Collector(len(hooks), width, text, keeping)
    expected = [[] for _ in hooks]
    with model.adapters(adapters) if attached else model.mode("target"):
        batches = (text.batch(chosen, "cpu") for chosen in text.batches(3))
        assert sum(collect(model, hooks, batches, collector)) == len(text)
        for start, end in itertools.pairwise(text.offsets):
            _, cache = model.run_with_cache(torch.from_numpy(text.tokens[None, start:end]))
            for layer, hook in enumerate(hooks):
                expected[layer].append(cache[hook][0])
    effects = TokenEffects(np.zeros((width, 1), np.int32), np.zeros((width, 1), np.float32))
    for layer, acts in enumerate(map(torch.cat, expected)):
        found = collector.features(layer, effects, effects)
        counted = acts[text.counted].clamp(min=0)
        np.testing.assert_allclose(found.maximum, counted.amax(0), atol=2e-6)
        np.testing.assert_allclose(found.mean * np.maximum(found.n_active, 1), counted.sum(0), atol=1e-4)
        assert found.n_active.sum() > 100
    with pytest.raises(Exception, match="not_there"):
        list(collect(model, ["blocks.0.not_there"], [text.batch([0], "cpu")], collector))
