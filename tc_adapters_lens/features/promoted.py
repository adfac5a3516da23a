"""Which tokens a direction in the residual stream speaks for or against, if nothing but the unembedding reads it.

A direction that a layer's MLP writes goes through the norm after the MLP (Gemma 2), the final norm and the unembedding.
The norms' denominators, which depend on the text, are taken as 1; what is left is linear:

    effect = W_U^T (w_final * centred(w_post * direction)),  minus its mean over the vocabulary

centred for LayerNorms only. Units: logit per unit of activation, before any soft cap.
"""

from __future__ import annotations

from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens import HookedTransformer
from transformer_lens.components import LayerNorm

from tc_adapters_lens.features.records import TokenEffects

__all__ = ["promoted_tokens", "through_norms"]

_DIRECTIONS_AT_ONCE = 256
_TOKENS_AT_ONCE = 16_384  # of the unembedding, which may be stored in fewer bits than float32


@torch.no_grad()
def promoted_tokens(
    model: HookedTransformer,
    layer: int,
    directions: Float[Tensor, "n d_model"],
    n_tokens: int = 20,
    n_known: int | None = None,
) -> tuple[TokenEffects, TokenEffects]:
    """The tokens that each direction promotes most and inhibits most.

    Args:
        model: whose norms and unembedding read the directions.
        layer: the layer whose MLP writes them: rows of an adapter's `W_dec`, or of `W_out`.
        directions: of units of that layer.
        n_tokens: how many to name, fewer where the vocabulary is smaller.
        n_known: ids that may be named, and that the mean is over, are below this; all by default. Models often pad
            their vocabulary with ids that no tokenizer writes.
    Returns:
        Promoted and inhibited tokens, those first whose logits move most.
    """
    n_known = model.cfg.d_vocab if n_known is None else n_known
    n_tokens = min(n_tokens, n_known)
    W_U = model.W_U[:, :n_known]
    found: list[tuple[Tensor, ...]] = []
    for chunk in directions.split(_DIRECTIONS_AT_ONCE):
        read = through_norms(model, layer, chunk.to(W_U.device, torch.float32))
        effects = torch.cat([read @ part.float() for part in W_U.split(_TOKENS_AT_ONCE, dim=1)], dim=1)
        mean = effects.mean(dim=1, keepdim=True)
        most, least = effects.topk(n_tokens, dim=1), effects.topk(n_tokens, dim=1, largest=False)
        parts = most.indices.int(), most.values - mean, least.indices.int(), least.values - mean
        found.append(parts)
    ids, effects, inhibited_ids, inhibited = (torch.cat(parts).cpu().numpy() for parts in zip(*found, strict=True))
    return TokenEffects(ids, effects), TokenEffects(inhibited_ids, inhibited)


def through_norms(
    model: HookedTransformer, layer: int, directions: Float[Tensor, "n d_model"]
) -> Float[Tensor, "n d_model"]:
    """Directions as the unembedding reads them, the norms' denominators taken as 1; linear in the directions."""
    for norm in (getattr(model.blocks[layer], "ln2_post", None), model.ln_final):
        if norm is None:
            continue
        if isinstance(norm, LayerNorm):
            directions = directions - directions.mean(dim=1, keepdim=True)
        directions = directions * cast(Tensor, norm.w).float()
    return directions
