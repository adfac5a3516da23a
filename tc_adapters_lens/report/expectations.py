"""What the method leads one to expect of an evaluation, and whether it was found.

Pure functions on evaluations, by label. Every expectation is a set of comparisons "this figure is larger than that
one" of point values, and did not hold if a single one does not. It failed if in one of those even the intervals are
apart, or there are none; where they all overlap, the tokens cannot tell, and it is undecided.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, get_args

from tc_adapters_lens.evaluation.estimate import Estimate
from tc_adapters_lens.report.groups import Ablation, Group, ablations, sparsity_groups
from tc_adapters_lens.report.numbers import mean, number, percent

_FIGURES = (("kl", "KL"), ("top1_error", "top-1 error"))
_CURVES = (("first", "first {k} layers"), ("last", "last {k} layers"), ("single", "layer {k} alone"))

_FEWEST_SHOWN, _MOST_SHOWN = 2, 8

Outcome = Literal["held", "undecided", "failed", "not measured"]
OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)
Intervals = Literal["intervals apart", "intervals overlap", "no intervals"]


@dataclass(frozen=True)
class Comparison:
    """One figure that should be larger than another.

    what: the figure, and of which run.
    greater, lesser: which model each side is.
    or_equal: whether equal figures hold too.
    """

    what: str
    greater: str
    greater_value: Estimate
    lesser: str
    lesser_value: Estimate
    or_equal: bool = False

    @property
    def held(self) -> bool:
        """Whether the point values are in the expected order."""
        greater, lesser = self.greater_value.value, self.lesser_value.value
        return greater > lesser or (self.or_equal and greater == lesser)

    @property
    def intervals(self) -> Intervals:
        """Whether the two intervals have a point in common."""
        one, other = self.greater_value.interval, self.lesser_value.interval
        if one is None or other is None:
            return "no intervals"
        return "intervals overlap" if max(one[0], other[0]) <= min(one[1], other[1]) else "intervals apart"

    @property
    def margin(self) -> float:
        """Greater over lesser, for telling close calls from clear ones."""
        lesser = self.lesser_value.value
        return self.greater_value.value / lesser if lesser > 0 else float("inf")

    def __str__(self) -> str:
        write = percent if "error" in self.what else number
        sign = (">" if self.greater_value.value > self.lesser_value.value else "=") if self.held else "is not above"
        return (
            f"{self.what}: {self.greater} {write(self.greater_value.value)} {sign} "
            f"{self.lesser} {write(self.lesser_value.value)}"
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "what": self.what,
            "greater": {"of": self.greater, **self.greater_value.to_dict()},
            "lesser": {"of": self.lesser, **self.lesser_value.to_dict()},
            "held": self.held,
            "intervals": self.intervals,
        }


@dataclass(frozen=True)
class Expectation:
    """A statement and the comparisons it stands on; without any, it was not measured."""

    name: str
    statement: str
    comparisons: tuple[Comparison, ...]

    @property
    def failed(self) -> tuple[Comparison, ...]:
        """The comparisons of which the point values do not hold."""
        return tuple(comparison for comparison in self.comparisons if not comparison.held)

    @property
    def outcome(self) -> Outcome:
        """Held only if every comparison holds."""
        if not self.comparisons:
            return "not measured"
        if not self.failed:
            return "held"
        return "undecided" if all(one.intervals == "intervals overlap" for one in self.failed) else "failed"

    @property
    def intervals(self) -> Intervals | None:
        """Of the comparisons that decide the outcome: "apart" only if all of them are; None: not measured."""
        found = {comparison.intervals for comparison in self.failed or self.comparisons}
        order: tuple[Intervals, ...] = ("no intervals", "intervals overlap", "intervals apart")
        return next((kind for kind in order if kind in found), None)

    def evidence(self) -> list[str]:
        """The numbers in words: failures first, then the closest calls; the rest is counted."""
        ordered = sorted(self.comparisons, key=lambda comparison: (comparison.held, comparison.margin))
        shown = max(_FEWEST_SHOWN, min(len(self.failed), _MOST_SHOWN))
        rest = ordered[shown:]
        lines = [str(comparison) for comparison in ordered[:shown]]
        if rest:
            n_held = sum(comparison.held for comparison in rest)
            lines.append(f"and {len(rest)} more, {n_held} of them in order")
        return lines

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "name": self.name,
            "statement": self.statement,
            "outcome": self.outcome,
            "intervals": self.intervals,
            "comparisons": [comparison.to_dict() for comparison in self.comparisons],
        }


def expectations(evaluations: Mapping[str, Mapping[str, Any]]) -> tuple[Expectation, ...]:
    """All expectations, in the order in which a reader meets the figures.

    Args:
        evaluations: label -> evaluation, all of one pair on the same tokens.
    """
    groups = sparsity_groups(evaluations)
    bridged = [label for group in groups if group.bridged for label in group.labels]
    densest = sorted(bridged, key=lambda label: evaluations[label]["l0"]["value"])[-1:]
    found = ablations(evaluations)
    partial = [
        Expectation(
            f"partial_{curve}",
            f"Replacing {what} gives less KL than replacing all layers",
            tuple(_partial(evaluations, bridged, curve, words)),
        )
        for (curve, words), what in zip(_CURVES, ("only the first k", "only the last k", "a single layer"), strict=True)
    ]
    return (
        Expectation("base_above_hybrid", "The base is further from the target than the hybrid", _of_base(evaluations)),
        Expectation(
            "hybrid_above_adapters",
            "Every set of adapters is closer to the target than the hybrid",
            tuple(_against(evaluations, list(evaluations), "hybrid", "hybrid")),
        ),
        Expectation(
            "sparsity_tradeoff",
            "More active features per token, less error",
            tuple(_tradeoff(evaluations, groups)),
        ),
        Expectation(
            "skyline_is_best",
            "The densest adapters do not beat the skyline",
            tuple(_against(evaluations, densest, "skyline", "skyline", or_equal=True, below=True)),
        ),
        *partial,
        Expectation(
            "nmse_without_bridging",
            "Without bridging, NMSE stays within a factor of 2",
            tuple(_nmse_stays(found)),
        ),
        Expectation(
            "partial_without_bridging",
            "Without bridging, partial replacement has more KL (mean over k)",
            tuple(_partial_rises(found)),
        ),
        Expectation(
            "shuffled_is_no_help",
            "Adapters moved to other layers help no more than none",
            tuple(_shuffled(evaluations)),
        ),
    )


def _of_base(evaluations: Mapping[str, Mapping[str, Any]]) -> tuple[Comparison, ...]:
    one = next((e for e in evaluations.values() if "base" in e["models"]), None)
    if one is None:
        return ()
    return tuple(_compare(one, what, key, "base", "base", "hybrid", "hybrid") for key, what in _FIGURES)


def _compare(
    evaluation: Mapping[str, Any],
    what: str,
    key: str,
    greater: str,
    greater_label: str,
    lesser: str,
    lesser_label: str,
    or_equal: bool = False,
) -> Comparison:
    values = [Estimate.of(evaluation["models"][model][key]) for model in (greater, lesser)]
    return Comparison(what, greater_label, values[0], lesser_label, values[1], or_equal)


def _against(
    evaluations: Mapping[str, Mapping[str, Any]],
    labels: Sequence[str],
    model: str,
    name: str,
    *,
    or_equal: bool = False,
    below: bool = False,
) -> Iterator[Comparison]:
    """Each run's replacement model with a model of the same evaluation, or of the first that has one."""
    for label in labels:
        own = evaluations[label]
        other = next((e for e in (own, *evaluations.values()) if model in e["models"]), None)
        if other is None:
            continue
        for key, what in _FIGURES:
            replacement = label, Estimate.of(own["models"]["replacement"][key])
            reference = name, Estimate.of(other["models"][model][key])
            greater, lesser = (replacement, reference) if below else (reference, replacement)
            yield Comparison(what, *greater, *lesser, or_equal)


