"""One step of the local phase: every layer's adapter by itself, on what the target computes.

    loss = sum over layers of  sum |y(x) - delta|^2 / sum |delta|^2   +   lambda * L1

x and delta are `hook_io`'s in one pass of the target without gradients, sums run over unmasked positions, and L1 is the
joint objective's. A layer's forward and backward pass happen while the target passes that layer: no graph spans two
layers, and no more than one layer's x, delta and features are held.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.profiler import record_function
from transformer_lens.hook_points import HookPoint

from tc_adapters_lens.core.adapter import adapter
from tc_adapters_lens.core.losses import squared_error, squared_norm, weighted_l1
from tc_adapters_lens.models.diff_transformer import HookedDiffTransformer
from tc_adapters_lens.models.names import hook_io
from tc_adapters_lens.training.joint import LayerWeights
from tc_adapters_lens.training.objective import require_positions

__all__ = ["LocalTerms", "local_step"]


class LocalTerms(NamedTuple):
    """Unweighted terms of a local step, without gradients; of several processes, this one's share of each.

    error: squared error to delta over delta's energy, `[n_layers]`; 0 is exact, 1 as wrong as predicting zero.
    l1: decoder-norm-weighted L1, summed over layers, mean over unmasked positions.
    counts: how many unmasked tokens each feature fired on, `[n_layers n_features]`.
    """

    error: Float[Tensor, " n_layers"]
    l1: Float[Tensor, ""]
    counts: Int[Tensor, "n_layers n_features"]

    def loss(self, l1_coefficient: float) -> Float[Tensor, ""]:
        return self.error.sum() + l1_coefficient * self.l1


def local_step(
    model: HookedDiffTransformer,
    adapters: Sequence[LayerWeights],
    tokens: Int[Tensor, "batch pos"],
    mask: Bool[Tensor, "batch pos"],
    positions: Int[Tensor, " n_positions"],
    l1_coefficient: float,
    sum_over_processes: Callable[[Tensor], Tensor] | None = None,
) -> LocalTerms:
    """Adds the gradients of the loss to those of the adapters, and gives the loss's terms.

    Args: as `training_step`'s; `sum_over_processes` is called once per layer.
    Raises:
        ValueError: no position counts.
    """
    require_positions(mask, positions, sum_over_processes)
    errors: list[Tensor] = []
    l1s: list[Tensor] = []
    counts: list[Tensor] = []

    def train_layer(io: Tensor, hook: HookPoint) -> None:
        weights = adapters[len(errors)]
        x, delta = io.flatten(0, 1)[positions].unsqueeze(0).chunk(2, dim=-1)
        energy = squared_norm(delta)
        sums = torch.stack([energy, energy.new_full((), positions.numel())])
        energy, n_positions = sums if sum_over_processes is None else sum_over_processes(sums)
        energy = energy.clamp(min=torch.finfo(energy.dtype).tiny)  # a layer whose two MLPs are equal has none
        with torch.enable_grad(), record_function("local layer"):
            y, totals, fired = adapter(x, *weights)
            error = squared_error(y, delta) / energy
            l1 = weighted_l1(totals, weights.W_dec) / n_positions
            (error + l1_coefficient * l1).backward()
        errors.append(error.detach())
        l1s.append(l1.detach())
        counts.append(fired)

    hooks: list[Any] = [(hook_io(layer), train_layer) for layer in range(model.cfg.n_layers)]
    with torch.no_grad(), record_function("target pass"), model.mode("target"), model.hooks(fwd_hooks=hooks):
        model.run_layers(model.embed_tokens(tokens))
    return LocalTerms(torch.stack(errors), torch.stack(l1s).sum(), torch.stack(counts))
