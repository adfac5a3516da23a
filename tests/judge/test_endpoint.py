"""Endpoints that misbehave: every answer is right, nothing is lost, nothing is paid for twice, no key gets out."""

from __future__ import annotations

import email.utils
import json
import logging
import time

import pytest

from tc_adapters_lens.errors import ConfigError, JudgeError
from tc_adapters_lens.integrations.openai.secrets import find_key, scrub
from tc_adapters_lens.judge.asking import Asker
from tc_adapters_lens.judge.endpoint_config import endpoint_config
from tests.judge.endpoint_server import (
    COMPLETION_TOKENS,
    PROMPT_TOKENS,
    body,
    drips,
    drops,
    drops_midway,
    echoes_key,
    half_json,
    hangs,
    running,
    says,
    status,
)
from tests.judge.questions import KEY, Number, asker_at, judge_at, question, questions, values

QUESTIONS = questions(12)


def seconds_from_now(seconds: float) -> str:
    return email.utils.formatdate(time.time() + seconds, usegmt=True)


def test_a_good_endpoint(tmp_path):
    with running() as endpoint:
        asker = asker_at(endpoint.url, tmp_path, params={"temperature": 0, "max_tokens": 77})
        assert values(asker.ask(QUESTIONS, "ask")) == list(range(12))
        assert asker.usage.to_dict() == {
            "sent": 12,
            "kept": 0,
            "prompt_tokens": 12 * PROMPT_TOKENS,
            "completion_tokens": 12 * COMPLETION_TOKENS,
            "unparsable": 0,
        }
    first = endpoint.received[0]
    assert first.headers["authorization"] == f"Bearer {KEY}"
    assert first.body["messages"][0] == {"role": "system", "content": "Reply in JSON."}
    assert first.body["messages"][1]["role"] == "user"
    assert (first.body["model"], first.body["temperature"], first.body["max_tokens"]) == ("some-model", 0, 77)
    schema = first.body["response_format"]["json_schema"]
    assert schema == {"name": "Number", "schema": Number.model_json_schema(), "strict": True}
    assert len({one.key for one in endpoint.received}) == 12


@pytest.mark.parametrize(("kind", "sent"), [("json_object", {"type": "json_object"}), ("none", None)])
def test_other_response_formats(tmp_path, kind, sent):
    with running() as endpoint:
        assert values(asker_at(endpoint.url, tmp_path, response_format=kind).ask(QUESTIONS[:1], "ask")) == [0]
    assert endpoint.received[0].body.get("response_format") == sent


MISDEEDS = {
    0: [status(500), status(502)],
    1: [status(503, headers={"Retry-After": "0"})],
    2: [drops],
    3: [drops_midway],
    4: [half_json],
    5: [hangs(1.5)],
    6: [drips],
    7: [status(408), status(409)],
    8: [body("<html>502</html>")],
    9: [body('{"choices": []}'), body('{"error": {"message": "overloaded"}}'), body("[]")],
    10: [body('{"choices": [{"message": null}]}')],
    11: [status(429, headers={"retry-after-ms": "40"})],
}


def test_whatever_fails_is_sent_again_and_billed_once(tmp_path):
    with running(MISDEEDS) as endpoint:
        asker = asker_at(endpoint.url, tmp_path, timeout=0.6, concurrency=12)
        assert values(asker.ask(QUESTIONS, "ask")) == list(range(12))
        assert set(endpoint.billed.values()) == {1}
        assert len(endpoint.billed) == 12
        assert len(endpoint.received) == asker.usage.sent == 12 + sum(map(len, MISDEEDS.values()))
        for number in range(12):
            assert len({one.key for one in endpoint.received if one.question == number}) == 1

        again = asker_at(endpoint.url, tmp_path)
        assert values(again.ask(QUESTIONS, "ask")) == list(range(12))
        assert (again.usage.sent, again.usage.kept, len(endpoint.billed)) == (0, 12, 12)


def test_a_dripping_reply_ends_at_the_deadline(tmp_path):
    with running({0: [drips] * 9}) as endpoint:
        began = time.monotonic()
        with pytest.raises(JudgeError, match=r"did not reply in 2 attempts. .*no reply within 0.3 s"):
            asker_at(endpoint.url, tmp_path, timeout=0.3, retries=1).ask(QUESTIONS[:1], "ask")
        assert time.monotonic() - began < 2


