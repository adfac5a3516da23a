"""How well features are told by their descriptions: scores overall, layer by layer, and as a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tc_adapters_lens.evaluation.estimate import Estimate
from tc_adapters_lens.models.names import SCORE_KINDS
from tc_adapters_lens.report.numbers import number, with_span
from tc_adapters_lens.report.plots import Key, Panel, Section, Table, bars, figure, label, whole_axis
from tc_adapters_lens.report.results_shown import Shown, apart, by_whom, comparable, shown, wrapped
from tc_adapters_lens.report.results_table import judging_rows, under
from tc_adapters_lens.report.runs import Runs
from tc_adapters_lens.report.styles import Style, faint

CHANCE = 0.5
WORDS = {
    "top": "held-out highest examples",
    "sampled": "uniform examples",
    "shuffled": "another feature's description",
}
_STYLES = {
    "top": Style("#2f5c9e"),
    "sampled": Style("#d97a1c", symbol="square"),
    "shuffled": Style("#7a7f8a", symbol="diamond"),
}
_FEW = 20  # scores: fewer are drawn as points beside a box
_AXIS: dict[str, Any] = {"title": "score", "range": [-0.03, 1.03], "tickvals": [0, 0.25, 0.5, 0.75, 1]}


def detection(runs: Runs) -> Section | None:
    """Scores of features by kind of texts; None: not judged."""
    ones = shown(runs, "detect")
    if not ones:
        return None
    sets = comparable(ones)
    text = (
        "A judge described a feature from some of its examples; asked again with the description alone, it said of "
        "other texts whether the feature is active in them. A feature's score is the share of texts it got right, one "
        f"half of them active: {CHANCE} is chance, dashed. Shapes are the features' scores (fewer than {_FEW}: boxes "
        "and points), marks their means with 95% intervals over features." + apart(sets)
    )
    panels = [
        Panel(f"detection-{i}", "Scores, all layers" + by_whom(sets, of), f"{'; '.join(map(_told, of))}.", _overall(of))
        for i, of in enumerate(sets)
    ]
    for i, one in enumerate(ones):
        caption = f"Scores in each layer, {one.label}"
        panels.append(Panel(f"detection-layers-{i}", caption, f"{_told(one)}.", _layers(one), one.label))
    kinds = [kind for kind in SCORE_KINDS if any(kind in _kinds(one) for one in ones)]
    keys = [Key(WORDS[kind], _STYLES[kind], marker=True) for kind in kinds]
    choices = [one.label for one in ones]
    title = "What the features mean: detection"
    return Section(
        "detection", title, text, panels, keys, choices, columns=1, choose="Layer by layer", table=_table(ones, kinds)
    )


def means(values: Mapping[str, Any]) -> dict[str, Estimate]:
    """A part's mean scores by kind, of those that have one."""
    found = {kind: values["scores"][kind]["mean"] for kind in SCORE_KINDS if kind in values["scores"]}
    return {kind: Estimate.of(mean) for kind, mean in found.items() if mean is not None}


def _kinds(one: Shown) -> list[str]:
    return [kind for kind in SCORE_KINDS if kind in one.result.values["overall"]["scores"]]


def _scores(one: Shown, kind: str, layer: int | None = None) -> list[float]:
    found = (
        feature["scores"].get(kind)
        for feature in one.result.values["features"]
        if layer is None or feature["layer"] == layer
    )
    return [score for score in found if score is not None]


def _told(one: Shown) -> str:
    said = (f"{WORDS[kind]} {number(mean.value)}" for kind, mean in means(one.result.values["overall"]).items())
    return f"{one.label}: {', '.join(said)}"


def _overall(of: Sequence[Shown]) -> dict[str, Any]:
    """Lying down, a row per kind: names of results have room, and screens may be narrow."""
    data, ticks, at = [], [], 0.0
    for one in of:
        kinds = _kinds(one)
        ticks.append(at + (len(kinds) - 1) / 2)
        found = means(one.result.values["overall"])
        for kind in kinds:
            data.append(_shapes(kind, [(at, _scores(one, kind))], across=False, width=0.9))
            if kind in found:
                data.append(_marks(kind, [(at, label(one.label), found[kind])], across=False))
            at += 1
        at += 0.5
    y = {
        "tickvals": ticks,
        "ticktext": [wrapped(one.label) for one in of],
        "range": [at - 0.85, -0.65],
        "showgrid": False,
    }
    return figure(data, _AXIS, y, height=int(70 + 38 * at), shapes=[_chance(across=False)])


