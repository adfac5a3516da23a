"""Windows drawn at random, and highest activations in them, beside a loop over a real forward pass."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
import torch

from tc_adapters_lens.features.collect import Collector, Keeping, collect
from tc_adapters_lens.features.records import TokenEffects
from tc_adapters_lens.features.text import Text
from tc_adapters_lens.features.windows import draw_windows

KEEPING = Keeping(k=2, before=5, after=2, seed=7, n_windows=40)


def make_text(lengths=(5, 9, 1, 30, 7, 18, 2, 12), seed=0) -> Text:
    rng = np.random.default_rng(seed)
    n = sum(lengths)
    return Text(rng.integers(0, 50, n), np.cumsum([0, *lengths]), rng.random(n) < 0.7)


def spread(text: Text, collector: Collector, acts: torch.Tensor, batches) -> Collector:
    """Given one layer's activations of every flat position, `[n_tokens n_features]`; padding is high."""
    for chosen in batches:
        batch = text.batch(chosen, "cpu")
        padded = acts[batch.positions]
        padded[~batch.inside] = 99.0
        collector.add(0, padded, batch)
    return collector


def maxima(collector: Collector, layer: int = 0) -> np.ndarray:
    nothing = TokenEffects(
        np.zeros((collector.n_features, 0), np.int32), np.zeros((collector.n_features, 0), np.float32)
    )
    return collector.features(layer, nothing, nothing).window_maxima


def naive(text: Text, collector: Collector, acts: np.ndarray) -> np.ndarray:
    """acts: `[n_tokens n_features]`."""
    rows = []
    for sequence, start, stop in collector.windows.to_array():
        flat = text.offsets[sequence] + np.arange(start, stop)
        rows.append(np.maximum(acts[flat].max(0), 0))
    return np.array(rows).T


def test_windows_are_drawn_from_counted_positions():
    text = make_text()
    drawn = draw_windows(text, 40, 5, 2, seed=1).to_array()
    assert drawn.shape == (40, 3)
    counted = {tuple(row) for row in _around(text, np.flatnonzero(text.counted))}
    assert {tuple(row) for row in drawn} <= counted
    flat = text.offsets[drawn[:, 0]] + drawn[:, 1]
    assert (np.diff(flat) >= 0).all()
    assert np.array_equal(drawn, draw_windows(text, 40, 5, 2, seed=1).to_array())
    assert not np.array_equal(drawn, draw_windows(text, 40, 5, 2, seed=2).to_array())
    everything = draw_windows(text, 10_000, 5, 2, seed=1).to_array()
    assert np.array_equal(everything, _around(text, np.flatnonzero(text.counted)))
    assert len(draw_windows(dataclasses.replace(text, counted=~text.counted & False), 8, 5, 2, 0)) == 0


def _around(text: Text, positions) -> np.ndarray:
    rows = []
    for flat in positions:
        sequence = next(i for i in range(len(text)) if flat < text.offsets[i + 1])
        begin, end = text.offsets[sequence], text.offsets[sequence + 1]
        rows.append((sequence, max(flat - 5, begin) - begin, min(flat + 3, end) - begin))
    return np.array(rows)


def test_positions_are_drawn_uniformly():
    """20 of 200 equally likely positions with each of 500 seeds: each 50 times on average, standard deviation
    sqrt(500 * 0.1 * 0.9) = 6.7."""
    text = Text(np.zeros(200, int), np.array([0, 80, 200]), np.ones(200, bool))
    n_drawn = np.zeros(200)
    for seed in range(500):
        drawn = draw_windows(text, 20, 0, 0, seed).to_array()
        assert (drawn[:, 2] == drawn[:, 1] + 1).all()
        flat = text.offsets[drawn[:, 0]] + drawn[:, 1]
        assert len(set(flat.tolist())) == 20
        n_drawn[flat] += 1
    assert abs(n_drawn - 50).max() < 4.5 * 6.7


@pytest.mark.parametrize("attached", [True, False])
def test_highest_activations_of_a_model_are_those_of_its_cache(attached, tiny_adapters):
    """Every sequence by itself, unpadded, through run_with_cache; parts merged are the whole, to the bit."""
    model, adapters = tiny_adapters
    text = make_text()
    name = "blocks.{}.mlp.hook_delta.hook_sae_acts_post" if attached else "blocks.{}.mlp.hook_post"
    hooks = [name.format(layer) for layer in range(model.cfg.n_layers)]
    width = adapters.n_features if attached else model.cfg.d_mlp
    whole, *parts = (Collector(len(hooks), width, text, KEEPING) for _ in range(3))
    expected = [[] for _ in hooks]
    plan = text.batches(3)
    with model.adapters(adapters) if attached else model.mode("target"):
        for collector, batches in ((whole, plan), (parts[0], plan[::2]), (parts[1], plan[1::2])):
            list(collect(model, hooks, (text.batch(chosen, "cpu") for chosen in batches), collector))
        for start, end in itertools.pairwise(text.offsets):
            _, cache = model.run_with_cache(torch.from_numpy(text.tokens[None, start:end]))
            for layer, hook in enumerate(hooks):
                expected[layer].append(cache[hook][0].float().numpy())
    resumed = Collector(len(hooks), width, text, KEEPING)
    resumed.load_state({name: tensor.clone() for name, tensor in parts[0].state().items()})
    resumed.merge(parts[1])
    parts[0].merge(parts[1])
    for layer, acts in enumerate(map(np.concatenate, expected)):
        found = maxima(whole, layer)
        np.testing.assert_allclose(found, naive(text, whole, acts), rtol=2**-10, atol=1e-6)
        assert ((found > 0) == (naive(text, whole, acts) > 0)).mean() > 0.999
        assert (found == 0).any()
        assert found.any()
        assert maxima(parts[0], layer).tobytes() == found.tobytes() == maxima(resumed, layer).tobytes()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("at_once", [16 * 3, 2**24])
def test_batches_padding_and_dtype_do_not_matter(dtype, at_once, monkeypatch):
    """Multiples of 1/4 below 9, which bfloat16 and float16 have all; uncounted positions of a window count too."""
    monkeypatch.setattr("tc_adapters_lens.features.collect._AT_ONCE", at_once)
    text = make_text()
    generator = torch.Generator().manual_seed(1)
    acts = (torch.rand(len(text.tokens), 16, generator=generator) * 32).round() / 4
    acts = torch.where(torch.rand(acts.shape, generator=generator) < 0.1, acts, -acts)
    for batches in (text.batches(3), [[i] for i in range(len(text))][::-1], [range(len(text))]):
        collector = spread(text, Collector(1, 16, text, KEEPING), acts.to(dtype), batches)
        assert np.array_equal(maxima(collector), naive(text, collector, acts.numpy()))


def test_zero_stays_zero_and_nothing_else_becomes_it():
    """float16's largest number is 65504, its smallest above zero 2^-24."""
    text = Text(np.zeros(6, int), np.array([0, 2, 4, 6]), np.ones(6, bool))
    acts = torch.tensor([[0.0, 1e-30], [-3.0, -1.0], [1e6, 0.0], [0.0, 2.0**-24], [float(2**-20), 70000.0], [0.5, 0.1]])
    keeping = dataclasses.replace(KEEPING, before=0, after=0, n_windows=6)
    found = maxima(spread(text, Collector(1, 2, text, keeping), acts, text.batches(2)))
    assert found.dtype == np.float16
    assert found.tolist() == [
        [0, 0, 65504, 0, 2**-20, 0.5],
        [2**-24, 0, 0, 2**-24, 65504, float(np.float16(0.1))],
    ]
