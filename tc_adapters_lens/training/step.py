"""One training step's losses and gradients, with nothing computed twice and one graph alive at a time.

For a batch of sequences and a cutoff k drawn for it:

1. The target, without gradients: every layer's residual stream h_l. Denominators of NMSE and means.
2. Bridging target -> replacement: from h_k through the replacement's layers k+1..L. Its KL, backward, graph freed.
3. The replacement model's layers 1..k.
4. Bridging replacement -> target: from h'_k through the target's layers k+1..L. Its KL, backward as far as h'_k,
   graph freed.
5. The replacement model's layers k+1..L: output KL, NMSE of all layers, L1; one backward through steps 5 and 3, which
   the gradient of step 4 joins at h'_k.

So no more than L layers' activations wait for a backward pass at any time. Over all cutoffs a step takes 3 L
layer-forwards (every term by itself would take 6 L). The price of the order: the target's final residual stream is
unembedded three times rather than once.

What makes the replacement model differ from the hybrid is an adapter in every layer, or dense weights in place of some
of the hybrid's own: then there is no L1. Either belongs to mode `base` alone, so that a bridge's target layers keep
the target's weights.

At k = 0 the first bridge is the target itself, at k = L the second one is: that half is skipped. Where a bridge
equals the replacement model (first half at k = L, second half at k = 0) its KL is the output KL, not recomputed.

Source: Hu et al. 2026, section 3.2 (arXiv 2602.20904).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple, TypeAlias

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.func import functional_call
from torch.profiler import record_function
from torch.utils.checkpoint import checkpoint

from tc_adapters_lens.core.adapter import adapter
from tc_adapters_lens.core.losses import chunked_kl, squared_error, squared_norm, weighted_l1
from tc_adapters_lens.models.diff_transformer import HookedDiffTransformer
from tc_adapters_lens.training.config import ObjectiveConfig
from tc_adapters_lens.training.joint import LayerWeights
from tc_adapters_lens.training.objective import ObjectiveTerms, loss_weights, require_positions

__all__ = ["DenseLayer", "training_step"]

DenseLayer: TypeAlias = Mapping[str, Tensor]
"""One layer's dense weights in the precision of the model: parameter name within the block -> tensor."""


def training_step(
    model: HookedDiffTransformer,
    layers: Sequence[LayerWeights] | Sequence[DenseLayer],
    tokens: Int[Tensor, "batch pos"],
    mask: Bool[Tensor, "batch pos"],
    positions: Int[Tensor, " n_positions"],
    cutoff: int,
    config: ObjectiveConfig,
    l1_coefficient: float,
    sum_over_processes: Callable[[Tensor], Tensor] | None = None,
    checkpoint_blocks: bool = False,
) -> ObjectiveTerms:
    """Adds the gradients of the loss to those of the adapters or dense weights, and gives the loss's terms.

    Args:
        model: the pair, with nothing attached, its weights frozen.
        layers: every layer's adapter or dense weights, in the model's precision.
        tokens: padded on the right.
        mask: True where a position counts.
        positions: where `mask.flatten()` is True; given, because finding them on a device would wait for it.
        cutoff: k of the bridging terms, 0..n_layers.
        config: weights of the terms; with bridging weight 0 both halves are skipped.
        l1_coefficient: lambda of this step (it may be warming up).
        sum_over_processes: sums a tensor over the processes that share a batch; None: there is only this one.
        checkpoint_blocks: keep only the residual stream between layers and compute the rest of a layer again in its
            backward pass: same values, same bits, a third more time in the layers, far less memory.
    Raises:
        ValueError: no position counts.
    """
    require_positions(mask, positions, sum_over_processes)
    n_layers = model.cfg.n_layers
    counted = None if positions.numel() == mask.numel() else mask
    weights = loss_weights(config, n_layers, l1_coefficient)
    bridged = 0 < cutoff < n_layers and config.bridging_weight > 0

    with torch.no_grad(), record_function("target pass"), model.mode("target"):
        embedded = model.embed_tokens(tokens)
        target = [embedded, *model.run_layers(embedded)]
        sums = torch.stack([squared_norm(resid, counted) for resid in target[1:]])
        sums = torch.cat([sums, sums.new_full((1,), positions.numel())])
        if sum_over_processes is not None:
            sums = sum_over_processes(sums)
        energies, n_positions = sums[:-1], sums[-1]

    def mean_kl(resid: Tensor) -> Tensor:
        with record_function("unembedding and KL"):
            return chunked_kl(resid, target[-1], model.unembed_resid, positions) / n_positions

    zero = torch.zeros_like(n_positions)
    to_target = to_replacement = zero
    with _substituted(model, layers, counted, checkpoint_blocks) as replacement:
        if bridged:
            with model.mode("base"):
                with record_function("bridges"):
                    final = replacement.run(target[cutoff], cutoff, n_layers)[-1].resid
                to_replacement = mean_kl(final)
                with record_function("backward"):
                    (weights.bridging * to_replacement).backward()
                del final

        with record_function("replacement pass"), model.mode("base"):
            passed = replacement.run(embedded, 0, cutoff if bridged else n_layers)
        roots: list[Tensor] = []
        root_grads: list[Tensor | None] = []
        if bridged:
            border = passed[-1].resid
            start = border.detach().requires_grad_()
            with model.mode("target"):
                with record_function("bridges"):
                    final = replacement.run(start, cutoff, n_layers)[-1].resid
                to_target = mean_kl(final)
                with record_function("backward"):
                    (weights.bridging * to_target).backward()
                del final
            roots, root_grads = [border], [start.grad]
            with record_function("replacement pass"), model.mode("base"):
                passed += replacement.run(border, cutoff, n_layers)

        kl = mean_kl(passed[-1].resid)
        with record_function("replacement pass"):
            errors = [squared_error(layer.resid, h, counted) for layer, h in zip(passed, target[1:], strict=True)]
            nmse = torch.stack(errors) / energies
            l1 = torch.stack([layer.l1 for layer in passed]).sum() / n_positions
            at_an_end = config.bridging_weight > 0 and cutoff in (0, n_layers)
            kl_weight = weights.kl + (weights.bridging if at_an_end else 0)
            loss = kl_weight * kl + weights.nmse * nmse.sum() + weights.l1 * l1
        with record_function("backward"), model.mode("base"):
            torch.autograd.backward([loss, *roots], [None, *root_grads])

    if at_an_end:
        to_target, to_replacement = (zero, kl) if cutoff == 0 else (kl, zero)
    return ObjectiveTerms(
        kl=kl.detach(),
        nmse=nmse.detach(),
        bridging_to_target=to_target.detach(),
        bridging_to_replacement=to_replacement.detach(),
        l1=l1.detach(),
        counts=torch.stack([layer.counts for layer in passed]),
    )


