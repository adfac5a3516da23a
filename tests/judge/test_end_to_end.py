"""The verbs over HTTP: a stand-in for a language model, which has nothing but the prompts to read, at an endpoint that
misbehaves on most requests. Features are planted, one token each, so that every answer is known."""

from __future__ import annotations

import json
import re
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from tc_adapters_lens import FeatureStore
from tc_adapters_lens.cli.main import main
from tc_adapters_lens.integrations.openai.judge import EndpointJudge
from tc_adapters_lens.judge.prompt_files import load_prompts
from tests.judge.endpoint_server import Act, Mind, drops, drops_midway, half_json, running, says, status
from tests.judge.planted import on_tokens, planted_store, random_text
from tests.judge.questions import KEY

N_FEATURES = 14
CLASSES = [one.name for one in load_prompts("classify").classes]
_STRING = r'"(?:[^"\\]|\\.)*"'


class Reader(Mind):
    """Reads what a feature is active on in the prompt itself, and answers in the form that is asked for."""

    def number(self, body: Mapping[str, Any]) -> int:
        return zlib.crc32(json.dumps(body["messages"]).encode())

    def reply(self, body: Mapping[str, Any]) -> str:
        prompt = body["messages"][-1]["content"]
        numbered = [json.loads(text) for text in re.findall(rf"^\d+[.:] ({_STRING})$", prompt, re.MULTILINE)]
        form = body["response_format"]["json_schema"]["name"]
        if form == "FeatureClass":
            token = json.loads(re.findall(rf"most active at ({_STRING})", prompt)[0])
            return json.dumps({"reason": f"on {token}", "class": class_of(int(token.removeprefix(" w")))})
        if form == "Description":
            marked = Counter(word for text in numbered for word in re.findall(r"<<(.*?)>>", text))
            return json.dumps({"description": f"The token{marked.most_common(1)[0][0]}"})
        assert form == "Sorted"
        assert len(numbered) == 10
        word = json.loads(re.findall(rf"Description: ({_STRING})", prompt)[0]).removeprefix("The token")
        return json.dumps({i: re.search(rf"{word}(?!\d)", text) is not None for i, text in enumerate(numbered, 1)})


class Misbehaving(dict[int, Sequence[Act]]):
    """By a question's number, what happens to it before it is answered."""

    KINDS: tuple[Sequence[Act], ...] = (
        (),
        (status(429, headers={"retry-after-ms": "20"}), status(500)),
        (drops, drops_midway),
        (half_json, status(503)),
        (says("I would say so."), says('{"class": 3}')),
    )

    def get(self, question: int, default: Any = None) -> Sequence[Act]:
        return self.KINDS[question % len(self.KINDS)]


def class_of(token: int) -> str:
    return CLASSES[token % len(CLASSES)]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    text = random_text()
    planted_store(tmp_path / "features", text, [on_tokens(text, N_FEATURES)])
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setattr(EndpointJudge.__init__, "__kwdefaults__", {"backoff": 0.01})
    return tmp_path


def test_planted_features_are_classified_described_and_detected(run, capsys, caplog):
    with running(Misbehaving(), mind=Reader()) as endpoint:
        asked = ["--run", str(run), "--base-url", endpoint.url, "--judge-model", "reader", "--concurrency", "4"]

        assert main(["judge", "classify", *asked, "--max-requests", "9"]) == 1
        assert "The budget of 9 requests is spent: " in capsys.readouterr().err
        assert not list((run / "judge").glob("*.json"))
        assert "class" not in FeatureStore.open(run / "features").column_names
        assert len(endpoint.received) <= 9

        assert main(["judge", "classify", *asked]) == 0
        result = json.loads((run / "judge" / "classify-replacement.json").read_text())
        known = {feature: class_of(10 + feature) for feature in range(N_FEATURES)}
        assert {row["feature"]: row["class"] for row in result["features"]} == known
        assert FeatureStore.open(run / "features").column("class").tolist() == list(known.values())
        assert result["overall"]["n_unparsable"] == 0

        assert main(["judge", "detect", *asked, "--min-frequency", "0"]) == 0
        result = json.loads((run / "judge" / "detect-replacement.json").read_text())
        for row in result["features"]:
            assert row["description"] == f"The token w{10 + row['feature']}"
            assert (row["scores"]["top"], row["scores"]["sampled"]) == (1, 1)
        shuffled = result["overall"]["scores"]["shuffled"]["mean"]
        assert shuffled["low"] < 0.5 < shuffled["high"]
        assert 0.4 < shuffled["value"] < 0.6

        assert set(endpoint.billed.values()) == {1}
        n_unasked_for = sum(
            len(Misbehaving().get(one)) for one in {r.question for r in endpoint.received} if one % 5 == 4
        )
        assert endpoint.n_billed == 5 * N_FEATURES + n_unasked_for  # classify, describe, three kinds; and each bad try
        assert len(endpoint.received) > endpoint.n_billed

        n_received = len(endpoint.received)
        for verb in ("classify", "detect"):
            before = (run / "judge" / f"{verb}-replacement.json").read_text()
            assert main(["judge", verb, *asked, *(["--min-frequency", "0"] if verb == "detect" else [])]) == 0
            after = json.loads((run / "judge" / f"{verb}-replacement.json").read_text())
            assert after["usage"]["sent"] == 0
            assert {**after, "usage": 0} == {**json.loads(before), "usage": 0}
        assert len(endpoint.received) == n_received
    written = capsys.readouterr()
    told = [written.out, written.err, caplog.text]
    told += [path.read_bytes().decode("latin-1") for path in run.rglob("*") if path.is_file()]
    assert not any(KEY[:12] in text for text in told)


def test_a_second_asking_is_told_apart_and_agrees(run, capsys):
    with running(mind=Reader()) as endpoint:
        asked = ["--run", str(run), "--base-url", endpoint.url, "--judge-model", "reader"]
        assert main(["judge", "classify", *asked]) == 0
        assert main(["judge", "classify", *asked, "--repeat", "1", "--name", "again"]) == 0
        assert endpoint.n_billed == 2 * N_FEATURES
    files = [str(run / "judge" / f"classify-replacement{end}.json") for end in ("", "-again")]
    capsys.readouterr()
    assert main(["judge", "agree", *files, "--json", str(run / "kappa.json")]) == 0
    assert json.loads((run / "kappa.json").read_text())["kappa"]["value"] == 1
