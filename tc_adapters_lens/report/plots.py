"""What all plots share: layout, axes, lines with intervals. A figure is plotly's {"data", "layout"} as plain values."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil, floor, log10
from typing import Any

from tc_adapters_lens.evaluation.estimate import Estimate
from tc_adapters_lens.report.numbers import number, plain, with_span
from tc_adapters_lens.report.styles import Style

FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
_LONGEST_NAME = 48
# Digits of ticks on logarithmic axes, from coarse to fine.
_MANTISSAS = ((1,), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 6, 8), (1, 1.2, 1.4, 1.6, 1.8, 2, 2.5, 3, 3.5, 4, 5, 6, 7, 8, 9))
_FEWEST_TICKS = 3


@dataclass(frozen=True)
class Panel:
    """One plot.

    id: unique on the page.
    caption: heading above the plot.
    description: what a reader who cannot see it is told.
    choice: which of the section's choices shows it; "" shows it always.
    wide: whether it takes the whole width.
    """

    id: str
    caption: str
    description: str
    figure: dict[str, Any]
    choice: str = ""
    wide: bool = False


@dataclass(frozen=True)
class Key:
    """An entry of a section's legend: switches all traces of its name on and off."""

    name: str
    style: Style
    marker: bool = False


@dataclass(frozen=True)
class Table:
    """Figures in words, one column per head.

    rows: name of a row, then each column's text and what stands under it in small letters.
    """

    caption: str
    heads: Sequence[str]
    rows: Sequence[tuple[str, Sequence[tuple[str, str]]]]


@dataclass(frozen=True)
class Section:
    """A heading, a few sentences, plots and a table.

    text: what one sees and how it was measured.
    choices: names of which the reader picks one; the first is shown to begin with.
    choose: what one of the choices is called.
    """

    id: str
    title: str
    text: str
    panels: Sequence[Panel] = ()
    keys: Sequence[Key] = ()
    choices: Sequence[str] = ()
    columns: int = 2
    choose: str = "Run"
    table: Table | None = None


def label(text: str) -> str:
    """Text from a file as plotly shows it unchanged: plotly reads some HTML and %{...} in labels."""
    text = " ".join(text.split())
    if len(text) > _LONGEST_NAME:
        text = text[: _LONGEST_NAME - 1] + "…"
    for character, entity in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ("%", "&#37;"), ("$", "&#36;")):
        text = text.replace(character, entity)
    return text


def figure(
    data: Iterable[dict[str, Any]], x: dict[str, Any], y: dict[str, Any], *, height: int = 320, **layout: Any
) -> dict[str, Any]:
    """Traces in the page's layout."""
    axis = {
        "showline": True,
        "linecolor": "#888",
        "gridcolor": "#ececec",
        "zeroline": False,
        "ticks": "outside",
        "tickcolor": "#888",
        "ticklen": 4,
        "automargin": True,
    }
    title = {"font": {"size": 12}, "standoff": 8}
    return {
        "data": list(data),
        "layout": {
            "height": height,
            "margin": {"l": 52, "r": 14, "t": 10, "b": 44},
            "font": {"family": FONT, "size": 12, "color": "#222"},
            "paper_bgcolor": "#fff",
            "plot_bgcolor": "#fff",
            "showlegend": False,
            "hovermode": "closest",
            "hoverlabel": {"align": "left", "bgcolor": "#fff", "bordercolor": "#999", "font": {"color": "#222"}},
            "xaxis": {**axis, **x, "title": {**title, "text": x.get("title", "")}},
            "yaxis": {**axis, **y, "title": {**title, "text": y.get("title", "")}},
            **layout,
        },
    }


def scale(values: Iterable[float]) -> dict[str, Any]:
    """A logarithmic axis where all values are above 0 and they differ enough, else a linear one from 0."""
    values = list(values)
    if not values or min(values) <= 0 or max(values) < 1.5 * min(values):
        return {"type": "linear", "rangemode": "tozero"}
    ticks = _log_ticks(min(values), max(values))
    return {"type": "log", "tickvals": ticks, "ticktext": [plain(tick) for tick in ticks]}


def _log_ticks(low: float, high: float) -> list[float]:
    """Round numbers on a logarithmic axis, some of them between the two ends, and a decade beyond each."""
    powers = range(floor(log10(low)) - 1, ceil(log10(high)) + 2)
    ticks: list[float] = []
    for mantissas in _MANTISSAS:
        ticks = [float(f"{mantissa}e{power}") for power in powers for mantissa in mantissas]
        if sum(low <= tick <= high for tick in ticks) >= _FEWEST_TICKS:
            break
    return ticks


def bars(estimates: Sequence[Estimate], style: Style, thickness: float = 1.2) -> dict[str, Any]:
    """plotly's error bars from intervals; where there are none they have no length."""
    ends = [estimate.interval or (estimate.value, estimate.value) for estimate in estimates]
    pairs = list(zip(estimates, ends, strict=True))
    return {
        "type": "data",
        "symmetric": False,
        "array": [max(high - estimate.value, 0) for estimate, (_, high) in pairs],
        "arrayminus": [max(estimate.value - low, 0) for estimate, (low, _) in pairs],
        "visible": any(estimate.interval for estimate in estimates),
        "color": style.colour,
        "thickness": thickness,
        "width": 3,
    }


def curve(
    name: str,
    style: Style,
    x: Sequence[float],
    estimates: Sequence[Estimate],
    where: Callable[[float], str],
    write: Callable[[float], str] = number,
    **trace: Any,
) -> dict[str, Any]:
    """A line through estimates with error bars; hovering says the name, where, and figure with interval."""
    shown = label(name)
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "name": shown,
        "legendgroup": name,
        "x": list(x),
        "y": [estimate.value for estimate in estimates],
        "error_y": bars(estimates, style),
        "line": {"color": style.colour, "dash": style.dash, "width": 2},
        "marker": {"color": style.colour, "symbol": style.symbol, "size": 6},
        "hoverinfo": "text",
        "hovertext": [
            f"{shown}<br>{where(at)}: {with_span(estimate, write)}" for at, estimate in zip(x, estimates, strict=True)
        ],
        **trace,
    }


def level(
    name: str,
    style: Style,
    estimate: Estimate,
    x: Sequence[float],
    write: Callable[[float], str] = number,
    **trace: Any,
) -> dict[str, Any]:
    """A horizontal line at a figure, without markers."""
    return {
        "type": "scatter",
        "mode": "lines",
        "name": label(name),
        "legendgroup": name,
        "x": list(x),
        "y": [estimate.value] * len(x),
        "line": {"color": style.colour, "dash": style.dash, "width": 1.5},
        "hoverinfo": "text",
        "hovertext": f"{label(name)}: {with_span(estimate, write)}",
        **trace,
    }


def whole_axis(title: str, n: int) -> dict[str, Any]:
    """An axis of n whole numbers, with a tick for each where there is room."""
    return {"title": title, "tickmode": "linear", "tick0": 0, "dtick": max(1, -(-n // 10))}


def run_keys(labels: Iterable[str], styles: Mapping[str, Style]) -> list[Key]:
    """Legend entries of runs."""
    return [Key(label, styles[label], marker=True) for label in labels]
