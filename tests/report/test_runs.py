"""Reading runs: labels, and everything that keeps a run out of a report, each one line."""

from __future__ import annotations

import json

import pytest

from tc_adapters_lens.errors import AdapterLensError, ConfigError, RunError
from tc_adapters_lens.report.page import write_report
from tc_adapters_lens.report.runs import read_runs
from tests.report.builder import estimate, evaluation, write_run


def test_runs_of_one_name_are_told_apart(tmp_path):
    runs = [write_run(tmp_path / place) for place in ("one/sparse", "two/sparse", "two/dense")]
    assert list(read_runs(runs).by_label) == ["one/sparse", "two/sparse", "dense"]


def changed(**values):
    return {**evaluation(), **values}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (json.dumps(evaluation())[:-100], "is not whole JSON"),
        ("[]", "must have the format"),
        (json.dumps(changed(format="other")), "Got 'other'"),
        (json.dumps(changed(format_version=2)), "must have format version 1. Got 2."),
        (json.dumps(changed(nmse={"value": 1.0})), "nmse.low is missing"),
        (json.dumps(changed(l0=estimate(float("nan")))), "l0.value must be a finite number. Got nan"),
        (json.dumps(changed(nmse_per_layer=[])), "nmse_per_layer must have 4 entries. Got 0"),
        (json.dumps(changed(models={"hybrid": {}})), "is missing"),
        (json.dumps(changed(positions="some")), "positions must be one of response, all"),
        (json.dumps(changed(frequency={"edges": [0, 0], "per_layer": []})), "frequency.edges must increase"),
        (json.dumps({key: value for key, value in evaluation().items() if key != "pair"}), "pair is missing"),
    ],
)
def test_a_broken_evaluation_is_one_line(text, says, tmp_path):
    run = write_run(tmp_path / "run")
    (run / "evaluation.json").write_text(text)
    with pytest.raises(RunError) as raised:
        write_report([run], tmp_path / "report.html")
    assert says in str(raised.value)
    assert "\n" not in str(raised.value)
    assert str(run / "evaluation.json") in str(raised.value)
    assert not (tmp_path / "report.html").exists()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"tokens_fingerprint": "sha256:00"}, "measured on the same tokens"),
        ({"positions": "all"}, "measured on the same positions. Got response"),
        ({"n_tokens": 5}, "measured on the same number of tokens. Got 24312"),
        (
            {"pair": evaluation()["pair"] | {"base_fingerprint": "sha256:00"}},
            "must have one pair. Got the base toy:base",
        ),
    ],
)
def test_runs_that_cannot_be_compared(change, says, tmp_path):
    runs = [write_run(tmp_path / "one"), write_run(tmp_path / "two", changed(**change))]
    with pytest.raises(RunError, match=says) as raised:
        write_report(runs, tmp_path / "report.html")
    assert str(runs[0]) in str(raised.value)
    assert str(runs[1]) in str(raised.value)


def test_directories_that_are_no_evaluated_runs(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(RunError, match=r"is not a run: it has no config\.yaml and no evaluation\.json"):
        read_runs([tmp_path / "empty"])
    with pytest.raises(RunError, match="must be a directory"):
        read_runs([tmp_path / "nowhere"])
    run = write_run(tmp_path / "run")
    (run / "evaluation.json").unlink()
    with pytest.raises(RunError, match=r"not evaluated yet\. Run `tc-adapters evaluate --run .*run`"):
        read_runs([run])
    (run / "config.yaml").write_text("trained: mlps\n")
    with pytest.raises(RunError, match="which trained mlps densely"):
        read_runs([run])


def test_no_run_one_run_twice_and_another_kind_of_file(tmp_path):
    with pytest.raises(ConfigError, match="At least one run"):
        write_report([], tmp_path / "report.html")
    run = write_run(tmp_path / "run")
    with pytest.raises(ConfigError, match="named once"):
        write_report([run, tmp_path / "." / "run"], tmp_path / "report.html")
    with pytest.raises(ConfigError, match=r"must end in \.html"):
        write_report([run], tmp_path / "report.json")
    (tmp_path / "taken.html").mkdir()
    with pytest.raises(AdapterLensError, match="failed"):
        write_report([run], tmp_path / "taken.html")


def test_broken_metrics_name_the_line(tmp_path):
    run = write_run(tmp_path / "run")
    (run / "metrics.jsonl").write_text('{"step": 1}\n{"st\n{"step": 3}\n')
    with pytest.raises(RunError, match="Line 2 is not"):
        read_runs([run])
