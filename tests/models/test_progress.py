"""A killed evaluation goes on and ends in the same bits."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tc_adapters_lens.evaluation.bootstrap import Bootstrap, Sums
from tc_adapters_lens.models.progress import Progress

BATCHES = [(torch.full((2, 3), float(i)), torch.ones(2, 3, dtype=torch.bool)) for i in range(5)]


def run(progress: Progress, sums: Sums, kill_at: int | None = None) -> list[int]:
    """Adds batches; gives those it was asked to add."""
    added = []
    for tokens, _ in progress.over(BATCHES, sums):
        number = int(tokens[0, 0])
        if number == kill_at:
            raise KeyboardInterrupt
        sums.add({"x": tokens.sum(1), "counts": tokens}, fewer={"counts": 50})
        added.append(number)
    return added


@pytest.mark.parametrize("kill_at", [1, 4])
def test_goes_on_where_it_was(kill_at: int, tmp_path: Path) -> None:
    file = tmp_path / "sums.safetensors"
    whole, begun, resumed = (Sums(Bootstrap(100), "cpu") for _ in range(3))
    assert run(Progress(), whole) == [0, 1, 2, 3, 4]
    with pytest.raises(KeyboardInterrupt):
        run(Progress(file, "key", seconds=0), begun, kill_at)
    assert run(Progress(file, "key"), resumed) == list(range(kill_at, 5))
    for name in ("x", "counts"):
        assert torch.equal(resumed.tensors[name], whole.tensors[name])
    assert resumed.n_sequences == 10
    assert not file.exists()


@pytest.mark.parametrize("spoil", ["key", "file"])
def test_what_is_of_no_use_is_not_used(spoil: str, tmp_path: Path) -> None:
    file = tmp_path / "sums.safetensors"
    with pytest.raises(KeyboardInterrupt):
        run(Progress(file, "key", seconds=0), Sums(Bootstrap(100), "cpu"), kill_at=3)
    if spoil == "file":
        file.write_bytes(file.read_bytes()[:100])
    assert run(Progress(file, "another" if spoil == "key" else "key"), Sums(Bootstrap(100), "cpu")) == [0, 1, 2, 3, 4]


def test_nothing_is_written_before_its_time(tmp_path: Path) -> None:
    file = tmp_path / "sums.safetensors"
    with pytest.raises(KeyboardInterrupt):
        run(Progress(file, "key", seconds=60), Sums(Bootstrap(100), "cpu"), kill_at=4)
    assert not file.exists()
