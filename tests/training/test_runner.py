"""Training runs from configuration to adapters: what is learned, what is written, and what survives interruption."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
import wandb
from safetensors.torch import load_file

from tc_adapters_lens.errors import AdapterSetError, ConfigError, DataError, StopTraining
from tc_adapters_lens.models.adapter_set import AdapterSet
from tc_adapters_lens.models.pair import load_pair
from tc_adapters_lens.training.config import TrainingConfig
from tc_adapters_lens.training.runner import AdapterTrainingRunner, newest_checkpoint, train
from tests.tiny import D_VOCAB, N_LAYERS, nudged, save, tiny_pair, word_tokenizer

N_FEATURES = 16


@pytest.fixture(scope="module")
def pair_dirs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """A saved pair and 60 token sequences of different lengths."""
    root = tmp_path_factory.mktemp("pair")
    base, target = tiny_pair()
    generator = torch.Generator().manual_seed(3)
    rows = [{"input_ids": torch.randint(3, D_VOCAB, (5 + i % 9,), generator=generator).tolist()} for i in range(60)]
    (root / "tokens.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return (
        save(base, root / "base", word_tokenizer()),
        save(target, root / "target", word_tokenizer()),
        root / "tokens.jsonl",
    )


def make_config(pair_dirs: tuple[Path, Path, Path], **changes: object) -> TrainingConfig:
    base, target, data = pair_dirs
    values = {
        "base": str(base),
        "target": str(target),
        "device": "cpu",
        "data": {"path": str(data)},
        "adapters": {"n_features": N_FEATURES},
        "objective": {"l1_coefficient": 1e-3, "l1_warm_up_steps": 5},
        "training": {
            "batch_size_prompts": 4,
            "training_tokens": 1500,
            "lr": 1e-2,
            "n_checkpoints": 4,
            "dead_feature_window": 100,
            "feature_sampling_window": 7,
        },
        "logger": {"wandb_log_frequency": 1},
    }
    for key, value in changes.items():
        values[key] = {**values[key], **value} if isinstance(value, dict) else value
    return TrainingConfig.from_dict(values)


def weights(adapters: AdapterSet) -> dict[str, torch.Tensor]:
    return adapters.state()


def assert_same_bits(ours: AdapterSet, theirs: AdapterSet) -> None:
    for name, tensor in theirs.state().items():
        assert torch.equal(ours.state()[name], tensor), name


@pytest.fixture(scope="module")
def finished(pair_dirs, tmp_path_factory) -> tuple[Path, AdapterSet]:
    """A run that was never interrupted."""
    out = tmp_path_factory.mktemp("run") / "run"
    adapters = train(make_config(pair_dirs), out)
    assert isinstance(adapters, AdapterSet)
    return out, adapters


def rows(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def test_loss_falls_and_everything_is_written(finished) -> None:
    out, adapters = finished
    metrics = rows(out)
    assert [row["step"] for row in metrics] == list(range(1, len(metrics) + 1))
    first, last = metrics[:5], metrics[-5:]
    for key in ("losses/kl", "losses/nmse"):
        assert sum(r[key] for r in last) < 0.75 * sum(r[key] for r in first)
    assert metrics[0]["details/l1_coefficient"] < metrics[-1]["details/l1_coefficient"]
    assert metrics[-1]["details/current_learning_rate"] < 1e-5  # the cosine ends at zero
    assert len(list((out / "checkpoints").iterdir())) == 4
    assert not list(out.rglob("*.partial"))
    assert not [p for p in out.rglob("*") if p.suffix in (".pt", ".pkl", ".bin", ".pth")]
    assert_same_bits(AdapterSet.load(out / "adapters"), adapters)
    assert adapters.info.measured["kl"] == pytest.approx(sum(r["losses/kl"] for r in metrics[-20:]) / 20)
    assert TrainingConfig.from_dict(adapters.info.recipe["config"]) == TrainingConfig.from_yaml(
        (out / "config.yaml").read_text()
    )


def test_statistics_are_per_layer_and_in_unmasked_tokens(finished) -> None:
    out, _ = finished
    checkpoint = newest_checkpoint(out)
    state = load_file(checkpoint / "trainer_state.safetensors")
    assert state["tokens_since_fired"].shape == (N_LAYERS, N_FEATURES)
    assert not state["tokens_since_fired"].is_floating_point()
    assert int(state["tokens_since_fired"].max()) <= int(checkpoint.name)
    assert load_file(checkpoint / "sparsity.safetensors")["sparsity"].shape == (N_LAYERS, N_FEATURES)


def test_same_seed_same_bits_other_seed_other_bits(pair_dirs, finished, tmp_path) -> None:
    model = load_pair(*map(str, pair_dirs[:2]))
    again = train(make_config(pair_dirs), tmp_path / "again", model)
    assert_same_bits(again, finished[1])
    other = train(make_config(pair_dirs, seed=7), tmp_path / "other", model)
    assert not torch.equal(other.state()["W_dec"], again.state()["W_dec"])
    assert model.acts_to_saes == {}
    assert all(param.requires_grad for param in model.parameters())


def test_a_complete_run_is_not_trained_again(pair_dirs, finished) -> None:
    out, adapters = finished
    before = (out / "metrics.jsonl").stat().st_mtime_ns
    assert_same_bits(train(make_config(pair_dirs), out), adapters)
    assert (out / "metrics.jsonl").stat().st_mtime_ns == before


class _StopAt:
    """Asks the trainer to stop after a number of steps, as a signal handler would."""

    def __init__(self, runner: AdapterTrainingRunner, step: int) -> None:
        self.write, self.step = runner._write_metrics, step

    def __call__(self, row: dict) -> None:
        self.write(row)
        if row["step"] == self.step:
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("step", [1, 7, 14, 23])
def test_sigterm_saves_and_the_rest_of_the_run_is_bit_identical(pair_dirs, finished, tmp_path, step) -> None:
    out, config = tmp_path / "run", make_config(pair_dirs)
    runner = AdapterTrainingRunner(config, out)
    runner._write_metrics = _StopAt(runner, step)  # type: ignore[method-assign]
    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(StopTraining, match=f"Stopped at step {step} of"):
        runner.run()
    assert signal.getsignal(signal.SIGTERM) is handler
    assert "prefetch" not in [thread.name for thread in threading.enumerate()]
    assert not (out / "adapters").exists()
    assert_same_bits(train(config, out), finished[1])
    assert rows(out)[-1]["losses/kl"] == rows(finished[0])[-1]["losses/kl"]
    assert [row["step"] for row in rows(out)] == [row["step"] for row in rows(finished[0])]


FAST = {"preset": "fast", "n_checkpoints": 0}


@pytest.fixture(scope="module")
def finished_fast(pair_dirs, tmp_path_factory) -> tuple[Path, AdapterSet, int]:
    """A run of preset `fast` that was never interrupted, and the last step of its local phase."""
    out = tmp_path_factory.mktemp("fast") / "run"
    adapters = train(make_config(pair_dirs, training=FAST), out)
    assert isinstance(adapters, AdapterSet)
    return out, adapters, sum("losses/local_error" in row for row in rows(out))


def test_fast_begins_with_a_local_phase_on_one_falling_learning_rate(finished_fast) -> None:
    out, adapters, border = finished_fast
    local, joint = rows(out)[:border], rows(out)[border:]
    assert abs(len(local) - len(joint)) <= 1
    assert all("losses/local_error" in row and "losses/kl" not in row for row in local)
    assert all("losses/kl" in row and "losses/local_error" not in row for row in joint)
    assert local[-1]["losses/local_error"] < 0.8 * local[0]["losses/local_error"]
    lrs = torch.tensor([row["details/current_learning_rate"] for row in rows(out)])
    n_warm_up = round(0.05 * len(lrs))
    expected = 1e-2 * (1 - torch.arange(len(lrs) - n_warm_up + 1) / (len(lrs) - n_warm_up))
    torch.testing.assert_close(lrs[n_warm_up - 1 :], expected, atol=1e-8, rtol=1e-4)  # linear, to zero
    assert adapters.info.measured["kl"] == pytest.approx(sum(r["losses/kl"] for r in joint[-20:]) / len(joint[-20:]))


@pytest.mark.parametrize("after_border", [-3, -1, 0, 1, 4])
def test_fast_goes_on_bit_identically_in_either_phase_and_at_the_border(
    pair_dirs, finished_fast, tmp_path, after_border
) -> None:
    reference, adapters, border = finished_fast
    out, config = tmp_path / "run", make_config(pair_dirs, training=FAST)
    runner = AdapterTrainingRunner(config, out)
    runner._write_metrics = _StopAt(runner, border + after_border)  # type: ignore[method-assign]
    with pytest.raises(StopTraining, match=f"Stopped at step {border + after_border} of"):
        runner.run()
    assert_same_bits(train(config, out), adapters)
    losses = [[row["losses/overall_loss"] for row in rows(run)] for run in (out, reference)]
    assert losses[0] == losses[1]


_TRAIN = """
import sys
from pathlib import Path
from tc_adapters_lens.training.config import TrainingConfig
from tc_adapters_lens.training.runner import train
train(TrainingConfig.from_yaml(Path(sys.argv[1]).read_text()), sys.argv[2])
"""


def test_kill_minus_nine_then_the_same_command_gives_the_same_bits(pair_dirs, tmp_path) -> None:
    config = make_config(pair_dirs, training={"training_tokens": 6000, "n_checkpoints": 30})
    (tmp_path / "config.yaml").write_text(config.to_yaml())
    out = tmp_path / "run"
    for n_rows in (20, 80):
        process = subprocess.Popen([sys.executable, "-c", _TRAIN, str(tmp_path / "config.yaml"), str(out)])
        deadline = time.monotonic() + 120
        while not (out / "metrics.jsonl").exists() or len((out / "metrics.jsonl").read_text().splitlines()) < n_rows:
            assert process.poll() is None, "ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.kill()
        assert process.wait() == -signal.SIGKILL
        assert newest_checkpoint(out) is not None
    assert_same_bits(train(config, out), train(config, tmp_path / "uninterrupted"))


def test_another_configuration_is_refused_in_the_same_directory(pair_dirs, finished) -> None:
    changed = make_config(pair_dirs, training={"lr": 2e-2})
    with pytest.raises(ConfigError, match=r"training.lr is 0.01 there. Got 0.02"):
        train(changed, finished[0])


def test_a_directory_with_something_else_is_refused(pair_dirs, tmp_path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(ConfigError, match="not a run and not empty"):
        train(make_config(pair_dirs), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def interrupted_run(pair_dirs, out: Path) -> TrainingConfig:
    config = make_config(pair_dirs)
    runner = AdapterTrainingRunner(config, out)
    runner._write_metrics = _StopAt(runner, 12)  # type: ignore[method-assign]
    with pytest.raises(StopTraining):
        runner.run()
    return config


def test_other_data_on_resume_is_refused(pair_dirs, tmp_path) -> None:
    base, target, data = pair_dirs
    copy = tmp_path / "tokens.jsonl"
    copy.write_text(data.read_text())
    config = interrupted_run((base, target, copy), tmp_path / "run")
    copy.write_text("\n".join(reversed(data.read_text().splitlines())))
    with pytest.raises(DataError, match=r"same data \("):
        train(config, tmp_path / "run")


def test_a_resumed_run_tokenises_nothing(pair_dirs, finished, tmp_path, monkeypatch) -> None:
    config = interrupted_run(pair_dirs, tmp_path / "run")

    def refuse(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr("tc_adapters_lens.training.data._tokenise", refuse)
    assert_same_bits(train(config, tmp_path / "run"), finished[1])


@pytest.mark.parametrize("file", ["trainer_state.safetensors", "sae_weights.safetensors", "trainer_state.json"])
def test_a_corrupt_checkpoint_is_one_line_that_names_it(pair_dirs, tmp_path, file) -> None:
    config = interrupted_run(pair_dirs, tmp_path / "run")
    checkpoint = newest_checkpoint(tmp_path / "run")
    damaged = (checkpoint / file).read_bytes()
    (checkpoint / file).write_bytes(damaged[: len(damaged) // 2])
    with pytest.raises(AdapterSetError, match="Delete it to resume") as caught:
        train(config, tmp_path / "run")
    assert str(checkpoint) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_full_disk_leaves_the_last_checkpoint(pair_dirs, finished, tmp_path, monkeypatch) -> None:
    config = interrupted_run(pair_dirs, tmp_path / "run")
    before = sorted((tmp_path / "run" / "checkpoints").iterdir())

    def full(*_args: object, **_kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("tc_adapters_lens.training.trainer.save_file", full)
        with pytest.raises(AdapterSetError, match="no space left"):
            train(config, tmp_path / "run")
    assert sorted((tmp_path / "run" / "checkpoints").iterdir()) == before
    assert_same_bits(train(config, tmp_path / "run"), finished[1])


def test_non_finite_loss_stops_the_run(pair_dirs, tmp_path) -> None:
    with pytest.raises(DataError, match="must stay finite"):
        train(make_config(pair_dirs, training={"lr": 1e30}), tmp_path / "run")


def test_warm_start_begins_where_the_other_run_ended(pair_dirs, finished, tmp_path) -> None:
    config = make_config(pair_dirs, warm_start=str(finished[0] / "adapters"))
    runner = AdapterTrainingRunner(config, tmp_path / "run")
    assert torch.equal(runner.sae.W_dec.detach(), finished[1].state()["W_dec"])
    with pytest.raises(AdapterSetError, match="3 layers of 8 features"):
        AdapterTrainingRunner(
            make_config(pair_dirs, warm_start=config.warm_start, adapters={"n_features": 8}), tmp_path / "b"
        )


def test_training_refuses_a_pair_with_something_attached(pair_dirs, finished, tmp_path) -> None:
    model = load_pair(*map(str, pair_dirs[:2]))
    with model.adapters(finished[1]), pytest.raises(ConfigError, match="nothing attached"):
        train(make_config(pair_dirs), tmp_path / "run", model)


def test_bf16_models_train_float32_adapters(pair_dirs, tmp_path) -> None:
    adapters = train(make_config(pair_dirs, dtype="bfloat16"), tmp_path / "run")
    assert adapters.dtype == torch.float32
    metrics = rows(tmp_path / "run")
    assert sum(r["losses/kl"] for r in metrics[-5:]) < 0.75 * sum(r["losses/kl"] for r in metrics[:5])


def test_wandb_offline_logs_stock_keys(pair_dirs, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    seen: dict[str, object] = {}
    log = wandb.Run.log
    monkeypatch.setattr(wandb.Run, "log", lambda run, values, *a, **k: (seen.update(values), log(run, values, *a, **k)))
    train(make_config(pair_dirs, logger={"log_to_wandb": True}), tmp_path / "run")
    assert {"losses/overall_loss", "metrics/l0", "sparsity/dead_features"} <= set(seen)
    assert {"details/current_learning_rate", "plots/feature_density_line_chart"} <= set(seen)
    assert list((tmp_path / "run" / "wandb").iterdir())


def test_a_run_that_cannot_begin_leaves_no_directory(pair_dirs, tmp_path) -> None:
    with pytest.raises(DataError):
        train(make_config(pair_dirs, data={"path": str(tmp_path / "absent.jsonl")}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_other_weights_on_resume_are_refused(pair_dirs, tmp_path) -> None:
    base, target, data = pair_dirs
    shutil.copytree(target, tmp_path / "target")
    config = interrupted_run((base, tmp_path / "target", data), tmp_path / "run")
    save(nudged(tiny_pair()[1], 0.01, seed=5), tmp_path / "target")
    with pytest.raises(DataError, match="same target"):
        train(config, tmp_path / "run")
