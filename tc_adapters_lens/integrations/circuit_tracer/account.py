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
        kinds = _present(frozen, transcoders, left_out)

        def only(kind: str) -> Tensor:
            """1 for the set of sources of that kind, 0 for the others."""
            return inputs[0].new_tensor([float(kind == other) for other in kinds])

        adapter, zeroed = only("adapter").view(-1, 1, 1), only("zeroed").view(-1, 1, 1)
        written = [t.b_dec * adapter + out * zeroed for t, out in zip(transcoders, left_out, strict=True)]
        nothing = inputs[0].new_zeros(len(kinds), *inputs[0].shape)
        carried = frozen.forward(nothing, written, {kind: only(kind) for kind in BIASES})
        terms = {kind: inputs[0].new_zeros(len(layers)) for kind in KINDS}
        preactivations = inputs[0].new_zeros(len(layers))
        for layer, (transcoder, x) in enumerate(zip(transcoders, inputs, strict=True)):
            here = layers == layer
            encoders, at = context.encoder_vecs[here], positions[here]
            for kind, contribution in zip(kinds, next(carried), strict=True):
                terms[kind][here] = (contribution[at] * encoders).sum(-1)
            terms["own"][here] = transcoder.b_enc[features[here]]
            preactivations[here] = (x[at] * encoders).sum(-1) + terms["own"][here]
        final = dict.fromkeys(_CARRIED, torch.zeros_like(output))
        final |= dict(zip(kinds, next(carried)[:, -1], strict=True))
        return cls(preactivations, terms, final, output)

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


def _present(frozen: FrozenModel, transcoders: AdapterTranscoders, left_out: list[Tensor]) -> list[str]:
    """Kinds of terms that are not zero throughout: most families have few biases."""
    of_kind: dict[str, list[Tensor | None]] = {kind: [] for kind in _CARRIED}
    of_kind["norm"].append(frozen.ln_final.b)
    for layer in frozen.layers:
        of_kind["attention"] += [layer.attention.b_V, layer.attention.b_O]
        of_kind["norm"] += [norm and norm.b for norm in (layer.ln1, layer.ln1_post, layer.ln2, layer.ln2_post)]
        of_kind["mlp"] += [layer.mlp.weights.b_in, layer.mlp.weights.b_out]
    of_kind["adapter"] += [transcoder.b_dec for transcoder in transcoders]
    of_kind["zeroed"] += left_out
    return [kind for kind, found in of_kind.items() if any(one is not None and one.any() for one in found)]
