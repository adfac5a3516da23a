"""How faithful a replacement model is to its target, beside other models of the pair, on any number of tokens.

Per batch the target, the replacement model and every other model run once, and per-sequence sums go into `Sums`: all
figures and their intervals come from those, in memory that does not grow with the number of tokens.

Source: Hu et al. 2026, sections 4.1 and 4.2 (arXiv 2602.20904).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformer_lens.hook_points import HookPoint

from tc_adapters_lens.core.statistics import feature_counts
from tc_adapters_lens.errors import DataError
from tc_adapters_lens.evaluation.account import Account, account
from tc_adapters_lens.evaluation.bootstrap import Bootstrap, Sums, finite, ratio
from tc_adapters_lens.evaluation.estimate import Estimate
from tc_adapters_lens.evaluation.predictions import (
    Agreement,
    Batch,
    Positions,
    Prediction,
    TargetPredictions,
    agreement,
    compare_predictions,
    mean_kl,
    n_positions,
    target_predictions,
)
from tc_adapters_lens.evaluation.variants import Variant, predict
from tc_adapters_lens.models.adapter_set import AdapterSet
from tc_adapters_lens.models.diff_transformer import HookedDiffTransformer
from tc_adapters_lens.models.names import hook_acts
from tc_adapters_lens.models.progress import Progress

FREQUENCY_EDGES = (0.0, *(10 ** (half / 2) for half in range(-14, 0)), 1.0 + 1e-9)
"""Borders of the bins of firing frequency, the share of tokens a feature is active on: never, then half decades."""

_FREQUENCY_REPLICATES = 200  # of every feature's count: 1,000 of 28 layers with 8,192 features would take 1.8 GB


@dataclass(frozen=True)
class Frequency:
    """How often features fire.

    edges: borders of the bins; bin i holds edges[i] <= frequency < edges[i + 1], but bin 0 only what never fired.
    per_layer: features per bin, for each layer.
    """

    edges: list[float]
    per_layer: list[list[Estimate]]


@dataclass(frozen=True)
class Faithfulness:
    """What `measure_faithfulness` finds; each figure with its 95% interval.

    n_tokens, n_sequences: counted positions, and the sequences they are in.
    replicates, seed: of the bootstrap.
    target: the target's own predictions.
    models: name -> agreement with the target; "replacement" and "hybrid", and every variant that was asked for.
    nmse, nmse_per_layer: sum |h' - h|^2 / sum |h|^2 after each layer, and its mean over layers.
    l0, l0_per_layer: active features per token, and its mean over layers.
    l1: decoder-norm-weighted L1 summed over layers, mean over tokens.
    frequency: how many features fire how often.
    dead, dead_per_layer: features that never fired on these tokens.
    n_layers, n_features: layers, and features of each.
    account: where the rest of the difference lives, if it was asked for.
    """

    n_tokens: int
    n_sequences: int
    replicates: int
    seed: int
    target: TargetPredictions
    models: dict[str, Agreement]
    nmse: Estimate
    nmse_per_layer: list[Estimate]
    l0: Estimate
    l0_per_layer: list[Estimate]
    l1: Estimate
    frequency: Frequency
    dead: Estimate
    dead_per_layer: list[Estimate]
    n_layers: int
    n_features: int
    account: Account | None


def measure_faithfulness(
    model: HookedDiffTransformer,
    adapters: AdapterSet,
    batches: Iterable[Batch],
    bootstrap: Bootstrap | None = None,
    variants: Mapping[str, Variant] | None = None,
    account_variants: Mapping[str, Variant] | None = None,
    progress: Progress | None = None,
) -> Faithfulness:
    """Compare replacement model, hybrid and others with the target, and count what the adapters do.

    Args:
        model: the pair, with nothing attached.
        adapters: fitting it, in any precision.
        batches: (tokens, mask), padded on the right, mask True where a position counts.
        bootstrap: how intervals are made; None: 1,000 replicates.
        variants: further models to compare, by name.
        account_variants: those of `account.account_variants`; they need "base" among `variants`.
        progress: where to keep what was added up so far, so that a killed evaluation goes on.
    Raises:
        DataError: no position counts, too few sequences for intervals, or predictions that are not finite.
    """
    others: dict[str, Variant] = {"hybrid": partial(model.mode, "base"), **(variants or {}), **(account_variants or {})}
    sums = Sums(bootstrap or Bootstrap(), model.cfg.device or "cpu")
    norms = [adapter.W_dec.detach().double().norm(dim=-1) for adapter in adapters.values()]
    for tokens, mask in (progress or Progress()).over(batches, sums):
        tokens, mask = tokens.to(model.cfg.device), mask.to(model.cfg.device)
        _add_batch(sums, model, adapters, norms, others, tokens, mask)

    sums.bootstrap.require(sums.n_sequences)
    if n_positions(sums, "target")[0] == 0:
        raise DataError("Evaluation needs at least one position that counts. Got none.")
    return _figures(sums, adapters, list(variants or {}), wants_account=account_variants is not None)


@torch.no_grad()
def _add_batch(
    sums: Sums,
    model: HookedDiffTransformer,
    adapters: AdapterSet,
    norms: list[Tensor],
    others: Mapping[str, Variant],
    tokens: Int[Tensor, "batch pos"],
    mask: Bool[Tensor, "batch pos"],
) -> None:
    positions = Positions(tokens, mask)
    counts: list[Tensor] = []
    l1: list[Tensor] = []

    def count(features: Tensor, hook: HookPoint) -> None:
        counts.append(torch.stack([feature_counts(*row) for row in zip(features, mask, strict=True)]))
        l1.append(features.masked_fill(~mask.unsqueeze(-1), 0).sum(1, dtype=torch.float64) @ norms[len(l1)])

    hooks: list[Any] = [(hook_acts(layer), count) for layer in adapters]
    with model.mode("target"):
        target = model.run_layers(model.embed_tokens(tokens))
    errors: list[Tensor] = []
    with model.adapters(adapters), model.hooks(fwd_hooks=hooks):
        ours = model.embed_tokens(tokens)
        for layer, h in enumerate(target):
            (ours,) = model.run_layers(ours, layer, layer + 1)
            errors.append(_squares(ours.double() - h.double(), mask))
    found = {
        "error": torch.stack(errors, 1),
        "energy": torch.stack([_squares(h, mask) for h in target], 1),
        "active": torch.stack(counts, 1).sum(-1).double(),
        "l1": torch.stack(l1, 1).sum(1),
        "counts": torch.stack(counts, 1),
    }

    def predictions() -> Iterator[Prediction]:
        yield Prediction("replacement", ours, model.unembedding())
        for name, variant in others.items():
            yield predict(name, model, variant, tokens)

    found |= compare_predictions(Prediction("target", target[-1], model.unembedding()), predictions(), positions)
    sums.add(found, {"counts": min(_FREQUENCY_REPLICATES, sums.bootstrap.n_replicates)})


def _figures(sums: Sums, adapters: AdapterSet, variants: list[str], wants_account: bool) -> Faithfulness:
    n = n_positions(sums, "target")
    nmse, l0 = ratio(sums["error"], sums["energy"]), ratio(sums["active"], n)
    counts = sums["counts"]
    histograms = [_histogram(layer, n[: len(counts)]) for layer in np.moveaxis(counts, 1, 0)]
    dead = np.stack([histogram[:, 0] for histogram in histograms], 1)
    agreements = {name: agreement(sums, name, "target", "hybrid") for name in ["hybrid", "replacement", *variants]}
    found_account = None
    if wants_account:
        found_account = account(partial(mean_kl, sums, target="target"), mean_kl(sums, "replacement", "target"))
    return Faithfulness(
        n_tokens=int(n[0]),
        n_sequences=sums.n_sequences,
        replicates=sums.bootstrap.n_replicates,
        seed=sums.bootstrap.seed,
        target=target_predictions(sums, "target"),
        models=agreements,
        nmse=finite(nmse.mean(-1)),
        nmse_per_layer=[finite(layer) for layer in nmse.T],
        l0=finite(l0.mean(-1)),
        l0_per_layer=[finite(layer) for layer in l0.T],
        l1=finite(ratio(sums["l1"], n)),
        frequency=Frequency(list(FREQUENCY_EDGES), [[finite(bin_) for bin_ in h.T] for h in histograms]),
        dead=finite(dead.sum(-1)),
        dead_per_layer=[finite(layer) for layer in dead.T],
        n_layers=adapters.n_layers,
        n_features=adapters.n_features,
        account=found_account,
    )


def _histogram(counts: Float[np.ndarray, "n_rows n_features"], n: Float[np.ndarray, " n_rows"]) -> np.ndarray:
    """Features per bin of one layer, `[n_rows n_bins]`, float64."""
    frequency = np.maximum(ratio(counts, n), FREQUENCY_EDGES[1])  # however rarely a feature fires, it is not dead
    bins = np.where(counts == 0, 0, np.digitize(frequency, FREQUENCY_EDGES[1:]))
    return np.stack([(bins == i).sum(-1) for i in range(len(FREQUENCY_EDGES) - 1)], -1).astype(np.float64)


def _squares(x: Float[Tensor, "batch pos d_model"], mask: Bool[Tensor, "batch pos"]) -> Float[Tensor, " batch"]:
    """Sum of squares over counted positions of each sequence."""
    return x.double().square().sum(-1).masked_fill(~mask, 0).sum(-1)
