"""Checks on the values of a file, each raising `WrongValue` with the place that breaks a rule."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from typing import Any

Check = Callable[[Any, str], None]
"""A value, and where it stands in the file."""


class WrongValue(Exception):
    """Where a value breaks which rule."""


def fields(value: dict[str, Any], where: str, checks: dict[str, Check]) -> None:
    """Every name is there, and its value passes its check; others are not looked at."""
    for name, check in checks.items():
        inside = f"{where}.{name}" if where else name
        if name not in value:
            raise WrongValue(f"{inside} is missing")
        check(value[name], inside)


def record(**checks: Check) -> Check:
    """An object with these fields."""

    def check(value: Any, where: str) -> None:
        is_object(value, where)
        fields(value, where, checks)

    return check


def list_of(item: Check, length: int | None = None) -> Check:
    """A list, of that length, each of whose items passes."""

    def check(value: Any, where: str) -> None:
        if not isinstance(value, list):
            raise WrongValue(f"{where} must be a list. Got {_short(value)}")
        if length is not None and len(value) != length:
            raise WrongValue(f"{where} must have {length} entries. Got {len(value)}")
        for i, one in enumerate(value):
            item(one, f"{where}[{i}]")

    return check


def optional(check: Check) -> Check:
    """None, or what passes."""
    return lambda value, where: None if value is None else check(value, where)


def one_of(*words: str) -> Check:
    """One of these words."""

    def check(value: Any, where: str) -> None:
        if value not in words:
            raise WrongValue(f"{where} must be one of {', '.join(words)}. Got {_short(value)}")

    return check


def is_object(value: Any, where: str) -> None:
    if not isinstance(value, dict):
        raise WrongValue(f"{where} must be an object. Got {_short(value)}")


def is_text(value: Any, where: str) -> None:
    if not isinstance(value, str):
        raise WrongValue(f"{where} must be text. Got {_short(value)}")


def is_number(value: Any, where: str) -> None:
    if not isinstance(value, (int, float)) or not math.isfinite(value):
        raise WrongValue(f"{where} must be a finite number. Got {_short(value)}")


def is_whole(value: Any, where: str) -> None:
    if not isinstance(value, int) or value < 1:
        raise WrongValue(f"{where} must be a whole number of at least 1. Got {_short(value)}")


def is_count(value: Any, where: str) -> None:
    if not isinstance(value, int) or value < 0:
        raise WrongValue(f"{where} must be a whole number of at least 0. Got {_short(value)}")


def is_share(value: Any, where: str) -> None:
    is_number(value, where)
    if not 0 <= value <= 1:
        raise WrongValue(f"{where} must be from 0 to 1. Got {_short(value)}")


def values_of(check: Check, known: Collection[str] | None = None) -> Check:
    """An object each of whose values passes, with no other keys than the known ones."""

    def check_all(value: Any, where: str) -> None:
        is_object(value, where)
        for name, one in value.items():
            if known is not None and name not in known:
                raise WrongValue(f"{where} may hold {', '.join(known)}. Got {_short(name)}")
            check(one, f"{where}.{name}")

    return check_all


def is_estimate(value: Any, where: str) -> None:
    record(value=is_number, low=optional(is_number), high=optional(is_number))(value, where)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."
