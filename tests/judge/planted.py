"""Stores of features that are known: each is active at chosen positions of a random text."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float

from tc_adapters_lens.features.collect import Collector, Keeping
from tc_adapters_lens.features.records import StoreInfo, TokenEffects
from tc_adapters_lens.features.store import FeatureStore
from tc_adapters_lens.features.store_files import write_store
from tc_adapters_lens.features.text import Text
from tests.features.builder import PAIR, make_vocabulary

D_VOCAB = 400


def random_text(n_sequences: int = 120, longest: int = 130, seed: int = 0) -> Text:
    """A window of 71 tokens has a given token with probability 1 - (1 - 1/400)^71 = 0.16."""
    rng = np.random.default_rng(seed)
    offsets = np.cumsum([0, *rng.integers(60, longest, n_sequences)])
    return Text(rng.integers(0, D_VOCAB, offsets[-1]), offsets, np.ones(offsets[-1], bool))


def on_tokens(text: Text, n_features: int, seed: int = 0) -> Float[np.ndarray, "n_tokens n_features"]:
    """Activations of features of which number i is active, between 1 and 2, on token 10 + i alone."""
    heights = np.random.default_rng(seed).uniform(1, 2, (len(text.tokens), n_features))
    return np.where(text.tokens[:, None] == 10 + np.arange(n_features), heights, 0)


def sequence_of(text: Text) -> np.ndarray:
    """Each flat position's sequence."""
    return np.repeat(np.arange(len(text)), np.diff(text.offsets))


def at(where: Bool[np.ndarray, " n_tokens"], seed: int = 0) -> Float[np.ndarray, " n_tokens"]:
    """Activations of a feature that is active, between 1 and 2, at these positions."""
    return np.where(where, np.random.default_rng(seed).uniform(1, 2, len(where)), 0)


def planted_store(
    directory: Path, text: Text, layers: Sequence[Float[np.ndarray, "n_tokens n_features"]], **changes: Any
) -> FeatureStore:
    """What a collector finds of these activations.

    Args:
        changes: fields of StoreInfo to set otherwise.
    """
    keeping = Keeping(n_windows=300)
    n_features = layers[0].shape[1]
    collector = Collector(len(layers), n_features, text, keeping)
    for chosen in text.batches(16):
        batch = text.batch(chosen, "cpu")
        for layer, acts in enumerate(layers):
            collector.add(layer, torch.from_numpy(acts.astype(np.float32))[batch.positions], batch)
    nothing = TokenEffects(np.zeros((n_features, 0), np.int32), np.zeros((n_features, 0), np.float32))
    values: dict[str, Any] = {
        "model": "replacement",
        "hook": "blocks.{layer}.mlp.hook_delta.hook_sae_acts_post",
        "adapters": "runs/toy/adapters",
        "adapters_fingerprint": "xxh3:0",
    }
    info = StoreInfo(
        n_layers=len(layers),
        n_features=n_features,
        k=keeping.k,
        before=keeping.before,
        after=keeping.after,
        n_windows=len(collector.windows),
        n_sequences=len(text),
        n_tokens=len(text.tokens),
        n_counted=text.n_counted,
        regions=(),
        region_tokens=(),
        group_by=None,
        groups=(),
        group_tokens=(),
        template=(),
        template_tokens=(),
        pair=PAIR,
        **{**values, **changes},
    )
    found = (collector.features(layer, nothing, nothing) for layer in range(len(layers)))
    write_store(directory, info, found, text, collector.windows, make_vocabulary(D_VOCAB))
    return FeatureStore.open(directory)
