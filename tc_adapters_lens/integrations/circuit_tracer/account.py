"""What a graph has no nodes for: how much of every feature and logit the biases make, and what was left out.

Given the frozen coefficients, biases are sources like any other, so their share in every node is found by running them
forward alone. Then for every node

    sum of its incoming edges + sum of its terms = its pre-activation (or demeaned logit)

of which the left side comes from gradients and from this, the right side from the model itself.

kinds of terms
    attention   b_V and b_O
    norm        a LayerNorm's b
    mlp         the base MLP's biases
    adapter     b_dec of the adapters below
    own         the feature's b_enc; for a logit the unembedding's bias, demeaned
    zeroed      features and error of position 0, where they are left out of the graph
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from circuit_tracer.attribution.context_transformerlens import AttributionContext
from jaxtyping import Float
from torch import Tensor

from tc_adapters_lens.integrations.circuit_tracer.frozen import BIASES, FrozenModel
from tc_adapters_lens.integrations.circuit_tracer.transcoders import AdapterTranscoders

__all__ = ["KINDS", "Account"]

_CARRIED = (*BIASES, "adapter", "zeroed")
KINDS = (*BIASES, "adapter", "own", "zeroed")


@dataclass(frozen=True)
class Account:
    """See the module; features in the order of the context they were found in.

    preactivations: `W_enc x + b_enc` in the forward pass.
    feature_terms: kind -> `[n_active]`.
    final: kind -> what it comes to behind the final norm at the last position, `[d_model]`.
    output: what the forward pass has there, `[d_model]`.
    """

    preactivations: Float[Tensor, " n_active"]
    feature_terms: dict[str, Float[Tensor, " n_active"]]
    final: dict[str, Float[Tensor, " d_model"]]
    output: Float[Tensor, " d_model"]

    @classmethod
    def of(
        cls,
        context: AttributionContext,
        frozen: FrozenModel,
        transcoders: AdapterTranscoders,
        inputs: list[Float[Tensor, "pos d_model"]],
        left_out: list[Float[Tensor, "pos d_model"]],
        output: Float[Tensor, " d_model"],
    ) -> Account:
        """
        Args:
            inputs: each MLP's input.
            left_out: what each layer wrote that the graph leaves out.
            output: what the final norm gives at the last position.
        """
        layers, positions, features = context.activation_matrix.indices()
        biases = {kind: _only(kind, inputs[0]) for kind in BIASES}
        adapter, zeroed = (_only(kind, inputs[0]).view(-1, 1, 1) for kind in ("adapter", "zeroed"))
        written = [t.b_dec * adapter + out * zeroed for t, out in zip(transcoders, left_out, strict=True)]
        carried = frozen.forward(inputs[0].new_zeros(len(_CARRIED), *inputs[0].shape), written, biases)
        terms = torch.empty(len(_CARRIED), len(layers), dtype=inputs[0].dtype, device=inputs[0].device)
        own, preactivations = torch.empty_like(terms[0]), torch.empty_like(terms[0])
        for layer, (transcoder, x) in enumerate(zip(transcoders, inputs, strict=True)):
            here = layers == layer
            encoders, at = context.encoder_vecs[here], positions[here]
            terms[:, here] = (next(carried)[:, at] * encoders).sum(-1)
            own[here] = transcoder.b_enc[features[here]]
            preactivations[here] = (x[at] * encoders).sum(-1) + own[here]
        final = next(carried)[:, -1]
        return cls(
            preactivations,
            {"own": own, **dict(zip(_CARRIED, terms, strict=True))},
            dict(zip(_CARRIED, final, strict=True)),
            output,
        )

    def target_terms(
        self, vectors: Float[Tensor, "n d_model"], own: Float[Tensor, " n"]
    ) -> dict[str, Float[Tensor, " n"]]:
        """The same for directions behind the final norm.

        Args:
            own: what the unembedding's bias adds to each.
        """
        return {"own": own, **{kind: vectors @ vector for kind, vector in self.final.items()}}

    def target_values(self, vectors: Float[Tensor, "n d_model"], own: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """What the directions come to: for demeaned unembedding vectors, demeaned logits before any soft cap."""
        return vectors @ self.output + own


def _only(kind: str, like: Tensor) -> Float[Tensor, " n_carried"]:
    """1 for the set of sources of that kind, 0 for the others."""
    return torch.tensor([float(kind == other) for other in _CARRIED], dtype=like.dtype, device=like.device)
