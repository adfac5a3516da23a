"""What a list of features is asked for: the words of the page's address, checked."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from tc_adapters_lens.errors import ConfigError, did_you_mean

PAGE = 200
DEFAULT_SORT = "-frequency"
MAX_TEXT = 1000
_LAYERS = re.compile(r"(\d{1,6})(?:-(\d{1,6}))?")


@dataclass(frozen=True)
class Query:
    """Which features, and in what order.

    layers: (first, last) pairs, both included; empty for all.
    min_frequency, max_frequency: share of positions at which a feature is active, both included.
    shares: (column, least share) pairs, all of which must hold.
    labels: (column, least, most) of numeric labels, both included, all of which must hold; none holds of a feature
        without that label.
    classes: a feature's class must be one of these; empty for any.
    description: substring of one of a feature's descriptions.
    promoted: substring of one of the first `promoted_n` promoted tokens.
    text: substring of the text of one of a feature's examples.
    match_case: whether `promoted`, `description` and `text` tell A from a.
    dead: also features that were never active.
    sort: column to sort by.
    descending: the largest first. Missing values come last either way, ties in the order of rows.
    """

    layers: tuple[tuple[int, int], ...] = ()
    min_frequency: float = 0.0
    max_frequency: float = math.inf
    shares: tuple[tuple[str, float], ...] = ()
    labels: tuple[tuple[str, float, float], ...] = ()
    classes: tuple[str, ...] = ()
    description: str = ""
    promoted: str = ""
    promoted_n: int = 20
    text: str = ""
    match_case: bool = False
    dead: bool = False
    sort: str = "frequency"
    descending: bool = True


def parse_query(
    items: Sequence[tuple[str, str]],
    sortable: Collection[str],
    shares: Collection[str],
    labels: Collection[str] = (),
) -> Query:
    """The query that an address asks for.

    Args:
        items: (name, value) pairs of the address, decoded; unknown names are others' business.
        sortable: columns that can be sorted by.
        shares: columns that `share` may name.
        labels: columns that `label` may name.
    Raises:
        ConfigError: a value is not what it must be.
    """
    given: dict[str, list[str]] = {}
    for name, value in items:
        given.setdefault(name, []).append(value)

    def last(name: str, default: str = "") -> str:
        return given.get(name, [default])[-1]

    sort = last("sort") or DEFAULT_SORT
    column = sort.removeprefix("-")
    _check(column, sortable, "sort")
    for name in ("promoted", "description", "text"):
        if len(last(name)) > MAX_TEXT:
            raise ConfigError(f"{name} must have at most {MAX_TEXT} characters. Got {len(last(name))}.")
    return Query(
        layers=tuple(_layers(last("layers"))),
        min_frequency=_number("min_frequency", last("min_frequency") or "0"),
        max_frequency=_number("max_frequency", last("max_frequency") or "inf"),
        shares=tuple(_share(text, shares) for text in given.get("share", [])),
        labels=tuple(_label(text, labels) for text in given.get("label", [])),
        classes=tuple(given.get("class", [])),
        description=last("description"),
        promoted=last("promoted"),
        promoted_n=whole("promoted_n", last("promoted_n") or "20", 1, 20),
        text=last("text"),
        match_case=last("case") == "1",
        dead=last("dead") == "1",
        sort=column,
        descending=sort.startswith("-"),
    )


def whole(name: str, text: str, least: int, most: int) -> int:
    """The whole number that a text is.

    Raises:
        ConfigError: it is none, or out of range.
    """
    if not re.fullmatch(r"\d{1,12}", text, re.ASCII) or not least <= int(text) <= most:
        raise ConfigError(f"{name} must be a whole number from {least} to {most}. Got {text!r}.")
    return int(text)


def _number(name: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not value >= 0:
        raise ConfigError(f"{name} must be a number from 0. Got {text!r}.")
    return value


def _layers(text: str) -> list[tuple[int, int]]:
    found = []
    for part in filter(None, re.split(r"[,\s]+", text)):
        matched = _LAYERS.fullmatch(part)
        if matched is None:
            raise ConfigError(f"layers must be like 3 or 0-5,7. Got {text!r}.")
        found.append((int(matched[1]), int(matched[2] or matched[1])))
    return found


def _share(text: str, columns: Collection[str]) -> tuple[str, float]:
    least, _, column = text.partition(",")
    _check(column, columns, "share")
    return column, _number("share", least)


def _label(text: str, columns: Collection[str]) -> tuple[str, float, float]:
    """COLUMN,LEAST,MOST, either of which may be empty."""
    column, *bounds = text.rsplit(",", 2)
    _check(column, columns, "label")
    if len(bounds) != 2:
        raise ConfigError(f"label must be like {column},0.5,1, where 0.5 or 1 may be left out. Got {text!r}.")
    return column, _bound(text, bounds[0], -math.inf), _bound(text, bounds[1], math.inf)


def _bound(label: str, text: str, without: float) -> float:
    try:
        value = float(text) if text.strip() else without
    except ValueError:
        value = math.nan
    if math.isnan(value):
        raise ConfigError(f"label must have numbers as bounds. Got {label!r}.")
    return value


def _check(name: str, known: Collection[str], what: str) -> None:
    if name not in known:
        there = f"must name one of {', '.join(known)}" if known else "names a column, of which there is none here"
        raise ConfigError(f"{what} {there}. Got {name!r}.{did_you_mean(name, known)}")
