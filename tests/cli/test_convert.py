"""`export` and `import`: adapters to the authors' layout and back."""

from __future__ import annotations

import json

import pytest
import torch

from tc_adapters_lens.cli.main import main
from tc_adapters_lens.models.adapter_set import AdapterSet
from tests.cli.conftest import N_FEATURES
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