@pytest.mark.parametrize(
    ("headers", "wait"),
    [
        (lambda: {"Retry-After": "0.4"}, 0.4),
        (lambda: {"Retry-After": "9", "retry-after-ms": "400"}, 0.4),
        (lambda: {"Retry-After": seconds_from_now(2)}, 0.9),  # dates are of whole seconds
    ],
)
def test_everybody_waits_as_long_as_the_endpoint_says(tmp_path, headers, wait):
    """Twelve questions, four at a time, the third of which is told to wait."""
    with running({2: [lambda handler: status(429, headers=headers())(handler)]}, delay=0.05) as endpoint:
        assert values(asker_at(endpoint.url, tmp_path, concurrency=4).ask(QUESTIONS, "ask")) == list(range(12))
    (refused,) = endpoint.refused_at
    early = [one.question for one in endpoint.received if refused + 0.03 < one.began < refused + wait]
    assert not early
    assert len([one for one in endpoint.received if one.began >= refused + wait]) >= 12 - 4


def test_a_low_rate_limit_is_no_failure(tmp_path):
    """Every question is refused more often than `retries`, but others are answered in between."""
    refused = status(429, headers={"retry-after-ms": "20"})
    with running({number: [refused] * (number % 3) * 2 for number in range(12)}) as endpoint:
        assert values(asker_at(endpoint.url, tmp_path, concurrency=12, retries=4).ask(QUESTIONS, "ask")) == list(
            range(12)
        )
        assert max(len(endpoint.times(number)) for number in range(12)) == 5
    only_refused = pytest.raises(JudgeError, match=r"did not reply in 3 attempts. .*HTTP 429: no. 0 of 1 are answered")
    with running({0: [refused] * 9}) as endpoint, only_refused:
        asker_at(endpoint.url, tmp_path / "other", retries=2).ask(QUESTIONS[:1], "ask")


def test_too_long_a_wait_is_given_up(tmp_path):
    given_up = pytest.raises(JudgeError, match=r"asks to wait for 86,400 s: HTTP 429")
    with running({0: [status(429, headers={"Retry-After": "86400"})]}) as endpoint, given_up:
        asker_at(endpoint.url, tmp_path).ask(QUESTIONS[:1], "ask")


FINAL = {
    "quota": (status(429, {"message": "no more", "code": "insufficient_quota"}), "no credit left (HTTP 429: no more)"),
    "model": (status(404, {"message": "no such model"}), "HTTP 404: no such model. base_url must end where"),
    "bad": (status(400, {"message": "too long"}), "some-model: HTTP 400: too long."),
    "forbidden": (status(403), "HTTP 403: no. OPENAI_API_KEY must hold a key"),
    "form": (status(422, {"message": "what?"}), "HTTP 422: what?"),
    "format": (
        status(400, {"message": "Invalid schema", "param": "response_format"}),
        "Set `response_format: json_object` in the judge's YAML file",
    ),
    "path": (status(404, {"message": "Not Found"}), "HTTP 404"),
}


@pytest.mark.parametrize("kind", FINAL)
def test_a_refusal_is_one_line_and_keeps_what_is_answered(tmp_path, kind):
    """Seven good ones first, then a refusal beside one that takes longer and is kept all the same."""
    act, words = FINAL[kind]
    slow = lambda handler: (time.sleep(0.2), says('{"value": 8}')(handler))  # noqa: E731
    with running({7: [act], 8: [slow]}) as endpoint:
        asker = asker_at(endpoint.url, tmp_path, concurrency=1)
        asker.ask(QUESTIONS[:7], "ask")
        both = asker_at(endpoint.url, tmp_path, concurrency=2)
        with pytest.raises(JudgeError) as caught:
            both.ask(QUESTIONS, "ask")
        assert len(endpoint.times(7)) == 1
        assert not endpoint.times(11)
        assert both.usage.sent == 2
        assert len(list(tmp_path.glob("*/*.json"))) == 8
    message = str(caught.value)
    assert "\n" not in message
    assert words in message
    assert message.endswith("8 of 12 are answered and kept. The same command goes on.")


def test_an_endpoint_that_is_not_there(tmp_path):
    with running() as endpoint:
        pass
    with pytest.raises(JudgeError, match=r"did not reply in 4 attempts. The last failure was: Connect\w+: "):
        asker_at(endpoint.url, tmp_path).ask(QUESTIONS[:1], "ask")


@pytest.mark.parametrize(
    ("act", "text"),
    [
        (says('{"value": 1', finish_reason="length"), '{"value": 1'),
        (says('{"valeu": 1}'), '{"valeu": 1}'),
        (says("I would rather not."), "I would rather not."),
        (body('{"choices": [{"message": {"content": null}, "finish_reason": "length"}]}'), ""),
    ],
)
def test_a_reply_of_another_form_is_kept_and_asked_again(tmp_path, act, text):
    with running({1: [act]}) as endpoint:
        asker = asker_at(endpoint.url, tmp_path)
        assert values(asker.ask([question(1)], "ask")) == [1]
        assert asker.usage.sent == 2
        assert len({one.key for one in endpoint.received}) == 2
        kept = {json.loads(path.read_text())["text"] for path in tmp_path.glob("*/*.json")}
        assert kept == {text, '{"value": 1}'}
        again = asker_at(endpoint.url, tmp_path)
        assert values(again.ask([question(1)], "ask")) == [1]
        assert (again.usage.sent, again.usage.kept) == (0, 2)