class _Layer(NamedTuple):
    """A layer that was run: the residual stream after it, and in the replacement model what its adapter did.

    l1: decoder-norm-weighted L1, summed over positions that count; empty without an adapter.
    """

    resid: Float[Tensor, "batch pos d_model"]
    l1: Float[Tensor, ""]
    counts: Int[Tensor, " n_features"]


class _Runner:
    """Runs layers in their present modes, keeping of each adapter what the objective needs."""

    def __init__(
        self,
        model: HookedDiffTransformer,
        layers: Sequence[LayerWeights] | Sequence[DenseLayer],
        checkpoint_blocks: bool,
    ) -> None:
        self.model, self.layers, self.checkpoint_blocks = model, layers, checkpoint_blocks
        self.sums: tuple[Tensor, Tensor] | None = None

    def run(self, resid: Tensor, start: int, stop: int) -> list[_Layer]:
        layers: list[_Layer] = []
        for index in range(start, stop):
            run = partial(self._run_layer, index)
            layers.append(
                checkpoint(run, resid, use_reentrant=False, preserve_rng_state=False)
                if self.checkpoint_blocks
                else run(resid)
            )
            resid = layers[-1].resid
        return layers

    def _run_layer(self, index: int, resid: Tensor) -> _Layer:
        self.sums = None
        block, weights = self.model.blocks[index], self.layers[index]
        if isinstance(weights, LayerWeights) or self.model.mlps[index].mode == "target":
            resid = block(resid)
        else:
            resid = functional_call(block, dict(weights), (resid,))
        l1, counts = self.sums or (resid.new_empty(0), resid.new_empty(0, dtype=torch.int64))
        return _Layer(resid, l1, counts)


@contextmanager
def _substituted(
    model: HookedDiffTransformer,
    layers: Sequence[LayerWeights] | Sequence[DenseLayer],
    mask: Tensor | None,
    checkpoint_blocks: bool,
) -> Iterator[_Runner]:
    """Layers in mode `base` run these adapters, or with these weights, inside the block."""
    runner = _Runner(model, layers, checkpoint_blocks)

    def substitute(weights: LayerWeights, x: Tensor) -> Tensor:
        y, totals, counts = adapter(x, *weights, mask)
        # Here, not at the end: its backward then runs with this layer's, and one layer's decoder gradient is alive.
        runner.sums = weighted_l1(totals, weights.W_dec), counts
        return y

    try:
        for mlp, weights in zip(model.mlps, layers, strict=True):
            if isinstance(weights, LayerWeights):
                mlp.substitute = partial(substitute, weights)
        yield runner
    finally:
        for mlp in model.mlps:
            mlp.substitute = None
