"""A pair with some parts of the target replaced by the base's: where the difference between the two models lives.

Parts are modules, so that settings go with weights (rotary angles and windows belong to the attention). Norms inside
an attention module (Qwen3) belong to the attention.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import cast

from torch import nn
from transformer_lens import HookedTransformer

from tc_adapters_lens.errors import PairError
from tc_adapters_lens.models.diff_transformer import HookedDiffTransformer

PARTS = ("embedding", "attention", "norms", "MLP", "unembedding")
"""What a model is made of, in the order of a forward pass."""

_NORMS = ("ln1", "ln2", "ln1_post", "ln2_post")
_MUST_AGREE = ("parallel_attn_mlp", "output_logits_soft_cap")


def check_parts_fit(model: HookedDiffTransformer, base: HookedTransformer) -> None:
    """Whether parts of the base can stand in the target.

    Raises:
        PairError: the two connect their parts in different ways.
    """
    for setting in _MUST_AGREE:
        theirs, ours = getattr(base.cfg, setting), getattr(model.cfg, setting)
        if theirs != ours:
            raise PairError(
                f"base and target must have the same {setting} for parts of one to stand in the other. "
                f"Got {theirs} (base) and {ours} (target). Leave out base, reverse and account."
            )


@contextmanager
def composed(model: HookedDiffTransformer, base: HookedTransformer, from_target: Collection[str]) -> Iterator[None]:
    """Inside the block the pair has these parts from the target, all others from the base.

    All of `PARTS` is the target, none the base, all but "MLP" the hybrid.

    Args:
        model: the pair, with nothing attached.
        base: the whole base (`load_base`).
        from_target: some of `PARTS`.
    Raises:
        ValueError: an unknown part.
    """
    if unknown := set(from_target) - set(PARTS):
        raise ValueError(f"parts must be of {', '.join(PARTS)}. Got {', '.join(sorted(unknown))}.")
    replaced: list[tuple[nn.Module, str, nn.Module]] = []

    def take(owner: nn.Module, other: nn.Module, name: str) -> None:
        if hasattr(owner, name):
            replaced.append((owner, name, getattr(owner, name)))
            setattr(owner, name, getattr(other, name))

    try:
        if "embedding" not in from_target:
            take(model, base, "embed")
        if "unembedding" not in from_target:
            take(model, base, "unembed")
        if "norms" not in from_target:
            take(model, base, "ln_final")
        for ours, theirs in zip(cast(nn.ModuleList, model.blocks), cast(nn.ModuleList, base.blocks), strict=True):
            if "attention" not in from_target:
                take(ours, theirs, "attn")
            if "norms" not in from_target:
                for name in _NORMS:
                    take(ours, theirs, name)
        with model.mode("target" if "MLP" in from_target else "base"):
            yield
    finally:
        for owner, name, module in replaced:
            setattr(owner, name, module)
