"""Plots of conditions: response length against hesitation words, and accuracy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tc_adapters_lens.report.conditions import CONTROLS, METRIC, Condition, Controls, Metric, in_rows
from tc_adapters_lens.report.label_places import label_places
from tc_adapters_lens.report.numbers import number, percent, with_span
from tc_adapters_lens.report.plots import Key, Panel, Section, bars, figure, label
from tc_adapters_lens.report.styles import Style

X, Y, ACCURACY = METRIC["hesitation_per_1000"], METRIC["response_length"], METRIC["accuracy"]
RANDOM = "random features"
DOTS = "#5c6270"  # draws on the bar of their mean
_WIDTH, _HEIGHT, _LETTER, _LINE = 700.0, 420.0, 6.2, 14.0  # pixels that names of points are placed in
_SIDES = {(1, 1): "top right", (1, -1): "bottom right", (-1, 1): "top left", (-1, -1): "bottom left"}
_SIDES |= {(1, 0): "middle right", (-1, 0): "middle left", (0, 1): "top center", (0, -1): "bottom center"}
_BAR = 26


def hesitation_and_length(conditions: Sequence[Condition]) -> Section | None:
    """Response length against hesitation words, a point per condition; None: not measured of any."""
    shown = with_both(conditions)
    if not shown:
        return None
    named, controls = ([one for one in shown if (one.control_of is not None) is wanted] for wanted in (False, True))
    x_range, y_range = ranges(shown)
    size = _WIDTH - 80, _HEIGHT - 60

    def pixels(ones: Sequence[Condition]) -> list[tuple[float, float]]:
        return [
            (
                (one.measured[X.key].value - x_range[0]) / (x_range[1] - x_range[0]) * size[0],
                (one.measured[Y.key].value - y_range[0]) / (y_range[1] - y_range[0]) * size[1],
            )
            for one in ones
        ]

    widths = [_LETTER * len(one.short_label) for one in named]
    places = label_places(pixels(named), widths, _LINE, size, pixels(controls))
    traces = [_point(one, 7, opacity=0.75, legendgroup=RANDOM) for one in controls] + _paths(named)
    for one, place in zip(named, places, strict=True):
        group = {"legendgroup": one.dose} if one.is_dose else {}
        traces.append(
            _point(
                one,
                12 if "triangle" in one.style.symbol else 9,
                text=[label(one.short_label)],
                textposition=_SIDES[place],
                **group,
            )
        )
    panel = Panel(
        "hesitation-length",
        "Response length against hesitation words",
        "; ".join(f"{one.label}: {said(one, X)} hesitation words, {said(one, Y)} tokens" for one in named) + ".",
        figure(
            traces,
            {"title": X.title, "range": list(x_range)},
            {"title": Y.title, "range": list(y_range)},
            height=int(_HEIGHT),
        ),
        wide=True,
    )
    keys = {one.dose: Key(one.dose, one.style, marker=True) for one in named if one.is_dose}
    text = "Each point is one condition, with 95% intervals over problems where there are any."
    if keys:
        text += " Lines join the factors of a group, which stand beside the points."
    if controls:
        keys[RANDOM] = Key(RANDOM, CONTROLS, marker=True)
        text += " Small grey points are random features in place of a group's, one for each draw."
    return Section("hesitation", "Hesitation and length", text, [panel], list(keys.values()))


def accuracy(conditions: Sequence[Condition]) -> Section | None:
    """Accuracy as bars; None: no problem has an answer."""
    rows = accuracy_rows(conditions)
    if not rows:
        return None
    data: list[dict[str, Any]] = []
    for at, row in enumerate(rows):
        data += _bar(at, row) if isinstance(row, Condition) else _draws(at, row)
    described = "; ".join(
        f"{row.label}: {said(row, ACCURACY) if isinstance(row, Condition) else percent(_mean(row))}" for row in rows
    )
    axis = {"tickvals": list(range(len(rows))), "ticktext": [label(row.label) for row in rows], "ticks": ""}
    axis |= {"range": [len(rows) - 0.5, -0.5], "showgrid": False}
    text = "The share of problems with a known answer whose response has it, with 95% intervals over problems where "
    text += "there are any."
    if any(isinstance(row, Controls) for row in rows):
        text += " Grey bars are means over draws of random features, the dots on them the draws."
    plot = figure(
        data,
        {"title": ACCURACY.title, "tickformat": ".0%", "rangemode": "tozero"},
        axis,
        height=_BAR * len(rows) + 70,
        bargap=0.35,
        barmode="overlay",
    )
    return Section(
        "accuracy", "Accuracy", text, [Panel("accuracy", "Share of right answers", f"{described}.", plot, wide=True)]
    )


def accuracy_rows(conditions: Sequence[Condition]) -> list[Condition | Controls]:
    """What has a bar: conditions with an accuracy, but for those by factor, which have curves."""
    rows = in_rows(conditions)
    return [row for row in rows if ACCURACY.key in _first(row).measured and not _first(row).is_dose]


def with_both(conditions: Sequence[Condition]) -> list[Condition]:
    """Conditions of which hesitation words and length were measured."""
    return [one for one in conditions if X.key in one.measured and Y.key in one.measured]


def ranges(shown: Sequence[Condition]) -> tuple[tuple[float, float], tuple[float, float]]:
    """Of both axes, with room for intervals and names; from about 0 where the values reach far down."""
    return _range(shown, X.key), _range(shown, Y.key)


def by_factor(conditions: Sequence[Condition]) -> dict[str, list[Condition]]:
    """Doses in the order of their factors, for every group and way to switch it."""
    found: dict[str, list[Condition]] = {}
    for one in sorted(conditions, key=lambda one: one.factor or 0):
        if one.is_dose and one.control_of is None:
            found.setdefault(one.dose, []).append(one)
    return found


def said(condition: Condition, metric: Metric) -> str:
    """A condition's figure with its interval, exactly."""
    return with_span(condition.measured[metric.key], percent if metric.share else number)


