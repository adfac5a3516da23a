"""One adapter's forward and backward, in the cheaper of two ways that compute the same.

    f = relu(x W_enc + b_enc)            y = f W_dec + b_dec

Besides y come the two sums over positions that sparsity and statistics need, so that activations are read once.

- Dense: five matrix products of [positions, n_features, d_model] behind the encoder's. Kept for backward: x and f.
- Sparse (CPU, float32 and float64): once a trained adapter has few active features, only the encoder stays dense.
  Decoding, both weight gradients and the input's gradient touch active features alone; of f only those are kept.

The switch is the measured share of active entries, in a sample of rows: `MAX_SPARSE_DENSITY`, at which the sparse way
took from 0.4 to 0.9 of the dense way's time (240 to 2,048 positions, widths 64 to 256, 1,024 features; at a tenth of
that share from 0.1 to 0.4). On accelerators finding the active entries would wait for the device: always dense.
"""

from __future__ import annotations

import functools
import warnings
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from tc_adapters_lens.core.sparse import active_entries
from tc_adapters_lens.core.statistics import feature_counts

__all__ = ["MAX_SPARSE_DENSITY", "AdapterOutputs", "adapter"]

MAX_SPARSE_DENSITY = 1 / 16
_SAMPLED_ROWS = 64


class AdapterOutputs(NamedTuple):
    """What an adapter gives for a batch.

    y: its addition to the base MLP's output, `[*pos d_model]`.
    totals: every feature's activations summed over positions that count, `[n_features]`, float32 at least.
    counts: at how many positions that count each feature is active, `[n_features]`, int64; no gradient.
    """

    y: Float[Tensor, "*pos d_model"]
    totals: Float[Tensor, " n_features"]
    counts: Int[Tensor, " n_features"]


def adapter(
    x: Float[Tensor, "*pos d_model"],
    W_enc: Float[Tensor, "d_model n_features"],
    b_enc: Float[Tensor, " n_features"],
    W_dec: Float[Tensor, "n_features d_model"],
    b_dec: Float[Tensor, " d_model"],
    mask: Bool[Tensor, "*pos"] | None = None,
) -> AdapterOutputs:
    """Run one adapter. Gradients reach x and the four parameters, once (not twice) differentiable.

    Args:
        x: the MLP's input.
        mask: True where a position counts in `totals` and `counts`; None: all do. y does not depend on it.
    """
    rows = x.flatten(0, -2)
    counted = None if mask is None else mask.flatten()
    y, totals, counts = _Adapter.apply(rows, W_enc, b_enc, W_dec, b_dec, counted)
    return AdapterOutputs(y.view(*x.shape[:-1], -1), totals, counts)


class _Active(NamedTuple):
    """The active entries of f, row after row: which feature, how much, and where each row starts."""

    features: Int[Tensor, " n_active"]
    values: Float[Tensor, " n_active"]
    rows: Int[Tensor, " n_active"]
    starts: Int[Tensor, " n_rows_plus_1"]


class _Adapter(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, W_enc: Tensor, b_enc: Tensor, W_dec: Tensor, b_dec: Tensor, mask: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        f = torch.addmm(b_enc, x, W_enc).relu_()
        active = _active(f) if _is_sparse(f) else None
        if active is None:
            y = torch.addmm(b_dec, f, W_dec)
            totals, counts = _masked_sum(f, mask), feature_counts(f, mask)
            ctx.save_for_backward(x, W_enc, W_dec, mask, f)
        else:
            y = _weighted_rows(W_dec, active.features, active.starts, active.values).add_(b_dec)
            seen, values = active.features, active.values
            if mask is not None:
                kept = mask[active.rows]
                seen, values = seen[kept], values[kept]
            totals = values.new_zeros(len(b_enc)).index_add_(0, seen, values)
            counts = torch.bincount(seen, minlength=len(b_enc))
            ctx.save_for_backward(x, W_enc, W_dec, mask, *active)
        ctx.is_sparse = active is not None
        ctx.mark_non_differentiable(counts)
        ctx.set_materialize_grads(False)
        return y, totals, counts

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor | None) -> tuple[Tensor | None, ...]:
        grad_y, grad_totals, _ = grad_outputs
        if grad_y is None:
            x, _, W_dec, *_ = ctx.saved_tensors
            grad_y = torch.zeros(len(x), W_dec.shape[-1], dtype=W_dec.dtype, device=W_dec.device)
        grads = (_sparse_backward if ctx.is_sparse else _dense_backward)(ctx, grad_y, grad_totals)
        return (*grads, grad_y.sum(0), None)


