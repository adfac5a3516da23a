"""The tables of the page: models side by side, recipes and provenance of the runs."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tc_adapters_lens.evaluation.estimate import Estimate
from tc_adapters_lens.report.numbers import count, number, percent, short_span
from tc_adapters_lens.report.runs import Run, Runs
from tc_adapters_lens.report.styles import REFERENCES, Style, run_styles

REFERENCE_LABELS = {
    "base": "base",
    "reverse": "base with the target's MLPs",
    "hybrid": "hybrid",
    "norm_refit": "norm refit",
    "shuffled": "shuffled adapters",
    "no_bridging": "without bridging",
    "skyline": "skyline",
}
# Figures of one model on the same tokens that differ by no more than this are the same up to rounding.
_SAME = 1e-3


@dataclass(frozen=True)
class Column:
    """A column of the table of models. span_over: columns with the same heading above stand together."""

    key: str
    title: str
    write: Callable[[float], str]
    span_over: str = ""


COLUMNS = (
    Column("l0", "L0", number),
    Column("top1_error", "all", percent, "top-1 error"),
    Column("top1_error_sure", "sure", percent, "top-1 error"),
    Column("top1_error_unsure", "unsure", percent, "top-1 error"),
    Column("kl", "all", number, "KL, nats"),
    Column("kl_sure", "sure", number, "KL, nats"),
    Column("kl_unsure", "unsure", number, "KL, nats"),
    Column("cross_entropy", "cross-entropy", number),
    Column("loss_recovered", "loss recovered", number),
    Column("nmse", "NMSE", number),
    Column("dead", "dead", count),
)


@dataclass(frozen=True)
class Row:
    """A model of the table.

    model: name in the evaluation, "replacement" for adapters, or "target".
    run: label of the run it belongs to; None where it is the same for all.
    figures: by column key; absent where it has no meaning or was not measured.
    note: by column key, what stands under a figure in place of an interval.
    """

    label: str
    model: str
    run: str | None
    style: Style
    figures: Mapping[str, Estimate]
    note: Mapping[str, str]

    def cells(self) -> Iterator[tuple[Column, Estimate | None, str, str]]:
        """Column, figure, figure in words, interval or note in words."""
        for column in COLUMNS:
            estimate = self.figures.get(column.key)
            if estimate is None:
                yield column, None, "", ""
            else:
                under = self.note.get(column.key) or short_span(estimate, column.write)
                yield column, estimate, column.write(estimate.value), under

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        figures = {key: estimate.to_dict() for key, estimate in self.figures.items()}
        return {"label": self.label, "model": self.model, "run": self.run, **figures}


def model_rows(runs: Runs) -> tuple[Row, ...]:
    """Base, reverse, hybrid, norm refit, shuffled, without bridging, adapters from sparse to dense, skyline, target."""
    styles = run_styles(runs.groups)
    measured = {name for run in runs.ordered for name in run.evaluation["models"]} - {"replacement"}
    names = [name for name in REFERENCE_LABELS if name in measured and name != "skyline"]
    names += sorted(measured - set(REFERENCE_LABELS))
    rows = [row for name in names for row in reference_rows(runs, name)]
    rows += [_adapters(run, styles[run.label]) for run in runs.ordered]
    rows += reference_rows(runs, "skyline")
    zero = Estimate(0.0)
    figures = {"top1_error": zero, "kl": zero, "loss_recovered": Estimate(1.0)}
    if runs.first["target"]["cross_entropy"] is not None:
        figures["cross_entropy"] = Estimate.of(runs.first["target"]["cross_entropy"])
    return (*rows, Row("target", "target", None, REFERENCES["target"], {**figures, "nmse": zero}, {}))


def reference_rows(runs: Runs, name: str) -> list[Row]:
    """A model's row, or one per run where the runs have it measured differently."""
    label, style = REFERENCE_LABELS.get(name, name.replace("_", " ")), REFERENCES.get(name, Style("#555555", "dot"))
    having = [run for run in runs.ordered if name in run.evaluation["models"]]
    distinct: list[Run] = []
    for run in having:
        if name in ("shuffled", "no_bridging") or not any(_same(run, other, name) for other in distinct):
            distinct.append(run)
    several = len(distinct) > 1 or (len(having) < len(runs.ordered) and name in ("shuffled", "no_bridging"))
    return [
        Row(
            f"{label}, {run.label}" if several else label,
            name,
            run.label if several else None,
            style,
            {**_figures(run, name), **_internal(run, name)},
            {},
        )
        for run in distinct
    ]


