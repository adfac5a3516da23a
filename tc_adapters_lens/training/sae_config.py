"""What the two SAELens training classes of this package share: settings of an adapter under L1."""

from __future__ import annotations

from abc import ABC
from dataclasses import dataclass

from sae_lens.saes.sae import TrainCoefficientConfig, TrainingSAEConfig
from sae_lens.saes.transcoder import TranscoderConfig
from typing_extensions import override


@dataclass(kw_only=True)
class AdapterSAEConfig(TrainingSAEConfig, ABC):
    """A TrainingSAE that is saved as a stock transcoder.

    Attributes:
        l1_coefficient: weight of the decoder-norm-weighted L1.
        l1_warm_up_steps: steps over which that weight rises linearly from 0.
    """

    l1_coefficient: float = 1e-3
    l1_warm_up_steps: int = 0
    apply_b_dec_to_input: bool = False
    decoder_init_norm: float | None = None

    @override
    def get_inference_config_class(self) -> type[TranscoderConfig]:
        return TranscoderConfig

    def coefficients(self) -> dict[str, float | TrainCoefficientConfig]:
        """For SAELens' `get_coefficients`."""
        return {"l1": TrainCoefficientConfig(self.l1_coefficient, self.l1_warm_up_steps)}
