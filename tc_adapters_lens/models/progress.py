"""Sums over batches that were interrupted go on from where they last were kept."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Protocol, TypeVar

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from tc_adapters_lens.models.atomic import atomic_file

Batch = TypeVar("Batch")

_MOST_OF_TIME = 20  # writing takes at most one part in so many


class Summing(Protocol):
    """What is added up: all of it as tensors by name."""

    def state(self) -> dict[str, Tensor]: ...

    def load_state(self, tensors: Mapping[str, Tensor]) -> None: ...


class Progress:
    """Keeps what was added up so far in a file, and takes it from there.

    Args:
        file: where; None keeps nothing. Removed once all batches are through.
        key: says what is added up of what; sums under another key are of no use and are written over.
        seconds: least time between two writes, which are made between batches only; 0: after every batch.
    """

    def __init__(self, file: Path | None = None, key: str = "", seconds: float = 60) -> None:
        self.file, self.key, self.seconds = file, key, seconds

    def over(self, batches: Iterable[Batch], sums: Summing) -> Iterator[Batch]:
        """The batches that `sums` does not hold yet; the caller adds each before it takes the next.

        Args:
            batches: the same ones in the same order every time.
            sums: empty; filled with what the file holds.
        """
        n_done = self._load(sums)
        written, pause = time.monotonic(), self.seconds
        for batch in islice(batches, n_done, None):
            yield batch
            n_done += 1
            if self.file is not None and time.monotonic() - written >= pause:
                began = time.monotonic()
                self._save(sums, n_done)
                written = time.monotonic()
                pause = self.seconds and max(self.seconds, _MOST_OF_TIME * (written - began))
        if self.file is not None:
            self.file.unlink(missing_ok=True)

    def _save(self, sums: Summing, n_done: int) -> None:
        assert self.file is not None
        about = {"key": self.key, "n_batches": str(n_done)}
        with atomic_file(self.file) as partial:
            save_file({name: tensor.contiguous() for name, tensor in sums.state().items()}, partial, about)

    def _load(self, sums: Summing) -> int:
        """Fills the sums; gives the number of batches in them."""
        if self.file is None or not self.file.exists():
            return 0
        try:
            with safe_open(self.file, "pt") as stored:
                about = stored.metadata() or {}
                if about.get("key") != self.key:
                    return 0
                sums.load_state({name: stored.get_tensor(name) for name in stored.keys()})  # noqa: SIM118
                return int(about["n_batches"])
        except (SafetensorError, OSError):
            return 0
