"""What interventions did, as a picture: response length against hesitation words, and accuracy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from tc_adapters_lens.evaluation.estimate import Estimate
from tc_adapters_lens.models.atomic import atomic_file
from tc_adapters_lens.report.conditions import CONTROLS, Condition, Controls, read_conditions
from tc_adapters_lens.report.label_places import label_places
from tc_adapters_lens.report.plots_interventions import (
    ACCURACY,
    DOTS,
    RANDOM,
    X,
    Y,
    accuracy_rows,
    by_factor,
    ranges,
    with_both,
)
from tc_adapters_lens.report.shown_text import name

_MARKERS = {"diamond": "D", "circle": "o", "square": "s", "triangle-up": "^", "triangle-down": "v"}
_LONGEST_NAME = 40
_LINE, _LETTER = 11.0, 4.3  # points, at the size of 8
_SIDES = {-1: "right", 0: "center", 1: "left"}, {-1: "top", 0: "center", 1: "bottom"}


def draw_interventions(result: Mapping[str, Any], png: Path) -> None:
    """Draw length against hesitation words and, where problems have answers, accuracy; a PNG (or what the suffix says).

    Args:
        result: the contents of interventions.json.
        png: picture to write, whole or not at all.
    Raises:
        AdapterLensError: it cannot be written.
    """
    conditions = read_conditions(result)
    rows = accuracy_rows(conditions)
    width, height = (10.5, max(4.6, 1.3 + 0.24 * len(rows))) if rows else (6.5, 4.6)
    ratios = [3, 2] if rows else [1]
    figure, axes = plt.subplots(
        1, len(ratios), figsize=(width, height), layout="constrained", squeeze=False, width_ratios=ratios
    )
    figure.suptitle(_title(result), fontsize=11)
    if rows:
        _draw_accuracy(axes[0][1], rows)
    _draw_points(axes[0][0], with_both(conditions))
    with atomic_file(png) as partial:
        figure.savefig(partial, dpi=150, format=Path(png).suffix.lstrip(".") or "png")
    plt.close(figure)


def _draw_points(axis: Axes, shown: Sequence[Condition]) -> None:
    axis.set_xlabel(X.title)
    axis.set_ylabel(Y.title)
    axis.grid(alpha=0.25)
    if not shown:
        return
    x_range, y_range = ranges(shown)
    axis.set_xlim(*x_range)
    axis.set_ylim(*y_range)
    for one in sorted(shown, key=lambda one: one.control_of is None):
        x, y = one.measured[X.key], one.measured[Y.key]
        is_control = one.control_of is not None
        axis.errorbar(
            x.value,
            y.value,
            xerr=None if is_control else _lengths(x),
            yerr=None if is_control else _lengths(y),
            marker=_MARKERS[one.style.symbol],
            markersize=4 if is_control else 7,
            markeredgecolor="white",
            markeredgewidth=0.5,
            color=one.style.colour,
            elinewidth=1,
            capsize=2,
        )
    handles = []
    for dose, ones in by_factor(shown).items():
        colour, marker = ones[0].style.colour, _MARKERS[ones[0].style.symbol]
        xs, ys = ([one.measured[metric.key].value for one in ones] for metric in (X, Y))
        axis.plot(xs, ys, ":", color=colour, linewidth=1, zorder=1)
        handles.append(
            Line2D([], [], color=colour, linestyle=":", marker=marker, label=_short(dose).replace("$", r"\$"))
        )
    if any(one.control_of is not None for one in shown):
        handles.append(Line2D([], [], color=CONTROLS.colour, linestyle="", marker="o", markersize=4, label=RANDOM))
    if handles:
        axis.legend(handles=handles, fontsize=8, loc="best")
    _name_points(axis, shown)


def _name_points(axis: Axes, shown: Sequence[Condition]) -> None:
    figure = axis.figure
    figure.canvas.draw()  # where the layout puts the axes
    box = axis.get_window_extent()
    to_points = 72 / figure.dpi

    def places(ones: Sequence[Condition]) -> list[tuple[float, float]]:
        at = axis.transData.transform([(one.measured[X.key].value, one.measured[Y.key].value) for one in ones])
        return [((x - box.x0) * to_points, (y - box.y0) * to_points) for x, y in at]

    named = [one for one in shown if one.control_of is None]
    others = [one for one in shown if one.control_of is not None]
    texts = [_short(one.short_label) for one in named]
    area = box.width * to_points, box.height * to_points
    chosen = label_places(
        places(named), [_LETTER * len(text) for text in texts], _LINE, area, places(others) if others else []
    )
    for one, text, (across, up) in zip(named, texts, chosen, strict=True):
        axis.annotate(
            text,
            (one.measured[X.key].value, one.measured[Y.key].value),
            textcoords="offset points",
            xytext=(6 * across, (3 if across else 6) * up),
            ha=_SIDES[0][across],
            va=_SIDES[1][up],
            fontsize=8,
            color=one.style.colour,
            parse_math=False,
        )


def _draw_accuracy(axis: Axes, rows: Sequence[Condition | Controls]) -> None:
    for at, row in enumerate(rows):
        if isinstance(row, Condition):
            found = row.measured[ACCURACY.key]
            axis.barh(at, 100 * found.value, 0.7, color=row.style.colour, alpha=0.85)
            axis.errorbar(
                100 * found.value, at, xerr=_lengths(found.times(100)), color="#555555", elinewidth=1, capsize=2
            )
        else:
            draws = [100 * draw.measured[ACCURACY.key].value for draw in row.draws if ACCURACY.key in draw.measured]
            axis.barh(at, sum(draws) / len(draws), 0.7, color=CONTROLS.colour, alpha=0.45)
            axis.plot(draws, [at] * len(draws), "o", color=DOTS, markersize=3)
    axis.set_yticks(range(len(rows)), [_short(row.label) for row in rows], fontsize=8, parse_math=False)
    axis.set_ylim(len(rows) - 0.4, -0.6)
    axis.set_xlim(left=0)
    axis.set_xlabel(f"{ACCURACY.title} (%)")
    axis.grid(alpha=0.25, axis="x")
    axis.set_axisbelow(True)


def _lengths(estimate: Estimate) -> list[list[float]] | None:
    """Error bars to both sides, as matplotlib takes them; None: no interval."""
    ends = estimate.interval
    return None if ends is None else [[max(estimate.value - ends[0], 0.0)], [max(ends[1] - estimate.value, 0.0)]]


def _title(result: Mapping[str, Any]) -> str:
    base, target = (_short(name(result["pair"][f"{side}_name"])) for side in ("base", "target"))
    return f"{base} to {target}, {result['problems']['n']:,} problems".replace("$", r"\$")


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST_NAME else text[: _LONGEST_NAME - 1] + "…"
