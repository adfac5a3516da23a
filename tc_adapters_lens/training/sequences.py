"""Token sequences held flat in memory, and the order in which training takes them.

A mask is True at the positions that count. Every loss and statistic is a mean over those: the two models'
next-token distributions and residual streams are compared AT a counted token. Padding never counts; with
`loss_on: response` only the tokens of responses do.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

__all__ = ["BatchPlan", "TokenBatch", "TokenSequences", "deal"]

PAD_ID = 0  # any valid id: padding is on the right, where causal attention keeps it from every counted position


class TokenBatch(NamedTuple):
    """Sequences of one step, padded on the right.

    tokens: token ids, int64.
    mask: True where a position counts; False at padding.
    positions: where the flattened mask is True, int64: known without asking the device.
    """

    tokens: Int[Tensor, "batch pos"]
    mask: Bool[Tensor, "batch pos"]
    positions: Int[Tensor, " n_counted"]


class TokenSequences:
    """Sequences of different lengths in two flat arrays: 5 bytes a token.

    Args:
        tokens: all sequences' token ids, one after another, int32.
        mask: True where a position counts, same length.
        offsets: where each sequence starts, and the total length at the end.
        fingerprint: theirs, where it is known already.
        rows: the dataset's row that each sequence is, int64; None where sequences are not rows (packed).
    """

    def __init__(
        self,
        tokens: np.ndarray,
        mask: np.ndarray,
        offsets: np.ndarray,
        fingerprint: str | None = None,
        rows: np.ndarray | None = None,
    ) -> None:
        assert len(tokens) == len(mask) == offsets[-1]
        assert offsets[0] == 0
        assert rows is None or len(rows) == len(offsets) - 1
        self.tokens = tokens.astype(np.int32, copy=False)
        self.mask = mask.astype(np.bool_, copy=False)
        self.offsets = offsets.astype(np.int64, copy=False)
        self.rows = None if rows is None else rows.astype(np.int64, copy=False)
        self._fingerprint = fingerprint

    @classmethod
    def from_lists(
        cls,
        tokens: Iterable[np.ndarray | list[int]],
        masks: Iterable[np.ndarray | list[bool]],
        rows: list[int] | None = None,
    ) -> TokenSequences:
        """From one array of ids and one of flags per sequence, and the row each of them is."""
        parts = [np.asarray(part, dtype=np.int32) for part in tokens]
        flags = [np.asarray(part, dtype=np.bool_) for part in masks]
        offsets = np.cumsum([0, *map(len, parts)])
        empty = np.zeros(0, dtype=np.int32)
        ids, mask = np.concatenate([empty, *parts]), np.concatenate([empty.astype(np.bool_), *flags])
        return cls(ids, mask, offsets, rows=None if rows is None else np.asarray(rows, dtype=np.int64))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Token ids (int32) and mask (bool) of one sequence; views, not copies."""
        index = range(len(self))[index]
        span = slice(self.offsets[index], self.offsets[index + 1])
        return self.tokens[span], self.mask[span]

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each sequence."""
        return np.diff(self.offsets)

    @property
    def n_counted(self) -> np.ndarray:
        """Unmasked tokens of each sequence."""
        counted = np.zeros(len(self), dtype=np.int64)
        filled = self.lengths > 0
        counted[filled] = np.add.reduceat(self.mask, self.offsets[:-1][filled], dtype=np.int64) if filled.any() else 0
        return counted

    def batch(self, indices: Iterable[int]) -> TokenBatch:
        """The given sequences, padded on the right to the longest; of none, one padded position."""
        chosen = [self[index] for index in indices]
        shape = max(1, len(chosen)), max((len(tokens) for tokens, _ in chosen), default=1)
        tokens = np.full(shape, PAD_ID, dtype=np.int64)
        mask = np.zeros(shape, dtype=np.bool_)
        for row, (sequence, counted) in enumerate(chosen):
            tokens[row, : len(sequence)] = sequence
            mask[row, : len(sequence)] = counted
        positions = np.flatnonzero(mask).astype(np.int64, copy=False)
        return TokenBatch(torch.from_numpy(tokens), torch.from_numpy(mask), torch.from_numpy(positions))

    def fingerprint(self) -> str:
        """sha256 of all ids, masks and boundaries: a resumed run can tell that its data is the same."""
        if self._fingerprint is None:
            digest = hashlib.sha256()
            for array in (self.offsets, self.tokens, self.mask):
                digest.update(np.ascontiguousarray(array).data)
            self._fingerprint = f"sha256:{digest.hexdigest()}"
        return self._fingerprint


def deal(lengths: Int[np.ndarray, " n_sequences"], n_shares: int) -> list[list[int]]:
    """Sequences dealt out so that the shares, each padded to its longest sequence, are of similar size.

    The longest comes first; each goes where the padded share is then smallest. With as many sequences as shares, or
    more, no share is empty.

    Args:
        lengths: tokens of each sequence.
        n_shares: how many shares, at least 1.
    Returns:
        Per share the positions in `lengths`, in order; all of them in the only share.
    """
    shares: list[list[int]] = [[] for _ in range(n_shares)]
    longest = [0] * n_shares
    for index in np.argsort(-np.asarray(lengths), kind="stable").tolist():
        sizes = [(len(share) + 1) * (most or int(lengths[index])) for share, most in zip(shares, longest, strict=True)]
        chosen = sizes.index(min(sizes))
        shares[chosen].append(index)
        longest[chosen] = longest[chosen] or int(lengths[index])
    return [sorted(share) for share in shares]


class BatchPlan:
    """Which sequences each step takes: a pure function of the arguments, so that a run resumes exactly.

    Epoch e visits all sequences once, in the order that NumPy's PCG64 seeded with [seed, e] permutes them;
    steps are consecutive groups of `batch_size`, the last of an epoch may be smaller. Every sequence must
    have a token that counts. Where several processes share a run, each takes its share of every step (`deal`).

    Args:
        sequences: what to train on.
        batch_size: sequences per step.
        training_tokens: end with the step in which this many unmasked tokens are reached, after as many
            epochs as that takes; None: one epoch.
        seed: of the orders.
        rank, n_processes: whose share `batch` and `batches` give; everything else is about whole steps.

    Attributes:
        n_steps: steps of the whole plan.
        n_tokens: unmasked tokens of the whole plan.
        steps_per_epoch: steps of a full epoch.
        n_epochs: epochs, the last one counted by how much of it is used.
    """

    def __init__(
        self,
        sequences: TokenSequences,
        batch_size: int,
        training_tokens: int | None = None,
        seed: int = 42,
        rank: int = 0,
        n_processes: int = 1,
    ) -> None:
        self.sequences = sequences
        self.batch_size = batch_size
        self.seed = seed
        self.rank, self.n_processes = rank, n_processes
        self._lengths = sequences.lengths
        self.steps_per_epoch = -(-len(sequences) // batch_size)
        self._counted = sequences.n_counted
        self._order: tuple[int, np.ndarray] | None = None
        per_epoch = int(self._counted.sum())
        assert per_epoch > 0, "a plan needs a token that counts"
        full_epochs, rest = (1, 0) if training_tokens is None else divmod(training_tokens, per_epoch)
        self.n_steps = full_epochs * self.steps_per_epoch
        self.n_tokens = full_epochs * per_epoch
        if rest:
            reached = np.cumsum(self._tokens_per_step(full_epochs))
            steps = int(np.searchsorted(reached, rest)) + 1
            self.n_steps += steps
            self.n_tokens += int(reached[steps - 1])

    @property
    def n_epochs(self) -> float:
        return self.n_steps / self.steps_per_epoch

    def __len__(self) -> int:
        return self.n_steps

    def indices(self, step: int) -> np.ndarray:
        """Which sequences a step takes.

        Raises:
            IndexError: the plan has no such step.
        """
        if not 0 <= step < self.n_steps:
            raise IndexError(f"the plan has steps 0 to {self.n_steps - 1}. Got {step}.")
        epoch, step_of_epoch = divmod(step, self.steps_per_epoch)
        start = step_of_epoch * self.batch_size
        return self._epoch_order(epoch)[start : start + self.batch_size]

    def batch(self, step: int) -> TokenBatch:
        """The share of this process in any step, in any order; with nothing that counts if the step has too few
        sequences for all processes."""
        chosen = self.indices(step)
        share = deal(self._lengths[chosen], self.n_processes)[self.rank]
        return self.sequences.batch(chosen[share])

    def batches(self, start_step: int = 0) -> Iterator[TokenBatch]:
        """The batches from a step to the end of the plan."""
        return map(self.batch, range(start_step, self.n_steps))

    def n_tokens_in(self, step: int) -> int:
        """Unmasked tokens of a step, over all processes."""
        return int(self._counted[self.indices(step)].sum())

    def _tokens_per_step(self, epoch: int) -> np.ndarray:
        starts = np.arange(0, len(self.sequences), self.batch_size)
        return np.add.reduceat(self._counted[self._epoch_order(epoch)], starts)

    def _epoch_order(self, epoch: int) -> np.ndarray:
        known = self._order  # read once: batches are made in another thread
        if known is None or known[0] != epoch:
            generator = np.random.Generator(np.random.PCG64([self.seed, epoch]))
            known = self._order = epoch, generator.permutation(len(self.sequences))
        return known[1]
