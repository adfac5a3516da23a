"""An evaluation that was killed goes on from where it last said so."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

from jaxtyping import Bool, Int
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from tc_adapters_lens.evaluation.bootstrap import Sums
from tc_adapters_lens.models.atomic import atomic_file

Batch = tuple[Int[Tensor, "batch pos"], Bool[Tensor, "batch pos"]]
"""Tokens, padded on the right, and the mask: True where a position counts."""


class Progress:
    """Keeps what was added up so far in a file, and takes it from there.

    Args:
        file: where; None keeps nothing. Removed once all batches are through.
        key: says what is measured on what; sums under another key are of no use and are written over.
        seconds: time between two writes, which are made between batches only.
    """

    def __init__(self, file: Path | None = None, key: str = "", seconds: float = 60) -> None:
        self.file, self.key, self.seconds = file, key, seconds

    def over(self, batches: Iterable[Batch], sums: Sums) -> Iterator[Batch]:
        """The batches that `sums` does not hold yet; the caller adds each before it takes the next.

        Args:
            batches: the same ones in the same order every time.
            sums: empty; filled with what the file holds.
        """
        n_done = self._load(sums)
        written = time.monotonic()
        for batch in islice(batches, n_done, None):
            yield batch
            n_done += 1
            if self.file is not None and time.monotonic() - written >= self.seconds:
                self._save(sums, n_done)
                written = time.monotonic()
        if self.file is not None:
            self.file.unlink(missing_ok=True)

    def _save(self, sums: Sums, n_done: int) -> None:
        assert self.file is not None
        about = {"key": self.key, "n_batches": str(n_done), "n_sequences": str(sums.n_sequences)}
        with atomic_file(self.file) as partial:
            save_file({name: tensor.contiguous() for name, tensor in sums.tensors.items()}, partial, about)

    def _load(self, sums: Sums) -> int:
        """Fills the sums; gives the number of batches in them."""
        if self.file is None or not self.file.exists():
            return 0
        try:
            with safe_open(self.file, "pt", device=str(sums.device)) as stored:
                about = stored.metadata() or {}
                if about.get("key") != self.key:
                    return 0
                sums.tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
                sums.n_sequences = int(about["n_sequences"])
                return int(about["n_batches"])
        except (SafetensorError, OSError):
            return 0
