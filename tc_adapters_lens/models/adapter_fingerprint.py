"""Which adapters: a fingerprint of their weights, of a set in memory or on disk.

Nothing here imports SAELens, so that whoever only compares fingerprints does not wait for it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
import xxhash
from safetensors import SafetensorError

from tc_adapters_lens.errors import AdapterSetError, CheckpointError
from tc_adapters_lens.models.json_files import first_line, read_json
from tc_adapters_lens.models.names import PARAMETERS, SET_FILE
from tc_adapters_lens.models.tensor_files import open_safetensors

_WEIGHTS_FILE = "sae_weights.safetensors"  # SAELens' name for it


def fingerprint(parameters: Iterable[torch.Tensor]) -> str:
    """xxh3 of parameters' bits, in the order of layers and PARAMETERS."""
    digest = xxhash.xxh3_128()
    for parameter in parameters:
        digest.update(parameter.cpu().contiguous().view(torch.uint8).numpy().data)
    return f"xxh3:{digest.hexdigest()}"


def stored_fingerprint(directory: Path) -> str:
    """`AdapterSet.fingerprint` of a set on disk, one tensor in memory at a time.

    Raises:
        AdapterSetError: not a set, or a layer is missing or corrupt.
    """

    def parameters() -> Iterator[torch.Tensor]:
        for layer in range(int(read_json(directory / SET_FILE)["n_layers"])):
            stored = open_safetensors(directory / f"layer_{layer}" / _WEIGHTS_FILE)
            yield from map(stored.get_tensor, PARAMETERS)

    try:
        return fingerprint(parameters())
    except (CheckpointError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise AdapterSetError(f"{directory} cannot be read: {first_line(error)}") from error
