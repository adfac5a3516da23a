"""Keys: where they come from, and how they are kept out of everything that is said or written."""

from __future__ import annotations

import json
from collections.abc import Mapping

from tc_adapters_lens.errors import ConfigError
from tc_adapters_lens.judge.endpoint_config import EndpointConfig

__all__ = ["find_key", "scrub"]

_PIECE = 8
"""As many characters of a key in a row give it away."""
_REAL = 16
"""Shorter ones are words that stand in for a key, such as "ollama", and may be part of a model's name."""


def find_key(config: EndpointConfig, environment: Mapping[str, str]) -> str | None:
    """The key from the variable that the configuration names; None where a local endpoint needs none.

    Raises:
        ConfigError: there is none, it cannot be one, or the configuration holds it as well.
    """
    key = environment.get(config.api_key_env, "").strip()
    if not key:
        if config.is_local:
            return None
        raise ConfigError(
            f"{config.base_url} needs a key. {config.api_key_env} is not set; set it, to any word if none is asked for."
        )
    if not key.isascii() or not key.isprintable() or " " in key:
        raise ConfigError(f"{config.api_key_env} must be a key: letters, digits and signs, without spaces.")
    if len(key) >= _REAL and key in json.dumps(config.identity):
        raise ConfigError(
            f"The key in {config.api_key_env} must stand nowhere else. It is in base_url, model or params."
        )
    return key


def scrub(text: str, key: str | None) -> str:
    """The text with [key] where it has the key, or a piece of it that is long enough to matter."""
    if not key:
        return text
    size = min(_PIECE, len(key))
    hidden = [False] * len(text)
    for piece in {key[start : start + size] for start in range(len(key) - size + 1)}:
        at = text.find(piece)
        while at >= 0:
            hidden[at : at + size] = [True] * size
            at = text.find(piece, at + 1)
    shown = []
    for position, (character, is_hidden) in enumerate(zip(text, hidden, strict=True)):
        if not is_hidden:
            shown.append(character)
        elif position == 0 or not hidden[position - 1]:
            shown.append("[key]")
    return "".join(shown)
