"""Promoted tokens against the same arithmetic on plain Hugging Face weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tc_adapters_lens import load_pair
from tc_adapters_lens.features import promoted
from tc_adapters_lens.features.promoted import promoted_tokens
from tests.tiny import D_MODEL, D_VOCAB, FAMILY_CONFIGS, tiny_pair

LAYER, N_KNOWN = 1, 90


def _frozen_logits(model, hidden, direction=None):
    """Logits of a hidden state, the norms' scales those of `hidden` for everything (1 for the one after the MLP)."""
    if hasattr(model, "gpt_neox"):
        norm, moved = model.gpt_neox.final_layer_norm, hidden if direction is None else hidden + direction
        scale = (hidden.var(unbiased=False) + norm.eps).sqrt()
        return model.embed_out((moved - moved.mean()) / scale * norm.weight + norm.bias), scale
    norm = model.model.norm
    offset = 1.0 if model.config.model_type == "gemma2" else 0.0
    if direction is not None and offset:  # Gemma's norms multiply by one plus their weight
        direction = direction * (offset + model.model.layers[LAYER].post_feedforward_layernorm.weight)
    eps = norm.eps if offset else norm.variance_epsilon
    scale = (hidden.pow(2).mean() + eps).sqrt()
    moved = hidden if direction is None else hidden + direction
    return model.lm_head(moved / scale * (offset + norm.weight)), scale


@pytest.mark.parametrize("family", FAMILY_CONFIGS)
def test_effects_are_the_change_of_hugging_faces_logits(family, monkeypatch) -> None:
    monkeypatch.setattr(promoted, "_DIRECTIONS_AT_ONCE", 3)
    monkeypatch.setattr(promoted, "_TOKENS_AT_ONCE", 25)
    base, target = (model.double() for model in tiny_pair(family))
    model = load_pair(base.float(), target.float())
    target = target.double()
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(7, D_MODEL, generator=generator)
    hidden = torch.randn(D_MODEL, generator=generator, dtype=torch.float64)
    most, least = promoted_tokens(model, LAYER, directions, n_tokens=5, n_known=N_KNOWN)
    assert most.ids.dtype == least.ids.dtype == np.int32
    assert most.effects.dtype == np.float32
    before, scale = _frozen_logits(target, hidden)
    for row, direction in enumerate(directions.double()):
        after, _ = _frozen_logits(target, hidden, direction)
        effects = ((after - before) * scale)[:N_KNOWN].detach()
        effects = effects - effects.mean()
        order = effects.argsort(descending=True)
        assert most.ids[row].tolist() == order[:5].tolist()
        assert least.ids[row].tolist() == order.flip(0)[:5].tolist()
        np.testing.assert_allclose(most.effects[row], effects[order[:5]], rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(least.effects[row], effects[order.flip(0)[:5]], rtol=1e-4, atol=1e-4)


def test_a_unit_that_writes_one_tokens_direction_promotes_it() -> None:
    model = load_pair(*tiny_pair())
    token = 11
    wanted = model.W_U - model.W_U.mean(dim=1, keepdim=True)
    direction = torch.linalg.pinv(wanted)[token] / model.ln_final.w
    most, least = promoted_tokens(model, 0, direction[None], n_tokens=2 * D_VOCAB)
    assert most.ids.shape == (1, D_VOCAB)
    assert most.ids[0, 0] == token
    assert np.array_equal(most.ids[:, ::-1], least.ids)
    assert abs(most.effects.sum()) < 1e-3
