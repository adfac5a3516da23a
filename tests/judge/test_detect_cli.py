"""`tc-adapters judge detect`, with the judge that needs no network."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tc_adapters_lens.cli.main import main
from tc_adapters_lens.features.store import FeatureStore
from tc_adapters_lens.judge.results import read_result
from tests.judge.planted import at, on_tokens, planted_store, random_text, sequence_of

TEXT = random_text()
DETECT = ["judge", "detect", "--judge", "rules"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """12 adapter features on tokens and one that is active everywhere; 12 neurons."""
    directory = tmp_path_factory.mktemp("run")
    acts = on_tokens(TEXT, 12)
    planted_store(directory / "features", TEXT, [np.hstack([acts, at(TEXT.tokens >= 0)[:, None]])])
    neurons = {
        "model": "target",
        "hook": "blocks.{layer}.mlp.hook_post",
        "adapters": None,
        "adapters_fingerprint": None,
    }
    planted_store(directory / "features-target", TEXT, [acts + 0.05], **neurons)
    return directory


def test_a_result_its_labels_and_its_table(run, tmp_path, capsys):
    said = tmp_path / "said.json"
    words = ["--run", str(run), "--kinds", "top,shuffled,sampled", "--json", str(said), "--per-layer", "13"]
    assert main([*DETECT, *words]) == 0
    path = run / "judge" / "detect-replacement.json"
    result = read_result(path, "detect")
    assert json.loads(said.read_text())["overall"] == result["overall"]
    assert result["store"]["model"] == "replacement"
    assert result["judge"]["kind"] == "rules"
    assert {task: used["name"] for task, used in result["prompts"].items()} == {
        "describe": "describe.yaml",
        "detect": "detect.yaml",
    }
    settings = ("repeat", "seed", "per_layer", "min_frequency", "n_exemplars", "n_texts", "negatives")
    assert [result[name] for name in settings] == [0, 42, 13, 1e-4, 10, 5, "random"]
    assert list(result["overall"]["scores"]) == ["top", "sampled", "shuffled"]
    assert result["overall"]["scores"]["top"]["mean"] == {"value": 1.0, "low": 1.0, "high": 1.0}
    assert result["usage"]["unparsable"] == 0
    output = capsys.readouterr().out
    assert "1.000 (1.000 to 1.000)" in output
    assert "left out: 1 (fewer than 5 random texts in which it is quiet)" in output
    assert str(path) in output
    store = FeatureStore.open(run / "features")
    assert store[0, 4].labels == {"description": 'active on: " w14"', "score_top": 1.0, "score_sampled": 1.0}
    assert store[0, 12].labels["description"] is None
    assert np.isnan(store.column("score_top")[12])


def test_results_by_name_and_model(run, capsys):
    words = ["--run", str(run), "--per-layer", "2", "--negatives", "similar", "--name", "hard"]
    assert main([*DETECT, *words]) == 0
    result = read_result(run / "judge" / "detect-replacement-hard.json", "detect")
    assert result["negatives"] == "similar"
    assert list(result["overall"]["scores"]) == ["top", "sampled", "shuffled"]
    assert "score_top_hard" in FeatureStore.open(run / "features").column_names
    assert capsys.readouterr().out.splitlines()[3].split()[-1] == "-"  # one feature has nobody else's description
    assert main([*DETECT, "--run", str(run), "--model", "target"]) == 0
    neurons = read_result(run / "judge" / "detect-target.json", "detect")
    assert list(neurons["overall"]["scores"]) == ["top", "shuffled"]
    assert neurons["overall"]["scores"]["top"]["mean"]["value"] == 1.0
    assert "-" not in capsys.readouterr().out.splitlines()[3]


def test_a_dry_run_asks_and_writes_nothing(run, tmp_path, capsys):
    said = tmp_path / "said.json"
    words = ["--run", str(run), "--name", "dry", "--dry-run", "--json", str(said)]
    assert main([*DETECT, *words]) == 0
    parts = json.loads(said.read_text())["parts"]
    assert {name: part["n_requests"] for name, part in parts.items()} == {"describe": 12, "detect": 36}
    assert not (run / "judge" / "detect-replacement-dry.json").exists()
    assert "describe" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--kinds top,shufled", "--kinds must be of top, sampled, shuffled, with commas. Got 'shufled'. Did you mean"),
        ("--per-layer 0", "--per-layer must be at least 1. Got 0."),
        ("--seed -1", "--seed must be at least 0. Got -1."),
        ("--name a/b", "--name must be of letters, digits and underscores. Got 'a/b'."),
        ("--model base", "is not a feature store: there is no such directory. Make one"),
        ("--min-frequency 2", "--min-frequency must be a share, from 0 to 1. Got 2."),
        ("--prompts-detect nowhere.yaml", "Prompts must be a YAML file. nowhere.yaml cannot be read"),
    ],
)
def test_wrong_use_is_one_line(run, words, message, capsys):
    assert main([*DETECT, "--run", str(run), *words.split()]) in (1, 2)
    error = capsys.readouterr().err.strip()
    assert message in error
    assert "\n" not in error


def test_no_feature_has_texts(tmp_path, capsys):
    planted_store(tmp_path / "features", TEXT, [at(sequence_of(TEXT) < 3)[:, None]])
    assert main([*DETECT, "--run", str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert (
        "At least one feature must have texts to be tested on. Got none of 1: its highest examples are of fewer than 6"
        in error
    )
    assert not (tmp_path / "judge").exists()
