"""A feature store on disk: what its files are called, and writing it whole or not at all.

    store.json               StoreInfo, and every other file's size
    table.parquet            one row per (layer, feature): numbers, shares, promoted tokens; `top_template` is the
                             template position of most of its highest examples, `top_template_share` of how many
    layer_N.safetensors      one layer's examples, histograms, counts, token effects and highest activations in windows
    tokens.safetensors       the text: all sequences' token ids, flat, where each starts, and labels of positions;
                             sequence, start and stop of windows drawn at random
    vocabulary.safetensors   every token id's own bytes
    labels/NAME.parquet      what was added later

A flat position counts tokens from the first of the first sequence.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Int
from safetensors.numpy import save_file

from tc_adapters_lens.errors import CheckpointError, FeatureStoreError
from tc_adapters_lens.features.records import KeptExamples, LayerFeatures, StoreInfo, TokenEffects
from tc_adapters_lens.features.text import Text
from tc_adapters_lens.features.windows import Windows
from tc_adapters_lens.models.atomic import atomic_directory, write_json
from tc_adapters_lens.models.json_files import read_json
from tc_adapters_lens.models.vocabulary import Vocabulary

STORE_FILE = "store.json"
TABLE_FILE = "table.parquet"
TOKENS_FILE = "tokens.safetensors"
VOCABULARY_FILE = "vocabulary.safetensors"
LABELS = "labels"
FORMAT = "tc_adapters_lens.feature_store"
FORMAT_VERSION = 2

_NESTED = {"promoted": TokenEffects, "inhibited": TokenEffects, "top": KeptExamples, "sampled": KeptExamples}


def layer_file(layer: int) -> str:
    return f"layer_{layer}.safetensors"


def is_feature_store(directory: Path) -> bool:
    """Whether a directory holds a store's description, which is there only once all else is; no more is read."""
    return (directory / STORE_FILE).is_file()


def write_store(
    directory: str | Path,
    info: StoreInfo,
    layers: Iterable[LayerFeatures],
    text: Text,
    windows: Windows,
    vocabulary: Vocabulary,
) -> None:
    """Write a store, one layer at a time; one that stood there is replaced.

    Args:
        directory: where.
        info: what it holds.
        layers: every layer's features, in order.
        text: where their examples are.
        windows: those whose highest activations `layers` has.
        vocabulary: of the model.
    Raises:
        FeatureStoreError: something else stands at `directory`, or it cannot be written to.
    """
    with atomic_directory(directory, may_replace=is_feature_store, error=FeatureStoreError) as partial:
        table: pq.ParquetWriter | None = None
        n_written = 0
        for layer, features in enumerate(layers):
            save_file(_to_arrays(features), partial / layer_file(layer))
            rows = _table(info, layer, features, text)
            table = table or pq.ParquetWriter(partial / TABLE_FILE, rows.schema)
            table.write_table(rows)
            n_written += 1
        assert table is not None
        assert n_written == info.n_layers
        table.close()
        arrays = {"tokens": text.tokens.astype(np.int32), "offsets": text.offsets.astype(np.int64)}
        arrays["windows"] = windows.to_array()
        labels = {"groups": text.groups, "regions": text.regions, "template": text.template}
        arrays |= {name: array.astype(np.uint8) for name, array in labels.items() if array is not None}
        save_file(arrays, partial / TOKENS_FILE)
        save_file({"bytes": vocabulary.data, "offsets": vocabulary.offsets}, partial / VOCABULARY_FILE)
        sizes = {path.name: path.stat().st_size for path in sorted(partial.iterdir())}
        head = {"format": FORMAT, "format_version": FORMAT_VERSION}
        write_json(partial / STORE_FILE, {**head, **info.to_dict(), "files": sizes})


