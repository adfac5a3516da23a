"""Sampled responses to look at, in pieces: hesitation words, the degenerate tail, invisible characters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from tc_adapters_lens.report.conditions import Condition
from tc_adapters_lens.report.shown_text import name, parts, visible

_LONGEST_QUESTION = 60


@dataclass(frozen=True)
class Piece:
    """A stretch of a text of one look.

    text: what is shown. is_mark: it stands for an invisible character. ends_line: that character ends the line.
    is_hesitation, is_tail: it lies in a hesitation word, or after where the response degenerates.
    """

    text: str
    is_mark: bool
    ends_line: bool
    is_hesitation: bool
    is_tail: bool


@dataclass(frozen=True)
class Response:
    """id: unique on the page. verdict: "right", "wrong" or "" where no answer is known."""

    id: str
    condition: Condition
    pieces: tuple[Piece, ...]
    n_tokens: int
    n_hesitations: int
    finished: bool
    degenerate: bool
    parsed: str | None
    verdict: str


@dataclass(frozen=True)
class Sample:
    """A problem and the responses to it, in the order of the conditions."""

    title: str
    question: tuple[Piece, ...]
    answer: str | None
    responses: tuple[Response, ...]

    def of(self, condition: Condition) -> Response | None:
        """A condition's response; None: it has none here."""
        return next((response for response in self.responses if response.condition == condition), None)


@dataclass(frozen=True)
class Samples:
    """All samples; `left` and `right` are shown beside each other to begin with."""

    samples: tuple[Sample, ...]
    conditions: tuple[Condition, ...]
    left: Condition
    right: Condition


def read_samples(result: Mapping[str, Any], conditions: Sequence[Condition]) -> Samples | None:
    """The samples of interventions.json; None: it has none."""
    kept = [one for one in result["samples"] if one["responses"]]
    found = [_sample(at, one, conditions) for at, one in enumerate(kept)]
    sampled = [one for one in conditions if any(sample.of(one) for sample in found)]
    if not sampled:
        return None
    left, right = _first_shown(sampled)
    return Samples(tuple(found), tuple(sampled), left, right)


def pieces(
    text: str, hesitations: Sequence[Sequence[int]] = (), degenerate_from: int | None = None
) -> tuple[Piece, ...]:
    """A text cut where its look changes.

    Args:
        hesitations: [start, end) of the hesitation words, in characters.
        degenerate_from: character where the degenerate tail begins; None: it has none.
    """
    tail = len(text) if degenerate_from is None else degenerate_from
    cuts = sorted({0, tail, len(text), *(min(end, len(text)) for span in hesitations for end in span)})
    found = []
    for start, end in pairwise(cuts):
        is_hesitation = any(first <= start and end <= last for first, last in hesitations)
        for part, invisible in parts(text[start:end]):
            shown = visible(part) if invisible else part
            found.append(Piece(shown, invisible, part == "\n", is_hesitation, start >= tail))
    return tuple(found)


def _sample(at: int, found: Mapping[str, Any], conditions: Sequence[Condition]) -> Sample:
    question = name(found["question"])
    short = question if len(question) <= _LONGEST_QUESTION else question[: _LONGEST_QUESTION - 1] + "…"
    responses = found["responses"]
    return Sample(
        f"{found['problem']}: {short}",
        pieces(found["question"]),
        None if found["answer"] is None else name(found["answer"]),
        tuple(_response(f"s{at}-{one.id}", one, responses[one.name]) for one in conditions if one.name in responses),
    )


def _response(id: str, condition: Condition, found: Mapping[str, Any]) -> Response:
    return Response(
        id,
        condition,
        pieces(found["text"], found["hesitations"], found["truncated"]),
        found["n_tokens"],
        len(found["hesitations"]),
        found["finished"],
        found["truncated"] is not None,
        None if found["parsed"] is None else name(found["parsed"]),
        "" if found["correct"] is None else "right" if found["correct"] else "wrong",
    )


def _first_shown(sampled: Sequence[Condition]) -> tuple[Condition, Condition]:
    """A condition with features removed, or else any that was switched, and what it is compared with."""
    by_name = {one.name: one for one in sampled}
    switched = [one for one in sampled if one.control_of is None and one.against in by_name]
    switched.sort(key=lambda one: one.kind != "remove")
    if switched:
        return by_name[switched[0].against or ""], switched[0]
    return sampled[0], sampled[min(1, len(sampled) - 1)]
