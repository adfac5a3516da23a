"""How the tasks score a problem: every repeat counts, and a think block that never ends answers nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tc_adapters_lens import toy
from tc_adapters_lens.evaluation.answers import final_part
from tc_adapters_lens.integrations.lm_eval.answers import boxed, letter, same_value

__all__ = ["all_repeats", "letter_results", "maths_results", "toy_results"]


def all_repeats(responses: Any, documents: Any) -> Any:
    """The filter of the tasks: responses as they are. lm-eval's own keeps the first of the repeats only."""
    return responses


def maths_results(document: Mapping[str, Any], results: Sequence[Sequence[str]]) -> dict[str, float]:
    """Shares of a problem's responses whose boxed answer is right, that answer, and that never end thinking."""
    return _shares(results[0], boxed, lambda answer: same_value(answer, document["answer"]))


def letter_results(document: Mapping[str, Any], results: Sequence[Sequence[str]]) -> dict[str, float]:
    """As `maths_results`, for one of four letters."""
    return _shares(results[0], letter, lambda answer: answer == document["answer"])


def toy_results(document: Mapping[str, Any], results: Sequence[Sequence[str]]) -> dict[str, float]:
    """As `maths_results`, with the toy pair's own way to read answers."""
    return _shares(results[0], toy.parse_answer, lambda answer: answer == document["answer"])


def _shares(
    responses: Sequence[str], read: Callable[[str], str | None], is_right: Callable[[str], bool]
) -> dict[str, float]:
    said = [final_part(response) for response in responses]
    answers = [answer for part in said if part is not None and (answer := read(part)) is not None]
    n = len(responses)
    return {
        "accuracy": sum(map(is_right, answers)) / n,
        "answered": len(answers) / n,
        "unclosed": said.count(None) / n,
    }
