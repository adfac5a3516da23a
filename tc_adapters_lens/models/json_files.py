"""JSON objects read from files, and what is said of files that cannot be read; torch is not imported."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tc_adapters_lens.errors import AdapterLensError, CheckpointError

__all__ = ["first_line", "read_json", "read_result_of"]


def read_json(path: Path) -> Mapping[str, Any]:
    """A JSON object from a file.

    Raises:
        CheckpointError: unreadable, not JSON, or not an object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON: {first_line(error)}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} must hold a JSON object. Got {type(value).__name__}.")
    return value


def read_result_of(command: str, path: Path, kind: str, version: int, error: type[AdapterLensError]) -> dict[str, Any]:
    """The JSON result that a command wrote, with its `format` and `format_version` as they must be.

    Raises:
        error: it cannot be read, or is something else.
    """
    try:
        values = dict(read_json(path))
    except CheckpointError as broken:
        raise error(f"{str(broken).rstrip('.')}. Make it again: `tc-adapters {command}`.") from broken
    for key, wanted in (("format", kind), ("format_version", version)):
        if values.get(key) != wanted:
            raise error(
                f"{path} must be a result of `tc-adapters {command}`, with {key} {wanted!r}. Got {values.get(key)!r}."
            )
    return values


def first_line(error: BaseException, limit: int = 200) -> str:
    """The first line of an exception's message, shortened, or its type when it has none."""
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return line if len(line) <= limit else line[: limit - 3] + "..."
