"""The local phase's step against a naive version: plain HF models in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tc_adapters_lens.models.pair import load_pair
from tc_adapters_lens.training.joint import LayerWeights
from tc_adapters_lens.training.local_step import local_step
from tests.naive import Naive
from tests.tiny import D_VOCAB, N_LAYERS, tiny_pair
from tests.training.test_objective import L1, MASK, TOKENS, random_params

POSITIONS = MASK.flatten().nonzero().squeeze(-1)


def naive_terms(family: str, params: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Error per layer, L1 and features' counts, from what the target's own MLP modules are given and give."""
    naive = Naive(family, params)
    seen: list[tuple[Tensor, Tensor]] = []
    layers = naive.target.gpt_neox.layers if naive.neox else naive.target.model.layers
    base_layers = naive.base.gpt_neox.layers if naive.neox else naive.base.model.layers
    for layer in layers:
        layer.mlp.register_forward_hook(lambda _m, args, out: seen.append((args[0].detach(), out.detach())))
    with torch.no_grad():
        naive.target(TOKENS, use_cache=False)
    errors, l1, counts = [], torch.zeros((), dtype=torch.float64), []
    for layer, (x, out) in enumerate(seen):
        W_enc, b_enc, W_dec, b_dec = (p[layer] for p in params)
        delta = (out - base_layers[layer].mlp(x).detach())[MASK]
        acts = (x[MASK] @ W_enc + b_enc).clamp(min=0)
        errors.append((acts @ W_dec + b_dec - delta).pow(2).sum() / delta.pow(2).sum())
        l1 = l1 + (acts * W_dec.norm(dim=-1)).sum(-1).mean()
        counts.append((acts > 0).sum(0))
    return torch.stack(errors), l1, torch.stack(counts)


def leaves(params: list[Tensor]) -> list[LayerWeights]:
    return [LayerWeights(*(p[layer].detach().clone().requires_grad_() for p in params)) for layer in range(N_LAYERS)]


@pytest.mark.parametrize(("family", "tolerance"), [("qwen2", 1e-8), ("neox", 1e-8), ("gemma2", 1e-6)])
def test_terms_and_gradients_equal_the_naive_version(family: str, tolerance: float) -> None:
    params = random_params()
    errors, l1, counts = naive_terms(family, params)
    expected = torch.autograd.grad(errors.sum() + L1 * l1, params)

    model = load_pair(*tiny_pair(family), dtype=torch.float64).requires_grad_(False)
    adapters = leaves(params)
    terms = local_step(model, adapters, TOKENS, MASK, POSITIONS, L1)

    close: dict[str, Any] = {"atol": tolerance, "rtol": tolerance}
    torch.testing.assert_close(terms.error, errors.detach(), **close)
    torch.testing.assert_close(terms.l1, l1.detach(), **close)
    torch.testing.assert_close(terms.loss(L1), (errors.sum() + L1 * l1).detach(), **close)
    assert torch.equal(terms.counts, counts)
    for name, naive in zip(LayerWeights._fields, expected, strict=True):
        ours = torch.stack([getattr(weights, name).grad for weights in adapters])
        assert naive.abs().max() > 1e-4
        torch.testing.assert_close(ours, naive, **close)


def test_padding_changes_nothing_and_hooks_are_gone() -> None:
    model = load_pair(*tiny_pair(), dtype=torch.float64).requires_grad_(False)
    before = model(TOKENS)
    terms = local_step(model, leaves(random_params()), TOKENS, MASK, POSITIONS, L1)
    longer, mask = (torch.nn.functional.pad(part, (0, 5)) for part in (TOKENS, MASK))
    padded = local_step(model, leaves(random_params()), longer, mask, mask.flatten().nonzero().squeeze(-1), L1)
    for ours, other in zip(padded, terms, strict=True):
        torch.testing.assert_close(ours, other, atol=1e-12, rtol=1e-12)
    with pytest.raises(IndexError):
        local_step(model, leaves(random_params()), TOKENS + D_VOCAB, MASK, POSITIONS, L1)
    assert torch.equal(model(TOKENS), before)


def test_a_batch_without_a_position_that_counts_is_refused() -> None:
    model = load_pair(*tiny_pair()).requires_grad_(False)
    with pytest.raises(ValueError, match="at least one unmasked position"):
        local_step(model, leaves(random_params()), TOKENS, torch.zeros_like(MASK), POSITIONS[:0], L1)


def test_shares_of_a_batch_add_up_to_the_batch() -> None:
    """Two processes with one and two of the sequences: terms and gradients sum to those of all three."""
    model = load_pair(*tiny_pair(), dtype=torch.float64).requires_grad_(False)
    whole = leaves(random_params())
    expected = local_step(model, whole, TOKENS, MASK, POSITIONS, L1)

    parts = [slice(0, 1), slice(1, 3)]
    sums: list[list[Tensor]] = []
    for part in parts:
        collected: list[Tensor] = []
        positions = MASK[part].flatten().nonzero().squeeze(-1)
        local_step(
            model,
            leaves(random_params()),
            TOKENS[part],
            MASK[part],
            positions,
            L1,
            lambda sums, collected=collected: (collected.append(sums), sums)[1],
        )
        sums.append(collected)
    totals = [torch.stack(layer).sum(0) for layer in zip(*sums, strict=True)]

    shared = leaves(random_params())
    terms = []
    for part in parts:
        remaining = iter(totals)
        positions = MASK[part].flatten().nonzero().squeeze(-1)
        terms.append(
            local_step(model, shared, TOKENS[part], MASK[part], positions, L1, lambda _, rest=remaining: next(rest))
        )
    for ours, other in zip((sum(values) for values in zip(*terms, strict=True)), expected, strict=True):
        torch.testing.assert_close(ours, other, atol=1e-12, rtol=1e-12)
    for mine, theirs in zip(shared, whole, strict=True):
        for ours, other in zip(mine, theirs, strict=True):
            torch.testing.assert_close(ours.grad, other.grad, atol=1e-12, rtol=1e-12)


def test_a_layer_whose_mlps_are_equal_stays_as_it_is() -> None:
    base, target = tiny_pair()
    target.model.layers[1].mlp.load_state_dict(base.model.layers[1].mlp.state_dict())
    model = load_pair(base, target, dtype=torch.float64).requires_grad_(False)
    params = random_params()
    for p in params[1:]:
        p.data.zero_()
    adapters = leaves(params)
    terms = local_step(model, adapters, TOKENS, MASK, POSITIONS, L1)
    assert terms.error[1] == 0
    assert terms.error[0] > 0
    assert all(not grad.any() for grad in (p.grad for p in adapters[1]) if grad is not None)
