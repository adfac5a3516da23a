"""Tokenised sequences on disk: made once, read memory-mapped ever after.

    $TC_ADAPTERS_CACHE/sequences/KEY.safetensors

Without TC_ADAPTERS_CACHE entries are where Hugging Face's libraries keep what other libraries make from downloads,
$HF_HOME/assets/tc-adapters-lens/data/sequences (HF_HOME is ~/.cache/huggingface unless set; HF_ASSETS_CACHE moves
assets alone), because who has moved HF_HOME to a large disk wants these there too. TC_ADAPTERS_CACHE=off keeps
nothing. Entries take 5 bytes a token and 16 a sequence, are never changed, and may be deleted at any time.

A cache never stops a run: an entry that is damaged is made again, a directory that cannot be written is left alone,
each with one logged line.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import numpy as np
import xxhash
from filelock import FileLock, Timeout
from huggingface_hub import cached_assets_path
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from tc_adapters_lens.errors import DataError
from tc_adapters_lens.models.atomic import atomic_file
from tc_adapters_lens.models.json_files import first_line
from tc_adapters_lens.training.report import DataReport
from tc_adapters_lens.training.sequences import TokenSequences

__all__ = ["LOCATION", "cache_directory", "load_or_make"]

Loaded: TypeAlias = tuple[TokenSequences, DataReport]

logger = logging.getLogger(__name__)

LOCATION = "TC_ADAPTERS_CACHE"
_ARRAYS = ("tokens", "mask", "offsets", "rows")
_DAMAGED = (OSError, SafetensorError, ValueError, KeyError, TypeError)


def cache_directory() -> Path | None:
    """Where entries are; made if need be. None: the user wants none.

    Raises:
        OSError, ValueError: it cannot be made.
    """
    location = os.environ.get(LOCATION, "")
    if location.lower() == "off":
        return None
    if not location:
        return cached_assets_path("tc-adapters-lens", namespace="data", subfolder="sequences")
    directory = Path(location).expanduser() / "sequences"
    directory.mkdir(parents=True, exist_ok=True)
    return directory


def load_or_make(key: str, make: Callable[[], Loaded], objection: Callable[[DataReport], str]) -> Loaded:
    """An entry's sequences, mapped into memory and not writable; or new ones, which are kept.

    Processes that want the same entry wait for the first of them to make it.

    Args:
        key: names everything that the sequences depend on.
        make: makes them; its exceptions pass through.
        objection: asked after making; a reason why `key` does not name what was made, or nothing.
    """
    try:
        directory = cache_directory()
    except (OSError, ValueError) as error:
        return _uncached(make, error)
    if directory is None:
        return make()
    path = directory / f"{key}.safetensors"
    if (found := _read(path, key)) is not None:
        return found
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(_lock(directory / f".{key}.lock"))
        except (OSError, NotImplementedError) as error:
            return _uncached(make, error)
        found = _read(path, key)
        if found is None:
            found = make()
            if why := objection(found[1]):
                logger.info("tokenised data: not cached, %s", why)
            else:
                _write(path, key, *found)
        return found


def _uncached(make: Callable[[], Loaded], error: Exception) -> Loaded:
    logger.info("tokenised data: not cached: %s (%s names another directory, or off)", first_line(error), LOCATION)
    return make()


def _lock(path: Path) -> FileLock:
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        logger.info("tokenised data: waiting for another process that is making the same")
        lock.acquire()
    return lock


def _read(path: Path, key: str) -> Loaded | None:
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:  # torch's tensors are mapped, NumPy's would be copies
            arrays = {name: file.get_tensor(name).numpy() for name in _ARRAYS if name in file.keys()}  # noqa: SIM118
            metadata = file.metadata()
        for array in arrays.values():
            array.flags.writeable = False
        report, fingerprint = metadata["report"], metadata["fingerprint"]
        if metadata["digest"] != _digest(arrays, key, report, fingerprint):
            raise ValueError("its digest is not that of its content")
        sequences = TokenSequences(**arrays, fingerprint=fingerprint)
        loaded = sequences, DataReport.from_dict(json.loads(report))
    except _DAMAGED as error:
        logger.info("tokenised data: made again, the cached %s is damaged: %s", path, first_line(error))
        return None
    logger.info("tokenised data: read from the cache, %s", path)
    return loaded


def _write(path: Path, key: str, sequences: TokenSequences, report: DataReport) -> None:
    arrays = {name: array for name in _ARRAYS if (array := getattr(sequences, name)) is not None}
    told, fingerprint = json.dumps(report.to_dict(), ensure_ascii=False), sequences.fingerprint()
    metadata = {"report": told, "fingerprint": fingerprint, "digest": _digest(arrays, key, told, fingerprint)}
    try:
        with atomic_file(path, error=DataError) as file:
            save_file(arrays, file, metadata)
            file.chmod(path.parent.stat().st_mode & 0o666)  # whoever may use the directory may use the entry
    except DataError as error:
        logger.info("tokenised data: not cached: %s", error)
    else:
        logger.info("tokenised data: kept in the cache, %s (%s moves it)", path, LOCATION)


def _digest(arrays: dict[str, np.ndarray], *texts: str) -> str:
    digest = xxhash.xxh3_128(json.dumps(texts).encode())
    for array in arrays.values():
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()
