"""How sparse the adapters are: firing frequencies, L0 and dead features, layer by layer."""

from __future__ import annotations

from math import log10
from typing import Any

from tc_adapters_lens.evaluation.estimate import Estimate
from tc_adapters_lens.report.numbers import count, number, percent, plain, with_span
from tc_adapters_lens.report.plots import Panel, Section, curve, figure, run_keys, scale, whole_axis
from tc_adapters_lens.report.runs import Run, Runs
from tc_adapters_lens.report.styles import run_styles

_TICKS = 7


def sparsity(runs: Runs) -> Section:
    """Firing frequencies with a run to choose, L0 and dead features per layer."""
    densest_first = tuple(reversed(runs.ordered))
    text = (
        "How often each feature is active, as a share of the counted tokens. Left column: features that never fired on "
        "them. L0 is the mean number of active features per token."
    )
    ends = _ends(runs)
    panels = [_frequency(run, i, ends) for i, run in enumerate(densest_first)]
    panels += [_l0(runs), _dead(runs)]
    choices = [run.label for run in densest_first]
    return Section(
        "sparsity",
        "Sparsity",
        text,
        panels,
        run_keys((run.label for run in runs.ordered), run_styles(runs.groups)),
        choices,
    )


def _frequency(run: Run, i: int, ends: tuple[float, float]) -> Panel:
    """The heatmap of one run, from its never column on and between the two frequencies."""
    found = run.evaluation["frequency"]
    edges = found["edges"]
    kept = [b for b in range(len(edges) - 1) if b == 0 or ends[0] <= edges[b] <= ends[1]]
    n_bins = len(kept)
    shares = [f"{plain(100 * edges[b])}%" for b in kept]
    bins = ["never", *(f"{shares[at]} to {plain(100 * edges[kept[at] + 1])}%" for at in range(1, n_bins))]
    counts = [[Estimate.of(layer[b]) for b in kept] for layer in found["per_layer"]]
    most = max((one.value for layer in counts for one in layer), default=1)
    tops = [10**power for power in range(7) if 10**power <= max(most, 1)]
    decades = [at for at in range(1, n_bins) if abs(log10(edges[kept[at]]) % 1 - 0.5) > 0.5 - 1e-6]
    shown = [0, *(decades if len(decades) > 1 else range(1, n_bins, max(1, -(-(n_bins - 1) // _TICKS))))]
    heatmap: dict[str, Any] = {
        "type": "heatmap",
        "x": list(range(n_bins)),
        "y": list(range(len(counts))),
        "z": [[log10(one.value) if one.value > 0 else None for one in layer] for layer in counts],
        "zmin": 0,
        "zmax": max(log10(max(most, 1)), 1e-9),
        "colorscale": [[0, "#eaf1fa"], [0.5, "#7ba3d6"], [1, "#162e5c"]],
        "xgap": 1,
        "ygap": 1,
        "hoverinfo": "text",
        "text": [
            [f"layer {at}, {bins[b]} of tokens<br>{with_span(one, count)} features" for b, one in enumerate(layer)]
            for at, layer in enumerate(counts)
        ],
        "colorbar": {
            "title": {"text": "features", "side": "right"},
            "tickvals": [log10(top) for top in tops],
            "ticktext": [f"{top:,}" for top in tops],
            "thickness": 10,
            "outlinewidth": 0,
        },
    }
    x = {
        "title": "active on this share of tokens",
        "tickvals": [0 if b == 0 else b - 0.5 for b in shown],
        "ticktext": ["never" if b == 0 else shares[b] for b in shown],
        "showgrid": False,
    }
    y = {**whole_axis("layer", len(counts)), "autorange": "reversed", "showgrid": False}
    height = min(max(240, 110 + 18 * len(counts)), 640)
    never = sum(layer[0].value for layer in counts)
    description = f"Features per layer and firing frequency of {run.label}; {count(never)} never fired."
    return Panel(
        f"frequency-{i}",
        f"Firing frequency, {run.label}",
        description,
        figure([heatmap], x, y, height=height),
        run.label,
        True,
    )


def _ends(runs: Runs) -> tuple[float, float]:
    """Lower borders of the lowest and the highest bin that holds features of any run, so that all have one axis."""
    occupied = [
        edge
        for run in runs.ordered
        for layer in run.evaluation["frequency"]["per_layer"]
        for edge, one in zip(run.evaluation["frequency"]["edges"][1:], layer[1:], strict=False)
        if one["value"] > 0
    ]
    return min(occupied, default=0.0), max(occupied, default=0.0)


def _l0(runs: Runs) -> Panel:
    styles, data, values = run_styles(runs.groups), [], []
    for run in runs.ordered:
        estimates = [Estimate.of(one) for one in run.evaluation["l0_per_layer"]]
        values += [estimate.value for estimate in estimates]
        layers = range(len(estimates))
        data.append(curve(run.label, styles[run.label], layers, estimates, lambda layer: f"layer {layer}, L0"))
    told = "; ".join(f"{run.label}: mean {number(run.evaluation['l0']['value'])}" for run in runs.ordered)
    x = whole_axis("layer", runs.first["n_layers"])
    return Panel("l0-layers", "L0 per layer", f"{told}.", figure(data, x, {"title": "L0", **scale(values)}))


def _dead(runs: Runs) -> Panel:
    styles, data, told = run_styles(runs.groups), [], []
    for run in runs.ordered:
        found = run.evaluation
        share = 1 / found["n_features"]
        estimates = [Estimate.of(one).times(share) for one in found["dead_per_layer"]]
        layers = range(len(estimates))
        data.append(
            curve(run.label, styles[run.label], layers, estimates, lambda layer: f"layer {layer}, dead", percent)
        )
        told.append(f"{run.label}: {count(found['dead']['value'])} of {found['n_features'] * found['n_layers']:,}")
    y = {"title": "share of the layer's features", "tickformat": ".0%", "rangemode": "tozero"}
    x = whole_axis("layer", runs.first["n_layers"])
    return Panel("dead-layers", "Dead features per layer", f"{'; '.join(told)}.", figure(data, x, y))
