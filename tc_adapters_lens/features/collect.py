"""One pass over a text with a model: what every unit of every layer does, in memory that does not grow with the text.

    Collector.add       one layer's activations of one batch: statistics, examples, highest in windows drawn at random
    Collector.merge     what another collector saw of other sequences
    Collector.features  one layer's result

Only active entries are touched, and all of them at once: finding them costs a look at every activation, the rest costs
what is active. Counts, sums (in fixed point) and examples do not depend on the order of batches: whoever divides the
batches of a text among several collectors and merges them has, to the bit, what one collector has.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens import HookedTransformer
from transformer_lens.hook_points import HookPoint

from tc_adapters_lens.core.sparse import active_entries
from tc_adapters_lens.errors import DataError
from tc_adapters_lens.features.kept import MAX_TOKENS, Kept, activation_keys, random_keys
from tc_adapters_lens.features.records import EXAMPLE_KINDS, HISTOGRAM_EDGES, LayerFeatures, TokenEffects
from tc_adapters_lens.features.text import Text, TextBatch
from tc_adapters_lens.features.windows import draw_windows, raise_maxima

__all__ = ["Collector", "Keeping", "collect"]

_POINT = 2.0**28  # sums are kept in int64 multiples of its inverse: up to 3.4e10, to 4e-9
_AT_ONCE = 2**24  # activations looked at at a time
_LABELS = ("regions", "groups", "template")


@dataclass(frozen=True)
class Keeping:
    """Which examples to keep.

    k: of each kind and feature.
    before, after: tokens of a window before and after its position.
    seed: of the uniform samples, and of the windows.
    n_windows: windows drawn from the text, in each of which every unit's highest activation is kept.
    """

    k: int = 20
    before: int = 50
    after: int = 20
    seed: int = 42
    n_windows: int = 512

    def __post_init__(self) -> None:
        assert self.k >= 1
        assert self.n_windows >= 1
        assert self.before >= 0
        assert self.after >= 0
        assert self.before + self.after < 256

    @property
    def window(self) -> int:
        return self.before + 1 + self.after


class Collector:
    """Statistics and examples of all layers' units.

    Memory: `n_layers * n_features * (8 * k * (window + 2) + 2 * n_windows)` bytes and little more: 2.9 GB for 28
    layers of 8,192 features, 6.7 GB (0.54 of them for the windows) for as many of 18,944 neurons.

    Args:
        n_layers, n_features: layers, and units of a layer.
        text: tells how many regions, groups and template positions there are.
        keeping: which examples to keep.
        device: where all this is kept.

    Attributes:
        windows: those that were drawn.
    """

    def __init__(
        self, n_layers: int, n_features: int, text: Text, keeping: Keeping, device: str | torch.device = "cpu"
    ) -> None:
        if len(text.tokens) > MAX_TOKENS:
            raise DataError(f"A text must have at most {MAX_TOKENS:,} tokens. Got {len(text.tokens):,}; take fewer.")
        self.keeping = keeping
        self.n_features = n_features
        self.windows = draw_windows(text, keeping.n_windows, keeping.before, keeping.after, keeping.seed)
        sizes = {"regions": text.region_names, "groups": text.group_names, "template": text.template_names}
        self._sizes = {name: len(names) for name, names in sizes.items()}
        self._layers = [self._empty_layer(device) for _ in range(n_layers)]

    def _empty_layer(self, device: str | torch.device) -> _Layer:
        n = self.n_features
        widths = {"n_active": 1, "total": 1, "histogram": len(HISTOGRAM_EDGES) - 1, **self._sizes}
        sums = {name: torch.zeros(n, width, dtype=torch.int64, device=device) for name, width in widths.items()}
        kept = {kind: Kept(n, self.keeping.k, self.keeping.window, device) for kind in EXAMPLE_KINDS}
        maxima = torch.zeros(n, len(self.windows), dtype=torch.float16, device=device)
        return _Layer(sums, kept, maxima)

    def add(self, layer: int, acts: Float[Tensor, "batch pos n_features"], batch: TextBatch) -> None:
        """Take one layer's activations of a batch.

        Raises:
            DataError: an activation is not finite.
        """
        flat = acts.detach().reshape(-1, self.n_features)
        rows_at_once = max(1, _AT_ONCE // self.n_features)
        windows = self.windows.rows(batch)
        for start in range(0, len(flat), rows_at_once):
            stop = min(start + rows_at_once, len(flat))
            seen = self._active(
                flat, max(0, start - self.keeping.before), min(len(flat), stop + self.keeping.after), batch
            )
            raise_maxima(self._layers[layer].maxima, windows, *seen)
            chosen = batch.counted.flatten()[seen.rows] & (seen.rows >= start) & (seen.rows < stop)
            counted = _Entries(*(part[chosen] for part in seen))
            if not counted.values.isfinite().all():
                raise DataError(f"Activations must be finite. Got NaN or infinity in layer {layer}. Use float32.")
            if len(counted.rows):
                self._count_all(self._layers[layer].sums, counted, batch)
                self._keep(layer, counted, seen, batch)

    def _active(self, flat: Float[Tensor, "n_rows n_features"], start: int, stop: int, batch: TextBatch) -> _Entries:
        """Active entries of some rows; those of padding left out."""
        entries = active_entries(flat[start:stop])
        rows = torch.div(entries, self.n_features, rounding_mode="floor") + start
        inside = batch.inside.flatten()[rows]
        entries, rows = entries[inside], rows[inside]
        return _Entries(rows, entries % self.n_features, flat[start:stop].reshape(-1)[entries].float())

    def _count_all(self, sums: Mapping[str, Tensor], entries: _Entries, batch: TextBatch) -> None:
        rows, features, values = entries
        one = torch.ones_like(features)
        _count(sums["n_active"], features, None, one)
        _count(sums["total"], features, None, (values.double() * _POINT).round().long())
        _count(sums["histogram"], features, _bins(values), one)
        for name in _LABELS:
            if self._sizes[name]:
                _count(sums[name], features, getattr(batch, name).flatten()[rows], one)

    def _keep(self, layer: int, entries: _Entries, seen: _Entries, batch: TextBatch) -> None:
        """Offer entries as examples, their windows made of all that was seen."""
        n_rows, n_pos = batch.tokens.numel(), batch.tokens.shape[1]
        order = seen.features.argsort(stable=True)
        places = (seen.features * n_rows + seen.rows)[order]  # ascending: by feature, then by row
        rows, features, values = entries

        def windows_of(chosen: Int[Tensor, " m"]) -> Float[Tensor, "m window"]:
            row, feature = rows[chosen], features[chosen]
            begin = torch.div(row, n_pos, rounding_mode="floor") * n_pos
            first = torch.maximum(row - self.keeping.before, begin)
            last = torch.minimum(row + self.keeping.after, begin + n_pos - 1)
            low = torch.searchsorted(places, feature * n_rows + first)
            counts = torch.searchsorted(places, feature * n_rows + last, right=True) - low
            window = torch.repeat_interleave(counts)
            skipped = low - (counts.cumsum(0) - counts)
            near = order[torch.arange(len(window), device=row.device) + skipped[window]]
            windows = seen.values.new_zeros(len(chosen), self.keeping.window)
            windows[window, seen.rows[near] - row[window] + self.keeping.before] = seen.values[near]
            return windows

        kept, positions = self._layers[layer].kept, batch.positions.flatten()[rows]
        kept["top"].add(features, activation_keys(values, positions), windows_of)
        kept["sampled"].add(features, random_keys(self.keeping.seed, layer, features, positions), windows_of)

    def merge(self, other: Collector) -> None:
        """Take what another collector, of the same text and settings, saw of other sequences."""
        for mine, theirs in zip(self._layers, other._layers, strict=True):
            for name, sums in mine.sums.items():
                sums += theirs.sums[name]
            for kind, kept in mine.kept.items():
                kept.merge(theirs.kept[kind])
            torch.maximum(mine.maxima, theirs.maxima, out=mine.maxima)

    def state(self) -> dict[str, Tensor]:
        """All there is, by name, to be kept in a file."""
        return dict(self._tensors())

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Become what another collector, of the same text and settings, was."""
        for name, tensor in self._tensors():
            tensor.copy_(tensors[name])

    def _tensors(self) -> Iterator[tuple[str, Tensor]]:
        for index, layer in enumerate(self._layers):
            yield from ((f"{index}.{name}", sums) for name, sums in layer.sums.items() if sums.numel())
            for kind, kept in layer.kept.items():
                yield f"{index}.{kind}.keys", kept.keys
                yield f"{index}.{kind}.windows", kept.windows
            yield f"{index}.maxima", layer.maxima

    @property
    def any_active(self) -> bool:
        """Whether any unit was active anywhere."""
        return any(bool(layer.sums["n_active"].any()) for layer in self._layers)

    def features(self, layer: int, promoted: TokenEffects, inhibited: TokenEffects) -> LayerFeatures:
        """One layer's result."""
        state = self._layers[layer]
        sums = {name: tensor.cpu().numpy() for name, tensor in state.sums.items()}
        n_active, total = sums.pop("n_active")[:, 0], sums.pop("total")[:, 0]
        top = state.kept["top"].examples(self.keeping.before, by_position=False)
        return LayerFeatures(
            n_active=n_active,
            mean=(total / _POINT / np.maximum(n_active, 1)).astype(np.float32),
            maximum=top.activations[:, 0],
            **sums,
            promoted=promoted,
            inhibited=inhibited,
            top=top,
            sampled=state.kept["sampled"].examples(self.keeping.before, by_position=True),
            window_maxima=state.maxima.cpu().numpy(),
        )


