"""How faithful a replacement model is to its target, streamed over any number of tokens.

Per batch: the target, the replacement model, the hybrid and (where given) the base each run once; bridging at every
cutoff continues from the residual streams already there. Only sums are kept, in float64.

Source: Hu et al. 2026, sections 4.1 and 4.2 (arXiv 2602.20904).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformer_lens import HookedTransformer

from tc_adapters_lens.core.losses import kl_divergence
from tc_adapters_lens.core.statistics import feature_counts, top1_error
from tc_adapters_lens.errors import DataError
from tc_adapters_lens.models.adapter_set import AdapterSet
from tc_adapters_lens.models.diff_transformer import HookedDiffTransformer, unembed_resid
from tc_adapters_lens.models.names import hook_delta

CHUNK_POSITIONS = 512


@dataclass(frozen=True)
class Agreement:
    """One model's predictions against the target's, over unmasked positions.

    kl: mean KL(target || model), nats.
    top1_error: share of positions whose most probable next token differs.
    """

    kl: float
    top1_error: float


@dataclass(frozen=True)
class Faithfulness:
    """What `measure_faithfulness` finds.

    n_tokens: unmasked positions measured.
    kl, top1_error: of the replacement model.
    nmse, nmse_per_layer: sum |h' - h|^2 / sum |h|^2 after each layer, and its mean over layers.
    l0, l0_per_layer: active features per token, and its mean over layers.
    l1: decoder-norm-weighted L1 summed over layers, mean over tokens.
    dead_features: features that never fired on these tokens, of `n_features` in all layers.
    bridging_kl: for each direction a KL per cutoff 0..n_layers. `replacement_to_target` runs the replacement below
        the cutoff and the target above; `target_to_replacement` the other way round.
    hybrid, base: the same agreement for the hybrid and, where given, the base.
    """

    n_tokens: int
    kl: float
    top1_error: float
    nmse: float
    nmse_per_layer: list[float]
    l0: float
    l0_per_layer: list[float]
    l1: float
    dead_features: int
    n_features: int
    bridging_kl: dict[str, list[float]]
    hybrid: Agreement
    base: Agreement | None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class _AgreementSums:
    """KL and disagreements summed over positions, for one model."""

    def __init__(self) -> None:
        self.kl = self.errors = 0.0

    def add(self, kl: Tensor, errors: Tensor) -> None:
        self.kl += kl.double().sum().item()
        self.errors += errors.sum().item()

    def mean(self, n_tokens: int) -> Agreement:
        return Agreement(self.kl / n_tokens, self.errors / n_tokens)


@torch.no_grad()
def measure_faithfulness(
    model: HookedDiffTransformer,
    adapters: AdapterSet,
    batches: Iterable[tuple[Int[Tensor, "batch pos"], Bool[Tensor, "batch pos"]]],
    base: HookedTransformer | None = None,
) -> Faithfulness:
    """Compare replacement model, hybrid and base with the target, and count what the adapters do.

    Args:
        model: the pair, with nothing attached.
        adapters: fitting it, in any precision.
        batches: (tokens, mask), padded on the right, mask True where a position counts.
        base: the base model, for its own row.
    Raises:
        DataError: no position counts.
    """
    n_layers = model.cfg.n_layers
    device, double = model.cfg.device, {"dtype": torch.float64, "device": model.cfg.device}
    squared_error, squared_target = torch.zeros(n_layers, **double), torch.zeros(n_layers, **double)
    counts = torch.zeros(n_layers, adapters.n_features, dtype=torch.int64, device=device)
    decoder_norms = [a.W_dec.detach().double().norm(dim=-1) for a in adapters.values()]
    totals = torch.zeros(n_layers, adapters.n_features, **double)
    streams: dict[str, _AgreementSums] = {}
    n_tokens = 0

    for tokens, mask in batches:
        tokens, mask = tokens.to(device), mask.to(device)
        n_tokens += int(mask.sum())
        with model.mode("target"):
            target = [model.embed_tokens(tokens)]
            target += model.run_layers(target[0])
        with model.adapters(adapters), _features(model) as features:
            ours = [target[0], *model.run_layers(target[0])]
        for layer in range(n_layers):
            h, error = target[layer + 1][mask].double(), (ours[layer + 1] - target[layer + 1])[mask].double()
            squared_error[layer] += error.square().sum()
            squared_target[layer] += h.square().sum()
            counts[layer] += feature_counts(features[layer], mask)
            totals[layer] += features[layer].masked_fill(~mask.unsqueeze(-1), 0).sum((0, 1), dtype=torch.float64)
        features.clear()

        finals = {"replacement": ours[-1]}
        with model.mode("base"):
            finals["hybrid"] = model.run_layers(target[0])[-1]
        for cutoff in range(1, n_layers):
            with model.mode("target"):
                finals[f"replacement_to_target {cutoff}"] = model.run_layers(ours[cutoff], cutoff)[-1]
            with model.adapters(adapters):
                finals[f"target_to_replacement {cutoff}"] = model.run_layers(target[cutoff], cutoff)[-1]
        logits: dict[str, tuple[HookedTransformer, Tensor]] = {name: (model, resid) for name, resid in finals.items()}
        if base is not None:
            logits["base"] = (base, base(tokens, stop_at_layer=base.cfg.n_layers))
        _add_agreement(streams, model, target[-1], logits, mask)

    if n_tokens == 0:
        raise DataError("Evaluation needs at least one position that counts. Got none.")
    means = {name: sums.mean(n_tokens) for name, sums in streams.items()}
    nmse_per_layer = (squared_error / squared_target).tolist()
    l0_per_layer = (counts.sum(-1) / n_tokens).tolist()
    return Faithfulness(
        n_tokens=n_tokens,
        kl=means["replacement"].kl,
        top1_error=means["replacement"].top1_error,
        nmse=sum(nmse_per_layer) / n_layers,
        nmse_per_layer=nmse_per_layer,
        l0=sum(l0_per_layer) / n_layers,
        l0_per_layer=l0_per_layer,
        l1=sum(float(t @ norms) for t, norms in zip(totals, decoder_norms, strict=True)) / n_tokens,
        dead_features=int((counts == 0).sum()),
        n_features=counts.numel(),
        bridging_kl=_bridging(means, n_layers),
        hybrid=means["hybrid"],
        base=means.get("base"),
    )


def _bridging(means: Mapping[str, Agreement], n_layers: int) -> dict[str, list[float]]:
    """A KL per cutoff and direction; at the ends a bridge is the target itself or the whole replacement model."""
    inner = range(1, n_layers)
    return {
        "replacement_to_target": [
            0.0,
            *(means[f"replacement_to_target {k}"].kl for k in inner),
            means["replacement"].kl,
        ],
        "target_to_replacement": [
            means["replacement"].kl,
            *(means[f"target_to_replacement {k}"].kl for k in inner),
            0.0,
        ],
    }


def _add_agreement(
    streams: dict[str, _AgreementSums],
    model: HookedDiffTransformer,
    target_resid: Float[Tensor, "batch pos d_model"],
    others: Mapping[str, tuple[HookedTransformer, Float[Tensor, "batch pos d_model"]]],
    mask: Bool[Tensor, "batch pos"],
) -> None:
    """Unembed a chunk of unmasked positions at a time; the target's logits serve every other model."""
    positions = mask.flatten().nonzero().squeeze(-1)
    for chunk in positions.split(CHUNK_POSITIONS):
        target_logits = model.unembed_resid(target_resid.flatten(0, 1)[chunk][None])
        for name, (owner, resid) in others.items():
            logits = unembed_resid(owner, resid.flatten(0, 1)[chunk][None])
            streams.setdefault(name, _AgreementSums()).add(
                kl_divergence(target_logits, logits), top1_error(target_logits, logits)
            )


@contextmanager
def _features(model: HookedDiffTransformer) -> Iterator[list[Float[Tensor, "batch pos n_features"]]]:
    """Collects every layer's features while adapters are attached, in the order the layers run."""
    collected: list[Tensor] = []
    names = [f"{hook_delta(layer)}.hook_sae_acts_post" for layer in range(model.cfg.n_layers)]
    with model.hooks(fwd_hooks=[(name, lambda acts, hook: collected.append(acts)) for name in names]):
        yield collected
