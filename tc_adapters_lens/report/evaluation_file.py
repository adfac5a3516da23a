"""Reads a run's evaluation.json and checks that it is whole before anything is drawn from it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

from tc_adapters_lens.errors import RunError
from tc_adapters_lens.evaluation.record import FORMAT, FORMAT_VERSION

POSITIONS = ("response", "all")

_Check = Callable[[Any, str], None]


class _Wrong(Exception):
    """Where a value breaks which rule."""


def read_evaluation(path: Path) -> dict[str, Any]:
    """The evaluation in a file.

    Raises:
        RunError: not JSON, of another format or version, or a figure is missing or not a finite number.
    """
    again = "Make it again with `tc-adapters evaluate --run`"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as broken:
        raise RunError(f"{path} is not whole JSON ({broken}). {again}.") from broken
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        got = found.get("format") if isinstance(found, dict) else type(found).__name__
        raise RunError(f"{path} must have the format {FORMAT!r}. Got {got!r}. {again}.")
    if found.get("format_version") != FORMAT_VERSION:
        raise RunError(
            f"{path} must have format version {FORMAT_VERSION}. Got {found.get('format_version')!r}. "
            f"{again}, or read it with the version of this package that wrote it."
        )
    try:
        _evaluation(found)
    except _Wrong as wrong:
        raise RunError(f"{path}: {wrong}. {again}.") from wrong
    return found


def _evaluation(found: dict[str, Any]) -> None:
    _fields(
        found,
        "",
        {
            **dict.fromkeys(("n_tokens", "n_sequences", "n_layers", "n_features"), _whole),
            **dict.fromkeys(("replicates", "seed", "partial_sequences"), _number),
            **dict.fromkeys(("tokens", "tokens_fingerprint", "adapters"), _text),
            **dict.fromkeys(("nmse", "l0", "l1", "dead"), _estimate),
            "recipe": _recipe,
            "versions": _object,
            "positions": _one_of(*POSITIONS),
            "pair": _record(
                **dict.fromkeys(("base_name", "target_name", "base_fingerprint", "target_fingerprint"), _text)
            ),
            "target": _record(cross_entropy=_optional(_estimate), sure_share=_estimate, entropy=_estimate),
            "models": _object,
            "skyline_sweep": _list(_record(lr=_number, kl=_estimate, top1_error=_estimate)),
        },
    )
    n = found["n_layers"]
    layers = _list(_estimate, n)
    partial = _optional(
        _record(first=_list(_estimate, n + 1), last=_list(_estimate, n + 1), single=_list(_estimate, n))
    )
    _fields(
        found,
        "",
        {
            **dict.fromkeys(("nmse_per_layer", "l0_per_layer", "dead_per_layer"), layers),
            "partial_kl": partial,
            "frequency": _record(edges=_list(_number)),
            "no_bridging": _optional(_record(l0=_estimate, nmse=_estimate, nmse_per_layer=layers, partial_kl=partial)),
            "account": _optional(_account),
        },
    )
    frequency = found["frequency"]
    edges = frequency["edges"]
    if any(after <= before for before, after in pairwise(edges)):
        raise _Wrong("frequency.edges must increase")
    _record(per_layer=_list(_list(_estimate, len(edges) - 1), n))(frequency, "frequency")
    for name in {"hybrid", "replacement", *found["models"]}:
        _fields(found["models"], "models", {name: _agreement})


def _recipe(value: Any, where: str) -> None:
    _object(value, where)
    if value.get("config"):
        _record(config=_record(objective=_record(l1_coefficient=_number, bridging_weight=_number)))(value, where)


def _agreement(value: Any, where: str) -> None:
    measured = {"kl": _estimate, "top1_error": _estimate}
    optional = _optional(_record(**measured))
    losses = dict.fromkeys(("cross_entropy", "loss_recovered"), _optional(_estimate))
    _record(**measured, unsure=optional, sure=optional, **losses)(value, where)


def _account(value: Any, where: str) -> None:
    kl, step = _record(kl=_estimate), _record(kl=_estimate, recovered=_estimate)
    _record(parts=_list(_text))(value, where)
    parts = value["parts"]
    added = _list(_record(added=_one_of(*parts), kl=_estimate, recovered=_estimate), len(parts))
    _record(
        alone=_record(**dict.fromkeys(parts, step)),
        without=_record(**dict.fromkeys(parts, kl)),
        cumulative=added,
        mlps_last=added,
        adapters=_record(recovered=_estimate, left=_estimate),
    )(value, where)


def _fields(value: dict[str, Any], where: str, checks: dict[str, _Check]) -> None:
    for name, check in checks.items():
        inside = f"{where}.{name}" if where else name
        if name not in value:
            raise _Wrong(f"{inside} is missing")
        check(value[name], inside)


def _record(**checks: _Check) -> _Check:
    def check(value: Any, where: str) -> None:
        _object(value, where)
        _fields(value, where, checks)

    return check


def _list(item: _Check, length: int | None = None) -> _Check:
    def check(value: Any, where: str) -> None:
        if not isinstance(value, list):
            raise _Wrong(f"{where} must be a list. Got {_short(value)}")
        if length is not None and len(value) != length:
            raise _Wrong(f"{where} must have {length} entries. Got {len(value)}")
        for i, one in enumerate(value):
            item(one, f"{where}[{i}]")

    return check


def _optional(check: _Check) -> _Check:
    return lambda value, where: None if value is None else check(value, where)


def _one_of(*words: str) -> _Check:
    def check(value: Any, where: str) -> None:
        if value not in words:
            raise _Wrong(f"{where} must be one of {', '.join(words)}. Got {_short(value)}")

    return check


def _object(value: Any, where: str) -> None:
    if not isinstance(value, dict):
        raise _Wrong(f"{where} must be an object. Got {_short(value)}")


def _text(value: Any, where: str) -> None:
    if not isinstance(value, str):
        raise _Wrong(f"{where} must be text. Got {_short(value)}")


def _number(value: Any, where: str) -> None:
    if not isinstance(value, (int, float)) or not math.isfinite(value):
        raise _Wrong(f"{where} must be a finite number. Got {_short(value)}")


def _whole(value: Any, where: str) -> None:
    if not isinstance(value, int) or value < 1:
        raise _Wrong(f"{where} must be a whole number of at least 1. Got {_short(value)}")


def _estimate(value: Any, where: str) -> None:
    _record(value=_number, low=_optional(_number), high=_optional(_number))(value, where)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."
