"""What a graph explains: tokens, the difference of two tokens' logits, or a direction, in circuit-tracer's forms."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from circuit_tracer.attribution.targets import AttributionTargets, CustomTarget, TargetSpec
from jaxtyping import Float
from torch import Tensor

from tc_adapters_lens.errors import GraphError
from tc_adapters_lens.integrations.circuit_tracer.sparse_graph import Target

if TYPE_CHECKING:
    from circuit_tracer.replacement_model.replacement_model_transformerlens import TransformerLensReplacementModel

__all__ = ["Explained", "GraphTargets", "contrast", "direction", "explained", "token_id", "tokens"]

_SHOWN = 8  # tokens of a text that is not one


@dataclass(frozen=True, eq=False)
class GraphTargets:
    """What `trace` explains.

    Attributes:
        upstream: circuit-tracer's `attribution_targets`.
        own: the unembedding bias's part of each custom target, `[n_targets]`; None: of tokens, or 0.
    """

    upstream: Sequence[str] | Sequence[TargetSpec] | Tensor | None
    own: Tensor | None = None


def tokens(model: TransformerLensReplacementModel, chosen: Sequence[str | int]) -> GraphTargets:
    """The logits of tokens, given as their text or their id.

    Raises:
        GraphError: none, one twice, a text that is not one token, or an id out of range.
    """
    ids = [token_id(model, token) for token in chosen]
    if not ids or len(set(ids)) < len(ids):
        raise GraphError(f"Target tokens must be one or more, each once. Got {list(chosen)}.")
    return GraphTargets(torch.tensor(ids))


def contrast(model: TransformerLensReplacementModel, plus: str | int, minus: str | int) -> GraphTargets:
    """One target: the logit of a token less that of another. Errors as `tokens`."""
    a, b = token_id(model, plus), token_id(model, minus)
    if a == b:
        raise GraphError(f"A contrast must be of two tokens. Got {_text(model, a)!r} twice.")
    label = " - ".join(_text(model, token).strip() or repr(_text(model, token)) for token in (a, b))
    vector = model.unembed_proj[:, a] - model.unembed_proj[:, b]
    bias = _unembedding_bias(model)
    return GraphTargets([CustomTarget(label, 1.0, vector.detach())], (bias[a] - bias[b])[None])


def direction(model: TransformerLensReplacementModel, label: str, vector: Float[Tensor, "d_model"]) -> GraphTargets:
    """One target: what a direction reads of the final norm's output.

    Raises:
        GraphError: not of the model's width, or not finite.
    """
    if vector.shape != (model.cfg.d_model,) or not vector.isfinite().all():
        raise GraphError(
            f"A direction must be {model.cfg.d_model} finite numbers. Got {tuple(vector.shape)} for {label!r}."
        )
    return GraphTargets([CustomTarget(label, 1.0, vector.to(model.unembed_proj))])


def token_id(model: TransformerLensReplacementModel, token: str | int) -> int:
    """The id of a token, given as its text or its id. Errors as `tokens`."""
    d_vocab = model.unembed_proj.shape[1]
    if isinstance(token, str):
        ids = _tokenizer(model).encode(token, add_special_tokens=False)
        if len(ids) != 1:
            parts = [_text(model, part) for part in ids[:_SHOWN]]
            shown = f"{len(ids)} tokens: {parts}{' and more' if len(ids) > _SHOWN else ''}" if ids else "no token"
            raise GraphError(
                f"A target must be one token, with its blank if it has one. Got {token!r}, which is {shown}."
            )
        token = int(ids[0])
    if not 0 <= token < d_vocab:
        raise GraphError(f"A target's token id must be from 0 to {d_vocab - 1}. Got {token}.")
    return token


@dataclass(frozen=True, eq=False)
class Explained:
    """Targets of one prompt.

    Attributes:
        records: label and index of each.
        probabilities: of tokens; of other targets, their weights.
        vectors: what each reads of the final norm's output.
        own: the unembedding bias's part of each.
    """

    records: tuple[Target, ...]
    probabilities: Float[Tensor, "n_targets"]
    vectors: Float[Tensor, "n_targets d_model"]
    own: Float[Tensor, "n_targets"]


def explained(
    model: TransformerLensReplacementModel,
    logits: Float[Tensor, "d_vocab"],
    targets: GraphTargets | Sequence[str] | Sequence[TargetSpec] | Tensor | None,
    max_n_logits: int,
    desired_logit_prob: float,
) -> Explained:
    """The targets of a prompt whose last position has these logits, as circuit-tracer's `attribute` makes them.

    Raises:
        GraphError: a text that is not one token, an id out of range, no target, or a number out of range.
    """
    if not isinstance(targets, GraphTargets):
        named = (
            isinstance(targets, Sequence) and not isinstance(targets, str) and all(isinstance(t, str) for t in targets)
        )
        if isinstance(targets, Tensor) or named:
            targets = tokens(model, targets.tolist() if isinstance(targets, Tensor) else list(targets))  # type: ignore[arg-type]
        else:
            targets = GraphTargets(targets)
    if not 1 <= max_n_logits <= len(logits) or not 0 < desired_logit_prob <= 1:
        raise GraphError(
            f"The number of target logits must be from 1 to {len(logits)}, their probability over 0 and at most 1. "
            f"Got {max_n_logits} and {desired_logit_prob}."
        )
    found = AttributionTargets(
        targets.upstream,
        logits,
        model.unembed_proj,
        model.tokenizer,
        max_n_logits=max_n_logits,
        desired_logit_prob=desired_logit_prob,
    )
    records = tuple(
        Target(str(label), int(index), "token" if index < len(logits) else "direction")
        for label, index in found.logit_targets
    )
    bias = _unembedding_bias(model)
    own = targets.own
    if own is None:
        own = bias.new_zeros(len(records))
        ids = torch.tensor([record.vocab_idx for record in records], device=bias.device)
        if (ids < len(bias)).all():
            own = bias[ids] - bias.mean()
    return Explained(
        records, found.logit_probabilities.float().cpu(), found.logit_vectors.detach().to(model.unembed_proj), own
    )


def _unembedding_bias(model: TransformerLensReplacementModel) -> Float[Tensor, "d_vocab"]:
    unembed: Any = model.unembed
    return unembed.b_U.detach()


def _text(model: TransformerLensReplacementModel, token: int) -> str:
    return str(_tokenizer(model).decode([token]))


def _tokenizer(model: TransformerLensReplacementModel) -> Any:
    return model.tokenizer
