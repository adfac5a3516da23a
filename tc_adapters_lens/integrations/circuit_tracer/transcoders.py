"""A pair's adapters as circuit-tracer's transcoders, whose skip path is the base's MLP."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import cast

import torch
from circuit_tracer.transcoder.single_layer_transcoder import SingleLayerTranscoder, TranscoderSet
from jaxtyping import Float
from sae_lens import Transcoder
from torch import Tensor, nn
from transformer_lens.components.mlps.can_be_used_as_mlp import CanBeUsedAsMLP

from tc_adapters_lens.core.relp import LinearMlp, MlpWeights, Rule
from tc_adapters_lens.models.adapter_set import AdapterSet
from tc_adapters_lens.models.diff_transformer import HookedDiffTransformer

__all__ = ["FEATURE_INPUT", "FEATURE_OUTPUT", "AdapterTranscoder", "AdapterTranscoders", "mlp_weights"]

FEATURE_INPUT, FEATURE_OUTPUT = "mlp.hook_in", "mlp.hook_out"


class AdapterTranscoder(SingleLayerTranscoder):
    """One layer's adapter beside the base's MLP. Parameters share memory with the adapter's."""

    def __init__(self, adapter: Transcoder, layer: int, base: MlpWeights, rule: Rule) -> None:
        nothing = torch.device("meta")
        super().__init__(
            adapter.cfg.d_in, adapter.cfg.d_sae, nn.functional.relu, layer, device=nothing, dtype=adapter.W_enc.dtype
        )
        self.W_enc = _shared(adapter.W_enc.T)
        self.W_dec, self.b_enc, self.b_dec = _shared(adapter.W_dec), _shared(adapter.b_enc), _shared(adapter.b_dec)
        self.W_skip = _shared(adapter.b_dec[:0])  # upstream asks only whether there is one
        self.base = base
        self.rule: Rule = rule
        self.held: LinearMlp | None = None

    def compute_skip(self, input_acts: Float[Tensor, "*pos d_model"]) -> Float[Tensor, "*pos d_model"]:
        """The base's MLP, whose gradients are those of its linear map."""
        linear = self.base.linear_at(input_acts, self.rule) if self.held is None else self.held
        return linear.linear(input_acts) + linear.bias()

    def written(self, input_acts: Float[Tensor, "*pos d_model"]) -> Float[Tensor, "*pos d_model"]:
        """What the adapter adds to the base's MLP."""
        return self.encode(input_acts) @ self.W_dec + self.b_dec


class AdapterTranscoders(TranscoderSet):
    """All layers' adapters."""

    def __init__(self, model: HookedDiffTransformer, adapters: AdapterSet, rule: Rule, scan: str | None) -> None:
        super().__init__(
            {
                layer: AdapterTranscoder(adapter, layer, mlp_weights(model.mlps[layer].base), rule)
                for layer, adapter in adapters.items()
            },
            FEATURE_INPUT,
            FEATURE_OUTPUT,
            scan=scan,
        )

    def linear_at(self, inputs: Sequence[Float[Tensor, "*pos d_model"]]) -> list[LinearMlp]:
        """Every layer's base MLP, as it is at its input."""
        adapters = [cast(AdapterTranscoder, transcoder) for transcoder in self]
        return [adapter.base.linear_at(x, adapter.rule) for adapter, x in zip(adapters, inputs, strict=True)]

    @contextmanager
    def hold(self, layer: int, linear: LinearMlp) -> Iterator[None]:
        """One layer's skip path is this map inside the block, whatever its input."""
        transcoder = cast(AdapterTranscoder, self[layer])
        before, transcoder.held = transcoder.held, linear
        try:
            yield
        finally:
            transcoder.held = before


def mlp_weights(mlp: CanBeUsedAsMLP) -> MlpWeights:
    """A TransformerLens MLP's weights, shared."""
    W_gate, b_in, b_out = getattr(mlp, "W_gate", None), cast(Tensor, mlp.b_in), cast(Tensor, mlp.b_out)
    return MlpWeights(
        None if W_gate is None else W_gate.detach(),
        cast(Tensor, mlp.W_in).detach(),
        b_in.detach(),
        cast(Tensor, mlp.W_out).detach(),
        b_out.detach(),
        cast(Callable[[Tensor], Tensor], mlp.act_fn),
    )


def _shared(tensor: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor.detach(), requires_grad=False)
