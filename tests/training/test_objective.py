"""The objective against a naive version: plain HF models in float64, every term its own full forward passes."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from tc_adapters_lens.core.losses import kl_divergence, masked_mean
from tc_adapters_lens.models.pair import load_pair
from tc_adapters_lens.training.config import ObjectiveConfig
from tc_adapters_lens.training.joint import LayerWeights
from tc_adapters_lens.training.objective import draw_cutoff, objective_terms, weighted_sum
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
        (torch.randn(N_LAYERS, *s, generator=generator, dtype=torch.float64) * 0.2).requires_grad_()
        for s in shapes
    ]


class ReplacedMLP(nn.Module):
    """base MLP(x) + W_dec relu(W_enc x + b_enc) + b_dec, on a Hugging Face MLP."""

    def __init__(self, base: nn.Module, params: list[Tensor]) -> None:
        super().__init__()
        self.base = base
        self.params = params

    def forward(self, x: Tensor) -> Tensor:
        W_enc, b_enc, W_dec, b_dec = self.params
        self.acts = (x @ W_enc + b_enc).clamp(min=0)
        return self.base(x) + self.acts @ W_dec + b_dec


def in_float64(model: PreTrainedModel) -> PreTrainedModel:
    """Hugging Face rounds norms, rotary angles and softmax to float32 whatever the weights are; here it may not."""
    model = model.double().requires_grad_(False)
    if not model.config.model_type.startswith("gemma"):  # whose soft cap SDPA cannot do
        model.set_attn_implementation("sdpa")
    for name, module in model.named_modules():
        if type(module).__name__.endswith("RMSNorm"):
            gain = module.weight + float("Gemma" in type(module).__name__)
            eps = getattr(module, "variance_epsilon", None) or module.eps
            module.forward = partial(
                lambda x, gain, eps: gain * x * (x.pow(2).mean(-1, keepdim=True) + eps).rsqrt(),
                gain=gain,
                eps=eps,
            )
        if name.endswith("rotary_emb"):
            width = 2 * len(module.inv_freq)
            theta = model.config.rope_theta
            frequencies = theta ** -(torch.arange(0, width, 2, dtype=torch.float64) / width)
            angles = torch.outer(torch.arange(TOKENS.shape[1], dtype=torch.float64), frequencies).repeat(1, 2)[None]
            module.forward = partial(lambda x, position_ids, angles: (angles.cos(), angles.sin()), angles=angles)
    return model


class Naive:
    """Runs the target with any layers replaced, from tokens, and adds up the losses as METHOD states them."""

    def __init__(self, family: str, params: list[Tensor]) -> None:
        base, target = (in_float64(model) for model in tiny_pair(family))
        self.target, self.base, self.params = target, base, params
        self.neox = "neox" in family

    def run(self, replaced: range) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """Logits, the residual stream after every layer, and the features of the replaced layers."""
        model = copy.deepcopy(self.target)
        layers = model.gpt_neox.layers if self.neox else model.model.layers
        base_layers = self.base.gpt_neox.layers if self.neox else self.base.model.layers
        residuals: list[Tensor] = []
        for layer in replaced:
            layers[layer].mlp = ReplacedMLP(base_layers[layer].mlp, [p[layer] for p in self.params])
        for block in layers:
            block.register_forward_hook(
                lambda _m, _i, out: residuals.append(out[0] if isinstance(out, tuple) else out)
            )
        logits = model(TOKENS, use_cache=False).logits
        return logits, residuals, [layers[layer].mlp.acts for layer in replaced]

    def kl(self, replaced: range) -> Tensor:
        log_p, log_q = (self.run(r)[0].log_softmax(-1) for r in (range(0), replaced))
        return (log_p.exp() * (log_p - log_q)).sum(-1)[MASK].mean()

    def loss(self, config: ObjectiveConfig, cutoff: int) -> Tensor:
        everything = range(N_LAYERS)
        _, target, _ = self.run(range(0))
        _, ours, features = self.run(everything)
        nmse = sum(
            (r - t)[MASK].pow(2).sum() / t[MASK].pow(2).sum() for r, t in zip(ours, target, strict=True)
        ) / (N_LAYERS + config.nmse_counts_embedding)
        bridging = torch.zeros(())
        if cutoff > 0:
            bridging = bridging + self.kl(range(cutoff))
        if cutoff < N_LAYERS:
            bridging = bridging + self.kl(range(cutoff, N_LAYERS))
        l1 = sum(
            (acts[MASK] * W_dec.norm(dim=-1)).sum(-1).mean()
            for acts, W_dec in zip(features, self.params[2], strict=True)
        )
        return (
            config.kl_weight * self.kl(everything)
            + config.nmse_weight * nmse
            + config.bridging_weight * bridging
            + L1 * l1
        )


@pytest.mark.parametrize("preset", ["paper", "authors"])
@pytest.mark.parametrize("cutoff", range(N_LAYERS + 1))
@pytest.mark.parametrize(
    ("family", "tolerance"), [("qwen2", 1e-8), ("neox", 1e-8), ("gemma2", 1e-6)]
)
def test_value_and_gradients_equal_the_naive_version(
    family: str, tolerance: float, cutoff: int, preset: str
) -> None:
    config = ObjectiveConfig.paper(L1) if preset == "paper" else ObjectiveConfig.authors(L1)
    params = random_params()
    expected = Naive(family, params).loss(config, cutoff)
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
    _, _, features = Naive("qwen2", params).run(range(N_LAYERS))
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
    expected = masked_mean(kl_divergence(naive.run(range(0))[0], naive.run(range(N_LAYERS))[0]), MASK)
    torch.testing.assert_close(objective_terms(model, adapters, TOKENS, MASK, 1).kl, expected)
