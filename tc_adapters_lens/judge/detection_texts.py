"""Texts that a feature's description is tested on: some in which it is active and some in which it is not.

No text that is to be sorted comes from a sequence of which the description saw a piece, and no two overlap. What is
drawn for a feature follows from the seed, the layer and the feature alone.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

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

_HELD_OUT, _SAMPLED, _QUIET, _ORDER = range(4)  # independent draws of one feature


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


class _Piece(NamedTuple):
    sequence: int
    start: int
    stop: int


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
    windows = [_Piece(*row) for row in store.windows[order[quiet[order]]].tolist()]
    sortings: dict[TextKind, Sorting] = {}
    left_out = []
    for number, kind in enumerate(("top", "sampled")):
        if kind not in kinds:
            continue
        positives = _apart(map(_piece, offered[kind]))
        taken = described | {piece.sequence for piece in positives}
        quiet_ones = _apart(window for window in windows if window.sequence not in taken)
        if len(positives) < N_TEXTS:
            left_out.append(f"fewer than {N_TEXTS} {kind} texts that the description did not see")
        elif len(quiet_ones) < N_TEXTS:
            left_out.append(f"fewer than {N_TEXTS} random texts in which it is quiet")
        else:
            pieces = [*positives, *quiet_ones]
            shuffled = rng(_ORDER, number).permutation(len(pieces)).tolist()
            texts = tuple(show_window(store, *pieces[index]) for index in shuffled)
            sortings[kind] = Sorting(texts, tuple(index < N_TEXTS for index in shuffled))
    shown = tuple(show_example(store, example) for example in exemplars) if sortings else ()
    return FeatureTexts(layer, feature, shown, sortings, tuple(dict.fromkeys(left_out)))


def _piece(example: Example) -> _Piece:
    return _Piece(example.sequence, example.start, example.start + len(example.tokens))


def _apart(pieces: Iterable[_Piece]) -> list[_Piece]:
    """The first N_TEXTS that do not overlap."""
    kept: list[_Piece] = []
    for piece in pieces:
        if len(kept) == N_TEXTS:
            break
        if not any(
            piece.sequence == other.sequence and piece.start < other.stop and other.start < piece.stop for other in kept
        ):
            kept.append(piece)
    return kept
