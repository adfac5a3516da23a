"""The objective against a naive version: plain HF models in float64, every term its own full forward passes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tc_adapters_lens.core import adapter as kernel
from tc_adapters_lens.core.losses import kl_divergence
from tc_adapters_lens.models.diff_transformer import HookedDiffTransformer
from tc_adapters_lens.models.pair import load_pair
from tc_adapters_lens.training.config import ObjectiveConfig
from tc_adapters_lens.training.joint import JointTranscoder, JointTranscoderConfig, LayerWeights
from tc_adapters_lens.training.objective import ObjectiveTerms, draw_cutoff, weighted_sum
from tc_adapters_lens.training.step import training_step
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


def leaves(params: list[Tensor], dtype: torch.dtype = torch.float64) -> list[LayerWeights]:
    return [LayerWeights(*(p[layer].detach().to(dtype).requires_grad_() for p in params)) for layer in range(N_LAYERS)]


def step(
    model: HookedDiffTransformer,
    adapters: list[LayerWeights],
    cutoff: int,
    config: ObjectiveConfig | None = None,
    tokens: Tensor = TOKENS,
    mask: Tensor = MASK,
    **kwargs: object,
) -> ObjectiveTerms:
    positions = mask.flatten().nonzero().squeeze(-1)
    return training_step(
        model, adapters, tokens, mask, positions, cutoff, config or ObjectiveConfig.paper(L1), L1, **kwargs
    )


def gradients(adapters: list[LayerWeights]) -> list[Tensor]:
    """Stacked over layers, in the order of the parameters."""
    return [torch.stack([weight.grad for weight in stack]) for stack in zip(*adapters, strict=True)]  # type: ignore[misc]


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
@pytest.mark.parametrize("max_density", [-1, 2], ids=["dense", "sparse"])
def test_value_and_gradients_equal_the_naive_version(
    family: str, tolerance: float, cutoff: int, preset: str, max_density: float, monkeypatch
) -> None:
    monkeypatch.setattr(kernel, "MAX_SPARSE_DENSITY", max_density)
    config = ObjectiveConfig.paper(L1) if preset == "paper" else ObjectiveConfig.authors(L1)
    params = random_params()
    expected = naive_loss(Naive(family, params), config, cutoff)
    expected_grads = torch.autograd.grad(expected, params)

    model = load_pair(*tiny_pair(family), dtype=torch.float64).requires_grad_(False)
    adapters = leaves(params)
    loss = weighted_sum(step(model, adapters, cutoff, config), config, L1)

    torch.testing.assert_close(loss, expected, atol=tolerance, rtol=tolerance)
    for ours, naive in zip(gradients(adapters), expected_grads, strict=True):
        assert naive.abs().max() > 1e-4
        torch.testing.assert_close(ours, naive, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("cutoff", range(N_LAYERS + 1))
def test_checkpointed_blocks_give_the_same_bits(cutoff: int) -> None:
    model = load_pair(*tiny_pair()).requires_grad_(False)
    plain, checkpointed = leaves(random_params(), torch.float32), leaves(random_params(), torch.float32)
    terms = step(model, plain, cutoff)
    for ours, theirs in zip(step(model, checkpointed, cutoff, checkpoint_blocks=True), terms, strict=True):
        assert torch.equal(ours, theirs)
    for ours, theirs in zip(gradients(checkpointed), gradients(plain), strict=True):
        assert torch.equal(ours, theirs)


def test_shares_of_a_batch_sum_to_the_whole() -> None:
    """Two processes with unequal sequences, and a third with none that counts, in turn."""
    model = load_pair(*tiny_pair(), dtype=torch.float64).requires_grad_(False)
    whole = leaves(random_params())
    expected = step(model, whole, 1)
    parts = [slice(0, 1), slice(1, 3), slice(0, 1)]
    masks = [MASK[:1], MASK[1:], torch.zeros_like(MASK[:1])]
    own: list[Tensor] = []
    for part, mask in zip(parts, masks, strict=True):  # what each process would put in
        step(
            model,
            leaves(random_params()),
            1,
            tokens=TOKENS[part],
            mask=mask,
            sum_over_processes=lambda x: own.append(x) or torch.ones_like(x),
        )
    shared = leaves(random_params())
    shares = [
        step(model, shared, 1, tokens=TOKENS[part], mask=mask, sum_over_processes=lambda x: sum(own))
        for part, mask in zip(parts, masks, strict=True)
    ]
    for name, theirs in expected._asdict().items():
        torch.testing.assert_close(sum(getattr(share, name) for share in shares), theirs, atol=1e-12, rtol=1e-12)
    for ours, theirs in zip(gradients(shared), gradients(whole), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=1e-12)


def test_without_bridging_both_halves_are_skipped() -> None:
    model = load_pair(*tiny_pair(), dtype=torch.float64).requires_grad_(False)
    params = random_params()
    config = ObjectiveConfig(l1_coefficient=L1, bridging_weight=0)
    grads = []
    for cutoff in (0, 1, 3):
        adapters = leaves(params)
        terms = step(model, adapters, cutoff, config)
        assert terms.bridging_to_target == terms.bridging_to_replacement == 0
        grads.append(gradients(adapters))
    expected = torch.autograd.grad(naive_loss(Naive("qwen2", params), config, 1), params)
    for ours, theirs in zip(grads[1], expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-8, rtol=1e-8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_add_up_in_the_stacked_parameters(dtype: torch.dtype) -> None:
    model = load_pair(*tiny_pair(), dtype=dtype).requires_grad_(False)
    params = random_params()
    joint = JointTranscoder(JointTranscoderConfig(d_in=D_MODEL, d_sae=N_FEATURES, n_layers=N_LAYERS))
    with torch.no_grad():
        for own, param in zip((joint.W_enc, joint.b_enc, joint.W_dec, joint.b_dec), params, strict=True):
            own.copy_(param)
    expected = leaves(params, dtype)
    step(model, expected, 1)
    for _ in range(2):
        step(model, joint.layer_weights(dtype), 1)
    for own, grad in zip((joint.W_enc, joint.b_enc, joint.W_dec, joint.b_dec), gradients(expected), strict=True):
        assert own.grad.dtype == torch.float32
        scale = grad.float().abs().max()
        torch.testing.assert_close(own.grad / scale, 2 * grad.float() / scale, atol=2e-2, rtol=0)
        if dtype == torch.float32:
            torch.testing.assert_close(own.grad, 2 * grad, atol=1e-6, rtol=1e-5)
    assert all(param.grad is None for param in model.parameters())


def test_padding_changes_no_term() -> None:
    model = load_pair(*tiny_pair(), dtype=torch.float64).requires_grad_(False)
    adapters = leaves(random_params())
    terms = step(model, adapters, 2)
    longer = torch.nn.functional.pad(TOKENS, (0, 5), value=3)
    padded = step(model, adapters, 2, tokens=longer, mask=torch.nn.functional.pad(MASK, (0, 5)))
    for ours, other in zip(padded, terms, strict=True):
        torch.testing.assert_close(ours, other, atol=1e-12, rtol=1e-12)


def test_skipped_halves_and_limits() -> None:
    """At k = 0 only target -> replacement is left and it is the output KL; at k = L it is the other way round."""
    model = load_pair(*tiny_pair(), dtype=torch.float64).requires_grad_(False)
    first = step(model, leaves(random_params()), 0)
    assert first.bridging_to_target == 0
    assert first.bridging_to_replacement == first.kl
    last = step(model, leaves(random_params()), N_LAYERS)
    assert last.bridging_to_replacement == 0
    assert last.bridging_to_target == last.kl


def test_counts_are_of_unmasked_tokens_of_the_replacement_pass_only() -> None:
    model = load_pair(*tiny_pair(), dtype=torch.float64).requires_grad_(False)
    params = random_params()
    terms = step(model, leaves(params), 1)
    _, _, features = Naive("qwen2", params).run(TOKENS, range(N_LAYERS))
    expected = torch.stack([(acts[MASK] > 0).sum(0) for acts in features])
    assert torch.equal(terms.counts, expected)
    assert not terms.counts.is_floating_point()


def test_substitutes_and_modes_are_gone_after_an_exception() -> None:
    model = load_pair(*tiny_pair()).requires_grad_(False)
    adapters = leaves(random_params(), torch.float32)
    expected = model(TOKENS)
    with model.mode("base"):
        hybrid = model(TOKENS)
    broken = [*adapters[:2], adapters[2]._replace(b_dec=adapters[2].b_dec.double())]
    with pytest.raises(RuntimeError, match="dtype"):
        step(model, broken, 1)
    with pytest.raises(ValueError, match="unmasked"):
        step(model, adapters, 1, mask=torch.zeros_like(MASK))
    assert torch.equal(model(TOKENS), expected)
    assert model.modes == ["target"] * N_LAYERS
    with model.mode("base"):
        assert torch.equal(model(TOKENS), hybrid)


def test_cutoffs_are_uniform_and_a_function_of_seed_and_step() -> None:
    draws = torch.tensor([draw_cutoff(7, step, N_LAYERS) for step in range(4000)])
    shares = torch.bincount(draws, minlength=N_LAYERS + 1) / 4000
    assert (shares - 1 / (N_LAYERS + 1)).abs().max() < 0.03
    assert draws[123] == draw_cutoff(7, 123, N_LAYERS)
    assert any(draw_cutoff(7, s, N_LAYERS) != draw_cutoff(8, s, N_LAYERS) for s in range(10))


def test_kl_of_the_terms_is_the_plain_kl_of_the_logits() -> None:
    model = load_pair(*tiny_pair(), dtype=torch.float64).requires_grad_(False)
    params = random_params()
    naive = Naive("qwen2", params)
    per_position = kl_divergence(naive.run(TOKENS, range(0))[0], naive.run(TOKENS, range(N_LAYERS))[0])
    torch.testing.assert_close(step(model, leaves(params), 1).kl, per_position[MASK].mean().detach())
