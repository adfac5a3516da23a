"""What became of a dataset's rows: counted while they are encoded, then told in one readable line per
subject."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from tc_adapters_lens.errors import DataError
from tc_adapters_lens.training.chat import Encoded, Unusable
from tc_adapters_lens.training.config import DataConfig
from tc_adapters_lens.training.sequences import TokenSequences

__all__ = ["DataReport", "Dropped", "RowCounts"]

_ROWS_NAMED = 5


@dataclass(frozen=True)
class Dropped:
    """Rows dropped for one reason: how many, and the first of them."""

    count: int
    first_rows: tuple[int, ...]


@dataclass(frozen=True)
class DataReport:
    """How a dataset became sequences.

    source: path or id.
    format: what a row holds, and the column.
    n_rows: rows read (not all there are, where `max_sequences` was reached).
    n_used: rows that became sequences, or parts of packed ones.
    dropped: why rows were not used, and which.
    n_sequences: sequences to train on.
    n_tokens: tokens in them.
    n_counted: of these, unmasked ones.
    n_masked_out: the others.
    longest: tokens of the longest sequence.
    context_size: most tokens a sequence may have.
    n_truncated: documents that were cut.
    n_tokens_cut: tokens lost by that.
    packing: whether documents were joined.
    too_long: what happens to documents longer than `context_size`.
    loss_on: which tokens count.
    notes: anything else worth knowing, a line each.
    """

    source: str
    format: str
    n_rows: int
    n_used: int
    dropped: dict[str, Dropped]
    n_sequences: int
    n_tokens: int
    n_counted: int
    n_masked_out: int
    longest: int
    context_size: int
    n_truncated: int
    n_tokens_cut: int
    packing: bool
    too_long: Literal["truncate", "drop"]
    loss_on: Literal["all", "response"]
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> DataReport:
        """The report of which `to_dict` gave these values, before or after JSON.

        Raises:
            TypeError, KeyError: not such values.
        """
        dropped = {
            why: Dropped(rows["count"], tuple(rows["first_rows"])) for why, rows in dict(values["dropped"]).items()
        }
        return cls(**{**values, "dropped": dropped, "notes": tuple(values["notes"])})

    def dropped_line(self) -> str:
        """Every reason with its count and first rows."""
        reasons = [
            f"{why} ({dropped.count:,}, first: row {', '.join(map(str, dropped.first_rows))})"
            for why, dropped in self.dropped.items()
        ]
        return "; ".join(reasons)

    def lines(self) -> list[str]:
        """One line each: rows, dropped rows, tokens, truncation, packing, padding, notes."""
        lines = [f"rows: {self.n_rows:,} of {self.source} read as {self.format}, {self.n_used:,} used"]
        if self.dropped:
            n_dropped = sum(dropped.count for dropped in self.dropped.values())
            lines.append(f"dropped: {n_dropped:,} rows: {self.dropped_line()}")
        lines.append(
            f"tokens: {self.n_tokens:,} in {self.n_sequences:,} sequences, longest {self.longest:,}; "
            f"{self.n_counted:,} count (loss_on: {self.loss_on}), {self.n_masked_out:,} do not"
        )
        if self.packing:
            lines.append(
                f"packing: documents are joined into sequences of {self.context_size:,} tokens, which attend "
                "across documents; only the last may be shorter"
            )
        else:
            lines.append("packing: off, one document per sequence")
        if self.too_long == "drop":
            lines.append(f"truncation: off, documents longer than {self.context_size:,} tokens are dropped")
        elif self.packing:
            lines.append("truncation: off, a document goes on in the next packed sequence")
        else:
            lines.append(
                f"truncation: at {self.context_size:,} tokens, {self.n_truncated:,} documents cut "
                f"({self.n_tokens_cut:,} tokens lost)"
            )
        lines.append("padding: on the right, to the longest sequence of each batch; it never counts")
        return [*lines, *self.notes]


class RowCounts:
    """Takes encoded rows one by one: checks, cuts and keeps them, or counts why not.

    Args:
        d_vocab: ids must be below it.
        max_length: most tokens of a document; None: any number.
        too_long: what to do with longer ones.
        most_documents: how many are enough; None: all.
        most_tokens: how many are enough; None: all.
    """

    def __init__(
        self,
        d_vocab: int,
        max_length: int | None,
        too_long: Literal["truncate", "drop"],
        most_documents: int | None,
        most_tokens: int | None,
    ) -> None:
        self.d_vocab = d_vocab
        self.max_length = max_length
        self.too_long = too_long
        self.most_documents = most_documents
        self.most_tokens = most_tokens
        self.tokens: list[np.ndarray] = []
        self.masks: list[np.ndarray] = []
        self.row_ids: list[int] = []
        self.n_rows = self.n_tokens = self.n_truncated = self.n_tokens_cut = 0
        self._dropped: dict[str, list[int]] = {}

    @property
    def n_used(self) -> int:
        return len(self.tokens)

    @property
    def full(self) -> bool:
        """Whether what was taken is enough."""
        return (self.most_documents is not None and self.n_used >= self.most_documents) or (
            self.most_tokens is not None and self.n_tokens >= self.most_tokens
        )

    def add(self, row_id: int, encoded: Encoded | Unusable) -> None:
        """Takes one row.

        Raises:
            DataError: an id outside the vocabulary.
        """
        self.n_rows += 1
        if isinstance(encoded, Unusable):
            self._drop(row_id, encoded.reason)
            return
        tokens, mask = encoded
        outside = (tokens < 0) | (tokens >= self.d_vocab)
        if outside.any():
            first = int(outside.argmax())
            raise DataError(
                f"token ids must be from 0 to {self.d_vocab - 1}, the model's vocabulary. Got {tokens[first]}"
                f" in row {row_id}, position {first}; use the target's own tokenizer."
            )
        if self.max_length is not None and len(tokens) > self.max_length:
            if self.too_long == "drop":
                self._drop(row_id, f"longer than {self.max_length:,} tokens")
                return
            self.n_truncated += 1
            self.n_tokens_cut += len(tokens) - self.max_length
            tokens, mask = tokens[: self.max_length], mask[: self.max_length]
        if len(tokens) < 2:
            self._drop(row_id, "shorter than 2 tokens")
        elif not mask.any():
            self._drop(row_id, "no token that counts")
        else:
            self.tokens.append(tokens.astype(np.int32))
            self.masks.append(mask)
            self.row_ids.append(row_id)
            self.n_tokens += len(tokens)

    def report(
        self,
        sequences: TokenSequences,
        data: DataConfig,
        source: str,
        what: str,
        context_size: int,
        notes: Iterable[str],
    ) -> DataReport:
        """The report on all rows taken, given the sequences they became."""
        n_tokens, n_counted = len(sequences.tokens), int(sequences.mask.sum())
        return DataReport(
            source=source,
            format=what,
            n_rows=self.n_rows,
            n_used=self.n_used,
            dropped={why: Dropped(len(rows), tuple(sorted(rows)[:_ROWS_NAMED])) for why, rows in self._dropped.items()},
            n_sequences=len(sequences),
            n_tokens=n_tokens,
            n_counted=n_counted,
            n_masked_out=n_tokens - n_counted,
            longest=int(sequences.lengths.max(initial=0)),
            context_size=context_size,
            n_truncated=self.n_truncated,
            n_tokens_cut=self.n_tokens_cut,
            packing=data.packing,
            too_long=data.too_long,
            loss_on=data.loss_on,
            notes=tuple(notes),
        )

    def _drop(self, row_id: int, reason: str) -> None:
        self._dropped.setdefault(reason, []).append(row_id)
