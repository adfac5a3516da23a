"""What every verb shares: help, exit codes, one-line errors, the JSON result."""

from __future__ import annotations

import errno
import json
import subprocess
import sys

import pytest

from tc_adapters_lens import __version__
from tc_adapters_lens.cli.main import VERBS, main
from tc_adapters_lens.errors import AdapterLensError, ConfigError, PairError

EXPORT = ["export", "--adapters", "a", "--out", "b"]


def verb_that(monkeypatch, outcome):
    """Makes `export` raise or return the outcome."""

    def run(args):
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    monkeypatch.setattr(VERBS["export"], "run", run)


def only_line(capsys) -> str:
    """Standard error's one line, without the program's name."""
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("tc-adapters: ")
    assert captured.err.count("\n") == 1
    return captured.err.removeprefix("tc-adapters: ").removeprefix("error: ").rstrip("\n")


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_with_an_example(verb, capsys):
    with pytest.raises(SystemExit) as exit_:
        main([verb, "--help"])
    assert exit_.value.code == 0
    out = capsys.readouterr().out
    assert f"usage: tc-adapters {verb}" in out
    assert f"\n  tc-adapters {verb}" in out


def test_help_lists_the_verbs_without_importing_torch():
    program = (
        "import sys\nfrom tc_adapters_lens.cli.main import main\n"
        "try:\n    main(['--help'])\nfinally:\n    print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert all(f"\n    {verb} " in done.stdout for verb in VERBS)
    assert done.stdout.endswith("False\n")


def test_version(capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["--version"])
    assert exit_.value.code == 0
    assert capsys.readouterr().out == f"tc-adapters {__version__}\n"


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        ([], "A verb is needed."),
        (["trian"], "Got 'trian'. Did you mean 'train'?"),
        (["--verson"], "--verson is not an option of tc-adapters. Did you mean '--version'?"),
        (["demo", "--otu", "x"], "--otu is not an option of tc-adapters demo. Did you mean '--out'?"),
        (["demo", "--otu=x"], "--otu is not an option of tc-adapters demo. Did you mean '--out'?"),
        (["demo", "--ou", "x"], "Did you mean '--out'?"),
        (["demo", "x"], "'x' is not expected here. `tc-adapters demo --help` shows the usage."),
        (["demo", "--out"], "argument --out: expected one argument"),
        (["demo", "--seed", "x"], "--seed must be an int. Got 'x'."),
        (
            ["evaluate", "--base", "x"],
            "--tokens must be given. `tc-adapters evaluate --help`",
        ),
        (
            [*EXPORT, "--format", "author"],
            "'neuronpedia' or 'csv' or 'parquet'. Got 'author'. Did you mean 'authors'?",
        ),
    ],
)
def test_wrong_use_is_2_and_names_the_fix(argv, says, capsys):
    assert main(argv) == 2
    assert says in only_line(capsys)


@pytest.mark.parametrize(
    ("outcome", "code", "says"),
    [
        (AdapterLensError("no luck"), 1, "no luck"),
        (PairError("layers must agree.\n Got 28 and 32."), 1, "layers must agree. Got 28 and 32."),
        (ConfigError("lr must be positive. Got -1."), 2, "lr must be positive. Got -1."),
        (KeyboardInterrupt(), 130, "interrupted"),
        (KeyboardInterrupt("Stopped at step 3 of 9."), 130, "Stopped at step 3 of 9."),
        (OSError(errno.ENOSPC, "No space left on device", "/full/x"), 1, "/full/x: No space left on device."),
    ],
)
def test_a_failure_is_one_line_and_an_exit_code(outcome, code, says, monkeypatch, capsys):
    verb_that(monkeypatch, outcome)
    assert main(EXPORT) == code
    assert only_line(capsys).startswith(says)


@pytest.mark.parametrize("bug", [TypeError("bug"), ValueError("bug"), FileNotFoundError(errno.ENOENT, "gone")])
def test_an_error_of_the_program_keeps_its_traceback(bug, monkeypatch):
    verb_that(monkeypatch, bug)
    with pytest.raises(type(bug)):
        main(EXPORT)


def test_json_holds_what_the_verb_returned(monkeypatch, tmp_path):
    verb_that(monkeypatch, {"layers": 4, "note": "é"})
    file = tmp_path / "new" / "result.json"
    assert main([*EXPORT, "--json", str(file)]) == 0
    assert json.loads(file.read_text(encoding="utf-8")) == {"layers": 4, "note": "é"}
    assert [path.name for path in file.parent.iterdir()] == ["result.json"]


def test_json_is_not_replaced_by_half_a_result(monkeypatch, tmp_path):
    file = tmp_path / "result.json"
    file.write_text("before")
    verb_that(monkeypatch, {"layers": object()})
    with pytest.raises(TypeError):
        main([*EXPORT, "--json", str(file)])
    assert file.read_text() == "before"
    assert list(tmp_path.iterdir()) == [file]


def test_json_in_an_impossible_place_is_one_line(monkeypatch, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    verb_that(monkeypatch, {})
    assert main([*EXPORT, "--json", str(tmp_path)]) == 1
    assert f"Writing {tmp_path} failed" in only_line(capsys)
