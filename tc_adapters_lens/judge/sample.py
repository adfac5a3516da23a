"""Which features a judge is asked about: so many of each layer, drawn with a seed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from tc_adapters_lens.errors import JudgeError
from tc_adapters_lens.features.store import FeatureStore

__all__ = ["LayerSample", "sample_features"]


@dataclass(frozen=True, eq=False)
class LayerSample:
    """Features drawn from one layer.

    n_eligible: how many could have been drawn.
    features: those that were, ascending.
    """

    layer: int
    n_eligible: int
    features: Int[np.ndarray, " n"]


def sample_features(store: FeatureStore, per_layer: int, min_frequency: float, seed: int) -> list[LayerSample]:
    """Features drawn without replacement, at most `per_layer` of each layer.

    A larger `per_layer` draws the same features and more, so that what was judged stays of use.

    Args:
        store: whose.
        min_frequency: features must be active at this share of positions at least, and at one position.
        seed: of the draws.
    Raises:
        JudgeError: no layer has such a feature.
    """
    info = store.info
    n_active = np.asarray(store.column("n_active")).reshape(info.n_layers, info.n_features)
    samples = []
    for layer, counts in enumerate(n_active):
        eligible = np.flatnonzero((counts > 0) & (counts >= min_frequency * info.n_counted))
        order = np.random.default_rng([seed, layer]).permutation(info.n_features)
        features = order[np.isin(order, eligible)][:per_layer]
        samples.append(LayerSample(layer, len(eligible), np.sort(features)))
    if not n_active.any():
        raise JudgeError(f"At least one feature must be active somewhere. None of {store.directory} is.")
    if not any(len(sample.features) for sample in samples):
        raise JudgeError(
            f"At least one feature must be active at {min_frequency:g} of the positions. The most active one of "
            f"{store.directory} is at {n_active.max() / max(info.n_counted, 1):g}; lower --min-frequency."
        )
    return samples