def _tradeoff(evaluations: Mapping[str, Mapping[str, Any]], groups: Sequence[Group]) -> Iterator[Comparison]:
    """Neighbours along L0 within a family; seeds of one recipe are averaged, their intervals too."""
    for family in dict.fromkeys(group.family for group in groups if group.bridged):
        members = [group for group in groups if group.family == family and group.bridged]
        for sparse, dense in pairwise(members):
            for key, what in _FIGURES:
                values = [
                    mean([Estimate.of(evaluations[label]["models"]["replacement"][key]) for label in group.labels])
                    for group in (sparse, dense)
                ]
                yield Comparison(
                    what,
                    f"{sparse.name} (L0 {number(sparse.l0)})",
                    values[0],
                    f"{dense.name} (L0 {number(dense.l0)})",
                    values[1],
                )


def _partial(
    evaluations: Mapping[str, Mapping[str, Any]], labels: Sequence[str], curve: str, words: str
) -> Iterator[Comparison]:
    for label in labels:
        partial = evaluations[label]["partial_kl"]
        if partial is None:
            continue
        full = Estimate.of(partial["first"][-1])
        for k in inner(curve, len(partial["single"])):
            yield Comparison(f"KL, {label}", "all layers", full, words.format(k=k), Estimate.of(partial[curve][k]))


def inner(curve: str, n_layers: int) -> range:
    """The k that say something: not none and not all of the layers; of single layers every one."""
    if curve == "single":
        return range(n_layers if n_layers > 1 else 0)
    return range(1, n_layers)


def _nmse_stays(found: Sequence[Ablation]) -> Iterator[Comparison]:
    for ablation in found:
        bridged, without = (Estimate.of(side["nmse"]) for side in (ablation.bridged, ablation.without))
        name = f"NMSE, {ablation.label}"
        yield Comparison(name, "twice with bridging", bridged.times(2), "without", without, True)
        yield Comparison(name, "twice without", without.times(2), "with bridging", bridged, True)


def _partial_rises(found: Sequence[Ablation]) -> Iterator[Comparison]:
    for ablation in found:
        curves = ablation.bridged["partial_kl"], ablation.without["partial_kl"]
        if curves[0] is None or curves[1] is None:
            continue
        for curve, words in _CURVES:
            ks = inner(curve, len(curves[0]["single"]))
            if not ks:
                continue
            bridged, without = (mean([Estimate.of(side[curve][k]) for k in ks]) for side in curves)
            what = f"KL, {words.format(k='k')}, {ablation.label}"
            yield Comparison(what, "without bridging", without, "with", bridged)


def _shuffled(evaluations: Mapping[str, Mapping[str, Any]]) -> Iterator[Comparison]:
    for label, evaluation in evaluations.items():
        if "shuffled" in evaluation["models"]:
            for key, what in _FIGURES:
                yield _compare(
                    evaluation, f"{what}, {label}", key, "shuffled", "shuffled", "hybrid", "hybrid", or_equal=True
                )
