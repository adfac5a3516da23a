"""A text to find features in: sequences held flat, with what is known of every position."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

__all__ = ["Text", "TextBatch"]

_PAD = 0  # on the right, where causal attention keeps it from every position of the text


class TextBatch(NamedTuple):
    """Some sequences, padded on the right. All are `[batch pos]`.

    tokens: token ids.
    inside: True within a sequence, False at padding.
    counted: True where a position counts.
    positions: flat positions.
    regions, groups, template: index of each position's region, group and template position; zeros where the
        text has none.
    """

    tokens: Int[Tensor, "batch pos"]
    inside: Bool[Tensor, "batch pos"]
    counted: Bool[Tensor, "batch pos"]
    positions: Int[Tensor, "batch pos"]
    regions: Int[Tensor, "batch pos"]
    groups: Int[Tensor, "batch pos"]
    template: Int[Tensor, "batch pos"]


@dataclass(frozen=True)
class Text:
    """Sequences one after another.

    tokens, offsets: token ids, and where each sequence starts (the total at the end).
    counted: True where a position counts.
    regions, template: index of each position's region and template position; None where there are no names.
    groups: index of each sequence's group; None where there are no names.
    region_names, group_names, template_names: their names.
    """

    tokens: Int[np.ndarray, " n_tokens"]
    offsets: Int[np.ndarray, " n_sequences_plus_1"]
    counted: Bool[np.ndarray, " n_tokens"]
    regions: Int[np.ndarray, " n_tokens"] | None = None
    template: Int[np.ndarray, " n_tokens"] | None = None
    groups: Int[np.ndarray, " n_sequences"] | None = None
    region_names: tuple[str, ...] = ()
    template_names: tuple[str, ...] = ()
    group_names: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def n_counted(self) -> int:
        return int(self.counted.sum())

    def batches(self, batch_size: int) -> list[Int[np.ndarray, " batch"]]:
        """Sequences of each batch, those of similar length together, the longest first."""
        order = np.diff(self.offsets).argsort(kind="stable")[::-1]
        return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]

    def batch(self, chosen: Sequence[int] | Int[np.ndarray, " batch"], device: str | torch.device) -> TextBatch:
        """The chosen sequences."""
        starts, lengths = self.offsets[:-1][chosen], np.diff(self.offsets)[chosen]
        along = np.arange(lengths.max())
        inside = along < lengths[:, None]
        flat = np.where(inside, starts[:, None] + along, starts[:, None])

        def spread(values: np.ndarray | None) -> Tensor:
            if values is None:
                return torch.zeros(flat.shape, dtype=torch.int64, device=device)
            return torch.from_numpy(values[flat].astype(np.int64)).to(device)

        groups = None if self.groups is None else np.repeat(self.groups[chosen], flat.shape[1]).reshape(flat.shape)
        return TextBatch(
            tokens=torch.from_numpy(np.where(inside, self.tokens[flat], _PAD).astype(np.int64)).to(device),
            inside=torch.from_numpy(inside).to(device),
            counted=torch.from_numpy(inside & self.counted[flat]).to(device),
            positions=torch.from_numpy(flat.astype(np.int64)).to(device),
            regions=spread(self.regions),
            groups=spread(None) if groups is None else torch.from_numpy(groups.astype(np.int64)).to(device),
            template=spread(self.template),
        )

    def counts(self) -> Iterator[tuple[int, ...]]:
        """Counted positions of each region, of each group and of each template position."""
        groups = None if self.groups is None else np.repeat(self.groups, np.diff(self.offsets))
        for labels, names in (
            (self.regions, self.region_names),
            (groups, self.group_names),
            (self.template, self.template_names),
        ):
            counted = np.zeros(0, np.int64) if labels is None else labels[self.counted].astype(np.int64)
            yield tuple(np.bincount(counted, minlength=len(names)).tolist()[: len(names)])
