"""Texts that a feature's description is tested on: some in which it is active and some in which it is not.

No text that is to be sorted comes from a sequence of which the description saw a piece, and no two overlap. To each
with the feature there is one without of the same length, so that lengths tell nothing: where sequences are short, a
window in which a unit stays quiet tends to be a short one. What is drawn for a feature follows from the seed, the layer
and the feature alone.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Int

from tc_adapters_lens.features.records import Example
from tc_adapters_lens.features.store import FeatureStore
from tc_adapters_lens.judge.similar import hardness
from tc_adapters_lens.judge.texts import Shown, show_example, show_window
from tc_adapters_lens.models.names import hook_acts

__all__ = ["N_EXEMPLARS", "N_TEXTS", "FeatureTexts", "Negatives", "Sorting", "TextKind", "texts_of_layer"]

TextKind = Literal["top", "sampled"]
Negatives = Literal["random", "similar"]

N_EXEMPLARS = 10
"""Most exemplars a description is made from."""

N_TEXTS = 5
"""Texts to be sorted in which a feature is active, and as many in which it is not."""

QUIET_SHARE = 0.1
"""A neuron is above zero nearly everywhere: it counts as quiet where it stays below this share of its maximum. An
adapter's feature is quiet where it is zero."""

_HELD_OUT, _SAMPLED, _QUIET, _ORDER, _CUT = range(5)  # independent draws of one feature


@dataclass(frozen=True)
class Sorting:
    """Texts to be sorted, in random order, nothing marked.

    active: in which of them the feature is active.
    """

    texts: tuple[Shown, ...]
    active: tuple[bool, ...]


@dataclass(frozen=True)
class FeatureTexts:
    """One feature's texts.

    exemplars: to describe it, highest activation first; none where nothing could be sorted.
    sortings: by where texts with the feature are from: held-out examples of highest activation, or uniform ones.
    left_out: why a kind of text, or all of it, is not there.
    """

    layer: int
    feature: int
    exemplars: tuple[Shown, ...]
    sortings: dict[TextKind, Sorting]
    left_out: tuple[str, ...]


@dataclass(frozen=True)
class _Piece:
    """Positions [start, stop) of a sequence, of which `at` stays if it is cut."""

    sequence: int
    start: int
    stop: int
    at: int

    @property
    def length(self) -> int:
        return self.stop - self.start

    def overlaps(self, other: _Piece) -> bool:
        return self.sequence == other.sequence and self.start < other.stop and other.start < self.stop

    def cut(self, length: int) -> _Piece:
        """A part that has as much before and after `at`, as far as that goes."""
        before = round((self.at - self.start) * (length - 1) / max(self.length - 1, 1))
        start = min(self.at - before, self.stop - length)
        return _Piece(self.sequence, start, start + length, self.at)


def texts_of_layer(
    store: FeatureStore,
    layer: int,
    features: Int[np.ndarray, " n"],
    kinds: Collection[TextKind],
    seed: int,
    negatives: Negatives,
) -> Iterator[FeatureTexts]:
    """Every feature's texts.

    Args:
        kinds: which texts with the feature are wanted.
        seed: of all that is drawn.
        negatives: texts without it: any of the windows drawn at random in which it is quiet, or those of them in
            which the features are active that are active on the same tokens as this one.
    """
    loud = _loud(store, layer)
    hard = (
        hardness(store, layer, features, loud) if negatives == "similar" else np.zeros((len(features), loud.shape[1]))
    )
    for row, feature in enumerate(features.tolist()):
        yield _texts_of(store, layer, feature, kinds, seed, ~loud[feature], hard[row])


def _loud(store: FeatureStore, layer: int) -> Bool[np.ndarray, "n_features n_windows"]:
    """In which windows a layer's features are not quiet."""
    maxima = store.window_maxima(layer)
    if store.info.hook.format(layer=layer) == hook_acts(layer):
        return maxima > 0
    highest = store.column("max").reshape(store.info.n_layers, -1)[layer]
    return maxima > QUIET_SHARE * highest[:, None]


