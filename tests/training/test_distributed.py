"""Training on several processes, which a real torchrun starts: the same result as on one, and clean ends."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tc_adapters_lens.errors import StopTraining
from tc_adapters_lens.models.adapter_set import AdapterSet
from tc_adapters_lens.models.dense_weights import DenseWeights
from tc_adapters_lens.models.pair import load_pair
from tc_adapters_lens.training.config import TrainingConfig
from tc_adapters_lens.training.runner import AdapterTrainingRunner, train
from tests.tiny import D_VOCAB, save, tiny_pair, word_tokenizer

ROOT = Path(__file__).parents[2]
PROGRAM = Path(__file__).with_name("distributed_program.py")
N_SEQUENCES, BATCH = 61, 4  # the last step of an epoch has one sequence, and one process none


def make_config(root: Path, **training: object) -> TrainingConfig:
    values = {
        "base": str(root / "base"),
        "target": str(root / "target"),
        "device": "cpu",
        "data": {"path": str(root / "tokens.jsonl"), "loss_on": "response"},
        "adapters": {"n_features": 16},
        "objective": {"l1_coefficient": 1e-3, "l1_warm_up_steps": 5},
        "training": {"batch_size_prompts": BATCH, "lr": 5e-4, "n_checkpoints": 1, "training_tokens": 1000, **training},
        "logger": {"wandb_log_frequency": 1},
    }
    return TrainingConfig.from_dict(values)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved pair, and token sequences with prompts and responses of many lengths."""
    root = tmp_path_factory.mktemp("distributed")
    generator = torch.Generator().manual_seed(3)
    rows = [
        {
            "input_ids": torch.randint(3, D_VOCAB, (5 + 7 * i % 23,), generator=generator).tolist(),
            "prompt_length": i % 4,
        }
        for i in range(N_SEQUENCES)
    ]
    (root / "tokens.jsonl").write_text("\n".join(map(json.dumps, rows)))
    for name, model in zip(("base", "target"), tiny_pair(), strict=True):
        save(model, root / name, word_tokenizer())
    (root / "config.yaml").write_text(make_config(root).to_yaml())
    return root


_started: list[subprocess.Popen[str]] = []


