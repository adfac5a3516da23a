"""Results as files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tc_adapters_lens.models import atomic


def write_json(path: str | Path, result: Mapping[str, Any]) -> None:
    """Write a verb's result whole or not at all; parent directories are made.

    Raises:
        AdapterLensError: the file cannot be written.
        TypeError, ValueError: a value JSON has no word for, NaN among them.
    """
    with atomic.atomic_file(path) as file:
        atomic.write_json(file, result)
