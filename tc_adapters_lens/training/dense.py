"""Dense weights of all layers as one SAELens TrainingSAE, trained where adapters otherwise are.

They are what the optimizer, the checkpoints and wandb see; `DenseWeights` is what comes of them. They have no
features: whatever is counted per feature is counted over none. Which weights there are, `models/dense_weights.py` says.
The final norm is not among them: `chunked_kl` gives the unembedding's parameters no gradient.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn, cast

import numpy as np
import torch
from jaxtyping import Float
from sae_lens import register_sae_training_class
from sae_lens.saes.sae import TrainCoefficientConfig, TrainingSAE, TrainingSAEConfig
from torch import Tensor, nn
from typing_extensions import override

from tc_adapters_lens.models.adapter_set import AdapterSetInfo
from tc_adapters_lens.models.dense_weights import DenseWeights, Kind, dense_names
from tc_adapters_lens.models.diff_transformer import HookedDiffTransformer
from tc_adapters_lens.training.joint import layer_view
from tc_adapters_lens.training.step import DenseLayer

ARCHITECTURE = "joint_dense_weights"


@dataclass(kw_only=True)
class JointDenseConfig(TrainingSAEConfig):
    """Which weights of every layer are trained.

    Attributes:
        d_in: width of the residual stream.
        d_sae: 0, there are no features.
        kind: mlps or norms.
        n_layers: layers of the pair.
        shapes: name within a block -> shape as it is stored here.
    """

    d_sae: int = 0
    kind: Kind = "mlps"
    n_layers: int = 1
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)

    @override
    @classmethod
    def architecture(cls) -> str:
        return ARCHITECTURE

    @override
    def get_inference_config_class(self) -> type[JointDenseConfig]:
        return JointDenseConfig  # SAELens has no architecture for them at inference


def _no_features(*_: object) -> NoReturn:
    raise TypeError("dense weights have no features to encode, decode or penalise")


class JointDense(TrainingSAE[JointDenseConfig]):
    """Dense weights of all layers, in float32 whatever the model's precision.

    Every name within a block is one parameter `[n_layers ...]`. Matrices are stored `[out in]`, transposed as in
    Hugging Face's linear layers: TransformerLens' products then take them as they are, without a copy.
    """

    encode_with_hidden_pre = decode = calculate_aux_loss = cast(Any, _no_features)

    @classmethod
    def of(cls, model: HookedDiffTransformer, kind: Kind) -> JointDense:
        """Weights that start as the hybrid's own: the base's MLPs, or the target's norms."""
        names = dense_names(model, kind)
        layers = [{name: block.get_parameter(name).detach() for name in names} for block in model.blocks]
        joint = cls(
            JointDenseConfig(
                d_in=model.cfg.d_model,
                kind=kind,
                n_layers=model.cfg.n_layers,
                shapes={name: tuple(_transposed(tensor).shape) for name, tensor in layers[0].items()},
                device=str(model.cfg.device),
            )
        )
        with torch.no_grad():
            for name, param in joint._stacked().items():
                for own, layer in zip(param, layers, strict=True):
                    own.copy_(_transposed(layer[name]))
        return joint

    @override
    def initialize_weights(self) -> None:
        """Zeros, until `of` copies the hybrid's weights or a checkpoint is loaded."""
        for name, shape in self.cfg.shapes.items():
            stacked = torch.zeros(self.cfg.n_layers, *shape, dtype=self.dtype, device=self.device)
            self.register_parameter(_key(name), nn.Parameter(stacked))

    def layer_weights(self, dtype: torch.dtype) -> list[DenseLayer]:
        """Every layer's weights in the model's precision, with gradients as `JointTranscoder.layer_weights`."""
        return [
            {name: _transposed(layer_view(param, layer).to(dtype)) for name, param in self._stacked().items()}
            for layer in range(self.cfg.n_layers)
        ]

    def weights(self, info: AdapterSetInfo) -> DenseWeights:
        """Copies of the weights on the CPU, in float32, as they are saved and applied."""
        tensors = {
            f"blocks.{layer}.{name}": _transposed(param.detach()[layer])
            .to("cpu")
            .clone(memory_format=torch.contiguous_format)
            for layer in range(self.cfg.n_layers)
            for name, param in self._stacked().items()
        }
        return DenseWeights(self.cfg.kind, tensors, info)

    def _stacked(self) -> Mapping[str, nn.Parameter]:
        """Name within a block -> parameter."""
        return {name: self.get_parameter(_key(name)) for name in self.cfg.shapes}

    @override
    def get_coefficients(self) -> dict[str, float | TrainCoefficientConfig]:
        return {}

    @override
    def log_histograms(self) -> dict[str, np.ndarray[Any, Any]]:
        return {}


def _key(name: str) -> str:
    """A name that a module takes for a parameter."""
    return name.replace(".", "/")


def _transposed(tensor: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Matrices the other way round, without a copy; vectors as they are."""
    return tensor.mT if tensor.ndim == 2 else tensor


register_sae_training_class(ARCHITECTURE, JointDense, JointDenseConfig)
