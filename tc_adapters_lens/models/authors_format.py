"""The authors' checkpoints: a Hugging Face model directory whose MLPs hold the adapters.

    model.layers.N.mlp.transcoder_enc.{weight,bias}     [n_features d_model], [n_features]
    model.layers.N.mlp.transcoder_dec.{weight,bias}     [d_model n_features], [d_model]

All other tensors are the hybrid's: the target's, with the base's MLPs. `transcoder_dec.bias` is there only
if config.json says `transcoder_dec_bias`; without it b_dec is zero.

Source: github.com/nathanhu0/transcoder-adapters, models/qwen2_transcoder.py.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor

from tc_adapters_lens.errors import AdapterSetError
from tc_adapters_lens.models.adapter_files import AdapterSetInfo
from tc_adapters_lens.models.adapter_set import AdapterSet
from tc_adapters_lens.models.adapters import make_adapter
from tc_adapters_lens.models.atomic import atomic_directory, write_json
from tc_adapters_lens.models.checkpoints import Checkpoint, locate
from tc_adapters_lens.models.json_files import read_json
from tc_adapters_lens.models.pair_info import PairInfo, check_same_pair
from tc_adapters_lens.models.tensor_files import INDEX_FILE, TensorFiles

# parameter -> the module's tensor, and whether torch's Linear holds it transposed
_TENSOR_OF = {
    "W_enc": ("transcoder_enc.weight", True),
    "b_enc": ("transcoder_enc.bias", False),
    "W_dec": ("transcoder_dec.weight", True),
    "b_dec": ("transcoder_dec.bias", False),
}
_MLP = re.compile(r"model\.layers\.\d+\.mlp\.")
_SHARD_BYTES = 5 * 10**9


def import_authors(
    checkpoint: str | Path, pair: PairInfo, n_layers: int, d_model: int, *, revision: str | None = None
) -> AdapterSet:
    """Read the adapters out of one of the authors' checkpoints, and nothing else of it.

    Args:
        checkpoint: directory or hub id; of a hub id only the shards that hold adapters are downloaded.
        pair: the models the checkpoint was trained on.
        n_layers, d_model: of that pair; the checkpoint must agree.
        revision: branch, tag or commit of a hub id.
    Returns:
        Adapters in the stored dtype; `recipe` says where they come from.
    Raises:
        CheckpointError: the files cannot be found or read.
        AdapterSetError: adapter tensors missing, unexpected, of the wrong shape or dtype, or not finite.
    """
    directory, commit = locate(checkpoint, revision, _is_adapter_tensor)
    files = TensorFiles(directory, _is_adapter_tensor)
    config = read_json(directory / "config.json") if (directory / "config.json").is_file() else {}
    stored_dec_bias = any(name.endswith(_TENSOR_OF["b_dec"][0]) for name in files.names())
    has_dec_bias = bool(config.get("transcoder_dec_bias", stored_dec_bias))
    _check_names(directory, files.names(), n_layers, has_dec_bias)
    n_features = config.get("transcoder_n_features") or (files.shape(_name(0, "W_enc")) or (0,))[0]
    adapters = []
    for layer in range(n_layers):
        tensors = _read_layer(directory, files, layer, d_model, n_features, has_dec_bias)
        adapters.append(make_adapter(layer, tensors, pair))
    recipe = {
        "imported": {
            "format": "authors",
            "checkpoint": str(checkpoint),
            "revision": commit,
            "transcoder_dec_bias": has_dec_bias,
        }
    }
    return AdapterSet(adapters, AdapterSetInfo(pair, recipe=recipe))


def export_authors(
    adapters: AdapterSet,
    out_dir: str | Path,
    base: Checkpoint | None = None,
    target: Checkpoint | None = None,
    *,
    max_shard_bytes: int = _SHARD_BYTES,
    allow_other_pair: bool = False,
) -> None:
    """Write adapters as one of the authors' checkpoints, bit for bit.

    With base and target: a whole one (hybrid, adapters, the target's configuration and tokenizer), which
    their model class loads. With neither: the adapter tensors alone. One shard at a time is in memory.

    Args:
        out_dir: must not exist or be empty.
        max_shard_bytes: largest safetensors file, unless one tensor is larger.
        allow_other_pair: accept models other than those the adapters were trained on.
    Raises:
        AdapterSetError: one of base and target alone, another pair, a model without `model.layers.N.mlp`
            tensors, the directory is taken, or the disk is full.
    """
    if (base is None) != (target is None):
        raise AdapterSetError("A whole checkpoint needs base and target. Got one. Name both, or neither.")
    dec_bias = _has_dec_bias(adapters)
    entries = list(_adapter_entries(adapters, dec_bias))
    if base is not None and target is not None:
        _check_models(adapters, base, target, allow_other_pair)
        entries = list(_hybrid_entries(base, target)) + entries
    with atomic_directory(out_dir, error=AdapterSetError) as directory:
        _write_shards(directory, entries, max_shard_bytes)
        if target is not None:
            _write_config(directory, target, adapters.n_features, dec_bias)
            if target.tokenizer is not None:
                target.tokenizer.save_pretrained(directory)


def _name(layer: int, parameter: str) -> str:
    return f"model.layers.{layer}.mlp.{_TENSOR_OF[parameter][0]}"


def _is_adapter_tensor(name: str) -> bool:
    return "transcoder" in name


def _check_names(directory: Path, names: list[str], n_layers: int, has_dec_bias: bool) -> None:
    if not names:
        raise AdapterSetError(
            f"{directory} must hold adapter tensors such as '{_name(0, 'W_enc')}'. Got none. "
            "Name one of the authors' checkpoints, or load an adapter set directly."
        )
    parameters = [parameter for parameter in _TENSOR_OF if has_dec_bias or parameter != "b_dec"]
    expected = {_name(layer, parameter) for layer in range(n_layers) for parameter in parameters}
    for what, wrong in (("missing", expected - set(names)), ("unexpected", set(names) - expected)):
        if wrong:
            shown = ", ".join(sorted(wrong)[:3]) + (", ..." if len(wrong) > 3 else "")
            raise AdapterSetError(
                f"{directory} must hold {len(expected)} adapter tensors for {n_layers} layers. "
                f"Got {len(names)}, {len(wrong)} {what}: {shown}. Check that it is of this pair and whole."
            )


def _read_layer(
    directory: Path, files: TensorFiles, layer: int, d_model: int, n_features: int, has_dec_bias: bool
) -> dict[str, Tensor]:
    shapes = {
        "W_enc": (n_features, d_model),
        "b_enc": (n_features,),
        "W_dec": (d_model, n_features),
        "b_dec": (d_model,),
    }
    tensors = {}
    for parameter, (_, transposed) in _TENSOR_OF.items():
        name = _name(layer, parameter)
        if parameter == "b_dec" and not has_dec_bias:
            tensors[parameter] = torch.zeros(d_model, dtype=tensors["W_enc"].dtype)
            continue
        tensor = files.tensor(name)
        if tuple(tensor.shape) != shapes[parameter]:
            raise AdapterSetError(
                f"{directory}: {name} must be {list(shapes[parameter])} "
                f"({n_features} features of width {d_model}). Got {list(tensor.shape)}. "
                "Check that it is of this pair."
            )
        if not tensor.is_floating_point():
            raise AdapterSetError(f"{directory}: {name} must hold floating-point numbers. Got {tensor.dtype}.")
        dtype = tensors["W_enc"].dtype if tensors else tensor.dtype
        if tensor.dtype != dtype:
            raise AdapterSetError(
                f"{directory}: an adapter must have one dtype. Got {dtype} and {tensor.dtype} ({name})."
            )
        n_bad = tensor.numel() - int(torch.isfinite(tensor).sum())
        if n_bad:
            raise AdapterSetError(f"{directory}: {name} must be finite. Got {n_bad} NaN or infinite values.")
        tensors[parameter] = (tensor.T if transposed else tensor).clone(memory_format=torch.contiguous_format)
    return tensors


class _Entry(NamedTuple):
    """A tensor to be written: its name, size in bytes, and how to get it."""

    name: str
    n_bytes: int
    read: Callable[[], Tensor]


def _adapter_entries(adapters: AdapterSet, dec_bias: bool) -> Iterator[_Entry]:
    for layer, adapter in adapters.items():
        for parameter, (_, transposed) in _TENSOR_OF.items():
            if parameter != "b_dec" or dec_bias:
                tensor = adapter.get_parameter(parameter).detach()
                tensor = tensor.T if transposed else tensor
                yield _Entry(_name(layer, parameter), tensor.nbytes, lambda t=tensor: t.cpu().contiguous())


def _hybrid_entries(base: Checkpoint, target: Checkpoint) -> Iterator[_Entry]:
    for name in target.tensor_names():
        source = base if _MLP.match(name) else target
        if source.shape(name) != target.shape(name):
            raise AdapterSetError(
                f"{name} must have one shape in base and target. "
                f"Got {source.shape(name)} (base) and {target.shape(name)} (target)."
            )
        tensor = source.tensor(name)
        yield _Entry(name, tensor.nbytes, lambda s=source, n=name: s.tensor(n).contiguous())


def _has_dec_bias(adapters: AdapterSet) -> bool:
    """False only for adapters that came without one and still have none."""
    imported = adapters.info.recipe.get("imported")
    came_without = isinstance(imported, dict) and imported.get("transcoder_dec_bias") is False
    return not came_without or any(bool(adapter.b_dec.any()) for adapter in adapters.values())


def _check_models(adapters: AdapterSet, base: Checkpoint, target: Checkpoint, allow_other_pair: bool) -> None:
    if not any(_MLP.match(name) for name in target.tensor_names()):
        raise AdapterSetError(
            "The authors' format needs a model with 'model.layers.N.mlp' tensors. "
            f"Got {target.config.model_type}. Export without base and target."
        )
    ours, theirs = (
        (adapters.n_layers, adapters.d_model),
        (target.config.num_hidden_layers, target.config.hidden_size),
    )
    if ours != theirs:
        raise AdapterSetError(
            f"Adapters and models must have the same layers and width. Got {ours} (adapters) and {theirs} (models)."
        )
    if not allow_other_pair:
        check_same_pair("The adapters", adapters.info.pair, PairInfo.of(base, target))


def _write_shards(directory: Path, entries: list[_Entry], max_bytes: int) -> None:
    shards: list[list[_Entry]] = [[]]
    size = 0
    for entry in entries:
        if shards[-1] and size + entry.n_bytes > max_bytes:
            shards.append([])
            size = 0
        shards[-1].append(entry)
        size += entry.n_bytes
    weight_map = {}
    for number, shard in enumerate(shards, start=1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        save_file({entry.name: entry.read() for entry in shard}, directory / file, metadata={"format": "pt"})
        weight_map |= {entry.name: file for entry in shard}
    total = sum(entry.n_bytes for entry in entries)
    write_json(directory / INDEX_FILE, {"metadata": {"total_size": total}, "weight_map": weight_map})


def _write_config(directory: Path, target: Checkpoint, n_features: int, dec_bias: bool) -> None:
    config = json.loads(target.config.to_json_string(use_diff=False))
    for key in ("_name_or_path", "auto_map"):
        config.pop(key, None)
    architecture = (config.get("architectures") or ["Qwen2ForCausalLM"])[0]
    config["architectures"] = [f"{architecture}WithTranscoder"]
    config["transcoder_n_features"] = n_features
    config["transcoder_dec_bias"] = dec_bias
    write_json(directory / "config.json", config)
    generation = None if target.directory is None else target.directory / "generation_config.json"
    if generation is not None and generation.is_file():
        (directory / generation.name).write_bytes(generation.read_bytes())
