"""Responses judged by hand, and figures against numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tc_adapters_lens import toy
from tc_adapters_lens.errors import DataError
from tc_adapters_lens.evaluation.answers import same_answer
from tc_adapters_lens.evaluation.bootstrap import Bootstrap
from tc_adapters_lens.evaluation.degeneration import Degeneration
from tc_adapters_lens.evaluation.responses import Figures, Judged, judge
from tc_adapters_lens.models.checkpoints import Checkpoint
from tc_adapters_lens.models.sampling import Sampled

TOKENIZER: Any = Checkpoint.open("toy:target").tokenizer
PROMPT = TOKENIZER.apply_chat_template([{"role": "user", "content": "What is 2 + 3?"}], add_generation_prompt=True)


def respond(text: str, finished: bool = True) -> Sampled:
    tokens = TOKENIZER(text, add_special_tokens=False)["input_ids"]
    assert TOKENIZER.unk_token_id not in tokens
    return Sampled([*PROMPT, *tokens], len(PROMPT), finished)


def read(text: str, answer: str | None = "5", **options) -> Judged:
    return judge(respond(text), answer, TOKENIZER, toy.parse_answer, same_answer, **options)


def test_a_response_by_hand() -> None:
    text = "Wait, 2 + 3 is 5. But hmm, no wait.</think>The answer is 5."
    judged = read(text)
    assert judged.hesitations == {"wait": 2, "hmm": 1, "but": 1, "alternatively": 0}
    assert [judged.text[start:end] for start, end in judged.spans] == ["Wait", "But", "hmm", "wait"]
    assert judged.n_tokens == len(respond(text).input_ids) - len(PROMPT)
    assert (judged.parsed, judged.correct, judged.truncated, judged.finished) == ("5", True, None, True)
    assert read(text, "6").correct is False
    assert read(text, None).correct is None


def test_a_think_block_that_the_prompt_opened_must_be_closed() -> None:
    opened = [*PROMPT, *TOKENIZER("<think>\n", add_special_tokens=False)["input_ids"]]
    answer = TOKENIZER("The answer is 5.", add_special_tokens=False)["input_ids"]
    for prompt, parsed in ((PROMPT, "5"), (opened, None)):
        response = Sampled([*prompt, *answer], len(prompt), True)
        judged = judge(response, "5", TOKENIZER, toy.parse_answer, same_answer)
        assert (judged.parsed, judged.correct) == (parsed, parsed is not None)


def test_what_degenerates_is_cut_before_anything_is_counted() -> None:
    rule = Degeneration(window=10, threshold=0.5, sizes=(2, 4))
    start, loop = "Okay, wait. The answer is 5. Let me check the last step again.", " but no" * 12
    judged = read(start + loop + " The answer is 6.", words=("wait", "but"), rule=rule)
    assert (judged.parsed, judged.correct) == ("5", True)
    assert judged.truncated is not None
    assert judged.hesitations["wait"] == 1
    assert judged.hesitations["but"] < 12
    kept = judged.text[: judged.truncated]
    assert len(TOKENIZER(kept, add_special_tokens=False)["input_ids"]) == judged.n_tokens
    assert all(end <= judged.truncated for _, end in judged.spans)
    shown = judged.shortened(12)
    assert shown.text == judged.text[:12] + "\N{HORIZONTAL ELLIPSIS}"
    assert (shown.truncated, shown.spans) == (min(12, judged.truncated), ((6, 10),))
    assert shown.hesitations == judged.hesitations


def test_the_target_is_as_hesitant_as_its_page_says() -> None:
    """Counted by the build script's own expression on the shipped sequences."""
    import json
    import re

    rows = [json.loads(line) for line in toy.EVAL_TOKENS.read_text().splitlines()][:100]
    sampled = [Sampled(row["input_ids"], row["prompt_length"], True) for row in rows]
    judged = [judge(row, None, TOKENIZER, toy.parse_answer, same_answer) for row in sampled]
    texts = [TOKENIZER.decode(row.input_ids[row.prompt_length :]) for row in sampled]
    found = sum(len(re.findall(r"\b(?:wait|hmm|but|alternatively)\b", text.lower())) for text in texts)
    assert sum(sum(response.hesitations.values()) for response in judged) == found > 50


def made(correct: bool | None, n: int, wait: int, cut: bool = False) -> Judged:
    return Judged("", n, {"wait": wait, "hmm": 0}, (), 0 if cut else None, True, None, correct)


def test_figures_are_ratios_of_sums() -> None:
    judged = [made(True, 10, 1), made(False, 30, 0, cut=True), made(None, 20, 5)]
    kl = np.array([[2.0, 4], [0, 0], [4.0, 8]])
    found = Figures(judged, Bootstrap(0), kl).measured()
    assert {name: part["value"] for name, part in found.items() if name != "per_word"} == {
        "accuracy": 1 / 2,
        "response_length": 20,
        "hesitation_per_1000": 100,
        "degeneration_rate": 1 / 3,
        "kl": 0.5,
    }
    assert found["per_word"]["wait"]["value"] == 100
    assert found["per_word"]["hmm"]["value"] == 0


def test_what_cannot_be_said_is_none() -> None:
    found = Figures([made(None, 0, 0, cut=True)] * 3, Bootstrap(0)).measured()
    assert (found["accuracy"], found["hesitation_per_1000"], found["kl"]) == (None, None, None)
    assert found["degeneration_rate"]["value"] == 1


def test_differences_are_paired_over_problems() -> None:
    """Where every response is ten tokens longer, so is every replicate's mean: the difference has no width."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(5, 100, 40)
    right = rng.integers(0, 2, 40).astype(bool)
    one = Figures([made(bool(r), int(n), 1) for n, r in zip(lengths, right, strict=True)], Bootstrap(200))
    other = Figures([made(bool(r), int(n) + 10, 1) for n, r in zip(lengths, right, strict=True)], Bootstrap(200))
    found = other.difference(one)
    assert found["response_length"] == pytest.approx({"value": 10, "low": 10, "high": 10})
    assert found["accuracy"] == pytest.approx({"value": 0, "low": 0, "high": 0})
    assert found["hesitation_per_1000"]["high"] < 0
    width = one.measured()["response_length"]
    assert width["high"] - width["low"] > 5


def test_intervals_against_a_bootstrap_in_numpy() -> None:
    rng = np.random.default_rng(1)
    lengths = rng.integers(5, 100, 300)
    found = Figures([made(None, int(n), 0) for n in lengths], Bootstrap(2000)).measured()["response_length"]
    draws = rng.choice(lengths, (4000, 300)).mean(1)
    low, high = np.quantile(draws, [0.025, 0.975])
    assert found["value"] == lengths.mean()
    assert (found["low"], found["high"]) == pytest.approx((low, high), abs=0.6)


def test_too_few_problems_for_intervals() -> None:
    with pytest.raises(DataError, match="at least 10 problems"):
        Figures([made(True, 1, 0)] * 9, Bootstrap(100))
