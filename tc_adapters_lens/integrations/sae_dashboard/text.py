"""Which tokens a page of dashboards is drawn on.

sae-dashboard takes a rectangle of tokens and counts every position in it. Padding would count as text in which nothing
is active; pieces from the middle of a sequence would lose what comes before, and with it the replacement model's
activations. So a page takes the beginnings, all of one length, of sequences that are at least that long: every
activation is the one that the whole sequence has, because attention is causal.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Int, Int32, Int64
from torch import Tensor

from tc_adapters_lens.errors import DataError
from tc_adapters_lens.models.vocabulary import Vocabulary

__all__ = ["MARGIN", "HeldOutText"]

MARGIN = 6, 5  # tokens at a sequence's beginning and end that sae-dashboard never makes an example of
_EXAMPLES = 20  # that it always takes


@dataclass(frozen=True)
class HeldOutText:
    """Sequences to draw dashboards on.

    tokens: all sequences' ids, one after another.
    offsets: where each sequence starts, and the total at the end.
    vocabulary: what the ids are.
    name: of the text.
    max_tokens: of one page.
    longest: most tokens of a sequence that a page uses.
    seed: of the draw of sequences.
    """

    tokens: Int32[np.ndarray, " n_tokens"]
    offsets: Int64[np.ndarray, " n_sequences_plus_1"]
    vocabulary: Vocabulary
    name: str
    max_tokens: int = 2**17
    longest: int = 1024
    seed: int = 0

    @cached_property
    def fingerprint(self) -> str:
        """Of everything that says what a page's tokens are."""
        digest = hashlib.sha256(repr((self.name, self.max_tokens, self.longest, self.seed)).encode())
        for array in (self.offsets, self.tokens, self.vocabulary.offsets, self.vocabulary.data):
            digest.update(np.ascontiguousarray(array).data)
        return f"sha256:{digest.hexdigest()}"

    @cached_property
    def length(self) -> int:
        """The one length: that which keeps most tokens of the whole text.

        Raises:
            DataError: too little text for the examples that sae-dashboard takes.
        """
        lengths = np.sort(np.minimum(np.diff(self.offsets), self.longest))
        kept = lengths * np.arange(len(lengths), 0, -1)
        length = int(lengths[kept.argmax()]) if len(lengths) else 0
        n_rows = min(int((lengths >= length).sum()), max(1, self.max_tokens // max(length, 1)))
        if n_rows * (length - sum(MARGIN)) < _EXAMPLES:
            raise DataError(
                f"Dashboards need {_EXAMPLES} positions with {MARGIN[0]} tokens before and {MARGIN[1]} after them. "
                f"Got {n_rows} sequences of {length} tokens. Use more or longer text, or a larger --max-tokens."
            )
        return length

    @property
    def n_known(self) -> int:
        """One more than the last id that can be named."""
        return max(self.vocabulary.n_known, int(self.tokens.max(initial=0)) + 1)

    def rows(self, peaks: Int64[np.ndarray, " n_peaks"] | None = None) -> Int[Tensor, "batch pos"]:
        """A page's tokens: sequences with the given flat positions first, as long as there is room, others at random.

        Args:
            peaks: the most important first; -1 for none.
        """
        length = self.length
        long_enough = np.diff(self.offsets) >= length
        wanted = np.zeros(0, dtype=np.int64)
        if peaks is not None:
            peaks = peaks[peaks >= 0]
            sequences = np.searchsorted(self.offsets, peaks, side="right") - 1
            inside = long_enough[sequences] & (peaks - self.offsets[sequences] < length)
            wanted = sequences[inside]
        others = np.random.Generator(np.random.PCG64(self.seed)).permutation(np.flatnonzero(long_enough))
        order = np.array(list(dict.fromkeys([*wanted.tolist(), *others.tolist()])), dtype=np.int64)
        chosen = np.sort(order[: max(1, self.max_tokens // length)])
        positions = self.offsets[chosen][:, None] + np.arange(length)
        return torch.from_numpy(self.tokens[positions].astype(np.int64))
