"""The conditions of interventions as a table for the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tc_adapters_lens.evaluation.estimate import Estimate
from tc_adapters_lens.report.conditions import (
    Condition,
    Controls,
    decimals,
    excludes_zero,
    in_rows,
    measured_anywhere,
    read_conditions,
)

_TITLES = {
    "accuracy": "accuracy",
    "response_length": "tokens",
    "hesitation_per_1000": "hesitation / 1,000",
    "degeneration_rate": "degenerate",
    "kl": "KL (nats)",
}
_NOTE = "* the 95% interval of the difference from what the model is held against leaves out 0"


def conditions_table(result: Mapping[str, Any]) -> str:
    """A row per condition, random controls as the mean of their draws; a star marks a difference that the sample shows.

    Args:
        result: the contents of interventions.json.
    """
    conditions = read_conditions(result)
    metrics = measured_anywhere(conditions)
    cells = [["model", *(_TITLES[metric.key] for metric in metrics)]]
    for row in in_rows(conditions):
        found = [_figure(row, metric.key) for metric in metrics]
        written = [
            "" if one is None else metric.write(one.value, decimals(one)) + _star(row, metric.key)
            for metric, one in zip(metrics, found, strict=True)
        ]
        cells.append([("  " if isinstance(row, Controls) else "") + row.label, *written])
    stars = any(cell.endswith("*") for row in cells for cell in row[1:])
    padded = [
        [row[0], *(cell if cell.endswith("*") else f"{cell} " if stars else cell for cell in row[1:])] for row in cells
    ]
    widths = [max(map(len, column)) for column in zip(*padded, strict=True)]
    lines = [
        "  ".join(
            cell.rjust(width) if at else cell.ljust(width)
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in padded
    ]
    return "\n".join(line.rstrip() for line in [lines[0], "-" * len(lines[0]), *lines[1:], *([_NOTE] if stars else [])])


def _figure(row: Condition | Controls, key: str) -> Estimate | None:
    return row.spread(key) if isinstance(row, Controls) else row.measured.get(key)


def _star(row: Condition | Controls, key: str) -> str:
    return "*" if isinstance(row, Condition) and excludes_zero(row.difference.get(key)) else ""
