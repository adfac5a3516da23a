"""Adapter sets on disk.

layer_N/cfg.json, layer_N/sae_weights.safetensors     SAELens' own: `SAE.load_from_disk(layer_N)`
adapter_set.json                                      pair, hooks, recipe, what was measured
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from sae_lens import SAE, Transcoder
from sae_lens.constants import SAE_CFG_FILENAME, SAE_WEIGHTS_FILENAME
from sae_lens.util import dtype_to_str
from safetensors.torch import save_file

from tc_adapters_lens.errors import AdapterSetError, CheckpointError
from tc_adapters_lens.models.adapters import adapter_shapes, check_adapter_config
from tc_adapters_lens.models.atomic import write_json
from tc_adapters_lens.models.json_files import first_line, read_json
from tc_adapters_lens.models.names import SET_FILE, hook_delta, hook_in
from tc_adapters_lens.models.pair_info import PairInfo
from tc_adapters_lens.models.tensor_files import open_safetensors, shapes_in

FORMAT = "tc_adapters_lens.adapter_set"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class AdapterSetInfo:
    """Where adapters come from and what they do.

    pair: the models they were trained on.
    recipe: how they were trained; anything JSON can hold.
    measured: numbers on held-out tokens, such as {"l0": 1.4, "kl": 0.01}.
    """

    pair: PairInfo
    recipe: dict[str, Any] = field(default_factory=dict)
    measured: dict[str, Any] = field(default_factory=dict)


def is_adapter_set(directory: Path) -> bool:
    """Whether a directory holds an adapter set's description; no more is read."""
    return (directory / SET_FILE).is_file()


def write_adapters(directory: Path, adapters: Sequence[Transcoder], info: AdapterSetInfo) -> None:
    """Write a set into an empty directory, bit for bit.

    Raises:
        AdapterSetError: the recipe or what was measured cannot be said in JSON.
    """
    for layer, adapter in enumerate(adapters):
        folder = directory / f"layer_{layer}"
        folder.mkdir()
        config: dict[str, Any] = adapter.cfg.to_dict() | {
            "device": "cpu",
            "dtype": dtype_to_str(adapter.W_enc.dtype),
        }
        config["metadata"] = dict(adapter.cfg.metadata.to_dict())
        config["metadata"].pop("model_from_pretrained_kwargs", None)  # SAELens would warn when it loads them
        write_json(folder / SAE_CFG_FILENAME, config)
        tensors = {name: tensor.cpu().contiguous() for name, tensor in adapter.state_dict().items()}
        save_file(tensors, folder / SAE_WEIGHTS_FILENAME)
    first = adapters[0]
    description = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "n_layers": len(adapters),
        "d_model": first.cfg.d_in,
        "n_features": first.cfg.d_sae,
        "dtype": dtype_to_str(first.W_enc.dtype),
        "hooks": [{"in": hook_in(layer), "out": hook_delta(layer)} for layer in range(len(adapters))],
        "pair": info.pair.to_dict(),
        "recipe": info.recipe,
        "measured": info.measured,
    }
    try:
        write_json(directory / SET_FILE, description)
    except (TypeError, ValueError) as error:
        raise AdapterSetError(
            f"An adapter set's recipe and measured must be JSON: {first_line(error)}. Nothing was written."
        ) from error


def read_description(directory: Path) -> tuple[AdapterSetInfo, dict[str, int]]:
    """What `adapter_set.json` says: the information, and n_layers, d_model, n_features.

    Raises:
        AdapterSetError: not an adapter set, another format or version, keys missing or of the wrong kind.
    """
    if not is_adapter_set(directory):
        what = f"it has no {SET_FILE}" if directory.is_dir() else "there is no such directory"
        raise AdapterSetError(f"{directory} is not an adapter set: {what}. Name a directory written by save().")
    path = directory / SET_FILE
    info, description = read_information(path, FORMAT, FORMAT_VERSION)
    sizes: dict[str, Any] = {key: description.get(key) for key in ("n_layers", "d_model", "n_features")}
    for key, size in sizes.items():
        if type(size) is not int or size < 1:
            raise AdapterSetError(f"{path}: {key} must be a whole number from 1. Got {size!r}.")
    return info, sizes


def read_information(path: Path, file_format: str, version: int) -> tuple[AdapterSetInfo, Mapping[str, Any]]:
    """Pair, recipe and measured of a description, and the whole of it.

    Raises:
        AdapterSetError: not JSON, another format or version, keys missing or of the wrong kind.
    """
    try:
        description = read_json(path)
    except CheckpointError as error:
        raise AdapterSetError(str(error)) from error
    for key, value in (("format", file_format), ("format_version", version)):
        if description.get(key) != value:
            raise AdapterSetError(
                f"{path} must have {key} {value!r}. Got {description.get(key)!r}. Update tc-adapters-lens."
            )
    parts: dict[str, Any] = {key: description.get(key) for key in ("pair", "recipe", "measured")}
    for key, part in parts.items():
        if not isinstance(part, dict):
            raise AdapterSetError(f"{path}: {key} must be an object. Got {part!r}.")
    try:
        pair = PairInfo.from_dict(parts["pair"])
    except AdapterSetError as error:
        raise AdapterSetError(f"{path}: {error}") from error
    return AdapterSetInfo(pair, parts["recipe"], parts["measured"]), description


def read_adapters(
    directory: Path, sizes: Mapping[str, int], device: str | torch.device, dtype: torch.dtype | None
) -> list[Transcoder]:
    """The adapters of a described set, each through SAELens' own loader.

    Args:
        sizes: from `read_description`.
        dtype: cast to it; None keeps what is stored.
    Raises:
        AdapterSetError: a layer is missing, corrupt, of another shape or with other hooks, or not finite.
    """
    n_layers = sizes["n_layers"]
    missing = [layer for layer in range(n_layers) if not (directory / f"layer_{layer}").is_dir()]
    if missing:
        raise AdapterSetError(
            f"{directory} must have {n_layers} layers. Got {n_layers - len(missing)}, "
            f"without layer_{missing[0]}. Copy or download the set again."
        )
    shapes = adapter_shapes(sizes["d_model"], sizes["n_features"])
    return [_read_layer(directory, layer, shapes, device, dtype) for layer in range(n_layers)]


def _read_layer(
    directory: Path,
    layer: int,
    shapes: Mapping[str, tuple[int, ...]],
    device: str | torch.device,
    dtype: torch.dtype | None,
) -> Transcoder:
    folder = directory / f"layer_{layer}"
    try:
        config = read_json(folder / SAE_CFG_FILENAME)
        stored = shapes_in(open_safetensors(folder / SAE_WEIGHTS_FILENAME))
    except CheckpointError as error:
        raise AdapterSetError(str(error)) from error
    check_adapter_config(str(folder), layer, config)
    widths = {"W_enc": (config.get("d_in"), config.get("d_sae"))}
    if stored != shapes or widths["W_enc"] != shapes["W_enc"]:
        got = stored if stored != shapes else {SAE_CFG_FILENAME: widths["W_enc"]}
        raise AdapterSetError(f"{folder} must hold {dict(shapes)}. Got {got}. Copy or download the set again.")
    adapter = SAE.load_from_disk(folder, device=str(device), dtype=dtype_to_str(dtype) if dtype else None)
    assert isinstance(adapter, Transcoder)
    for name, tensor in adapter.state_dict().items():
        n_bad = tensor.numel() - int(torch.isfinite(tensor).sum())
        if n_bad:
            raise AdapterSetError(f"{folder}: {name} must be finite. Got {n_bad} NaN or infinite values.")
    return adapter
