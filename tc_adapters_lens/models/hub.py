"""The Hugging Face hub: only the files that are needed, and errors that name the fix."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Callable
from pathlib import Path

import huggingface_hub
from huggingface_hub import constants
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from safetensors import SafetensorError

from tc_adapters_lens.errors import AdapterSetError, CheckpointError
from tc_adapters_lens.models.json_files import first_line
from tc_adapters_lens.models.tensor_files import INDEX_FILE, SINGLE_FILE, read_weight_map

CONFIG_AND_TOKENIZER = ["*.json", "*.model", "*.txt", "*.jinja", "*.tiktoken"]
_ID = re.compile(r"[A-Za-z0-9][\w.\-]*(/[\w.\-]+)?")


def is_hub_id(source: str) -> bool:
    """Whether a string has the form of a hub id: `name` or `owner/name`."""
    return _ID.fullmatch(source) is not None and ".." not in source and "--" not in source


def is_offline() -> bool:
    """Whether HF_HUB_OFFLINE forbids network requests, set before or after the start of Python."""
    set_later = os.environ.get("HF_HUB_OFFLINE", "").upper() in constants.ENV_VARS_TRUE_VALUES
    return constants.HF_HUB_OFFLINE or set_later


def download_model(repo_id: str, revision: str | None, only: Callable[[str], bool] | None = None) -> Path:
    """Downloads a model's configuration, tokenizer and safetensors; what is cached is not fetched again.

    Args:
        only: fetch only the shards that hold a tensor whose name passes.
    Returns:
        The snapshot directory; its name is the commit.
    Raises:
        CheckpointError: unknown or gated model, unknown revision, offline and not cached, download failed.
    """
    directory = download(repo_id, revision, CONFIG_AND_TOKENIZER)
    files = [SINGLE_FILE]
    if (directory / INDEX_FILE).is_file():
        files = sorted({file for name, file in read_weight_map(directory).items() if only is None or only(name)})
    if all((directory / file).is_file() for file in files):
        return directory
    directory = download(repo_id, revision, files)
    absent = [file for file in files if not (directory / file).is_file()]
    if absent and (is_offline() or (directory / INDEX_FILE).is_file()):
        raise CheckpointError(
            f"Hub model '{repo_id}' is not cached whole: {absent[0]} is missing from {directory}. "
            "Unset HF_HUB_OFFLINE and connect once, or name a local directory."
        )
    if absent:
        raise CheckpointError(
            f"Hub model '{repo_id}' has no {SINGLE_FILE} and no {INDEX_FILE}; pickles are never loaded. "
            "Convert a copy: AutoModelForCausalLM.from_pretrained(id).save_pretrained(dir)."
        )
    return directory


def download(repo_id: str, revision: str | None, patterns: list[str]) -> Path:
    """`huggingface_hub.snapshot_download` of some files; failures are CheckpointErrors of one line."""
    at = f" at revision '{revision}'" if revision else ""
    try:
        return Path(
            huggingface_hub.snapshot_download(
                repo_id, revision=revision, allow_patterns=patterns, local_files_only=is_offline()
            )
        )
    except GatedRepoError as error:
        raise CheckpointError(
            f"Hub model '{repo_id}' is gated: accept its terms at https://huggingface.co/{repo_id} "
            "and log in with `huggingface-cli login`."
        ) from error
    except RepositoryNotFoundError as error:
        raise CheckpointError(
            f"'{repo_id}' is neither a local directory nor a model on the hub. "
            "Check the spelling, or log in with `huggingface-cli login` if it is private."
        ) from error
    except RevisionNotFoundError as error:
        raise CheckpointError(f"Hub model '{repo_id}' has no revision '{revision}'. Check its name.") from error
    except LocalEntryNotFoundError as error:
        why = "HF_HUB_OFFLINE is set" if is_offline() else "the hub cannot be reached"
        raise CheckpointError(
            f"'{repo_id}'{at} is neither a local directory nor in the hub cache, and {why}. "
            "Name a local directory, or connect and run again."
        ) from error
    except HFValidationError as error:
        raise CheckpointError(f"'{repo_id}' is neither a local directory nor a valid hub id.") from error
    except OSError as error:  # the network's exceptions are OSErrors
        raise CheckpointError(
            f"Downloading '{repo_id}'{at} failed: {first_line(error)} Check network and disk, run again."
        ) from error


def upload(repo_id: str, write: Callable[[Path], None], *, private: bool, commit_message: str) -> str:
    """Makes the repository if need be and uploads what `write` puts into a temporary directory.

    Returns:
        Address of the commit.
    Raises:
        AdapterSetError: offline, not permitted, not reachable, or no space for the temporary files.
    """
    if is_offline():
        raise AdapterSetError(f"Uploading to '{repo_id}' needs the network. Unset HF_HUB_OFFLINE.")
    api = huggingface_hub.HfApi()
    try:
        with tempfile.TemporaryDirectory() as directory:
            write(Path(directory))
            api.create_repo(repo_id, private=private, exist_ok=True)
            commit = api.upload_folder(repo_id=repo_id, folder_path=directory, commit_message=commit_message)
            return str(commit)
    except (OSError, HFValidationError, SafetensorError) as error:
        raise AdapterSetError(
            f"Uploading to '{repo_id}' failed: {first_line(error)} See `huggingface-cli login`."
        ) from error
