"""Of every feature, as many of its highest values as it asks for; values come a batch at a time.

A value at a position is one int64, its rank: 32 bits that sort as the value does, then 32 bits that put earlier
positions first. Ranks do not depend on the order in which values come, so neither does the result. Only values that are
not below the lowest that their feature holds are looked at twice, and they are sorted in once there are as many of them
as are held: memory is that of a few times what is asked for.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

__all__ = ["MAX_POSITIONS", "RaggedTop"]

MAX_POSITIONS = 2**32
"""Positions must be below this."""

_LAST = MAX_POSITIONS - 1
_NONE = torch.iinfo(torch.int64).min  # below the rank of minus infinity
_LEAST_WAITING = 2**20
_AT_ONCE = 2**22  # values looked at at a time


class RaggedTop:
    """The highest values of some features; of equal ones those at earlier positions.

    Memory: 20 bytes for every value asked for, and 12 MB; five times that while they are sorted.

    Args:
        n: how many values each feature asks for; kept where this is.
    """

    def __init__(self, n: Int[Tensor, " n_features"]) -> None:
        self._n = n
        self._ends = n.cumsum(0)
        self._ranks = torch.full((int(n.sum()),), _NONE, dtype=torch.int64, device=n.device)
        self._waiting: list[tuple[Int[Tensor, " m"], Int[Tensor, " m"]]] = []
        self._set_lowest()

    def add(self, values: Float[Tensor, "n_rows n_features"], positions: Int[Tensor, " n_rows"]) -> None:
        """Take every feature's values at some positions, which come once.

        Args:
            values: numbers or infinities, in float32 or less.
            positions: of the rows, in any order.
        """
        rows_at_once = max(1, _AT_ONCE // len(self._n))
        for some, at in zip(values.split(rows_at_once), positions.split(rows_at_once), strict=True):
            row, feature = (some >= self._lowest).nonzero(as_tuple=True)
            if len(row):
                self._waiting.append((feature.int(), _ranks(some[row, feature], at[row])))
            if sum(len(ranks) for _, ranks in self._waiting) > max(len(self._ranks), _LEAST_WAITING):
                self._sort_in()

    def positions(self) -> tuple[Int[Tensor, " n_held"], Int[Tensor, " n_held"]]:
        """Features, ascending, and the positions of their highest values, highest first.

        A feature that was given fewer values than it asks for has all of them.
        """
        self._sort_in()
        held = self._ranks != _NONE
        return self._features()[held], _LAST - (self._ranks[held] & _LAST)

    def state(self) -> Int[Tensor, " n_asked"]:
        """What is held."""
        self._sort_in()
        return self._ranks

    def load_state(self, state: Int[Tensor, " n_asked"]) -> None:
        """Hold what another, of the same features, held."""
        self._ranks.copy_(state)
        self._waiting.clear()
        self._set_lowest()

    def _features(self) -> Int[Tensor, " n_asked"]:
        return torch.repeat_interleave(self._n)

    def _sort_in(self) -> None:
        if not self._waiting:
            return
        features = torch.cat([self._features(), *(features for features, _ in self._waiting)])
        ranks = torch.cat([self._ranks, *(ranks for _, ranks in self._waiting)])
        self._waiting.clear()
        order = ranks.argsort(descending=True)
        order = order[features[order].argsort(stable=True)]
        counts = torch.bincount(features, minlength=len(self._n))
        place = torch.arange(len(order), device=order.device) - torch.repeat_interleave(
            counts.cumsum(0) - counts, counts
        )
        self._ranks = ranks[order[place < torch.repeat_interleave(self._n, counts)]]
        self._set_lowest()

    def _set_lowest(self) -> None:
        """What a value must at least be: that of the last place, anything while that is free, of nothing asked more
        than there is."""
        self._lowest = torch.full_like(self._n, torch.inf, dtype=torch.float32)
        asks = self._n > 0
        self._lowest[asks] = _values(self._ranks[self._ends[asks] - 1])


def _ranks(values: Float[Tensor, " m"], positions: Int[Tensor, " m"]) -> Int[Tensor, " m"]:
    bits = (values.float() + 0.0).view(torch.int32)  # minus zero becomes zero
    return _turned(bits).long() << 32 | (_LAST - positions)


def _values(ranks: Int[Tensor, " m"]) -> Float[Tensor, " m"]:
    values = _turned((ranks >> 32).int()).view(torch.float32)
    return torch.where(ranks == _NONE, -torch.inf, values)


def _turned(bits: Int[Tensor, " m"]) -> Int[Tensor, " m"]:
    """A float's bits as an integer that sorts as the float does, and back: numbers below zero sort the other way."""
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)
