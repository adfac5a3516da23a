"""The losses of transcoder adapters, masked and exact.

    output and bridging KL    chunked_kl; kl_divergence is its plain form, position by position
    NMSE                      squared_error / squared_norm
    sparsity                  weighted_l1

All but `kl_divergence` are sums over positions: the caller divides by what belongs to the whole batch, however many
processes share it. Every reduction runs in float32 (float64 for float64 input), whatever the precision of the
tensors that come in. A mask is True where a position counts.
Source: Hu et al. 2026, section 3.2 (arXiv 2602.20904).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

__all__ = ["chunked_kl", "kl_divergence", "log_softmax", "squared_error", "squared_norm", "weighted_l1"]


def kl_divergence(
    target_logits: Float[Tensor, "batch pos d_vocab"], logits: Float[Tensor, "batch pos d_vocab"]
) -> Float[Tensor, "batch pos"]:
    """KL(p || p') of the next-token distributions at every position, in nats.

    Args:
        target_logits: the target's, giving p; receives no gradient.
        logits: the other model's, giving p'.
    Returns:
        Unreduced, float32 at least; 0 where the two distributions are equal.
    """
    log_p = log_softmax(target_logits.detach())
    return (log_p.exp() * (log_p - log_softmax(logits))).sum(-1)


def squared_norm(
    resid: Float[Tensor, "batch pos d_model"], mask: Bool[Tensor, "batch pos"] | None = None
) -> Float[Tensor, ""]:
    """sum |h|^2 over positions that count (all without a mask): the denominator of NMSE. No gradient."""
    wide = resid.detach().to(_reduction_dtype(resid))
    return _masked(torch.linalg.vecdot(wide, wide), mask).sum()


def squared_error(
    resid: Float[Tensor, "batch pos d_model"],
    target_resid: Float[Tensor, "batch pos d_model"],
    mask: Bool[Tensor, "batch pos"] | None = None,
) -> Float[Tensor, ""]:
    """sum |h' - h|^2 over positions that count (all without a mask): the numerator of NMSE.

    The difference is taken again for backward, not kept.

    Args:
        resid: replacement model's residual stream.
        target_resid: target's; receives no gradient.
    """
    return _SquaredError.apply(resid, target_resid, mask)


def weighted_l1(totals: Float[Tensor, " n_features"], W_dec: Float[Tensor, "n_features d_out"]) -> Float[Tensor, ""]:
    """Decoder-norm-weighted L1 of one adapter, sum over i of f_i |W_dec_i|_2, summed over positions.

    At a row of zeros, as all are in a fresh adapter, the norm's gradient is zero.

    Args:
        totals: every feature's activations summed over positions that count, float32 at least.
        W_dec: decoder, one direction per feature.
    """
    return totals @ torch.linalg.vector_norm(W_dec, dim=-1, dtype=totals.dtype)


class _SquaredError(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, resid: Tensor, target_resid: Tensor, mask: Tensor | None) -> Tensor:
        ctx.save_for_backward(resid, target_resid, mask)
        error = _difference(resid, target_resid)
        return _masked(torch.linalg.vecdot(error, error), mask).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        resid, target_resid, mask = ctx.saved_tensors
        grad = _difference(resid, target_resid).mul_(2 * grad_outputs[0])
        if mask is not None:
            grad.masked_fill_(~mask.unsqueeze(-1), 0)
        return grad.to(resid.dtype), None, None


def chunked_kl(
    resid: Float[Tensor, "batch pos d_model"],
    target_resid: Float[Tensor, "batch pos d_model"],
    unembed: Callable[[Tensor], Tensor],
    positions: Int[Tensor, " n_positions"],
    chunk_size: int = 512,
) -> Float[Tensor, ""]:
    """Sum over positions of KL(p || p') of two final residual streams, without ever holding all logits.

    Positions are taken `chunk_size` at a time: logits of both streams, their KL, and (when gradients are on) its
    gradient with respect to the stream, so that nothing of vocabulary size outlives the chunk. Memory: about
    five float32 tensors of [chunk_size, d_vocab], however many positions. Once differentiable.

    Args:
        resid: stream after the last layer, giving p'.
        target_resid: the target's, giving p; receives no gradient.
        unembed: maps [1, n, d_model] to logits [1, n, d_vocab], each position by itself: final norm,
            unembedding, soft cap. Its parameters receive no gradient.
        positions: indices into the flattened batch and pos of the positions that count.
        chunk_size: positions unembedded at a time.
    Returns:
        In nats; 0 for no positions.
    Raises:
        ValueError: a chunk size below 1.
    """
    if chunk_size < 1:
        raise ValueError(f"chunked_kl needs a chunk size above 0. Got {chunk_size}.")
    wants_grad = torch.is_grad_enabled() and resid.requires_grad
    return _ChunkedKL.apply(resid, target_resid, unembed, positions, chunk_size, wants_grad)


class _ChunkedKL(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        resid: Tensor,
        target_resid: Tensor,
        unembed: Callable[[Tensor], Tensor],
        positions: Tensor,
        chunk_size: int,
        wants_grad: bool,
    ) -> Tensor:
        total = torch.zeros((), dtype=_reduction_dtype(target_resid), device=target_resid.device)
        grad = torch.zeros_like(resid, memory_format=torch.contiguous_format) if wants_grad else None
        for chunk in positions.split(chunk_size):
            log_p = log_softmax(unembed(_take(target_resid, chunk)))
            p = log_p.exp()
            stream = _take(resid, chunk)
            with torch.set_grad_enabled(wants_grad):
                logits = unembed(stream.requires_grad_(wants_grad))
            log_q = log_softmax(logits.detach())
            total += log_p.sub_(log_q).mul_(p).sum()
            if grad is not None:
                # dKL(p || q) / dlogits = q - p
                (stream_grad,) = torch.autograd.grad(logits, stream, log_q.exp_().sub_(p).to(logits.dtype))
                grad.flatten(0, 1)[chunk] = stream_grad[0]
        ctx.save_for_backward(grad)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = ctx.saved_tensors
        scaled = grad * grad_outputs[0]  # a 0-dimensional scale leaves the dtype as it is
        return (scaled, None, None, None, None, None)


def _take(resid: Tensor, positions: Tensor) -> Tensor:
    """The given positions of the flattened batch, detached: [1, n, d_model]."""
    return resid.detach().flatten(0, 1)[positions].unsqueeze(0)


def log_softmax(logits: Float[Tensor, "*pos d_vocab"]) -> Float[Tensor, "*pos d_vocab"]:
    """Log-probabilities, float32 at least."""
    return torch.log_softmax(logits, dim=-1, dtype=_reduction_dtype(logits))


def _reduction_dtype(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _difference(resid: Tensor, target_resid: Tensor) -> Tensor:
    """In the reduction's precision; always a new tensor."""
    dtype = _reduction_dtype(resid)
    return resid.detach().to(dtype) - target_resid.detach().to(dtype)


def _masked(per_position: Tensor, mask: Tensor | None) -> Tensor:
    """What masked positions hold, infinities too, has no influence."""
    return per_position if mask is None else per_position.masked_fill(~mask, 0)
