"""What sampled responses are like: right or wrong, how long, how hesitant, degenerate or not; with intervals.

    judged = [judge(response, problem.answer, tokenizer, final_answer, same_answer) for ...]   # one model, all problems
    figures = Figures(judged, bootstrap)
    figures.measured()["accuracy"], figures.difference(of_the_reference)["response_length"]

A response is cut where it degenerates, before anything else is counted.
Source: Hu et al. 2026, sections 6 and appendix (arXiv 2602.20904).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from transformers import PreTrainedTokenizerBase

from tc_adapters_lens.evaluation.answers import opened_thinking
from tc_adapters_lens.evaluation.bootstrap import Bootstrap, Sums, estimate, ratio
from tc_adapters_lens.evaluation.degeneration import Degeneration, degenerate_from
from tc_adapters_lens.evaluation.estimate import Estimate
from tc_adapters_lens.models.sampling import Sampled
from tc_adapters_lens.toy import HESITATIONS

__all__ = ["HESITATIONS", "Figures", "Judged", "judge"]

_PROMPT_TAIL = 16  # tokens in which a prompt opens a think block


@dataclass(frozen=True)
class Judged:
    """One response, judged.

    text: of the response, end token included, as far as special tokens have text; not cut.
    n_tokens: up to where it degenerates, else all.
    hesitations: word -> how often, up to there.
    spans: characters of `text` where hesitation words are.
    truncated: character of `text` where it degenerates; None: it does not.
    finished: whether it reached an end token.
    parsed: the answer stated up to there; None: none.
    correct: whether it is the right one; None: the right one is not known.
    """

    text: str
    n_tokens: int
    hesitations: Mapping[str, int]
    spans: tuple[tuple[int, int], ...]
    truncated: int | None
    finished: bool
    parsed: str | None
    correct: bool | None

    def shortened(self, n: int) -> Judged:
        """The same with at most n characters of text, and an ellipsis where some are left out."""
        if len(self.text) <= n:
            return self
        spans = tuple(span for span in self.spans if span[1] <= n)
        cut = None if self.truncated is None else min(self.truncated, n)
        return replace(self, text=f"{self.text[:n]}\N{HORIZONTAL ELLIPSIS}", spans=spans, truncated=cut)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "text": self.text,
            "hesitations": [list(span) for span in self.spans],
            "n_tokens": self.n_tokens,
            "finished": self.finished,
            "truncated": self.truncated,
            "parsed": self.parsed,
            "correct": self.correct,
        }


def judge(
    response: Sampled,
    answer: str | None,
    tokenizer: PreTrainedTokenizerBase,
    parse: Callable[[str], str | None],
    same: Callable[[str, str], bool],
    *,
    words: Sequence[str] = HESITATIONS,
    rule: Degeneration | None = None,
) -> Judged:
    """Read one response.

    Args:
        response: prompt and response.
        answer: the right one, if known.
        tokenizer: the target's.
        parse: finds the answer that a text states; a text that the prompt began with `<think>` has it in front.
        same: whether a stated answer is the right one.
        words: whose occurrences are counted, whole words in any case.
        rule: when text is degenerate.
    """
    tokens = response.input_ids[response.prompt_length :]
    cut = degenerate_from(tokens, rule)
    text = _decode(tokenizer, tokens)
    kept = text if cut is None else _decode(tokenizer, tokens[:cut])
    # where decoding depends on neighbours the two differ in their last characters
    spans, counts = _find(words, kept)
    prompt = _decode(tokenizer, response.input_ids[: response.prompt_length][-_PROMPT_TAIL:])
    opened = opened_thinking(prompt)
    parsed = parse(opened + kept)
    return Judged(
        text=text,
        n_tokens=len(tokens) if cut is None else cut,
        hesitations=counts,
        spans=spans,
        truncated=None if cut is None else len(kept),
        finished=response.finished,
        parsed=parsed,
        correct=None if answer is None else parsed is not None and same(parsed, answer),
    )


class Figures:
    """One model's responses in figures, with replicates of its problems.

    Args:
        judged: in the order of the problems, which are what is resampled: the same draws for every model.
        bootstrap: how many replicates, and their seed.
        kl: per problem the summed KL to the target and the positions it is of, `[n_problems 2]`; None: not measured.
    Raises:
        DataError: no responses, or too few for intervals.
    """

    def __init__(
        self, judged: Sequence[Judged], bootstrap: Bootstrap, kl: Float[np.ndarray, "n_problems 2"] | None = None
    ) -> None:
        bootstrap.require(len(judged), "problems")
        self.judged = list(judged)
        self._words = sorted({word for response in judged for word in response.hesitations})
        columns = {
            "n": [1.0] * len(judged),
            "answered": [response.correct is not None for response in judged],
            "correct": [bool(response.correct) for response in judged],
            "tokens": [response.n_tokens for response in judged],
            "degenerate": [response.truncated is not None for response in judged],
            **{f"word {word}": [response.hesitations[word] for response in judged] for word in self._words},
        }
        values = {name: torch.tensor(column, dtype=torch.float64) for name, column in columns.items()}
        if kl is not None:
            values |= {"kl": torch.from_numpy(kl[:, 0]), "kl positions": torch.from_numpy(kl[:, 1])}
        sums = Sums(bootstrap, "cpu")
        sums.add(values)
        self._rows = self._figures(sums, has_kl=kl is not None)

    def _figures(self, sums: Sums, has_kl: bool) -> dict[str, np.ndarray]:
        words = {word: 1000 * ratio(sums[f"word {word}"], sums["tokens"]) for word in self._words}
        rows = {
            "accuracy": ratio(sums["correct"], sums["answered"]),
            "response_length": ratio(sums["tokens"], sums["n"]),
            "hesitation_per_1000": sum(words.values(), start=np.zeros(len(sums["n"]))),
            "degeneration_rate": ratio(sums["degenerate"], sums["n"]),
        }
        if has_kl:
            rows["kl"] = ratio(sums["kl"], sums["kl positions"])
        return rows | {f"word {word}": rows_of for word, rows_of in words.items()}

    def measured(self) -> dict[str, Any]:
        """Every figure with its interval: accuracy (None without right answers), response_length (tokens),
        hesitation_per_1000 (per 1,000 response tokens), degeneration_rate, kl (nats; None if not measured), and
        per_word, which sum up to hesitation_per_1000.
        """
        found = self._estimates(self._rows)
        return {**found, "per_word": {word: _plain(estimate(self._rows[f"word {word}"])) for word in self._words}}

    def difference(self, reference: Figures) -> dict[str, Any]:
        """The same, less the reference's, paired over problems; without per_word."""
        both = self._rows.keys() & reference._rows.keys()
        return self._estimates({name: self._rows[name] - reference._rows[name] for name in both})

    @staticmethod
    def _estimates(rows: Mapping[str, np.ndarray]) -> dict[str, Any]:
        names = ("accuracy", "response_length", "hesitation_per_1000", "degeneration_rate", "kl")
        return {name: _plain(estimate(rows[name])) if name in rows else None for name in names}


def _plain(found: Estimate | None) -> dict[str, float | None] | None:
    return None if found is None else found.to_dict()


def _decode(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int]) -> str:
    return tokenizer.decode(list(tokens), skip_special_tokens=False, clean_up_tokenization_spaces=False)


def _find(words: Sequence[str], text: str) -> tuple[tuple[tuple[int, int], ...], dict[str, int]]:
    """Where in a text words are, and how often each."""
    counts = dict.fromkeys(words, 0)
    spans = []
    for match in re.finditer(rf"\b(?:{'|'.join(map(re.escape, words))})\b", text, re.IGNORECASE):
        spans.append(match.span())
        counts[match.group().lower()] += 1
    return tuple(spans), counts
