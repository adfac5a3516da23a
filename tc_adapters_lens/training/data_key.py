"""What tokenised sequences depend on, as one name: two loads with the same key give the same bits.

Local data counts by content. Modification times would not do: a file may be rewritten within its clock's grain, or
be copied over with its old time.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path

import xxhash
from transformers import PreTrainedTokenizerBase

from tc_adapters_lens.training.config import DataConfig

__all__ = ["LocalContent", "sequences_key"]

_CODE = (  # what makes the sequences
    "chat.py",
    "config.py",
    "data.py",
    "data_cache.py",
    "data_key.py",
    "report.py",
    "rows.py",
    "schema.py",
    "sequences.py",
)
_LIBRARIES = ("datasets", "jinja2", "numpy", "tokenizers", "transformers")
_BLOCK = 1 << 22


class LocalContent:
    """What a data file or directory holds at this moment.

    Args:
        path: the file or directory.

    Attributes:
        digest: of every file's name and bytes, hexadecimal.
    Raises:
        OSError: a file cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._before = self._stats()
        digest = xxhash.xxh3_128()
        for file in _files(path):
            digest.update(_with_length(str(file.relative_to(path)).encode(errors="surrogateescape")))
            digest.update(_file_digest(file))
        self.digest = digest.hexdigest()

    def changed(self) -> bool:
        """Whether anything was written there since this was made."""
        try:
            return self._stats() != self._before
        except OSError:
            return True

    def _stats(self) -> list[tuple[str, int, int, int, int]]:
        # the time of the last status change, which no program can set, tells rewriting that keeps the other time
        found = [(str(file), file.stat()) for file in _files(self.path)]
        return [(name, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns) for name, stat in found]


def sequences_key(
    data: DataConfig, rows: str, tokenizer: PreTrainedTokenizerBase | None, d_vocab: int, limit: int
) -> str:
    """The key, hexadecimal.

    Args:
        data: with a chat template as text, not as a file's name.
        rows: says which rows: a digest of their content, or a revision.
        tokenizer: counts with all that it would save, not by its name.
        d_vocab: the model's vocabulary.
        limit: most tokens in a sequence.
    Raises:
        Exception: whatever the tokenizer raises that cannot be saved.
    """
    parts = {
        "code": _code_digest(),
        "libraries": {name: version(name) for name in _LIBRARIES},
        "data": dataclasses.asdict(data),
        "rows": rows,
        "tokenizer": None if tokenizer is None else tokenizer_digest(tokenizer),
        "d_vocab": d_vocab,
        "limit": limit,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """Of all files that `save_pretrained` writes: vocabulary, merges, special tokens, chat template, options."""
    with tempfile.TemporaryDirectory() as directory:
        tokenizer.save_pretrained(directory)
        return f"{type(tokenizer).__name__}:{LocalContent(Path(directory)).digest}"


def _code_digest() -> str:
    """Of the package's own code that makes sequences, so that nobody has to remember to raise a number."""
    digest = hashlib.sha256()
    for name in _CODE:
        digest.update(_with_length(files("tc_adapters_lens.training").joinpath(name).read_bytes()))
    return digest.hexdigest()


def _files(path: Path) -> Iterator[Path]:
    """The file, or all files of the directory, links followed, in an order of their names."""
    if not path.is_dir():
        yield path
        return
    found, seen = [], set()
    for folder, folders, names in os.walk(path, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:  # a link that leads back up
            folders.clear()
            continue
        seen.add(real)
        found += [Path(folder) / name for name in names if (Path(folder) / name).is_file()]
    yield from sorted(found)


def _file_digest(path: Path) -> bytes:
    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.digest()


def _with_length(value: bytes) -> bytes:
    return len(value).to_bytes(8, "little") + value
