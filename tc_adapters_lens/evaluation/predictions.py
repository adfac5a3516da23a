"""Models' next-token predictions beside the target's, summed per sequence.

Logits are made a block of positions at a time; those of the target serve several models. All arithmetic behind the
logits is float32 at least.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tc_adapters_lens.core.losses import log_softmax
from tc_adapters_lens.evaluation.bootstrap import Sums, estimate, finite, ratio
from tc_adapters_lens.evaluation.estimate import Estimate
from tc_adapters_lens.models.diff_transformer import Unembedding

SURE = 0.8
"""Above this the target's largest probability makes it sure of a position."""

Batch = tuple[Int[Tensor, "batch pos"], Bool[Tensor, "batch pos"]]
"""Tokens, padded on the right, and the mask: True where a position counts."""

_CHUNK_POSITIONS = 512
_MODELS_AT_ONCE = 8


@dataclass(frozen=True)
class Closeness:
    """How near a model's predictions are to the target's at some positions.

    kl: mean KL(target || model), nats.
    top1_error: share of positions whose most probable next token differs.
    """

    kl: Estimate
    top1_error: Estimate


@dataclass(frozen=True)
class Agreement:
    """One model's predictions against the target's.

    kl, top1_error: as `Closeness`, over all counted positions.
    unsure, sure: the same where the target's largest probability is at most / above `SURE`; None where it never is.
    cross_entropy: of the text's own next token, nats per token.
    loss_recovered: (hybrid's cross-entropy - this one's) / (hybrid's - target's); 0 is the hybrid, 1 the target. None
        where hybrid and target do not differ, and for what was measured without a hybrid.
    """

    kl: Estimate
    top1_error: Estimate
    unsure: Closeness | None
    sure: Closeness | None
    cross_entropy: Estimate | None
    loss_recovered: Estimate | None


class Prediction(NamedTuple):
    """What a model predicts, before it is turned into logits.

    name: of the model.
    resid: its final residual stream.
    unembedding: makes logits of it.
    """

    name: str
    resid: Float[Tensor, "batch pos d_model"]
    unembedding: Unembedding


class Positions:
    """Where a batch counts.

    Args:
        tokens: padded on the right.
        mask: True where a position counts.

    Attributes:
        flat: indices into the flattened batch of the positions that count.
        sequence: which sequence each belongs to.
        next_token: the token after each, -1 where that does not count.
    """

    def __init__(self, tokens: Int[Tensor, "batch pos"], mask: Bool[Tensor, "batch pos"]) -> None:
        self.n_sequences = len(tokens)
        self.flat = mask.flatten().nonzero().squeeze(-1)
        self.sequence = self.flat // mask.shape[1]
        following = torch.full_like(tokens, -1)
        following[:, :-1] = tokens[:, 1:].masked_fill(~mask[:, 1:], -1)
        self.next_token = following.flatten()[self.flat]

    def per_sequence(self, values: Float[Tensor, "n_positions *n"]) -> Float[Tensor, "n_sequences *n"]:
        """Sums of what each counted position has, float64."""
        sums = torch.zeros(self.n_sequences, *values.shape[1:], dtype=torch.float64, device=values.device)
        return sums.index_add_(0, self.sequence, values.double())


