"""Which features have an example whose text contains a substring: found in the bytes of the held-out text."""

from __future__ import annotations

from concurrent.futures import Future
from threading import Thread
from typing import NamedTuple

import numpy as np

from tc_adapters_lens.features.store import FeatureStore

KINDS = ("top", "sampled")


class Spans(NamedTuple):
    """Occurrences as tokens, flat positions, first and last both included, in order."""

    first: np.ndarray
    last: np.ndarray


class TextIndex:
    """The text's bytes, where each token begins in them, and all examples' peaks in order.

    Finding costs a pass over the bytes for the needle's rarest byte; everything after that is proportional to
    what was found.
    """

    def __init__(
        self,
        text: bytes,
        token_bytes: np.ndarray,
        sequences: np.ndarray,
        peaks: np.ndarray,
        owners: np.ndarray,
        n_rows: int,
        before: int,
        after: int,
    ):
        """
        Args:
            text: all sequences' bytes, joined.
            token_bytes: [n_tokens], bytes of each token.
            sequences: [n_sequences + 1], flat position at which each sequence begins.
            peaks: [n_examples], flat positions of examples' peaks, in any order.
            owners: [n_examples], the row of the feature of each.
            n_rows: features there are.
            before, after: tokens of an example before and after its peak.
        """
        self._text = np.frombuffer(text, dtype=np.uint8)
        self._lowered = np.frombuffer(text.lower(), dtype=np.uint8)
        self._counts = {False: byte_counts(self._lowered), True: byte_counts(self._text)}
        self._ends = np.cumsum(token_bytes, dtype=np.int64)
        self._sequences = sequences
        order = np.argsort(peaks, kind="stable")
        self._peaks = peaks[order]
        self._owners = owners[order].astype(np.int32)
        self._n_rows, self._before, self._after = n_rows, before, after

    @classmethod
    def of(cls, store: FeatureStore) -> TextIndex:
        """Reads a store's tokens and every layer's peaks."""
        info, vocabulary = store.info, store.vocabulary
        tokens = np.asarray(store.tokens)
        sizes = np.diff(vocabulary.offsets)
        peaks, owners = [], []
        for layer in range(info.n_layers):
            rows = np.arange(layer * info.n_features, (layer + 1) * info.n_features, dtype=np.int32)
            for kind in KINDS:
                of_layer = np.asarray(store.peaks(kind, layer))
                there = of_layer >= 0
                peaks.append(of_layer[there])
                owners.append(np.broadcast_to(rows[:, None], of_layer.shape)[there])
        return cls(
            vocabulary.join(tokens),
            sizes[tokens],
            np.asarray(store.offsets),
            np.concatenate(peaks),
            np.concatenate(owners),
            info.n_layers * info.n_features,
            info.before,
            info.after,
        )

    def rows(self, part: str, match_case: bool = True) -> np.ndarray:
        """Which rows have an example that contains the whole of a text, bool [n_rows].

        Args:
            part: as UTF-8 it must occur in the text's bytes, within one sequence.
            match_case: otherwise A to Z are the same as a to z.
        """
        found = np.zeros(self._n_rows, dtype=bool)
        spans = self.occurrences(part, match_case)
        if not len(spans.first):
            return found
        sequence = np.searchsorted(self._sequences, spans.first, side="right") - 1
        low = np.maximum(spans.last - self._after, self._sequences[sequence])
        high = np.minimum(spans.first + self._before, self._sequences[sequence + 1] - 1)
        fits = low <= high  # an occurrence may be longer than a window
        start = np.searchsorted(self._peaks, low[fits])
        stop = np.searchsorted(self._peaks, high[fits], side="right")
        found[self._owners[_union(start, stop)]] = True
        return found

    def occurrences(self, part: str, match_case: bool = True) -> Spans:
        """Tokens that each occurrence touches; overlapping occurrences are all found."""
        needle = np.frombuffer(part.encode("utf-8", "surrogatepass"), dtype=np.uint8)
        text = self._text if match_case else self._lowered
        if not match_case:
            needle = np.frombuffer(needle.tobytes().lower(), dtype=np.uint8)
        n_starts = len(text) - len(needle) + 1
        if not len(needle) or n_starts <= 0:
            return Spans(np.zeros(0, np.int64), np.zeros(0, np.int64))
        rarest_first = np.argsort(self._counts[match_case][needle], kind="stable").tolist()
        pivot = rarest_first[0]
        starts = np.flatnonzero(text[pivot : pivot + n_starts] == needle[pivot])
        for place in rarest_first[1:]:
            starts = starts[text[starts + place] == needle[place]]
        first = np.searchsorted(self._ends, starts, side="right")
        last = np.searchsorted(self._ends, starts + len(needle) - 1, side="right")
        ends = self._sequences[np.searchsorted(self._sequences, first, side="right")]
        inside = last < ends
        return Spans(first[inside], last[inside])


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


def _union(start: np.ndarray, stop: np.ndarray) -> np.ndarray:
    """Numbers in any of the ranges [start, stop), each once. Both ascend, as occurrences do."""
    start = np.maximum(start, np.concatenate([start[:1], stop[:-1]]))
    sizes = np.maximum(stop - start, 0)
    start, sizes = start[sizes > 0], sizes[sizes > 0]
    places = np.cumsum(sizes)
    return np.repeat(start - places + sizes, sizes) + np.arange(places[-1] if len(places) else 0)
