"""All layers' adapters as one SAELens TrainingSAE: what the optimizer, the checkpoints and wandb see.

Parameters are stacked over layers. After training, `AdapterSet.from_state` turns them into one stock SAELens
transcoder per layer. Source of the initialisation and the loss: Hu et al. 2026 (arXiv 2602.20904).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from sae_lens import register_sae_training_class
from sae_lens.saes.sae import TrainCoefficientConfig, TrainingSAE, TrainStepInput
from torch import Tensor, nn
from typing_extensions import override

from tc_adapters_lens.models.adapter_set import AdapterSet
from tc_adapters_lens.training.sae_config import AdapterSAEConfig

ARCHITECTURE = "joint_transcoder_adapters"


@dataclass(kw_only=True)
class JointTranscoderConfig(AdapterSAEConfig):
    """Shape and sparsity weight of all layers' adapters.

    Attributes:
        d_in: width of the residual stream, which is also the adapters' output width.
        d_sae: features per layer.
        n_layers: layers of the pair.
    """

    n_layers: int = 1

    @override
    @classmethod
    def architecture(cls) -> str:
        return ARCHITECTURE


class LayerWeights(NamedTuple):
    """One layer's adapter in the precision of the model: the arguments of `core.adapter.adapter` after x."""

    W_enc: Float[Tensor, "d_model n_features"]
    b_enc: Float[Tensor, " n_features"]
    W_dec: Float[Tensor, "n_features d_model"]
    b_dec: Float[Tensor, " d_model"]


class JointTranscoder(TrainingSAE[JointTranscoderConfig]):
    """All layers' adapters, parameters in float32 whatever the model's precision.

    W_enc `[n_layers d_model n_features]`, b_enc `[n_layers n_features]`, W_dec `[n_layers n_features d_model]`,
    b_dec `[n_layers d_model]`.
    """

    b_enc: nn.Parameter

    @override
    def initialize_weights(self) -> None:
        """Zeros; the starting weights are an adapter set's, fresh or trained before (`load_adapters`)."""
        cfg, place = self.cfg, {"dtype": self.dtype, "device": self.device}
        self.W_enc = nn.Parameter(torch.zeros(cfg.n_layers, cfg.d_in, cfg.d_sae, **place))
        self.b_enc = nn.Parameter(torch.zeros(cfg.n_layers, cfg.d_sae, **place))
        self.W_dec = nn.Parameter(torch.zeros(cfg.n_layers, cfg.d_sae, cfg.d_in, **place))
        self.b_dec = nn.Parameter(torch.zeros(cfg.n_layers, cfg.d_in, **place))

    def load_adapters(self, adapters: AdapterSet) -> None:
        """Start from these adapters, copied into float32."""
        self.load_state_dict(adapters.state())

    def layer_weights(self, dtype: torch.dtype) -> list[LayerWeights]:
        """Every layer's adapter in the model's precision.

        Backward passes add to the stacked parameters' `.grad` (made here where there is none), layer by layer and in
        place: the gradients of single layers are never stacked.
        """
        layers = []
        for layer in range(self.cfg.n_layers):
            layers.append(LayerWeights(*(layer_view(p, layer).to(dtype) for p in self._stacked())))
        return layers

    def _stacked(self) -> tuple[nn.Parameter, ...]:
        return self.W_enc, self.b_enc, self.W_dec, self.b_dec

    @override
    def get_coefficients(self) -> dict[str, float | TrainCoefficientConfig]:
        return self.cfg.coefficients()

    @override
    def encode_with_hidden_pre(self, x: Float[Tensor, "batch n_layers d_model"]) -> tuple[Tensor, Tensor]:
        """All layers at once, from every layer's MLP input."""
        hidden_pre = torch.einsum("bld,ldf->blf", x, self.W_enc) + self.b_enc
        return torch.relu(hidden_pre), hidden_pre

    @override
    def decode(self, feature_acts: Float[Tensor, "batch n_layers n_features"]) -> Tensor:
        return torch.einsum("blf,lfd->bld", feature_acts, self.W_dec) + self.b_dec

    @override
    def calculate_aux_loss(
        self, step_input: TrainStepInput, feature_acts: Tensor, hidden_pre: Tensor, sae_out: Tensor
    ) -> dict[str, Tensor]:
        norms = self.W_dec.norm(dim=-1)
        return {"l1_loss": step_input.coefficients["l1"] * (feature_acts * norms).sum((-1, -2)).mean()}

    @override
    @torch.no_grad()
    def log_histograms(self) -> dict[str, np.ndarray[Any, Any]]:
        return {"weights/W_dec_norms": self.W_dec.norm(dim=-1).flatten().cpu().numpy()}


def layer_view(param: nn.Parameter, layer: int) -> Tensor:
    """A leaf that shares one layer's weights and gradient with a stacked parameter."""
    if param.grad is None:
        param.grad = torch.zeros_like(param)
    view = param.detach()[layer].requires_grad_()
    view.grad = param.grad[layer]
    return view


register_sae_training_class(ARCHITECTURE, JointTranscoder, JointTranscoderConfig)
