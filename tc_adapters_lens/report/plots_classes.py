"""Classes that a judge sorted features into: shares overall, layer by layer, and as a table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tc_adapters_lens.evaluation.estimate import Estimate
from tc_adapters_lens.report.numbers import percent, with_span
from tc_adapters_lens.report.plots import Key, Panel, Section, Table, bars, figure, label, whole_axis
from tc_adapters_lens.report.results_shown import Shown, apart, by_whom, comparable, palette, pattern, shown, wrapped
from tc_adapters_lens.report.results_table import judging_rows, under
from tc_adapters_lens.report.runs import Runs
from tc_adapters_lens.report.shown_text import name as shown_name
from tc_adapters_lens.report.styles import Style

_BAR, _GAP = 14, 12  # pixels


def classes(runs: Runs) -> Section | None:
    """Shares of classes and of groups of them, overall; None: not judged."""
    ones = shown(runs, "classify")
    if not ones:
        return None
    sets = comparable(ones)
    text = (
        "A judge sorted features into classes, by their examples and promoted tokens. Shares are of the features that "
        "got a class, with 95% intervals (Wilson); “all” adds up the classes of a group." + apart(sets)
    )
    panels = []
    for i, of in enumerate(sets):
        caption = "Classes, all layers" + by_whom(sets, of)
        told = (
            f"{one.label}: {', '.join(f'{name} {percent(share.value)}' for name, _, share in _shares(one) if share)}"
            for one in of
        )
        panels.append(Panel(f"classes-{i}", caption, f"{'; '.join(told)}.", _overall(of), wide=True))
    keys = [Key(one.label, one.style) for one in ones]
    return Section("classes", "What the features mean: classes", text, panels, keys, columns=1, table=_table(ones))


def classes_by_layer(runs: Runs) -> Section | None:
    """Shares of classes in every layer, a result to choose; None: not judged."""
    ones = shown(runs, "classify")
    if not ones:
        return None
    styles = palette(list(dict.fromkeys(name for one in ones for name in _names(one))))
    panels = [_layers(one, i, styles) for i, one in enumerate(ones)]
    text = (
        "Shares of classes among the features of each layer that got one. A bar under the pointer tells its interval."
    )
    keys = [Key(name, style) for name, style in styles.items()]
    choices = [one.label for one in ones]
    if len(ones) == 1:
        text += f" Here: {choices[0]}."
    return Section(
        "classes-layers", "Classes layer by layer", text, panels, keys, choices, columns=1, choose="Features"
    )


def _names(one: Shown) -> dict[str, str]:
    """Classes as the page shows them -> as the file has them."""
    return {shown_name(found["name"]): found["name"] for found in one.result.values["classes"]}


def _shares(one: Shown) -> list[tuple[str, int, Estimate | None]]:
    """Name as shown, features and share of every class, then of every group."""
    overall = one.result.values["overall"]
    parts = [(name, overall["classes"][own]) for name, own in _names(one).items()]
    parts += [(f"all {shown_name(name)}", part) for name, part in overall["groups"].items()]
    return [(name, part["n"], _estimate(part["share"])) for name, part in parts]


def _overall(of: Sequence[Shown]) -> dict[str, Any]:
    """Bars lying down, a colour per result: names of classes have room, and screens may be narrow."""
    names = _order(of)
    data = []
    for one in of:
        having = [(names.index(name), name, n, share) for name, n, share in _shares(one) if share is not None]
        estimates = [share for *_, share in having]
        data.append(
            {
                "type": "bar",
                "orientation": "h",
                "name": label(one.label),
                "legendgroup": one.label,
                "y": [at for at, *_ in having],
                "x": [estimate.value for estimate in estimates],
                "error_x": bars(estimates, Style("#1d1f23"), 1),
                "marker": {"color": one.style.colour, "pattern": pattern(one.style)},
                "hoverinfo": "text",
                "hovertext": [
                    f"{label(one.label)}<br>{label(name)}: {with_span(share, percent)}<br>{n:,} features"
                    for _, name, n, share in having
                ],
                "textposition": "none",
            }
        )
    y = {
        "tickvals": list(range(len(names))),
        "ticktext": [wrapped(name) for name in names],
        "autorange": "reversed",
        "showgrid": False,
    }
    x = {"title": "share of features", "tickformat": ".0%", "rangemode": "tozero"}
    height = 70 + len(names) * max(_BAR * len(of) + _GAP, 34)
    return figure(data, x, y, height=height, barmode="group", bargap=0.25)


def _order(of: Sequence[Shown]) -> list[str]:
    """Classes of all results, then groups."""
    classes_ = dict.fromkeys(name for one in of for name in _names(one))
    return list(classes_ | dict.fromkeys(name for one in of for name, *_ in _shares(one)))


def _layers(one: Shown, i: int, styles: dict[str, Style]) -> Panel:
    layers = one.result.values["layers"]
    data = []
    for name, own in _names(one).items():
        parts = [layer["classes"][own] for layer in layers]
        shares = [_estimate(part["share"]) for part in parts]
        data.append(
            {
                "type": "bar",
                "name": label(name),
                "legendgroup": name,
                "x": [layer["layer"] for layer in layers],
                "y": [share.value if share else None for share in shares],
                "marker": {"color": styles[name].colour, "pattern": pattern(styles[name])},
                "hoverinfo": "text",
                "hovertext": [
                    f"layer {layer['layer']}, {label(name)}: {with_span(share, percent)}<br>{part['n']:,} features"
                    if share
                    else ""
                    for layer, part, share in zip(layers, parts, shares, strict=True)
                ],
                "textposition": "none",
            }
        )
    y = {"title": "share of features", "tickformat": ".0%", "range": [0, 1]}
    x = whole_axis("layer", len(layers))
    told = f"Shares of classes of {one.label} in {len(layers)} layers."
    caption = f"Classes of each layer, {one.label}"
    return Panel(
        f"classes-layers-{i}", caption, told, figure(data, x, y, barmode="stack", bargap=0.15), one.label, True
    )


def _table(ones: Sequence[Shown]) -> Table:
    rows: list[tuple[str, list[tuple[str, str]]]] = []
    for name in _order(ones):
        cells = []
        for one in ones:
            found = next(((n, share) for other, n, share in _shares(one) if other == name and share), None)
            cells.append((percent(found[1].value), under(found[1], found[0], percent)) if found else ("", ""))
        rows.append((name, cells))
    examples = [f"{one.result.values['n_examples']:,}" for one in ones]
    rows += [*judging_rows(ones, "got no class"), ("examples shown of each", [(text, "") for text in examples])]
    return Table("Classes and how they were judged", [one.label for one in ones], rows)


def _estimate(found: dict[str, Any] | None) -> Estimate | None:
    return None if found is None else Estimate.of(found)
