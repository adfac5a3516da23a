"""Plots of how figures go with the factor of a group: scaled in the replacement model, or negated on the target."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tc_adapters_lens.evaluation.estimate import Estimate
from tc_adapters_lens.report.conditions import CONTROLS, METRIC, Condition, Metric
from tc_adapters_lens.report.numbers import number, percent, plain
from tc_adapters_lens.report.plots import Key, Panel, Section, curve, figure, level
from tc_adapters_lens.report.shown_text import name
from tc_adapters_lens.report.styles import Style

_METRICS = tuple(METRIC[key] for key in ("hesitation_per_1000", "response_length", "accuracy"))
_RANDOM = "random features"


@dataclass(frozen=True)
class Dose:
    """A way to switch a group by a factor.

    unchanged: the factor at which the model is the one it started from.
    without: the factor at which the features are as good as removed, if there is one.
    """

    kind: str
    title: str
    text: str
    unchanged: float
    without: float | None


DOSES = (
    Dose(
        "scale",
        "Scaled in the replacement model",
        "What the group's features write is multiplied by the factor. At 1 the replacement model is unchanged, at 0 "
        "they are removed.",
        1.0,
        0.0,
    ),
    Dose(
        "negate",
        "Negated on the target",
        "The target itself, with what the group's features write subtracted from its MLPs, times the factor. At 0 it "
        "is unchanged.",
        0.0,
        None,
    ),
)


def doses(conditions: Sequence[Condition]) -> list[Section]:
    """A section for each dose that was measured, a panel for each figure in it."""
    return [section for dose in DOSES if (section := _section(dose, conditions)) is not None]


def _section(dose: Dose, conditions: Sequence[Condition]) -> Section | None:
    switched = [one for one in conditions if one.kind == dose.kind and one.factor is not None]
    if not switched:
        return None
    lines = _lines(dose, conditions, switched)
    start = next((one for one in conditions if one.name == switched[0].against), None)
    panels = [panel for metric in _METRICS if (panel := _panel(dose, metric, lines, start)) is not None]
    keys = {line.name: Key(line.name, line.style, marker=True) for line in reversed(lines)}
    unchanged = [Key(start.label, _dotted(start))] if start is not None else []
    text = f"{dose.text} Bars are 95% intervals over problems where there are any."
    if _RANDOM in keys:
        text += " Grey lines are random features, one for each draw."
    return Section(f"dose-{dose.kind}", dose.title, text, panels, [*keys.values(), *unchanged], columns=len(panels))


@dataclass(frozen=True)
class _Line:
    """Conditions of one group, or of one draw of random features, by factor."""

    name: str
    style: Style
    is_control: bool
    points: dict[float, Condition]


def _lines(dose: Dose, conditions: Sequence[Condition], switched: Sequence[Condition]) -> list[_Line]:
    """Random features first, so that groups are drawn over them; the ends that other conditions measured are joined."""
    lines = []
    for controls in (True, False):
        for group in dict.fromkeys(one.group for one in switched if (one.control_of is not None) is controls):
            own = [one for one in switched if one.group == group]
            points = {one.factor: one for one in own if one.factor is not None}
            for one in conditions:
                if one.name == own[0].against:
                    points.setdefault(dose.unchanged, one)
                if dose.without is not None and one.kind == "remove" and one.group == group:
                    points.setdefault(dose.without, one)
            style = CONTROLS if controls else Style(own[0].style.colour)
            lines.append(
                _Line(_RANDOM if controls else name(group or ""), style, controls, dict(sorted(points.items())))
            )
    return lines


def _panel(dose: Dose, metric: Metric, lines: Sequence[_Line], start: Condition | None) -> Panel | None:
    write = percent if metric.share else number
    data: list[dict[str, Any]] = []
    described = []
    factors = [factor for line in lines for factor in line.points]
    ends = min(factors), max(factors)
    if start is not None and metric.key in start.measured:
        estimate = Estimate(start.measured[metric.key].value)
        data.append(level(start.label, _dotted(start), estimate, ends, write))
    for line in lines:
        points = {factor: one for factor, one in line.points.items() if metric.key in one.measured}
        if not any(one.kind == dose.kind for one in points.values()):
            continue
        estimates = [one.measured[metric.key] for one in points.values()]
        trace = curve(line.name, line.style, list(points), estimates, lambda factor: f"factor {plain(factor)}", write)
        if line.is_control:
            trace |= {"error_y": {"visible": False}, "opacity": 0.6}
            trace["line"] = {**trace["line"], "width": 1.2}
            trace["marker"] = {**trace["marker"], "size": 4}
        else:
            told = ", ".join(f"{plain(at)}: {write(one.value)}" for at, one in zip(points, estimates, strict=True))
            described.append(f"{line.name} by factor {told}")
        data.append(trace)
    if not described:
        return None
    y = {"title": metric.title, "rangemode": "tozero"} | ({"tickformat": ".0%"} if metric.share else {})
    line = {"type": "line", "xref": "x", "yref": "paper", "x0": dose.unchanged, "x1": dose.unchanged, "y0": 0, "y1": 1}
    shape = {**line, "line": {"color": "#777", "width": 1.5, "dash": "dot"}}
    note = {"text": "unchanged", "x": dose.unchanged, "y": 0, "yref": "paper", "xanchor": "left", "yanchor": "bottom"}
    note |= {"showarrow": False, "font": {"size": 11, "color": "#5c6270"}}
    plot = figure(data, {"title": "factor"}, y, height=300, shapes=[shape], annotations=[note])
    title = metric.title[0].upper() + metric.title[1:]
    return Panel(f"dose-{dose.kind}-{metric.key}", title, f"{title} against factor. {'; '.join(described)}.", plot)


def _dotted(start: Condition) -> Style:
    return Style(start.style.colour, "dot")
