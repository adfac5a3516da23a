"""What is counted while training and evaluating: active features and dead ones.

Feature activations are never copied in float: 28 layers of 8,192 features at 7,500 tokens would be 7 GB.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

__all__ = ["feature_counts", "is_dead", "update_tokens_since_fired"]

_COUNT_CHUNK = 2**22  # activations compared at a time; their int64 sum takes 8 bytes each


def feature_counts(
    acts: Float[Tensor, "*pos n_features"], mask: Bool[Tensor, "*pos"] | None = None
) -> Int[Tensor, " n_features"]:
    """At how many positions that count (mask True; all without a mask) each feature is active (above zero), int64."""
    n_features = acts.shape[-1]
    counts = torch.zeros(n_features, dtype=torch.int64, device=acts.device)
    positions = max(1, _COUNT_CHUNK // n_features)
    rows = acts.detach().flatten(0, -2).split(positions)
    masks = [None] * len(rows) if mask is None else mask.flatten().split(positions)
    for chunk, counted in zip(rows, masks, strict=True):
        active = chunk > 0
        counts += (active if counted is None else active.logical_and_(counted.unsqueeze(-1))).sum(0)
    return counts


def update_tokens_since_fired(
    tokens_since_fired: Int[Tensor, "*layers n_features"],
    counts: Int[Tensor, "*layers n_features"],
    n_tokens: int | Int[Tensor, ""],
) -> Int[Tensor, "*layers n_features"]:
    """How many unmasked tokens each feature has been silent for, after one more batch.

    Args:
        tokens_since_fired: the same before the batch; zeros at the start.
        counts: how often each feature fired in the batch (`feature_counts`).
        n_tokens: unmasked tokens in the batch.
    Returns:
        0 for a feature that fired anywhere in the batch, else `n_tokens` more than before.
    """
    return torch.where(counts > 0, 0, tokens_since_fired + n_tokens)


def is_dead(
    tokens_since_fired: Int[Tensor, "*layers n_features"], dead_feature_window: int
) -> Bool[Tensor, "*layers n_features"]:
    """True for features silent for `dead_feature_window` unmasked tokens or more."""
    return tokens_since_fired >= dead_feature_window
