"""The training objective of transcoder adapters: its terms, their weights, and the cutoff of a step.

    loss = KL + NMSE + bridging + lambda * L1

`training/step.py` computes the terms and their gradients. Source: Hu et al. 2026, section 3.2 (arXiv 2602.20904).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tc_adapters_lens.training.config import ObjectiveConfig


class ObjectiveTerms(NamedTuple):
    """Unweighted terms of one step, without gradients; a bridging half that was skipped is zero.

    In a job of several processes: this process's share of each, all of which sum to the terms of the whole batch.

    kl: KL(target || replacement), mean over unmasked positions, nats.
    nmse: normalised squared error of the residual stream after each layer, `[n_layers]`.
    bridging_to_target: KL(target || replacement up to the cutoff, then target), nats.
    bridging_to_replacement: KL(target || target up to the cutoff, then replacement), nats.
    l1: decoder-norm-weighted L1, summed over layers, mean over unmasked positions.
    counts: how many unmasked tokens each feature fired on, `[n_layers n_features]`; with dense weights, which have no
        features, `[n_layers 0]`, and l1 is 0.
    """

    kl: Float[Tensor, ""]
    nmse: Float[Tensor, " n_layers"]
    bridging_to_target: Float[Tensor, ""]
    bridging_to_replacement: Float[Tensor, ""]
    l1: Float[Tensor, ""]
    counts: Int[Tensor, "n_layers n_features"]


def draw_cutoff(seed: int, step: int, n_layers: int) -> int:
    """The cutoff of a step, uniform over 0..n_layers; a pure function, so that a resumed run draws the same."""
    return int(np.random.default_rng([seed, step]).integers(0, n_layers + 1))


def require_positions(
    mask: Bool[Tensor, "batch pos"],
    positions: Int[Tensor, " n_positions"],
    sum_over_processes: Callable[[Tensor], Tensor] | None,
) -> None:
    """A step has a position that counts; of several processes one may have none.

    Raises:
        ValueError: no position counts, and there is only this process.
    """
    if sum_over_processes is None and positions.numel() == 0:
        raise ValueError(f"a step needs at least one unmasked position. Got a mask of {tuple(mask.shape)}, all False.")


class LossWeights(NamedTuple):
    """What every term is multiplied with. `nmse` is for the SUM over layers."""

    kl: float
    nmse: float
    bridging: float
    l1: float


def loss_weights(config: ObjectiveConfig, n_layers: int, l1_coefficient: float) -> LossWeights:
    """The weights of a step: NMSE is averaged over layers, `bridging_weight` is that of each half.

    Args:
        l1_coefficient: lambda of this step (it may be warming up).
    """
    n_averaged = n_layers + int(config.nmse_counts_embedding)
    return LossWeights(config.kl_weight, config.nmse_weight / n_averaged, config.bridging_weight, l1_coefficient)


def weighted_sum(terms: ObjectiveTerms, config: ObjectiveConfig, l1_coefficient: float) -> Float[Tensor, ""]:
    """The loss: output KL, NMSE averaged over layers, both bridging halves and sparsity, each with its weight."""
    weights = loss_weights(config, terms.nmse.numel(), l1_coefficient)
    return (
        weights.kl * terms.kl
        + weights.nmse * terms.nmse.sum()
        + weights.bridging * (terms.bridging_to_target + terms.bridging_to_replacement)
        + weights.l1 * terms.l1
    )
