"""The table of a store's features in memory: filtered, sorted and cut into pages."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from threading import Lock
from typing import Any

import numpy as np

from tc_adapters_lens.features.store import FeatureStore
from tc_adapters_lens.features.store_files import share_columns
from tc_adapters_lens.serve.query import Query

FIXED = ("layer", "feature", "n_active", "frequency", "mean", "max")
TOP_TEMPLATE, TOP_SHARE = "top_template", "top_template_share"
DESCRIPTION = "description"
_TOKENS = ("promoted", "inhibited")
KEPT_QUERIES = 16
DECADES = (-8, 0)  # of the histogram of frequencies
BINS_PER_DECADE = 4

# A mask over rows of those with an example whose text contains a substring: (text, match_case) -> bool [n_rows].
TextSearch = Callable[[str, bool], np.ndarray]


class Table:
    """Columns as NumPy arrays, one row per (layer, feature) in the store's order.

    numeric: column -> [n_rows]; NaN where there is no value. Any can be sorted by.
    texts: column of labels -> [n_rows] of str or None.
    shares: the numeric columns that are shares of a feature's active positions.
    promoted: int32 [n_rows n_promoted], ids, strongest first.
    labels: columns that were added to the store later.
    scores: the numeric ones of them.
    descriptions: the columns of descriptions, `description` and `description_NAME`.
    classes: values of the label `class`, where there is one.
    """

    def __init__(
        self,
        numeric: dict[str, np.ndarray],
        texts: dict[str, np.ndarray],
        shares: Sequence[str],
        promoted: np.ndarray,
        token_texts: Sequence[str],
    ):
        """
        Args:
            token_texts: text of every token id.
        """
        self.numeric, self.texts, self.shares, self.promoted = numeric, texts, tuple(shares), promoted
        self.labels = [name for name in (*numeric, *texts) if name not in (*FIXED, *shares)]
        self.scores = [name for name in self.labels if name in numeric]
        self.descriptions = [name for name in texts if name.split("_")[0] == DESCRIPTION]
        self.classes = sorted({name for name in texts.get("class", ()) if name is not None})
        self.bins = frequency_bins(numeric["frequency"])
        self._token_texts = token_texts
        self._lowered_texts = [lower(text) for text in token_texts]
        self._named = np.unique(promoted).tolist()
        self._orders: dict[tuple[str, bool], np.ndarray] = {}
        self._answers: OrderedDict[Query, np.ndarray] = OrderedDict()
        self._lock = Lock()

    @classmethod
    def of(cls, store: FeatureStore) -> Table:
        """All columns of a store and its labels, read once."""
        columns = share_columns(store.info)
        shares = [name for names in columns.values() for name in names]
        texts = {}
        if TOP_SHARE in store.column_names:
            shares.append(TOP_SHARE)
            texts[TOP_TEMPLATE] = _texts(store.column(TOP_TEMPLATE))
        numeric = {name: np.asarray(store.column(name)) for name in (*FIXED, *shares)}
        labels = [name for name in store.column_names if name not in (*numeric, *texts, *_TOKENS)]
        frame = store.frame()[labels] if labels else {}
        for name in labels:
            values = np.asarray(frame[name])
            if values.dtype.kind in "biuf":
                numeric[name] = values
            else:
                texts[name] = _texts(values)
        n_rows = len(numeric["layer"])
        promoted = np.asarray(store.column("promoted"), dtype=np.int32).reshape(n_rows, -1)
        return cls(numeric, texts, shares, promoted, store.vocabulary.texts(range(len(store.vocabulary))))

    def __len__(self) -> int:
        return len(self.numeric["layer"])

    def rows(self, query: Query, search: TextSearch) -> np.ndarray:
        """Rows that match, in the order asked for, [n_matches]; kept for the next page of the same query."""
        with self._lock:
            if query in self._answers:
                self._answers.move_to_end(query)
                return self._answers[query]
        matches = self.matches(query)
        if query.text:
            matches &= search(query.text, query.match_case)
        order = self._order(query.sort, query.descending)
        found = order[matches[order]]
        with self._lock:
            self._answers[query] = found
            if len(self._answers) > KEPT_QUERIES:
                self._answers.popitem(last=False)
        return found

    def matches(self, query: Query) -> np.ndarray:
        """Which rows pass every filter but that on examples' text, bool [n_rows]."""
        layer, frequency = self.numeric["layer"], self.numeric["frequency"]
        passed = frequency >= query.min_frequency
        if math.isfinite(query.max_frequency):
            passed &= frequency <= query.max_frequency
        if not query.dead:
            passed &= self.numeric["n_active"] > 0
        if query.layers:
            passed &= np.logical_or.reduce([(layer >= first) & (layer <= last) for first, last in query.layers])
        for name, least in query.shares:
            passed &= self.numeric[name] >= least  # never true of NaN
        for name, least, most in query.labels:
            passed &= (self.numeric[name] >= least) & (self.numeric[name] <= most)
        if query.description:
            passed &= self._describes(query.description, query.match_case)
        if query.classes:
            passed &= np.isin(self.texts["class"], query.classes) if "class" in self.texts else False
        if query.promoted:
            passed &= self._promotes(query.promoted, query.promoted_n, query.match_case)
        return passed

    def page(self, rows: np.ndarray, columns: Sequence[str], n_promoted: int) -> list[list[Any]]:
        """Values of those rows: numbers, texts, None where there is none; last the promoted tokens' texts."""
        picked: list[list[Any]] = []
        for name in columns:
            if name in self.numeric:
                values = self.numeric[name][rows]
                picked.append([finite(value) for value in values.tolist()])
            else:
                picked.append(self.texts[name][rows].tolist())
        tokens = [[self._token_texts[token] for token in ids] for ids in self.promoted[rows, :n_promoted].tolist()]
        return [list(row) for row in zip(*picked, tokens, strict=True)]

    def _order(self, column: str, descending: bool) -> np.ndarray:
        key = (column, descending)
        if key not in self._orders:
            values = self.numeric[column]
            if values.dtype.kind in "bu":
                values = values.astype(np.int64)
            order = np.argsort(-values if descending else values, kind="stable")  # NaN last, either way
            self._orders[key] = order.astype(np.int32)
        return self._orders[key]

    def _describes(self, part: str, match_case: bool) -> np.ndarray:
        fold: Callable[[str], str] = str if match_case else lower
        part, found = fold(part), np.zeros(len(self), dtype=bool)
        for name in self.descriptions:
            found |= np.fromiter(
                (text is not None and part in fold(text) for text in self.texts[name]), bool, len(self)
            )
        return found

    def _promotes(self, part: str, n_first: int, match_case: bool) -> np.ndarray:
        part, texts = (part, self._token_texts) if match_case else (lower(part), self._lowered_texts)
        holding = np.zeros(len(texts), dtype=bool)
        holding[[token for token in self._named if part in texts[token]]] = True
        return np.asarray(holding[self.promoted[:, :n_first]].any(axis=1))


