"""Which features a verb is about: named, the first of a store's, or those of a group that are active."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Literal

from tc_adapters_lens.errors import ConfigError

if TYPE_CHECKING:
    from tc_adapters_lens.features.store import FeatureStore
    from tc_adapters_lens.models.feature_group import FeatureGroup

__all__ = ["Order", "active_of", "check_features", "parse_features", "top_features"]

Order = Literal["max", "frequency"]
_ONE = re.compile(r"(\d+)\.(\d+)")


def parse_features(names: str, option: str = "--features") -> list[tuple[int, int]]:
    """ "0.12,3.7,2.5-2.9" as layers and features, each once, in this order.

    Args:
        option: what errors call the words' place.
    Raises:
        ConfigError: anything else.
    """
    found: list[tuple[int, int]] = []
    for word in names.split(","):
        ends = [_ONE.fullmatch(end.strip()) for end in word.split("-")]
        numbers = [(int(end[1]), int(end[2])) for end in ends if end is not None]
        if len(numbers) != len(ends) or len(ends) > 2:
            raise ConfigError(f"{option} must be LAYER.FEATURE with commas, such as 0.12,3.7,2.5-2.9. Got '{word}'.")
        (layer, first), (last_layer, last) = numbers[0], numbers[-1]
        if layer != last_layer or last < first:
            raise ConfigError(
                f"{option}: a range must go up within one layer. Got '{word}'. Write it as {layer}.A-{layer}.B."
            )
        found += [(layer, feature) for feature in range(first, last + 1)]
    return list(dict.fromkeys(found))


def top_features(store: FeatureStore, n: int, by: Order) -> list[tuple[int, int]]:
    """The n features of a store that are highest by a column, of those that are ever active.

    Raises:
        ConfigError: n is below 1, or no feature is ever active.
    """
    if n < 1:
        raise ConfigError(f"--top must be at least 1. Got {n}.")
    active = (store.column("n_active") > 0).nonzero()[0]
    if not len(active):
        raise ConfigError(f"--top needs features that are active. Got none in {store.directory}.")
    rows = active[(-store.column(by)[active]).argsort(kind="stable")][:n]
    return [divmod(int(row), store.info.n_features) for row in rows]


def active_of(group: FeatureGroup, store: FeatureStore | None) -> list[tuple[int, int]]:
    """A group's features that are ever active in a store's text; all of them without a store.

    Raises:
        ConfigError: none is.
    """
    if store is None:
        return list(group)
    n_active = store.column("n_active")
    active = [(layer, feature) for layer, feature in group if n_active[layer * store.info.n_features + feature] > 0]
    if not active:
        raise ConfigError(
            f"--group must have a feature that is active somewhere in the held-out text. "
            f"Got '{group.name}' with {len(group)} that never are. Name --tokens to draw on another text."
        )
    return active


def check_features(
    features: Iterable[tuple[int, int]], n_layers: int, n_features: int, store: FeatureStore | None
) -> None:
    """Raises ConfigError: a feature that there is not, or that the store says is never active."""
    n_active = None if store is None else store.column("n_active")
    for layer, feature in features:
        if layer >= n_layers or feature >= n_features:
            raise ConfigError(f"Features must be from 0.0 to {n_layers - 1}.{n_features - 1}. Got {layer}.{feature}.")
        if n_active is not None and n_active[layer * n_features + feature] == 0:
            raise ConfigError(
                f"Features must be active somewhere in the held-out text. Got {layer}.{feature}, which never is. "
                "Leave it out."
            )
