"""Features of a store chosen by a rule, to be combined and made a group."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from tc_adapters_lens.errors import FeatureGroupError, FeatureStoreError
from tc_adapters_lens.features.store import FeatureStore
from tc_adapters_lens.models.feature_group import FeatureGroup

__all__ = ["Choice", "named", "of_group", "rows_of"]


@dataclass(frozen=True, eq=False)
class Choice:
    """Some of a store's features, maybe none. `a & b`, `a | b` and `a - b` are choices again.

    Attributes:
        store: whose.
        rule: how they were chosen, for `FeatureGroup.rule`.
        chosen: True where a feature is one of them, layer after layer.
    """

    store: FeatureStore
    rule: dict[str, Any]
    chosen: Bool[np.ndarray, " n_rows"]

    def __and__(self, other: Choice) -> Choice:
        return Choice(self.store, _joined("and", self.rule, other.rule), self.chosen & other.chosen)

    def __or__(self, other: Choice) -> Choice:
        return Choice(self.store, _joined("or", self.rule, other.rule), self.chosen | other.chosen)

    def __sub__(self, other: Choice) -> Choice:
        return Choice(self.store, _joined("minus", self.rule, other.rule), self.chosen & ~other.chosen)

    def __len__(self) -> int:
        return int(self.chosen.sum())

    def group(self, name: str) -> FeatureGroup:
        """The chosen features as a group of the store's adapters.

        Raises:
            FeatureGroupError: there are none.
            FeatureStoreError: the store is of neurons.
        """
        return group_of(self.store, name, np.flatnonzero(self.chosen), self.rule)


def group_of(store: FeatureStore, name: str, rows: Int[np.ndarray, " n"], rule: dict[str, Any]) -> FeatureGroup:
    """The features in these rows of the store's table as a group; errors as in `Choice.group`."""
    layers, features = np.divmod(rows, store.info.n_features)
    return FeatureGroup(name, tuple(zip(layers.tolist(), features.tolist(), strict=True)), rule, _fingerprint(store))


def rows_of(store: FeatureStore, group: FeatureGroup) -> Int[np.ndarray, " n"]:
    """Where a group's features stand in the store's table, ascending.

    Raises:
        FeatureGroupError: it is of other adapters, or has a feature that the store does not have.
        FeatureStoreError: the store is of neurons.
    """
    own = _fingerprint(store)
    if group.adapters_fingerprint not in (None, own):
        raise FeatureGroupError(
            f"Group '{group.name}' must be of the adapters of {store.directory} ({own}). Got one of others "
            f"({group.adapters_fingerprint}); make it again from this store."
        )
    return _rows(store, group, f"in group '{group.name}'")


def of_group(store: FeatureStore, group: FeatureGroup) -> Choice:
    """A group's features; errors as in `rows_of`."""
    return _at(store, rows_of(store, group), {"name": group.name, "rule": dict(group.rule)})


def named(store: FeatureStore, features: Iterable[tuple[int, int]]) -> Choice:
    """Features by (layer, feature).

    Raises:
        FeatureGroupError: one that the store does not have.
    """
    features = sorted(set(features))
    rule = {"named": [f"{layer}.{feature}" for layer, feature in features]}
    return _at(store, _rows(store, features, "by hand"), rule)


def _rows(store: FeatureStore, features: Iterable[tuple[int, int]], where: str) -> Int[np.ndarray, " n"]:
    info = store.info
    rows = []
    for layer, feature in features:
        if layer >= info.n_layers or feature >= info.n_features:
            raise FeatureGroupError(
                f"Features must be from 0.0 to {info.n_layers - 1}.{info.n_features - 1}, which is what "
                f"{store.directory} has. Got {layer}.{feature} {where}."
            )
        rows.append(layer * info.n_features + feature)
    return np.array(rows, dtype=np.int64)


def _at(store: FeatureStore, rows: Int[np.ndarray, " n"], rule: dict[str, Any]) -> Choice:
    chosen = np.zeros(len(store), dtype=bool)
    chosen[rows] = True
    return Choice(store, rule, chosen)


def _fingerprint(store: FeatureStore) -> str:
    if store.info.adapters_fingerprint is None:
        raise FeatureStoreError(
            f"Groups are of adapter features. Got {store.directory}, of the {store.info.model}'s neurons. "
            "Name the store that `tc-adapters features` makes without --model."
        )
    return store.info.adapters_fingerprint


def _joined(word: str, left: dict[str, Any], right: dict[str, Any]) -> dict[str, Any]:
    """One flat list for several in a row."""
    return {word: [*(left[word] if left.keys() == {word} else [left]), right]}
