"""The account: in which parts of the model the difference between base and target lives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tc_adapters_lens.evaluation.estimate import Estimate
from tc_adapters_lens.report.numbers import number, with_span
from tc_adapters_lens.report.plots import Panel, Section, bars, figure, label
from tc_adapters_lens.report.runs import Run, Runs
from tc_adapters_lens.report.styles import REFERENCES, Style

_FALLS, _RISES, _LEFT = "#6b8fb5", "#d9844a", "#d8d8d8"


@dataclass(frozen=True)
class Step:
    """A bar of the waterfall, from `before` to `after` (nats); a total stands on 0 and is a KL, not a change."""

    name: str
    before: float
    after: float
    estimate: Estimate
    colour: str
    total: bool = False

    @property
    def sign(self) -> str:
        """Of the change of KL."""
        return "-" if self.after <= self.before else "+"


def chain(run: Run, swaps: Sequence[Mapping[str, Any]]) -> list[Step]:
    """From the base's KL on: parts of the target swapped in one after another."""
    base = run.estimate("base", "kl") if "base" in run.evaluation["models"] else _start(run.evaluation["account"])
    found = [Step("base", 0.0, base.value, base, REFERENCES["base"].colour, True)]
    before = base.value
    for swap in swaps:
        after, recovered = swap["kl"]["value"], Estimate.of(swap["recovered"])
        found.append(Step(f"+ {swap['added']}", before, after, recovered, _FALLS if after <= before else _RISES))
        before = after
    return found


def steps(run: Run) -> list[Step]:
    """From the base's KL down to 0: every part of the target in turn, MLPs last, as adapters recover and leave them."""
    account = run.evaluation["account"]
    found = chain(run, account["mlps_last"][:-1])
    hybrid = run.estimate("hybrid", "kl")
    recovered, left = (Estimate.of(account["adapters"][key]) for key in ("recovered", "left"))
    rises = recovered.value < 0
    found.append(Step("hybrid", 0.0, hybrid.value, hybrid, REFERENCES["hybrid"].colour, True))
    found.append(Step("adapters", hybrid.value, left.value, recovered, _RISES if rises else "#4c72b0"))
    found.append(Step("left", left.value, 0.0, left, _LEFT, True))
    return found


def account(runs: Runs) -> Section:
    """Waterfall with a run to choose, and every part alone and left out."""
    having = [run for run in reversed(runs.ordered) if run.evaluation["account"] is not None]
    title = "Where the difference lives"
    if not having:
        return Section("account", title, "Not measured: these evaluations were made without --account.")
    shared = having[0].evaluation["account"]
    text = (
        "Parts of the target are put into the base one after another, the MLPs last; each bar is the KL that a part "
        "takes away (blue) or adds (orange) in this order. The base with all parts but the MLPs is the hybrid, and its "
        "KL is what adapters can recover. How much a part recovers depends on what is there already: below, the same "
        "in the order of a forward pass, each part alone, and the target without it."
    )
    panels = [
        _waterfall(
            f"account-{i}", f"From the base to the target, with the adapters of {run.label}", steps(run), run.label
        )
        for i, run in enumerate(having)
    ]
    forward = chain(having[0], shared["cumulative"])
    panels.append(_waterfall("account-forward", "The same, in the order of a forward pass", forward))
    alone = {part: Estimate.of(found["kl"]) for part, found in shared["alone"].items()}
    without = {part: Estimate.of(found["kl"]) for part, found in shared["without"].items()}
    recovered = {part: Estimate.of(found["recovered"]) for part, found in shared["alone"].items()}
    base = _start(shared)
    extra = {part: f"KL recovered: {with_span(recovered[part])}" for part in recovered}
    panels.append(
        _bars("account-alone", "Base with one part of the target", shared["parts"], alone, base, "base", extra)
    )
    panels.append(_bars("account-without", "Target with one part of the base", shared["parts"], without, None, "", {}))
    return Section("account", title, text, panels, choices=[run.label for run in having])


