"""sae-dashboard's own runner on the replacement model.

Three things are answered otherwise than a plain HookedTransformer would answer them:

- The model is run as everywhere in this package (`embed_tokens`, then blocks): a tokenizer's padding side has no say.
- `W_U` goes through the norms before it and has no mean over the vocabulary: the promoted tokens are those of
  `features.promoted`, not those of the bare unembedding.
- Decoder norms are not folded into the encoder: activations are the replacement model's.
"""

from __future__ import annotations

import copy
import tempfile
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from sae_dashboard.data_writing_fns import save_feature_centric_vis
from sae_dashboard.sae_vis_data import SaeVisConfig, SaeVisData
from sae_dashboard.sae_vis_runner import SaeVisRunner
from torch import Tensor

from tc_adapters_lens.errors import AdapterSetError
from tc_adapters_lens.features.promoted import through_norms
from tc_adapters_lens.models.adapter_set import AdapterSet
from tc_adapters_lens.models.diff_transformer import HookedDiffTransformer
from tc_adapters_lens.models.names import hook_in

__all__ = ["Drawn", "draw", "readout"]


class Drawn(NamedTuple):
    """What sae-dashboard made of some features.

    html: the page as it writes it, token texts replaced by ids.
    data: its numbers.
    """

    html: str
    data: SaeVisData


def draw(
    model: HookedDiffTransformer,
    adapters: AdapterSet,
    layer: int,
    features: Sequence[int],
    tokens: Int[Tensor, "batch pos"],
    W_U: Float[Tensor, "d_model n_known"],
    *,
    batch_size: int = 8,
    seed: int = 0,
) -> Drawn:
    """Some features of one layer on some tokens. The adapters are not changed.

    Args:
        model: the pair, with nothing attached.
        tokens: sequences of one length, without padding: sae-dashboard counts every position.
        W_U: as `readout` gives it.
        batch_size: sequences in one forward pass.
        seed: of sae-dashboard's draw of examples.
    Raises:
        AdapterSetError: an adapter that does not read the MLP's input, or a feature whose decoder is zero.
    """
    adapter = adapters[layer]
    hook = _checked_hook(model, adapter.cfg.metadata.hook_name, layer)
    for feature in features:
        if not adapter.W_dec[feature].any():
            raise AdapterSetError(f"A feature must write something. Got {layer}.{feature}, whose decoder is zero.")
    encoder: Any = copy.deepcopy(adapter)
    encoder.fold_W_dec_norm = lambda: None  # would multiply activations by the decoders' norms
    config = SaeVisConfig(
        hook_point=hook,
        features=list(features),
        minibatch_size_tokens=batch_size,
        quantile_feature_batch_size=1,  # torch.quantile takes 16 million values at most
        device=str(model.cfg.device),
        seed=seed,
    )
    shown: Any = _ShownModel(model, W_U)
    with model.adapters(adapters), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Using a non-tuple sequence", UserWarning)  # its eindex, under torch 2.9
        data = SaeVisRunner(config).run(encoder=encoder, model=shown, tokens=tokens)
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "page.html"
        save_feature_centric_vis(data, path)
        return Drawn(path.read_text(), data)


def readout(model: HookedDiffTransformer, layer: int, n_known: int) -> Float[Tensor, "d_model n_known"]:
    """What a direction that the layer's MLP writes does to the logits: `W_dec[i] @ readout` is what `promoted_tokens`
    ranks, demeaned over the vocabulary's known ids."""
    with torch.no_grad():
        identity = torch.eye(model.cfg.d_model, device=model.W_U.device)
        found = through_norms(model, layer, identity) @ model.W_U[:, :n_known].float()
        return found - found.mean(dim=1, keepdim=True)


def _checked_hook(model: HookedDiffTransformer, name: str | None, layer: int) -> str:
    """sae-dashboard encodes whatever hook it is told, so the adapter's is compared."""
    if name != hook_in(layer) or name not in model.hook_dict:
        raise AdapterSetError(f"The adapter of layer {layer} must read {hook_in(layer)} of the model. Got {name}.")
    return name


class _ShownModel:
    """What sae-dashboard asks of a model."""

    def __init__(self, model: HookedDiffTransformer, W_U: Float[Tensor, "d_model n_known"]) -> None:
        self._model = model
        self.W_U = W_U
        self.hook_dict = model.hook_dict
        self.tokenizer = _Ids(W_U.shape[1])

    def run_with_hooks(
        self, tokens: Int[Tensor, "batch pos"], *, stop_at_layer: int, fwd_hooks: list[tuple[str, Callable[..., Any]]]
    ) -> Float[Tensor, "batch pos d_model"]:
        """The residual stream before a layer; the hooks see what is before it."""
        hooks: list[Any] = list(fwd_hooks)
        with self._model.hooks(fwd_hooks=hooks):
            resid = self._model.embed_tokens(tokens.to(self._model.cfg.device))
            for block in self._model.blocks[:stop_at_layer]:  # type: ignore[index]
                resid = block(resid)
        return resid


class _Ids:
    """A tokenizer whose tokens are written as their ids; the page gets the texts later."""

    def __init__(self, n_known: int) -> None:
        self.vocab = self
        self._n_known = n_known

    def items(self) -> Iterable[tuple[str, int]]:
        return ((str(token_id), token_id) for token_id in range(self._n_known))
