"""The training objective of transcoder adapters, with nothing computed twice.

One step, for a batch of sequences and a cutoff k drawn for it:

1. the target, without gradients: every layer's residual stream h_l;
2. the replacement model, with gradients: h'_l, features, and from these output KL, NMSE and sparsity;
3. bridging replacement -> target: continue from h'_k through the target's layers k+1..L;
4. bridging target -> replacement: continue from h_k through the replacement's layers k+1..L;
5. all KLs together through the unembedding, a block of positions at a time.

At k = 0 the first bridge is the target itself, at k = L the second one is: that half is skipped. Where a bridge
equals the replacement model (first half at k = L, second half at k = 0) its KL is the output KL, not recomputed.

Source: Hu et al. 2026, section 3.2 (arXiv 2602.20904).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformer_lens.hook_points import HookPoint

from tc_adapters_lens.core.losses import chunked_kl, nmse, sparsity
from tc_adapters_lens.core.statistics import feature_counts
from tc_adapters_lens.models.diff_transformer import HookedDiffTransformer
from tc_adapters_lens.models.names import hook_delta, hook_in
from tc_adapters_lens.training.config import ObjectiveConfig
from tc_adapters_lens.training.joint import LayerWeights


class ObjectiveTerms(NamedTuple):
    """Unweighted terms of one step; a bridging half that was skipped is zero.

    kl: KL(target || replacement), mean over unmasked positions, nats.
    nmse: normalised squared error of the residual stream after each layer, `[n_layers]`.
    bridging_to_target: KL(target || replacement up to the cutoff, then target), nats.
    bridging_to_replacement: KL(target || target up to the cutoff, then replacement), nats.
    l1: decoder-norm-weighted L1, summed over layers, mean over unmasked positions.
    counts: how many unmasked tokens each feature fired on, `[n_layers n_features]`; no gradient.
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


def weighted_sum(terms: ObjectiveTerms, config: ObjectiveConfig, l1_coefficient: float) -> Float[Tensor, ""]:
    """The loss: output KL, NMSE averaged over layers, both bridging halves and sparsity, each with its weight.

    Args:
        l1_coefficient: lambda of this step (it may be warming up).
    """
    n_averaged = terms.nmse.numel() + int(config.nmse_counts_embedding)
    return (
        config.kl_weight * terms.kl
        + config.nmse_weight * terms.nmse.sum() / n_averaged
        + config.bridging_weight * (terms.bridging_to_target + terms.bridging_to_replacement)
        + l1_coefficient * terms.l1
    )


def objective_terms(
    model: HookedDiffTransformer,
    adapters: Sequence[LayerWeights],
    tokens: Int[Tensor, "batch pos"],
    mask: Bool[Tensor, "batch pos"],
    cutoff: int,
    sum_: Callable[[Tensor], None] | None = None,
) -> ObjectiveTerms:
    """Every term of the objective for one batch, gradients reaching the adapters only.

    Args:
        model: the pair, with nothing attached.
        adapters: every layer's adapter, in the model's precision.
        tokens: padded on the right.
        mask: True where a position counts.
        cutoff: k of the bridging terms, 0..n_layers.
        sum_: adds a small tensor up over processes, in place. The terms are then this process's share of those of the
            whole batch, and it may have no unmasked position.
    """
    n_layers = model.cfg.n_layers
    with torch.no_grad(), model.mode("target"):
        embedded = model.embed_tokens(tokens)
        target = [embedded, *model.run_layers(embedded)]

    n_positions, totals = None, [None] * n_layers
    if sum_ is not None:
        dtype = torch.promote_types(embedded.dtype, torch.float32)
        energies = [resid.to(dtype).square().sum(-1).masked_fill(~mask, 0).sum() for resid in target[1:]]
        normalisers = torch.stack([mask.sum().to(dtype), *energies])
        sum_(normalisers)
        n_positions, *totals = normalisers

    with replacement(model, adapters) as features:
        ours = [embedded, *model.run_layers(embedded)]
    errors = torch.stack([nmse(r, t, mask, n) for r, t, n in zip(ours[1:], target[1:], totals, strict=True)])
    l1 = torch.stack([sparsity(f, w.W_dec, mask, n_positions) for f, w in zip(features, adapters, strict=True)]).sum()
    with torch.no_grad():
        counts = torch.stack([feature_counts(acts, mask) for acts in features])
    features.clear()

    finals = [ours[-1]]
    if 0 < cutoff < n_layers:
        with model.mode("target"):
            finals.append(model.run_layers(ours[cutoff], cutoff)[-1])
        with replacement(model, adapters):
            finals.append(model.run_layers(target[cutoff], cutoff)[-1])
    kls = chunked_kl(finals, target[-1], model.unembed_resid, mask, n_positions=n_positions)

    zero = torch.zeros_like(kls[0])
    to_target, to_replacement = kls[0], kls[0]
    if 0 < cutoff < n_layers:
        to_target, to_replacement = kls[1], kls[2]
    return ObjectiveTerms(
        kl=kls[0],
        nmse=errors,
        bridging_to_target=to_target if cutoff > 0 else zero,
        bridging_to_replacement=to_replacement if cutoff < n_layers else zero,
        l1=l1,
        counts=counts,
    )


@contextmanager
def replacement(
    model: HookedDiffTransformer, adapters: Sequence[LayerWeights]
) -> Iterator[list[Float[Tensor, "batch pos n_features"]]]:
    """The replacement model inside the block, from trainable weights.

    Yields:
        A list that collects every layer's features, in the order the layers run.
    """
    features: list[Tensor] = []
    inputs: list[Tensor] = []

    def read(x: Tensor, hook: HookPoint) -> None:
        inputs.append(x)

    def write(weights: LayerWeights):
        def add(delta: Tensor, hook: HookPoint) -> Tensor:
            acts = weights.encode(inputs.pop())
            features.append(acts)
            return weights.decode(acts)

        return add

    hooks: list[Any] = [(hook_in(layer), read) for layer in range(len(adapters))]
    hooks += [(hook_delta(layer), write(weights)) for layer, weights in enumerate(adapters)]
    with model.mode("base"), model.hooks(fwd_hooks=hooks):
        yield features
