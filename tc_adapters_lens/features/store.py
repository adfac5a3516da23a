"""Reading a feature store, lazily: a feature costs what is read of it.

store = FeatureStore.open("runs/toy/features")
feature = store[2, 17]                              # examples, promoted tokens, shares
frame = store.frame()                               # every feature, one row each
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float16, Float32, Int32, Int64, UInt8
from safetensors import SafetensorError, safe_open

from tc_adapters_lens.errors import FeatureStoreError, did_you_mean
from tc_adapters_lens.features.records import Example, Feature, StoreInfo, TokenEffect
from tc_adapters_lens.features.store_files import (
    LABELS,
    TABLE_FILE,
    TOKENS_FILE,
    VOCABULARY_FILE,
    layer_file,
    read_info,
)
from tc_adapters_lens.models.atomic import atomic_file
from tc_adapters_lens.models.json_files import first_line
from tc_adapters_lens.models.vocabulary import Vocabulary

if TYPE_CHECKING:
    import pandas as pd

    from tc_adapters_lens.models.adapter_set import AdapterSet

__all__ = ["ExampleKind", "FeatureStore"]

ExampleKind = Literal["top", "sampled"]
_KEYS = ["layer", "feature"]


class FeatureStore:
    """A store written by `tc-adapters features`. `store[layer, feature]` reads one feature.

    Attributes:
        directory: where it is.
        info: what it holds.
    """

    def __init__(self, directory: Path, info: StoreInfo) -> None:
        self.directory = directory
        self.info = info
        self._handles: dict[Path, Any] = {}

    @classmethod
    def open(cls, directory: str | Path, adapters: AdapterSet | None = None) -> FeatureStore:
        """Open a store; little is read.

        Args:
            directory: where it is.
            adapters: whose features it must be of; None: of any.
        Raises:
            FeatureStoreError: not a store, not whole, or of other adapters.
        """
        directory = Path(directory).expanduser()
        store = cls(directory, read_info(directory))
        if adapters is not None:
            store._require_of(adapters)
        return store

    def __repr__(self) -> str:
        info = self.info
        return f"FeatureStore({info.model}, {info.n_layers} layers x {info.n_features}, {info.n_counted:,} positions)"

    def __len__(self) -> int:
        return self.info.n_layers * self.info.n_features

    def __getitem__(self, key: tuple[int, int]) -> Feature:
        layer, feature = key
        info = self.info
        if not (0 <= layer < info.n_layers and 0 <= feature < info.n_features):
            raise KeyError(
                f"There are features (0, 0) to ({info.n_layers - 1}, {info.n_features - 1}). Got ({layer}, {feature})."
            )
        read = functools.partial(self._read, layer)
        n_active = int(read("n_active", feature))
        return Feature(
            layer=layer,
            feature=feature,
            n_active=n_active,
            frequency=n_active / max(info.n_counted, 1),
            mean=float(read("mean", feature)),
            max=float(read("maximum", feature)),
            histogram=read("histogram", feature),
            regions=_shares(info.regions, read("regions", feature), n_active),
            groups=_shares(info.groups, read("groups", feature), n_active),
            template=_shares(info.template, read("template", feature), n_active),
            promoted=self._effects(layer, feature, "promoted"),
            inhibited=self._effects(layer, feature, "inhibited"),
            top=self._examples(layer, feature, "top"),
            sampled=self._examples(layer, feature, "sampled"),
            labels=self._labels_of(layer, feature),
        )

    @functools.cached_property
    def vocabulary(self) -> Vocabulary:
        """Every token id's own bytes."""
        return Vocabulary(self._text(VOCABULARY_FILE, "bytes"), self._text(VOCABULARY_FILE, "offsets"))

    @functools.cached_property
    def tokens(self) -> Int32[np.ndarray, " n_tokens"]:
        """All sequences' token ids, one after another."""
        return self._text(TOKENS_FILE, "tokens")

    @functools.cached_property
    def offsets(self) -> Int64[np.ndarray, " n_sequences_plus_1"]:
        """Where each sequence starts in `tokens`, and the total at the end."""
        return self._text(TOKENS_FILE, "offsets")

    @functools.cached_property
    def sequence_groups(self) -> UInt8[np.ndarray, " n_sequences"] | None:
        """Each sequence's index in `info.groups`; None where the text is not grouped."""
        return self._text(TOKENS_FILE, "groups") if self.info.groups else None

    @functools.cached_property
    def position_regions(self) -> UInt8[np.ndarray, " n_tokens"] | None:
        """Each flat position's index in `info.regions`; None where the text has none."""
        return self._text(TOKENS_FILE, "regions") if self.info.regions else None

    @functools.cached_property
    def position_template(self) -> UInt8[np.ndarray, " n_tokens"] | None:
        """Each flat position's index in `info.template`; None where the text has none."""
        return self._text(TOKENS_FILE, "template") if self.info.template else None

    @property
    def column_names(self) -> list[str]:
        """Names of the table's columns, then of labels'."""
        labels = [name for table in self._labels.values() for name in table.column_names if name not in _KEYS]
        return [*pq.read_schema(self.directory / TABLE_FILE).names, *labels]

    def column(self, name: str) -> np.ndarray:
        """One column, a value (or a row of 20 token ids) per feature, layer after layer. Features without a label have
        None, or NaN among numbers.

        Raises:
            FeatureStoreError: no such column.
        """
        if name not in self.column_names:
            known = ", ".join(self.column_names)
            raise FeatureStoreError(
                f"A column must be one of {known}. Got {name}.{did_you_mean(name, self.column_names)}"
            )
        for table in self._labels.values():
            if name in table.column_names and name not in _KEYS:
                return self.frame()[name].to_numpy()
        column = self._read_table([name]).column(0).combine_chunks()
        if pa.types.is_list(column.type):
            return column.flatten().to_numpy().reshape(len(self), -1)
        return column.to_numpy(zero_copy_only=False)

    def frame(self) -> pd.DataFrame:
        """Every feature as one row, labels joined, in order of layer and feature."""
        frame = self._read_table(None).to_pandas()
        for table in self._labels.values():
            frame = frame.merge(table.to_pandas(), how="left", on=_KEYS, validate="one_to_one")
        return frame

    def peaks(self, kind: ExampleKind, layer: int) -> Int64[np.ndarray, "n_features k"]:
        """Flat positions of one layer's examples; -1 where there are fewer than k."""
        return self._read(layer, f"{kind}.positions")

    @functools.cached_property
    def windows(self) -> Int64[np.ndarray, "n_windows 3"]:
        """Windows drawn at random from the text, in its order: sequence, and positions [start, stop) of it."""
        return self._text(TOKENS_FILE, "windows")

    def window_maxima(self, layer: int, feature: int | None = None) -> Float16[np.ndarray, "..."]:
        """Highest activation in each of `windows`, of one feature or of a layer's, a row each; 0 where not active."""
        return self._read(layer, "window_maxima", feature)

    def entries(
        self, kind: ExampleKind, layer: int, first: int, stop: int
    ) -> tuple[Int64[np.ndarray, " n"], Int64[np.ndarray, " n"], Float32[np.ndarray, " n"]]:
        """Every activation above zero in the examples of a layer's features [first, stop): feature, flat position,
        activation."""
        k = self.info.k
        starts = self._read(layer, f"{kind}.starts", slice(first * k, stop * k + 1))
        if starts[0] == starts[-1]:
            nothing = np.zeros(0, np.int64)
            return nothing, nothing, nothing.astype(np.float32)
        own = slice(int(starts[0]), int(starts[-1]))
        offsets, values = (self._read(layer, f"{kind}.{part}", own) for part in ("offsets", "values"))
        positions = self._read(layer, f"{kind}.positions", slice(first, stop))
        counts = np.diff(starts)
        features = np.repeat(np.arange(first, stop).repeat(k), counts)
        return features, np.repeat(positions.reshape(-1), counts) - self.info.before + offsets, values

    def add_labels(self, name: str, frame: pd.DataFrame) -> None:
        """Join columns to the table, for now and for everybody who opens the store later; labels of that name are
        replaced.

        Args:
            name: of these labels, a file name.
            frame: `layer`, `feature` and whatever else is known of them; not every feature need be there.
        Raises:
            FeatureStoreError: no layer or feature, ones the store does not have, one twice, or a column that is there.
        """
        if not name.isidentifier():
            raise FeatureStoreError(f"Labels must have a name of letters, digits and underscores. Got {name!r}.")
        missing = [key for key in _KEYS if key not in frame]
        if missing:
            raise FeatureStoreError(f"Labels must have columns layer and feature. Got {', '.join(map(str, frame))}.")
        info = self.info
        inside = frame["layer"].between(0, info.n_layers - 1) & frame["feature"].between(0, info.n_features - 1)
        if not inside.all():
            layer, feature = frame.loc[~inside, _KEYS].to_numpy()[0]
            raise FeatureStoreError(
                f"Labels must be of features (0, 0) to ({info.n_layers - 1}, {info.n_features - 1}). "
                f"Got ({layer}, {feature})."
            )
        if frame.duplicated(_KEYS).any():
            layer, feature = frame.loc[frame.duplicated(_KEYS), _KEYS].to_numpy()[0]
            raise FeatureStoreError(f"Labels must name a feature once. Got ({layer}, {feature}) twice.")
        others = [table.column_names for key, table in self._labels.items() if key != name]
        taken = {*pq.read_schema(self.directory / TABLE_FILE).names, *(c for names in others for c in names)} - {*_KEYS}
        if clash := [column for column in frame if column in taken]:
            raise FeatureStoreError(f"Labels must have columns of their own. Got {clash[0]}, which is there already.")
        table = pa.Table.from_pandas(frame.astype(dict.fromkeys(_KEYS, np.int32)), preserve_index=False)
        with atomic_file(self.directory / LABELS / f"{name}.parquet", error=FeatureStoreError) as partial:
            pq.write_table(table, partial)
        self.__dict__.pop("_labels", None)

    def _require_of(self, adapters: AdapterSet) -> None:
        if self.info.adapters_fingerprint is None:
            raise FeatureStoreError(
                f"A store of adapter features is needed. Got {self.directory}, of the {self.info.model}'s neurons."
            )
        fingerprint = adapters.fingerprint()
        if fingerprint != self.info.adapters_fingerprint:
            raise FeatureStoreError(
                f"{self.directory} must be of these adapters ({fingerprint}). Got one of {self.info.adapters} "
                f"({self.info.adapters_fingerprint}); make it again: `tc-adapters features`."
            )

    def _effects(self, layer: int, feature: int, which: str) -> list[TokenEffect]:
        ids, effects = (self._read(layer, f"{which}.{part}", feature) for part in ("ids", "effects"))
        texts = self.vocabulary.texts(ids)
        return [TokenEffect(int(i), text, float(e)) for i, text, e in zip(ids, texts, effects, strict=True)]

    def _examples(self, layer: int, feature: int, kind: ExampleKind) -> list[Example]:
        k, before, after = self.info.k, self.info.before, self.info.after
        positions = self._read(layer, f"{kind}.positions", feature)
        n_examples = int((positions >= 0).sum())
        if n_examples == 0:  # safetensors refuses the empty slice behind the last entry
            return []
        activations = self._read(layer, f"{kind}.activations", feature)
        starts = self._read(layer, f"{kind}.starts", slice(feature * k, (feature + 1) * k + 1))
        entries = slice(int(starts[0]), int(starts[-1]))
        offsets, values = (self._read(layer, f"{kind}.{part}", entries) for part in ("offsets", "values"))
        examples = []
        for index in range(n_examples):
            flat = int(positions[index])
            sequence = int(np.searchsorted(self.offsets, flat, side="right")) - 1
            begin, end = int(self.offsets[sequence]), int(self.offsets[sequence + 1])
            first, last = max(begin, flat - before), min(end, flat + after + 1)
            window = np.zeros(before + 1 + after, np.float32)
            own = slice(int(starts[index] - starts[0]), int(starts[index + 1] - starts[0]))
            window[offsets[own]] = values[own]
            examples.append(
                Example(
                    sequence=sequence,
                    position=flat - begin,
                    activation=float(activations[index]),
                    start=first - begin,
                    tokens=self.tokens[first:last],
                    activations=window[first - flat + before : last - flat + before],
                    group=_name(self.info.groups, self.sequence_groups, sequence),
                    region=_name(self.info.regions, self.position_regions, flat),
                    template=_name(self.info.template, self.position_template, flat),
                )
            )
        return examples

    @functools.cached_property
    def _labels(self) -> dict[str, pa.Table]:
        return {path.stem: _read_parquet(path) for path in sorted((self.directory / LABELS).glob("*.parquet"))}

    def _labels_of(self, layer: int, feature: int) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for table in self._labels.values():
            row = np.flatnonzero((table["layer"].to_numpy() == layer) & (table["feature"].to_numpy() == feature))
            if len(row):
                found |= {k: v[0] for k, v in table.slice(int(row[0]), 1).to_pydict().items() if k not in _KEYS}
        return found

    def _read(self, layer: int, name: str, index: int | slice | None = None) -> Any:
        """One layer's array, or an entry or a slice of it."""
        return self._slice(self.directory / layer_file(layer), name, index)

    def _text(self, file: str, name: str) -> np.ndarray:
        return self._slice(self.directory / file, name, None)

    def _slice(self, path: Path, name: str, index: int | slice | None) -> Any:
        try:
            if path not in self._handles:
                self._handles[path] = safe_open(path, "numpy")
            stored = self._handles[path].get_slice(name)
            if isinstance(index, int):
                return stored[index : index + 1][0]
            return stored[:] if index is None else stored[index]
        except (SafetensorError, OSError) as error:
            raise FeatureStoreError(f"{path} cannot be read: {first_line(error)}. Make the store again.") from error

    def _read_table(self, columns: list[str] | None) -> pa.Table:
        return _read_parquet(self.directory / TABLE_FILE, columns)


def _read_parquet(path: Path, columns: list[str] | None = None) -> pa.Table:
    try:
        return pq.read_table(path, columns=columns)
    except (pa.ArrowException, OSError) as error:
        raise FeatureStoreError(f"{path} cannot be read: {first_line(error)}. Make it again.") from error


def _name(names: tuple[str, ...], codes: UInt8[np.ndarray, " n"] | None, index: int) -> str | None:
    return None if codes is None else names[codes[index]]


def _shares(names: tuple[str, ...], counts: Int64[np.ndarray, " n"], n_active: int) -> dict[str, float]:
    return {name: int(count) / n_active for name, count in zip(names, counts, strict=True)} if n_active else {}
