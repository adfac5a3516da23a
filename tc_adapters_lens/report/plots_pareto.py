"""Faithfulness against sparsity: a point per run, lines for the models without adapters."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import log10
from typing import Any

from tc_adapters_lens.evaluation.estimate import Estimate
from tc_adapters_lens.report.groups import Group
from tc_adapters_lens.report.numbers import number, percent, with_span
from tc_adapters_lens.report.plots import Key, Panel, Section, bars, figure, label, level, scale
from tc_adapters_lens.report.runs import Runs
from tc_adapters_lens.report.styles import Style, faint, run_styles
from tc_adapters_lens.report.tables import Row, model_rows

_ROOM = 0.06  # share of the axis that a name takes
_LINES = ("base", "reverse", "hybrid", "norm_refit", "skyline")


def pareto(runs: Runs) -> Section:
    """KL and top-1 error against L0."""
    lines = [row for row in model_rows(runs) if row.model in _LINES]
    styles = run_styles(runs.groups)
    text = (
        "Each point is one set of adapters, measured on the same tokens: the further left, the fewer features act on a "
        "token; the lower, the closer to the target. Runs that differ in their seed alone share a colour and a name. "
        "Lines join recipes that differ in sparsity weight, learning rate and length of training only."
    )
    if any(row.model == "skyline" for row in lines):
        text += " The skyline is the hybrid with its MLPs trained densely on the same objective, with its 95% interval."
    panels = [
        _panel(runs, lines, "kl", "KL against the target, nats", number),
        _panel(runs, lines, "top1_error", "Top-1 error against the target", percent),
    ]
    groups = [Key(group.name, _style(group, styles), marker=True) for group in runs.groups]
    return Section(
        "tradeoff",
        "Faithfulness against sparsity",
        text,
        panels,
        [*groups, *(Key(row.label, row.style) for row in lines)],
    )


def _panel(runs: Runs, lines: list[Row], key: str, title: str, write: Callable[[float], str]) -> Panel:
    l0s = [run.evaluation["l0"]["value"] for run in runs.ordered]
    values = [run.estimate("replacement", key) for run in runs.ordered]
    ends = (min(l0s) / 1.6, max(l0s) * 1.6) if min(l0s) > 0 else (0.0, 1.1 * max([*l0s, 1e-9]))
    x = scale(ends)
    logarithmic = x["type"] == "log"
    data: list[dict[str, Any]] = []
    heights = [row.figures[key].value for row in lines]
    sides = _sides(heights, [*heights, *(value.value for value in values)], logarithmic=key == "kl")
    for row, side in zip(lines, sides, strict=True):
        data += _line(row, row.figures[key], ends, write, side)
    data += _families(runs, key)
    data += [_points(runs, group, key, write) for group in runs.groups]
    y: dict[str, Any] = {"title": "KL, nats" if key == "kl" else "top-1 error"}
    if key == "kl":
        y |= scale([*heights, *(value.value for value in values)])
    else:
        y |= {"rangemode": "tozero", "tickformat": ".0%"}
    x |= {"title": "L0, active features per token and layer", "range": _range(ends, logarithmic)}
    told = "; ".join(
        f"{run.label}: L0 {number(l0)}, {write(value.value)}"
        for run, l0, value in zip(runs.ordered, l0s, values, strict=True)
    )
    return Panel(f"tradeoff-{key}", title, f"{title} against L0. {told}.", figure(data, x, y, height=400))


def _range(ends: tuple[float, float], logarithmic: bool) -> list[float]:
    return [log10(end) for end in ends] if logarithmic else list(ends)


def _sides(heights: list[float], drawn: list[float], logarithmic: bool) -> list[str]:
    """On which side each line has its name: above, or below where what is above comes too near."""
    floor = min(drawn)
    places = [log10(height) if logarithmic and floor > 0 else height for height in heights]
    room = (log10(max(drawn) / floor) if logarithmic and floor > 0 else max(drawn)) * _ROOM
    sides, last = ["above"] * len(heights), float("inf")
    for at in sorted(range(len(heights)), key=lambda at: -places[at]):
        if last - places[at] < room:
            sides[at] = "below"
        last = places[at] - (room if sides[at] == "below" else 0)
    return sides


def _line(
    row: Row, estimate: Estimate, x: tuple[float, float], write: Callable[[float], str], side: str
) -> list[dict[str, Any]]:
    named = {
        "mode": "lines+markers+text",
        "marker": {"size": 6, "opacity": 0},  # lifts the text off the line
        "text": [label(row.label), ""],
        "textposition": "top right" if side == "above" else "bottom right",
        "textfont": {"color": row.style.colour, "size": 11},
    }
    line = level(row.label, row.style, estimate, x, write, **named)
    if row.model != "skyline" or estimate.interval is None:
        return [line]
    low, high = estimate.interval
    band = level(row.label, row.style, estimate, x, write)
    band |= {
        "x": [x[0], x[1], x[1], x[0]],
        "y": [low, low, high, high],
        "fill": "toself",
        "fillcolor": faint(row.style.colour, 0.15),
        "line": {"width": 0},
        "hoverinfo": "skip",
    }
    return [band, line]


def _families(runs: Runs, key: str) -> list[dict[str, Any]]:
    """Thin lines through the means of the groups of each family."""
    traces = []
    for family, bridged in dict.fromkeys((group.family, group.bridged) for group in runs.groups):
        members = [group for group in runs.groups if (group.family, group.bridged) == (family, bridged)]
        if len(members) < 2:
            continue
        means = [
            sum(runs.by_label[label].estimate("replacement", key).value for label in group.labels) / len(group.labels)
            for group in members
        ]
        traces.append(
            {
                "type": "scatter",
                "mode": "lines",
                "x": [group.l0 for group in members],
                "y": means,
                "line": {"color": "#b5b5b5", "width": 1.2},
                "hoverinfo": "skip",
            }
        )
    return traces


def _points(runs: Runs, group: Group, key: str, write: Callable[[float], str]) -> dict[str, Any]:
    style = _style(group, run_styles(runs.groups))
    members = [runs.by_label[label] for label in group.labels]
    l0s = [Estimate.of(run.evaluation["l0"]) for run in members]
    values = [run.estimate("replacement", key) for run in members]
    return {
        "type": "scatter",
        "mode": "markers",
        "name": label(group.name),
        "legendgroup": group.name,
        "x": [l0.value for l0 in l0s],
        "y": [value.value for value in values],
        "error_x": bars(l0s, style),
        "error_y": bars(values, style),
        "marker": {"color": style.colour, "symbol": style.symbol, "size": 9, "line": {"color": "#fff", "width": 1}},
        "hoverinfo": "text",
        "hovertext": [
            f"{label(run.label)}<br>L0 {with_span(l0)}<br>{with_span(value, write)}"
            for run, l0, value in zip(members, l0s, values, strict=True)
        ],
    }


def _style(group: Group, styles: dict[str, Style]) -> Style:
    return replace(styles[group.labels[0]], dash="solid")