def _dense_backward(ctx: Any, grad_y: Tensor, grad_totals: Tensor | None) -> tuple[Tensor | None, ...]:
    """Gradients of x, W_enc, b_enc and W_dec."""
    x, W_enc, W_dec, mask, f = ctx.saved_tensors
    grad_f = grad_y @ W_dec.T
    if grad_totals is not None:
        per_row = torch.ones(len(x), device=x.device) if mask is None else mask
        grad_f.addr_(per_row.to(f.dtype), grad_totals.to(f.dtype))
    grad_pre = torch.ops.aten.threshold_backward.grad_input(grad_f, f, 0, grad_input=grad_f)
    return grad_pre @ W_enc.T if ctx.needs_input_grad[0] else None, x.T @ grad_pre, grad_pre.sum(0), f.T @ grad_y


def _sparse_backward(ctx: Any, grad_y: Tensor, grad_totals: Tensor | None) -> tuple[Tensor | None, ...]:
    """As `_dense_backward`, of active entries only."""
    _warn_of_sparse_tensors_unheard()
    x, W_enc, W_dec, mask, *entries = ctx.saved_tensors
    active = _Active(*entries)
    n_features = len(W_dec)
    pattern = torch.sparse_csr_tensor(
        active.starts, active.features, active.values, (len(x), n_features), check_invariants=False
    )
    grad_pre = torch.sparse.sampled_addmm(pattern, grad_y, W_dec.T, beta=0.0).values()
    if grad_totals is not None:
        per_entry = grad_totals[active.features]
        grad_pre += per_entry if mask is None else per_entry.mul_(mask[active.rows])

    by_feature = torch.argsort(active.features, stable=True)
    rows, starts = active.rows[by_feature], _starts(active.features, n_features)
    grad_W_dec = _weighted_rows(grad_y, rows, starts, active.values[by_feature])
    grad_W_enc = _weighted_rows(x, rows, starts, grad_pre[by_feature]).T
    grad_b_enc = grad_pre.new_zeros(n_features).index_add_(0, active.features, grad_pre)
    grad_x = None
    if ctx.needs_input_grad[0]:
        grad_x = _weighted_rows(W_enc.T.contiguous(), active.features, active.starts, grad_pre)
    return grad_x, grad_W_enc, grad_b_enc, grad_W_dec


def _is_sparse(f: Tensor) -> bool:
    if f.device.type != "cpu" or f.dtype not in (torch.float32, torch.float64):
        return False
    sample = f[:: max(1, len(f) // _SAMPLED_ROWS)]
    return int(sample.count_nonzero()) <= MAX_SPARSE_DENSITY * sample.numel()


def _active(f: Tensor) -> _Active:
    entries = active_entries(f)
    rows, features = entries // f.shape[-1], entries % f.shape[-1]
    return _Active(features, f.flatten()[entries], rows, _starts(rows, len(f)))


def _starts(sorted_or_not: Tensor, n_groups: int) -> Tensor:
    """Where each group's entries start once entries are in order of group, and the total at the end."""
    starts = sorted_or_not.new_zeros(n_groups + 1)
    torch.cumsum(torch.bincount(sorted_or_not, minlength=n_groups), 0, out=starts[1:])
    return starts


def _weighted_rows(table: Tensor, indices: Tensor, starts: Tensor, weights: Tensor) -> Tensor:
    """For every group: the sum of its entries' weights times their rows of the table."""
    return F.embedding_bag(
        indices, table.contiguous(), starts, per_sample_weights=weights, mode="sum", include_last_offset=True
    )


@functools.cache
def _warn_of_sparse_tensors_unheard() -> None:
    """Torch says once in a process that sparse CSR tensors are in beta; there is nothing a user could do about it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.sparse_csr_tensor([0, 0], [], [], (1, 1))


def _masked_sum(f: Tensor, mask: Tensor | None) -> Tensor:
    """Sum over rows that count; the activations are never copied in float32."""
    if mask is None:
        return f.sum(0, dtype=torch.promote_types(f.dtype, torch.float32))
    if f.dtype in (torch.float32, torch.float64):
        return mask.to(f.dtype) @ f
    blocks = zip(f.split(1024), mask.split(1024), strict=True)
    return torch.stack([(rows * counted.unsqueeze(-1)).sum(0, dtype=torch.float32) for rows, counted in blocks]).sum(0)
