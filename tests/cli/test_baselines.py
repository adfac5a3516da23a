"""`evaluate --run --baselines all`: baselines are trained as the adapters were, once, and measured on the same text."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch

from tc_adapters_lens.cli import evaluation
from tc_adapters_lens.cli.baselines import parse_baselines, parse_lrs
from tc_adapters_lens.cli.main import main
from tc_adapters_lens.errors import ConfigError
from tc_adapters_lens.models.adapter_set import AdapterSet
from tc_adapters_lens.models.dense_weights import DenseWeights
from tc_adapters_lens.training.config import TrainingConfig
from tc_adapters_lens.training.runner import train
from tests.tiny import D_VOCAB


@pytest.fixture(scope="module")
def evaluated(pair, tmp_path_factory) -> tuple[Path, dict, str]:
    """A run with every baseline, its evaluation, and the text."""
    root = tmp_path_factory.mktemp("run")
    generator = torch.Generator().manual_seed(3)
    rows = [
        {"input_ids": torch.randint(3, D_VOCAB, (6 + i % 9,), generator=generator).tolist(), "prompt_length": 2}
        for i in range(40)
    ]
    text = root / "tokens.jsonl"
    text.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = TrainingConfig.from_dict(
        {
            "base": pair[0],
            "target": pair[1],
            "device": "cpu",
            "data": {"path": str(text)},
            "adapters": {"n_features": 16},
            "objective": {"l1_coefficient": 1e-3},
            "training": {"batch_size_prompts": 4, "training_tokens": 1500, "lr": 1e-2},
        }
    )
    train(config, root / "run")
    argv = ["evaluate", "--run", str(root / "run"), "--tokens", str(text), "--device", "cpu"]
    assert main([*argv, "--baselines", "all", "--account", "--skyline-lrs", "1e-5,1e-3"]) == 0
    return root / "run", json.loads((root / "run" / "evaluation.json").read_text()), str(text)


def kl(found: dict, name: str) -> float:
    return found["models"][name]["kl"]["value"]


def test_every_baseline_is_there_and_is_what_it_says(evaluated) -> None:
    _, found, _ = evaluated
    assert found["models"].keys() == {
        "hybrid", "replacement", "base", "reverse", "shuffled", "norm_refit", "skyline", "no_bridging",
    }  # fmt: skip
    assert kl(found, "norm_refit") < kl(found, "hybrid")
    sweep = {swept["lr"]: swept["kl"]["value"] for swept in found["skyline_sweep"]}
    assert sweep.keys() == {1e-5, 1e-3}
    assert kl(found, "skyline") == min(sweep.values()) == sweep[1e-3] < kl(found, "hybrid")
    assert found["no_bridging"]["partial_kl"]["first"][-1]["value"] == pytest.approx(kl(found, "no_bridging"))
    assert found["no_bridging"]["l0"] != found["l0"]
    assert kl(found, "no_bridging") != kl(found, "replacement")


def test_baselines_share_the_recipe_but_for_what_they_are(evaluated) -> None:
    run, _, _ = evaluated
    ours = AdapterSet.load(run / "adapters").info.recipe["config"]
    ablation = AdapterSet.load(run / "baselines" / "no_bridging" / "adapters").info.recipe["config"]
    assert ablation == {**ours, "objective": {**ours["objective"], "bridging_weight": 0.0}}
    for name, kind, lr in (
        ("skyline/lr-1e-05", "mlps", 1e-5),
        ("skyline/lr-0.001", "mlps", 1e-3),
        ("norm_refit", "norms", 1e-2),
    ):
        dense = DenseWeights.load(run / "baselines" / name / "weights").info.recipe["config"]
        assert dense == {**ours, "trained": kind, "training": {**ours["training"], "lr": lr}}


def test_a_second_time_nothing_is_trained(evaluated, capsys, monkeypatch) -> None:
    run, found, text = evaluated

    def refuse(*_: object) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr("tc_adapters_lens.training.step.training_step", refuse)
    monkeypatch.setattr("tc_adapters_lens.training.trainer.training_step", refuse)
    argv = ["evaluate", "--run", str(run), "--tokens", text, "--device", "cpu", "--account"]
    assert main([*argv, "--baselines", "all", "--skyline-lrs", "1e-5,1e-3"]) == 0
    assert json.loads((run / "evaluation.json").read_text()) == found
    assert not list(run.glob(".evaluation*"))


def test_a_report_reads_it(evaluated, tmp_path) -> None:
    run, found, _ = evaluated
    assert main(["report", str(run), "--out", str(tmp_path / "page.html")]) == 0
    written = json.loads((tmp_path / "page.json").read_text())
    assert written["runs"][0]["evaluation"] == found
    rows = {(row["model"], row["run"]): row for row in written["models"]}
    assert rows["replacement", "run"]["kl"] == found["models"]["replacement"]["kl"]
    assert rows["skyline", None]["kl"] == found["models"]["skyline"]["kl"]


def test_what_is_not_given_is_the_runs(evaluated, tmp_path, capsys, monkeypatch) -> None:
    run, _, text = evaluated
    shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("baselines"))
    path = tmp_path / "run" / "config.yaml"
    path.write_text(path.read_text().replace("dtype: float32", "dtype: bfloat16"))
    asked = []
    load = evaluation.load_named_pair
    monkeypatch.setattr(evaluation, "load_named_pair", lambda *a: asked.append(a[1]) or load(*a))
    argv = ["evaluate", "--run", str(tmp_path / "run"), "--tokens", text, "--device", "cpu", "--no-partial"]
    assert main(argv) == 0
    assert main([*argv, "--dtype", "float32"]) == 0
    assert asked == [torch.bfloat16, torch.float32]


@pytest.mark.parametrize(("trained", "says"), [("adapters", "it is not finished"), ("mlps", "it trained mlps")])
def test_a_run_without_adapters(trained, says, evaluated, tmp_path, capsys) -> None:
    run, _, text = evaluated
    (tmp_path / "config.yaml").write_text(
        (run / "config.yaml").read_text().replace("trained: adapters", f"trained: {trained}")
    )
    assert main(["evaluate", "--run", str(tmp_path), "--tokens", text]) == 2
    assert says in capsys.readouterr().err.splitlines()[-1]


def test_adapters_without_a_recipe(evaluated, tmp_path, capsys) -> None:
    run, _, text = evaluated
    shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("baselines"))
    adapters = AdapterSet.load(run / "adapters")
    adapters.info = dataclasses.replace(adapters.info, recipe={})
    adapters.save(tmp_path / "run" / "adapters")
    argv = ["evaluate", "--run", str(tmp_path / "run"), "--tokens", text, "--device", "cpu"]
    assert main([*argv, "--baselines", "skyline,base"]) == 2
    assert "--baselines skyline are trained as the adapters were" in capsys.readouterr().err.splitlines()[-1]
    assert main([*argv, "--baselines", "base"]) == 0


def test_words() -> None:
    assert parse_baselines("none") == []
    assert parse_baselines("skyline, base") == ["base", "skyline"]
    assert parse_baselines("no-bridging") == ["no_bridging"]
    assert parse_lrs(None) is None
    assert parse_lrs("1e-3,2") == [1e-3, 2.0]
    for words in ("", "0", "1e-3,-1"):
        with pytest.raises(ConfigError, match="--skyline-lrs"):
            parse_lrs(words)
