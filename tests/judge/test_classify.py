"""Features sorted into classes: what a judge is asked, what becomes of its answers, and the verb."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from pydantic import ValidationError

from tc_adapters_lens import FeatureStore
from tc_adapters_lens.cli import judge_options
from tc_adapters_lens.cli.main import main
from tc_adapters_lens.errors import JudgeError
from tc_adapters_lens.evaluation.shares import share
from tc_adapters_lens.features.conditions import where
from tc_adapters_lens.judge.asking import Asker
from tc_adapters_lens.judge.classify import answer_form, class_requests, classify, groups_of, shares
from tc_adapters_lens.judge.prompt_files import FeatureClass, load_prompts
from tc_adapters_lens.judge.request import parse
from tc_adapters_lens.judge.results import read_result
from tc_adapters_lens.judge.sample import sample_features
from tc_adapters_lens.judge.texts import show_example
from tests.features.builder import HOSTILE, synthetic_store
from tests.judge.fake_judge import FakeJudge

PROMPTS = load_prompts("classify")
NAMES = [one.name for one in PROMPTS.classes]
REASONING = ["reasoning output", "reasoning input", "reasoning abstract"]


@pytest.fixture
def run(tmp_path) -> Path:
    for name, changes in (("features", {}), ("features-target", {"model": "target", "adapters_fingerprint": None})):
        synthetic_store(tmp_path / name, 2, 30, **changes)
    return tmp_path


@pytest.fixture
def store(run) -> FeatureStore:
    return FeatureStore.open(run / "features")


def number(promoted: list[str]) -> int:
    """What planted classes are made from: anything that only this feature's prompt has."""
    return zlib.crc32("".join(promoted).encode())


def planted(facts: Mapping[str, Any]) -> dict[str, Any] | str:
    """A class by the promoted tokens; every fifth reply is not as asked for."""
    n = number(facts["promoted"])
    if n % 5 == 0:
        return ("no JSON", '{"class": "domain"}', '{"reason": "r", "class": "none of these"}')[n % 3]
    return {"reason": f"because {n}", "class": NAMES[n % len(NAMES)]}


def expected(store: FeatureStore, layer: int, feature: int) -> str | None:
    n = number([effect.text for effect in store[layer, feature].promoted[:10]])
    return None if n % 5 == 0 else NAMES[n % len(NAMES)]


@pytest.fixture
def verb(run, capsys, monkeypatch):
    """Runs the verb with a judge; returns what it printed, or its error line."""

    def call(*argv: str, judge: FakeJudge | None = None, code: int = 0) -> str:
        if judge is not None:
            monkeypatch.setattr(judge_options, "open_asker", lambda args, run: Asker(judge))
        assert main(["judge", "classify", "--run", str(run), "--judge", "rules", *argv]) == code
        captured = capsys.readouterr()
        lines = [line for line in captured.err.splitlines() if line.startswith("tc-adapters")]
        assert len(lines) == (code != 0)
        return lines[0] if code else captured.out

    return call


def test_what_a_judge_is_shown(store) -> None:
    samples = sample_features(store, 4, 0.0, 1)
    requests = class_requests(store, samples, PROMPTS, 3)
    keys = [(sample.layer, feature) for sample in samples for feature in sample.features.tolist()]
    assert len(requests) == len(keys) == 8
    for (layer, feature), request in zip(keys, requests, strict=True):
        found = store[layer, feature]
        lines = request.user.splitlines()
        texts = [json.loads(line.split(". ", 1)[1]) for line in lines if line[:2] in ("1.", "2.", "3.", "4.")]
        peaks = [json.loads(line.split("active at ")[1]) for line in lines if line.startswith("   most active at ")]
        assert texts == [show_example(store, example).with_marks for example in found.top[:3]]
        assert peaks == [store.vocabulary.text(int(one.tokens[one.position - one.start])) for one in found.top[:3]]
        for which in ("promoted", "inhibited"):
            (line,) = (line for line in lines if line.startswith(f"{which.capitalize()} tokens"))
            assert json.loads(line.split(": ", 1)[1]) == [effect.text for effect in getattr(found, which)[:10]]
            assert request.facts[which] == [effect.text for effect in getattr(found, which)[:10]]
        for example, fact in zip(found.top, request.facts["examples"], strict=False):
            assert fact["tokens"] == store.vocabulary.texts(example.tokens)
            assert fact["marked"][fact["peak"]]
            assert fact["peak"] == example.position - example.start
        assert all(f'- "{name}"' in request.user for name in NAMES)
        assert "data" in request.system
        json.dumps(dict(request.facts))


