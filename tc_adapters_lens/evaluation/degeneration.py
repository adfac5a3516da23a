"""Degenerate text: a window of tokens most of which is one phrase over and over.

    coverage = occurrences of the window's most frequent n-gram * n / window

A window whose coverage is over the threshold for any n is degenerate; text is cut at the left edge of the earliest one.
Occurrences may overlap. Text shorter than a window has none. The method's text does not say which n count: from 2 on,
which a single repeated token is seen by too, to 20, which sees phrases that return within 80 tokens.

Source: Hu et al. 2026, appendix (arXiv 2602.20904).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int


@dataclass(frozen=True)
class Degeneration:
    """When text counts as degenerate.

    window: tokens.
    threshold: a window's coverage must be above it.
    sizes: shortest and longest n-gram, tokens.
    """

    window: int = 200
    threshold: float = 0.25
    sizes: tuple[int, int] = (2, 20)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {"window": self.window, "threshold": self.threshold, "sizes": list(self.sizes)}


def degenerate_from(tokens: Sequence[int], rule: Degeneration | None = None) -> int | None:
    """Where the earliest degenerate window begins.

    A window holds more than `threshold * window / n` occurrences of an n-gram if the first and last of so many
    neighbouring ones lie within it; so no window is counted by itself, and a text of T tokens takes O(T log T) per n.

    Args:
        tokens: a response's token ids.
    Returns:
        Index of the window's first token; None: there is no degenerate window.
    """
    rule = rule or Degeneration()
    ids = np.asarray(tokens, dtype=np.int64)
    if len(ids) < rule.window:
        return None
    words = grams = np.unique(ids, return_inverse=True)[1].astype(np.int64)
    n_words = int(words.max()) + 1
    found: list[int] = []
    for n in range(1, rule.sizes[1] + 1):
        if n > 1:  # a number for the n-gram at each place, from that for the one shorter by its last token
            pairs = grams[: len(ids) - n + 1] * n_words + words[n - 1 :]
            grams = np.unique(pairs, return_inverse=True)[1].astype(np.int64)
        start = _earliest(grams, n, rule) if n >= rule.sizes[0] else None
        found += [] if start is None else [start]
    return min(found, default=None)


def _earliest(grams: Int[np.ndarray, " n_grams"], n: int, rule: Degeneration) -> int | None:
    needed = int(np.floor(rule.threshold * rule.window / n + 1e-9)) + 1
    if len(grams) < needed:
        return None
    places = np.argsort(grams, kind="stable")
    first, last = places[: len(places) - needed + 1], places[needed - 1 :]
    together = (grams[first] == grams[last]) & (last - first <= rule.window - n)
    if not together.any():
        return None
    return max(0, int(last[together].min()) + n - rule.window)
