"""Which features a verb is about: named, the first of a store's, or a saved group."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tc_adapters_lens.errors import ConfigError

if TYPE_CHECKING:
    from tc_adapters_lens.features.store import FeatureStore

__all__ = ["Order", "check_features", "parse_features", "read_group", "top_features"]

Order = Literal["max", "frequency"]
_ONE = re.compile(r"(\d+)\.(\d+)")


def parse_features(names: str) -> list[tuple[int, int]]:
    """ "0.12,3.7,2.5-2.9" as layers and features, each once, in this order.

    Raises:
        ConfigError: anything else.
    """
    found: list[tuple[int, int]] = []
    for word in names.split(","):
        ends = [_ONE.fullmatch(end.strip()) for end in word.split("-")]
        numbers = [(int(end[1]), int(end[2])) for end in ends if end is not None]
        if len(numbers) != len(ends) or len(ends) > 2:
            raise ConfigError(f"--features must be LAYER.FEATURE with commas, such as 0.12,3.7,2.5-2.9. Got '{word}'.")
        (layer, first), (last_layer, last) = numbers[0], numbers[-1]
        if layer != last_layer or last < first:
            raise ConfigError(
                f"--features: a range must go up within one layer. Got '{word}'. Write it as {layer}.A-{layer}.B."
            )
        found += [(layer, feature) for feature in range(first, last + 1)]
    return list(dict.fromkeys(found))


def read_group(path: str | Path) -> list[tuple[int, int]]:
    """The features of a saved group: JSON with "features": [[layer, feature], ...]; other keys are not read.

    Raises:
        ConfigError: no such file, or anything else in it.
    """
    try:
        group = json.loads(Path(path).expanduser().read_text(encoding="utf-8"))
    except (OSError, ValueError) as unreadable:
        raise ConfigError(f"--group must be a JSON file. Got {path} ({unreadable}).") from unreadable
    pairs = group.get("features") if isinstance(group, dict) else None
    if not isinstance(pairs, list) or not all(map(_is_pair, pairs)):
        raise ConfigError(f'--group must be a JSON file with {{"features": [[layer, feature], ...]}}. Got {path}.')
    if not pairs:
        raise ConfigError(f"--group must have at least one feature. Got {path}, which has none.")
    return list(dict.fromkeys((layer, feature) for layer, feature in pairs))


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


def _is_pair(value: object) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 2
        and all(isinstance(number, int) and not isinstance(number, bool) and number >= 0 for number in value)
    )
