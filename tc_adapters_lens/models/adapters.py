"""One layer's adapter: a stock SAELens transcoder from `mlp.hook_in` to `mlp.hook_delta`.

relu(x @ W_enc + b_enc) @ W_dec + b_dec
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sae_lens import Transcoder, TranscoderConfig
from sae_lens.saes.sae import SAEMetadata
from sae_lens.util import dtype_to_str
from torch import Tensor

from tc_adapters_lens.errors import AdapterSetError
from tc_adapters_lens.models.names import hook_delta, hook_in
from tc_adapters_lens.models.pair_info import PairInfo


def make_adapter(layer: int, tensors: Mapping[str, Tensor], pair: PairInfo) -> Transcoder:
    """An adapter whose parameters share memory with the given tensors.

    Args:
        layer: whose MLP it stands beside.
        tensors: W_enc [d_model n_features], b_enc [n_features], W_dec [n_features d_model], b_dec [d_model].
        pair: names the models in the adapter's metadata.
    """
    d_model, n_features = tensors["W_enc"].shape
    dtype, device = tensors["W_enc"].dtype, tensors["W_enc"].device
    metadata = SAEMetadata(
        model_name=pair.target_name,
        base_model_name=pair.base_name,
        hook_name=hook_in(layer),
        hook_name_out=hook_delta(layer),
        prepend_bos=True,
    )
    config = TranscoderConfig(
        d_in=d_model,
        d_sae=n_features,
        d_out=d_model,
        dtype=dtype_to_str(dtype),
        device="meta",
        apply_b_dec_to_input=False,
        metadata=metadata,
    )
    adapter = Transcoder(config)
    adapter.load_state_dict(dict(tensors), assign=True)
    return adapter.to(device=device, dtype=dtype)


def adapter_shapes(d_model: int, n_features: int) -> dict[str, tuple[int, ...]]:
    """Parameter name -> shape."""
    return {
        "W_enc": (d_model, n_features),
        "b_enc": (n_features,),
        "W_dec": (n_features, d_model),
        "b_dec": (d_model,),
    }


def describe(adapter: Transcoder) -> str:
    """Its widths and dtype, such as "64 -> 512 -> 64 float32"."""
    cfg = adapter.cfg
    return f"{cfg.d_in} -> {cfg.d_sae} -> {cfg.d_out} {dtype_to_str(adapter.W_enc.dtype)}"


def check_adapter_config(where: str, layer: int, config: Mapping[str, Any]) -> None:
    """Whether a SAELens configuration is that of a layer's adapter.

    Raises:
        AdapterSetError: another architecture, preprocessing, hooks, or different widths in and out.
    """
    metadata = config.get("metadata") or {}
    wanted = {
        "architecture": "transcoder",
        "apply_b_dec_to_input": False,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "hook_name": hook_in(layer),
        "hook_name_out": hook_delta(layer),
        "d_out": config.get("d_in"),
    }
    for key, value in wanted.items():
        got = metadata.get(key) if key.startswith("hook_name") else config.get(key)
        if got != value:
            raise AdapterSetError(f"{where}: an adapter must have {key} {value!r}. Got {got!r}.")
