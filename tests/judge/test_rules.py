"""Classes by rule: what tokens decide."""

from __future__ import annotations

import asyncio
import json
import re
from typing import Any

import pytest

from tc_adapters_lens.errors import JudgeError
from tc_adapters_lens.judge.classify import answer_form
from tc_adapters_lens.judge.prompt_files import load_prompts
from tc_adapters_lens.judge.request import Request, parse
from tc_adapters_lens.judge.rules import RulesJudge
from tc_adapters_lens.judge.rules_classify import classify_by_rules

BAR = "\uff5c"  # of DeepSeek's special tokens
CLASSES = [one.name for one in load_prompts("classify").classes]
NEUTRAL = [" of", "12", " the", "Ann", "(", ",", " is", "\n", f"<{BAR}User{BAR}>", " Kim"]


def facts(texts: list[str], promoted: list[str] = NEUTRAL) -> dict[str, Any]:
    """Texts with {} around tokens; tokens are words with the blank before them, and signs."""
    examples = []
    for text in texts:
        tokens, marked = [], []
        for index, part in enumerate(re.split("[{}]", text)):
            pieces = re.findall(rf"<[{BAR}/]?\w+{BAR}?>|\s?\w+|\s?[^\w\s]|\s", part)
            assert "".join(pieces) == part
            tokens += pieces
            marked += [index % 2 == 1] * len(pieces)
        assert any(marked)
        examples.append({"tokens": tokens, "marked": marked, "peak": marked.index(True)})
    return {"classes": CLASSES, "examples": examples, "promoted": promoted, "inhibited": NEUTRAL}


def answered(of: dict[str, Any]) -> dict[str, str]:
    return classify_by_rules(of)


@pytest.mark.parametrize(
    ("wanted", "texts", "promoted"),
    [
        ("reasoning output", ["44{.} So it is 44."], [" Wait", " But", " Hmm", " Alternatively"]),
        ("reasoning output", ["44{.} So"], [" So", " Then", " Next", " To", " wait"]),
        ("general language", ["44{.} So"], [" So", " Then", " Next", " To", " First", " wait"]),  # only the first 5
        ("reasoning input", ["is 4. { Wait}, the", "is 5. { Hmm}, no", "6.{ But} I", "7{.} Then"], NEUTRAL),
        ("reasoning abstract", ["Okay,{ let me} work", "Alright, let me{ see}.", "one step{ at} a time"], NEUTRAL),
        ("reasoning abstract", [f"<{BAR}Assistant{BAR}>{{<think>}}", "3{</think>} The"], NEUTRAL),
        ("general language", [f"{{<{BAR}Assistant{BAR}>}}<think>", f"{{<{BAR}User{BAR}>}} What"], NEUTRAL),
        ("domain", ["Next{ 37} +{ 3} is", "37{ +} 3", "print{(}x", "Is{ hydrogen} gas"], NEUTRAL),
        ("domain", ["28 - 5{ is} 23", "= 22{ is} so"], NEUTRAL),
        ("reasoning abstract", ["Wait, did I miss a step{?} No.", "But is it?{ Yes}, 4", "= 4{.} So"], NEUTRAL),
        ("general language", ["Kim has 3{ eggs}.", "{ Ann} has", "loses 3{ shells} a"], NEUTRAL),
        ("general language", ["has 3{,} loses 4{.} He", "so{ …} what"], NEUTRAL),
        (
            "domain",
            ["Ann has 3{,}", "Kim{ loses}", "Next{ 37} +"],
            ["1", "2", " 3", " +", "=", "4", "5", "6", "a", "b"],
        ),
        ("uninterpretable", ["Ann has 3{,}", "Kim{ loses}", "Next{ 37} +"], NEUTRAL),
        ("uninterpretable", ["a{ 7ß} a"], NEUTRAL),
    ],
)
def test_tokens_decide(wanted, texts, promoted) -> None:
    found = answered(facts(texts, promoted))
    assert found["class"] == wanted, found


def test_an_example_weighs_the_same_however_much_of_it_is_marked() -> None:
    # 5 numbers in one example are a third of the weight, 2 examples of words two thirds
    found = answered(facts(["{1 2 3 4 5}", "Kim has{ eggs}", "Ann has{ shells}"]))
    assert found == {"reason": "Of the marked tokens 67% are of the kind word.", "class": "general language"}


def test_a_phrase_counts_only_where_the_feature_fires() -> None:
    assert answered(facts(["let me see. Kim has{ eggs}"]))["class"] == "general language"
    assert answered(facts(["outlet me{ thought}"]))["class"] == "general language"  # whole words only


def test_the_judge_s_reply_has_the_form_asked_for() -> None:
    judge, prompts = RulesJudge(), load_prompts("classify")
    form = answer_form(prompts.classes)
    request = Request("classify", "", "", form, facts(["{ Wait}, no", "is { “€”}"]))
    replies = [asyncio.run(judge.reply(request, "", lambda tokens: None)) for _ in range(2)]
    assert replies[0] == replies[1]
    assert (replies[0].prompt_tokens, replies[0].completion_tokens) == (0, 0)
    answer = parse(replies[0].text, form)
    assert answer is not None
    assert list(json.loads(replies[0].text)) == ["reason", "class"]
    assert judge.identity["kind"] == "rules"
    assert re.fullmatch("[0-9a-f]{64}", judge.identity["sha256"])


def test_other_classes_are_refused() -> None:
    more = {**facts(["{ a} b"]), "classes": [*CLASSES, "domains"]}
    with pytest.raises(JudgeError, match=r"Got 'domains'\. Did you mean 'domain'\? Ask a language model") as caught:
        classify_by_rules(more)
    assert "\n" not in str(caught.value)
    with pytest.raises(JudgeError, match=r"The prompts lack 'uninterpretable'\."):
        classify_by_rules({**more, "classes": CLASSES[:-1]})
