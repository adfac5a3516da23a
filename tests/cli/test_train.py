"""What `train` makes of its options; the training itself is stood in for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tc_adapters_lens.cli.main import main
from tc_adapters_lens.errors import StopTraining
from tc_adapters_lens.models.adapter_set import AdapterSetInfo
from tc_adapters_lens.models.dense_weights import DenseWeights
from tc_adapters_lens.models.pair_info import PairInfo
from tc_adapters_lens.training import runner

CONFIG = """\
base: toy:base
target: toy:target
data: {path: toy}
training: {lr: 1e-4}
logger: {run_name: from the file}
"""


@pytest.fixture
def config_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.yaml").write_text(CONFIG)
    return "tiny.yaml"


class Trained(Exception):
    """Carries what `train` was called with."""


@pytest.fixture
def call(monkeypatch):
    """Runs the command line and returns what `train` was called with."""

    def train(config, out):
        raise Trained(config, out)

    monkeypatch.setattr(runner, "train", train)

    def run(*argv):
        with pytest.raises(Trained) as trained:
            main(["train", *argv])
        return trained.value.args

    return run


def test_the_file_alone(config_file, call):
    config, out = call("--config", config_file)
    assert config.training.lr == 1e-4
    assert str(out) == "runs/tiny"


def test_overrides_replace_only_what_they_name(config_file, call):
    config, out = call(
        "--config", config_file, "--training.lr", "1e-3", "--objective.preset=authors", "--out", "elsewhere"
    )
    assert (config.training.lr, config.objective.bridging_weight) == (1e-3, 2.0)
    assert config.logger.run_name == "from the file"
    assert str(out) == "elsewhere"


def test_an_override_can_take_a_value_away(config_file, call):
    config, _ = call("--config", config_file, "--logger.run_name", "null")
    assert config.logger.run_name is None


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--training.lr", "fast"], "training.lr must be"),
        (["--training.lr", "-1"], "training.lr must be above 0. Got -1.0."),
        (["--trainng.lr", "1"], "Did you mean '--training.lr'?"),
        (["--config", "none.yaml"], "none.yaml: there is no such file"),
    ],
)
def test_wrong_values_are_2_and_one_line(argv, says, config_file, capsys):
    assert main(["train", "--config", config_file, *argv]) == 2
    err = capsys.readouterr().err
    assert says in err
    assert err.count("\n") == 1


def test_dense_weights_are_told_as_such(config_file, monkeypatch, capsys, tmp_path):
    def train(config, out):
        info = AdapterSetInfo(PairInfo("b", "t", None, None, "sha256:1", "sha256:2"), measured={"kl": 0.5})
        return DenseWeights(config.trained, {f"blocks.{layer}.ln1.w": torch.ones(2) for layer in range(3)}, info)

    monkeypatch.setattr(runner, "train", train)
    assert main(["train", "--config", config_file, "--trained", "norms", "--json", "result.json"]) == 0
    assert f"norms of 3 layers written to {Path('runs/tiny/weights')}\n" in capsys.readouterr().out
    result = json.loads((tmp_path / "result.json").read_text())
    assert (result["weights"], result["n_layers"], result["trained"]) == (str(Path("runs/tiny/weights")), 3, "norms")
    assert result["measured"] == {"kl": 0.5}
    assert "adapters" not in result


def test_a_stopped_run_says_how_to_go_on(config_file, monkeypatch, capsys):
    def train(config, out):
        raise StopTraining("Stopped at step 3 of 9. Start the same command again to go on.")

    monkeypatch.setattr(runner, "train", train)
    assert main(["train", "--config", config_file]) == 130
    assert capsys.readouterr().err.endswith("Stopped at step 3 of 9. Start the same command again to go on.\n")