def test_a_reply_must_be_a_reason_and_one_of_the_classes() -> None:
    form = answer_form(PROMPTS.classes)
    schema = form.model_json_schema()
    assert list(schema["properties"]) == schema["required"] == ["reason", "class"]
    assert schema["properties"]["class"]["enum"] == NAMES
    assert schema["additionalProperties"] is False
    answer = parse('{"reason": "r", "class": "domain"}', form)
    assert answer is not None
    assert (getattr(answer, "class"), answer.model_dump()["reason"]) == ("domain", "r")
    for reply in ('{"reason": "r", "class": "Domain"}', '{"class": "domain"}', '{"reason": 1, "class": "domain"}'):
        with pytest.raises(ValidationError):
            form.model_validate_json(reply)


def test_planted_classes_are_recovered_and_counted(store) -> None:
    samples = sample_features(store, 20, 0.0, 3)
    classified = classify(Asker(FakeJudge(planted)), class_requests(store, samples, PROMPTS, 10), samples)
    keys = [(sample.layer, feature) for sample in samples for feature in sample.features.tolist()]
    assert [(one.layer, one.feature) for one in classified] == keys
    assert [one.name for one in classified] == [expected(store, *key) for key in keys]
    assert all((one.reason is None) == (one.name is None) for one in classified)

    found = shares(PROMPTS.classes, samples, classified)
    assert [layer["layer"] for layer in found["layers"]] == [0, 1]
    parts = [(layer, [key for key in keys if key[0] == layer["layer"]]) for layer in found["layers"]]
    for part, own in [*parts, (found["overall"], keys)]:
        names = [expected(store, *key) for key in own]
        given = [name for name in names if name is not None]
        assert part["n_sampled"] == len(own)
        assert part["n_unparsable"] == names.count(None)
        assert 0 < part["n_unparsable"] < len(own)
        assert sum(entry["n"] for entry in part["classes"].values()) == len(given)
        for counted, among in [
            *((part["classes"][name], [name]) for name in NAMES),
            (part["groups"]["reasoning"], REASONING),
        ]:
            n = sum(name in among for name in given)
            wilson = share(n, len(given))
            assert wilson is not None
            assert counted == {"n": n, "share": wilson.to_dict()}
    assert found["overall"]["n_eligible"] == sum(sample.n_eligible for sample in samples)
    assert list(found["overall"]["groups"]) == ["reasoning"]


def test_nothing_parsable_has_no_shares(store) -> None:
    samples = sample_features(store, 3, 0.0, 3)
    asker = Asker(FakeJudge(lambda facts: "I cannot say."))
    found = shares(PROMPTS.classes, samples, classify(asker, class_requests(store, samples, PROMPTS, 2), samples))
    assert found["overall"]["n_unparsable"] == found["overall"]["n_sampled"] == 6
    assert {entry["share"] for entry in found["overall"]["classes"].values()} == {None}


def test_groups_are_those_that_are_not_one_class() -> None:
    def classes(*pairs: tuple[str, str]) -> list[FeatureClass]:
        return [FeatureClass(name, "d", group) for name, group in pairs]

    assert groups_of(classes(("a", "a"), ("b", "b"))) == {}
    assert groups_of(classes(("a", "x"), ("b", "b"), ("c", "x"))) == {"x": ["a", "c"]}
    assert groups_of(classes(("x", "x"), ("a", "x"))) == {"x": ["x", "a"]}
    assert groups_of(classes(("a", "alone"), ("b", "b"))) == {"alone": ["a"]}