def _range(shown: Sequence[Condition], key: str) -> tuple[float, float]:
    found = [one.measured[key] for one in shown]
    ends = [end for one in found for end in (one.interval or (one.value, one.value))]
    low, high = min(ends), max(ends)
    from_zero = low < 0.6 * high
    room = 0.09 * (high - (0 if from_zero else low)) or abs(high) or 1.0
    return (-room / 3 if from_zero else low - room), high + room


def _paths(named: Sequence[Condition]) -> list[dict[str, Any]]:
    return [
        {
            "type": "scatter",
            "mode": "lines",
            "legendgroup": dose,
            "x": [one.measured[X.key].value for one in ones],
            "y": [one.measured[Y.key].value for one in ones],
            "line": {"color": ones[0].style.colour, "width": 1, "dash": "dot"},
            "hoverinfo": "skip",
        }
        for dose, ones in by_factor(named).items()
        if len(ones) > 1
    ]


def _point(condition: Condition, size: int, **trace: Any) -> dict[str, Any]:
    x, y = condition.measured[X.key], condition.measured[Y.key]
    style = condition.style
    intervals = {} if condition.control_of else {"error_x": bars([x], style), "error_y": bars([y], style)}
    return {
        "type": "scatter",
        "mode": "markers+text" if "text" in trace else "markers",
        "name": label(condition.label),
        "x": [x.value],
        "y": [y.value],
        **intervals,
        "marker": {
            "color": style.colour,
            "symbol": style.symbol,
            "size": size,
            "line": {"color": "#fff", "width": 0.5},
        },
        "textfont": {"color": style.colour, "size": 11},
        "hoverinfo": "text",
        "hovertext": _hover(condition, [X, Y]),
        **trace,
    }


def _hover(condition: Condition, metrics: Sequence[Metric]) -> str:
    lines = [f"{metric.title}: {said(condition, metric)}" for metric in metrics]
    return "<br>".join([label(condition.label), *lines])


def _bar(at: int, condition: Condition) -> list[dict[str, Any]]:
    estimate = condition.measured[ACCURACY.key]
    bar = _bar_of(at, estimate.value, condition.style.colour)
    return [{**bar, "error_x": bars([estimate], Style("#555555")), "hovertext": _hover(condition, [ACCURACY])}]


def _draws(at: int, controls: Controls) -> list[dict[str, Any]]:
    mean = _mean(controls)
    draws = [draw for draw in controls.draws if ACCURACY.key in draw.measured]
    dots = {
        "type": "scatter",
        "mode": "markers",
        "x": [draw.measured[ACCURACY.key].value for draw in draws],
        "y": [at] * len(draws),
        "marker": {"color": DOTS, "size": 5},
        "hoverinfo": "text",
        "hovertext": [_hover(draw, [ACCURACY]) for draw in draws],
    }
    return [{**_bar_of(at, mean, "#d4d7dc"), "hovertext": f"{label(controls.label)}<br>mean {percent(mean)}"}, dots]


def _bar_of(at: int, value: float, colour: str) -> dict[str, Any]:
    return {
        "type": "bar",
        "orientation": "h",
        "x": [value],
        "y": [at],
        "marker": {"color": colour, "opacity": 0.85},
        "hoverinfo": "text",
    }


def _first(row: Condition | Controls) -> Condition:
    return row if isinstance(row, Condition) else row.draws[0]


def _mean(controls: Controls) -> float:
    values = [draw.measured[ACCURACY.key].value for draw in controls.draws if ACCURACY.key in draw.measured]
    return sum(values) / len(values)
