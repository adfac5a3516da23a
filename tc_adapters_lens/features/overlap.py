"""Activation overlap: whether features fire on another model's hidden states where they fire in the replacement model.

A feature active at n_f of N positions of the replacement model is given the n_f positions at which its pre-activation,
computed from the MLP inputs of the target (or of the base), is highest: its encoder's bias refitted to the same
frequency. Its overlap is the share of these that are among the n_f; hidden states that have nothing to do with each
other would give n_f / N.

Source: Hu et al. 2026, appendix G (arXiv 2602.20904).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int, Int64
from sae_lens import Transcoder
from torch import Tensor
from tqdm.auto import tqdm
from transformer_lens import HookedTransformer

from tc_adapters_lens.core.sparse import active_entries
from tc_adapters_lens.errors import DataError
from tc_adapters_lens.features.ragged_top import MAX_POSITIONS, RaggedTop
from tc_adapters_lens.features.text import Text, TextBatch
from tc_adapters_lens.models.adapter_set import AdapterSet
from tc_adapters_lens.models.diff_transformer import HookedDiffTransformer
from tc_adapters_lens.models.names import hook_acts
from tc_adapters_lens.models.progress import Progress

__all__ = ["ActivationOverlap", "activation_overlap"]

_ORDER = ("replacement", "target", "base")
_AT_ONCE = 2**24  # pre-activations computed at a time


@dataclass(frozen=True)
class ActivationOverlap:
    """Every feature's overlap. Arrays are `[n_layers n_features]`.

    n_positions: positions that counted.
    min_active: features active at fewer of them are not measured.
    n_active: at how many of them each feature is active in the replacement model.
    overlap: with `target` and with `base`: 0 to 1, NaN where it is not measured.
    """

    n_positions: int
    min_active: int
    n_active: Int64[np.ndarray, "n_layers n_features"]
    overlap: Mapping[str, Float64[np.ndarray, "n_layers n_features"]]

    @property
    def measured(self) -> Bool[np.ndarray, "n_layers n_features"]:
        """Which features are."""
        return self.n_active >= self.min_active

    @property
    def chance(self) -> Float64[np.ndarray, "n_layers n_features"]:
        """What unrelated hidden states would give; NaN where overlap is not measured."""
        return np.where(self.measured, self.n_active / self.n_positions, np.nan)


def activation_overlap(
    pair: HookedDiffTransformer,
    adapters: AdapterSet,
    base: HookedTransformer,
    text: Text,
    *,
    batch_size: int = 8,
    min_active: int = 10,
    progress: Progress | None = None,
) -> ActivationOverlap:
    """Measure it in three passes over a text: of the replacement model, the target and the base.

    Memory grows with how often features are active, not with positions times features: about 30 bytes for every
    position at which a feature is active.

    Args:
        pair: with nothing attached.
        adapters: on the pair's device.
        base: `load_base` of the same pair, on the same device.
        text: what to measure on; equal pre-activations are taken in its order.
        batch_size: sequences in one forward pass.
        min_active: leave features out that are active at fewer positions; at least 1.
        progress: where an interrupted call is gone on with.
    Raises:
        DataError: a text of no positions or of too many, no feature active often enough, activations not finite.
    """
    assert min_active >= 1
    if not 0 < len(text.tokens) <= MAX_POSITIONS or not text.n_counted:
        raise DataError(
            f"A text must have from 1 to {MAX_POSITIONS:,} tokens, and positions that count. "
            f"Got {len(text.tokens):,} tokens, {text.n_counted:,} that count."
        )
    passes = _Passes(adapters, min_active)
    lengths = np.diff(text.offsets)
    bar = tqdm(total=len(_ORDER) * len(text.tokens), desc="reading", unit=" tokens", disable=None)

    def plan() -> Iterator[tuple[str, np.ndarray]]:
        for model, chosen in itertools.product(_ORDER, text.batches(batch_size)):
            yield model, chosen
            bar.update(int(lengths[chosen].sum()))

    with bar:
        for name, steps in itertools.groupby((progress or Progress()).over(plan(), passes), key=lambda step: step[0]):
            passes.go_to(name)
            model = base if name == "base" else pair
            with pair.adapters(adapters) if name == "replacement" else nullcontext():
                for _, chosen in steps:
                    batch = text.batch(chosen, pair.W_E.device)
                    with torch.no_grad(), passes.reading(model, batch):
                        model(batch.tokens, return_type=None, stop_at_layer=model.cfg.n_layers)
    passes.finish()
    n_active = torch.stack(passes.n_active).cpu().numpy()
    enough = n_active >= min_active
    overlap = {name: np.where(enough, shared / np.maximum(n_active, 1), np.nan) for name, shared in passes.shared()}
    return ActivationOverlap(text.n_counted, min_active, n_active, overlap)


class _Passes:
    """What the passes have found so far. An entry is a feature at a position, as `feature << 32 | position`.

    Attributes:
        n_active: each layer's, once the replacement model's pass is over.
    """

    def __init__(self, adapters: AdapterSet, min_active: int) -> None:
        self.adapters = adapters
        self.min_active = min_active
        self.n_active: list[Int[Tensor, " n_features"]] = []
        self._index = 0  # of the pass, in _ORDER
        self._active: list[list[Int[Tensor, " n"]]] = [[] for _ in adapters]
        self._tops: list[RaggedTop] = []
        self._shared: dict[str, Int[Tensor, "n_layers n_features"]] = {}

    def go_to(self, name: str) -> None:
        """Begin that model's pass, if it has not begun."""
        if name != _ORDER[self._index]:
            self.finish()
            self._begin(_ORDER.index(name))

    def _begin(self, index: int) -> None:
        self._index = index
        self._tops = [RaggedTop(torch.where(n >= self.min_active, n, 0)) for n in self.n_active]

    def finish(self) -> None:
        """Make of a pass what is kept of it.

        Raises:
            DataError: no feature was active often enough.
        """
        if self._index == 0:
            for layer, parts in enumerate(self._active):
                self._active[layer] = [torch.cat(parts).sort().values] if parts else []
            self._count_active()
            if not any((n >= self.min_active).any() for n in self.n_active):
                most = max(int(n.max()) for n in self.n_active)
                raise DataError(
                    f"A feature must be active at {self.min_active} positions at least. Got {most} at most: give more "
                    "text, or a smaller --min-active."
                )
            return
        shared = [self._count_shared(layer, *top.positions()) for layer, top in enumerate(self._tops)]
        self._shared[_ORDER[self._index]] = torch.stack(shared)
        self._tops = []

    def shared(self) -> Iterator[tuple[str, np.ndarray]]:
        """At how many of their highest positions features are active, by model."""
        for name in ("target", "base"):
            yield name, self._shared[name].cpu().numpy()

    @contextmanager
    def reading(self, model: HookedTransformer, batch: TextBatch) -> Iterator[None]:
        """Inside the block, what a model does on a batch is taken."""
        if self._index == 0:
            hooks: list[Any] = [
                (hook_acts(layer), lambda acts, hook, layer=layer: self._add_active(layer, acts, batch))
                for layer in self.adapters
            ]
            with model.hooks(fwd_hooks=hooks):
                yield
            return
        counted = batch.counted.flatten()
        positions = batch.positions.flatten()[counted]
        with ExitStack() as stack:
            for layer, block in enumerate(model.blocks):  # type: ignore[arg-type]

                def read(_: Any, inputs: tuple[Tensor], layer: int = layer) -> None:
                    self._add_inputs(layer, inputs[0].flatten(0, 1)[counted], positions)

                stack.callback(block.mlp.register_forward_pre_hook(read).remove)  # type: ignore[union-attr]
            yield

    def _add_active(self, layer: int, acts: Float[Tensor, "batch pos n_features"], batch: TextBatch) -> None:
        flat = acts.flatten(0, 1)
        entries = active_entries(flat)
        rows = torch.div(entries, flat.shape[1], rounding_mode="floor")
        counted = batch.counted.flatten()[rows]
        entries, rows = entries[counted], rows[counted]
        _require_finite(flat.flatten()[entries], layer)
        if len(entries):
            self._active[layer].append((entries % flat.shape[1]) << 32 | batch.positions.flatten()[rows])

    def _add_inputs(self, layer: int, x: Float[Tensor, "n_rows d_model"], positions: Int[Tensor, " n_rows"]) -> None:
        _require_finite(x, layer)
        rows_at_once = max(1, _AT_ONCE // self.adapters.n_features)
        for rows, at in zip(x.split(rows_at_once), positions.split(rows_at_once), strict=True):
            self._tops[layer].add(_pre_activations(self.adapters[layer], rows), at)

    def _count_active(self) -> None:
        n, device = self.adapters.n_features, self.adapters.device
        none = torch.zeros(n, dtype=torch.int64, device=device)
        self.n_active = [torch.bincount(part[0] >> 32, minlength=n) if part else none for part in self._active]

    def _count_shared(
        self, layer: int, features: Int[Tensor, " n"], positions: Int[Tensor, " n"]
    ) -> Int[Tensor, " n_features"]:
        n_features = self.adapters.n_features
        if not len(features):
            return torch.zeros(n_features, dtype=torch.int64, device=features.device)
        entries, (active,) = features << 32 | positions, self._active[layer]
        place = torch.searchsorted(active, entries).clamp(max=len(active) - 1)
        return torch.bincount(features[active[place] == entries], minlength=n_features)

    def state(self) -> dict[str, Tensor]:
        """All there is, by name, to be kept in a file."""
        tensors = {"pass": torch.tensor(self._index)}
        tensors |= {f"active.{layer}": torch.cat(parts) for layer, parts in enumerate(self._active) if parts}
        tensors |= {f"top.{layer}": top.state() for layer, top in enumerate(self._tops)}
        return tensors | {f"shared.{name}": shared for name, shared in self._shared.items()}

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Become what other passes, of the same models and text, were."""
        device = self.adapters.device
        of = {name: tensor.to(device) for name, tensor in tensors.items()}
        self._active = [[of[f"active.{layer}"]] if f"active.{layer}" in of else [] for layer in self.adapters]
        self._shared = {name: of[f"shared.{name}"] for name in _ORDER if f"shared.{name}" in of}
        if index := int(tensors["pass"]):
            self._count_active()
            self._begin(index)
            for layer, top in enumerate(self._tops):
                top.load_state(of[f"top.{layer}"])


def _pre_activations(adapter: Transcoder, x: Float[Tensor, "n_rows d_model"]) -> Float[Tensor, "n_rows n_features"]:
    """What an adapter's encoder gives before its activation function."""
    return adapter.process_sae_in(x) @ adapter.W_enc + adapter.b_enc


def _require_finite(values: Tensor, layer: int) -> None:
    if not values.isfinite().all():
        raise DataError(f"Activations must be finite. Got NaN or infinity in layer {layer}. Use float32.")