def compare_predictions(
    target: Prediction, others: Iterable[Prediction], positions: Positions
) -> dict[str, Float[Tensor, "n_sequences n"]]:
    """Per-sequence sums of every model's predictions, under its name, for `agreement`; the target's own too.

    Args:
        target: whose predictions the others are held against.
        others: taken a few at a time, so that no more final residual streams are held.
        positions: which count.
    """
    sums: dict[str, Tensor] = {}
    waiting = iter(others)
    while group := [p._replace(resid=p.resid.flatten(0, 1)[positions.flat]) for p in islice(waiting, _MODELS_AT_ONCE)]:
        parts: dict[str, list[Tensor]] = {}
        for rows in torch.arange(len(positions.flat), device=positions.flat.device).split(_CHUNK_POSITIONS):
            logits = target.unembedding(target.resid.flatten(0, 1)[positions.flat[rows]][None])[0]
            log_p = log_softmax(logits)
            p, next_token = log_p.exp(), positions.next_token[rows]
            top, choice = p.max(-1)
            sure = (top > SURE).double()
            if target.name not in sums:
                entropy = -(p * log_p).sum(-1).double()
                own = [torch.ones_like(entropy), sure, *_cross_entropy(log_p, next_token), entropy]
                parts.setdefault(target.name, []).append(torch.stack(own, -1))
            for other in group:
                log_q = log_softmax(other.unembedding(other.resid[rows][None])[0])
                kl = (p * (log_p - log_q)).sum(-1).double()
                error = (log_q.argmax(-1) != choice).double()
                found = [kl, error, kl * sure, error * sure, _cross_entropy(log_q, next_token)[0]]
                parts.setdefault(other.name, []).append(torch.stack(found, -1))
        sums |= {name: positions.per_sequence(torch.cat(chunks)) for name, chunks in parts.items()}
    return sums


@dataclass(frozen=True)
class TargetPredictions:
    """The target's own predictions.

    cross_entropy: of the text's own next token, nats per token; None where no counted position has a next one.
    entropy: nats per position.
    sure_share: share of positions at which its largest probability is above `SURE`.
    """

    cross_entropy: Estimate | None
    entropy: Estimate
    sure_share: Estimate


def target_predictions(sums: Sums, target: str) -> TargetPredictions:
    """From what `compare_predictions` summed under the target's name."""
    n, n_sure, cross_entropy, n_next, entropy = _columns(sums, target)
    return TargetPredictions(
        cross_entropy=estimate(ratio(cross_entropy, n_next)),
        entropy=finite(ratio(entropy, n)),
        sure_share=finite(ratio(n_sure, n)),
    )


def agreement(sums: Sums, name: str, target: str, hybrid: str | None) -> Agreement:
    """One model's agreement with the target, from what `compare_predictions` summed under their names."""
    n, n_sure, target_ce, n_next, _ = _columns(sums, target)
    kl, error, kl_sure, error_sure, ce = _columns(sums, name)
    recovered = None
    if hybrid is not None:
        hybrid_ce = _columns(sums, hybrid)[4]
        recovered = estimate(ratio(hybrid_ce - ce, hybrid_ce - target_ce))
    return Agreement(
        kl=finite(ratio(kl, n)),
        top1_error=finite(ratio(error, n)),
        unsure=_closeness(kl - kl_sure, error - error_sure, n - n_sure),
        sure=_closeness(kl_sure, error_sure, n_sure),
        cross_entropy=estimate(ratio(ce, n_next)),
        loss_recovered=recovered,
    )


def mean_kl(sums: Sums, name: str, target: str) -> Float[np.ndarray, " n_rows"]:
    """A model's mean KL to the target, with its replicates, nats."""
    return ratio(_columns(sums, name)[0], n_positions(sums, target))


def n_positions(sums: Sums, target: str) -> Float[np.ndarray, " n_rows"]:
    """Counted positions, with replicates."""
    return _columns(sums, target)[0]


def _columns(sums: Sums, name: str) -> np.ndarray:
    return sums[name].T


def _closeness(kl: np.ndarray, error: np.ndarray, n: np.ndarray) -> Closeness | None:
    return Closeness(finite(ratio(kl, n)), finite(ratio(error, n))) if n[0] > 0 else None


def _cross_entropy(log_probs: Tensor, next_token: Tensor) -> tuple[Tensor, Tensor]:
    """Of each position's next token, and whether there is one."""
    there = next_token >= 0
    nats = -log_probs.gather(-1, next_token.clamp(min=0).unsqueeze(-1)).squeeze(-1)
    return nats.double().masked_fill(~there, 0), there.double()
