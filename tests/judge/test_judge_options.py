"""Options that name a judge, and what a dry run says."""

from __future__ import annotations

import json

import pytest

from tc_adapters_lens.cli.judge_options import add_judge, open_asker, print_cost
from tc_adapters_lens.cli.parser import Parser
from tc_adapters_lens.errors import ConfigError, MissingExtraError
from tc_adapters_lens.judge.asking import Asker
from tests.judge.endpoint_server import running
from tests.judge.questions import KEY, questions, values

VARIABLES = ("OPENAI_BASE_URL", "OPENAI_API_KEY", "TC_ADAPTERS_JUDGE_MODEL")


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


def open_with(tmp_path, *words: str) -> Asker:
    parser = Parser(prog="tc-adapters judge classify")
    add_judge(parser)
    return open_asker(parser.parse_args(list(words)), tmp_path)


def test_rules_need_nothing(tmp_path):
    asker = open_with(tmp_path, "--judge", "rules", "--repeat", "2")
    assert (asker.identity["kind"], asker.repeat, asker.replies) == ("rules", 2, None)
    with pytest.raises(ConfigError, match="--max-requests is about an endpoint, and --judge rules asks none"):
        open_with(tmp_path, "--judge", "rules", "--max-requests", "3")


def test_an_endpoint_by_options_and_environment(tmp_path, monkeypatch):
    with running() as endpoint:
        monkeypatch.setenv("OPENAI_BASE_URL", endpoint.url)
        monkeypatch.setenv("MY_KEY", KEY)
        words = ["--judge-model", "some", "--api-key-env", "MY_KEY", "--concurrency", "3", "--max-requests", "4"]
        asker = open_with(tmp_path, *words, "--max-tokens", "5000", "--repeat", "1")
        assert values(asker.ask(questions(4), "ask")) == [0, 1, 2, 3]
    assert {one.headers["authorization"] for one in endpoint.received} == {f"Bearer {KEY}"}
    assert (asker.identity["model"], asker.judge.concurrency) == ("some", 3)
    assert (asker.budget.max_requests, asker.budget.max_tokens, asker.repeat) == (4, 5000, 1)
    assert len(list((tmp_path / "judge" / "replies").glob("*/*.json"))) == 4


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "A judge must be named: --judge rules"),
        (["--judge-model", "m"], "https://api.openai.com/v1 needs a key. OPENAI_API_KEY is not set"),
        (["--judge", "ruels"], "--judge must be rules or a YAML file. ruels cannot be read"),
        (["--judge-model", "m", "--concurrency", "0"], "--concurrency must be at least 1. Got 0."),
        (["--judge-model", "m", "--max-tokens", "0"], "--max-tokens must be at least 1. Got 0."),
        (["--judge", "rules", "--repeat", "-1"], "--repeat must be at least 0. Got -1."),
    ],
)
def test_wrong_use(tmp_path, words, message):
    with pytest.raises(ConfigError, match=message):
        open_with(tmp_path, *words)


def test_without_the_client(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r'pip install "tc-adapters-lens\[judge\]"'):
        open_with(tmp_path, "--judge-model", "m", "--base-url", "http://localhost:1/v1")


def test_a_dry_run_needs_no_key_and_tells_the_cost(tmp_path, capsys):
    """A prompt is 4 + 3 tokens and its schema's; prices per token make 2 questions cost what they take."""
    path = tmp_path / "judge.yaml"
    path.write_text("model: m\nparams: {max_tokens: 100}\nprices: {input: 1000000, output: 1000000}\n")
    asker = open_with(tmp_path, "--judge", str(path), "--dry-run")
    parts = {"describe": asker.cost(questions(2)), "detect": asker.cost(questions(3))}
    told = print_cost(parts, asker)
    prompt = parts["describe"].prompt_tokens // 2
    assert told == {
        "dry_run": True,
        "judge": asker.identity,
        "parts": {name: cost.to_dict() for name, cost in parts.items()},
        "n_to_send": 5,
        "prompt_tokens": 5 * prompt,
        "completion_tokens": 500,
        "price": 5 * (prompt + 100),
    }
    assert json.loads(json.dumps(told)) == told
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == ["describe", "2", "2", "~", str(2 * prompt), "<=", "200"]
    assert f"At the prices given: {5 * (prompt + 100):,.4f} at most, about." in lines
    assert "Nothing was sent." in lines[-1]

    path.write_text("model: m\n")
    asker = open_with(tmp_path, "--judge", str(path), "--dry-run")
    told = print_cost({"classify": asker.cost(questions(2))}, asker)
    assert (told["completion_tokens"], told["price"]) == (None, None)
    assert "no limit" in capsys.readouterr().out
