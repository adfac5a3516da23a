"""A pair as ONE HookedTransformer: the target's attention, norms and embeddings, and both models' MLPs.

At every layer the difference of the two MLPs is a hook point, `blocks.L.mlp.hook_delta`:

- nothing attached: the target, bit for bit;
- `with model.mode("base")`: the hybrid, the target's MLPs not computed;
- a stock SAELens `Transcoder` from `mlp.hook_in` to `mlp.hook_delta`, attached by the stock `add_sae` or by
  `with model.adapters(adapter_set)`: the replacement model;
- the same with `use_error_term=True`: the target again, with the error as an activation.

Source: Hu et al. 2026, section 3.1 (arXiv 2602.20904).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from sae_lens import HookedSAETransformer
from transformer_lens.config.HookedTransformerConfig import HookedTransformerConfig
from transformers import PreTrainedTokenizerBase

from tc_adapters_lens.errors import AdapterSetError
from tc_adapters_lens.models.diff_mlp import DiffMLP, Mode, diff_mlp
from tc_adapters_lens.models.fused_attention import fused_attention
from tc_adapters_lens.models.names import hook_in
from tc_adapters_lens.models.pair_info import PairInfo

if TYPE_CHECKING:
    from tc_adapters_lens.models.adapter_set import AdapterSet


class HookedDiffTransformer(HookedSAETransformer):
    """A base / target pair with the difference of their MLPs as a hook point at every layer.

    Everything of `HookedSAETransformer` works unchanged. `load_pair` makes one.

    Args:
        cfg: TransformerLens configuration of both models.
        tokenizer: the target's tokenizer, or None.
        n_ctx: longest sequence the model was trained for, tokens; the position buffers grow on demand.
        pair: which two models this is.
    """

    def __init__(
        self,
        cfg: HookedTransformerConfig,
        tokenizer: PreTrainedTokenizerBase | None,
        n_ctx: int,
        pair: PairInfo,
    ) -> None:
        super().__init__(cfg, tokenizer, move_to_device=False)
        for layer, block in enumerate(self.blocks):
            block.attn = fused_attention(self.cfg, layer)
            block.mlp = diff_mlp(self.cfg)
        self.cfg.n_ctx = n_ctx
        self.pair = pair
        self.setup()

    @property
    def mlps(self) -> list[DiffMLP]:
        """Every layer's diff MLP, in order."""
        return [cast(DiffMLP, block.mlp) for block in self.blocks]

    @property
    def modes(self) -> list[Mode]:
        """Every layer's mode, in order."""
        return [mlp.mode for mlp in self.mlps]

    def set_modes(self, mode: Mode, layers: Iterable[int] | None = None) -> None:
        """Set the mode of the given layers (all by default) until it is set again.

        Raises:
            ValueError: the mode is neither `target` nor `base`.
        """
        if mode not in ("target", "base"):
            raise ValueError(f"mode must be 'target' or 'base'. Got {mode!r}.")
        mlps = self.mlps
        for layer in range(len(mlps)) if layers is None else layers:
            mlps[layer].mode = mode

    @contextmanager
    def mode(self, mode: Mode, layers: Iterable[int] | None = None) -> Iterator[HookedDiffTransformer]:
        """The given layers in a mode, every layer's former mode restored on leaving.

        Args:
            mode: `target` (delta is MLP_target(x) - MLP_base(x)) or `base` (delta is zeros and the target
                MLP is not computed).
            layers: layer indices; all by default.
        """
        before = self.modes
        try:
            self.set_modes(mode, layers)
            yield self
        finally:
            for mlp, old in zip(self.mlps, before, strict=True):
                mlp.mode = old

    def add_adapters(self, adapters: AdapterSet, use_error_term: bool = False) -> None:
        """Attach one adapter per layer with the stock `add_sae`.

        Without the error term the layers go into mode `base` (the replacement model never needs the target's
        MLPs); with it they go into mode `target`, and the model computes the target again.

        Args:
            adapters: one SAELens transcoder per layer of this model.
            use_error_term: add `delta - adapter(x)` back as `hook_delta.hook_sae_error`.
        Raises:
            AdapterSetError: the set has another number of layers or another width.
        """
        self.check_fits(adapters)
        for adapter in adapters.values():
            self.add_sae(adapter, use_error_term=use_error_term)
        self.set_modes("target" if use_error_term else "base")

    def remove_adapters(self) -> None:
        """Detach every adapter and put all layers back into mode `target`: the model is the target again."""
        attached = [hook_in(layer) for layer in range(self.cfg.n_layers)]
        self.reset_saes([name for name in attached if name in self.acts_to_saes])
        self.set_modes("target")

    @contextmanager
    def adapters(self, adapters: AdapterSet, use_error_term: bool = False) -> Iterator[HookedDiffTransformer]:
        """The replacement model inside the block; attached SAEs and modes as before on leaving.

        Args: as `add_adapters`.
        """
        self.check_fits(adapters)
        mode: Mode = "target" if use_error_term else "base"
        with self.saes(list(adapters.values()), use_error_term=use_error_term), self.mode(mode):
            yield self

    def check_fits(self, adapters: AdapterSet) -> None:
        """Raises AdapterSetError: the set has another number of layers or another width than the pair."""
        if (adapters.n_layers, adapters.d_model) != (self.cfg.n_layers, self.cfg.d_model):
            raise AdapterSetError(
                "Adapters and pair must have the same layers and width. "
                f"Got {adapters.n_layers} x {adapters.d_model} (adapters) and "
                f"{self.cfg.n_layers} x {self.cfg.d_model} (pair {self.pair.base_name} -> {self.pair.target_name})."
            )

    def embed_tokens(self, tokens: Int[torch.Tensor, "batch pos"]) -> Float[torch.Tensor, "batch pos d_model"]:
        """The residual stream before layer 0. Padding, if any, is on the right, where causal attention
        never sees it."""
        return self.hook_embed(self.embed(tokens))

    def run_layers(
        self,
        resid: Float[torch.Tensor, "batch pos d_model"],
        start: int = 0,
        stop: int | None = None,
    ) -> list[Float[torch.Tensor, "batch pos d_model"]]:
        """Run layers `start .. stop-1` in their present modes, with whatever is hooked or attached.

        Args:
            resid: the residual stream before layer `start`.
            start, stop: layer indices, 0 <= start <= stop <= n_layers (the default of `stop`).
        Returns:
            The residual stream after each layer run: `stop - start` tensors.
        """
        residuals = []
        for block in self.blocks[start:stop]:  # type: ignore[union-attr]
            resid = block(resid)
            residuals.append(resid)
        return residuals

    def last_resid(
        self, resid: Float[torch.Tensor, "batch pos d_model"], start: int = 0
    ) -> Float[torch.Tensor, "batch pos d_model"]:
        """The residual stream after the last layer, from that before layer `start`; no other is held on the way."""
        for block in self.blocks[start:]:  # type: ignore[union-attr]
            resid = block(resid)
        return resid

    def unembed_resid(self, resid: Float[torch.Tensor, "*pos d_model"]) -> Float[torch.Tensor, "*pos d_vocab"]:
        """Logits of a final residual stream: final norm, unembedding, soft cap where there is one."""
        return self.unembedding()(resid)

    def unembedding(self) -> Unembedding:
        """What makes logits of a final residual stream now, to be used whatever is put in its place later."""
        return Unembedding(self.ln_final, self.unembed, self.cfg.output_logits_soft_cap)


class Unembedding(NamedTuple):
    """Final norm, unembedding, soft cap (where above zero): a residual stream after the last layer to logits.

    Any number of leading dimensions.
    """

    norm: torch.nn.Module
    unembed: torch.nn.Module
    soft_cap: float

    def __call__(self, resid: Float[torch.Tensor, "*pos d_model"]) -> Float[torch.Tensor, "*pos d_vocab"]:
        logits = self.unembed(self.norm(resid))
        return self.soft_cap * F.tanh(logits / self.soft_cap) if self.soft_cap > 0.0 else logits
