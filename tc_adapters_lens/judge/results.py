"""What judges said, as files: RUN/judge/TASK-MODEL[-NAME].json, and their replies beside them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from tc_adapters_lens.errors import ConfigError, JudgeError
from tc_adapters_lens.features.records import ModelKind, StoreInfo
from tc_adapters_lens.models.atomic import atomic_file, write_json
from tc_adapters_lens.models.json_files import read_result_of
from tc_adapters_lens.models.names import JUDGE

__all__ = ["FORMATS", "REPLIES", "ResultKind", "about_store", "read_result", "result_file", "results", "write_result"]

ResultKind = Literal["classify", "detect"]

FORMATS: dict[ResultKind, str] = {
    "classify": "tc_adapters_lens.feature_classes",
    "detect": "tc_adapters_lens.feature_detection",
}
FORMAT_VERSION = 1
REPLIES = "replies"
"""Where in RUN/judge replies are kept."""

_STORE_KEYS = ("model", "n_layers", "n_features", "n_counted", "adapters_fingerprint")


def about_store(info: StoreInfo) -> dict[str, Any]:
    """Whose features were judged, for results."""
    return {"pair": info.pair, **{key: getattr(info, key) for key in _STORE_KEYS}}


def result_file(run: Path, kind: ResultKind, model: ModelKind, name: str | None) -> Path:
    """Where a run keeps a result.

    Args:
        name: tells it from others of its kind and model; None for the first.
    Raises:
        ConfigError: the name is not of letters, digits and underscores.
    """
    if name is not None and not re.fullmatch(r"\w+", name, re.ASCII):
        raise ConfigError(f"--name must be of letters, digits and underscores. Got '{name}'.")
    return run / JUDGE / f"{kind}-{model}{f'-{name}' if name else ''}.json"


def write_result(path: Path, kind: ResultKind, result: Mapping[str, Any]) -> None:
    """Write a result, whole or not at all."""
    with atomic_file(path, error=JudgeError) as partial:
        write_json(partial, {"format": FORMATS[kind], "format_version": FORMAT_VERSION, **result})


def read_result(path: Path, kind: ResultKind) -> dict[str, Any]:
    """A result that `write_result` wrote.

    Raises:
        JudgeError: there is none, it cannot be read, or it is something else.
    """
    if not path.is_file():
        raise JudgeError(f"{path} must be a result of `tc-adapters judge {kind}`. There is no such file.")
    return read_result_of(f"judge {kind}", path, FORMATS[kind], FORMAT_VERSION, JudgeError)


def results(run: Path, kind: ResultKind) -> Iterator[tuple[Path, dict[str, Any]]]:
    """A run's results of a kind, with their files; errors as in `read_result`."""
    for path in sorted((run / JUDGE).glob(f"{kind}-*.json")):
        yield path, read_result(path, kind)
