"""Conditions on a store's columns, as text: `domain:math >= 0.8`, `frequency < 0.01`, `class == reasoning output`."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tc_adapters_lens.errors import ConfigError, did_you_mean
from tc_adapters_lens.features.choice import Choice
from tc_adapters_lens.features.store import FeatureStore

__all__ = ["where"]

_COMPARE: dict[str, Callable[[Any, Any], Any]] = {
    ">=": operator.ge,
    "<=": operator.le,
    "==": operator.eq,
    "!=": operator.ne,
    ">": operator.gt,
    "<": operator.lt,
}
_OPERATOR = re.compile("|".join(_COMPARE))
_FORM = f"A condition must be COLUMN OPERATOR VALUE, with one of {' '.join(_COMPARE)}"
_LISTS = ("promoted", "inhibited")


def where(store: FeatureStore, condition: str) -> Choice:
    """Features of which a condition on one column holds; it never does where the column has no value, such as a share
    of a feature that is never active, or a label that a feature does not have.

    Args:
        condition: a column of the store or its labels, >=, <=, ==, !=, > or <, and a number; or of a column of texts
            == or != and one of its values. Column and value may hold any character, blanks too.
    Raises:
        ConfigError: it is none of these.
    """
    column, compare, value = _parse(condition, [name for name in store.column_names if name not in _LISTS])
    values = np.asarray(store.column(column))
    if values.dtype.kind in "iuf":
        number = _number(condition, value)
        chosen = ~np.isnan(values) & _COMPARE[compare](values, number)
    else:
        chosen = _among_texts(condition, values, compare, value)
    return Choice(store, {"where": f"{column} {compare} {value}"}, chosen)


def _parse(condition: str, columns: Sequence[str]) -> tuple[str, str, str]:
    """Column, operator and value. Columns such as `template:<think>` hold operators themselves, so the longest column
    that stands before one is taken."""
    parts = [(condition[: at.start()].strip(), at[0], condition[at.end() :].strip()) for at in _operators(condition)]
    if not parts:
        raise ConfigError(f"{_FORM}, such as 'domain:math >= 0.8'. Got '{condition}'.")
    known = [part for part in parts if part[0] in columns]
    if not known:
        name = next((part[0] for part in parts if f" {part[1]} " in condition), parts[-1][0])
        raise ConfigError(
            f"A condition must be on one of the columns {', '.join(columns)}. Got '{name}' in '{condition}'."
            f"{did_you_mean(name, columns)}"
        )
    column, compare, value = max(known, key=lambda part: len(part[0]))
    if not value:
        raise ConfigError(f"{_FORM}. Got '{condition}', which has no value.")
    return column, compare, value


def _operators(condition: str) -> list[re.Match[str]]:
    return [found for start in range(len(condition)) if (found := _OPERATOR.match(condition, start))]


def _number(condition: str, value: str) -> float:
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ConfigError(f"A condition on a column of numbers must have a number. Got '{value}' in '{condition}'.")
    return number


def _among_texts(condition: str, values: np.ndarray, compare: str, value: str) -> np.ndarray:
    """Bool [n_rows]; of truth values, True and False are the texts."""
    if compare not in ("==", "!="):
        raise ConfigError(f"A condition on a column of texts must have == or !=. Got {compare} in '{condition}'.")
    there = np.array([entry is not None and entry == entry for entry in values], dtype=bool)
    texts = np.array([str(entry) for entry in values], dtype=object)
    known = sorted(set(texts[there].tolist()))
    if value not in known:
        raise ConfigError(
            f"'{condition}' must name a value of the column: {', '.join(known) or 'it has none'}. Got '{value}'."
            f"{did_you_mean(value, known)}"
        )
    return there & _COMPARE[compare](texts, value).astype(bool)
