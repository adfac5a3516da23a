"""Training curves, from metrics.jsonl."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tc_adapters_lens.report.numbers import number
from tc_adapters_lens.report.plots import Panel, Section, figure, label, run_keys, scale
from tc_adapters_lens.report.runs import Run, Runs
from tc_adapters_lens.report.styles import run_styles

TOKENS = "details/n_training_samples"
_SERIES = (
    ("kl", "KL", "nats", ("losses/kl",)),
    ("nmse", "NMSE", "NMSE", ("losses/nmse",)),
    ("l0", "L0", "active features", ("metrics/l0",)),
    ("bridging", "Bridging, both directions", "nats", ("losses/bridging_to_target", "losses/bridging_to_replacement")),
)
_MOST_POINTS = 300


def training(runs: Runs) -> Section:
    """KL, NMSE, L0 and bridging against tokens."""
    having = [run for run in runs.ordered if run.metrics]
    title = "Training"
    if not having:
        return Section("training", title, "Not shown: no run has a metrics.jsonl.")
    text = (
        "What the training logged, on its own batches and with weights that still moved. Bridging is the sum of both "
        "directions at a cutoff drawn anew each step."
    )
    if any(len(run.metrics) > _MOST_POINTS for run in having):
        text += " Long runs are shown as means of consecutive rows."
    if any("losses/local_error" in row for run in having for row in run.metrics):
        text += " While layers train one by one, there is L0 alone."
    panels = [panel for series in _SERIES if (panel := _panel(having, runs, *series)) is not None]
    keys = run_keys((run.label for run in having), run_styles(runs.groups))
    return Section("training", title, text, panels, keys)


def _panel(
    having: Sequence[Run], runs: Runs, id_: str, caption: str, unit: str, names: tuple[str, ...]
) -> Panel | None:
    styles, data, values, told = run_styles(runs.groups), [], [], []
    for run in having:
        points = _thin([(row[TOKENS], sum(row[name] for name in names)) for row in run.metrics if _has(row, names)])
        if not any(y for _, y in points):  # nothing logged, or a loss of weight 0
            continue
        tokens, ys = zip(*points, strict=True)
        values += ys
        told.append(f"{run.label}: from {number(ys[0])} to {number(ys[-1])}")
        style = styles[run.label]
        data.append(
            {
                "type": "scatter",
                "mode": "lines",
                "name": label(run.label),
                "legendgroup": run.label,
                "x": list(tokens),
                "y": list(ys),
                "line": {"color": style.colour, "dash": style.dash, "width": 1.4},
                "hoverinfo": "text",
                "hovertext": [
                    f"{label(run.label)}<br>{at:,.0f} tokens: {number(y)}" for at, y in zip(tokens, ys, strict=True)
                ],
            }
        )
    if not data:
        return None
    x = {"title": "training tokens", "rangemode": "tozero", "tickformat": "~s"}
    made = figure(data, x, {"title": unit, **scale(values)}, height=280)
    return Panel(f"training-{id_}", caption, f"{caption} during training. {'; '.join(told)}.", made)


def _has(row: dict[str, Any], names: tuple[str, ...]) -> bool:
    return all(name in row for name in names)


def _thin(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Means of consecutive points, few enough to draw; a block's tokens are its last point's."""
    block = -(-len(points) // _MOST_POINTS)
    blocks = [points[i : i + block] for i in range(0, len(points), block)] if block else []
    return [(part[-1][0], sum(y for _, y in part) / len(part)) for part in blocks]
