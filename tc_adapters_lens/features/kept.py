"""The k entries of largest key that each feature has, with the activations around them.

Both kinds of examples are this. An entry is a feature active at a flat position; its key is one int64,

    31 bits of rank, then 32 bits that put earlier positions first

with the activation's own bits as the rank for the highest activations (floats above zero sort as their bits do), and
with a hash of seed, layer, feature and position for a uniform sample: the k largest of random keys are k entries drawn
without replacement. Keys do not depend on the order in which entries come, so parts of a text give, merged, exactly
what the whole text gives.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tc_adapters_lens.features.records import KeptExamples

__all__ = ["MAX_TOKENS", "Kept", "activation_keys", "random_keys"]

MAX_TOKENS = 2**32
"""Flat positions must be below this."""

_LOW = MAX_TOKENS - 1
_NONE = -1


class Kept:
    """Examples of one kind, of one layer's features.

    Args:
        n_features, k: how many features, and entries kept of each.
        window: tokens of a window.
        device: where they are kept.

    Attributes:
        keys: `[n_features k]`, int64, in no order; -1 where there are fewer than k.
        windows: activations around each, those above zero, `[n_features k window]`, float32.
    """

    def __init__(self, n_features: int, k: int, window: int, device: str | torch.device) -> None:
        self.keys = torch.full((n_features, k), _NONE, dtype=torch.int64, device=device)
        self.windows = torch.zeros(n_features, k, window, device=device)

    def add(
        self,
        features: Int[Tensor, " n"],
        keys: Int[Tensor, " n"],
        windows_of: Callable[[Int[Tensor, " m"]], Float[Tensor, "m window"]],
    ) -> None:
        """Take entries; those that belong to their feature's k largest replace the smallest there.

        Args:
            features, keys: of each entry.
            windows_of: windows of entries, given as indices; asked for those that are kept only.
        """
        k = self.keys.shape[1]
        entries = (keys > self.keys.amin(1)[features]).nonzero().squeeze(1)
        if len(entries) == 0:
            return
        entries = entries[keys[entries].argsort(descending=True)]
        entries = entries[features[entries].argsort(stable=True)]
        touched, counts = features[entries].unique_consecutive(return_counts=True)
        starts = counts.cumsum(0) - counts
        row = torch.repeat_interleave(counts)
        rank = torch.arange(len(entries), device=keys.device) - starts[row]
        entries, row, rank = entries[rank < k], row[rank < k], rank[rank < k]

        new = keys.new_full((len(touched), int(rank.max()) + 1), _NONE)
        new[row, rank] = keys[entries]
        old = self.keys[touched]
        smallest = torch.cat([old, new], 1).topk(k).values[:, -1:]
        stays = (old >= smallest) & (old >= 0)
        comes = (new >= smallest) & (new >= 0)
        free = stays.byte().argsort(dim=1, stable=True)  # slots that become free, then the others
        slot = free.gather(1, (comes.cumsum(1) - 1).clamp(min=0))
        chosen = comes[row, rank]
        entries, row, rank = entries[chosen], row[chosen], rank[chosen]
        place = touched[row], slot[row, rank]
        self.keys[place] = keys[entries]
        self.windows[place] = windows_of(entries)

    def merge(self, other: Kept) -> None:
        """Take what another has seen of other positions."""
        there = (other.keys >= 0).nonzero(as_tuple=True)
        windows = other.windows[there]
        self.add(there[0], other.keys[there], lambda entries: windows[entries])

    def examples(self, before: int, by_position: bool) -> KeptExamples:
        """What was kept, by key (largest first) or in the order of the text.

        Args:
            before: tokens of a window before its own position.
        """
        positions = torch.where(self.keys >= 0, _LOW - (self.keys & _LOW), _NONE)
        order = (
            torch.where(positions >= 0, positions, MAX_TOKENS).argsort(dim=1)
            if by_position
            else self.keys.argsort(dim=1, descending=True)
        )
        positions = positions.gather(1, order)
        windows = self.windows.gather(1, order.unsqueeze(-1).expand_as(self.windows))
        active = windows != 0
        counts = active.flatten(0, 1).sum(1)
        starts = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        return KeptExamples(
            positions=positions.cpu().numpy(),
            activations=windows[:, :, before].cpu().numpy(),
            starts=starts.cpu().numpy(),
            offsets=active.nonzero()[:, -1].to(torch.uint8).cpu().numpy(),
            values=windows[active].cpu().numpy(),
        )


def activation_keys(values: Float[Tensor, " n"], positions: Int[Tensor, " n"]) -> Int[Tensor, " n"]:
    """Keys that rank entries by activation.

    Args:
        values: activations above zero, float32.
        positions: flat positions.
    """
    return values.view(torch.int32).long() << 32 | (_LOW - positions)


def random_keys(seed: int, layer: int, features: Int[Tensor, " n"], positions: Int[Tensor, " n"]) -> Int[Tensor, " n"]:
    """Keys that rank entries at random, the same for the same entry whenever it comes.

    Source: the finaliser of SplitMix64 (Steele, Lea, Flood 2014).
    """
    mixed = positions * 0x1E3779B97F4A7C15 + features * 0x27D4EB2F165667C5 + _mix_int(seed * 1_000_003 + layer)
    mixed = (mixed ^ _shift(mixed, 30)) * -0x40A7B892E31B1A47
    mixed = (mixed ^ _shift(mixed, 27)) * -0x6B2FB644ECCEEE15
    mixed = mixed ^ _shift(mixed, 31)
    return _shift(mixed, 33) << 32 | (_LOW - positions)


def _shift(x: Int[Tensor, " n"], bits: int) -> Int[Tensor, " n"]:
    """To the right with zeros, as of unsigned numbers."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mix_int(value: int) -> int:
    """A seed spread over 63 bits, so that neighbouring seeds share nothing."""
    value = value & 0xFFFFFFFFFFFFFFFF
    value = ((value ^ value >> 30) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
    value = ((value ^ value >> 27) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
    return (value ^ value >> 31) >> 1
