"""The objective against a naive version: plain HF models in float64, every term its own full forward passes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tc_adapters_lens.core.losses import kl_divergence, masked_mean
from tc_adapters_lens.models.pair import load_pair
from tc_adapters_lens.training.config import ObjectiveConfig
from tc_adapters_lens.training.joint import LayerWeights
from tc_adapters_lens.training.objective import draw_cutoff, objective_terms, weighted_sum
from tests.naive import Naive
from tests.tiny import D_MODEL, D_VOCAB, N_LAYERS, tiny_pair

N_FEATURES = 20
TOKENS = torch.randint(0, D_VOCAB, (3, 11), generator=torch.Generator().manual_seed(0))
MASK = torch.ones(3, 11, dtype=torch.bool)
MASK[0, 7:] = False  # padding
MASK[1, :4] = False  # a prompt
L1 = 3e-3


def random_params() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    shapes = [(D_MODEL, N_FEATURES), (N_FEATURES,), (N_FEATURES, D_MODEL), (D_MODEL,)]
    return [
        (torch.randn(N_LAYERS, *s, generator=generator, dtype=torch.float64) * 0.2).requires_grad_() for s in shapes
    ]


def naive_loss(naive: Naive, config: ObjectiveConfig, cutoff: int) -> Tensor:
    """The losses as the paper states them, every term from its own full forward passes."""
    everything = range(N_LAYERS)

    def kl(replaced: range) -> Tensor:
        log_p, log_q = (naive.run(TOKENS, r)[0].log_softmax(-1) for r in (range(0), replaced))
        return (log_p.exp() * (log_p - log_q)).sum(-1)[MASK].mean()

    _, target, _ = naive.run(TOKENS, range(0))
    _, ours, features = naive.run(TOKENS, everything)
    nmse = sum((r - t)[MASK].pow(2).sum() / t[MASK].pow(2).sum() for r, t in zip(ours, target, strict=True)) / (
        N_LAYERS + config.nmse_counts_embedding
    )
    bridging = torch.zeros(())
    if cutoff > 0:
        bridging = bridging + kl(range(cutoff))
    if cutoff < N_LAYERS:
        bridging = bridging + kl(range(cutoff, N_LAYERS))
    l1 = sum(
        (acts[MASK] * W_dec.norm(dim=-1)).sum(-1).mean() for acts, W_dec in zip(features, naive.params[2], strict=True)
    )
    return config.kl_weight * kl(everything) + config.nmse_weight * nmse + config.bridging_weight * bridging + L1 * l1


_QWEN2 = [("qwen2", 1e-8, cutoff, "paper") for cutoff in range(N_LAYERS + 1)]
_OTHERS = [("qwen2", 1e-8, 1, "authors"), ("neox", 1e-8, 2, "paper"), ("gemma2", 1e-6, 1, "paper")]


@pytest.mark.parametrize(("family", "tolerance", "cutoff", "preset"), _QWEN2 + _OTHERS)
def test_value_and_gradients_equal_the_naive_version(family: str, tolerance: float, cutoff: int, preset: str) -> None:
    config = ObjectiveConfig.paper(L1) if preset == "paper" else ObjectiveConfig.authors(L1)
    params = random_params()
    expected = naive_loss(Naive(family, params), config, cutoff)
    expected_grads = torch.autograd.grad(expected, params)

    model = load_pair(*tiny_pair(family), dtype=torch.float64).requires_grad_(False)
    adapters = [LayerWeights(*one) for one in zip(*(p.unbind(0) for p in params), strict=True)]
    terms = objective_terms(model, adapters, TOKENS, MASK, cutoff)
    loss = weighted_sum(terms, config, L1)
    grads = torch.autograd.grad(loss, params)

    torch.testing.assert_close(loss, expected, atol=tolerance, rtol=tolerance)
    for ours, naive in zip(grads, expected_grads, strict=True):
        assert naive.abs().max() > 1e-4
        torch.testing.assert_close(ours, naive, atol=tolerance, rtol=tolerance)


def test_padding_changes_no_term() -> None:
    model = load_pair(*tiny_pair(), dtype=torch.float64).requires_grad_(False)
    adapters = [LayerWeights(*one) for one in zip(*(p.unbind(0) for p in random_params()), strict=True)]
    terms = objective_terms(model, adapters, TOKENS, MASK, 2)
    longer = torch.nn.functional.pad(TOKENS, (0, 5), value=3)
    padded = objective_terms(model, adapters, longer, torch.nn.functional.pad(MASK, (0, 5)), 2)
    for ours, other in zip(padded, terms, strict=True):
        torch.testing.assert_close(ours, other, atol=1e-12, rtol=1e-12)


def test_skipped_halves_and_limits() -> None:
    """At k = 0 only target -> replacement is left and it is the output KL; at k = L it is the other way round."""
    model = load_pair(*tiny_pair(), dtype=torch.float64).requires_grad_(False)
    adapters = [LayerWeights(*one) for one in zip(*(p.unbind(0) for p in random_params()), strict=True)]
    first = objective_terms(model, adapters, TOKENS, MASK, 0)
    assert first.bridging_to_target == 0
    assert first.bridging_to_replacement == first.kl
    last = objective_terms(model, adapters, TOKENS, MASK, N_LAYERS)
    assert last.bridging_to_replacement == 0
    assert last.bridging_to_target == last.kl


def test_counts_are_of_unmasked_tokens_of_the_replacement_pass_only() -> None:
    model = load_pair(*tiny_pair(), dtype=torch.float64).requires_grad_(False)
    params = random_params()
    adapters = [LayerWeights(*one) for one in zip(*(p.unbind(0) for p in params), strict=True)]
    terms = objective_terms(model, adapters, TOKENS, MASK, 1)
    _, _, features = Naive("qwen2", params).run(TOKENS, range(N_LAYERS))
    expected = torch.stack([(acts[MASK] > 0).sum(0) for acts in features])
    assert torch.equal(terms.counts, expected)
    assert not terms.counts.is_floating_point()


def test_hooks_and_modes_are_gone_after_an_exception() -> None:
    model = load_pair(*tiny_pair()).requires_grad_(False)
    adapters = [LayerWeights(*one) for one in zip(*(p.float().unbind(0) for p in random_params()), strict=True)]
    expected = model(TOKENS)
    with pytest.raises(IndexError):
        objective_terms(model, adapters, TOKENS + D_VOCAB, MASK, 1)
    with pytest.raises(ValueError, match="unmasked"):
        objective_terms(model, adapters, TOKENS, torch.zeros_like(MASK), 1)
    assert torch.equal(model(TOKENS), expected)
    assert model.modes == ["target"] * N_LAYERS


def test_cutoffs_are_uniform_and_a_function_of_seed_and_step() -> None:
    draws = torch.tensor([draw_cutoff(7, step, N_LAYERS) for step in range(4000)])
    shares = torch.bincount(draws, minlength=N_LAYERS + 1) / 4000
    assert (shares - 1 / (N_LAYERS + 1)).abs().max() < 0.03
    assert draws[123] == draw_cutoff(7, 123, N_LAYERS)
    assert any(draw_cutoff(7, s, N_LAYERS) != draw_cutoff(8, s, N_LAYERS) for s in range(10))


def test_kl_of_the_terms_is_the_plain_kl_of_the_logits() -> None:
    model = load_pair(*tiny_pair(), dtype=torch.float64).requires_grad_(False)
    params = random_params()
    adapters = [LayerWeights(*one) for one in zip(*(p.unbind(0) for p in params), strict=True)]
    naive = Naive("qwen2", params)
    expected = masked_mean(kl_divergence(naive.run(TOKENS, range(0))[0], naive.run(TOKENS, range(N_LAYERS))[0]), MASK)
    torch.testing.assert_close(objective_terms(model, adapters, TOKENS, MASK, 1).kl, expected)
