"""`write_report`: runs in, one HTML page and its figures as JSON out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from plotly.offline import get_plotlyjs

from tc_adapters_lens import __version__
from tc_adapters_lens.errors import ConfigError
from tc_adapters_lens.evaluation.estimate import Estimate
from tc_adapters_lens.models.atomic import atomic_file, write_json
from tc_adapters_lens.report.expectations import OUTCOMES, Expectation, expectations
from tc_adapters_lens.report.meaning_expectations import meaning_expectations
from tc_adapters_lens.report.numbers import number, percent
from tc_adapters_lens.report.plots import Section
from tc_adapters_lens.report.plots_account import account
from tc_adapters_lens.report.plots_classes import classes, classes_by_layer
from tc_adapters_lens.report.plots_detection import detection
from tc_adapters_lens.report.plots_layers import bridging, nmse, partial_replacement
from tc_adapters_lens.report.plots_overlap import overlap
from tc_adapters_lens.report.plots_pareto import pareto
from tc_adapters_lens.report.plots_sparsity import sparsity
from tc_adapters_lens.report.plots_training import training
from tc_adapters_lens.report.runs import Runs, read_runs
from tc_adapters_lens.report.styles import run_styles
from tc_adapters_lens.report.tables import COLUMNS, Row, differences, model_rows, provenance
from tc_adapters_lens.templates import templates

FORMAT, FORMAT_VERSION = "tc_adapters_lens.report", 1
SECTIONS = (pareto, nmse, partial_replacement, bridging, sparsity, training, account)
MEANING = (classes, classes_by_layer, detection, overlap)
"""Sections that are left out where no run has their results."""
_TEMPLATES = Path(__file__).parent / "templates"


def write_report(runs: Sequence[str | Path], out: str | Path, title: str | None = None) -> dict[str, Any]:
    """Write the page, and its figures beside it as JSON.

    Args:
        runs: directories of evaluated runs of one pair.
        out: the page, NAME.html; the JSON is NAME.json.
        title: heading; by default it names the pair.
    Returns:
        What the JSON holds: models, expectations, every run's evaluation, and what its features were found to mean.
    Raises:
        ConfigError: no run, one named twice, or `out` is not an HTML file's name.
        RunError: a run that cannot be used, or not beside the others.
        JudgeError: a judge's result is not what its file's name says.
        AdapterLensError: a file cannot be written.
    """
    out = Path(out).expanduser()
    if out.suffix.lower() not in (".html", ".htm"):
        raise ConfigError(f"--out must end in .html. Got {out}. The figures are written beside it, as .json.")
    read = read_runs(runs)
    pair = read.first["pair"]
    title = title or f"How faithful are the adapters from {pair['base_name']} to {pair['target_name']}?"
    rows, expected = model_rows(read), (*expectations(read.evaluations), *meaning_expectations(read))
    result = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "title": title,
        **{key: read.first[key] for key in ("pair", "tokens", "tokens_fingerprint", "positions", "n_tokens")},
        "models": [row.to_dict() for row in rows],
        "expectations": [expectation.to_dict() for expectation in expected],
        "runs": [
            {
                "label": run.label,
                "path": str(run.path),
                "evaluation": run.evaluation,
                "results": {result.name: result.to_dict() for result in run.results},
            }
            for run in read.ordered
        ],
    }
    page = _render(read, title, rows, expected)
    with atomic_file(out) as file:
        file.write_text(page, encoding="utf-8")
    with atomic_file(out.with_suffix(".json")) as file:
        write_json(file, result)
    return result


def summary(runs: Runs) -> list[str]:
    """What was measured on what, and the result: a sentence or two each."""
    first, ordered = runs.first, runs.ordered
    where = "response tokens" if first["positions"] == "response" else "tokens"
    entropy, sure = (first["target"][key]["value"] for key in ("entropy", "sure_share"))
    measured = (
        f"Measured on {first['n_tokens']:,} {where} of {first['n_sequences']:,} sequences. There the target's entropy "
        f"is {number(entropy)} nats, and at {percent(sure)} of the positions it is sure: its most likely token has "
        "more than 80%."
    )
    hybrid_kl, hybrid_error = (ordered[0].estimate("hybrid", key).value for key in ("kl", "top1_error"))
    l0s = _ends(number, [Estimate.of(run.evaluation["l0"]) for run in ordered])
    kls = _ends(number, [run.estimate("replacement", "kl") for run in ordered])
    errors = _ends(percent, [run.estimate("replacement", "top1_error") for run in ordered])
    result = (
        f"Without adapters, the hybrid is {number(hybrid_kl)} nats from the target and disagrees on the most likely "
        f"token at {percent(hybrid_error)} of the positions. With {l0s} active features per token and layer, adapters "
        f"bring this to {kls} nats and {errors}."
    )
    return [measured, result]


def _ends(write: Callable[[float], str], estimates: Sequence[Estimate]) -> str:
    """The first run's figure to the last one's."""
    return " to ".join(dict.fromkeys(write(estimate.value) for estimate in (estimates[0], estimates[-1])))


def _render(runs: Runs, title: str, rows: Sequence[Row], expected: Sequence[Expectation]) -> str:
    page = templates(_TEMPLATES).get_template("report.html")
    made = (make(runs) for make in (*SECTIONS, *MEANING))
    sections = [section for section in made if section is not None]
    outcomes = [expectation.outcome for expectation in expected]
    return page.render(
        title=title,
        version=__version__,
        pair=runs.first["pair"],
        summary=summary(runs),
        replicates=_replicates(runs),
        columns=COLUMNS,
        heads=_heads(),
        rows=rows,
        sections=sections,
        expectations=expected,
        outcomes={outcome: outcomes.count(outcome) for outcome in OUTCOMES},
        runs=runs.ordered,
        styles=run_styles(runs.groups),
        differences=differences(runs),
        provenance=provenance(runs),
        figures=_figures(sections),
        plotlyjs=get_plotlyjs(),
    )


def _heads() -> list[tuple[str, int]]:
    """Headings above the columns: text and how many columns it spans."""
    heads: list[tuple[str, int]] = []
    for column in COLUMNS:
        if column.span_over and heads and heads[-1][0] == column.span_over:
            heads[-1] = (column.span_over, heads[-1][1] + 1)
        else:
            heads.append((column.span_over, 1))
    return heads


def _figures(sections: Sequence[Section]) -> Mapping[str, Any]:
    return {panel.id: panel.figure for section in sections for panel in section.panels}


def _replicates(runs: Runs) -> str:
    found = sorted({run.evaluation["replicates"] for run in runs.ordered})
    if found == [0]:
        return "Intervals were left out of these evaluations."
    some = " (0: without intervals)" if 0 in found else ""
    return f"Ranges are 95% intervals over sequences, by {' or '.join(map(str, found))} bootstrap replicates{some}."


def default_out(runs: Sequence[str | Path]) -> Path:
    """report.html in the first run's directory.

    Raises:
        ConfigError: no run.
    """
    if not runs:
        read_runs(runs)
    return Path(runs[0]).expanduser() / "report.html"
