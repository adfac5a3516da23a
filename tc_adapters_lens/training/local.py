"""One layer's adapter trained by SAELens' own, unchanged `LanguageModelSAETrainingRunner`, through `hook_io`.

The hook gives `[x ; delta]`; the training SAE here reads x, predicts delta, and is scored on the squared error to
delta plus the decoder-norm-weighted L1. It saves as a stock transcoder, which loads with `SAE.load_from_disk` and
can warm-start the joint run.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from sae_lens import register_sae_training_class
from sae_lens.saes.sae import (
    TrainCoefficientConfig,
    TrainingSAE,
    TrainStepInput,
    TrainStepOutput,
)
from sae_lens.saes.transcoder import TranscoderConfig
from torch import Tensor, nn
from typing_extensions import override

from tc_adapters_lens.models.names import hook_delta, hook_in
from tc_adapters_lens.training.sae_config import AdapterSAEConfig

ARCHITECTURE = "local_transcoder_adapter"


@dataclass(kw_only=True)
class LocalTranscoderConfig(AdapterSAEConfig):
    """One layer's adapter.

    Attributes:
        d_in: width of `hook_io`, twice the residual stream's.
        d_sae: features.
        layer: the layer it belongs to.
    """

    layer: int = 0

    @override
    @classmethod
    def architecture(cls) -> str:
        return ARCHITECTURE

    @property
    def d_model(self) -> int:
        return self.d_in // 2

    @override
    def get_inference_sae_cfg_dict(self) -> dict[str, Any]:
        """The stock transcoder this trains: from `mlp.hook_in` to `mlp.hook_delta`."""
        metadata = self._metadata_with_training_info()
        metadata |= {"hook_name": hook_in(self.layer), "hook_name_out": hook_delta(self.layer)}
        metadata.pop("model_from_pretrained_kwargs", None)
        return {
            "architecture": TranscoderConfig.architecture(),
            "d_in": self.d_model,
            "d_out": self.d_model,
            "d_sae": self.d_sae,
            "dtype": self.dtype,
            "device": self.device,
            "apply_b_dec_to_input": False,
            "normalize_activations": self.normalize_activations,
            "reshape_activations": "none",
            "metadata": metadata,
        }


class LocalTranscoder(TrainingSAE[LocalTranscoderConfig]):
    """W_enc `[d_model n_features]`, b_enc `[n_features]`, W_dec `[n_features d_model]`, b_dec `[d_model]`."""

    b_enc: nn.Parameter

    @override
    def initialize_weights(self) -> None:
        """The paper's start: encoder uniform in +-1/sqrt(d_model), all else zero."""
        cfg, place = self.cfg, {"dtype": self.dtype, "device": self.device}
        bound = cfg.d_model**-0.5
        self.W_enc = nn.Parameter(torch.empty(cfg.d_model, cfg.d_sae, **place).uniform_(-bound, bound))
        self.b_enc = nn.Parameter(torch.zeros(cfg.d_sae, **place))
        self.W_dec = nn.Parameter(torch.zeros(cfg.d_sae, cfg.d_model, **place))
        self.b_dec = nn.Parameter(torch.zeros(cfg.d_model, **place))

    @override
    def get_coefficients(self) -> dict[str, float | TrainCoefficientConfig]:
        return self.cfg.coefficients()

    @override
    def encode_with_hidden_pre(self, x: Float[Tensor, "*batch d_io"]) -> tuple[Tensor, Tensor]:
        """Features of `[x ; delta]`; only x is read."""
        hidden_pre = x[..., : self.cfg.d_model].to(self.dtype) @ self.W_enc + self.b_enc
        acts = torch.relu(self.hook_sae_acts_pre(hidden_pre))
        return self.hook_sae_acts_post(acts), hidden_pre

    @override
    def calculate_aux_loss(
        self, step_input: TrainStepInput, feature_acts: Tensor, hidden_pre: Tensor, sae_out: Tensor
    ) -> dict[str, Tensor]:
        norms = self.W_dec.norm(dim=-1)
        return {"l1_loss": step_input.coefficients["l1"] * (feature_acts @ norms).mean()}

    @override
    def training_forward_pass(self, step_input: TrainStepInput) -> TrainStepOutput:
        """Squared error to delta, summed over the width, plus L1; means over the batch."""
        acts, hidden_pre = self.encode_with_hidden_pre(step_input.sae_in)
        predicted, delta = self.decode(acts), step_input.sae_in[..., self.cfg.d_model :].to(self.dtype)
        losses = {"mse_loss": (predicted - delta).square().sum(-1).mean()}
        losses |= self.calculate_aux_loss(step_input, acts, hidden_pre, predicted)
        return TrainStepOutput(
            sae_in=delta,
            sae_out=predicted,
            feature_acts=acts,
            hidden_pre=hidden_pre,
            loss=torch.stack(list(losses.values())).sum(),
            losses=losses,
        )


register_sae_training_class(ARCHITECTURE, LocalTranscoder, LocalTranscoderConfig)
