"""Activation overlap beside full matrices sorted in NumPy; equal, unrelated and interrupted passes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tc_adapters_lens import AdapterSet, load_pair
from tc_adapters_lens.errors import DataError
from tc_adapters_lens.features import ragged_top
from tc_adapters_lens.features.overlap import activation_overlap
from tc_adapters_lens.features.text import Text
from tc_adapters_lens.models.names import hook_acts, hook_in
from tc_adapters_lens.models.pair import load_base
from tc_adapters_lens.models.progress import Progress
from tests.tiny import D_VOCAB, N_LAYERS, hybrid, tiny_pair

N_FEATURES = 24


def make_text(n_sequences=24, seed=0) -> Text:
    rng = np.random.default_rng(seed)
    lengths = rng.integers(3, 30, n_sequences)
    n = int(lengths.sum())
    return Text(rng.integers(0, D_VOCAB, n), np.cumsum([0, *lengths]), rng.random(n) < 0.8)


@pytest.fixture(scope="module")
def models(tiny_adapters):
    """Pair, adapters, base."""
    base, _ = tiny_pair("qwen2")
    pair, adapters = tiny_adapters
    return pair, adapters, load_base(base, pair=pair)


def matrices(model, names, text: Text) -> list[np.ndarray]:
    """What stands at these hooks at counted positions, one sequence at a time."""
    rows = []
    for start, end in zip(text.offsets, text.offsets[1:], strict=False):
        tokens = torch.from_numpy(text.tokens[start:end].astype(np.int64))[None]
        _, cache = model.run_with_cache(tokens, names_filter=names)
        rows.append([cache[name][0].detach().double().numpy() for name in names])
    return [np.concatenate(layer)[text.counted] for layer in zip(*rows, strict=True)]


def naive_overlap(active: np.ndarray, pre: np.ndarray) -> float:
    wanted = set(np.flatnonzero(active))
    best = set(np.argsort(-pre, kind="stable")[: len(wanted)])
    return len(wanted & best) / len(wanted)


def test_every_feature_beside_full_matrices(models, monkeypatch):
    monkeypatch.setattr(ragged_top, "_LEAST_WAITING", 50)
    pair, adapters, base = models
    text = make_text()
    found = activation_overlap(pair, adapters, base, text, batch_size=5, min_active=4)
    with pair.adapters(adapters):
        acts = matrices(pair, [hook_acts(layer) for layer in range(N_LAYERS)], text)
    inputs = {"target": matrices(pair, [hook_in(layer) for layer in range(N_LAYERS)], text)}
    normalized = matrices(base, [f"blocks.{layer}.ln2.hook_normalized" for layer in range(N_LAYERS)], text)
    inputs["base"] = [x * base.blocks[layer].ln2.w.detach().double().numpy() for layer, x in enumerate(normalized)]
    measured = 0
    for layer in range(N_LAYERS):
        W_enc = adapters[layer].W_enc.detach().double().numpy()
        for feature in range(N_FEATURES):
            active = acts[layer][:, feature] > 0
            assert found.n_active[layer, feature] == active.sum()
            if active.sum() < 4:
                assert not found.measured[layer, feature]
                assert np.isnan([found.overlap[name][layer, feature] for name in inputs]).all()
                continue
            measured += 1
            assert found.chance[layer, feature] == active.mean()
            for name, x in inputs.items():
                pre = x[layer] @ W_enc[:, feature]  # without the bias, which moves no rank
                assert found.overlap[name][layer, feature] == naive_overlap(active, pre), (name, layer, feature)
    assert 0 < measured < N_LAYERS * N_FEATURES
    assert found.n_positions == text.n_counted
    assert (found.overlap["target"][0][found.measured[0]] == 1).all()  # layer 0 reads the same
    assert np.nanmean(found.overlap["target"]) > np.nanmean(found.overlap["base"])


def test_equal_hidden_states_overlap_wholly(models):
    """Adapters that add nothing make the hybrid of the replacement model; as the "base", it is the same model."""
    pair, adapters, _ = models
    silent = AdapterSet.from_state(
        {name: t * (0 if "dec" in name else 1) for name, t in adapters.state().items()}, adapters.info
    )
    found = activation_overlap(pair, silent, load_base(hybrid(*tiny_pair("qwen2"))), make_text(), min_active=1)
    assert found.measured.sum() > 30
    assert (found.overlap["base"][found.measured] == 1).all()
    assert (found.overlap["target"][1:][found.measured[1:]] < 1).any()


def test_unrelated_hidden_states_overlap_by_chance(models):
    """Of n_f positions drawn at random n_f^2 / N are shared, with a variance below that: within 4 sigma of the sum."""
    pair, adapters, base = models
    generator = torch.Generator().manual_seed(0)
    noise = [
        block.mlp.register_forward_pre_hook(lambda _, inputs: (torch.randn(inputs[0].shape, generator=generator),))
        for block in base.blocks
    ]
    try:
        found = activation_overlap(pair, adapters, base, make_text(60), min_active=5)
    finally:
        for handle in noise:
            handle.remove()
    n = found.n_active[found.measured]
    expected = n**2 / found.n_positions
    shared = found.overlap["base"][found.measured] * n
    assert abs(shared.sum() - expected.sum()) < 4 * np.sqrt(expected.sum())
    np.testing.assert_allclose(found.chance[found.measured] * n, expected)
    assert (found.overlap["target"][found.measured] * n).sum() > 1.5 * expected.sum()


class Killed(Exception):
    pass


class KilledAt(Progress):
    """Keeps what there is after every batch, and stops before one of them."""

    def __init__(self, file, at):
        super().__init__(file, "key", seconds=0)
        self.at = at

    def over(self, batches, sums):
        for number, batch in enumerate(super().over(batches, sums)):
            if number == self.at:
                raise Killed
            yield batch


@pytest.mark.parametrize("at", [[2], [3], [4, 2], [7, 1], [1, 1, 1, 1, 1]])  # of 3 passes of 3 batches
def test_interrupted_passes_go_on_to_the_same_bits(models, at, tmp_path):
    file, text = tmp_path / "partial.safetensors", make_text()
    whole = activation_overlap(*models, text, min_active=4)
    for number in at:
        with pytest.raises(Killed):
            activation_overlap(*models, text, min_active=4, progress=KilledAt(file, number))
        assert file.exists()
    found = activation_overlap(*models, text, min_active=4, progress=Progress(file, "key"))
    np.testing.assert_array_equal(found.n_active, whole.n_active)
    for name, overlap in whole.overlap.items():
        np.testing.assert_array_equal(found.overlap[name], overlap)
    assert not file.exists()


def test_batch_size_does_not_matter(models):
    text = make_text()
    one, many = (activation_overlap(*models, text, batch_size=size) for size in (1, 100))
    for name in ("target", "base"):
        np.testing.assert_array_equal(one.overlap[name], many.overlap[name])


def test_what_cannot_be_measured_is_said(models):
    pair, adapters, base = models
    text = make_text(4)
    with pytest.raises(DataError, match=r"must be active at 5000 positions at least. Got \d+ at most"):
        activation_overlap(pair, adapters, base, text, min_active=5000)
    with pytest.raises(DataError, match=r"Got \d+ tokens, 0 that count"):
        activation_overlap(pair, adapters, base, Text(text.tokens, text.offsets, np.zeros_like(text.counted)))
    broken = load_pair(*tiny_pair("qwen2"))
    broken.blocks[1].ln2.w.data[0] = torch.nan
    with pytest.raises(DataError, match=r"must be finite\. Got NaN or infinity in layer 1"):
        activation_overlap(broken, adapters, base, text)
