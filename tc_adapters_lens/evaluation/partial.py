"""Internal faithfulness by partial replacement: the target with some layers replaced, and the KL that comes of it.

Layers of the replacement model compute what the target's do, not merely the same predictions, if any of them can stand
in the target: replacing fewer layers must then give less KL. A run starts from the residual streams that are already
there, so that all of it costs 3 n_layers / 2 passes.

Source: Hu et al. 2026, section 4.2 (arXiv 2602.20904).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from tc_adapters_lens.evaluation.bootstrap import Bootstrap, Sums, finite
from tc_adapters_lens.evaluation.estimate import Estimate
from tc_adapters_lens.evaluation.predictions import Batch, Positions, Prediction, compare_predictions, mean_kl
from tc_adapters_lens.models.adapter_set import AdapterSet
from tc_adapters_lens.models.diff_transformer import HookedDiffTransformer
from tc_adapters_lens.models.progress import Progress


@dataclass(frozen=True)
class PartialKL:
    """KL(target || target with some layers replaced), nats, each with its 95% interval.

    first: the first k layers are the replacement model's, k = 0..n_layers.
    last: the last k layers are.
    single: layer l alone is, l = 0..n_layers-1.
    n_sequences: measured on so many.
    """

    first: list[Estimate]
    last: list[Estimate]
    single: list[Estimate]
    n_sequences: int


def measure_partial(
    model: HookedDiffTransformer,
    adapters: AdapterSet,
    batches: Iterable[Batch],
    bootstrap: Bootstrap | None = None,
    progress: Progress | None = None,
) -> PartialKL:
    """KL of replacing the first k, the last k and each single layer.

    Args: as `measure_faithfulness`.
    Raises:
        DataError: no sequences, too few for intervals, or predictions that are not finite.
    """
    sums = Sums(bootstrap or Bootstrap(), model.cfg.device or "cpu")
    for tokens, mask in (progress or Progress()).over(batches, sums):
        tokens, mask = tokens.to(model.cfg.device), mask.to(model.cfg.device)
        sums.add(_replaced(model, adapters, tokens, mask))
    sums.bootstrap.require(sums.n_sequences)

    n_layers = model.cfg.n_layers
    nothing = Estimate(0.0, *((0.0, 0.0) if sums.bootstrap.n_replicates else ()))

    def kl(name: str) -> Estimate:
        return finite(mean_kl(sums, name, "target"))

    single = [kl("first 1")]
    if n_layers > 1:
        single += [*(kl(f"single {layer}") for layer in range(1, n_layers - 1)), kl("last 1")]
    return PartialKL(
        first=[nothing, *(kl(f"first {k}") for k in range(1, n_layers + 1))],
        last=[nothing, *(kl(f"last {k}") for k in range(1, n_layers)), kl(f"first {n_layers}")],
        single=single,
        n_sequences=sums.n_sequences,
    )


@torch.no_grad()
def _replaced(
    model: HookedDiffTransformer,
    adapters: AdapterSet,
    tokens: Int[Tensor, "batch pos"],
    mask: Bool[Tensor, "batch pos"],
) -> dict[str, Tensor]:
    """Per-sequence sums of every partly replaced model's predictions."""
    n_layers = model.cfg.n_layers
    with model.mode("target"):
        target = [model.embed_tokens(tokens)]
        target += model.run_layers(target[0])
    with model.adapters(adapters):
        ours = [target[0], *model.run_layers(target[0])]

    def final(name: str, resid: Tensor) -> Prediction:
        return Prediction(name, resid, model.unembedding())

    def rest_of_target(resid: Tensor, start: int) -> Tensor:
        with model.mode("target"):
            return model.last_resid(resid, start)

    def predictions() -> Iterator[Prediction]:
        for k in range(1, n_layers + 1):
            yield final(f"first {k}", rest_of_target(ours[k], k))
        for k in range(1, n_layers):
            with model.adapters(adapters):
                replaced = model.last_resid(target[n_layers - k], n_layers - k)
            yield final(f"last {k}", replaced)
        for layer in range(1, n_layers - 1):
            with model.adapters(adapters):
                (replaced,) = model.run_layers(target[layer], layer, layer + 1)
            yield final(f"single {layer}", rest_of_target(replaced, layer + 1))

    return compare_predictions(final("target", target[-1]), predictions(), Positions(tokens, mask))
