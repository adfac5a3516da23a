"""The conditions of interventions.json, and how they stand in tables and plots: random controls are folded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import floor, log10
from typing import Any

from tc_adapters_lens.evaluation.estimate import Estimate
from tc_adapters_lens.report.numbers import number, plain
from tc_adapters_lens.report.shown_text import name
from tc_adapters_lens.report.styles import REFERENCES, Style

_GROUPS = ("#8172b3", "#2a8c82", "#d97a1c", "#cc79a7", "#8a490a", "#5b8c2a")
_SYMBOLS = {"remove": "triangle-down", "keep": "triangle-up", "scale": "circle", "negate": "square"}
_REFERENCES = {
    **{kind: Style(REFERENCES[kind].colour, "solid", "diamond") for kind in ("base", "hybrid", "target")},
    "replacement": Style("#4c72b0", "solid", "diamond"),
    "biases": Style("#937860", "solid", "diamond"),
}
CONTROLS = Style("#9aa0a8")
_MOST_DECIMALS = 6
_MINUS, _TIMES = "\N{MINUS SIGN}", "\N{MULTIPLICATION SIGN}"


@dataclass(frozen=True)
class Metric:
    """A figure of a condition.

    title: heading of its column and name of its axis.
    share: whether it is a share, written in per cent, and its differences in percentage points.
    """

    key: str
    title: str
    share: bool = False

    def write(self, value: float, decimals: int | None = None) -> str:
        """The figure in words: 79.2%, 5.50; three digits where the decimals are not given."""
        if self.share:
            return f"{value:.1%}"
        return number(value) if decimals is None else f"{value:,.{decimals}f}"

    def change(self, value: float, decimals: int | None = None) -> str:
        """A difference in words, with its sign: "+1.20"; of a share in percentage points."""
        size = f"{abs(100 * value):.1f}" if self.share else Metric.write(self, abs(value), decimals)
        sign = "" if float(size.replace(",", "")) == 0 else "+" if value > 0 else _MINUS
        return sign + size


METRICS = (
    Metric("accuracy", "accuracy", share=True),
    Metric("response_length", "response length, tokens"),
    Metric("hesitation_per_1000", "hesitation words per 1,000 tokens"),
    Metric("degeneration_rate", "degenerate responses", share=True),
    Metric("kl", "KL to the target, nats"),
)
METRIC = {metric.key: metric for metric in METRICS}


@dataclass(frozen=True)
class Condition:
    """One model that was sampled from.

    id: unique on the page.
    kind: reference, remove, keep, scale or negate.
    group: the features' group; control_of: for random features, the group that they are a control of.
    finished, parsed: responses that ended by themselves, and those with an answer.
    measured: by metric; absent where it was not measured. per_word: hesitation words per 1,000 tokens by word.
    difference: by metric, against the condition named `against`, paired over problems.
    """

    id: str
    name: str
    label: str
    kind: str
    group: str | None
    control_of: str | None
    draw: int | None
    factor: float | None
    n_features: int | None
    finished: int
    parsed: int
    measured: Mapping[str, Estimate]
    per_word: Mapping[str, Estimate]
    difference: Mapping[str, Estimate]
    against: str | None
    style: Style

    @property
    def is_dose(self) -> bool:
        """Whether a group was switched by a factor."""
        return self.kind in ("scale", "negate") and self.factor is not None

    @property
    def short_label(self) -> str:
        """What stands beside its point: of a dose the factor alone, where colour and symbol say the rest."""
        if not self.is_dose or self.factor is None:
            return self.label
        return f"{_TIMES if self.kind == 'scale' else _MINUS}{plain(self.factor)}"

    @property
    def dose(self) -> str:
        """The group and how a factor switches it, for legends."""
        how = "scaled" if self.kind == "scale" else "negated on the target"
        return f"{name(self.group or '')} {how}"


@dataclass(frozen=True)
class Controls:
    """Draws of random features that are controls of the same group, switched in the same way.

    of: the condition that they are controls of; None if it is not among the conditions.
    """

    id: str
    of: Condition | None
    draws: tuple[Condition, ...]

    @property
    def label(self) -> str:
        """What tables and plots call them together."""
        n, features = len(self.draws), self.draws[0].n_features
        what = "random features" if features is None else f"{features:,} random features"
        return f"{what}, {n} draw{'' if n == 1 else 's'}"

    @property
    def against(self) -> str | None:
        """Name of the condition that differences are against."""
        return self.draws[0].against

    def spread(self, key: str) -> Estimate | None:
        """Mean over the draws, with the lowest and highest draw as its ends; None: not measured."""
        return _spread([draw.measured.get(key) for draw in self.draws])

    def difference(self, key: str) -> Estimate | None:
        """The same of the differences."""
        return _spread([draw.difference.get(key) for draw in self.draws])

    def n_sure(self, key: str) -> int:
        """Draws whose difference has an interval without 0."""
        return sum(excludes_zero(draw.difference.get(key)) for draw in self.draws)


def decimals(*estimates: Estimate) -> int:
    """Decimals that write the largest of these figures and ends of intervals with three digits."""
    ends = [end for one in estimates for end in (one.value, *(one.interval or ()))]
    largest = max(map(abs, ends))
    return min(max(2 - floor(log10(largest)), 0), _MOST_DECIMALS) if largest > 0 else 0


def excludes_zero(difference: Estimate | None) -> bool:
    """Whether a difference has an interval, and 0 is not in it."""
    ends = None if difference is None else difference.interval
    return ends is not None and not ends[0] <= 0 <= ends[1]


def read_conditions(result: Mapping[str, Any]) -> list[Condition]:
    """The conditions of interventions.json, in its order."""
    groups = list(dict.fromkeys(one["control_of"] or one["group"] for one in result["conditions"]))
    colours = dict(zip(filter(None, groups), _cycled(len(groups)), strict=False))
    return [_condition(at, one, colours) for at, one in enumerate(result["conditions"])]


def in_rows(conditions: Sequence[Condition]) -> list[Condition | Controls]:
    """Conditions in their order, each followed by its controls as one; controls of nothing come last."""
    folded: dict[tuple[Any, ...], list[Condition]] = {}
    for one in conditions:
        if one.control_of is not None:
            folded.setdefault((one.control_of, one.kind, one.factor, one.n_features), []).append(one)
    rows: list[Condition | Controls] = []
    for one in conditions:
        if one.control_of is not None:
            continue
        rows.append(one)
        for key in [key for key in folded if key[:3] == (one.group, one.kind, one.factor)]:
            draws = folded.pop(key)
            rows.append(Controls(f"controls-{draws[0].id}", one, tuple(draws)))
    return rows + [Controls(f"controls-{draws[0].id}", None, tuple(draws)) for draws in folded.values()]


def measured_anywhere(conditions: Sequence[Condition]) -> list[Metric]:
    """The metrics that some condition has."""
    return [metric for metric in METRICS if any(metric.key in one.measured for one in conditions)]


def _condition(at: int, found: Mapping[str, Any], colours: Mapping[str, str]) -> Condition:
    def estimates(of: Mapping[str, Any] | None) -> dict[str, Estimate]:
        kept = {key: (of or {}).get(key) for key in METRIC}
        return {key: Estimate.of(one) for key, one in kept.items() if one is not None}

    return Condition(
        f"c{at}",
        found["name"],
        name(found["label"]),
        found["kind"],
        found["group"],
        found["control_of"],
        found["draw"],
        found["factor"],
        found["n_features"],
        found["n_finished"],
        found["n_parsed"],
        estimates(found["measured"]),
        {word: Estimate.of(one) for word, one in found["measured"]["per_word"].items() if one is not None},
        estimates(found["difference"]),
        found["against"],
        _style(found, colours),
    )


def _style(found: Mapping[str, Any], colours: Mapping[str, str]) -> Style:
    if found["control_of"] is not None:
        return Style(CONTROLS.colour, symbol=_SYMBOLS.get(found["kind"], "circle"))
    if found["group"] is not None:
        return Style(colours[found["group"]], symbol=_SYMBOLS.get(found["kind"], "circle"))
    return _REFERENCES.get(found["name"], Style("#5c6270", symbol="diamond"))


def _cycled(n: int) -> list[str]:
    return [_GROUPS[i % len(_GROUPS)] for i in range(n)]


def _spread(found: Sequence[Estimate | None]) -> Estimate | None:
    values = [one.value for one in found if one is not None]
    return Estimate(sum(values) / len(values), min(values), max(values)) if values else None
