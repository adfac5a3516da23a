"""Words on features, for graphs: from the run's feature store, or else what their decoders promote."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
import xxhash

from tc_adapters_lens.features.promoted import promoted_tokens
from tc_adapters_lens.features.records import Example
from tc_adapters_lens.features.store import FeatureStore
from tc_adapters_lens.features.store_files import LABELS, STORE_FILE
from tc_adapters_lens.integrations.circuit_tracer.summary import FeatureWords
from tc_adapters_lens.models.adapter_set import AdapterSet
from tc_adapters_lens.models.diff_transformer import HookedDiffTransformer
from tc_adapters_lens.models.vocabulary import Vocabulary

__all__ = ["DecoderWords", "StoreWords", "label_of"]

_N_TOKENS, _N_EXAMPLES = 10, 3
_BEFORE, _AFTER = 20, 8  # tokens of an example's text around its own
_IN_LABEL = 3


class StoreWords:
    """Of a store's features; a description that was added to it is their label, else what they promote. A class is
    not: many features have the same one."""

    def __init__(self, store: FeatureStore):
        self._store = store
        self.source = _content(store.directory / STORE_FILE, *sorted((store.directory / LABELS).glob("*.parquet")))
        self._read: dict[tuple[int, int], FeatureWords] = {}

    def __getitem__(self, key: tuple[int, int]) -> FeatureWords:
        if key not in self._read:
            feature = self._store[key]
            promoted = tuple(effect.text for effect in feature.promoted[:_N_TOKENS])
            description = feature.labels.get("description")
            self._read[key] = FeatureWords(
                label=description if isinstance(description, str) and description else label_of(promoted),
                promoted=promoted,
                inhibited=tuple(effect.text for effect in feature.inhibited[:_N_TOKENS]),
                frequency=feature.frequency,
                examples=tuple(self._example(example) for example in feature.top[:_N_EXAMPLES]),
            )
        return self._read[key]

    def _example(self, example: Example) -> dict[str, Any]:
        vocabulary, at = self._store.vocabulary, example.position - example.start

        def text(tokens: Sequence[int]) -> str:
            return vocabulary.join(tokens).decode("utf-8", errors="replace")

        tokens = example.tokens.tolist()
        return {
            "before": text(tokens[max(0, at - _BEFORE) : at]),
            "token": text(tokens[at : at + 1]),
            "after": text(tokens[at + 1 : at + 1 + _AFTER]),
            "activation": example.activation,
        }


class DecoderWords:
    """Of adapters whose features nobody has collected: what their decoders promote and inhibit."""

    source = "decoders"

    def __init__(self, model: HookedDiffTransformer, adapters: AdapterSet, vocabulary: Vocabulary):
        self._model, self._adapters, self._vocabulary = model, adapters, vocabulary
        self._found: dict[tuple[int, int], FeatureWords] = {}

    def __getitem__(self, key: tuple[int, int]) -> FeatureWords:
        if key not in self._found:
            self.find([key])
        return self._found[key]

    def find(self, features: Iterable[tuple[int, int]]) -> None:
        """Look many up at once."""
        by_layer: dict[int, list[int]] = {}
        for layer, feature in sorted(set(features) - set(self._found)):
            by_layer.setdefault(layer, []).append(feature)
        for layer, chosen in by_layer.items():
            rows = self._adapters[layer].W_dec[torch.tensor(chosen, device=self._adapters.device)]
            effects = promoted_tokens(self._model, layer, rows, _N_TOKENS, self._vocabulary.n_known or None)
            for feature, more, less in zip(chosen, *(found.ids for found in effects), strict=True):
                promoted = tuple(self._vocabulary.texts(more))
                inhibited = tuple(self._vocabulary.texts(less))
                self._found[layer, feature] = FeatureWords(label_of(promoted), promoted, inhibited)


def _content(*files: Path) -> str:
    digest = xxhash.xxh3_128()
    for file in files:
        digest.update(file.read_bytes())
    return f"xxh3:{digest.hexdigest()}"


def label_of(promoted: Iterable[str]) -> str:
    """The first few promoted tokens as a name: 'wait, hmm, but'."""
    words = dict.fromkeys(word for text in promoted if (word := text.strip()))
    return ", ".join(list(words)[:_IN_LABEL])
