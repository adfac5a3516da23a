"""`report`: from runs' directories to a page, a JSON and a line per failed expectation."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tc_adapters_lens.cli.main import main
from tests.report.builder import estimate, evaluation, write_run


def test_page_and_json_in_the_first_run(tmp_path, monkeypatch, capsys):
    found = evaluation()
    found["models"]["base"]["kl"] = estimate(1.5)
    write_run(tmp_path / "runs" / "toy", found)
    monkeypatch.chdir(tmp_path)
    assert main(["report", "runs/toy"]) == 0
    printed = capsys.readouterr().out
    assert "1 run on 24,312 tokens; expectations: 8 held, 0 undecided, 1 failed, 1 not measured" in printed
    assert "failed: The base is further from the target than the hybrid" in printed
    assert "report written to runs/toy/report.html" in printed
    result = json.loads((tmp_path / "runs/toy/report.json").read_text(encoding="utf-8"))
    assert result["format"] == "tc_adapters_lens.report"
    assert result["runs"][0]["evaluation"] == found
    assert (tmp_path / "runs/toy/report.html").read_text(encoding="utf-8").startswith("<!doctype html>")


def test_out_and_json(tmp_path):
    runs = [str(write_run(tmp_path / name)) for name in ("one", "two")]
    out, also = tmp_path / "new" / "page.html", tmp_path / "copy.json"
    assert main(["report", *runs, "--out", str(out), "--json", str(also)]) == 0
    assert also.read_text(encoding="utf-8") == (tmp_path / "new" / "page.json").read_text(encoding="utf-8")
    assert sorted(path.name for path in out.parent.iterdir()) == ["page.html", "page.json"]
    assert not (tmp_path / "one" / "report.html").exists()


@pytest.mark.parametrize(
    ("argv", "code", "says"),
    [
        ([], 2, "At least one run must be named."),
        (["nowhere"], 1, "A run must be a directory. Got nowhere."),
        (["."], 1, "is not a run"),
        (["run", "--out", "report.txt"], 2, "--out must end in .html. Got report.txt."),
        (["run", "run"], 2, "Each run must be named once."),
        (["run", "--titel", "x"], 2, "--titel"),
    ],
)
def test_bad_input_is_one_line(argv, code, says, tmp_path, monkeypatch, capsys):
    write_run(tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    assert main(["report", *argv]) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert says in captured.err


def test_a_report_needs_no_torch(tmp_path):
    run = write_run(tmp_path / "run")
    program = (
        "import sys\nfrom tc_adapters_lens.cli.main import main\n"
        f"main(['report', {str(run)!r}])\nprint('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("False\n")
