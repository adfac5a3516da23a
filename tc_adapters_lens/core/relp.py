"""An MLP as a linear map, its nonlinearities held as constants at one text, for the edges of attribution graphs.

    gated    post = act(g) * u,  g = x W_gate, u = x W_in         plain    post = act(g),  g = x W_in + b_in

A nonlinearity becomes its own ratio, `act(g) = (act(g) / g) * g`, and the ratio is a constant (for SiLU it is the
sigmoid). Of a product there are two ways to hold a factor:

- `relp`: half of it goes to each factor, `act(g) * u = c_gate * g + c_up * u` with c_gate = (act(g) / g) * u / 2 and
  c_up = act(g) / 2;
- `gate-detach`: the gate is a constant, c_gate = 0 and c_up = act(g).

Either way the map gives the MLP's own output at that text, so nothing is lost: every output is the sum of what the
inputs and the biases put into it.

Source: Hu et al. 2026, section 5.3 (arXiv 2602.20904); RelP: Rezaei Jafari et al. 2025 (arXiv 2508.21258).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["LinearMlp", "MlpWeights", "Rule", "slope"]

Rule = Literal["relp", "gate-detach"]


def slope(activation: Callable[[Tensor], Tensor], g: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """`activation(g) / g`; at zero its limit from above."""
    tiny = torch.finfo(g.dtype).tiny ** 0.5
    safe = torch.where(g.abs() < tiny, tiny, g)
    return activation(safe) / safe


@dataclass(frozen=True)
class MlpWeights:
    """One MLP. W_gate `[d_model d_mlp]` or None for a plain one, W_in `[d_model d_mlp]`, b_in `[d_mlp]` (of a gated one
    added after the product), W_out `[d_mlp d_model]`, b_out `[d_model]`, the elementwise activation."""

    W_gate: Float[Tensor, "d_model d_mlp"] | None
    W_in: Float[Tensor, "d_model d_mlp"]
    b_in: Float[Tensor, " d_mlp"]
    W_out: Float[Tensor, "d_mlp d_model"]
    b_out: Float[Tensor, " d_model"]
    activation: Callable[[Tensor], Tensor]

    def linear_at(self, x: Float[Tensor, "*pos d_model"], rule: Rule = "relp") -> LinearMlp:
        """The linear map that holds the coefficients of this input.

        Raises:
            ValueError: `gate-detach` of a plain MLP, which has no gate.
        """
        x = x.detach()
        if self.W_gate is None:
            if rule == "gate-detach":
                raise ValueError("gate-detach needs gated MLPs. Got plain ones; use relp.")
            return LinearMlp(self, None, slope(self.activation, x @ self.W_in + self.b_in))
        gate = x @ self.W_gate
        if rule == "gate-detach":
            return LinearMlp(self, None, self.activation(gate))
        return LinearMlp(self, slope(self.activation, gate) * (x @ self.W_in) / 2, self.activation(gate) / 2)


@dataclass(frozen=True)
class LinearMlp:
    """`x -> linear(x) + bias()`, equal to the MLP where x is the input it was made at.

    c_gate: coefficients of x W_gate, `[*pos d_mlp]`; None where the gate passes nothing on.
    c_up: coefficients of x W_in, `[*pos d_mlp]`.
    """

    weights: MlpWeights
    c_gate: Float[Tensor, "*pos d_mlp"] | None
    c_up: Float[Tensor, "*pos d_mlp"]

    def linear(self, x: Float[Tensor, "*pos d_model"]) -> Float[Tensor, "*pos d_model"]:
        """What an input contributes, biases apart."""
        w = self.weights
        post = self.c_up * (x @ w.W_in)
        if self.c_gate is not None and w.W_gate is not None:
            post = post + self.c_gate * (x @ w.W_gate)
        return post @ w.W_out

    def bias(self) -> Float[Tensor, "*pos d_model"]:
        """What the MLP's biases contribute."""
        w = self.weights
        post = w.b_in * self.c_up if w.W_gate is None else w.b_in.expand_as(self.c_up)
        return post @ w.W_out + w.b_out

    def matrix_transposed(self, pos: int) -> Float[Tensor, "d_model d_model"]:
        """`transposed` at one position as a matrix, to be multiplied with from the left."""
        w = self.weights
        matrix = (w.W_out.T * self.c_up[pos]) @ w.W_in.T
        if self.c_gate is not None and w.W_gate is not None:
            matrix.addmm_(w.W_out.T * self.c_gate[pos], w.W_gate.T)
        return matrix

    def transposed(self, grad: Float[Tensor, "pos n d_model"], n_pos: int) -> Float[Tensor, "pos n d_model"]:
        """The transposed of `linear`, of its first `n_pos` positions: gradients of the output to those of the input.

        Args:
            grad: n gradients at each of those positions.
        """
        w = self.weights
        post = grad @ w.W_out.T
        if self.c_gate is None or w.W_gate is None:
            return post.mul_(self.c_up[:n_pos, None]) @ w.W_in.T
        out = (post * self.c_gate[:n_pos, None]) @ w.W_gate.T
        flat = out.flatten(0, -2)
        return flat.addmm_(post.mul_(self.c_up[:n_pos, None]).flatten(0, -2), w.W_in.T).view_as(out)
