"""Feature groups: named sets of adapter features, with the rule that made them, as one JSON file each."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tc_adapters_lens.errors import FeatureGroupError
from tc_adapters_lens.models.atomic import atomic_file, write_json

if TYPE_CHECKING:
    from tc_adapters_lens.models.adapter_set import AdapterSet

__all__ = ["FeatureGroup"]

FORMAT, FORMAT_VERSION = "tc_adapters_lens.feature_group", 1


@dataclass(frozen=True)
class FeatureGroup:
    """A set of features of one adapter set.

    `a | b`, `a & b` and `a - b` are groups again, whose rule names both.

    Args:
        name: what tables and plots call it.
        features: (layer, feature) pairs; kept sorted, each once.
        rule: how they were chosen, anything JSON can hold.
        adapters_fingerprint: `AdapterSet.fingerprint()` of the adapters; None: not known, for groups written by hand.
    Raises:
        FeatureGroupError: no name, no features, or a number below zero.
    """

    name: str
    features: tuple[tuple[int, int], ...]
    rule: Mapping[str, Any] = field(default_factory=dict)
    adapters_fingerprint: str | None = None

    def __post_init__(self) -> None:
        if not self.name.strip():
            raise FeatureGroupError("A feature group must have a name. Got none.")
        features = tuple(sorted({(int(layer), int(feature)) for layer, feature in self.features}))
        if not features:
            rule = textwrap.shorten(json.dumps(self.rule, ensure_ascii=False), 200)
            raise FeatureGroupError(
                f"A feature group must have at least one feature. Got none for '{self.name}' (rule {rule}); "
                "choose a wider rule."
            )
        if min(map(min, features)) < 0:
            raise FeatureGroupError(f"Layers and features count from 0. Got {features[0]} in group '{self.name}'.")
        object.__setattr__(self, "features", features)

    def __len__(self) -> int:
        return len(self.features)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return iter(self.features)

    def __contains__(self, feature: object) -> bool:
        return feature in self.features

    def __or__(self, other: FeatureGroup) -> FeatureGroup:
        return self._combined("or", other, {*self.features, *other.features})

    def __and__(self, other: FeatureGroup) -> FeatureGroup:
        return self._combined("and", other, {*self.features} & {*other.features})

    def __sub__(self, other: FeatureGroup) -> FeatureGroup:
        return self._combined("minus", other, {*self.features} - {*other.features})

    def by_layer(self) -> dict[int, list[int]]:
        """Layer -> its features in the group, ascending; layers without any are left out."""
        layers: dict[int, list[int]] = {}
        for layer, feature in self.features:
            layers.setdefault(layer, []).append(feature)
        return layers

    def require_in(self, adapters: AdapterSet) -> None:
        """Whether the group is one of these adapters' features.

        Raises:
            FeatureGroupError: a feature that they do not have, or the group was made for other adapters.
        """
        last = (adapters.n_layers - 1, adapters.n_features - 1)
        for layer, feature in self.features:
            if layer > last[0] or feature > last[1]:
                raise FeatureGroupError(
                    f"Features must be from 0.0 to {last[0]}.{last[1]}, which is what the adapters have. "
                    f"Got {layer}.{feature} in group '{self.name}'."
                )
        if self.adapters_fingerprint is not None and self.adapters_fingerprint != (own := adapters.fingerprint()):
            raise FeatureGroupError(
                f"Group '{self.name}' must be of these adapters ({own}). Got one of others "
                f"({self.adapters_fingerprint}); make it again from their feature store."
            )

    def save(self, path: str | Path) -> None:
        """Writes the group, whole or not at all; a group that stands there is replaced.

        Raises:
            FeatureGroupError: something else stands there, or it cannot be written.
        """
        path = Path(path).expanduser()
        if path.exists() and _read(path) is None:
            raise FeatureGroupError(f"{path} is there already and is not a feature group. Name another file.")
        with atomic_file(path, error=FeatureGroupError) as partial:
            write_json(
                partial,
                {
                    "format": FORMAT,
                    "format_version": FORMAT_VERSION,
                    "name": self.name,
                    "rule": dict(self.rule),
                    "adapters_fingerprint": self.adapters_fingerprint,
                    "n_features": len(self),
                    "features": [list(feature) for feature in self.features],
                },
            )

    @classmethod
    def load(cls, path: str | Path, adapters: AdapterSet | None = None) -> FeatureGroup:
        """Reads a group. Written by hand, `{"features": [[layer, feature], ...]}` is enough; its name is the file's.

        Args:
            adapters: whose features it must be of; None: of any.
        Raises:
            FeatureGroupError: no such file, anything else in it, an empty group, or one of other adapters.
        """
        path = Path(path).expanduser()
        content = _read(path)
        if content is None:
            raise FeatureGroupError(
                f'A feature group must be a JSON file with {{"features": [[layer, feature], ...]}}. Got {path}.'
            )
        group = cls(
            str(content.get("name") or path.stem),
            tuple((layer, feature) for layer, feature in content["features"]),
            content.get("rule", {"given": path.name}),
            content.get("adapters_fingerprint"),
        )
        if adapters is not None:
            group.require_in(adapters)
        return group

    def _combined(self, word: str, other: FeatureGroup, features: Iterable[tuple[int, int]]) -> FeatureGroup:
        known = {self.adapters_fingerprint, other.adapters_fingerprint} - {None}
        if len(known) > 1:
            raise FeatureGroupError(
                f"Groups must be of the same adapters. Got '{self.name}' ({self.adapters_fingerprint}) and "
                f"'{other.name}' ({other.adapters_fingerprint})."
            )
        rule = {word: [{"name": group.name, "rule": dict(group.rule)} for group in (self, other)]}
        return FeatureGroup(f"{self.name} {word} {other.name}", tuple(features), rule, next(iter(known), None))


def _read(path: Path) -> dict[str, Any] | None:
    """What a file of a group holds; None: it holds something else.

    Raises:
        FeatureGroupError: it cannot be read.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise FeatureGroupError(
            f"{path} cannot be read: {error.strerror}. Name the JSON file of a feature group."
        ) from error
    except ValueError:
        return None
    pairs = content.get("features") if isinstance(content, dict) else None
    return content if isinstance(pairs, list) and all(map(_is_pair, pairs)) else None


def _is_pair(value: object) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 2
        and all(isinstance(number, int) and not isinstance(number, bool) for number in value)
    )
