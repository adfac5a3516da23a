"""Where and how a language model is asked, as a YAML file:

    model: gpt-4o-mini
    base_url: https://api.openai.com/v1
    api_key_env: OPENAI_API_KEY        # the variable that holds the key, never the key
    concurrency: 16
    timeout: 180                       # seconds, of one request from its start to the reply's last byte
    retries: 6
    response_format: json_schema       # or json_object, or none, for endpoints that cannot do more
    params: {temperature: 0, max_tokens: 1000}
    prices: {input: 0.15, output: 0.60}      # per million tokens

All but the model has a default; that of base_url is the one above, params and prices are empty.
"""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import yaml
from pydantic import ConfigDict, Field, ValidationError
from pydantic.dataclasses import dataclass

from tc_adapters_lens.errors import ConfigError, did_you_mean

__all__ = ["BASE_URL_VARIABLE", "MODEL_VARIABLE", "EndpointConfig", "Prices", "endpoint_config"]

BASE_URL_VARIABLE = "OPENAI_BASE_URL"
MODEL_VARIABLE = "TC_ADAPTERS_JUDGE_MODEL"

_STRICT = ConfigDict(strict=True, allow_inf_nan=False)
_OWN_PARAMS = ("model", "messages", "response_format", "stream", "n")
"""Of a request, what `params` may not say."""
_LIMITS = ("max_completion_tokens", "max_tokens")


@dataclass(frozen=True, config=_STRICT)
class Prices:
    """Of a million tokens of prompts and of replies, in any currency."""

    input: Annotated[float, Field(ge=0)]
    output: Annotated[float, Field(ge=0)]


@dataclass(frozen=True, config=_STRICT)
class EndpointConfig:
    """See the module's own text.

    Raises:
        ConfigError: from `endpoint_config`, which all of them come from.
    """

    model: Annotated[str, Field(min_length=1)]
    base_url: str = "https://api.openai.com/v1"
    api_key_env: str = "OPENAI_API_KEY"
    concurrency: Annotated[int, Field(ge=1)] = 16
    timeout: Annotated[float, Field(gt=0)] = 180.0
    retries: Annotated[int, Field(ge=0)] = 6
    response_format: Literal["json_schema", "json_object", "none"] = "json_schema"
    params: Mapping[str, Any] = Field(default_factory=dict)
    prices: Prices | None = None

    @property
    def identity(self) -> dict[str, Any]:
        """What replies depend on."""
        return {
            "kind": "endpoint",
            "base_url": self.base_url,
            "model": self.model,
            "params": dict(self.params),
            "response_format": self.response_format,
        }

    @property
    def is_local(self) -> bool:
        """Whether the endpoint is on this machine."""
        host = urlsplit(self.base_url).hostname or ""
        try:
            return ipaddress.ip_address(host).is_loopback
        except ValueError:
            return host == "localhost" or host.endswith(".localhost")

    @property
    def most_completion_tokens(self) -> int | None:
        """Tokens of a reply, at most; None where nothing limits them."""
        return next((int(self.params[name]) for name in _LIMITS if name in self.params), None)


def endpoint_config(
    file: str | Path | None, options: Mapping[str, Any], environment: Mapping[str, str]
) -> EndpointConfig:
    """An endpoint as the options say, else the file, else the environment, else the defaults.

    Args:
        file: YAML; None for none.
        options: values of keys, None where an option is not given.
        environment: where BASE_URL_VARIABLE and MODEL_VARIABLE are looked up.
    Raises:
        ConfigError: no model is named, or a key or value is not what it must be.
    """
    known = [field.name for field in fields(EndpointConfig)]
    values = {} if file is None else _read(Path(file).expanduser(), known)
    for key, variable in (("base_url", BASE_URL_VARIABLE), ("model", MODEL_VARIABLE)):
        if environment.get(variable):
            values.setdefault(key, environment[variable])
    values |= {key: value for key, value in options.items() if value is not None}
    if not values.get("model"):
        raise ConfigError(
            "A judge must be named: --judge rules, --judge with the YAML file of an endpoint, "
            f"or --judge-model or {MODEL_VARIABLE} with a model's name. Got none."
        )
    if isinstance(values.get("base_url"), str):
        values["base_url"] = values["base_url"].rstrip("/")
    if not re.fullmatch(r"[A-Z_][A-Z0-9_]*", str(values.get("api_key_env", EndpointConfig.api_key_env))):
        raise ConfigError(
            "The judge's api_key_env must be the name of an environment variable, in capitals. Got something else; "
            "if that is a key, put it into a variable, and name the variable."
        )
    try:
        config = EndpointConfig(**values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(map(str, first["loc"]))
        rule = first["msg"][0].lower() + first["msg"][1:]
        raise ConfigError(f"The judge's {key} is not right: {rule}. Got {first['input']!r}.") from None
    _check_base_url(config.base_url)
    _check_params(config.params)
    return config


def _read(path: Path, known: list[str]) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"--judge must be rules or a YAML file. {path} cannot be read: {error.strerror}.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"--judge must be rules or a YAML file. {path} is not: {_line(error)}.") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path} must have keys and values. Got {type(values).__name__}.")
    if unknown := [str(key) for key in values if key not in known]:
        raise ConfigError(
            f"{path} may have the keys {', '.join(known)}. Got {unknown[0]}.{did_you_mean(unknown[0], known)}"
        )
    return dict(values)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())


def _check_base_url(url: str) -> None:
    """Raises ConfigError: not one, or one with secrets in it, which are not repeated."""
    rule = "The judge's base_url must be http(s)://HOST[:PORT]/PATH, such as http://localhost:11434/v1"
    try:
        parts = urlsplit(url)
        port_is_right = parts.port is None or parts.port > 0
    except ValueError:
        raise ConfigError(f"{rule}. Got one that is no address.") from None
    if parts.username is not None or parts.password is not None or parts.query or parts.fragment or "?" in url:
        raise ConfigError(
            f"{rule}, without user, password or query, since results name it. Got one with them; a key belongs into "
            "the variable that api_key_env names."
        )
    if parts.scheme not in ("http", "https") or not parts.hostname or not port_is_right or re.search(r"\s", url):
        raise ConfigError(f"{rule}. Got {url!r}.")


def _check_params(params: Mapping[str, Any]) -> None:
    if own := [name for name in params if name in _OWN_PARAMS]:
        raise ConfigError(f"The judge's params may not have {', '.join(_OWN_PARAMS)}. Got {own[0]}; leave it out.")
    for name in _LIMITS:
        value = params.get(name, 1)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ConfigError(f"The judge's params.{name} must be a number of tokens, at least 1. Got {value!r}.")
    try:
        json.dumps(params, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"The judge's params must be values that JSON has. Got {params!r}: {_line(error)}.") from None