def _start(found: Mapping[str, Any]) -> Estimate:
    """KL of the base: what the first step leaves and what it recovered."""
    first = found["mlps_last"][0]
    return Estimate(first["kl"]["value"] + first["recovered"]["value"])


def _waterfall(id_: str, caption: str, found: Sequence[Step], choice: str = "") -> Panel:
    names = [label(step.name) for step in found]
    words = [
        number(step.estimate.value) if step.total else f"{step.sign}{number(abs(step.estimate.value))}"
        for step in found
    ]
    data: list[dict[str, Any]] = [
        {
            "type": "bar",
            "x": names,
            "base": [min(step.before, step.after) for step in found],
            "y": [abs(step.after - step.before) for step in found],
            "marker": {"color": [step.colour for step in found]},
            "width": 0.62,
            "text": words,
            "textposition": "outside",
            "textangle": 0,
            "constraintext": "none",
            "textfont": {"size": 11},
            "cliponaxis": False,
            "hoverinfo": "text",
            "hovertext": [
                f"{name}: {with_span(step.estimate)} nats" + ("" if step.total else " recovered")
                for name, step in zip(names, found, strict=True)
            ],
        }
    ]
    levels = [step.after for step in found]
    joins = [
        {
            "type": "line",
            "x0": at + 0.31,
            "x1": at + 0.69,
            "y0": levels[at],
            "y1": levels[at],
            "line": {"color": "#888", "width": 1},
        }
        for at in range(len(found) - 1)
    ]
    told = ", ".join(f"{name} {word}" for name, word in zip(names, words, strict=True))
    made = figure(
        data,
        {"type": "category", "showgrid": False},
        {"title": "KL, nats", "rangemode": "tozero"},
        height=360,
        shapes=joins,
    )
    made["layout"]["margin"]["t"] = 24
    return Panel(id_, caption, f"{caption}: {told}.", made, choice, wide=True)


def _bars(
    id_: str,
    caption: str,
    parts: Sequence[str],
    found: Mapping[str, Estimate],
    line: Estimate | None,
    line_name: str,
    extra: Mapping[str, str],
) -> Panel:
    estimates = [found[part] for part in parts]
    data: list[dict[str, Any]] = [
        {
            "type": "bar",
            "orientation": "h",
            "y": [label(part) for part in parts],
            "x": [estimate.value for estimate in estimates],
            "error_x": bars(estimates, Style("#444444")),
            "marker": {"color": "#8da6c4"},
            "width": 0.6,
            "hoverinfo": "text",
            "hovertext": [
                "<br>".join(filter(None, [f"{label(part)}: KL {with_span(found[part])}", extra.get(part)]))
                for part in parts
            ],
        }
    ]
    shapes, annotations = [], []
    if line is not None:
        colour = REFERENCES["base"].colour
        shapes.append(
            {
                "type": "line",
                "x0": line.value,
                "x1": line.value,
                "yref": "paper",
                "y0": 0,
                "y1": 1,
                "line": {"color": colour, "dash": "dash"},
            }
        )
        annotations.append(
            {
                "x": line.value,
                "yref": "paper",
                "y": 1,
                "text": f"{line_name} {number(line.value)}",
                "showarrow": False,
                "xanchor": "right",
                "yanchor": "bottom",
                "font": {"color": "#666", "size": 11},
            }
        )
    told = ", ".join(f"{part} {number(found[part].value)}" for part in parts)
    made = figure(
        data,
        {"title": "KL, nats", "rangemode": "tozero"},
        {"type": "category", "autorange": "reversed", "showgrid": False},
        height=260,
        shapes=shapes,
        annotations=annotations,
    )
    made["layout"]["margin"]["t"] = 22
    return Panel(id_, caption, f"{caption}, KL in nats: {told}.", made)
