"""Where endpoints come from: files, options, the environment; and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from tc_adapters_lens.errors import ConfigError
from tc_adapters_lens.judge.endpoint_config import EndpointConfig, Prices, endpoint_config

SECRET = "sk-abcdefgh12345678"


def from_file(tmp_path, **values: Any) -> EndpointConfig:
    path = tmp_path / "judge.yaml"
    path.write_text(yaml.safe_dump({"model": "m", **values}))
    return endpoint_config(path, {}, {})


def test_defaults():
    config = endpoint_config(None, {"model": "m", "base_url": None}, {})
    assert (config.base_url, config.api_key_env) == ("https://api.openai.com/v1", "OPENAI_API_KEY")
    assert (config.params, config.prices, config.most_completion_tokens) == ({}, None, None)
    assert not config.is_local


def test_options_go_before_the_file_and_the_file_before_the_environment(tmp_path):
    path = tmp_path / "judge.yaml"
    path.write_text("model: of the file\nconcurrency: 3\ntimeout: 9\n")
    environment = {"OPENAI_BASE_URL": "http://env/v1/", "TC_ADAPTERS_JUDGE_MODEL": "of the environment"}
    config = endpoint_config(path, {"concurrency": 5}, environment)
    assert (config.model, config.concurrency, config.timeout) == ("of the file", 5, 9.0)
    assert config.base_url == "http://env/v1"
    assert endpoint_config(path, {"model": "of the options"}, environment).model == "of the options"
    assert endpoint_config(None, {}, environment).model == "of the environment"


def test_what_replies_depend_on(tmp_path):
    config = from_file(
        tmp_path,
        base_url="http://localhost:1/v1",
        params={"max_tokens": 9},
        prices={"input": 1, "output": 0.5},
        retries=1,
        response_format="none",
    )
    assert config.identity == {
        "kind": "endpoint",
        "base_url": "http://localhost:1/v1",
        "model": "m",
        "params": {"max_tokens": 9},
        "response_format": "none",
    }
    assert config.prices == Prices(1.0, 0.5)
    assert config.most_completion_tokens == 9
    assert config.is_local


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"modle": "x"}, r"may have the keys model, base_url, .*. Got modle. Did you mean 'model'\?"),
        (
            {"concurrency": 0},
            "The judge's concurrency is not right: input should be greater than or equal to 1. Got 0.",
        ),
        ({"concurrency": "4"}, "The judge's concurrency is not right: input should be a valid integer. Got '4'."),
        ({"timeout": 0}, "The judge's timeout is not right: .*greater than 0"),
        ({"timeout": float("inf")}, "The judge's timeout is not right: .*finite"),
        (
            {"response_format": "xml"},
            "The judge's response_format is not right: .*'json_schema', 'json_object' or 'none'",
        ),
        ({"model": 4}, "The judge's model is not right: input should be a valid string. Got 4"),
        ({"prices": {"input": 1}}, "The judge's prices.output is not right: field required"),
        (
            {"prices": {"input": 1, "output": -1}},
            "The judge's prices.output is not right: .*greater than or equal to 0",
        ),
        ({"prices": {"input": 1, "output": 1, "in": 1}}, "The judge's prices.in is not right: unexpected"),
        ({"params": {"stream": True}}, "The judge's params may not have .*. Got stream; leave it out."),
        ({"params": {"max_tokens": 0}}, "The judge's params.max_tokens must be a number of tokens"),
        ({"params": {"stop": float("nan")}}, "The judge's params must be values that JSON has"),
        ({"params": [1]}, "The judge's params is not right"),
        ({"base_url": "localhost:11434/v1"}, "base_url must be http"),
        ({"base_url": "http:///v1"}, "base_url must be http"),
        ({"base_url": "http://host:99999/v1"}, "base_url must be http.*Got one that is no address"),
        ({"base_url": f"http://me:{SECRET}@host/v1"}, "without user, password or query"),
        ({"base_url": f"http://{SECRET}@host/v1"}, "without user, password or query"),
        ({"base_url": f"http://host/v1?key={SECRET}"}, "without user, password or query"),
        ({"base_url": f"http://host/v1#{SECRET}"}, "without user, password or query"),
        ({"api_key_env": SECRET}, "api_key_env must be the name of an environment variable"),
    ],
)
def test_a_wrong_value_is_one_line_without_secrets(tmp_path, values, words):
    with pytest.raises(ConfigError, match=words) as caught:
        from_file(tmp_path, **values)
    assert "\n" not in str(caught.value)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [("- model", "must have keys and values. Got list"), ("a: [", "is not: "), (None, "cannot be read: No such file")],
)
def test_a_file_that_is_none(tmp_path, text, words):
    path = tmp_path / "judge.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError, match=words) as caught:
        endpoint_config(path, {}, {})
    assert "\n" not in str(caught.value)


def test_nobody_is_named():
    with pytest.raises(ConfigError, match=r"A judge must be named: --judge rules, .* Got none\."):
        endpoint_config(None, {}, {})
