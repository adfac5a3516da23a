"""Whether features are active at the same positions on the hidden states of target and base."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tc_adapters_lens.evaluation.estimate import Estimate
from tc_adapters_lens.report.meaning import OVERLAP_MODELS
from tc_adapters_lens.report.numbers import number, percent, short_span
from tc_adapters_lens.report.plots import Key, Panel, Section, Table, curve, figure, whole_axis
from tc_adapters_lens.report.results_shown import Shown, shown
from tc_adapters_lens.report.runs import Runs
from tc_adapters_lens.report.styles import Style, faint

CHANCE = "chance"
_STYLES = {"target": Style("#2f5c9e"), "base": Style("#d97a1c", "dash", "square"), CHANCE: Style("#7a7f8a", "dot")}


def overlap(runs: Runs) -> Section | None:
    """Histograms of overlap, and its mean layer by layer, a run to choose; None: not measured."""
    ones = shown(runs, "overlap")
    if not ones:
        return None
    text = (
        "Is a feature active at the same positions when it reads the target's hidden states, or the base's? A feature "
        "that is active at n positions in the replacement model is compared with the n positions where its "
        "pre-activation is highest there; the overlap is the share they have in common. Chance: what unrelated inputs "
        "would have. Only features active often enough count. In layer 0 the "
        "replacement model reads what the target reads: the target's overlap says nothing there."
    )
    panels: list[Panel] = []
    choices = [one.result.run for one in ones]
    for i, one in enumerate(ones):
        panels.append(
            Panel(f"overlap-{i}", f"Overlap of features, {choices[i]}", f"{_told(one)}.", _histograms(one), choices[i])
        )
        panels.append(
            Panel(f"overlap-layers-{i}", "Mean overlap in each layer", f"{_told(one)}.", _layers(one), choices[i])
        )
    models = [model for model in (*OVERLAP_MODELS, CHANCE) if model == CHANCE or any(model in _of(one) for one in ones)]
    keys = [Key(model, _STYLES[model], marker=model != CHANCE) for model in models]
    title = "What the features mean: activation overlap"
    return Section("overlap", title, text, panels, keys, choices, table=_table(ones))


def mean_overlap(part: Mapping[str, Any]) -> Estimate | None:
    """A part's mean; None where no feature counts."""
    return None if part["mean"] is None else Estimate.of(part["mean"])


def _of(one: Shown) -> dict[str, Any]:
    found = one.result.values["models"]
    return {model: found[model] for model in OVERLAP_MODELS if model in found}


def _told(one: Shown) -> str:
    found = {model: mean_overlap(values["overall"]) for model, values in _of(one).items()}
    said = [f"{model} {number(mean.value)}" for model, mean in found.items() if mean]
    chance = one.result.values["chance"]["overall"]
    return f"Mean overlap of {one.label}: {', '.join(said)}" + ("" if chance is None else f", chance {number(chance)}")


def _histograms(one: Shown) -> dict[str, Any]:
    edges, data = one.result.values["edges"], []
    highest = 0.0
    for model, values in _of(one).items():
        part, style = values["overall"], _STYLES[model]
        n = max(part["n_features"], 1)
        shares = [count / n for count in part["histogram"]]
        highest = max(highest, *shares)
        hover = [
            f"{model}: {percent(share)} of features have<br>an overlap of {low:g} to {high:g}"
            for share, low, high in zip(shares, edges, edges[1:], strict=False)
        ]
        data.append(
            {
                "type": "scatter",
                "mode": "lines",
                "name": model,
                "legendgroup": model,
                "x": [edges[0], *edges],
                "y": [0, *shares, shares[-1]],
                "line": {"color": style.colour, "dash": style.dash, "width": 2, "shape": "hv"},
                "fill": "tozeroy",
                "fillcolor": faint(style.colour, 0.15),
                "hoverinfo": "text",
                "hovertext": ["", *hover, ""],
            }
        )
    chance = one.result.values["chance"]["overall"]
    if chance is not None:
        style = _STYLES[CHANCE]
        data.append(
            {
                "type": "scatter",
                "mode": "lines",
                "name": CHANCE,
                "legendgroup": CHANCE,
                "x": [chance, chance],
                "y": [0, 1.05 * highest],
                "line": {"color": style.colour, "dash": style.dash, "width": 2},
                "hoverinfo": "text",
                "hovertext": f"chance, mean: {number(chance)}",
            }
        )
    y = {"title": "share of features", "tickformat": ".0%", "rangemode": "tozero"}
    return figure(data, {"title": "overlap", "range": [edges[0] - 0.01, edges[-1] + 0.01]}, y)


def _layers(one: Shown) -> dict[str, Any]:
    data = []
    for model, values in _of(one).items():
        found = [(part["layer"], mean_overlap(part)) for part in values["layers"]]
        there = [(layer, mean) for layer, mean in found if mean is not None]
        layers, estimates = [layer for layer, _ in there], [mean for _, mean in there]
        data.append(curve(model, _STYLES[model], layers, estimates, lambda layer: f"layer {layer}"))
    chance = [
        (layer, Estimate(value))
        for layer, value in enumerate(one.result.values["chance"]["layers"])
        if value is not None
    ]
    layers, estimates = [layer for layer, _ in chance], [value for _, value in chance]
    data.append(curve(CHANCE, _STYLES[CHANCE], layers, estimates, lambda layer: f"layer {layer}", mode="lines"))
    x = whole_axis("layer", one.result.values["n_layers"])
    return figure(data, x, {"title": "mean overlap", "range": [0, 1.03]})


def _table(ones: Sequence[Shown]) -> Table:
    rows: list[tuple[str, list[tuple[str, str]]]] = []
    for model in OVERLAP_MODELS:
        parts = [_of(one)[model]["overall"] if model in _of(one) else None for one in ones]
        if not any(parts):
            continue
        found = [mean_overlap(part) if part else None for part in parts]
        rows.append((f"{model}, mean", [(number(one.value), short_span(one)) if one else ("", "") for one in found]))
        medians = [part["median"] if part else None for part in parts]
        rows.append((f"{model}, median", [("", "") if one is None else (number(one), "") for one in medians]))
    values = [one.result.values for one in ones]
    chances = [found["chance"]["overall"] for found in values]
    rows.append(("chance, mean", [("", "") if chance is None else (number(chance), "") for chance in chances]))
    counted = []
    for one in ones:
        n = max((found["overall"]["n_features"] for found in _of(one).values()), default=0)
        counted.append((f"{n:,}", f"active at {one.result.values['min_active']:,} positions or more"))
    rows.append(("features counted", counted))
    text = [
        (f"{found['n_positions']:,}", f"{found['positions']}, {found['n_sequences']:,} sequences") for found in values
    ]
    rows.append(("positions", text))
    rows.append(("tokens", [(found["tokens"], found["tokens_fingerprint"][:19]) for found in values]))
    return Table("Activation overlap and how it was measured", [one.result.run for one in ones], rows)
