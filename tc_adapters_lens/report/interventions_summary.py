"""What interventions did, in sentences made of the numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tc_adapters_lens.evaluation.estimate import Estimate
from tc_adapters_lens.report.conditions import METRIC, Condition, Controls, Metric, decimals, excludes_zero, in_rows
from tc_adapters_lens.report.numbers import plain
from tc_adapters_lens.report.shown_text import name

_SAID = {
    "hesitation_per_1000": "{} hesitation words per 1,000 tokens",
    "response_length": "{} tokens per response",
    "accuracy": "{} right answers",
    "degeneration_rate": "{} degenerate responses",
}
_CONTROLLED = {"hesitation_per_1000": "hesitation words", "response_length": "length", "accuracy": "accuracy"}
_CONTROLS_LEAD = {"remove": "Without {} in their place", "keep": "With {} alone"}
_MOST_REFERENCES = 4


def summary(conditions: Sequence[Condition]) -> list[str]:
    """A few sentences on each group; without any group, one on each of the first conditions."""
    by_name = {condition.name: condition for condition in conditions}
    rows = in_rows(conditions)
    groups = dict.fromkeys(row.group for row in rows if isinstance(row, Condition) and row.group is not None)
    if not groups:
        return [_sentence(row, None) for row in rows[:_MOST_REFERENCES] if isinstance(row, Condition)]
    return [sentence for group in groups for sentence in _of_group(group, rows, by_name)]


def setting(result: Mapping[str, Any]) -> str:
    """What was sampled."""
    problems, sampling = result["problems"], result["sampling"]
    answers = problems["n_with_answers"]
    known = "" if answers == problems["n"] else f" ({answers:,} with a known answer)" if answers else ""
    top_p = "" if sampling["top_p"] == 1 else f", top-p {plain(sampling['top_p'])}"
    return (
        f"One response to each of {problems['n']:,} problems of {name(problems['source'])}{known} from every model, "
        f"at most {sampling['max_new_tokens']:,} tokens at temperature {plain(sampling['temperature'])}{top_p}, "
        f"seed {sampling['seed']}."
    )


def _of_group(group: str, rows: Sequence[Condition | Controls], by_name: Mapping[str, Condition]) -> list[str]:
    """What removing did, what random features did in its place, the same of keeping, and the largest negation."""
    own = [row for row in rows if isinstance(row, Condition) and row.group == group]
    controls = [row for row in rows if isinstance(row, Controls) and row.of in own]
    said: list[str] = []
    for kind in ("remove", "keep", "negate", "scale"):
        of_kind = [row for row in own if row.kind == kind]
        if not of_kind or (kind == "scale" and said):
            continue
        row = of_kind[0] if kind in ("remove", "keep") else max(of_kind, key=lambda one: one.factor or 0)
        said.append(_sentence(row, by_name.get(row.against or "")))
        if kind in _CONTROLS_LEAD:
            said += filter(None, [_of_controls(one, kind) for one in controls if one.of is row])
    return said


def _sentence(row: Condition, against: Condition | None) -> str:
    facts = [_fact(METRIC[key], row, against) for key in _SAID if _is_told(key, row)]
    known = "" if against is None else f", compared with the {against.label}"
    return f"{_lead(row)}{known}: {_joined(facts)}."


def _is_told(key: str, row: Condition) -> bool:
    return key in row.measured and (key != "degeneration_rate" or excludes_zero(row.difference.get(key)))


def _lead(row: Condition) -> str:
    group = name(row.group or "")
    features = f"the {row.n_features:,} features of {group}" if row.n_features else f"the features of {group}"
    factor = plain(row.factor) if row.factor is not None else "1"
    return {
        "remove": f"Without {features}",
        "keep": f"With {features} alone",
        "scale": f"With {features} at {factor} times their strength",
        "negate": f"The target with {features} negated at factor {factor}",
    }.get(row.kind, row.label[:1].upper() + row.label[1:])


def _fact(metric: Metric, row: Condition, against: Condition | None) -> str:
    found, difference = row.measured[metric.key], row.difference.get(metric.key)
    said = _SAID[metric.key].format(metric.write(found.value, decimals(found)))
    if against is None or difference is None or metric.key not in against.measured:
        return said
    was = against.measured[metric.key]
    said += f" instead of {metric.write(was.value, decimals(was))}"
    if difference.interval is None or excludes_zero(difference):
        return said
    digits = decimals(found, Estimate(difference.value))
    low, high = (metric.change(end, digits) for end in difference.interval)
    return f"{said} (no difference that the sample shows: {low} to {high}{' points' if metric.share else ''})"


def _of_controls(controls: Controls, kind: str) -> str:
    """What random features did in place of the group's; "" where nothing was measured."""
    n = len(controls.draws)
    spreads = {key: found for key in _CONTROLLED if (found := controls.spread(key)) is not None}
    if not spreads:
        return ""
    features = controls.draws[0].n_features
    random = "random features" if features is None else f"{features:,} random features"
    facts = [_SAID[key].format(METRIC[key].write(one.value, decimals(one))) for key, one in spreads.items()]
    over = "" if n == 1 else f", in the mean of {n} draws"
    told = f"{_CONTROLS_LEAD[kind].format(random)}{over}: {_joined(facts)}"
    differences = [draw.difference[key] for draw in controls.draws for key in spreads if key in draw.difference]
    if not differences or not all(one.interval for one in differences):
        return f"{told}."
    shown = [f"in {_CONTROLLED[key]} in {k} of {n}" for key in spreads if (k := controls.n_sure(key))]
    if shown:
        return f"{told}; the sample shows a difference {_joined(shown)}."
    return f"{told}; no difference that the sample shows{' in any draw' if n > 1 else ''}."


def _joined(facts: Sequence[str]) -> str:
    return facts[0] if len(facts) == 1 else f"{', '.join(facts[:-1])} and {facts[-1]}"
