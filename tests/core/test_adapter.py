"""One adapter, dense and sparse, against the two lines of plain autograd that it stands for."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tc_adapters_lens.core import adapter as kernel
from tc_adapters_lens.core.adapter import adapter

N_POS, D_MODEL, N_FEATURES = 50, 12, 64
MASK = torch.rand(2, 25, generator=torch.Generator().manual_seed(5)) > 0.3


def case(density: float, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """x [2 25 d_model] and the four parameters, with about this share of features active."""
    generator = torch.Generator().manual_seed(0)
    x, W_enc, W_dec, b_dec = (
        torch.randn(shape, generator=generator, dtype=torch.float64)
        for shape in ((2, 25, D_MODEL), (D_MODEL, N_FEATURES), (N_FEATURES, D_MODEL), (D_MODEL,))
    )
    b_enc = torch.full((N_FEATURES,), -float((x @ W_enc).flatten().quantile(1 - density)), dtype=torch.float64)
    return [tensor.to(dtype).requires_grad_() for tensor in (x, W_enc, b_enc, W_dec, b_dec)]


def plain(x: Tensor, W_enc: Tensor, b_enc: Tensor, W_dec: Tensor, b_dec: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
    f = torch.relu(x @ W_enc + b_enc)
    return f @ W_dec + b_dec, f[mask].sum(0), (f[mask] > 0).sum(0)


def scalar(y: Tensor, totals: Tensor) -> Tensor:
    """A function of both outputs with gradients of every size."""
    weights = torch.linspace(-1, 2, y.numel(), dtype=y.dtype).view_as(y)
    return (y * weights).sum() + (totals * torch.linspace(0.1, 3, N_FEATURES, dtype=totals.dtype)).sum()


@pytest.fixture(params=["dense", "sparse"])
def way(request, monkeypatch) -> str:
    monkeypatch.setattr(kernel, "MAX_SPARSE_DENSITY", {"dense": -1.0, "sparse": 2.0}[request.param])
    return request.param


@pytest.mark.parametrize("mask", [MASK, None], ids=["masked", "all count"])
@pytest.mark.parametrize("density", [0.0, 0.01, 0.5])
def test_values_and_gradients_equal_plain_autograd(way: str, density: float, mask: Tensor | None) -> None:
    inputs = case(density)
    y, totals, counts = adapter(*inputs, mask)
    expected = plain(*inputs, torch.ones_like(MASK) if mask is None else mask)
    for ours, theirs in zip((y, totals, counts), expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=1e-12)
    assert counts.dtype == torch.int64
    grads = torch.autograd.grad(scalar(y, totals), inputs)
    for ours, theirs in zip(grads, torch.autograd.grad(scalar(*expected[:2]), inputs), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-11, rtol=1e-11)


def test_either_output_alone_has_its_gradient(way: str) -> None:
    inputs = case(0.1)
    plain_outputs = plain(*inputs, MASK)
    for index in (0, 1):
        ours = torch.autograd.grad(adapter(*inputs, MASK)[index].sum(), inputs)
        theirs = torch.autograd.grad(plain_outputs[index].sum(), inputs, allow_unused=True, retain_graph=True)
        for left, right in zip(ours, theirs, strict=True):
            torch.testing.assert_close(left, torch.zeros_like(left) if right is None else right)


def test_an_input_without_gradient_gets_none(way: str) -> None:
    inputs = case(0.1)
    inputs[0] = inputs[0].detach()
    y, totals, _ = adapter(*inputs, MASK)
    scalar(y, totals).backward()
    assert inputs[0].grad is None
    assert inputs[1].grad is not None


def kept_for_backward(density: float) -> int:
    inputs = case(density)
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        adapter(*inputs, MASK)
    own = {tensor.untyped_storage().data_ptr() for tensor in inputs}
    return sum(t.numel() for t in kept if t.untyped_storage().data_ptr() not in own)


def test_the_switch_is_the_share_of_active_entries() -> None:
    few, many = kept_for_backward(0.02), kept_for_backward(0.3)
    assert many >= N_POS * N_FEATURES
    assert few < 0.2 * N_POS * N_FEATURES


def test_half_precision_is_dense_and_counts_exactly() -> None:
    inputs = case(0.02, torch.bfloat16)
    y, totals, counts = adapter(*inputs, MASK)
    assert y.dtype == torch.bfloat16
    assert totals.dtype == torch.float32
    f = (inputs[0] @ inputs[1] + inputs[2]).relu()
    assert (counts - (f[MASK] > 0).sum(0)).abs().max() <= 1  # addmm rounds once less
    torch.testing.assert_close(totals, f[MASK].float().sum(0), atol=0.05, rtol=0.02)
    scalar(y, totals).backward()
    assert all(tensor.grad is not None for tensor in inputs)
