"""Rows of direct effects, cut to their largest entries as they are computed, and put together at the end."""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from tc_adapters_lens.errors import GraphError
from tc_adapters_lens.integrations.circuit_tracer.influence import TINY, Edges

__all__ = ["BYTES_PER_EDGE", "KeptRows", "Store", "largest"]

BYTES_PER_EDGE = 32  # 8 stay; the rest is what pruning takes for a moment
_AT_ONCE = 2**24  # entries that are sorted at once


class KeptRows(NamedTuple):
    """Rows after each other, on the CPU.

    edges: sources ascending in each row.
    row_abs: sum of each row's absolute entries, float64.
    dropped_sum, dropped_abs: of the entries that are not among the edges, float64.
    """

    edges: Edges
    row_abs: Float[Tensor, "n_rows"]
    dropped_sum: Float[Tensor, "n_rows"]
    dropped_abs: Float[Tensor, "n_rows"]


def largest(rows: Float[Tensor, "n_rows n_sources"], keep: Float[Tensor, "n_rows"]) -> KeptRows:
    """Of each row the fewest entries that make up the share `keep` of its absolute sum, and equally large ones.

    Args:
        keep: each row's, on the CPU; 1 keeps all that are not 0, 0 keeps none but the largest.
    Raises:
        GraphError: an entry is not finite.
    """
    reached = rows.any(0).nonzero().squeeze(1)  # no row of a batch has more sources
    chunk = max(1, _AT_ONCE // max(1, len(reached)))
    pieces = zip(rows[:, reached].float().split(chunk), keep.double().to(rows.device).split(chunk), strict=True)
    parts = [_largest(part, reached, own) for part, own in pieces]
    if len(parts) == 1:
        return parts[0]
    counts = torch.cat([part.edges.starts.diff() for part in parts])
    return _joined(parts, torch.arange(len(counts)), counts)


def _largest(rows: Tensor, reached: Tensor, keep: Tensor) -> KeptRows:
    size = rows.abs()
    row_abs = size.sum(1, dtype=torch.float64)
    if not row_abs.isfinite().all():
        raise GraphError("Direct effects must be finite. Got NaN or infinity; load the pair in float32.")
    kept = size > 0
    if (keep < 1).any() and len(reached):
        small_first = size.sort(1).values if size.is_cuda else torch.from_numpy(np.sort(size.numpy(), 1))
        below = small_first.cumsum(1, dtype=torch.float64) <= ((1 - keep) * row_abs)[:, None]
        at = below.sum(1, keepdim=True).clamp(max=len(reached) - 1)
        kept &= size >= small_first.gather(1, at)
        dropped = rows.masked_fill(kept, 0)
        dropped_sum, dropped_abs = (values.sum(1, dtype=torch.float64) for values in (dropped, dropped.abs()))
    else:
        dropped_sum = dropped_abs = torch.zeros_like(row_abs)
    starts = torch.zeros(len(rows) + 1, dtype=torch.int64)
    starts[1:] = kept.sum(1).cumsum(0).cpu()
    edges = Edges(starts, reached.int().expand(len(rows), -1)[kept].cpu(), rows[kept].cpu())
    return KeptRows(edges, row_abs.cpu(), dropped_sum.cpu(), dropped_abs.cpu())


class Store:
    """Rows of features and targets as they come, in any order.

    Attributes:
        handed_down: what the rows so far leave to each source, of the influence they were added with.

    Args:
        layers: of all active features, ascending.
        n_layers: of the model.
        n_pos: tokens of the prompt.
    """

    def __init__(self, layers: Int[Tensor, "n_active"], n_layers: int, n_pos: int):
        self.n_sources = len(layers) + (n_layers + 1) * n_pos
        self.n_edges = 0
        self.handed_down = torch.zeros(self.n_sources, dtype=torch.float64)
        self._first_of = torch.searchsorted(layers, torch.arange(n_layers + 1))
        self._ids: list[Tensor] = []
        self._rows: list[KeptRows] = []
        self._of_layer: list[list[tuple[Tensor, Edges, Tensor]]] = [[] for _ in range(n_layers + 1)]

    def add(self, ids: Int[Tensor, "n_rows"], rows: KeptRows, influence: Float[Tensor, "n_rows"]) -> None:
        """Rows of active features, ascending, or of targets, whose ids go on from `n_sources`.

        Args:
            influence: the rows' own.
        """
        rows.edges.hand_down(influence / rows.row_abs.clamp(min=TINY), self.handed_down)
        self._ids.append(ids)
        self._rows.append(rows)
        self.n_edges += len(rows.edges.sources)
        ends = torch.searchsorted(ids, torch.cat([self._first_of, torch.tensor([2**62])])).tolist()
        for layer, (first, last) in enumerate(pairwise(ends)):
            if first < last:
                edges, sums = rows.edges.of_rows(first, last), rows.row_abs[first:last].clamp(min=TINY)
                self._of_layer[layer].append((ids[first:last], edges, sums))

    def influences(self, of_targets: Float[Tensor, "n_targets"]) -> Float[Tensor, "n_sources"]:
        """How much influence reaches each source over the rows that are there, float64."""
        influence = torch.zeros(self.n_sources + len(of_targets), dtype=torch.float64)
        influence[self.n_sources :] = of_targets
        for layer in reversed(self._of_layer):
            for ids, edges, sums in layer:
                edges.hand_down(influence[ids] / sums, influence)
        return influence[: self.n_sources]

    def joined(self) -> tuple[Int[Tensor, "n_rows"], KeptRows]:
        """All ids ascending, and their rows; the store is empty then."""
        ids = torch.cat(self._ids)
        order = ids.argsort()
        counts = torch.cat([rows.edges.starts.diff() for rows in self._rows])
        place = torch.empty_like(order)
        place[order] = torch.arange(len(order))
        self._of_layer.clear()
        return ids[order], _joined(self._rows, place, counts[order])


def _joined(parts: list[KeptRows], place: Tensor, counts: Tensor) -> KeptRows:
    """The parts' rows, each at its place; `counts` of edges are in the order of places. Empties the list as it goes."""
    starts = torch.zeros(len(counts) + 1, dtype=torch.int64)
    torch.cumsum(counts, 0, out=starts[1:])
    n_edges = int(starts[-1])
    sources, weights = torch.empty(n_edges, dtype=torch.int32), torch.empty(n_edges)
    sums = torch.empty(3, len(counts), dtype=torch.float64)
    done = 0
    parts.reverse()
    while parts:
        edges, *of_rows = parts.pop()
        here = place[done : done + len(of_rows[0])]
        done += len(here)
        sums[:, here] = torch.stack(of_rows)
        at = edges.spread(starts[here] - edges.starts[:-1]) + torch.arange(len(edges.sources))
        sources[at], weights[at] = edges.sources, edges.weights
    return KeptRows(Edges(starts, sources, weights), *sums)
