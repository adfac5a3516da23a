"""A store with what the page needs of it in memory, as new as its files."""

from __future__ import annotations

from pathlib import Path
from threading import Lock

import numpy as np

from tc_adapters_lens.features.store import FeatureStore
from tc_adapters_lens.features.store_files import LABELS, STORE_FILE
from tc_adapters_lens.serve.query import Query
from tc_adapters_lens.serve.table import Table
from tc_adapters_lens.serve.text_search import Building


class OpenStore:
    """A store, its table and its text's index; the latter two are made at their first use."""

    def __init__(self, directory: Path):
        """
        Raises:
            FeatureStoreError: there is no store, or it is broken.
        """
        self.directory = directory
        self._lock = Lock()
        self._table: Table | None = None
        self._index: Building | None = None
        self._made, self._labelled = self._stamps()
        self.store = FeatureStore.open(directory)

    @property
    def table(self) -> Table:
        """Its features."""
        with self._lock:
            if self._table is None:
                self._table = Table.of(self.store)
            return self._table

    @property
    def index(self) -> Building:
        """Its text, whose index is begun at the first use."""
        with self._lock:
            if self._index is None:
                self._index = Building(self.store)
            return self._index

    def warm(self) -> None:
        """Makes both."""
        _ = self.table, self.index

    def rows(self, query: Query) -> np.ndarray:
        """Rows of the table that a query wants, in its order."""
        return self.table.rows(query, lambda text, match_case: self.index.rows(text, match_case))

    def refresh(self) -> None:
        """Opens the store again where it was made again, or labels were added, since.

        Raises:
            FeatureStoreError: it is gone, or broken.
        """
        with self._lock:
            made, labelled = self._stamps()
            if (made, labelled) == (self._made, self._labelled):
                return
            self.store, self._table = FeatureStore.open(self.directory), None
            if made != self._made:
                self._index = None
            self._made, self._labelled = made, labelled

    def _stamps(self) -> tuple[list[int], list[tuple[str, int]]]:
        """When the store was made, and its labels."""
        made = [path.stat().st_mtime_ns for path in self.directory.glob(STORE_FILE)]
        labels = sorted((path.name, path.stat().st_mtime_ns) for path in (self.directory / LABELS).glob("*.parquet"))
        return made, labels
