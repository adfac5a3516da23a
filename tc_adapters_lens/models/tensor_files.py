"""The safetensors files of a model directory: names, shapes and tensors without reading whole files.

Files are mapped into memory, so a tensor costs what is read of it. Nothing here unpickles.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from tc_adapters_lens.errors import CheckpointError, did_you_mean
from tc_adapters_lens.models.json_files import first_line, read_json

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"


class TensorFiles:
    """Tensors of one directory in Hugging Face's layout: `model.safetensors`, or shards and their index.

    Every file's header is checked when this is built; the tensors are read when they are asked for.

    Args:
        directory: where the files are.
        only: keep tensors whose name passes; files that hold none of them need not exist.
    Raises:
        CheckpointError: no safetensors, a broken index, a missing shard, a truncated or corrupt file.
    """

    def __init__(self, directory: Path, only: Callable[[str], bool] | None = None):
        self.directory = directory
        self._handles: dict[str, Any] = {}
        self._file_of: dict[str, str] = {}
        if (directory / INDEX_FILE).is_file():
            weight_map = read_weight_map(directory)
            self._file_of = {name: file for name, file in weight_map.items() if only is None or only(name)}
            self._open_shards()
        elif (directory / SINGLE_FILE).is_file():
            handle = self._handles[SINGLE_FILE] = open_safetensors(directory / SINGLE_FILE)
            self._file_of = {name: SINGLE_FILE for name in shapes_in(handle) if only is None or only(name)}
        else:
            raise CheckpointError(_no_safetensors(directory))

    def _open_shards(self) -> None:
        files = sorted(set(self._file_of.values()))
        missing = [file for file in files if not (self.directory / file).is_file()]
        if missing:
            raise CheckpointError(
                f"{self.directory}: {INDEX_FILE} names {len(files)} files but {len(missing)} are missing, "
                f"first {missing[0]}. Copy or download the model again."
            )
        for file in files:
            handle = self._handles[file] = open_safetensors(self.directory / file)
            stored = shapes_in(handle)
            absent = [name for name, where in self._file_of.items() if where == file and name not in stored]
            if absent:
                raise CheckpointError(
                    f"{self.directory}: {INDEX_FILE} places '{absent[0]}' in {file}, which does not hold it. "
                    "Copy or download the model again."
                )

    def names(self) -> list[str]:
        return sorted(self._file_of)

    def __contains__(self, name: object) -> bool:
        return name in self._file_of

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._handle(name).get_slice(name).get_shape())

    def tensor(self, name: str) -> Tensor:
        """One tensor as stored, on the CPU, backed by the mapped file: do not write to it."""
        return self._handle(name).get_tensor(name)

    def _handle(self, name: str) -> Any:
        if name not in self._file_of:
            raise CheckpointError(f"{self.directory} has no tensor '{name}'.{did_you_mean(name, self._file_of)}")
        return self._handles[self._file_of[name]]


def open_safetensors(path: Path) -> Any:
    """An open `safe_open` handle.

    Raises:
        CheckpointError: not a safetensors file, or not all of it, with the sizes where the header tells them.
    """
    if not path.is_file():
        raise CheckpointError(f"{path} is missing. Copy or download it again.")
    try:
        return safe_open(str(path), framework="pt", device="cpu")
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} {_what_is_wrong(path, error)} Copy or download it again.") from error


def shapes_in(handle: Any) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor behind an open handle."""
    return {name: tuple(handle.get_slice(name).get_shape()) for name in list(handle.keys())}


def read_weight_map(directory: Path) -> dict[str, str]:
    """Tensor name -> file name, from the index.

    Raises:
        CheckpointError: the index is not JSON, or has no `weight_map` of names to file names.
    """
    path = directory / INDEX_FILE
    index = read_json(path)
    weight_map = index.get("weight_map")
    plain = isinstance(weight_map, dict) and all(
        isinstance(file, str) and Path(file).name == file for file in weight_map.values()
    )
    if not plain or not weight_map:
        raise CheckpointError(f"{path} must hold a 'weight_map' of tensor names to file names in its own directory.")
    return weight_map


def _no_safetensors(directory: Path) -> str:
    pickles = sorted(path.name for path in directory.glob("*.bin")) + sorted(p.name for p in directory.glob("*.pt*"))
    if pickles:
        return (
            f"{directory} has no {SINGLE_FILE}, only pickled weights ({pickles[0]}), which are never loaded. "
            "Convert to safetensors: AutoModelForCausalLM.from_pretrained(dir)"
            ".save_pretrained(dir, safe_serialization=True)."
        )
    return (
        f"{directory} has neither {SINGLE_FILE} nor {INDEX_FILE}. Name a directory written by "
        "model.save_pretrained(dir, safe_serialization=True), or download the model again."
    )


def _what_is_wrong(path: Path, error: BaseException) -> str:
    """Why `safe_open` refused a file, as a predicate: "is truncated: ..."."""
    actual = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(8)
        if head.startswith(b"version "):
            return "is a git-lfs pointer, not the weights: run `git lfs pull` in its directory."
        length = int.from_bytes(head, "little")
        if len(head) < 8 or (length + 8 > actual and length < 100_000_000):
            return f"is truncated: {actual} bytes, not even a whole header."
        if length + 8 > actual:
            return f"is not a safetensors file ({actual} bytes)."
        try:
            header = json.loads(file.read(length))
            expected = 8 + length + max(e["data_offsets"][1] for n, e in header.items() if n != "__metadata__")
        except (ValueError, KeyError, TypeError, IndexError, AttributeError):
            return f"is not a safetensors file ({actual} bytes): {first_line(error)}."
    if actual < expected:
        return f"is truncated: its header needs {expected} bytes, it has {actual}."
    if actual > expected:
        return f"is corrupt: its header needs {expected} bytes, it has {actual}."
    return f"is corrupt: {first_line(error)}."
