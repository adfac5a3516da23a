"""Batches made ahead: the same ones, in order, with errors where they belong and no thread left behind."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch

from tc_adapters_lens.training.prefetch import Prefetch
from tc_adapters_lens.training.sequences import BatchPlan, TokenBatch, TokenSequences


@pytest.fixture
def plan() -> BatchPlan:
    rng = np.random.default_rng(0)
    lengths = rng.integers(2, 30, 41)
    sequences = TokenSequences.from_lists(
        [rng.integers(0, 1000, length) for length in lengths],
        [[True, *(rng.random(length - 1) > 0.4)] for length in lengths],
    )
    return BatchPlan(sequences, batch_size=3, training_tokens=1500)


def numbered(n: int) -> TokenBatch:
    tokens = torch.full((1, 1), n)
    return TokenBatch(tokens, tokens >= 0, torch.zeros(1, dtype=torch.int64))


def eventually(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 20
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.005)
    return condition()


def prefetching() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "prefetch"]


@pytest.fixture(autouse=True)
def _no_thread_is_left():
    yield
    assert eventually(lambda: not prefetching())


@pytest.mark.parametrize("start", [0, 1, 13, 14, -1])
@pytest.mark.parametrize("ahead", [1, 2, 100])
def test_the_same_batches_in_the_same_order(plan: BatchPlan, start: int, ahead: int):
    start %= plan.n_steps + 1
    expected = [plan.batch(step) for step in range(start, plan.n_steps)]
    ours = list(Prefetch(plan.batches(start), "cpu", ahead))
    assert len(ours) == len(expected)
    for batch, same in zip(ours, expected, strict=True):
        assert all(torch.equal(mine, theirs) for mine, theirs in zip(batch, same, strict=True))
        assert torch.equal(batch.positions, batch.mask.flatten().nonzero().flatten())


def test_makes_a_few_ahead_and_no_more():
    made = []

    def batches() -> Iterator[TokenBatch]:
        for n in range(100):
            made.append(n)
            yield numbered(n)

    with Prefetch(batches(), ahead=3) as prefetched:
        assert eventually(lambda: len(made) == 3)
        time.sleep(0.05)
        assert len(made) == 3
        assert int(next(prefetched).tokens) == 0
        assert eventually(lambda: len(made) == 4)
        time.sleep(0.05)
        assert len(made) == 4


def test_runs_beside_its_consumer():
    with Prefetch(map(numbered, range(3))) as prefetched:
        (thread,) = prefetching()
        assert thread is not threading.current_thread()
        assert [int(batch.tokens) for batch in prefetched] == [0, 1, 2]


def test_an_error_arrives_in_its_place_with_its_traceback():
    def reading_row_two() -> Iterator[TokenBatch]:
        yield numbered(0)
        yield numbered(1)
        raise ValueError("row 2 is broken")

    prefetched = Prefetch(reading_row_two())
    assert [int(next(prefetched).tokens) for _ in range(2)] == [0, 1]
    with pytest.raises(ValueError, match="row 2 is broken") as caught:
        next(prefetched)
    assert "reading_row_two" in "".join(traceback.format_tb(caught.tb))
    assert not prefetching()
    with pytest.raises(StopIteration):
        next(prefetched)


def test_the_end_stays_the_end():
    prefetched = Prefetch(iter([numbered(0)]))
    assert len(list(prefetched)) == 1
    assert list(prefetched) == []


@pytest.mark.parametrize("n_taken", [0, 1, 5])
def test_ends_when_the_consumer_stops_early(n_taken: int):
    def forever() -> Iterator[TokenBatch]:
        n = 0
        while True:
            yield numbered(n)
            n += 1

    def consume(prefetched: Prefetch) -> None:
        with prefetched:
            for _ in range(n_taken):
                next(prefetched)
            assert prefetching()
            raise KeyboardInterrupt

    prefetched = Prefetch(forever())
    with pytest.raises(KeyboardInterrupt):
        consume(prefetched)
    assert not prefetching()
    prefetched.close()
    assert list(prefetched) == []


def test_ends_when_nobody_holds_it():
    prefetched = Prefetch(map(numbered, range(100)))
    next(prefetched)
    assert prefetching()
    del prefetched
    gc.collect()
    assert not prefetching()


_LEAVES_IT_OPEN = """
import torch
from tc_adapters_lens.training.prefetch import Prefetch
from tc_adapters_lens.training.sequences import TokenSequences

batch = TokenSequences.from_lists([[1, 2]], [[True, True]]).batch([0])
prefetched = Prefetch(batch for _ in iter(int, 1))
next(prefetched)
{how}
print("end")
"""


@pytest.mark.parametrize("how", ["", "prefetched.itself = prefetched; del prefetched"])
def test_the_interpreter_ends(how: str):
    done = subprocess.run(
        [sys.executable, "-c", _LEAVES_IT_OPEN.format(how=how)], capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "end\n", "")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_copies_are_those_batches(plan: BatchPlan):
    for batch, same in zip(Prefetch(plan.batches(), "cuda"), plan.batches(), strict=True):
        assert {part.device.type for part in batch} == {"cuda"}
        assert all(torch.equal(mine.cpu(), theirs) for mine, theirs in zip(batch, same, strict=True))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_is_never_waited_for(plan: BatchPlan):
    torch.cuda.set_sync_debug_mode("error")
    try:
        assert sum(len(batch.positions) for batch in Prefetch(plan.batches(), "cuda")) == plan.n_tokens
    finally:
        torch.cuda.set_sync_debug_mode("default")
