"""What came back over HTTP: a reply, or a failure and what to do about it."""

from __future__ import annotations

import email.utils
import json
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["Completion", "Failure", "failure_of_status", "read_completion"]

_AGAIN = (408, 409, 425, 429)
_NO_CREDIT = ("insufficient_quota", "billing_hard_limit_reached", "billing_not_active")
_LENGTH = 300


@dataclass(frozen=True)
class Completion:
    """A reply as an endpoint sent it.

    prompt_tokens, completion_tokens: None where the endpoint does not say.
    cut: whether it ends at a limit of tokens.
    """

    text: str
    prompt_tokens: int | None
    completion_tokens: int | None
    cut: bool


@dataclass(frozen=True)
class Failure:
    """No reply.

    words: what failed, as a sentence without its full stop.
    final: whether sending it again is of no use.
    wait: seconds the endpoint asks to wait; None where it does not.
    limited: whether the endpoint has had too much, so that everybody has to wait.
    """

    words: str
    final: bool = False
    wait: float | None = None
    limited: bool = False


def read_completion(body: str) -> Completion | Failure:
    """A reply from the body of a response with status 200."""
    try:
        values = json.loads(body)
    except ValueError:
        return Failure(f"the response was not JSON, or not all of it: {_shortened(body)!r}")
    try:
        choice = values["choices"][0]
        message = choice["message"]
        content = message.get("content")
    except (KeyError, IndexError, TypeError, AttributeError):
        return Failure(f"the response had no reply in it: {_shortened(_message(values) or body)!r}")
    if isinstance(content, list):
        content = "".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    usage = values.get("usage")
    counts = usage if isinstance(usage, dict) else {}
    return Completion(
        text=content if isinstance(content, str) else "",
        prompt_tokens=_count(counts.get("prompt_tokens")),
        completion_tokens=_count(counts.get("completion_tokens")),
        cut=choice.get("finish_reason") == "length",
    )


def failure_of_status(status: int, headers: Mapping[str, str], body: str) -> Failure:
    """What a response of another status means."""
    try:
        values = json.loads(body)
    except ValueError:
        values = None
    said = _shortened(_message(values) or body)
    words = f"HTTP {status}" + (f": {said}" if said else "")
    if status == 429 and any(_error(values).get(key) in _NO_CREDIT for key in ("code", "type")):
        return Failure(f"the account has no credit left ({words})", final=True)
    if status in _AGAIN or status >= 500:
        wait = _retry_after(headers)
        return Failure(words, wait=wait, limited=status == 429 or wait is not None)
    return Failure(words, final=True)


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that Retry-After or retry-after-ms say; None where they say nothing that can be meant."""
    for name, scale in (("retry-after-ms", 1000), ("retry-after", 1)):
        try:
            seconds = float(headers[name]) / scale
        except (KeyError, ValueError):
            continue
        return seconds if math.isfinite(seconds) and seconds >= 0 else None
    try:
        return max(email.utils.parsedate_to_datetime(headers["retry-after"]).timestamp() - time.time(), 0.0)
    except (KeyError, ValueError, TypeError, OverflowError):
        return None


def _error(values: Any) -> Mapping[str, Any]:
    error = values.get("error") if isinstance(values, dict) else None
    return error if isinstance(error, dict) else {}


def _message(values: Any) -> str:
    """What a body of JSON says in words, where it does."""
    if not isinstance(values, dict):
        return ""
    said = _error(values).get("message") or values.get("error") or values.get("message") or values.get("detail")
    words = said if isinstance(said, str) else json.dumps(said) if said else ""
    param = _error(values).get("param")
    return f"{words} ({param})" if isinstance(param, str) else words


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def _shortened(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _LENGTH else text[: _LENGTH - 3] + "..."
