"""`report --reproduce toy`, on a recipe of a few steps: every run and baseline, and going on after an interruption."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from tc_adapters_lens import toy
from tc_adapters_lens.cli import reproduce
from tc_adapters_lens.cli.main import main
from tc_adapters_lens.errors import StopTraining
from tc_adapters_lens.training.config import find_config
from tc_adapters_lens.training.runner import train


@pytest.fixture
def short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same plan with two sparsity weights, two seeds, three steps a run and twelve sequences to measure on."""
    recipe = yaml.safe_load(find_config(reproduce.RECIPE).read_text())
    recipe["training"] |= {"training_tokens": 800, "n_checkpoints": 0}
    recipe["adapters"]["n_features"] = 32
    (tmp_path / "short.yaml").write_text(yaml.safe_dump(recipe))
    (tmp_path / "eval.jsonl").write_text("".join(toy.EVAL_TOKENS.read_text().splitlines(keepends=True)[:12]))
    monkeypatch.setattr(reproduce, "RECIPE", str(tmp_path / "short.yaml"))
    monkeypatch.setattr(reproduce, "WEIGHTS", (0.06, 0.02))
    monkeypatch.setattr(reproduce, "SEEDS", (42, 1))
    monkeypatch.setattr(toy, "EVAL_TOKENS", tmp_path / "eval.jsonl")
    monkeypatch.chdir(tmp_path)


def test_all_of_it_and_going_on(short: None, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    def stopped(config, out, model=None):
        if config.trained == "norms":
            raise StopTraining("Stopped at step 2 of 3. Start the same command again to go on.")
        return train(config, out, model)

    argv = ["report", "--reproduce", "toy", "--out", "all/page.html"]
    with monkeypatch.context() as interrupted:
        interrupted.setattr("tc_adapters_lens.training.runner.train", stopped)
        assert main(argv) == 130
    assert capsys.readouterr().err.splitlines()[-1].startswith("tc-adapters: Stopped at step 2 of 3")
    assert not Path("all/page.html").exists()
    first, second = Path("all/l1-0.06-seed-42"), Path("all/l1-0.02-seed-42")
    assert (first / "evaluation.json").exists()
    assert not (second / "evaluation.json").exists()
    written = (first / "evaluation.json").stat().st_mtime_ns, (second / "adapters/adapter_set.json").stat().st_mtime_ns

    assert main(argv) == 0
    assert written == (
        (first / "evaluation.json").stat().st_mtime_ns,
        (second / "adapters/adapter_set.json").stat().st_mtime_ns,
    )
    assert "3 runs on" in capsys.readouterr().out
    page = json.loads(Path("all/page.json").read_text())
    found = {run["label"]: run["evaluation"] for run in page["runs"]}
    assert found.keys() == {"l1-0.06-seed-42", "l1-0.02-seed-42", "l1-0.02-seed-1"}
    headline = found["l1-0.02-seed-42"]
    assert headline["models"].keys() == {
        "hybrid", "replacement", "base", "reverse", "shuffled", "norm_refit", "skyline", "no_bridging",
    }  # fmt: skip
    assert headline["account"] is not None
    assert found["l1-0.02-seed-1"]["no_bridging"] is not None
    assert not [e for e in page["expectations"] if e["outcome"] == "not measured"]
    assert len(list(second.glob("baselines/skyline/*/weights"))) == 3


def test_runs_of_ones_own_do_not_go_with_it(capsys) -> None:
    assert main(["report", "--reproduce", "toy", "runs/mine"]) == 2
    assert "--reproduce makes its own runs. Got runs/mine" in capsys.readouterr().err
