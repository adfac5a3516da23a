"""The next batches, made in a background thread while the device works on the present one.

A thread and not torch's DataLoader: making a batch copies a few sequences, which costs less than handing it over
from another process, and worker processes would have to be forked beside CUDA and the tokenizers' threads, or take
seconds to start. Sequences of 7,500 tokens, two cores: 0.05 ms a batch and 4 ms to the first one here; 1.7 ms and
27 ms (forked) or 1,430 ms (spawned) with one DataLoader worker.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator
from queue import SimpleQueue
from types import TracebackType
from typing import TypeAlias

import torch
from typing_extensions import Self

from tc_adapters_lens.training.sequences import TokenBatch

__all__ = ["Prefetch"]

_PATIENCE_S = 10.0  # garbage may be collected where the thread waits for a lock of the one who collects
_Item: TypeAlias = "TokenBatch | BaseException | None"  # a batch, what went wrong, or the end


class Prefetch(Iterator[TokenBatch]):
    """The batches of an iterator, in its order, on a device; some are made ahead, in pinned memory where that helps.

        with Prefetch(plan.batches(step), model.cfg.device) as batches:
            for tokens, mask, positions in batches:

    An exception of the iterator is raised where its batch would have come, with its own traceback. The thread ends
    with the iterator, with `close`, when this object is collected, and when the interpreter exits.

    Args:
        batches: used in the thread alone, hence by nobody else.
        device: where the batches go.
        ahead: most batches that wait.
    """

    def __init__(self, batches: Iterator[TokenBatch], device: torch.device | str | None = None, ahead: int = 2) -> None:
        assert ahead >= 1
        self.device = torch.device(device or "cpu")
        self._ready: SimpleQueue[_Item] = SimpleQueue()
        self._room = threading.Semaphore(ahead)
        self._stop = threading.Event()
        arguments = batches, self._ready, self._room, self._stop, self.device.type == "cuda"
        # The thread knows the parts and not this object, which would otherwise never be collected.
        self._thread = threading.Thread(target=_make, args=arguments, name="prefetch", daemon=True)
        self._thread.start()
        self.close = weakref.finalize(self, _end, self._thread, self._room, self._stop)

    def __next__(self) -> TokenBatch:
        """The next batch; on CUDA its copy has been started, which the current stream waits for by itself.

        Raises:
            StopIteration: there are no more, or this was closed.
        """
        if self._stop.is_set():
            raise StopIteration
        item = self._ready.get()
        self._room.release()
        if isinstance(item, TokenBatch):
            return TokenBatch(*(part.to(self.device, non_blocking=True) for part in item))
        self.close()
        if item is None:
            raise StopIteration
        try:
            raise item
        finally:
            del item  # the traceback holds this frame: no cycle

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def _make(
    batches: Iterator[TokenBatch],
    ready: SimpleQueue[_Item],
    room: threading.Semaphore,
    stop: threading.Event,
    pin: bool,
) -> None:
    try:
        while True:
            room.acquire()
            if stop.is_set():
                return
            batch = next(batches)
            ready.put(TokenBatch(*(part.pin_memory() for part in batch)) if pin else batch)
    except StopIteration:
        ready.put(None)
    except BaseException as error:
        ready.put(error)


def _end(thread: threading.Thread, room: threading.Semaphore, stop: threading.Event) -> None:
    stop.set()
    room.release()
    if thread is not threading.current_thread():  # it collects garbage too
        thread.join(timeout=_PATIENCE_S)