def differences(runs: Runs) -> list[tuple[str, list[str]]]:
    """Keys of the recipes whose values differ, with one value per run from sparse to dense; "" where it has none."""
    flat = [dict(_flatten(run.config)) for run in runs.ordered]
    keys = list(dict.fromkeys(key for values in flat for key in values))
    return [
        (key, [_word(values[key]) if key in values else "" for values in flat])
        for key in keys
        if any(values.get(key) != flat[0].get(key) or (key in values) != (key in flat[0]) for values in flat)
    ]


def provenance(runs: Runs) -> list[tuple[str, list[str]]]:
    """Models, data and versions behind the figures; one value where all runs agree, else one per run."""
    rows: dict[str, list[str]] = {}
    for run in runs.ordered:
        found, pair = run.evaluation, run.evaluation["pair"]
        facts = {}
        for role in ("base", "target"):
            revision = pair.get(f"{role}_revision")
            facts[role] = pair[f"{role}_name"] + (f" at {revision}" if revision else "")
            facts[f"{role}'s fingerprint"] = pair[f"{role}_fingerprint"]
        facts["tokens"] = found["tokens"]
        facts["tokens' fingerprint"] = found["tokens_fingerprint"]
        if found.get("sampling"):
            facts["sampling"] = ", ".join(f"{key} {_word(value)}" for key, value in _flatten(found["sampling"]))
        facts["adapters"] = found["adapters"]
        facts["training seed"] = _word(run.config["seed"]) if "seed" in run.config else "not known"
        facts["evaluation seed"] = _word(found["seed"])
        facts["bootstrap replicates"] = _word(found["replicates"])
        facts |= {f"version of {name}": _word(version) for name, version in found["versions"].items()}
        for name, value in facts.items():
            rows.setdefault(name, []).append(value)
    return [(name, values[:1] if len(set(values)) == 1 else values) for name, values in rows.items()]


def _adapters(run: Run, style: Style) -> Row:
    found = run.evaluation
    figures = _figures(run, "replacement") | {key: Estimate.of(found[key]) for key in ("l0", "nmse", "dead")}
    return Row(
        run.label, "replacement", run.label, style, figures, {"dead": f"of {found['n_features'] * found['n_layers']:,}"}
    )


def _internal(run: Run, name: str) -> dict[str, Estimate]:
    own = run.evaluation["no_bridging"] if name == "no_bridging" else None
    return {} if own is None else {key: Estimate.of(own[key]) for key in ("l0", "nmse")}


def _figures(run: Run, name: str) -> dict[str, Estimate]:
    found = run.evaluation["models"][name]
    optional = [key for key in ("cross_entropy", "loss_recovered") if found[key] is not None]
    figures = {key: Estimate.of(found[key]) for key in ("top1_error", "kl", *optional)}
    for where in ("sure", "unsure"):
        if found[where] is not None:
            figures |= {f"{key}_{where}": Estimate.of(found[where][key]) for key in ("top1_error", "kl")}
    return figures


def _same(one: Run, other: Run, name: str) -> bool:
    pairs = [(run.estimate(name, "kl").value, run.estimate(name, "top1_error").value) for run in (one, other)]
    return all(abs(a - b) <= _SAME * max(abs(a), abs(b)) for a, b in zip(*pairs, strict=True))


def _flatten(values: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{before}{key}.")
        else:
            yield f"{before}{key}", value


def _word(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
