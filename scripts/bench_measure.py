"""How scripts/bench_train measures: seconds, bytes, operations, and shares of a step's parts."""

from __future__ import annotations

import gc
import itertools
import os
import statistics
import time
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop, sdpa_flop

from scripts.bench_steps import PARTS, Contender, Floor

OTHER, IDLE = "the rest", "no kernel running"  # of a step's time, beside PARTS

_CPU_ATTENTION = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_FLOPS: dict[Any, Callable[..., int]] = {
    **flop_registry,
    _CPU_ATTENTION: sdpa_flop,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: sdpa_backward_flop,
}


def wait_for(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


class Seconds(NamedTuple):
    """What a run took: by the clock, and of the processor's time in all threads, which a busy machine changes less."""

    wall: float
    processor: float


def alternate(runs: Mapping[str, Callable[[], object]], repeats: int, device: str) -> dict[str, list[Seconds]]:
    """What every run took in every repetition; the runs take turns."""
    seconds: dict[str, list[Seconds]] = {name: [] for name in runs}
    gc.collect()
    gc.freeze()  # what is there already need not be looked through before every run
    for _ in range(repeats):
        for name, run in runs.items():
            gc.collect()
            wait_for(device)
            before = time.perf_counter(), time.process_time()
            run()
            wait_for(device)
            seconds[name].append(Seconds(time.perf_counter() - before[0], time.process_time() - before[1]))
    gc.unfreeze()
    return seconds


def median_ratio(ours: Sequence[float], other: Sequence[float]) -> float:
    """Of two rows of repetitions: the median of the ratios within a repetition."""
    return statistics.median(a / b for a, b in zip(ours, other, strict=True))


class Watch(TorchDispatchMode):
    """Counts what is done inside.

    Attributes:
        now, peak: bytes of the storages that were made inside, at present and at most.
        matmul_flops: floating point operations of matmuls.
        attention_flops: those of fused attention kernels, as if every position attended to every other one.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = self.matmul_flops = self.attention_flops = 0
        self._made: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = {id(storage) for storage in _storages((args, kwargs))}
        out = func(*args, **kwargs)
        for storage in _storages(out):
            if id(storage) not in given and id(storage) not in self._made:
                self._made[id(storage)] = storage.nbytes()
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self._forget, id(storage))
        if (count := _FLOPS.get(func.overloadpacket)) is not None:
            flops = count(*args, **kwargs, out_val=out)
            if "dot_product" in func.overloadpacket.__name__:
                self.attention_flops += flops
            else:
                self.matmul_flops += flops
        return out

    def _forget(self, key: int) -> None:
        self.now -= self._made.pop(key)


def _storages(tree: Any) -> list[torch.UntypedStorage]:
    tensors = [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]
    parts = [(t.crow_indices(), t.col_indices(), t.values()) if t.layout == torch.sparse_csr else (t,) for t in tensors]
    return [part.untyped_storage() for group in parts for part in group]


def n_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of the storages behind tensors, each counted once."""
    return sum({storage.data_ptr(): storage.nbytes() for storage in _storages(list(tensors))}.values())


def watched_step(contender: Contender, tokens: Tensor, cutoff: int) -> tuple[Watch, int]:
    """One step, counted, and the bytes that it holds at most above what is there before it.

    On CUDA bytes are those of torch's allocator.
    """
    contender.forget_gradients()
    on_cuda = contender.subject.shape.device.startswith("cuda")
    peak = 0
    if on_cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        contender.step(tokens, cutoff)
        peak = torch.cuda.max_memory_allocated() - before
        contender.forget_gradients()
    with Watch() as watch:
        contender.step(tokens, cutoff)
    return watch, peak if on_cuda else watch.peak


def saved_bytes(run: Callable[[], Tensor], known: Iterable[Tensor]) -> int:
    """Bytes that a forward pass keeps for backward, each storage once, without those of the known tensors."""
    excluded = {tensor.untyped_storage().data_ptr() for tensor in known}
    saved: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in excluded:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = run()
    del out
    gc.collect()
    return sum(saved.values())


def available_bytes(device: str) -> int:
    if device.startswith("cuda"):
        cached = torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
        return torch.cuda.mem_get_info()[0] + cached
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except OSError:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def refusal(contender: Contender, tokens: Tensor, cutoff: int) -> str:
    """Why a step would not fit; empty if it does. Extrapolated from an eighth and a quarter of the length."""
    length = tokens.size(1)
    if isinstance(contender, Floor) or length < 256:
        return ""
    eighth, quarter = (watched_step(contender, tokens[:, : length // n], cutoff)[0].peak for n in (8, 4))
    quadratic = max(0.0, 32 * quarter - 64 * eighth)  # bytes = a length + b length^2
    needed = 8 * eighth - quadratic / 8 + quadratic
    room = available_bytes(contender.subject.shape.device)
    return f"needs about {needed / 2**30:.1f} GiB of {room / 2**30:.1f} available" if needed * 1.1 > room else ""


def shares(contender: Contender, tokens: Tensor, cutoff: int) -> dict[str, float]:
    """Share of a step's time for every part, by the profiler ranges of that name.

    On the CPU a range's own time. On CUDA the time of the kernels that were launched during it, from any thread.
    """
    device = contender.subject.shape.device
    on_cuda = device.startswith("cuda")
    wait_for(device)
    with profile(activities=[ProfilerActivity.CPU, *[ProfilerActivity.CUDA] * on_cuda]) as profiler:
        started = time.perf_counter()
        contender.step(tokens, cutoff)
        wait_for(device)
        total = (time.perf_counter() - started) * 1e6
    events: Any = profiler.events()
    ranges = [event for event in events if event.name in PARTS and event.device_type == DeviceType.CPU]
    ranges.sort(key=lambda event: event.time_range.start)
    if not ranges:
        return {}

    def part_at(moment: float) -> str:
        around = [e for e in ranges if e.time_range.start <= moment < e.time_range.end]
        return around[-1].name if around else OTHER

    taken: dict[str, float] = dict.fromkeys((*PARTS, OTHER), 0.0)
    if on_cuda:
        for event in events:
            for kernel in event.kernels:
                taken[part_at(event.time_range.start)] += kernel.duration
        taken[IDLE] = max(0.0, total - sum(taken.values()))
    else:
        moments = sorted({m for e in ranges for m in (e.time_range.start, e.time_range.end)})
        for start, end in itertools.pairwise(moments):
            taken[part_at(start)] += end - start
        taken[OTHER] += total - sum(taken.values())
    return {part: value / sum(taken.values()) for part, value in taken.items()}
