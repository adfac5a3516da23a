"""Reads a run's evaluation.json and checks that it is whole before anything is drawn from it."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

from tc_adapters_lens.errors import RunError
from tc_adapters_lens.evaluation.record import FORMAT, FORMAT_VERSION
from tc_adapters_lens.report.checks import (
    WrongValue,
    fields,
    is_estimate,
    is_number,
    is_object,
    is_text,
    is_whole,
    list_of,
    one_of,
    optional,
    record,
)

POSITIONS = ("response", "all")


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
    except WrongValue as wrong:
        raise RunError(f"{path}: {wrong}. {again}.") from wrong
    return found


def _evaluation(found: dict[str, Any]) -> None:
    fields(
        found,
        "",
        {
            **dict.fromkeys(("n_tokens", "n_sequences", "n_layers", "n_features"), is_whole),
            **dict.fromkeys(("replicates", "seed", "partial_sequences"), is_number),
            **dict.fromkeys(("tokens", "tokens_fingerprint", "adapters"), is_text),
            **dict.fromkeys(("nmse", "l0", "l1", "dead"), is_estimate),
            "recipe": _recipe,
            "versions": is_object,
            "positions": one_of(*POSITIONS),
            "pair": record(
                **dict.fromkeys(("base_name", "target_name", "base_fingerprint", "target_fingerprint"), is_text)
            ),
            "target": record(cross_entropy=optional(is_estimate), sure_share=is_estimate, entropy=is_estimate),
            "models": is_object,
            "skyline_sweep": list_of(record(lr=is_number, kl=is_estimate, top1_error=is_estimate)),
        },
    )
    n = found["n_layers"]
    layers = list_of(is_estimate, n)
    partial = optional(
        record(first=list_of(is_estimate, n + 1), last=list_of(is_estimate, n + 1), single=list_of(is_estimate, n))
    )
    fields(
        found,
        "",
        {
            **dict.fromkeys(("nmse_per_layer", "l0_per_layer", "dead_per_layer"), layers),
            "partial_kl": partial,
            "frequency": record(edges=list_of(is_number)),
            "no_bridging": optional(
                record(l0=is_estimate, nmse=is_estimate, nmse_per_layer=layers, partial_kl=partial)
            ),
            "account": optional(_account),
        },
    )
    frequency = found["frequency"]
    edges = frequency["edges"]
    if any(after <= before for before, after in pairwise(edges)):
        raise WrongValue("frequency.edges must increase")
    record(per_layer=list_of(list_of(is_estimate, len(edges) - 1), n))(frequency, "frequency")
    for name in {"hybrid", "replacement", *found["models"]}:
        fields(found["models"], "models", {name: _agreement})


def _recipe(value: Any, where: str) -> None:
    is_object(value, where)
    if value.get("config"):
        record(config=record(objective=record(l1_coefficient=is_number, bridging_weight=is_number)))(value, where)


def _agreement(value: Any, where: str) -> None:
    measured = {"kl": is_estimate, "top1_error": is_estimate}
    part = optional(record(**measured))
    losses = dict.fromkeys(("cross_entropy", "loss_recovered"), optional(is_estimate))
    record(**measured, unsure=part, sure=part, **losses)(value, where)


def _account(value: Any, where: str) -> None:
    kl, step = record(kl=is_estimate), record(kl=is_estimate, recovered=is_estimate)
    record(parts=list_of(is_text))(value, where)
    parts = value["parts"]
    added = list_of(record(added=one_of(*parts), kl=is_estimate, recovered=is_estimate), len(parts))
    record(
        alone=record(**dict.fromkeys(parts, step)),
        without=record(**dict.fromkeys(parts, kl)),
        cumulative=added,
        mlps_last=added,
        adapters=record(recovered=is_estimate, left=is_estimate),
    )(value, where)
