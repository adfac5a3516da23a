"""Windows of a text drawn at random, and how high every unit goes in each: where a unit is known to be quiet.

Which windows there are follows from the text and a seed alone, so parts of a text agree on them before they are read.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float16, Int, Int64
from torch import Tensor

from tc_adapters_lens.features.text import Text, TextBatch

__all__ = ["Windows", "draw_windows", "raise_maxima"]

_LARGEST = torch.finfo(torch.float16).max
_SMALLEST = torch.finfo(torch.float16).smallest_normal * torch.finfo(torch.float16).eps  # above zero: 2 ** -24


@dataclass(frozen=True, eq=False)
class Windows:
    """Pieces of sequences, in the order of the text.

    sequences: which sequence each is of.
    starts, stops: its positions in the sequence, the last one not included.
    begins: flat position of the sequence's first token.
    """

    sequences: Int64[np.ndarray, " n_windows"]
    starts: Int64[np.ndarray, " n_windows"]
    stops: Int64[np.ndarray, " n_windows"]
    begins: Int64[np.ndarray, " n_windows"]

    def __len__(self) -> int:
        return len(self.sequences)

    def to_array(self) -> Int64[np.ndarray, "n_windows 3"]:
        """Sequence, start and stop of each."""
        return np.stack([self.sequences, self.starts, self.stops], axis=1)

    def rows(self, batch: TextBatch) -> tuple[Tensor, Tensor, Tensor]:
        """The windows that are in a batch: which they are, and their first and last row of the flattened batch."""
        device, n_pos = batch.tokens.device, batch.tokens.shape[1]
        begins, starts, stops = (torch.from_numpy(array).to(device) for array in (self.begins, self.starts, self.stops))
        here = (begins[:, None] == batch.positions[:, 0]) & batch.inside[:, 0]
        windows, sequence = here.nonzero(as_tuple=True)
        return windows, sequence * n_pos + starts[windows], sequence * n_pos + stops[windows] - 1


def draw_windows(text: Text, n: int, before: int, after: int, seed: int) -> Windows:
    """Windows around counted positions, drawn uniformly without replacement.

    Args:
        n: how many; fewer where fewer positions count.
        before, after: tokens of a window before and after its position, cut at the sequence's ends.
        seed: of the draw.
    """
    counted = np.flatnonzero(text.counted)
    rng = np.random.default_rng(seed)
    flat = np.sort(counted[rng.choice(len(counted), min(n, len(counted)), replace=False, shuffle=False)])
    sequences = np.searchsorted(text.offsets, flat, side="right") - 1
    begins, ends = text.offsets[sequences], text.offsets[sequences + 1]
    return Windows(
        sequences=sequences.astype(np.int64),
        starts=(np.maximum(flat - before, begins) - begins).astype(np.int64),
        stops=(np.minimum(flat + after + 1, ends) - begins).astype(np.int64),
        begins=begins.astype(np.int64),
    )


def raise_maxima(
    maxima: Float16[Tensor, "n_features n_windows"],
    windows: tuple[Int[Tensor, " n"], Int[Tensor, " n"], Int[Tensor, " n"]],
    rows: Int[Tensor, " n_entries"],
    features: Int[Tensor, " n_entries"],
    values: Float[Tensor, " n_entries"],
) -> None:
    """Take active entries of a batch, changing `maxima`. What is above zero stays so, and what float16 cannot hold
    becomes its largest number.

    Args:
        windows: as `Windows.rows` gives them.
        rows: of the flattened batch, ascending.
        features, values: each entry's unit, and its activation, above zero.
    """
    which, first, last = windows
    low = torch.searchsorted(rows, first)
    counts = torch.searchsorted(rows, last, right=True) - low
    window = torch.repeat_interleave(counts)
    skipped = low - (counts.cumsum(0) - counts)
    entries = torch.arange(len(window), device=rows.device) + skipped[window]
    place = features[entries] * maxima.shape[1] + which[window]
    maxima.view(-1).scatter_reduce_(0, place, values[entries].clamp(_SMALLEST, _LARGEST).to(maxima.dtype), "amax")