def _texts_of(
    store: FeatureStore,
    layer: int,
    feature: int,
    kinds: Collection[TextKind],
    seed: int,
    quiet: Bool[np.ndarray, " n_windows"],
    hard: Float[np.ndarray, " n_windows"],
) -> FeatureTexts:
    def rng(*draw: int) -> np.random.Generator:
        return np.random.default_rng([seed, layer, feature, *draw])

    found = store[layer, feature]
    sequences = list(dict.fromkeys(example.sequence for example in found.top))[: N_EXEMPLARS + N_TEXTS]
    if len(sequences) <= N_TEXTS:
        why = f"its highest examples are of fewer than {N_TEXTS + 1} sequences"
        return FeatureTexts(layer, feature, (), {}, (why,))
    held_out = {sequences[index] for index in rng(_HELD_OUT).permutation(len(sequences))[:N_TEXTS]}
    described = set(sequences) - held_out
    exemplars = [example for example in found.top if example.sequence in described][:N_EXEMPLARS]

    sampled = [found.sampled[index] for index in rng(_SAMPLED).permutation(len(found.sampled))]
    offered: dict[TextKind, list[Example]] = {
        "top": [next(example for example in found.top if example.sequence == one) for one in sorted(held_out)],
        "sampled": [example for example in sampled if example.sequence not in described],
    }
    order = rng(_QUIET).permutation(len(quiet))
    order = order[(-hard[order]).argsort(kind="stable")]
    rows = store.windows[order[quiet[order]]]
    middles = rng(_CUT).integers(rows[:, 1], rows[:, 2])
    windows = [
        _Piece(one, start, stop, at) for (one, start, stop), at in zip(rows.tolist(), middles.tolist(), strict=True)
    ]
    sortings: dict[TextKind, Sorting] = {}
    left_out = []
    for number, kind in enumerate(("top", "sampled")):
        if kind not in kinds:
            continue
        positives = _apart(map(_piece, offered[kind]))
        taken = described | {piece.sequence for piece in positives}
        positives.sort(key=lambda piece: piece.length, reverse=True)
        quiet_ones = _as_long([window for window in windows if window.sequence not in taken], positives)
        if len(positives) < N_TEXTS:
            left_out.append(f"fewer than {N_TEXTS} {kind} texts that the description did not see")
        elif len(quiet_ones) < N_TEXTS:
            left_out.append(f"fewer than {N_TEXTS} random texts in which it is quiet")
        else:
            lengths = [min(pair[0].length, pair[1].length) for pair in zip(positives, quiet_ones, strict=True)]
            pieces = [piece.cut(length) for piece, length in zip([*positives, *quiet_ones], lengths * 2, strict=True)]
            shuffled = rng(_ORDER, number).permutation(len(pieces)).tolist()
            shown_pieces = [pieces[index] for index in shuffled]
            texts = tuple(show_window(store, piece.sequence, piece.start, piece.stop) for piece in shown_pieces)
            sortings[kind] = Sorting(texts, tuple(index < N_TEXTS for index in shuffled))
    shown = tuple(show_example(store, example) for example in exemplars) if sortings else ()
    return FeatureTexts(layer, feature, shown, sortings, tuple(dict.fromkeys(left_out)))


def _piece(example: Example) -> _Piece:
    return _Piece(example.sequence, example.start, example.start + len(example.tokens), example.position)


def _apart(pieces: Iterable[_Piece]) -> list[_Piece]:
    """The first N_TEXTS that do not overlap."""
    kept: list[_Piece] = []
    for piece in pieces:
        if len(kept) == N_TEXTS:
            break
        if not any(piece.overlaps(other) for other in kept):
            kept.append(piece)
    return kept


def _as_long(pieces: Sequence[_Piece], others: Sequence[_Piece]) -> list[_Piece]:
    """To each of the others, longest first, the first piece that is as long, or else the longest, none overlapping."""
    kept: list[_Piece] = []
    for other in others:
        free = [piece for piece in pieces if not any(piece.overlaps(one) for one in kept)]
        if not free:
            break
        longest = max(free, key=lambda piece: piece.length)
        kept.append(next((piece for piece in free if piece.length >= other.length), longest))
    return kept
