"""`export` and `import`: adapters to the authors' layout and back, features for other tools."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors import safe_open

from tc_adapters_lens.cli.main import main
from tc_adapters_lens.interventions import keep, negate, remove, scale
from tc_adapters_lens.models.adapter_set import AdapterSet
from tc_adapters_lens.models.checkpoints import Checkpoint
from tc_adapters_lens.models.feature_group import FeatureGroup
from tests.cli.conftest import N_FEATURES
from tests.features.builder import synthetic_store
from tests.tiny import N_LAYERS


@pytest.mark.parametrize("whole", [False, True])
def test_there_and_back_is_bitwise(whole, pair, adapters, tmp_path):
    models = ["--base", pair[0], "--target", pair[1]]
    exported, back, result = tmp_path / "exported", tmp_path / "back", tmp_path / "result.json"
    assert main(["export", "--adapters", str(adapters), "--out", str(exported), *(models if whole else [])]) == 0
    assert main(["import", "--checkpoint", str(exported), *models, "--out", str(back), "--json", str(result)]) == 0
    before, after = AdapterSet.load(adapters), AdapterSet.load(back)
    for layer in range(N_LAYERS):
        for name, tensor in before[layer].state_dict().items():
            assert torch.equal(tensor, after[layer].state_dict()[name])
    assert json.loads(result.read_text())["n_features"] == N_FEATURES


def test_one_model_alone_is_wrong_use(pair, adapters, tmp_path, capsys):
    argv = ["export", "--adapters", str(adapters), "--out", str(tmp_path / "exported")]
    assert main([*argv, "--base", pair[0]]) == 2
    assert "must be given together" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "operation"),
    [
        (["--remove", "GROUP"], remove),
        (["--keep", "GROUP"], keep),
        (["--scale", "GROUP", "--factor", "2.5"], lambda adapters, group: scale(adapters, group, 2.5)),
        (["--negate", "GROUP", "--factor", "0.5"], lambda adapters, group: negate(adapters, group, 0.5)),
        ([], lambda adapters, group: adapters),
    ],
)
def test_changed_adapters_are_written_in_any_layout(words, operation, pair, adapters, tmp_path):
    group = FeatureGroup("some", ((0, 1), (2, 3)))
    group.save(tmp_path / "group.json")
    argv = [
        "export",
        "--adapters",
        str(adapters),
        *[str(tmp_path / "group.json") if w == "GROUP" else w for w in words],
    ]
    expected = operation(AdapterSet.load(adapters), group)
    assert main([*argv, "--format", "saelens", "--out", str(tmp_path / "plain")]) == 0
    assert AdapterSet.load(tmp_path / "plain").fingerprint() == expected.fingerprint()
    assert AdapterSet.load(tmp_path / "plain").info == expected.info
    assert main([*argv, "--format", "hf", "--base", pair[0], "--target", pair[1], "--out", str(tmp_path / "hf")]) == 0
    stored = Checkpoint.open(pair[0]).tensor_names()
    with safe_open(tmp_path / "hf" / "model.safetensors", "pt") as file:
        for layer, adapter in expected.items():
            decoder = file.get_tensor(f"model.layers.{layer}.mlp.adapter.decoder.weight")
            assert torch.equal(decoder.T, adapter.W_dec)
        assert len([name for name in file.keys() if ".adapter." not in name]) == len(stored)  # noqa: SIM118


@pytest.mark.parametrize("missing", ["--checkpoint", "--base", "--target"])
def test_a_missing_path_is_one_line(missing, pair, tmp_path, capsys):
    options = {
        "--checkpoint": pair[1],
        "--base": pair[0],
        "--target": pair[1],
        "--out": str(tmp_path / "out"),
    }
    options[missing] = str(tmp_path / "nowhere")
    assert main(["import", *(word for option in options.items() for word in option)]) == 1
    err = capsys.readouterr().err
    assert err.startswith("tc-adapters: error: ")
    assert "nowhere" in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("layout", ["circuit-tracer", "neuronpedia", "csv", "parquet"])
def test_features_are_exported(layout, tmp_path, capsys):
    synthetic_store(tmp_path / "features", n_features=6, k=2)
    out, result = tmp_path / "out", tmp_path / "result.json"
    argv = ["export", "--features", str(tmp_path / "features"), "--format", layout, "--out", str(out)]
    assert main([*argv, "--layers", "1", "--json", str(result)]) == 0
    n_features = json.loads(result.read_text())["n_features"]
    assert 0 < n_features <= 6
    assert f"{n_features} features written to {out} ({layout})" in capsys.readouterr().out
    assert out.is_file() == (layout in ("csv", "parquet"))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--format", "csv"], "One of --run, --adapters and --features must be given. Got none of them."),
        (["--adapters", "a", "--features", "f"], "Got --adapters and --features."),
        (
            ["--adapters", "a", "--format", "csv"],
            "must be one of saelens, authors, hf. Got csv, which is for --features.",
        ),
        (["--adapters", "a", "--layers", "1"], "--layers is for --features"),
        (["--features", "f"], "must be one of circuit-tracer, neuronpedia, csv, parquet. Got authors, which"),
        (["--features", "f", "--format", "authors"], "Got authors, which is for --adapters."),
        (["--adapters", "a", "--remove", "g", "--keep", "h"], "one way at a time. Got --remove and --keep; take one."),
        (["--adapters", "a", "--remove", "g", "--factor", "2"], "Got --factor alone; give both."),
        (["--adapters", "a", "--negate", "g"], "Got --negate alone; give both."),
        (["--adapters", "a", "--format", "hf", "--remove", "g", "--group", "h"], "Got --remove too"),
        (["--adapters", "a", "--format", "saelens", "--base", "b", "--target", "t"], "--base is for --format authors"),
        (["--features", "f", "--format", "csv", "--keep", "g"], "--keep is for --adapters"),
        (["--adapters", "a", "--group", "g.json"], "--group is for --format hf. Leave it out."),
        (["--adapters", "a", "--mlps", "target"], "--mlps is for --format hf. Leave it out."),
        (["--features", "f", "--format", "csv", "--dtype", "float32"], "--dtype is for --adapters"),
        (["--features", "f", "--format", "csv", "--base", "b"], "--base is for --adapters"),
        (["--features", "f", "--format", "csv", "--layers", "1-2"], "--layers must be numbers with commas"),
    ],
)
def test_wrong_combinations_are_one_line(words, said, tmp_path, capsys):
    assert main(["export", *words, "--out", str(tmp_path / "out")]) == 2
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1
