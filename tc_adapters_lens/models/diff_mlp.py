"""One layer's two MLPs as one TransformerLens component, with their difference as a hook point.

    x      = hook_in(input)
    delta  = MLP_target(x) - MLP_base(x)
    output = MLP_base(x) + hook_delta(delta)

The component itself is the target's MLP (its `W_in`, `hook_post` and so on are the target's, under
TransformerLens' ordinary names); the base's MLP is its submodule `base`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Float
from torch import nn
from transformer_lens.components.mlps.can_be_used_as_mlp import CanBeUsedAsMLP
from transformer_lens.components.mlps.gated_mlp import GatedMLP
from transformer_lens.components.mlps.mlp import MLP
from transformer_lens.config.HookedTransformerConfig import HookedTransformerConfig
from transformer_lens.hook_points import HookPoint

Mode = Literal["target", "base"]
"""What a layer's delta is: `target`: MLP_target(x) - MLP_base(x); `base`: zeros, the target MLP not run."""


class DiffMLP(CanBeUsedAsMLP):
    """Mixin over a TransformerLens MLP: adds the base's MLP and the three hook points.

    Attributes:
        substitute: in mode `base`, what delta is in place of zeros: a function of x. Training puts its adapters here.
    """

    base: CanBeUsedAsMLP
    mode: Mode
    substitute: Callable[[torch.Tensor], torch.Tensor] | None

    def __init__(self, cfg: HookedTransformerConfig) -> None:
        super().__init__(cfg)
        self.base = GatedMLP(cfg) if cfg.gated_mlp else MLP(cfg)
        self.mode = "target"
        self.substitute = None
        self.hook_in = HookPoint()
        self.hook_delta: nn.Module = HookPoint()
        self.hook_io = HookPoint()

    def forward(self, x: Float[torch.Tensor, "batch pos d_model"]) -> Float[torch.Tensor, "batch pos d_model"]:
        x = self.hook_in(x)
        if self.mode == "target" and not self._delta_is_read():
            return super().forward(x)
        base_out = self.base(x)
        if self.mode == "target":
            delta = super().forward(x) - base_out
        else:
            delta = torch.zeros_like(base_out) if self.substitute is None else self.substitute(x)
        if self.hook_io.has_hooks():
            self.hook_io(torch.cat([x, delta], dim=-1))
        return base_out + self.hook_delta(delta).to(base_out.dtype)

    def _delta_is_read(self) -> bool:
        """Whether anything looks at the difference. If not, the layer is the target's MLP alone, bit for bit."""
        if not isinstance(self.hook_delta, HookPoint):
            return True
        readers = [self.hook_delta, self.hook_io, *self.base.children()]
        return any(isinstance(point, HookPoint) and point.has_hooks() for point in readers)


class DiffGatedMLP(DiffMLP, GatedMLP):
    """A pair's two gated MLPs (Qwen, Llama, Mistral, Gemma)."""


class DiffPlainMLP(DiffMLP, MLP):
    """A pair's two ungated MLPs (GPT-NeoX)."""


def diff_mlp(cfg: HookedTransformerConfig) -> DiffMLP:
    """The diff MLP of a configuration, weights not yet loaded."""
    return DiffGatedMLP(cfg) if cfg.gated_mlp else DiffPlainMLP(cfg)
