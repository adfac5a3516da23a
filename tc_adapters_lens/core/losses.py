"""The losses of transcoder adapters, masked and exact.

    output and bridging KL    chunked_kl (training), kl_divergence (small vocabularies, evaluation)
    NMSE                      nmse
    sparsity                  sparsity

A mask is True where a position counts. Every reduction runs in float32 (float64 for float64 input),
whatever the precision of the tensors that come in. A mask without a True is an error on the CPU; on an accelerator the
check would wait for the device at every loss, and the result is NaN instead.
Source: Hu et al. 2026, section 3.2 (arXiv 2602.20904).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.autograd.function import once_differentiable

__all__ = ["chunked_kl", "kl_divergence", "masked_mean", "nmse", "sparsity"]


def masked_mean(x: Float[Tensor, "batch pos"], mask: Bool[Tensor, "batch pos"]) -> Float[Tensor, ""]:
    """Mean over the unmasked positions, unit of `x`; what masked positions hold has no influence.

    Raises:
        ValueError: no position is unmasked.
    """
    n_positions = _count_positions(mask)
    return x.masked_fill(~mask, 0).sum(dtype=_reduction_dtype(x)) / n_positions


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
    log_p = _log_softmax(target_logits.detach())
    return (log_p.exp() * (log_p - _log_softmax(logits))).sum(-1)


def nmse(
    resid: Float[Tensor, "batch pos d_model"],
    target_resid: Float[Tensor, "batch pos d_model"],
    mask: Bool[Tensor, "batch pos"],
    total: Float[Tensor, ""] | None = None,
) -> Float[Tensor, ""]:
    """Normalised squared error between two residual streams.

        sum |h' - h|^2 / sum |h|^2        over unmasked positions

    Args:
        resid: replacement model's residual stream.
        target_resid: target's; receives no gradient.
        mask: True where a position counts.
        total: sum |h|^2 to divide by, if these are part of a batch; that of these positions by default.
    Returns:
        Scalar, dimensionless; 0 is exact, 1 is as wrong as predicting zero.
    Raises:
        ValueError: no position is unmasked.
    Source: Hu et al. 2026, section 3.2 (arXiv 2602.20904).
    """
    if total is None:
        _count_positions(mask)
    dtype = _reduction_dtype(resid)
    target = target_resid.detach().to(dtype)
    ignored = ~mask
    squared_error = (resid.to(dtype) - target).square().sum(-1).masked_fill(ignored, 0).sum()
    return squared_error / (target.square().sum(-1).masked_fill(ignored, 0).sum() if total is None else total)


def sparsity(
    acts: Float[Tensor, "batch pos n_features"],
    W_dec: Float[Tensor, "n_features d_out"],
    mask: Bool[Tensor, "batch pos"],
    n_positions: Float[Tensor, ""] | None = None,
) -> Float[Tensor, ""]:
    """Decoder-norm-weighted L1 of one adapter.

        sum over i of f_i |W_dec_i|_2        mean over unmasked positions

    Gradients reach the activations and the decoder; at a row of zeros, as all are in a fresh adapter, the
    norm's gradient is zero.

    Args:
        acts: feature activations, not negative.
        W_dec: decoder, one direction per feature.
        mask: True where a position counts.
        n_positions: positions to divide by, if these are part of a batch; the unmasked ones by default.
    Returns:
        Scalar, unit of the residual stream.
    Raises:
        ValueError: no position is unmasked.
    Source: Hu et al. 2026, section 3.2 (arXiv 2602.20904).
    """
    if n_positions is None:
        n_positions = _count_positions(mask)
    dtype = _reduction_dtype(acts)
    # Positions first: only n_features numbers are ever held in the reduction's precision.
    totals = acts.masked_fill(~mask.unsqueeze(-1), 0).sum((0, 1), dtype=dtype)
    norms = torch.linalg.vector_norm(W_dec, dim=-1, dtype=dtype)
    return totals @ norms / n_positions


def chunked_kl(
    resids: Sequence[Float[Tensor, "batch pos d_model"]],
    target_resid: Float[Tensor, "batch pos d_model"],
    unembed: Callable[[Tensor], Tensor],
    mask: Bool[Tensor, "batch pos"],
    chunk_size: int = 512,
    n_positions: Float[Tensor, ""] | None = None,
) -> Float[Tensor, " n_resids"]:
    """KL(p || p') for several final residual streams against one, without ever holding all logits.

    Unmasked positions are taken `chunk_size` at a time: the target's distribution once per chunk, shared by
    all streams, then each stream's, its KL, and (when gradients are on) its gradient with respect to the
    stream, so that nothing of vocabulary size outlives the chunk. Memory: about five float32 tensors of
    [chunk_size, d_vocab], however many positions. The gradient cannot be differentiated a second time.

    Args:
        resids: streams after the last layer, giving p' each.
        target_resid: the target's, giving p; receives no gradient.
        unembed: maps [1, n, d_model] to logits [1, n, d_vocab], each position by itself: final norm,
            unembedding, soft cap. Its parameters receive no gradient.
        mask: True where a position counts.
        chunk_size: positions unembedded at a time.
        n_positions: positions to divide by, if these are part of a batch; the unmasked ones by default.
    Returns:
        The mean KL over unmasked positions of each stream, in nats.
    Raises:
        ValueError: no position is unmasked, no streams, or a chunk size below 1.
    """
    if not resids or chunk_size < 1:
        raise ValueError(
            f"chunked_kl needs a stream and a chunk size above 0. Got {len(resids)} streams and {chunk_size}."
        )
    if n_positions is None:
        n_positions = _count_positions(mask)
    wants_grad = [torch.is_grad_enabled() and resid.requires_grad for resid in resids]
    return _ChunkedKL.apply(target_resid, unembed, mask, chunk_size, wants_grad, n_positions, *resids)


class _ChunkedKL(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        target_resid: Tensor,
        unembed: Callable[[Tensor], Tensor],
        mask: Tensor,
        chunk_size: int,
        wants_grad: list[bool],
        n_positions: Tensor,
        *resids: Tensor,
    ) -> Tensor:
        positions = mask.flatten().nonzero().squeeze(-1)
        dtype = _reduction_dtype(target_resid)
        sums = torch.zeros(len(resids), dtype=dtype, device=target_resid.device)
        grads = [
            torch.zeros_like(resid, memory_format=torch.contiguous_format) if wanted else None
            for resid, wanted in zip(resids, wants_grad, strict=True)
        ]
        for chunk in positions.split(chunk_size):
            log_p = _log_softmax(unembed(_take(target_resid, chunk)))
            p = log_p.exp()
            for index, (resid, grad) in enumerate(zip(resids, grads, strict=True)):
                stream = _take(resid, chunk)
                with torch.set_grad_enabled(grad is not None):
                    logits = unembed(stream.requires_grad_(grad is not None))
                log_q = _log_softmax(logits.detach())
                sums[index] += (log_p - log_q).mul_(p).sum()
                if grad is not None:
                    # dKL(p || q) / dlogits = q - p
                    (stream_grad,) = torch.autograd.grad(logits, stream, log_q.exp_().sub_(p).to(logits.dtype))
                    grad.flatten(0, 1)[chunk] = stream_grad[0]
        ctx.n_positions = n_positions
        ctx.save_for_backward(*grads)
        return sums / n_positions

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        scales = grad_outputs[0] / ctx.n_positions
        grads = (
            None if grad is None else grad * scale  # a 0-dimensional scale leaves the dtype as it is
            for grad, scale in zip(ctx.saved_tensors, scales, strict=True)
        )
        return (None, None, None, None, None, None, *grads)


def _take(resid: Tensor, positions: Tensor) -> Tensor:
    """The given positions of the flattened batch, detached: [1, n, d_model]."""
    return resid.detach().flatten(0, 1)[positions].unsqueeze(0)


def _log_softmax(logits: Tensor) -> Tensor:
    return torch.log_softmax(logits, dim=-1, dtype=_reduction_dtype(logits))


def _reduction_dtype(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _count_positions(mask: Tensor) -> Tensor:
    n_positions = mask.sum()
    if mask.device.type == "cpu" and n_positions == 0:
        raise ValueError(f"a loss needs at least one unmasked position. Got a mask of {tuple(mask.shape)}, all False.")
    return n_positions
