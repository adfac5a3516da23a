"""JSON objects read from files, and what is said of files that cannot be read; torch is not imported."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tc_adapters_lens.errors import CheckpointError

__all__ = ["first_line", "read_json"]


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


def first_line(error: BaseException, limit: int = 200) -> str:
    """The first line of an exception's message, shortened, or its type when it has none."""
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return line if len(line) <= limit else line[: limit - 3] + "..."
