"""Pieces of the store's text as a judge is shown them."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Int32

from tc_adapters_lens.features.records import Example, TokenEffect
from tc_adapters_lens.features.store import FeatureStore

__all__ = ["MARKED_SHARE", "Shown", "show_example", "show_window", "token_texts"]

MARKED_SHARE = 0.5
"""Tokens at which a feature has at least this share of its activation at the example's own position are marked."""

_OPEN, _CLOSE = "<<", ">>"


@dataclass(frozen=True)
class Shown:
    """A piece of text.

    sequence, start, stop: where it is: positions of the sequence, the last one not included.
    tokens: its tokens' texts.
    marked: whether the feature is strongly active at each; all False where a judge shall not know.
    plain: the text as it is.
    with_marks: the text, marked tokens between << and >>; neighbours share one pair.
    """

    sequence: int
    start: int
    stop: int
    tokens: tuple[str, ...]
    marked: tuple[bool, ...]
    plain: str
    with_marks: str

    def facts(self) -> dict[str, Any]:
        """Plain values, for `Request.facts`."""
        return {"tokens": list(self.tokens), "marked": list(self.marked)}


def show_example(store: FeatureStore, example: Example) -> Shown:
    """An example with its strong activations marked."""
    strong = np.asarray(example.activations) >= MARKED_SHARE * example.activation
    return _show(store, example.sequence, example.start, example.tokens, strong)


def show_window(store: FeatureStore, sequence: int, start: int, stop: int) -> Shown:
    """Positions [start, stop) of a sequence, nothing marked."""
    begin = int(store.offsets[sequence])
    return _show(store, sequence, start, store.tokens[begin + start : begin + stop], np.zeros(stop - start, bool))


def token_texts(effects: Sequence[TokenEffect], n: int) -> list[str]:
    """The first n promoted or inhibited tokens."""
    return [effect.text for effect in effects[:n]]


def _show(
    store: FeatureStore, sequence: int, start: int, ids: Int32[np.ndarray, " n"], marked: Bool[np.ndarray, " n"]
) -> Shown:
    """Runs of marked or unmarked tokens are joined as bytes, and marks stand around whole characters, so that a
    character of several tokens stays one."""
    whole = _whole_characters(store, ids, marked)
    ends = [0, *(np.flatnonzero(np.diff(whole)) + 1).tolist(), len(ids)]
    pieces = [
        f"{_OPEN}{text}{_CLOSE}" if whole[first] else text
        for first, last in itertools.pairwise(ends)
        if (text := _joined(store, ids[first:last]))
    ]
    return Shown(
        sequence=sequence,
        start=start,
        stop=start + len(ids),
        tokens=tuple(map(sys.intern, store.vocabulary.texts(ids.tolist()))),  # thousands are held at a time
        marked=tuple(marked.tolist()),
        plain=_joined(store, ids),
        with_marks="".join(pieces),
    )


def _whole_characters(
    store: FeatureStore, ids: Int32[np.ndarray, " n"], marked: Bool[np.ndarray, " n"]
) -> Bool[np.ndarray, " n"]:
    """A token that goes on with a character of the one before is marked if that is, and the other way round."""
    goes_on = np.array([0x80 <= next(iter(store.vocabulary.bytes(token)), 0) < 0xC0 for token in ids.tolist()])
    goes_on[0] = False
    starts = np.flatnonzero(~goes_on)
    return np.logical_or.reduceat(marked, starts)[np.cumsum(~goes_on) - 1]


def _joined(store: FeatureStore, ids: Int32[np.ndarray, " n"]) -> str:
    return store.vocabulary.join(ids.tolist()).decode(errors="replace")