def frequency_bins(frequency: np.ndarray) -> np.ndarray:
    """Bin of each row in the histogram of frequencies, quarters of a decade from 1e-8 to 1; -1 for dead features."""
    first, last = DECADES
    with np.errstate(divide="ignore"):
        bins = np.floor((np.log10(frequency) - first) * BINS_PER_DECADE)
    bins = np.clip(bins, 0, (last - first) * BINS_PER_DECADE - 1).astype(np.int16)
    return np.where(frequency > 0, bins, -1)


def bin_counts(bins: np.ndarray) -> list[int]:
    """Rows in each bin, dead features left out."""
    return np.bincount(bins[bins >= 0], minlength=(DECADES[1] - DECADES[0]) * BINS_PER_DECADE).tolist()


def lower(text: str) -> str:
    """ASCII letters in lower case, all else as it is: what the search in bytes does too."""
    return text.lower() if text.isascii() else text.translate(_LOWER)


_LOWER = {code: code + 32 for code in range(ord("A"), ord("Z") + 1)}


def finite(value: Any) -> Any:
    """None for what JSON has no word for."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _texts(values: Iterable[Any]) -> np.ndarray:
    """Strings, None where there is no value."""
    return np.array([None if value is None or value != value else str(value) for value in values], dtype=object)
