"""Replies that were paid for, kept on disk one file each, by what was asked of whom."""

from __future__ import annotations

import functools
import hashlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, NonNegativeInt, ValidationError

from tc_adapters_lens.errors import JudgeError
from tc_adapters_lens.judge.request import Form, Reply, Request
from tc_adapters_lens.models.atomic import atomic_file, write_json

__all__ = ["Replies", "request_key", "schema_of"]

_FORMAT = {"format": "tc_adapters_lens.judge_reply", "format_version": 1}

logger = logging.getLogger(__name__)


@functools.lru_cache(maxsize=64)
def schema_of(form: type[Form]) -> dict[str, Any]:
    """A form's JSON schema; not to be changed."""
    return form.model_json_schema()


def request_key(identity: Mapping[str, Any], request: Request, repeat: int, n_try: int) -> str:
    """Of everything a reply depends on, SHA-256: the same for the same question to the same judge.

    Args:
        identity: the judge's.
        repeat: which asking of the same question it is; other repeats are other requests.
        n_try: how many replies to it could not be parsed.
    """
    content = {
        "judge": dict(identity),
        "system": request.system,
        "user": request.user,
        "schema": schema_of(request.form),
        "repeat": repeat,
        "try": n_try,
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


class Replies:
    """A directory of replies, which several processes may use at a time.

    A file is `ab/abcdef....json`, named by its request's key, and written whole or not at all.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def get(self, key: str) -> Reply | None:
        """The reply to a request; None where none is kept.

        A file that cannot be read as one counts as none, with a warning.
        """
        path = self._path(key)
        try:
            text = path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            return _ignored(path, f"cannot be read ({error.strerror})")
        try:
            kept = _Kept.model_validate_json(text)
        except ValidationError:
            return _ignored(path, "is not a reply, or not all of one")
        if (kept.format, kept.format_version) != tuple(_FORMAT.values()):
            return _ignored(path, "is of another format")
        if kept.key != key:
            return _ignored(path, "is of another request")
        return Reply(kept.text, kept.prompt_tokens, kept.completion_tokens)

    def keep(self, key: str, request: Request, reply: Reply) -> None:
        """Write a reply down; one that is there is replaced.

        Raises:
            JudgeError: the disk is full, or writing is not permitted.
        """
        values = _Kept(
            **_FORMAT,
            key=key,
            task=request.task,
            text=reply.text,
            prompt_tokens=reply.prompt_tokens,
            completion_tokens=reply.completion_tokens,
        )
        with atomic_file(self._path(key), error=JudgeError, shared=True) as partial:
            write_json(partial, values.model_dump())

    def _path(self, key: str) -> Path:
        return self.directory / key[:2] / f"{key}.json"


class _Kept(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    format: str
    format_version: int
    key: str
    task: str
    text: str
    prompt_tokens: NonNegativeInt
    completion_tokens: NonNegativeInt


def _ignored(path: Path, why: str) -> None:
    logger.warning("%s %s: asked again.", path, why)