def test_an_endpoint_that_counts_nothing(tmp_path):
    """ "Reply in JSON." and "question 1" are 14 and 10 bytes, so 4 + 3 tokens, besides the schema's; {"value": 1} 3."""
    with running({1: [body('{"choices": [{"message": {"content": "{\\"value\\": 1}"}}]}')]}) as endpoint:
        asker = asker_at(endpoint.url, tmp_path)
        assert values(asker.ask([question(1)], "ask")) == [1]
    schema = -(-len(json.dumps(Number.model_json_schema())) // 4)
    assert (asker.usage.prompt_tokens, asker.usage.completion_tokens) == (4 + 3 + schema, 3)


def test_requests_at_a_time(tmp_path):
    """48 requests of 0.2 s, 16 at a time: 0.6 s."""
    with running(delay=0.2) as endpoint:
        asker = asker_at(endpoint.url, tmp_path, concurrency=16)
        asker.ask([question(100)], "ask")  # imports the client
        began = time.monotonic()
        assert values(asker.ask([question(number) for number in range(48)], "ask")) == list(range(48))
        assert time.monotonic() - began < 2.4
    assert endpoint.most_out == 16


def test_the_key_gets_nowhere(tmp_path, caplog, capfd):
    caplog.set_level(logging.DEBUG)
    with running({7: [status(500, {"message": f"with {KEY}"})], 8: [echoes_key]}) as endpoint:
        asker = asker_at(endpoint.url, tmp_path, concurrency=1)
        with pytest.raises(JudgeError) as caught:
            asker.ask(QUESTIONS, "ask")
    error: BaseException | None = caught.value
    seen = [str(asker.identity), repr(asker.judge), caplog.text, *capfd.readouterr()]
    seen += [str(vars(record)) for record in caplog.records]
    while error is not None:
        seen += [str(error), repr(error), str(vars(error))]
        error = error.__cause__ or error.__context__
    seen += [path.read_text() for path in tmp_path.rglob("*") if path.is_file()]
    assert "HTTP 401: Incorrect API key provided: [key]. See [key]..." in str(caught.value)
    assert any("HTTP 500: with [key]" in text for text in seen)
    for text in seen:
        assert KEY not in text
        assert KEY[8:24] not in text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"Bearer {KEY}!", "Bearer [key]!"),
        (f"{KEY[:10]}...{KEY[-9:]}", "[key]...[key]"),
        (KEY[:7], KEY[:7]),
        ("nothing", "nothing"),
        (KEY + KEY, "[key]"),
    ],
)
def test_scrubbing(text, shown):
    assert scrub(text, KEY) == shown
    assert scrub(text, None) == text


def test_short_keys_are_scrubbed_whole():
    assert scrub("a secret word", "secret") == "a [key] word"


def test_finding_a_key():
    remote = endpoint_config(None, {"model": "m", "api_key_env": "SOME_KEY"}, {})
    assert find_key(remote, {"SOME_KEY": f" {KEY}\n"}) == KEY
    with pytest.raises(ConfigError, match=r"https://api.openai.com/v1 needs a key. SOME_KEY is not set"):
        find_key(remote, {"OPENAI_API_KEY": KEY})
    for broken in ("two words", "schlüssel"):
        with pytest.raises(ConfigError, match="SOME_KEY must be a key") as caught:
            find_key(remote, {"SOME_KEY": broken})
        assert broken not in str(caught.value)
    for url in ("http://localhost:1/v1", "http://127.0.0.5/v1", "http://[::1]:8000/v1", "http://vllm.localhost/v1"):
        assert find_key(endpoint_config(None, {"model": "m", "base_url": url}, {}), {}) is None
    with pytest.raises(ConfigError, match="needs a key"):
        find_key(endpoint_config(None, {"model": "m", "base_url": "http://127.0.0.1.example/v1"}, {}), {})
    telling = endpoint_config(None, {"model": "m", "base_url": f"https://host/{KEY}"}, {})
    with pytest.raises(ConfigError, match="must stand nowhere else") as caught:
        find_key(telling, {"OPENAI_API_KEY": KEY})
    assert KEY not in str(caught.value)
    named_alike = endpoint_config(None, {"model": "ollama/x", "base_url": "http://gpu:1/v1"}, {})
    assert find_key(named_alike, {"OPENAI_API_KEY": "ollama"}) == "ollama"


def test_a_local_endpoint_without_a_key(tmp_path):
    with running() as endpoint:
        assert values(Asker(judge_at(endpoint.url, key=None)).ask(QUESTIONS[:1], "ask")) == [0]