def torchrun(*argv: str | Path) -> subprocess.Popen[str]:
    """Two processes of this program."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    _started.append(subprocess.Popen([*launcher, *map(str, argv)], env=env, **pipes))
    return _started[-1]


@pytest.fixture(scope="module", autouse=True)
def nothing_is_left_running() -> Iterator[None]:
    yield
    for process in _started:
        if process.poll() is None:
            process.terminate()
        process.communicate(timeout=60)


def torchrun_cli(*argv: str | Path) -> subprocess.Popen[str]:
    return torchrun("-m", "tc_adapters_lens.cli.main", "train", *argv)


def ends(process: subprocess.Popen[str]) -> tuple[int, list[str]]:
    """Exit code, and what the command line said, of all processes."""
    out, err = process.communicate(timeout=120)
    return process.returncode, [line for line in (out + err).splitlines() if line.startswith("tc-adapters:")]


def same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor], tolerance: float) -> None:
    assert set(ours) == set(theirs)
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, atol=tolerance, rtol=0, msg=lambda m, name=name: f"{name}: {m}")
    assert all(tensor.abs().max() > 0 for tensor in theirs.values())


def rows(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def stop_at(config: TrainingConfig, out: Path, step: int) -> None:
    """A run of this process alone, stopped after a step."""
    runner = AdapterTrainingRunner(config, out)
    write = runner._write_metrics

    def write_and_stop(row: dict) -> None:
        write(row)
        if row["step"] == step:
            os.kill(os.getpid(), signal.SIGTERM)

    runner._write_metrics = write_and_stop  # type: ignore[method-assign]
    with pytest.raises(StopTraining):
        runner.run()


@pytest.fixture(scope="module")
def one(root: Path) -> AdapterSet:
    """The run on one process."""
    adapters = train(make_config(root), root / "one")
    assert isinstance(adapters, AdapterSet)
    return adapters


@pytest.fixture(scope="module")
def two(root: Path) -> Path:
    """Where `distributed_program` left what two processes made."""
    stop_at(make_config(root), root / "resumed", 9)
    code, _ = ends(process := torchrun(PROGRAM, root))
    assert code == 0, process
    return root


def results(two: Path, name: str) -> list[dict[str, torch.Tensor]]:
    return [load_file(two / f"{name}.{rank}.safetensors") for rank in range(2)]


def seen(two: Path) -> list[dict]:
    return [json.loads((two / f"seen.{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.parametrize("name", ["two", "sharded", "recomputed", "resumed", "float64"])
def test_processes_hold_the_same_bits(two: Path, name: str) -> None:
    first, second = results(two, name)
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert all(
        torch.equal(first[key], tensor) for key, tensor in AdapterSet.load(two / name / "adapters").state().items()
    )


def test_two_processes_are_one_with_the_whole_batch(two: Path, one: AdapterSet) -> None:
    same(results(two, "two")[0], one.state(), 1e-6)
    shares = [share["positions"] for share in seen(two)]
    assert min(min(share) for share in shares) == 0
    assert [sum(step) for step in zip(*shares, strict=True)] == [
        b["details/n_training_samples"] - a["details/n_training_samples"]
        for a, b in zip([{"details/n_training_samples": 0}, *rows(two / "one")], rows(two / "one"), strict=False)
    ]


def test_in_float64(two: Path) -> None:
    model = load_pair(str(two / "base"), str(two / "target"), dtype=torch.float64)
    same(results(two, "float64")[0], train(make_config(two), two / "one64", model).state(), 1e-7)


def test_a_start_from_data_and_a_local_phase(two: Path) -> None:
    config = make_config(two, start="data", local_share=0.5)
    ours, theirs = results(two, "local_first")
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())
    same(ours, train(config, two / "one_local_first").state(), 1e-6)


def test_dense_weights(two: Path) -> None:
    ours, theirs = results(two, "mlps")
    saved = DenseWeights.load(two / "mlps" / "weights").tensors
    assert all(torch.equal(ours[name], theirs[name]) and torch.equal(ours[name], saved[name]) for name in saved)
    config = dataclasses.replace(make_config(two), trained="mlps")
    same(ours, dict(train(config, two / "one_mlps").tensors), 1e-6)


def test_logged_terms_and_statistics_are_those_of_the_whole_batch(two: Path, one: AdapterSet) -> None:
    ours, theirs = rows(two / "two"), rows(two / "one")
    assert len(ours) == len(theirs) > 16
    for row, expected in zip(ours, theirs, strict=True):
        del row["details/tokens_per_second"], expected["details/tokens_per_second"]
        assert row == pytest.approx(expected, rel=1e-4, abs=1e-6)
    newest = [max((two / name / "checkpoints").iterdir(), key=lambda path: int(path.name)) for name in ("two", "one")]
    state, expected = (load_file(path / "trainer_state.safetensors") for path in newest)
    assert torch.equal(state["tokens_since_fired"], expected["tokens_since_fired"])
    assert torch.equal(state["act_freq_scores"], expected["act_freq_scores"])


def test_one_process_began_and_two_went_on(two: Path, one: AdapterSet) -> None:
    same(results(two, "resumed")[0], one.state(), 1e-6)
    assert [row["step"] for row in rows(two / "resumed")] == [row["step"] for row in rows(two / "one")]


def test_sharded_weights(two: Path, one: AdapterSet) -> None:
    same(results(two, "sharded")[0], one.state(), 1e-6)
    same(results(two, "recomputed")[0], results(two, "sharded")[0], 0)  # with activation checkpointing
    train(make_config(two), two / "sharded")  # the directory is that of the same run, held in another way
    for process in seen(two):
        assert process["sharded"] == process["whole"] / 2


def test_processes_that_disagree_are_told(two: Path) -> None:
    for process in seen(two):
        assert process["other"].startswith("All processes must have the same seed. Got 0 (process 0) and 1 (process 1)")


@pytest.mark.slow
def test_a_batch_smaller_than_the_processes_is_one_line(root: Path) -> None:
    process = torchrun_cli("--config", root / "config.yaml", "--out", root / "x", "--training.batch_size_prompts", "1")
    code, lines = ends(process)
    assert code != 0
    (line,) = lines
    assert "at least the number of processes" in line
    assert "Got 1 (batch_size_prompts) and 2 (processes)" in line
    assert not (root / "x").exists()


def when_logged(process: subprocess.Popen[str], out: Path, n_rows: int, act: Callable[[], None]) -> None:
    """Act once a run has logged so many rows."""
    deadline = time.monotonic() + 100
    while not (out / "metrics.jsonl").exists() or len(rows_so_far(out)) < n_rows:
        assert process.poll() is None, ends(process)
        assert time.monotonic() < deadline
        time.sleep(0.01)
    act()


def rows_so_far(out: Path) -> list[str]:
    return (out / "metrics.jsonl").read_text().splitlines()


def workers(launcher: subprocess.Popen[str]) -> list[int]:
    """Process ids of a launcher's processes, by rank."""
    children = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
    ranks = {}
    for pid in map(int, children):
        env = dict(entry.partition("=")[::2] for entry in Path(f"/proc/{pid}/environ").read_text().split("\0"))
        if "RANK" in env:
            ranks[int(env["RANK"])] = pid
    return [ranks[rank] for rank in sorted(ranks)]


@pytest.fixture(scope="module")
def long_config(root: Path) -> Path:
    path = root / "long.yaml"
    path.write_text(make_config(root, training_tokens=6000).to_yaml())
    return path


def test_sigterm_stops_all_at_one_step_and_the_run_goes_on(root: Path, long_config: Path) -> None:
    out = root / "stopped"
    process = torchrun_cli("--config", long_config, "--out", out)
    when_logged(process, out, 5, lambda: process.send_signal(signal.SIGTERM))
    code, lines = ends(process)
    assert code != 0
    (line,) = lines
    assert "Stopped at step" in line
    assert "checkpoint saved" in line
    (_,) = (out / "checkpoints").iterdir()
    assert not (out / "adapters").exists()
    shutil.copytree(out, root / "stopped_by_two")

    expected = train(make_config(root, training_tokens=6000), root / "long").state()
    same(train(make_config(root, training_tokens=6000), root / "stopped_by_two").state(), expected, 1e-5)
    code, lines = ends(torchrun_cli("--config", long_config, "--out", out))
    assert (code, lines) == (0, [])
    same(AdapterSet.load(out / "adapters").state(), expected, 1e-5)


@pytest.mark.skipif(sys.platform != "linux", reason="finds processes in /proc")
def test_a_killed_process_ends_the_others_with_one_line(root: Path, long_config: Path) -> None:
    out = root / "killed"
    process = torchrun_cli("--config", long_config, "--out", out)
    when_logged(process, out, 5, lambda: os.kill(workers(process)[1], signal.SIGKILL))
    killed = time.monotonic()
    code, lines = ends(process)
    assert time.monotonic() - killed < 20
    assert code != 0
    (line,) = lines
    assert line.startswith("tc-adapters: error: Another process of this run ended")
    assert not (out / "adapters").exists()
