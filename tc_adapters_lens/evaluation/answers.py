"""Answers stated in responses, and whether one is right: for quick accuracy beside an intervention.

Benchmarks with their own rules of equality are lm-evaluation-harness'.
"""

from __future__ import annotations

import re
from fractions import Fraction

__all__ = ["final_answer", "final_part", "opened_thinking", "same_answer"]

OPEN, CLOSE = "<think>", "</think>"
_STATED = re.compile(r"answer\s*(?:is|:)", re.IGNORECASE)
_BOXED = "\\boxed{"


def opened_thinking(prompt: str) -> str:
    r"""The think block that a prompt ends with, which its response goes on with: "<think>\n", or ""."""
    bare = prompt.rstrip()
    return prompt[len(bare) - len(OPEN) :] if bare.endswith(OPEN) else ""


def final_part(response: str) -> str | None:
    """What is said after thinking; all of it where there is no thinking, None where thinking never ends."""
    _, closed, said = response.rpartition(CLOSE)
    return said if closed or OPEN not in response else None


def final_answer(response: str) -> str | None:
    r"""The answer a response states: its last \boxed{...}, else the rest of the line after the last "answer is" or
    "answer:". Only text after `</think>` counts; a think block never closed states none.
    """
    said = final_part(response)
    if said is None:
        return None
    boxed = _boxed(said)
    if boxed is not None:
        return boxed
    stated = [match.end() for match in _STATED.finditer(said)]
    return _tidy(said[stated[-1] :].lstrip().partition("\n")[0]) or None if stated else None


def same_answer(stated: str, right: str) -> bool:
    """Whether two answers are the same number, or else the same text but for case, spaces and TeX's dollars."""
    a, b = _tidy(stated), _tidy(right)
    numbers = _number(a), _number(b)
    return numbers[0] == numbers[1] if None not in numbers else a.casefold() == b.casefold()


def _boxed(text: str) -> str | None:
    start = text.rfind(_BOXED)
    if start < 0:
        return None
    depth = 0
    for place in range(start + len(_BOXED) - 1, len(text)):
        depth += {"{": 1, "}": -1}.get(text[place], 0)
        if depth == 0:
            return _tidy(text[start + len(_BOXED) : place])
    return None


def _tidy(answer: str) -> str:
    return " ".join(answer.replace("$", " ").split()).strip(" .*")


def _number(answer: str) -> Fraction | None:
    try:
        return Fraction(answer.replace(",", "").replace(" ", ""))
    except (ValueError, ZeroDivisionError):
        return None
