"""Where rows come from: local files and directories, saved datasets, the hub."""

from __future__ import annotations

from pathlib import Path

import datasets
from datasets import config as datasets_config

from tc_adapters_lens.errors import DataError
from tc_adapters_lens.models.json_files import first_line
from tc_adapters_lens.training.config import DataConfig
from tc_adapters_lens.training.data_key import LocalContent

__all__ = ["local_content", "open_rows"]

_BUILDERS = {
    ".jsonl": "json",
    ".json": "json",
    ".parquet": "parquet",
    ".csv": "csv",
    ".txt": "text",
    ".arrow": "arrow",
}
_COMPRESSED = (".gz", ".zst", ".bz2", ".xz")


def open_rows(data: DataConfig, content: LocalContent | None = None) -> datasets.Dataset:
    """The rows that a configuration names: a local file or directory if there is one, else a hub dataset.

    Args:
        data: names them.
        content: what the local file or directory holds, where that is known already.
    Raises:
        DataError: it is not there, cannot be read, or has no such split.
    """
    path = _local_path(data)
    suffix = next((suffix for suffix in reversed(path.suffixes) if suffix not in _COMPRESSED), "").lower()
    if not path.exists() and (suffix in _BUILDERS or path.is_absolute() or data.path.startswith((".", "~"))):
        raise DataError(f"data.path must be a file, a directory or a hub dataset. Got {data.path}, no file.")
    if path.is_file() and suffix not in _BUILDERS:
        known = ", ".join(_BUILDERS)
        raise DataError(f"a data file must end in one of {known} (compressed or not). Got {data.path}.")
    if path.is_file() and path.stat().st_size == 0:
        raise DataError(f"a data file must have rows. Got an empty file, {data.path}.")
    content = content or local_content(data)
    # datasets tells local files apart by their times; a place of its own for each content tells them by that
    place = None if content is None else str(Path(datasets_config.HF_DATASETS_CACHE) / f"content-{content.digest}")
    try:
        if path.is_file():
            rows = datasets.load_dataset(_BUILDERS[suffix], data_files=str(path), split=data.split, cache_dir=place)
        elif (path / "state.json").is_file() or (path / "dataset_dict.json").is_file():
            rows = datasets.load_from_disk(str(path))
            if isinstance(rows, datasets.DatasetDict):
                if data.split not in rows:
                    splits = ", ".join(map(str, rows))
                    raise DataError(f"data.split must be one of {splits}. Got {data.split} for {data.path}.")
                rows = rows[data.split]
        else:
            where = str(path) if path.is_dir() else data.path
            rows = datasets.load_dataset(where, data.name, split=data.split, revision=data.revision, cache_dir=place)
    except DataError:
        raise
    except Exception as error:  # each of the library's readers raises its own kinds
        cause = str(error.__cause__ or error).strip().partition("\n")[0] or type(error).__name__
        raise DataError(f"cannot read the dataset {data.path} (split {data.split}): {cause}") from error
    assert isinstance(rows, datasets.Dataset)
    return rows


def local_content(data: DataConfig) -> LocalContent | None:
    """What the local file or directory that a configuration names holds; None: there is none.

    Raises:
        DataError: it cannot be read.
    """
    path = _local_path(data)
    try:
        return LocalContent(path) if path.exists() else None
    except OSError as error:
        raise DataError(f"cannot read the dataset {data.path}: {first_line(error)}") from error


def _local_path(data: DataConfig) -> Path:
    if data.path == "toy":
        from tc_adapters_lens import toy

        return Path(toy.TRAIN)
    return Path(data.path).expanduser()
