"""Detection scores of planted features by rules, and of judges that are wrong in known ways."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter

import numpy as np
import pytest

from tc_adapters_lens.errors import FeatureStoreError
from tc_adapters_lens.evaluation.bootstrap import Bootstrap
from tc_adapters_lens.judge.asking import Asker
from tc_adapters_lens.judge.detect import Description, Detection, Sorted, labels
from tc_adapters_lens.judge.prompt_files import load_prompts
from tc_adapters_lens.judge.request import Reply, parse
from tc_adapters_lens.judge.rules import RulesJudge
from tc_adapters_lens.judge.rules_detect import describe_by_rules, detect_by_rules
from tc_adapters_lens.judge.sample import sample_features
from tc_adapters_lens.models.names import SCORE_KINDS
from tests.features.builder import HOSTILE, synthetic_store
from tests.judge.planted import at, on_tokens, planted_store, random_text, sequence_of

TEXT = random_text()
N_FEATURES = 40
PROMPTS = load_prompts("describe"), load_prompts("detect")


class Answers(RulesJudge):
    """Rules, but for requests that `other(request)` has an answer to; keeps what it was asked."""

    def __init__(self, other=lambda request: None):
        self.other, self.asked = other, []

    async def reply(self, request, key, spend):
        self.asked.append(request)
        text = self.other(request)
        return await super().reply(request, key, spend) if text is None else Reply(text)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Two layers of features on tokens; the last one of layer 1 is active everywhere."""
    acts = on_tokens(TEXT, N_FEATURES)
    everywhere = np.hstack([acts[:, 1:], at(TEXT.tokens >= 0)[:, None]])
    return planted_store(tmp_path_factory.mktemp("planted") / "features", TEXT, [acts, everywhere])


def detection(store, kinds=SCORE_KINDS, per_layer=100, seed=42, negatives="random") -> Detection:
    return Detection.of(store, sample_features(store, per_layer, 0, seed), kinds, seed, negatives, *PROMPTS)


def means(result) -> dict[str, float]:
    return {kind: found["mean"]["value"] for kind, found in result["overall"]["scores"].items()}


def test_planted_features_are_detected(store):
    judge = Answers()
    result = detection(store).run(Asker(judge))
    found = means(result)
    assert found["top"] >= 0.98
    assert found["sampled"] >= 0.98
    assert found["shuffled"] == pytest.approx(0.5, abs=0.07)
    assert result["left_out"] == {"fewer than 5 random texts in which it is quiet": 1}
    overall = result["overall"]
    assert (overall["n_eligible"], overall["n_sampled"], overall["n_scored"], overall["n_unparsable"]) == (
        80,
        80,
        79,
        0,
    )
    assert [(layer["layer"], layer["n_scored"]) for layer in result["layers"]] == [(0, 40), (1, 39)]
    assert result["features"][-1] == {
        "layer": 1,
        "feature": 39,
        "description": None,
        "scores": dict.fromkeys(SCORE_KINDS),
    }
    assert result["features"][3]["description"] == 'active on: " w13"'
    assert Counter(request.task for request in judge.asked) == {"describe": 79, "detect": 3 * 79}


def test_features_alike_are_harder_to_tell_from_each_other(tmp_path):
    """Features 2i and 2i + 1 are active on token 10 + i, one in sequences of even number, one in the others."""
    even = sequence_of(TEXT)[:, None] % 2 == 0
    acts = on_tokens(TEXT, 12)
    pairs = np.stack([np.where(even, acts, 0), np.where(even, 0, acts)], 2).reshape(len(acts), -1)
    store = planted_store(tmp_path / "features", TEXT, [pairs])
    random, similar = (
        means(detection(store, ("top",), negatives=which).run(Asker(RulesJudge()))) for which in ("random", "similar")
    )
    assert random["top"] > 0.9
    assert similar["top"] < 0.65


