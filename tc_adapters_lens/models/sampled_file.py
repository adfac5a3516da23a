"""Sampled responses as a jsonl file that grows row by row, and beside it what they are: `FILE.jsonl.meta.json`.

The description is there before the first row and says how many rows there will be; once they are, it says so and holds
the file's hash. A file that is not whole, or was changed, is never taken for a finished one. One writer per path.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

from tc_adapters_lens.errors import DataError
from tc_adapters_lens.models import atomic
from tc_adapters_lens.models.sampling import Sampled

FORMAT, VERSION = "tc-adapters-lens sampled responses", 2
BATCHWISE = 1  # the version whose draws followed from the batch: whole files are read, unfinished ones not gone on with


def meta_path(path: str | Path) -> Path:
    """Where the description of a sample file is."""
    path = Path(path).expanduser()
    return path.with_name(f"{path.name}.meta.json")


def prompts_fingerprint(prompts: Sequence[Sequence[int]]) -> str:
    """Hash of all token ids."""
    return f"sha256:{hashlib.sha256(json.dumps(prompts).encode()).hexdigest()}"


def read_sampled(path: str | Path) -> dict[str, Any] | None:
    """The description of a finished sample file; None: the file has none, so it was not made here.

    Raises:
        DataError: rows are still to come, the file is gone or changed, or the description cannot be read.
    """
    path = Path(path).expanduser()
    meta = _read_meta(path)
    if meta is None:
        return None
    if not meta["complete"]:
        there = len(_row_ends(path, None))
        raise DataError(
            f"a sample file must be whole. Got {there:,} of {meta['n_rows']:,} rows in {path}; run the same "
            "`tc-adapters generate` again to go on with it."
        )
    if not path.is_file() or _sha256(path) != meta["sha256"]:
        raise DataError(
            f"{path} is not the file that {meta_path(path).name} describes: it was changed or removed. "
            "Delete both and sample again."
        )
    return meta


def read_rows(path: str | Path) -> list[Sampled]:
    """The rows of a finished sample file. Errors as `read_sampled`.

    Raises:
        DataError: it was not made here.
    """
    if read_sampled(path) is None:
        raise DataError(f"{path} must have {meta_path(path).name} beside it, as `tc-adapters generate` writes it.")
    with open(Path(path).expanduser(), encoding="utf-8") as file:
        return [Sampled(**json.loads(line)) for line in file]


def write_sampled(
    path: str | Path,
    prompts: Sequence[Sequence[int]],
    settings: Mapping[str, Any],
    about: Mapping[str, Any],
    sample_from: Callable[[int], Iterable[Sampled]],
) -> dict[str, Any]:
    """Write one row per prompt, going on where an earlier call was stopped.

    Args:
        path: where; rows are {"input_ids", "prompt_length", "finished"}.
        prompts: token ids, in the order of the rows.
        settings: all that decides what is sampled, `batch_size` among it, as JSON has words for it. A file begun
            with others is left alone.
        about: further description.
        sample_from: makes the rows from a given one on, the first of a batch; not called where all are there.
    Returns:
        The description of the finished file.
    Raises:
        DataError: something else stands there, it was begun with other settings, or it cannot be written to.
    """
    path = Path(os.path.realpath(Path(path).expanduser()))
    settings = json.loads(json.dumps({"n_rows": len(prompts), **settings}))
    meta = _begun(path, settings)
    if meta is None:
        head = {"format": FORMAT, "version": VERSION, "complete": False, "n_rows": len(prompts)}
        meta = {**head, "settings": settings, **about}
        _write_meta(path, meta)
    if meta["complete"]:
        return read_sampled(path) or meta
    ends = _row_ends(path, prompts)
    kept = len(ends) if len(ends) == len(prompts) else len(ends) - len(ends) % settings["batch_size"]
    _append(
        path, ends[kept - 1] if kept else 0, settings["batch_size"], sample_from(kept) if kept < len(prompts) else ()
    )
    meta = {**meta, "complete": True, **_totals(path, prompts), "sha256": _sha256(path)}
    _write_meta(path, meta)
    return meta


def _begun(path: Path, settings: Mapping[str, Any]) -> dict[str, Any] | None:
    """The description of the file that is there, which must be of these settings; None: there is no file."""
    if not path.exists():
        return None
    meta = _read_meta(path) if path.is_file() else None
    if meta is None:
        raise DataError(f"{path} is there already and was not written by `tc-adapters generate`. Name another file.")
    for key, value in settings.items():
        if meta["settings"].get(key) != value:
            raise DataError(
                f"{path} was begun with {key} {meta['settings'].get(key)}. Got {value}; name another file, or "
                "delete this one to start again."
            )
    return meta


def _append(path: Path, size: int, batch_size: int, rows: Iterable[Sampled]) -> None:
    """Cut the file to `size` bytes, then add rows, those of a batch together."""
    with _writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "ab") as file:
            file.truncate(size)
    waiting = iter(rows)
    while batch := list(islice(waiting, batch_size)):
        lines = [json.dumps(row._asdict(), separators=(",", ":")) + "\n" for row in batch]
        with _writing(path), open(path, "ab") as file:
            file.write("".join(lines).encode())
            file.flush()
            os.fsync(file.fileno())


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataError(
            f"Writing {path} failed: {error.strerror}. Its whole rows stay; make room or mend the place, and run the "
            "same again to go on."
        ) from error


def _row_ends(path: Path, prompts: Sequence[Sequence[int]] | None) -> list[int]:
    """Where in the file each row ends, up to the first that is torn, or is not of its prompt."""
    ends: list[int] = []
    if not path.is_file():
        return ends
    with open(path, "rb") as file:
        for number, line in enumerate(file):
            row = _whole_row(line)
            if row is None or (prompts is not None and not _is_of(row, prompts, number)):
                break
            ends.append((ends[-1] if ends else 0) + len(line))
    return ends


def _whole_row(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line) if line.endswith(b"\n") else None
    except ValueError:
        return None
    return row if isinstance(row, dict) and isinstance(row.get("input_ids"), list) else None


def _is_of(row: Mapping[str, Any], prompts: Sequence[Sequence[int]], number: int) -> bool:
    if number >= len(prompts) or row.get("prompt_length") != len(prompts[number]):
        return False
    return row["input_ids"][: len(prompts[number])] == list(prompts[number])


def _totals(path: Path, prompts: Sequence[Sequence[int]]) -> dict[str, int]:
    """How many tokens and finished responses the file has, once its rows are known to be those of the prompts."""
    ends = _row_ends(path, prompts)
    if len(ends) != len(prompts) or ends[-1] != path.stat().st_size:
        raise DataError(f"{path} was changed while it was written. Delete it and start again, one process at a time.")
    n_tokens = n_finished = 0
    with open(path, "rb") as file:
        for row in map(json.loads, file):
            n_tokens += len(row["input_ids"])
            n_finished += row["finished"]
    n_response = n_tokens - sum(map(len, prompts))
    return {"n_tokens": n_tokens, "n_response_tokens": n_response, "n_finished": n_finished}


def _read_meta(path: Path) -> dict[str, Any] | None:
    """The description beside a file; None: there is none, or it is something else's."""
    where = meta_path(path)
    if not where.is_file():
        return None
    try:
        meta = json.loads(where.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{where} must be JSON. Got a damaged file; delete it and {path.name}.") from error
    if not isinstance(meta, dict) or meta.get("format") != FORMAT:
        return None
    whole = {"complete", "n_rows", "settings"} | ({"sha256"} if meta.get("complete") else set())
    usable = (VERSION, BATCHWISE) if meta.get("complete") else (VERSION,)
    if meta.get("version") not in usable or not whole <= meta.keys():
        raise DataError(
            f"{where} must be of version {VERSION}. Got version {meta.get('version')}"
            f"{'' if whole <= meta.keys() else ' without ' + min(whole - meta.keys())}; sample to another file."
        )
    return meta


def _write_meta(path: Path, meta: Mapping[str, Any]) -> None:
    if meta_path(path).exists() and _read_meta(path) is None:
        raise DataError(f"{meta_path(path)} is there already and is something else. Name another file.")
    with atomic.atomic_file(meta_path(path), error=DataError) as file:
        atomic.write_json(file, meta)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()
