"""Where the rest of the difference lives: parts of the target swapped into the base, alone and one after another.

    base  --embedding-->  --attention-->  --norms-->  --unembedding-->  hybrid  --MLP-->  target

What each step takes off the KL to the target sums up to the base's KL. With MLPs last, the model before the last step
is the hybrid, and its KL is what adapters can explain: they recover some of it and leave the rest. How much a part
recovers depends on what is there already, hence also each part alone and the target without it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from jaxtyping import Float
from transformer_lens import HookedTransformer

from tc_adapters_lens.evaluation.bootstrap import finite
from tc_adapters_lens.evaluation.estimate import Estimate
from tc_adapters_lens.evaluation.variants import Variant
from tc_adapters_lens.models.diff_transformer import HookedDiffTransformer
from tc_adapters_lens.models.parts import PARTS, composed

_WITHOUT_MLPS = tuple(part for part in PARTS if part != "MLP")
_MLPS_LAST = (*_WITHOUT_MLPS, "MLP")


@dataclass(frozen=True)
class Swap:
    """The model after a part of the target was swapped into another.

    kl: KL(target || model), nats.
    recovered: what it took off the KL, nats: off that of the step before, or else off the base's; below zero if it
        added to it.
    """

    kl: Estimate
    recovered: Estimate


@dataclass(frozen=True)
class Step(Swap):
    """One of several swaps.

    added: the part.
    """

    added: str


@dataclass(frozen=True)
class Explained:
    """What adapters do about the hybrid's KL, nats.

    recovered: the hybrid's KL less the replacement model's.
    left: the replacement model's KL.
    """

    recovered: Estimate
    left: Estimate


@dataclass(frozen=True)
class Account:
    """What each part of the target takes off the base's KL.

    parts: names, in the order of `cumulative`.
    alone: part -> the base with this part of the target.
    without: part -> the target with this part of the base; without "MLP" it is the hybrid.
    cumulative: parts swapped in one after another; the `recovered` sum up to the base's KL.
    mlps_last: the same with the MLPs last, so that the model before is the hybrid.
    adapters: the last step of `mlps_last`, split.
    """

    parts: list[str]
    alone: dict[str, Swap]
    without: dict[str, Swap]
    cumulative: list[Step]
    mlps_last: list[Step]
    adapters: Explained


def account_variants(model: HookedDiffTransformer, base: HookedTransformer) -> dict[str, Variant]:
    """Every model that the account needs besides base, hybrid and target, by `variant_name`."""
    chosen = [(part,) for part in PARTS]
    chosen += [tuple(other for other in PARTS if other != part) for part in PARTS]
    chosen += [PARTS[:n] for n in range(len(PARTS))] + [_MLPS_LAST[:n] for n in range(len(PARTS))]
    named = {variant_name(parts): partial(composed, model, base, parts) for parts in chosen}
    return {name: variant for name, variant in named.items() if name not in ("base", "hybrid")}


def variant_name(parts: Sequence[str]) -> str:
    """Name of the base with these parts of the target."""
    if set(parts) == set(_WITHOUT_MLPS):
        return "hybrid"
    return "+".join(["base", *(part for part in PARTS if part in parts)])


def account(
    kl_of: Callable[[str], Float[np.ndarray, " n_rows"]], replacement_kl: Float[np.ndarray, " n_rows"]
) -> Account:
    """The account, from every model's KL.

    Args:
        kl_of: name of a model (`variant_name`) -> its KL, nats, with replicates.
        replacement_kl: that of the replacement model.
    """
    base_kl = kl_of("base")

    def kl(parts: Sequence[str]) -> np.ndarray:
        return np.zeros_like(base_kl) if set(parts) == set(PARTS) else kl_of(variant_name(parts))

    def swap(parts: Sequence[str]) -> Swap:
        return Swap(finite(kl(parts)), finite(base_kl - kl(parts)))

    def steps(order: Sequence[str]) -> list[Step]:
        kls = [kl(order[:n]) for n in range(len(order) + 1)]
        return [
            Step(finite(after), finite(before - after), part)
            for part, before, after in zip(order, kls[:-1], kls[1:], strict=True)
        ]

    return Account(
        parts=list(PARTS),
        alone={part: swap([part]) for part in PARTS},
        without={part: swap([other for other in PARTS if other != part]) for part in PARTS},
        cumulative=steps(PARTS),
        mlps_last=steps(_MLPS_LAST),
        adapters=Explained(finite(kl(_WITHOUT_MLPS) - replacement_kl), finite(replacement_kl)),
    )