def _layers(one: Shown) -> dict[str, Any]:
    layers, kinds = one.result.values["layers"], _kinds(one)
    step = 0.8 / max(len(kinds), 1)
    data = []
    for i, kind in enumerate(kinds):
        offset = (i - (len(kinds) - 1) / 2) * step
        places = [(part["layer"] + offset, _scores(one, kind, part["layer"])) for part in layers]
        data.append(_shapes(kind, places, across=True, width=0.95 * step))
        marks = [
            (part["layer"] + offset, f"layer {part['layer']}", means(part)[kind])
            for part in layers
            if kind in means(part)
        ]
        data.append(_marks(kind, marks, across=True))
    ends = [part["layer"] for part in layers] or [0]
    x = {**whole_axis("layer", len(layers)), "showgrid": False, "range": [min(ends) - 0.6, max(ends) + 0.6]}
    return figure(data, x, _AXIS, shapes=[_chance(across=True)])


def _shapes(kind: str, places: Sequence[tuple[float, list[float]]], *, across: bool, width: float) -> dict[str, Any]:
    """Distributions at places along an axis, x if `across`; their means are drawn apart from them."""
    style, (along, of) = _STYLES[kind], ("x", "y") if across else ("y", "x")
    few = max((len(scores) for _, scores in places), default=0) < _FEW
    shape: dict[str, Any] = {"type": "violin", "spanmode": "hard", "bandwidth": 0.05, "points": False}
    if few:
        shape = {"type": "box", "boxpoints": "all", "jitter": 0.6, "pointpos": 0, "whiskerwidth": 0}
    return {
        **shape,
        "name": label(WORDS[kind]),
        "legendgroup": WORDS[kind],
        "orientation": "v" if across else "h",
        along: [place for place, scores in places for _ in scores],
        of: [score for _, scores in places for score in scores],
        "width": width,
        "line": {"color": style.colour, "width": 1},
        "fillcolor": faint(style.colour, 0.22),
        "marker": {"color": style.colour, "size": 3, "opacity": 0.5},
        "hoverinfo": "skip",
    }


def _marks(kind: str, found: Sequence[tuple[float, str, Estimate]], *, across: bool) -> dict[str, Any]:
    style, (along, of) = _STYLES[kind], ("x", "y") if across else ("y", "x")
    estimates = [estimate for *_, estimate in found]
    return {
        "type": "scatter",
        "mode": "markers",
        "name": label(WORDS[kind]),
        "legendgroup": WORDS[kind],
        along: [place for place, *_ in found],
        of: [estimate.value for estimate in estimates],
        f"error_{of}": bars(estimates, style, 2),
        "marker": {"color": style.colour, "symbol": style.symbol, "size": 7, "line": {"color": "#fff", "width": 1}},
        "hoverinfo": "text",
        "hovertext": [f"{where}, {label(WORDS[kind])}: {with_span(estimate)}" for _, where, estimate in found],
    }


def _chance(*, across: bool) -> dict[str, Any]:
    along, of = ("x", "y") if across else ("y", "x")
    ends = {f"{along}0": 0, f"{along}1": 1, f"{of}0": CHANCE, f"{of}1": CHANCE, f"{along}ref": "paper"}
    return {"type": "line", **ends, "line": {"color": "#555", "width": 1, "dash": "dash"}}


def _table(ones: Sequence[Shown], kinds: Sequence[str]) -> Table:
    rows: list[tuple[str, list[tuple[str, str]]]] = []
    values = [one.result.values for one in ones]
    for kind in kinds:
        cells = []
        for part in (found["overall"] for found in values):
            mean = means(part).get(kind)
            n = part["scores"].get(kind, {}).get("n")
            cells.append(("", "") if mean is None else (number(mean.value), under(mean, n)))
        rows.append((WORDS[kind], cells))
    rows.append(("features scored", [(f"{found['overall']['n_scored']:,}", "") for found in values]))
    rows += judging_rows(ones, "without a score")
    left_out = ["; ".join(f"{why}: {n:,}" for why, n in found["left_out"].items() if n) for found in values]
    if any(left_out):
        rows.append(("left out", [(text, "") for text in left_out]))
    asked = [
        (
            f"{found['n_texts']} active and {found['n_texts']} {found['negatives']} texts",
            f"described from {found['n_exemplars']} examples at most",
        )
        for found in values
    ]
    rows.append(("asked about", asked))
    return Table("Detection scores and how they were judged", [one.label for one in ones], rows)
