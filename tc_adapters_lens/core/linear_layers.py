"""Norms and attention as linear maps: denominators and patterns held as constants at one text.

Each has `linear` (what an input contributes), `bias` (what its own biases do) and `transposed` (gradients of the output
to gradients of the input). Gradients have positions first, `[pos n d_model]`: n of them at once, cut after the last
position that any of them comes from, because causal attention reaches nothing behind it.

Source: as `core.relp`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["LinearAttention", "LinearNorm"]

_QUERIES_AT_ONCE = 256  # later queries' block of the pattern reaches further back: the rest is never multiplied


@dataclass(frozen=True)
class LinearNorm:
    """RMSNorm or LayerNorm with its denominator held.

    scale: the denominator at each position, `[pos 1]`.
    w: its weight, `[d_model]`.
    b: a LayerNorm's bias, `[d_model]`; None for RMSNorm, which does not centre either.
    """

    scale: Float[Tensor, "pos 1"]
    w: Float[Tensor, " d_model"]
    b: Float[Tensor, " d_model"] | None

    def linear(self, x: Float[Tensor, "*n pos d_model"]) -> Float[Tensor, "*n pos d_model"]:
        centred = x if self.b is None else x - x.mean(-1, keepdim=True)
        return centred / self.scale * self.w

    def transposed(self, grad: Float[Tensor, "pos n d_model"]) -> Float[Tensor, "pos n d_model"]:
        return self._transposed(grad, self.scale[: len(grad), None])

    def transposed_at(self, grad: Float[Tensor, "n d_model"], positions: Tensor) -> Float[Tensor, "n d_model"]:
        """As `transposed`, each gradient at a position of its own."""
        return self._transposed(grad, self.scale[positions])

    def _transposed(self, grad: Tensor, scale: Tensor) -> Tensor:
        read = grad * (self.w / scale)
        return read if self.b is None else read - read.mean(-1, keepdim=True)


@dataclass(frozen=True)
class LinearAttention:
    """Attention with its pattern held; queries and keys are gone.

    pattern: `[head query key]`.
    W_V, b_V: `[kv_head d_model d_head]`, `[kv_head d_head]`; consecutive heads share a kv_head.
    W_O, b_O: `[head d_head d_model]`, `[d_model]`.
    """

    pattern: Float[Tensor, "head query key"]
    W_V: Float[Tensor, "kv_head d_model d_head"]
    b_V: Float[Tensor, "kv_head d_head"]
    W_O: Float[Tensor, "head d_head d_model"]
    b_O: Float[Tensor, " d_model"]

    @property
    def _heads_per_value(self) -> int:
        return len(self.W_O) // len(self.W_V)

    def linear(self, x: Float[Tensor, "n pos d_model"]) -> Float[Tensor, "n pos d_model"]:
        out = torch.zeros_like(x)
        for head, (pattern, W_O) in enumerate(zip(self.pattern, self.W_O, strict=True)):
            out += pattern @ (x @ self.W_V[head // self._heads_per_value]) @ W_O
        return out

    def bias(self) -> Float[Tensor, "pos d_model"]:
        """What b_V, as far as the pattern passes it on, and b_O contribute."""
        b_V = self.b_V.repeat_interleave(self._heads_per_value, 0)
        return torch.einsum("hq,he,hed->qd", self.pattern.sum(-1), b_V, self.W_O) + self.b_O

    def transposed(self, grad: Float[Tensor, "pos n d_model"]) -> Float[Tensor, "pos n d_model"]:
        n_pos, n, d_model = grad.shape
        flat = grad.reshape(-1, d_model)
        out = torch.zeros_like(flat)
        for kv_head, W_V in enumerate(self.W_V):
            value = grad.new_zeros(n_pos, n * W_V.shape[1])
            for head in range(kv_head * self._heads_per_value, (kv_head + 1) * self._heads_per_value):
                z = (flat @ self.W_O[head].T).view(n_pos, -1)
                for start in range(0, n_pos, _QUERIES_AT_ONCE):
                    stop = min(start + _QUERIES_AT_ONCE, n_pos)
                    value[:stop].addmm_(self.pattern[head, start:stop, :stop].T, z[start:stop])
            out.addmm_(value.view(-1, W_V.shape[1]), W_V.T)
        return out.view(n_pos, n, d_model)

    def transposed_at(
        self, grad: Float[Tensor, "n d_model"], positions: Tensor, n_pos: int
    ) -> Float[Tensor, "pos n d_model"]:
        """As `transposed`, each gradient at a query position of its own: a vector per head, weighted by the pattern."""
        W_V = self.W_V.repeat_interleave(self._heads_per_value, 0)
        read = torch.einsum("nd,hed,hfe->nhf", grad, self.W_O, W_V)
        return torch.bmm(self.pattern[:, positions, :n_pos].permute(1, 2, 0), read).transpose(0, 1)
