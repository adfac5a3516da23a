"""Which features have an example whose text contains a substring: found in the bytes of the held-out text."""

from __future__ import annotations

from concurrent.futures import Future
from threading import Thread
from typing import NamedTuple

import numpy as np

from tc_adapters_lens.features.records import EXAMPLE_KINDS
from tc_adapters_lens.features.store import FeatureStore


class Spans(NamedTuple):
    """Occurrences, in order: their first and last token (flat positions, both included) and their sequence."""

    first: np.ndarray
    last: np.ndarray
    sequence: np.ndarray


class TextIndex:
    """The text's bytes, where each token ends in them, and all examples' peaks.

    A search is one pass over the bytes for the needle's rarest byte, one over the tokens for where a peak must lie,
    and one over the peaks.
    """

    def __init__(
        self,
        text: bytes,
        token_bytes: np.ndarray,
        sequences: np.ndarray,
        peaks: np.ndarray,
        before: int,
        after: int,
    ):
        """
        Args:
            text: all sequences' bytes, joined.
            token_bytes: [n_tokens], bytes of each token.
            sequences: [n_sequences + 1], flat position at which each sequence begins.
            peaks: [n_rows n_examples], flat positions of each feature's examples; -1 where there are fewer.
            before, after: tokens of an example before and after its peak.
        """
        self._text = np.frombuffer(text, dtype=np.uint8)
        self._lowered = np.frombuffer(text.lower(), dtype=np.uint8)
        self._counts = {False: byte_counts(self._lowered), True: byte_counts(self._text)}
        self._ends = np.cumsum(token_bytes, dtype=np.int64)
        self._sequences, self._peaks = sequences, peaks
        self._before, self._after = before, after

    @classmethod
    def of(cls, store: FeatureStore) -> TextIndex:
        """Reads a store's tokens and every layer's peaks."""
        info, vocabulary, tokens = store.info, store.vocabulary, store.tokens
        peaks = np.empty((info.n_layers, info.n_features, len(EXAMPLE_KINDS) * info.k), dtype=np.intp)
        for layer in range(info.n_layers):
            peaks[layer] = np.concatenate([store.peaks(kind, layer) for kind in EXAMPLE_KINDS], axis=1)
        return cls(
            vocabulary.join(tokens),
            np.diff(vocabulary.offsets)[tokens],
            store.offsets,
            peaks.reshape(-1, peaks.shape[-1]),
            info.before,
            info.after,
        )

    def rows(self, part: str, match_case: bool = True) -> np.ndarray:
        """Which rows have an example that contains the whole of a text, bool [n_rows].

        Args:
            part: as UTF-8 it must occur in the text's bytes, within one sequence.
            match_case: otherwise A to Z are the same as a to z.
        """
        spans = self.occurrences(part, match_case)
        if not len(spans.first):
            return np.zeros(len(self._peaks), dtype=bool)
        # A peak's window holds an occurrence if the peak lies from `low` to `high`.
        low = np.maximum(spans.last - self._after, self._sequences[spans.sequence])
        high = np.minimum(spans.first + self._before, self._sequences[spans.sequence + 1] - 1)
        fits = low <= high  # an occurrence may be longer than a window
        steps = np.zeros(len(self._ends) + 1, dtype=np.int32)
        steps += np.bincount(low[fits], minlength=len(steps)).astype(np.int32)
        steps -= np.bincount(high[fits] + 1, minlength=len(steps)).astype(np.int32)
        near = np.cumsum(steps, out=steps) > 0  # the entry behind the last token, which -1 means, is False
        return np.asarray(near[self._peaks].any(axis=1))

    def occurrences(self, part: str, match_case: bool = True) -> Spans:
        """Tokens that each occurrence touches; overlapping occurrences are all found."""
        sought = part.encode("utf-8", "surrogatepass")
        needle = np.frombuffer(sought if match_case else sought.lower(), dtype=np.uint8)
        text = self._text if match_case else self._lowered
        n_starts = len(text) - len(needle) + 1
        if not len(needle) or n_starts <= 0:
            return Spans(*np.zeros((3, 0), dtype=np.int64))
        pivot, *others = np.argsort(self._counts[match_case][needle], kind="stable").tolist()
        starts = np.flatnonzero(text[pivot : pivot + n_starts] == needle[pivot])
        for place in others:
            starts = starts[text[starts + place] == needle[place]]
        first = np.searchsorted(self._ends, starts, side="right")
        last = first if len(needle) == 1 else np.searchsorted(self._ends, starts + (len(needle) - 1), side="right")
        sequence = np.searchsorted(self._sequences, first, side="right") - 1
        inside = last < self._sequences[sequence + 1]
        return Spans(first[inside], last[inside], sequence[inside])


class Building:
    """A TextIndex that is made in a thread of its own; asking waits for it."""

    def __init__(self, store: FeatureStore):
        self._index: Future[TextIndex] = Future()
        self._thread = Thread(target=self._build, args=(store,), daemon=True)
        self._thread.start()

    def _build(self, store: FeatureStore) -> None:
        try:
            self._index.set_result(TextIndex.of(store))
        except Exception as error:
            self._index.set_exception(error)

    def rows(self, part: str, match_case: bool) -> np.ndarray:
        """As `TextIndex.rows`."""
        return self._index.result().rows(part, match_case)


def byte_counts(text: np.ndarray) -> np.ndarray:
    """How often each of the 256 bytes occurs; in blocks, because counting widens bytes to eight each."""
    counts = np.zeros(256, dtype=np.int64)
    for start in range(0, len(text), 1 << 22):
        counts += np.bincount(text[start : start + (1 << 22)], minlength=256)
    return counts
