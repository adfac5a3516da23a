"""Several processes in one run, started by an existing launcher: torchrun or accelerate launch.

Every process holds all adapters and the frozen pair, and takes its share of each step's sequences. What it computes is
its share of the loss of the WHOLE batch, so gradients, terms and counts of processes simply add up. Every process then
makes the same optimizer step with the same bits; weights never travel.

DistributedDataParallel is not used. It follows one forward and one backward pass of one module and averages; a step
here makes several backward passes through the frozen pair, in whose hooks the adapters are read, and needs the sum of
their gradients once, after the last pass.

What a launcher says is read from RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT. Tensors on cards are
summed by NCCL, those on the CPU, and all that processes tell each other, by gloo, which notices at once when a process
is gone.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from typing_extensions import override

from tc_adapters_lens.errors import AdapterLensError, ConfigError

__all__ = ["LaunchedProcesses", "ProcessLostError", "Processes", "join", "leave", "speaks"]

_T = TypeVar("_T")
_PATIENCE = timedelta(days=1)  # how long processes wait while one reads data or writes; a lost one is noticed at once


class ProcessLostError(AdapterLensError):
    """Another process of the run ended, or cannot be reached."""


class Processes:
    """The processes of a run, seen from one of them. This class is a process alone: there is nobody to wait for.

    Attributes:
        rank: number of this process, 0 for the main one.
        n: how many there are.
    """

    rank: int = 0
    n: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this is the one that writes."""
        return self.rank == 0

    def device(self, name: str) -> str:
        """The device of this process, from a configuration's `device`.

        Raises:
            ConfigError: torch sees no such device, or it cannot be each process's own.
        """
        if name == "auto":
            return "cuda" if torch.cuda.is_available() else "cpu"
        if name.startswith("cuda") and not torch.cuda.is_available():
            raise ConfigError(f"device must be one that torch sees. Got {name} without a CUDA device. Use cpu or auto.")
        return name

    def sum_(self, *tensors: Tensor) -> None:
        """Add up each tensor over processes, in place; every process gets the same bits. Nothing waits for a card."""

    def summed(self, tensor: Tensor) -> Tensor:
        """The tensor itself, after `sum_`."""
        self.sum_(tensor)
        return tensor

    def barrier(self) -> None:
        """Wait until every process is here."""

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """Each node's first process runs the block before the others do, so that they find what it has stored."""
        yield

    def from_main(self, value: _T) -> _T:
        """The main process's value, on every process."""
        return value

    def require_same(self, values: Mapping[str, Any]) -> None:
        """Check that all processes have the same of everything named.

        Raises:
            ConfigError: the first thing that differs, with both values.
        """

    def stop_vote(self) -> Callable[[bool], bool]:
        """A function to call once per step with whether this process was asked to stop; says whether all shall.

        With several processes the answer is the one to the step before, so that nobody waits for it.
        """
        return lambda requested: requested

    def speaks(self) -> bool:
        """Whether the last line of the run is this process's to print: the first that asks, of all."""
        return True

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Inside the block the loss of another process is one line.

        Raises:
            ProcessLostError: in place of what gloo or NCCL raise.
        """
        yield


class LaunchedProcesses(Processes):
    """Several processes. Methods without a card's tensors must be called by all of them, in the same order.

    Args:
        store: where they met; None if the process group was made by somebody else.
    """

    def __init__(self, store: dist.Store | None) -> None:
        self.rank, self.n = dist.get_rank(), dist.get_world_size()
        self.local_rank = int(os.environ.get("LOCAL_RANK", self.rank))
        self._store = store
        hosts: Any = dist.new_group(backend="gloo", timeout=_PATIENCE)
        self._hosts: dist.ProcessGroup = hosts

    @override
    def device(self, name: str) -> str:
        device = super().device(name)
        if device == "cpu":
            return device
        if device != "cuda":
            raise ConfigError(
                f"device must be auto, cpu or cuda with several processes, each of which takes a card. Got {name}."
            )
        n_cards = torch.cuda.device_count()
        if self.local_rank >= n_cards:
            raise ConfigError(
                f"A node must have a card for each of its processes. Got {n_cards} cards and process "
                f"{self.local_rank + 1} of this node. Start fewer processes, or use --device cpu."
            )
        torch.cuda.set_device(self.local_rank)
        return f"cuda:{self.local_rank}"

    @override
    def sum_(self, *tensors: Tensor) -> None:
        with self.watched():
            for pending in [dist.all_reduce(tensor, async_op=True) for tensor in tensors]:
                assert pending is not None
                pending.wait()

    @override
    def barrier(self) -> None:
        with self.watched():
            dist.barrier(group=self._hosts)

    @override
    @contextmanager
    def main_first(self) -> Iterator[None]:
        if self.local_rank != 0:
            self.barrier()
        yield
        if self.local_rank == 0:
            self.barrier()

    @override
    def from_main(self, value: _T) -> _T:
        values = [value]
        with self.watched():
            dist.broadcast_object_list(values, src=0, group=self._hosts)
        return values[0]

    @override
    def require_same(self, values: Mapping[str, Any]) -> None:
        everybodys: list[Any] = [None] * self.n
        with self.watched():
            dist.all_gather_object(everybodys, dict(values), group=self._hosts)
        for rank, theirs in enumerate(everybodys):
            for what, value in everybodys[0].items():
                if theirs[what] != value:
                    raise ConfigError(
                        f"All processes must have the same {what}. Got {value} (process 0) and {theirs[what]} "
                        f"(process {rank}). Give every node the same files and command."
                    )

    @override
    def stop_vote(self) -> Callable[[bool], bool]:
        votes = torch.zeros(1, dtype=torch.int32)
        pending: dist.Work | None = None

        def vote(requested: bool) -> bool:
            nonlocal pending
            with self.watched():
                if pending is not None:
                    pending.wait()
                    if votes.item() > 0:
                        return True
                votes.fill_(int(requested))
                pending = dist.all_reduce(votes, group=self._hosts, async_op=True)
            return False

        return vote

    @override
    def speaks(self) -> bool:
        if self._store is None:
            return self.is_main
        try:
            return self._store.add("tc_adapters_lens/last_line", 1) == 1
        except RuntimeError:  # the process that kept the store is gone
            return True

    @override
    @contextmanager
    def watched(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            if not isinstance(error, dist.DistError) and "gloo" not in str(error):
                raise
            raise ProcessLostError(
                "Another process of this run ended before it was done. If it could say why, that is among the lines "
                "above. The same command again goes on from the newest checkpoint."
            ) from error


@functools.cache
def join() -> Processes:
    """The processes that a launcher started together with this one; the first call waits for all of them.

    Raises:
        ProcessLostError: they do not find each other.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return Processes()
    if dist.is_initialized():
        return LaunchedProcesses(None)
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() and dist.is_nccl_available() else "gloo"
    try:
        store, rank, world_size = next(dist.rendezvous("env://"))
        dist.init_process_group(backend, store=store, rank=rank, world_size=world_size)
        return LaunchedProcesses(store)
    except (RuntimeError, ValueError) as error:
        where = ":".join(os.environ.get(name, "?") for name in ("MASTER_ADDR", "MASTER_PORT"))
        raise ProcessLostError(
            f"{os.environ['WORLD_SIZE']} processes must find each other at {where}. Got "
            f"{str(error).partition(chr(10))[0]}. Start them with torchrun or accelerate launch."
        ) from error


def leave() -> None:
    """End what `join` began, at the end of a program: everybody has to be here."""
    join().barrier()
    if dist.is_initialized():
        dist.destroy_process_group()
    join.cache_clear()


def speaks() -> bool:
    """Whether the last line of the run is this process's to print. Before the processes have joined it is the main
    one's."""
    return join().speaks() if join.cache_info().currsize else os.environ.get("RANK", "0") == "0"
