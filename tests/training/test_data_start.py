"""Starting weights from data, against what a stock TransformerLens cache holds."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tc_adapters_lens.errors import DataError
from tc_adapters_lens.models.names import hook_delta, hook_in
from tc_adapters_lens.models.pair import load_pair
from tc_adapters_lens.training.data_start import ACTIVE_TOKENS, DECODER_SHARE, data_start
from tc_adapters_lens.training.sequences import TokenSequences
from tests.tiny import D_MODEL, D_VOCAB, N_LAYERS, tiny_pair

N_FEATURES = 24
_RNG = np.random.default_rng(0)
LENGTHS = [5, 9, 3, 12, 7, 11, 4, 6]
TOKENS = [_RNG.integers(3, D_VOCAB, n) for n in LENGTHS]
MASKS = [np.arange(n) >= 2 for n in LENGTHS]
SEQUENCES = TokenSequences.from_lists(TOKENS, MASKS)  # 41 tokens count: all of them are seen


@pytest.fixture(scope="module")
def model():
    return load_pair(*tiny_pair())


def test_every_feature_is_one_tokens_part_in_delta(model) -> None:
    state = data_start(model, SEQUENCES, N_FEATURES, seed=3, batch_size=3)
    inputs = [[] for _ in range(N_LAYERS)]
    deltas = [[] for _ in range(N_LAYERS)]
    for tokens, mask in zip(TOKENS, MASKS, strict=True):
        _, cache = model.run_with_cache(torch.from_numpy(tokens)[None])
        for layer in range(N_LAYERS):
            inputs[layer].append(cache[hook_in(layer)][0][mask])
            deltas[layer].append(cache[hook_delta(layer)][0][mask])
    for layer in range(N_LAYERS):
        x, delta = torch.cat(inputs[layer]), torch.cat(deltas[layer])
        W_enc, b_enc, W_dec, b_dec = (state[name][layer] for name in ("W_enc", "b_enc", "W_dec", "b_dec"))
        assert W_enc.shape == (D_MODEL, N_FEATURES)
        # b_dec is the mean of drawn tokens' deltas, and W_dec one token's difference from it: find the token
        directions = delta - b_dec
        cosine = torch.nn.functional.normalize(W_dec, dim=-1) @ torch.nn.functional.normalize(directions, dim=-1).T
        best, drawn = cosine.max(-1)
        assert best.min() > 1 - 1e-5
        assert len(set(drawn.tolist())) == N_FEATURES
        torch.testing.assert_close(b_dec, delta[drawn].mean(0))
        centred = x[drawn] - x[drawn].mean(0)
        torch.testing.assert_close(W_enc, (centred / centred.norm(dim=-1, keepdim=True)).T / 3**0.5)
        acts = torch.relu(x[drawn] @ W_enc + b_enc)
        assert ((acts > 1e-6).sum(0) == ACTIVE_TOKENS).all()
        torch.testing.assert_close(W_dec, DECODER_SHARE * directions[drawn] / acts[acts > 1e-6].mean())


def test_the_same_arguments_give_the_same_weights_whatever_the_batch(model) -> None:
    first, again = (data_start(model, SEQUENCES, N_FEATURES, 3, batch_size=n) for n in (1, 4))
    other = data_start(model, SEQUENCES, N_FEATURES, 4)
    for name, tensor in first.items():
        torch.testing.assert_close(again[name], tensor)
        assert not torch.allclose(other[name], tensor)


def test_too_few_tokens_are_one_clear_error(model) -> None:
    with pytest.raises(DataError, match=r"Got 41 \(tokens\) and 42 \(features\)"):
        data_start(model, SEQUENCES, 42, 3)
