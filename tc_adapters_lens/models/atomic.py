"""Directories and files that appear whole or not at all."""

from __future__ import annotations

import errno
import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from tc_adapters_lens.errors import AdapterLensError


@contextmanager
def atomic_directory(
    path: str | Path,
    *,
    may_replace: Callable[[Path], bool] = lambda _: False,
    error: type[AdapterLensError] = AdapterLensError,
) -> Iterator[Path]:
    """Write a directory beside its place, flush it to the disk, then rename it.

        with atomic_directory("runs/a/adapters") as directory:      # runs/a/.adapters.partial
            save_file(tensors, directory / "weights.safetensors")

    On an exception the partial directory is removed and what stood at `path` is untouched. One writer per
    path: what a killed process left behind is removed, or put back if it was killed between the renames.

    Args:
        path: where the directory shall be; parents are made.
        may_replace: asked about a directory that is there and not empty.
        error: type raised for what the user can mend.
    Raises:
        error: something else stands at `path`, the disk is full, or writing is not permitted.
    """
    path = Path(os.path.realpath(Path(path).expanduser()))
    partial, previous = path.with_name(f".{path.name}.partial"), path.with_name(f".{path.name}.previous")
    with writing(path, error):
        if previous.exists() and not path.exists():
            previous.rename(path)
        if path.exists():
            _check_replaceable(path, may_replace, error)
        try:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            yield partial
            _flush(partial)
            shutil.rmtree(previous, ignore_errors=True)
            if path.exists():
                path.rename(previous)
            partial.rename(path)
            _flush_directory(path.parent)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            if previous.exists() and not path.exists():
                previous.rename(path)
            raise
    shutil.rmtree(previous, ignore_errors=True)


@contextmanager
def atomic_file(
    path: str | Path, *, error: type[AdapterLensError] = AdapterLensError, shared: bool = False
) -> Iterator[Path]:
    """As `atomic_directory`, for one file, which replaces what stood there. Yields the path to write to.

    Args:
        shared: several writers may be at it at a time; the last one stays. What a killed one left behind stays too.
    Raises:
        error: the disk is full, or writing is not permitted.
    """
    path = Path(os.path.realpath(Path(path).expanduser()))
    writer = f".{os.getpid()}-{threading.get_ident()}" if shared else ""
    partial = path.with_name(f".{path.name}{writer}.partial")
    with writing(path, error):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            yield partial
            with open(partial, "rb") as opened:
                os.fsync(opened.fileno())
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)


@contextmanager
def writing(path: Path, error: type[AdapterLensError]) -> Iterator[None]:
    """Turns a failure to write into one line that names the path, the reason and the fix."""
    try:
        yield
    except (OSError, SafetensorError) as failure:
        raise error(_what_failed(path, failure)) from failure


def _check_replaceable(path: Path, may_replace: Callable[[Path], bool], error: type[AdapterLensError]) -> None:
    if not path.is_dir():
        raise error(f"{path} is a file. Name a directory.")
    if any(path.iterdir()) and not may_replace(path):
        raise error(f"{path} holds something else, so it is not replaced. Name a new directory.")


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Indented, in the order given.

    Raises:
        TypeError, ValueError: a value JSON has no word for, NaN and infinity among them.
    """
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")


def _flush(directory: Path) -> None:
    readable = directory.stat().st_mode & 0o666  # what the umask allows; safetensors writes files for the owner alone
    for folder, _, files in os.walk(directory):
        for file in files:
            path = Path(folder) / file
            path.chmod(readable)
            with path.open("rb") as opened:
                os.fsync(opened.fileno())
        _flush_directory(Path(folder))


def _flush_directory(directory: Path) -> None:
    if os.name == "nt":  # directories cannot be opened there
        return
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _what_failed(path: Path, failure: Exception) -> str:
    # safetensors words the system's error its own way: "I/O error: ... (os error 28)"
    full = getattr(failure, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "os error 28" in str(failure)
    if full:
        why, fix = "no space left on its disk", "Free some, or name another directory"
    else:
        why, fix = " ".join(str(failure).split()), "Name a directory that can be written to"
    return f"Writing {path} failed: {why}. {fix}; nothing was changed there."
