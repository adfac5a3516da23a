"""The fused kernel against TransformerLens' own attention, which a hook on the pattern brings back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor
from transformer_lens.cache.key_value_cache import TransformerLensKeyValueCache
from transformer_lens.hook_points import HookPoint

from tc_adapters_lens.models.diff_transformer import HookedDiffTransformer
from tc_adapters_lens.models.fused_attention import FusedAttention
from tc_adapters_lens.models.pair import load_pair
from tests.tiny import D_VOCAB, FAMILY_CONFIGS, N_LAYERS, tiny_pair

TOKENS = torch.randint(0, D_VOCAB, (2, 30), generator=torch.Generator().manual_seed(0))
SDPA = "aten::scaled_dot_product_attention"


@contextmanager
def eager(model: HookedDiffTransformer) -> Iterator[None]:
    """Every layer's pattern is looked at and left as it is."""
    names = [f"blocks.{layer}.attn.hook_pattern" for layer in range(N_LAYERS)]
    with model.hooks(fwd_hooks=[(name, lambda pattern, hook: pattern) for name in names]):
        yield


def n_kernel_calls(model: HookedDiffTransformer, **kwargs: object) -> int:
    with torch.profiler.profile() as profile:
        model(TOKENS, **kwargs)
    return sum(event.count for event in profile.key_averages() if event.key == SDPA)


def value_and_gradients(model: HookedDiffTransformer, **kwargs: object) -> list[Tensor]:
    """Logits, and the gradients of a fixed projection of them by the embeddings and every attention weight."""
    model.zero_grad()
    embedded = model.embed(TOKENS).detach().requires_grad_()
    logits = model(embedded, start_at_layer=0, **kwargs)
    direction = torch.randn(logits.shape, generator=torch.Generator().manual_seed(1))
    counted = kwargs.get("attention_mask", torch.ones_like(TOKENS)).bool()
    (logits * direction)[counted].sum().backward()
    grads = [p.grad for b in model.blocks for p in b.attn.parameters()]  # type: ignore[union-attr]
    return [logits[counted].detach(), embedded.grad, *grads]  # type: ignore[list-item]


@pytest.mark.parametrize("padded", [False, True], ids=["whole", "padded on the left"])
@pytest.mark.parametrize("family", FAMILY_CONFIGS)
def test_logits_and_gradients_equal_eager(family: str, padded: bool) -> None:
    model = load_pair(*tiny_pair(family))
    kwargs = {}
    if padded:
        mask = torch.ones_like(TOKENS)
        mask[0, :11] = 0
        kwargs = {"attention_mask": mask}
    fused = value_and_gradients(model, **kwargs)
    with eager(model):
        expected = value_and_gradients(model, **kwargs)
    for ours, theirs in zip(fused, expected, strict=True):
        assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max().clamp(min=1)
    assert expected[1].abs().max() > 1e-2


@pytest.mark.parametrize("padded", [False, True], ids=["whole", "padded on the left"])
@pytest.mark.parametrize("family", FAMILY_CONFIGS)
def test_with_a_kv_cache_equals_eager(family: str, padded: bool) -> None:
    """A first part, then several tokens at once, then one by one."""
    model = load_pair(*tiny_pair(family))
    mask = torch.ones_like(TOKENS)
    mask[0, : 5 * padded] = 0
    lengths = [12, 9, *[1] * 9]

    def in_parts() -> Tensor:
        cache = TransformerLensKeyValueCache.init_cache(model.cfg, "cpu", 2)
        parts = zip(TOKENS.split(lengths, dim=1), mask.split(lengths, dim=1), strict=True)
        logits = [model(part, attention_mask=seen, past_kv_cache=cache) for part, seen in parts]
        return torch.cat(logits, dim=1)[mask.bool()]

    with torch.no_grad():
        fused = in_parts()
        with eager(model):
            torch.testing.assert_close(fused, in_parts(), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(fused, model(TOKENS, attention_mask=mask)[mask.bool()], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", FAMILY_CONFIGS)
def test_the_kernel_runs_in_every_layer_that_it_can_express(family: str) -> None:
    model = load_pair(*tiny_pair(family))
    assert n_kernel_calls(model) == (0 if family == "gemma2" else N_LAYERS)


@pytest.mark.parametrize("point", ["hook_pattern", "hook_attn_scores"])
def test_a_hooked_layer_steps_aside_alone_and_comes_back(point: str) -> None:
    model = load_pair(*tiny_pair())
    seen: list[Tensor] = []
    with model.hooks(fwd_hooks=[(f"blocks.1.attn.{point}", lambda x, hook: seen.append(x))]):
        assert n_kernel_calls(model) == N_LAYERS - 1
    assert n_kernel_calls(model) == N_LAYERS
    if point == "hook_pattern":
        torch.testing.assert_close(seen[0].sum(-1), torch.ones(seen[0].shape[:-1]))
    with model.hooks(bwd_hooks=[(f"blocks.1.attn.{point}", lambda grad, hook: None)]):
        assert n_kernel_calls(model) == N_LAYERS - 1


def test_what_stands_in_place_of_the_hook_point_is_run() -> None:
    """SAELens puts its wrapper where the hook point was."""
    model = load_pair(*tiny_pair())
    attn = model.blocks[0].attn
    expected = model(TOKENS)

    class Twice(torch.nn.Module):
        def forward(self, pattern: Tensor) -> Tensor:
            return 2 * pattern

    attn.hook_pattern = Twice()
    assert not torch.allclose(model(TOKENS), expected)
    attn.hook_pattern = HookPoint()


def test_patching_the_pattern_and_split_inputs_work() -> None:
    model = load_pair(*tiny_pair())
    zero = [("blocks.0.attn.hook_pattern", lambda pattern, hook: torch.zeros_like(pattern))]
    _, cache = model.run_with_cache(TOKENS)
    assert cache["blocks.2.attn.hook_pattern"].shape == (2, 4, 30, 30)
    patched = model.run_with_hooks(TOKENS, fwd_hooks=zero)
    z_zero = [("blocks.0.attn.hook_z", lambda z, hook: torch.zeros_like(z))]
    torch.testing.assert_close(patched, model.run_with_hooks(TOKENS, fwd_hooks=z_zero))

    expected = model(TOKENS)
    model.set_use_split_qkv_input(True)
    torch.testing.assert_close(model(TOKENS), expected, atol=1e-5, rtol=1e-5)
    model.set_use_split_qkv_input(False)


@pytest.mark.parametrize("family", ["qwen2", "neox"])
def test_hooks_around_the_kernel_see_what_eager_attention_shows(family: str) -> None:
    model = load_pair(*tiny_pair(family))
    names = [f"blocks.1.attn.hook_{x}" for x in ("q", "k", "v", "rot_q", "rot_k", "z")]
    _, fused = model.run_with_cache(TOKENS, names_filter=names)
    with eager(model):
        _, expected = model.run_with_cache(TOKENS, names_filter=names)
    assert set(fused) == set(names)
    for name in names:
        torch.testing.assert_close(fused[name], expected[name], atol=1e-5, rtol=1e-5)


def test_what_is_kept_for_backward_does_not_grow_with_the_square_of_the_length() -> None:
    model = load_pair(*tiny_pair()).requires_grad_(False)
    attn = model.blocks[0].attn
    assert isinstance(attn, FusedAttention)

    def kept(length: int) -> int:
        x = torch.randn(1, length, model.cfg.d_model, requires_grad=True)
        storages: dict[int, int] = {}

        def keep(tensor: Tensor) -> Tensor:
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            attn(x, x, x)
        return sum(storages.values())

    assert kept(400) < 2.2 * kept(200)
