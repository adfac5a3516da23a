"""Which windows are hard to tell from those of a feature: those in which features like it are active.

Two features are alike as far as the same tokens make them active: the cosine of their activations summed by token,
over all their stored examples.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Bool, Float32, Int
from torch import Tensor

from tc_adapters_lens.features.records import EXAMPLE_KINDS
from tc_adapters_lens.features.store import FeatureStore

__all__ = ["hardness", "token_profiles"]

_AT_ONCE = 1024  # features whose examples are read at a time
_COMPARED = 64  # features that are compared with all others at a time


def hardness(
    store: FeatureStore, layer: int, features: Int[np.ndarray, " n"], loud: Bool[np.ndarray, "n_features n_windows"]
) -> Float32[np.ndarray, "n n_windows"]:
    """How much the most similar other feature that is active in a window is like a feature; 0 where none is.

    Args:
        features: of the layer, those to compare with.
        loud: in which windows each of the layer's features is active.
    """
    profiles = token_profiles(store, layer)
    found = np.zeros((len(features), loud.shape[1]), np.float32)
    for start in range(0, len(features), _COMPARED):
        chosen = features[start : start + _COMPARED]
        own = profiles.index_select(0, torch.from_numpy(chosen.astype(np.int64))).to_dense()
        alike = torch.sparse.mm(profiles, own.T).T.numpy()
        for row, feature in enumerate(chosen):
            alike[row, feature] = 0
            order = (-alike[row]).argsort(kind="stable")
            nearest = loud[order].argmax(0)
            found[start + row] = np.where(loud.any(0), alike[row, order[nearest]], 0)
    return found


def token_profiles(store: FeatureStore, layer: int) -> Float32[Tensor, "n_features n_ids"]:
    """Activations summed by token over a layer's stored examples, in rows of length 1; sparse, ids of the text only."""
    ids, tokens = np.unique(store.tokens, return_inverse=True)
    n_features = store.info.n_features
    parts = []
    for first in range(0, n_features, _AT_ONCE):
        stop = min(first + _AT_ONCE, n_features)
        entries = [store.entries(kind, layer, first, stop) for kind in EXAMPLE_KINDS]
        feature, position, value = (np.concatenate(arrays) for arrays in zip(*entries, strict=True))
        index = torch.from_numpy(np.stack([feature - first, tokens[position]]).astype(np.int64))
        part = torch.sparse_coo_tensor(index, torch.from_numpy(value), (stop - first, len(ids)), check_invariants=True)
        parts.append(part.coalesce())
    summed = torch.cat(parts).coalesce()
    rows, values = summed.indices()[0], summed.values()
    squares = torch.zeros(n_features).index_add_(0, rows, values.square())
    return torch.sparse_coo_tensor(
        summed.indices(), values / squares.sqrt()[rows], summed.shape, is_coalesced=True, check_invariants=True
    )
