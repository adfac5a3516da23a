"""`benchmark`: a run's models on tasks, results that stand, errors of one line."""

from __future__ import annotations

import json
import sys

import datasets
import pytest
import torch

from tc_adapters_lens import toy
from tc_adapters_lens.cli.main import main
from tc_adapters_lens.models.adapter_set import AdapterSet, AdapterSetInfo
from tc_adapters_lens.models.checkpoints import Checkpoint
from tc_adapters_lens.models.pair_info import PairInfo
from tests.integrations.lm_eval_fakes import served

TOY = ["--base", "toy:base", "--target", "toy:target"]


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch, tmp_path):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def toy_adapters(tmp_path):
    """Directory of adapters that write nothing."""
    base, target = Checkpoint.open("toy:base"), Checkpoint.open("toy:target")
    info = AdapterSetInfo(PairInfo("toy:base", "toy:target", None, None, base.fingerprint(), target.fingerprint()))
    adapters = AdapterSet.fresh(4, 128, 8, info, seed=0)
    with torch.no_grad():
        for adapter in adapters.values():
            adapter.W_dec.zero_()
    adapters.save(tmp_path / "adapters")
    return str(tmp_path / "adapters")


def benchmark(tmp_path, *words, out="out"):
    return main(
        ["benchmark", "--tasks", "toy", "--limit", "4", "--device", "cpu", "--out", str(tmp_path / out), *words]
    )


def last_line(capsys) -> str:
    return capsys.readouterr().err.splitlines()[-1].removeprefix("tc-adapters: error: ")


def accuracy(path) -> tuple[list[str], float]:
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    texts = [row["resps"][0][0] for row in rows]
    right = [toy.parse_answer(text) == row["doc"]["answer"] for text, row in zip(texts, rows, strict=True)]
    return texts, sum(right) / len(right)


def test_adapters_that_write_nothing_make_the_hybrid(tmp_path, toy_adapters, capsys):
    found = tmp_path / "found.json"
    options = [*TOY, "--temperature", "0", "--batch-size", "4"]
    assert benchmark(tmp_path, *options, "--adapters", toy_adapters, "--json", str(found)) == 0
    assert benchmark(tmp_path, *options, "--model", "hybrid", out="hybrid") == 0
    assert benchmark(tmp_path, *options, "--model", "target", out="target") == 0
    replacement, hybrid, target = (accuracy(tmp_path / name / "toy.jsonl") for name in ("out", "hybrid", "target"))
    assert replacement == hybrid != target
    result = json.loads(found.read_text())["tasks"]["toy"]
    assert result["accuracy"] == hybrid[1]
    standing = json.loads((tmp_path / "out" / "toy.json").read_text(encoding="utf-8"))
    assert standing["result"] == result
    assert standing["results"]["toy"]["accuracy,all"] == result["accuracy"]
    assert set(standing["settings"]["source"]) == {"base", "target", "adapters", "dtype"}
    assert f"{result['accuracy']:.1%} ± " in capsys.readouterr().out


def test_a_result_that_stands_is_not_made_again(tmp_path, monkeypatch, capsys):
    options = ["--target", "toy:target", "--model", "target", "--max-new-tokens", "5"]
    assert benchmark(tmp_path, *options) == 0
    made = (tmp_path / "out" / "toy.json").read_bytes()

    def never(*_, **__):
        raise AssertionError

    monkeypatch.setattr("tc_adapters_lens.integrations.lm_eval.harness.evaluate", never)
    assert benchmark(tmp_path, *options) == 0
    assert "toy.json (was there already)" in capsys.readouterr().out
    assert (tmp_path / "out" / "toy.json").read_bytes() == made
    assert benchmark(tmp_path, *options, "--seed", "1") == 1
    assert last_line(capsys).endswith("must be of the same settings. Got seed 42 there and 1 now. Name another --out.")
    (tmp_path / "out" / "toy.json").write_text("[]")
    assert benchmark(tmp_path, *options) == 1
    assert "is there already and is not a benchmark's result" in last_line(capsys)


def test_a_server(tmp_path, capsys):
    with served() as (server, record):
        assert benchmark(tmp_path, "--target", "toy:target", "--server", server, "--temperature", "0") == 0
        assert len(record.payloads) == 4
    settings = json.loads((tmp_path / "out" / "toy.json").read_text(encoding="utf-8"))["settings"]
    assert settings["source"] == {"server": f"{server}/completions", "served_model": "toy-target"}
    assert benchmark(tmp_path, "--target", "toy:target", "--server", server, out="other") == 2
    assert last_line(capsys).startswith("--server must answer. Got ")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--tasks", "toys"], "Got 'toys'. Did you mean 'toy'?"),
        (["--limit", "0"], "--limit must be at least 1. Got 0."),
        (["--temperature", "-1"], "--temperature must be 0 or above. Got -1.0."),
        (["--seed", "-1"], "--seed must be at least 0. Got -1."),
        (["--tasks", "amc23,toy", "--data", "x.jsonl"], "--data is of one task. Got 2: amc23,toy;"),
        (["--served-model", "x"], "--served-model is for --server. Got no --server;"),
        ([], "The replacement needs --run, or --base, --target, --adapters. --base is missing."),
        (["--model", "base", "--server", "http://x"], "The base needs --run, or --base. --base is missing."),
        (["--model", "best"], "--model must be"),
    ],
)
def test_wrong_use(tmp_path, words, says, capsys):
    assert benchmark(tmp_path, *words) == 2
    assert says in last_line(capsys)


def test_without_lm_eval(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        "tc_adapters_lens.integrations.lm_eval.extra.importlib.util.find_spec",
        lambda name: None if name == "math_verify" else sys.modules[__name__],
    )
    assert benchmark(tmp_path) == 1
    assert (
        last_line(capsys) == 'Benchmarks need lm-eval. Missing: math-verify. Run pip install "tc-adapters-lens[evals]"'
    )


def test_models_without_what_texts_need(tmp_path, pair, capsys):
    assert benchmark(tmp_path, "--target", pair[1], "--model", "target") == 2
    assert "toy needs a chat template. Got a tokenizer of the target without one; give --chat-template" in last_line(
        capsys
    )


def test_adapters_of_another_pair(tmp_path, adapters, capsys):
    assert benchmark(tmp_path, *TOY, "--adapters", str(adapters)) == 1
    assert "were trained on another pair" in last_line(capsys)
