"""Replacement models the slow way: plain Hugging Face models in float64, MLP modules swapped by hand.

Nothing of the package is used, so that agreement with it means something.
"""

from __future__ import annotations

import copy
from functools import partial

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from tests.tiny import tiny_pair


class ReplacedMLP(nn.Module):
    """base MLP(x) + W_dec relu(W_enc x + b_enc) + b_dec, on a Hugging Face MLP."""

    def __init__(self, base: nn.Module, params: list[Tensor]) -> None:
        super().__init__()
        self.base = base
        self.params = params

    def forward(self, x: Tensor) -> Tensor:
        W_enc, b_enc, W_dec, b_dec = self.params
        self.acts = (x @ W_enc + b_enc).clamp(min=0)
        return self.base(x) + self.acts @ W_dec + b_dec


def in_float64(model: PreTrainedModel) -> PreTrainedModel:
    """Hugging Face rounds norms, rotary angles and softmax to float32 whatever the weights are; here it may not."""
    model = model.double().requires_grad_(False)
    if not model.config.model_type.startswith("gemma"):  # whose soft cap SDPA cannot do
        model.set_attn_implementation("sdpa")
    for name, module in model.named_modules():
        if type(module).__name__.endswith("RMSNorm"):
            module.forward = partial(_rms_norm, module)
        if name.endswith("rotary_emb"):
            width = 2 * len(module.inv_freq)
            theta = model.config.rope_theta
            frequencies = theta ** -(torch.arange(0, width, 2, dtype=torch.float64) / width)
            angles = torch.outer(
                torch.arange(model.config.max_position_embeddings, dtype=torch.float64), frequencies
            ).repeat(1, 2)
            module.forward = partial(
                lambda x, position_ids, angles: (angles[position_ids].cos(), angles[position_ids].sin()),
                angles=angles,
            )
    return model


def _rms_norm(module: nn.Module, x: Tensor) -> Tensor:
    gain = module.weight + float("Gemma" in type(module).__name__)
    eps = getattr(module, "variance_epsilon", None) or module.eps
    return gain * x * (x.pow(2).mean(-1, keepdim=True) + eps).rsqrt()


class Naive:
    """Runs the target with any layers replaced, from tokens, and adds up the losses as METHOD states them."""

    def __init__(self, family: str, params: list[Tensor]) -> None:
        base, target = (in_float64(model) for model in tiny_pair(family))
        self.target, self.base, self.params = target, base, params
        self.neox = "neox" in family

    def run(self, tokens: Tensor, replaced: range) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """Logits, the residual stream after every layer, and the features of the replaced layers."""
        model = copy.deepcopy(self.target)
        layers = model.gpt_neox.layers if self.neox else model.model.layers
        base_layers = self.base.gpt_neox.layers if self.neox else self.base.model.layers
        residuals: list[Tensor] = []
        for layer in replaced:
            layers[layer].mlp = ReplacedMLP(base_layers[layer].mlp, [p[layer] for p in self.params])
        for block in layers:
            block.register_forward_hook(lambda _m, _i, out: residuals.append(out[0] if isinstance(out, tuple) else out))
        logits = model(tokens, use_cache=False).logits
        return logits, residuals, [layers[layer].mlp.acts for layer in replaced]


class NaiveDense(Naive):
    """The same with layers of the hybrid in which all MLP or norm weights are leaves, a little off the hybrid's.

    Attributes:
        leaves: of every layer, under their names in a Hugging Face layer.
    """

    def __init__(self, family: str, kind: str) -> None:
        super().__init__(family, [])
        self.gemma = "gemma" in family
        self.layers = "gpt_neox.layers" if self.neox else "model.layers"
        generator = torch.Generator().manual_seed(2)

        def leaf(tensor: Tensor) -> Tensor:
            noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
            return (tensor + 0.05 * noise).requires_grad_()

        model, part = (self.base, "mlp.") if kind == "mlps" else (self.target, "norm")
        self.leaves = [
            {name: leaf(param) for name, param in layer.named_parameters() if part in name}
            for layer in model.get_submodule(self.layers)
        ]

    def run(self, tokens: Tensor, replaced: range) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        model = copy.deepcopy(self.target)
        residuals: list[Tensor] = []
        for block in model.get_submodule(self.layers):
            block.register_forward_hook(lambda _m, _i, out: residuals.append(out[0] if isinstance(out, tuple) else out))
        base_layers = self.base.get_submodule(self.layers)
        weights = {
            f"{self.layers}.{layer}.{name}": tensor
            for layer in replaced
            for name, tensor in {
                **{f"mlp.{name}": param for name, param in base_layers[layer].mlp.named_parameters()},
                **self.leaves[layer],
            }.items()
        }
        logits = torch.func.functional_call(model, weights, (tokens,), {"use_cache": False}).logits
        return logits, residuals, []