def test_scores_are_shares_sorted_right(store):
    """A judge that says yes to the first three texts and to nothing else: its scores are counted by hand."""
    says = {str(number): number <= 3 for number in range(1, 11)}
    made = detection(store, ("top", "sampled"))
    result = made.run(Asker(Answers(lambda request: json.dumps(says) if request.task == "detect" else None)))
    for one, found in zip(made.texts, result["features"], strict=True):
        for kind, sorting in one.sortings.items():
            right = sum(active == (index < 3) for index, active in enumerate(sorting.active))
            assert found["scores"][kind] == right / 10
    values = [found["scores"]["top"] for found in result["features"] if found["layer"] == 0]
    weights = Bootstrap(seed=42).weights(range(N_FEATURES))
    replicates = weights[1:] @ values / weights[1:].sum(1)
    low, high = np.quantile(replicates, [0.025, 0.975]) + np.mean(values) - replicates.mean()
    assert result["layers"][0]["scores"]["top"] == {
        "n": 40,
        "mean": pytest.approx({"value": np.mean(values), "low": low, "high": high}),
    }
    assert low < np.mean(values) < high


def test_what_cannot_be_read_is_counted_and_not_guessed(store):
    """Of layer 0: no description of feature 3; of feature 5 no answer on its first texts; of feature 6 a blank one."""

    def other(request):
        if request.task == "describe":
            marked = {t for e in request.facts["examples"] for t, m in zip(e["tokens"], e["marked"], strict=True) if m}
            return {" w13": "no idea", " w16": '{"description": " \\n"}'}.get(next(iter(marked)))
        if '" w15"' in request.facts["description"] and request is next(
            asked for asked in judge.asked if '" w15"' in asked.facts.get("description", "")
        ):
            return json.dumps({str(number): True for number in range(1, 10)})  # nine of ten
        return None

    judge = Answers(other)
    made = Detection.of(store, sample_features(store, 100, 0, 42)[:1], ("top", "sampled"), 42, "random", *PROMPTS)
    result = made.run(Asker(judge))
    layer = result["layers"][0]
    assert (layer["n_sampled"], layer["n_scored"], layer["n_unparsable"]) == (40, 38, 3)
    assert (layer["scores"]["top"]["n"], layer["scores"]["sampled"]["n"]) == (37, 38)
    by = {one["feature"]: one for one in result["features"]}
    assert by[3]["scores"] == by[6]["scores"] == {"top": None, "sampled": None}
    assert by[3]["description"] is by[6]["description"] is None
    assert by[5]["scores"] == {"top": None, "sampled": 1.0}


def test_shuffled_takes_every_description_once_and_nobodys_own(store):
    judge = Answers()
    made = detection(store, ("shuffled",))
    result = made.run(Asker(judge))
    asked = [request for request in judge.asked if request.task == "detect"]
    tested = [one for one in made.texts if one.sortings]
    assert len(asked) == len(tested) == 79
    own = {(one["layer"], one["feature"]): one["description"] for one in result["features"]}
    for layer in (0, 1):
        here = [(one, request) for one, request in zip(tested, asked, strict=True) if one.layer == layer]
        used = [request.facts["description"] for _, request in here]
        assert sorted(used) == sorted(own[layer, one.feature] for one, _ in here)
        for one, request in here:
            assert request.facts["description"] != own[layer, one.feature]
            assert [text["tokens"] for text in request.facts["texts"]] == [
                list(shown.tokens) for shown in one.sortings["top"].texts
            ]
    again, other = Answers(), Answers()
    detection(store, ("shuffled",)).run(Asker(again))
    assert [request.user for request in again.asked] == [request.user for request in judge.asked]
    dataclasses.replace(made, seed=1).run(Asker(other))
    assert [request.user for request in other.asked] != [request.user for request in judge.asked]


def test_few_features(store):
    """No interval of three scores, no other description for a layer's only feature, nothing of none."""
    three = detection(store, per_layer=3, kinds=("top", "shuffled")).run(Asker(RulesJudge()))
    assert three["layers"][0]["scores"]["top"] == {"n": 3, "mean": {"value": 1.0, "low": None, "high": None}}
    one = detection(store, per_layer=1).run(Asker(RulesJudge()))
    assert one["overall"]["scores"]["shuffled"] == {"n": 0, "mean": None}
    assert one["overall"]["scores"]["top"]["n"] > 0


def test_what_would_be_asked(store):
    judge = Answers()
    made = detection(store)
    describing, detecting = made.requests()
    assert not judge.asked
    made.run(Asker(judge))
    assert [request.user for request in describing] == [request.user for request in judge.asked[:79]]
    assert len(detecting) == 3 * 79
    assert len({request.user for request in detecting}) == 2 * 79  # a description like any other, texts of their own