def read_info(directory: Path) -> StoreInfo:
    """A store's description, once every file is seen to be there in its full size.

    Raises:
        FeatureStoreError: not a store, another format or version, or a file is missing, truncated or changed.
    """
    path = directory / STORE_FILE
    if not path.is_file():
        what = f"it has no {STORE_FILE}" if directory.is_dir() else "there is no such directory"
        raise FeatureStoreError(f"{directory} is not a feature store: {what}. Make one: `tc-adapters features`.")
    try:
        values = dict(read_json(path))
    except CheckpointError as error:
        raise FeatureStoreError(str(error)) from error
    for key, wanted in (("format", FORMAT), ("format_version", FORMAT_VERSION)):
        if (got := values.pop(key, None)) != wanted:
            old = isinstance(got, int) and got < FORMAT_VERSION
            mend = "Make the store again: `tc-adapters features`." if old else "Update tc-adapters-lens."
            raise FeatureStoreError(f"{path} must have {key} {wanted!r}. Got {got!r}. {mend}")
    for name, size in values.pop("files", {}).items():
        there = (directory / name).stat().st_size if (directory / name).is_file() else None
        if there != size:
            got = "it is missing" if there is None else f"{there:,}"
            raise FeatureStoreError(
                f"{directory / name} must have {size:,} bytes. Got {got}; copy the store again, or make it again."
            )
    return StoreInfo.from_dict(values)


def share_columns(info: StoreInfo) -> dict[str, list[str]]:
    """The table's columns of shares: regions, groups and template positions, in the order of `info`."""
    return {
        "regions": [f"region:{name}" for name in info.regions],
        "groups": [f"{info.group_by}:{name}" for name in info.groups],
        "template": [f"template:{name}" for name in info.template],
    }


def shares(counts: Int[np.ndarray, "n_features n"], n_active: Int[np.ndarray, " n_features"]) -> np.ndarray:
    """Counts as shares of a feature's active positions, float32; NaN where it has none."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return (counts / n_active[:, None]).astype(np.float32)


def _table(info: StoreInfo, layer: int, features: LayerFeatures, text: Text) -> pa.Table:
    n = info.n_features
    columns: dict[str, Any] = {
        "layer": np.full(n, layer, np.int32),
        "feature": np.arange(n, dtype=np.int32),
        "n_active": features.n_active,
        "frequency": features.n_active / max(info.n_counted, 1),
        "mean": features.mean,
        "max": features.maximum,
    }
    for kind, names in share_columns(info).items():
        of_kind = shares(getattr(features, kind), features.n_active)
        columns |= {name: of_kind[:, index] for index, name in enumerate(names)}
    if text.template is not None:
        columns |= _top_template(info, features, text.template)
    for name in ("promoted", "inhibited"):
        ids = getattr(features, name).ids
        lists = np.arange(len(ids) + 1, dtype=np.int32) * ids.shape[1]
        columns[name] = pa.ListArray.from_arrays(lists, ids.reshape(-1))
    return pa.table(columns)


def _top_template(info: StoreInfo, features: LayerFeatures, template: Int[np.ndarray, " n_tokens"]) -> dict[str, Any]:
    """The template position of most of a feature's highest examples, and the share of them that is there."""
    there = features.top.positions >= 0
    feature, _ = there.nonzero()
    counts = np.zeros((info.n_features, len(info.template)), np.int64)
    np.add.at(counts, (feature, template[features.top.positions[there]]), 1)
    names = np.array(info.template, dtype=object)[counts.argmax(1)]
    names[~there.any(1)] = None
    return {"top_template": pa.array(names, pa.string()), "top_template_share": shares(counts, there.sum(1)).max(1)}


def _to_arrays(features: LayerFeatures) -> dict[str, np.ndarray]:
    arrays = {}
    for field in fields(LayerFeatures):
        value = getattr(features, field.name)
        if field.name in _NESTED:
            arrays |= {f"{field.name}.{part}": array for part, array in value._asdict().items()}
        else:
            arrays[field.name] = value
    return {name: np.ascontiguousarray(array) for name, array in arrays.items()}