class _Entries(NamedTuple):
    """Active entries of a batch, row after row: flattened row of the batch, unit, activation."""

    rows: Int[Tensor, " n"]
    features: Int[Tensor, " n"]
    values: Float[Tensor, " n"]


@dataclass(frozen=True)
class _Layer:
    """sums: name -> `[n_features width]`, int64. kept: kind -> examples. maxima: `[n_features n_windows]`, float16."""

    sums: dict[str, Tensor]
    kept: dict[str, Kept]
    maxima: Tensor


def collect(
    model: HookedTransformer, hooks: Sequence[str], batches: Iterable[TextBatch], collector: Collector
) -> Iterator[int]:
    """Run a model on batches, without its unembedding, and give what its units do to a collector.

    Args:
        model: in the state to be read, with whatever is attached.
        hooks: each layer's hook name; its activations are `[batch pos n_features]`.
    Yields:
        Sequences of each batch, once the collector has it.
    """

    def reader(layer: int, batch: TextBatch) -> Callable[[Tensor, HookPoint], None]:
        return lambda acts, hook: collector.add(layer, acts, batch)

    for batch in batches:
        reading: list[Any] = [(name, reader(layer, batch)) for layer, name in enumerate(hooks)]
        with torch.no_grad(), model.hooks(fwd_hooks=reading):
            model(batch.tokens, return_type=None, stop_at_layer=model.cfg.n_layers)
        yield len(batch.tokens)


def _count(
    sums: Int[Tensor, "n_features width"], features: Int[Tensor, " n"], column: Tensor | None, amount: Int[Tensor, " n"]
) -> None:
    index = features if column is None else features * sums.shape[1] + column
    sums.view(-1).index_add_(0, index, amount)


def _bins(values: Float[Tensor, " n"]) -> Int[Tensor, " n"]:
    """Each activation's bin of HISTOGRAM_EDGES: its exponent and the first bit of its mantissa."""
    half_octaves = values.view(torch.int32) >> 22
    lowest = (-16 + 127) * 2
    return (half_octaves.long() - lowest).clamp(0, len(HISTOGRAM_EDGES) - 2)