def test_labels_are_joined_to_the_store(tmp_path):
    store = planted_store(tmp_path / "features", TEXT, [on_tokens(TEXT, 3)])
    result = detection(store).run(Asker(RulesJudge()))
    store.add_labels("detection", labels(result["features"], None))
    store.add_labels("detection_again", labels(result["features"], "again"))
    assert store.column("score_top").tolist() == [1.0, 1.0, 1.0]
    assert store[0, 1].labels == {
        "description": 'active on: " w11"',
        "score_top": 1.0,
        "score_sampled": 1.0,
        "description_again": 'active on: " w11"',
        "score_top_again": 1.0,
        "score_sampled_again": 1.0,
    }
    with pytest.raises(FeatureStoreError, match="columns of their own"):
        store.add_labels("other", labels(result["features"], None))


def test_prompts_hold_texts_as_they_are_and_apart(tmp_path):
    """Texts that try to break out of their line stay JSON strings, one to a line."""
    store = synthetic_store(tmp_path / "features", n_layers=1, n_features=8, k=20, d_vocab=14, dead=0)
    made = detection(store, ("top",))
    describing, detecting = made.requests()
    assert describing
    seen = set()
    for request, shown in [
        (one, list(found.exemplars)) for one, found in zip(describing, made._described(), strict=True)
    ]:
        texts = [json.loads(line.split(": ", 1)[1]) for line in request.user.split("\n")]
        assert texts == [one.with_marks for one in shown]
        seen |= {word for word in HOSTILE for one in shown if word in one.plain}
    assert len(seen) > 5
    for request, found in zip(detecting, made._described(), strict=True):
        description, _, *lines = request.user.split("\n")
        assert description.startswith('Description: "')
        assert [line.split(": ")[0] for line in lines] == [str(number) for number in range(1, 11)]
        plain = [shown.plain for shown in found.sortings["top"].texts]
        assert [json.loads(line.split(": ", 1)[1]) for line in lines] == plain


def test_forms():
    schema = Sorted.model_json_schema()
    assert schema["required"] == list(schema["properties"]) == [str(number) for number in range(1, 11)]
    assert schema["additionalProperties"] is False
    assert {part["type"] for part in schema["properties"].values()} == {"boolean"}
    whole = {str(number): True for number in range(1, 11)}
    assert parse(json.dumps(whole), Sorted).model_dump(by_alias=True) == whole
    for bad in ({**whole, "3": "yes"}, {**whole, "3": 1}, {**whole, "11": True}, dict(list(whole.items())[:-1])):
        assert parse(json.dumps(bad), Sorted) is None
    assert parse('{"description": "on dots"}', Description).description == "on dots"
    assert set(Description.model_json_schema()["properties"]["description"]) == {"title", "type"}


def test_rules_describe_by_marked_tokens():
    """ "a" is marked in three of five, "b" in two of the other two; "c" beside "a" only."""
    rows = [("ac", "11"), ("ax", "10"), ("ca", "01"), ("xb", "01"), ("b\n", "10")]
    examples = [{"tokens": list(tokens), "marked": [mark == "1" for mark in marks]} for tokens, marks in rows]
    assert describe_by_rules({"examples": examples}) == {"description": 'active on: "a", "b"'}
    nothing = describe_by_rules({"examples": [{"tokens": ["a"], "marked": [False]}]})
    assert nothing == {"description": "active on: "}


@pytest.mark.parametrize(
    ("description", "expected"),
    [
        ('active on: " wait", "\\"\\n"', [True, True, False]),
        ("whenever somebody says wait", [False, False, False]),
        ('on "wait" without a space', [False, False, False]),
        ('"bad \\x escape" and " wait"', [True, False, False]),
        ("", [False, False, False]),
    ],
)
def test_rules_detect_by_named_tokens(description, expected):
    texts = [{"tokens": ["so", " wait"]}, {"tokens": ['"\n', "x"]}, {"tokens": [" waiting"]}]
    said = detect_by_rules({"description": description, "texts": texts})
    assert said == {str(number): value for number, value in enumerate(expected, 1)}
