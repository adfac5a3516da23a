"""`write_interventions_page`: what switching features on and off did to responses, as one HTML page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plotly.offline import get_plotlyjs

from tc_adapters_lens import __version__
from tc_adapters_lens.evaluation.estimate import Estimate
from tc_adapters_lens.models.atomic import atomic_file
from tc_adapters_lens.report.conditions import (
    Condition,
    Controls,
    Metric,
    decimals,
    excludes_zero,
    in_rows,
    measured_anywhere,
    read_conditions,
)
from tc_adapters_lens.report.conditions_table import conditions_table
from tc_adapters_lens.report.interventions_picture import draw_interventions
from tc_adapters_lens.report.interventions_summary import setting, summary
from tc_adapters_lens.report.numbers import percent
from tc_adapters_lens.report.plots import Section
from tc_adapters_lens.report.plots_doses import doses
from tc_adapters_lens.report.plots_interventions import accuracy, hesitation_and_length
from tc_adapters_lens.report.rule_words import rule_words
from tc_adapters_lens.report.samples import read_samples
from tc_adapters_lens.report.shown_text import name
from tc_adapters_lens.templates import templates

__all__ = ["conditions_table", "draw_interventions", "write_interventions_page"]

_TEMPLATES = Path(__file__).parent / "templates"
_NAMED_GROUPS = 3


@dataclass(frozen=True)
class Cell:
    """A figure of the table: value, then interval or range, then difference and its interval or range, in words."""

    metric: Metric
    value: float
    difference: float | None
    figure: str
    under: str
    change: str
    is_sure: bool


def write_interventions_page(result: Mapping[str, Any], out: Path) -> None:
    """Write the page, whole or not at all. It needs no other file and no network.

    Args:
        result: the contents of interventions.json.
        out: the page.
    Raises:
        AdapterLensError: it cannot be written.
    """
    page = _render(result)
    with atomic_file(out) as file:
        file.write_text(page, encoding="utf-8")


def _render(result: Mapping[str, Any]) -> str:
    conditions = read_conditions(result)
    metrics = measured_anywhere(conditions)
    rows = in_rows(conditions)
    plots = [section for make in (hesitation_and_length, accuracy) if (section := make(conditions)) is not None]
    sections: list[Section] = [*plots, *doses(conditions)]
    return (
        templates(_TEMPLATES)
        .get_template("interventions.html")
        .render(
            title=_title(result),
            version=__version__,
            pair={key: name(result["pair"][key]) for key in ("base_name", "target_name")},
            setting=setting(result),
            summary=summary(conditions),
            rows=[(row, isinstance(row, Controls), list(_cells(row, metrics))) for row in rows],
            row_draws={
                row.id: [(draw, list(_cells(draw, metrics))) for draw in row.draws]
                for row in rows
                if isinstance(row, Controls)
            },
            labels={condition.name: condition.label for condition in conditions},
            n_problems=result["problems"]["n"],
            n_with_answers=result["problems"]["n_with_answers"],
            metrics=metrics,
            note=_note(result, metrics, conditions),
            words=_words(conditions),
            sections=sections,
            groups=[_group(group) for group in result["groups"]],
            samples=read_samples(result, conditions),
            provenance=list(_provenance(result)),
            figures={panel.id: panel.figure for section in sections for panel in section.panels},
            plotlyjs=get_plotlyjs(),
        )
    )


def _title(result: Mapping[str, Any]) -> str:
    names = [name(group["name"]) for group in result["groups"]]
    if not names:
        return f"How {name(result['pair']['target_name'])} and models beside it respond"
    more = f" and {len(names) - _NAMED_GROUPS} more" if len(names) > _NAMED_GROUPS else ""
    return f"Switching features on and off: {', '.join(names[:_NAMED_GROUPS])}{more}"


def _cells(row: Condition | Controls, metrics: Sequence[Metric]) -> Iterator[Cell | None]:
    for metric in metrics:
        if isinstance(row, Controls):
            found, difference, is_sure = row.spread(metric.key), row.difference(metric.key), False
            range_of = row.draws if len(row.draws) > 1 else ()
        else:
            found, difference = row.measured.get(metric.key), row.difference.get(metric.key)
            is_sure, range_of = excludes_zero(difference), (row,)
        if found is None:
            yield None
            continue
        change = ""
        if difference is not None:
            digits = decimals(found, Estimate(difference.value))
            change = metric.change(difference.value, digits)
            if range_of and difference.interval:
                change += " ({} to {})".format(*(metric.change(end, digits) for end in difference.interval))
        value = metric.write(found.value, decimals(found))
        under = _ends(metric, found) if range_of else ""
        yield Cell(metric, found.value, difference and difference.value, value, under, change, is_sure)


def _ends(metric: Metric, found: Estimate) -> str:
    return "" if found.interval is None else " to ".join(metric.write(end, decimals(found)) for end in found.interval)


def _note(result: Mapping[str, Any], metrics: Sequence[Metric], conditions: Sequence[Condition]) -> str:
    replicates, degeneration = result["replicates"], result["degeneration"]
    words = ", ".join(map(name, result["hesitation_words"]))
    shortest, longest = degeneration["sizes"]
    said = [f"Hesitation words: {words}."]
    said.append(
        f"Degenerate: some {degeneration['window']} tokens of which one phrase of {shortest} to {longest} tokens, over "
        f"and over, is more than {degeneration['threshold']:.0%}. A response is cut where they begin before anything "
        f"else is counted; one that does not end by itself counts with the {result['sampling']['max_new_tokens']:,} "
        "tokens that it may have."
    )
    said.append(
        f"Ranges are 95% intervals over problems, by {replicates:,} bootstrap replicates."
        if replicates
        else "Intervals were left out, so differences that chance makes cannot be told from others."
    )
    if any(condition.difference for condition in conditions):
        shares = ", for shares in percentage points" if any(metric.share for metric in metrics) else ""
        bold = "; it is bold where its interval leaves out 0" if replicates else ""
        said.append(f"Δ is the difference from the condition named, paired over problems{shares}{bold}.")
    return " ".join(said)


def _words(conditions: Sequence[Condition]) -> Mapping[str, Any] | None:
    """Hesitation words one by one, for all but the draws of random features; None: not counted."""
    shown = [condition for condition in conditions if condition.control_of is None and condition.per_word]
    words = list(dict.fromkeys(word for condition in shown for word in condition.per_word))
    if not words:
        return None
    metric = Metric("per_word", "")
    rows = []
    for condition in shown:
        found = [condition.per_word.get(word) for word in words]
        rows.append(
            (condition, [one and (metric.write(one.value, decimals(one)), _ends(metric, one)) for one in found])
        )
    return {"heads": list(map(name, words)), "rows": rows}


def _group(found: Mapping[str, Any]) -> dict[str, Any]:
    frequency, controls = found["frequency"], found["control_frequencies"]
    most = max([1, *found["per_layer"]])
    return {
        "name": name(found["name"]),
        "n_features": found["n_features"],
        "frequency": None if frequency is None else f"{percent(frequency)} of tokens",
        "control_frequencies": ", ".join(percent(one) for one in controls),
        "rule": rule_words(found["rule"]),
        "layers": [(layer, n, round(100 * n / most)) for layer, n in enumerate(found["per_layer"])],
        "features": ", ".join(f"{layer}.{feature}" for layer, feature in found["features"]),
    }


def _provenance(result: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    pair, problems, sampling = result["pair"], result["problems"], result["sampling"]
    for side in ("base", "target"):
        told = (pair[f"{side}_name"], pair.get(f"{side}_revision"), pair.get(f"{side}_fingerprint"))
        yield side, name(" · ".join(filter(None, told)))
    yield "adapters", name(" · ".join(filter(None, (result["adapters"], result["adapters_fingerprint"]))))
    yield "problems", name(" · ".join(filter(None, (problems["source"], problems["fingerprint"]))))
    yield "sampling", ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in sampling.items())
    yield "versions", name(", ".join(f"{package} {version}" for package, version in result["versions"].items()))