def test_the_verb_writes_result_and_labels(run, verb) -> None:
    out = verb("--per-layer", "20", "--seed", "3", "--json", str(run / "out.json"), judge=FakeJudge(planted))
    path = run / "judge/classify-replacement.json"
    result = read_result(path, "classify")
    printed = json.loads((run / "out.json").read_text())
    assert printed.pop("path") == str(path)
    assert printed == {key: value for key, value in result.items() if not key.startswith("format")}

    store = FeatureStore.open(run / "features")
    keys = [(s.layer, feature) for s in sample_features(store, 20, 0.0, 3) for feature in s.features.tolist()]
    assert [(one["layer"], one["feature"], one["class"]) for one in result["features"]] == [
        (*key, expected(store, *key)) for key in keys
    ]
    assert result["store"]["adapters_fingerprint"] == store.info.adapters_fingerprint
    assert result["judge"] == {"kind": "fake"}
    assert result["prompts"]["classify"] == PROMPTS.to_dict()
    assert [one["group"] for one in result["classes"]].count("reasoning") == 3
    settings = ("repeat", "seed", "per_layer", "min_frequency", "n_examples")
    assert [result[key] for key in settings] == [0, 3, 20, 0.0, 10]

    column = store.column("class").reshape(2, 30)
    for layer in range(2):
        for feature in range(30):
            wanted = expected(store, layer, feature) if (layer, feature) in keys else None
            got = column[layer, feature]
            assert (None if pd.isna(got) else got) == wanted
            assert store[layer, feature].labels == ({} if wanted is None else {"class": wanted})
    domain = [key for key in keys if expected(store, *key) == "domain"]
    assert [*where(store, "class == domain").group("d").features] == domain

    overall = result["overall"]
    assert out.startswith(f"40 of {overall['n_eligible']} features of the replacement model were judged; ")
    assert f"{overall['n_unparsable']} of them have no class." in out
    rows = [line.split() for line in out.splitlines()]
    value = overall["classes"]["domain"]["share"]["value"]
    assert ["domain", str(len(domain)), f"{value:.1%}"] in [row[:3] for row in rows]
    layer = result["layers"][1]
    assert ["1", "20", str(layer["n_unparsable"])] in [row[:3] for row in rows]
    assert f"Written: {path}, and the column class of " in out


def test_again_replaces_and_a_name_keeps_both(run, verb) -> None:
    always = {name: FakeJudge(lambda facts, name=name: {"reason": "", "class": name}, name) for name in NAMES[:3]}
    verb("--per-layer", "20", judge=always[NAMES[0]])
    verb("--per-layer", "5", judge=always[NAMES[1]])
    verb("--per-layer", "6", "--name", "other", judge=always[NAMES[2]])
    verb("--model", "target", judge=always[NAMES[0]])
    frame = FeatureStore.open(run / "features").frame()
    assert frame["class"].dropna().tolist() == [NAMES[1]] * 10
    assert frame["class_other"].dropna().tolist() == [NAMES[2]] * 12
    assert read_result(run / "judge/classify-replacement-other.json", "classify")["judge"] == {"kind": NAMES[2]}
    target = read_result(run / "judge/classify-target.json", "classify")
    assert target["store"]["model"] == "target"
    assert set(FeatureStore.open(run / "features-target").frame()["class"].dropna()) == {NAMES[0]}
    assert sorted(path.name for path in (run / "judge").glob("*.json")) == [
        "classify-replacement-other.json",
        "classify-replacement.json",
        "classify-target.json",
    ]

    verb("--per-layer", "5", judge=FakeJudge(lambda facts: "nothing"))  # all unparsable: older classes do not stay
    assert FeatureStore.open(run / "features").frame()["class"].isna().all()


