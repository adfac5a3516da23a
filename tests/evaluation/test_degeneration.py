"""Degenerate text against a loop over all windows and n-grams."""

from __future__ import annotations

import time
from collections import Counter

import numpy as np
import pytest

from tc_adapters_lens.evaluation.degeneration import Degeneration, degenerate_from


def slow(tokens: list[int], rule: Degeneration) -> int | None:
    """The definition, word for word."""
    for start in range(len(tokens) - rule.window + 1):
        window = tokens[start : start + rule.window]
        for n in range(rule.sizes[0], rule.sizes[1] + 1):
            counts = Counter(tuple(window[i : i + n]) for i in range(rule.window - n + 1))
            if max(counts.values()) * n / rule.window > rule.threshold:
                return start
    return None


@pytest.mark.parametrize("seed", range(30))
@pytest.mark.parametrize(
    "rule", [Degeneration(20, 0.25, (2, 5)), Degeneration(12, 0.5, (1, 4)), Degeneration(30, 0.4, (3, 11))]
)
def test_equals_the_definition(seed: int, rule: Degeneration) -> None:
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, rng.integers(2, 40), 60).tolist()
    phrase = rng.integers(0, 40, rng.integers(1, 7)).tolist()
    at = int(rng.integers(0, 40))
    repeated = tokens[:at] + phrase * int(rng.integers(1, 6)) + tokens[at:]
    for text in (tokens, repeated):
        assert degenerate_from(text, rule) == slow(text, rule)


def test_both_outcomes_are_among_the_cases() -> None:
    rule = Degeneration(20, 0.25, (2, 5))
    found = [
        degenerate_from(
            np.random.default_rng(s).integers(0, np.random.default_rng(s).integers(2, 40), 60).tolist(), rule
        )
        for s in range(30)
    ]
    assert {start is None for start in found} == {True, False}


def test_the_published_rule_by_hand() -> None:
    varied = list(range(1000, 1300))
    assert degenerate_from(varied) is None
    # 26 of one bigram cover 26 * 2 / 200 = 26%; 25 cover 25%, which is not over it
    assert degenerate_from(varied[:100] + [1, 2] * 25 + varied[100:]) is not None  # ... 1 2 1: trigrams, 24 * 3 / 200
    apart = [token for i in range(26) for token in (1, 2, 2000 + i)]
    assert degenerate_from(varied[:122] + apart[:75] + varied[200:]) is None
    # the first window that holds all 26 ends with the last of them, token 76 after their beginning
    assert degenerate_from(varied[:123] + apart + varied[200:]) == 123 + 76 + 1 - 200
    assert degenerate_from(varied[:132] + apart + varied[200:]) == 132 + 76 + 1 - 200
    assert degenerate_from([7] * 199) is None  # shorter than a window
    assert degenerate_from([7] * 200) == 0
    assert degenerate_from([]) is None


def test_all_occurrences_lie_within_the_window() -> None:
    """Three bigrams are more than a quarter of 20 tokens where the last ends within 20 of where the first begins."""
    rule = Degeneration(20, 0.25, (2, 2))
    for last, found in ((18, 0), (19, None)):
        tokens = list(range(100, 140))
        for start in (0, 9, last):
            tokens[start : start + 2] = [1, 2]
        assert degenerate_from(tokens, rule) == slow(tokens, rule) == found


def test_32000_tokens_are_read_in_no_time() -> None:
    tokens = np.random.default_rng(0).integers(0, 50_000, 32_768).tolist()
    start = time.perf_counter()
    assert degenerate_from(tokens) is None
    assert time.perf_counter() - start < 2  # the definition takes half an hour