def test_nothing_is_written_before_all_is_answered(run, verb) -> None:
    verb("--per-layer", "3", judge=FakeJudge(planted))
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    left = [4]

    def stops(facts: Mapping[str, Any]) -> dict[str, Any] | str:
        left[0] -= 1
        if left[0] == 0:
            raise JudgeError("The endpoint is gone.")
        return planted(facts)

    assert "The endpoint is gone." in verb(judge=FakeJudge(stops), code=1)
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_rules_and_hostile_texts(tmp_path, capsys) -> None:
    synthetic_store(tmp_path / "features", 2, 30, words=HOSTILE, d_vocab=16)
    evil = "evil\u202e\x1b[31m"
    prompts = tmp_path / "p.yaml"
    classes = json.dumps(
        [{"name": evil, "description": "{{ 7 * 7 }}"}, {"name": "b", "description": "d", "group": evil}]
    )
    prompts.write_text(f"classes: {classes}\nsystem: s\nuser: '{{{{ examples | tojson }}}} {{{{ promoted }}}}'\n")
    assert main(["judge", "classify", "--run", str(tmp_path), "--judge", "rules"]) == 0
    assert set(FeatureStore.open(tmp_path / "features").frame()["class"].dropna()) <= {*NAMES}
    out = capsys.readouterr().out
    assert "general language" in out

    store = FeatureStore.open(tmp_path / "features")
    samples = sample_features(store, 30, 0.0, 1)
    mine = load_prompts("classify", prompts)
    for request in [*class_requests(store, samples, PROMPTS, 10), *class_requests(store, samples, mine, 10)]:
        request.user.encode()
    judge = FakeJudge(lambda facts: {"reason": "\u202e", "class": evil})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(judge_options, "open_asker", lambda args, run: Asker(judge))
        argv = ["judge", "classify", "--run", str(tmp_path), "--judge", "rules", "--prompts", str(prompts)]
        assert main([*argv, "--name", "evil"]) == 0
    out = capsys.readouterr().out
    assert "100.0%" in out
    assert not {"\u202e", "\x1b"} & {*out}
    assert any("window.hacked" in request.user for request in judge.requests)


def test_a_dry_run_asks_nothing(run, verb) -> None:
    judge = FakeJudge(planted)
    verb("--dry-run", "--json", str(run / "cost.json"), judge=judge)
    assert not judge.requests
    assert not (run / "judge").exists()
    assert json.loads((run / "cost.json").read_text())


@pytest.mark.parametrize(
    ("argv", "code", "message"),
    [
        (["--per-layer", "0"], 2, "--per-layer must be at least 1. Got 0."),
        (["--examples", "0"], 2, "--examples must be at least 1. Got 0."),
        (["--seed", "-1"], 2, "--seed must be at least 0. Got -1."),
        (["--min-frequency", "1.5"], 2, "--min-frequency must be a share, from 0 to 1. Got 1.5."),
        (["--min-frequency", "-0.1"], 2, "--min-frequency must be a share, from 0 to 1. Got -0.1."),
        (["--min-frequency", "often"], 2, "--min-frequency must be a float. Got 'often'."),
        (["--name", "a-b"], 2, "--name must be of letters, digits and underscores. Got 'a-b'."),
        (["--model", "hybrid"], 2, "--model must be 'replacement' or 'target' or 'base'. Got 'hybrid'."),
        (["--model", "base"], 1, "features-base is not a feature store: there is no such directory."),
        (["--min-frequency", "1"], 1, "lower --min-frequency."),
        (["--prompts", "none.yaml"], 1, "none.yaml cannot be read"),
        (["--prompts", "{other}"], 1, "The judge `rules` sorts into domain, general language"),
        (["--name", "mine"], 2, "must have no column class_mine of other labels."),
    ],
)
def test_wrong_use_is_one_line(argv, code, message, run, store, verb) -> None:
    frame = store.frame()[["layer", "feature"]].head(3)
    store.add_labels("by_hand", frame.assign(class_mine="x"))
    other = run / "other.yaml"
    other.write_text("classes: [{name: a, description: b}, {name: c, description: d}]\nsystem: s\nuser: u\n")
    assert message in verb(*(word.format(other=other) for word in argv), code=code)
    assert not (run / "judge").exists()


def test_a_run_must_be_named(capsys) -> None:
    assert main(["judge", "classify", "--judge", "rules"]) == 2
    assert "--run must be given. `tc-adapters judge classify --help` lists them." in capsys.readouterr().err
