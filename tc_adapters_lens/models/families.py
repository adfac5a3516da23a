"""The table of model families: how each HF architecture becomes a HookedTransformer.

TransformerLens' own loader refuses local paths, guesses the family from the path's spelling and ignores
rotary settings; its weight converters are sound. So the config is built here from the HF config object
alone, and the weights go through TransformerLens' converters.

To add a family, add one row to `FAMILIES`: a function from the HF config to `HookedTransformerConfig`
arguments, TransformerLens' converter, and the HF names of one layer's MLP parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from transformer_lens.config.HookedTransformerConfig import HookedTransformerConfig
from transformer_lens.pretrained.weight_conversions import (
    convert_gemma_weights,
    convert_llama_weights,
    convert_mistral_weights,
    convert_neox_weights,
    convert_qwen2_weights,
    convert_qwen3_weights,
)
from transformers import AutoModelForCausalLM, PretrainedConfig

from tc_adapters_lens.errors import CheckpointError, did_you_mean

_BUFFER_POSITIONS = 512
"""TransformerLens allocates an n_ctx * n_ctx mask per layer; it grows them on demand from this size."""


@dataclass(frozen=True)
class Family:
    """How one HF architecture maps to TransformerLens.

    Attributes:
        config: HF config -> keyword arguments of `HookedTransformerConfig` particular to the family.
        convert: (HF model, HookedTransformerConfig) -> TransformerLens state dict; TransformerLens' own.
        mlp: TransformerLens MLP parameter -> HF tensor name, with `{layer}` to fill in. Linear weights
            are transposed on the way (HF stores `[out, in]`, TransformerLens `[in, out]`).
    """

    config: Callable[[PretrainedConfig], dict[str, Any]]
    convert: Callable[[Any, HookedTransformerConfig], dict[str, torch.Tensor]]
    mlp: Mapping[str, str]

    def mlp_names(self, layer: int) -> dict[str, str]:
        """TransformerLens parameter name -> HF tensor name, for one layer's MLP."""
        return {param: name.format(layer=layer) for param, name in self.mlp.items()}


def family_of(config: PretrainedConfig) -> Family:
    """The family of an HF config.

    Raises:
        CheckpointError: no row of `FAMILIES` has this architecture, or the weights are quantized.
    """
    architecture = architecture_of(config)
    if architecture not in FAMILIES:
        raise CheckpointError(
            f"The architecture must be one of {', '.join(FAMILIES)}. Got {architecture}."
            f"{did_you_mean(architecture, FAMILIES)}"
        )
    quantization = getattr(config, "quantization_config", None)
    if quantization:
        settings = quantization if isinstance(quantization, dict) else quantization.to_dict()
        raise CheckpointError(
            f"Weights must be stored in float32, bfloat16 or float16. Got a {architecture} with quantization_config "
            f"(quant_method {settings.get('quant_method', 'not named')}). Name the checkpoint before quantization."
        )
    return FAMILIES[architecture]


def architecture_of(config: PretrainedConfig) -> str:
    """`architectures[0]` of the HF config, or a placeholder naming the model type where it is absent."""
    return (config.architectures or [f"none (model_type {config.model_type})"])[0]


def hooked_config(config: PretrainedConfig, dtype: torch.dtype, device: str) -> HookedTransformerConfig:
    """The HookedTransformerConfig equivalent to an HF config, from nothing but that config.

    `n_ctx` starts at a small size so that no large attention mask is allocated; `set_context_length` of
    the model restores the real one once the buffers exist.

    Raises:
        CheckpointError: the architecture, or a setting of it, is not supported.
    """
    family = family_of(config)
    common = {
        "d_model": config.hidden_size,
        "n_layers": config.num_hidden_layers,
        "n_heads": config.num_attention_heads,
        "d_mlp": config.intermediate_size,
        "d_vocab": config.vocab_size,
        "n_ctx": min(config.max_position_embeddings, _BUFFER_POSITIONS),
        "act_fn": _activation(config),
        "original_architecture": architecture_of(config),
        "positional_embedding_type": "rotary",
        "rotary_adjacent_pairs": False,
        "init_weights": False,
        "dtype": dtype,
        "device": device,
    }
    return HookedTransformerConfig(**{**common, **family.config(config)})


def weight_shapes(config: PretrainedConfig) -> dict[str, tuple[int, ...]]:
    """HF tensor name -> shape of every weight that a config asks for, but a tied unembedding. Allocates nothing."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    return {name: tuple(param.shape) for name, param in model.named_parameters()}


def _activation(config: PretrainedConfig) -> str:
    name = getattr(config, "hidden_activation", None) or config.hidden_act
    supported = ("silu", "gelu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh", "relu")
    if name not in supported:
        raise CheckpointError(
            f"The activation must be one of {', '.join(supported)}. Got {name}.{did_you_mean(str(name), supported)}"
        )
    return name


def _refuse(config: PretrainedConfig, **wanted: Any) -> None:
    """Settings that TransformerLens' converter for the family would silently ignore."""
    for key, value in wanted.items():
        found = getattr(config, key, value)
        if found != value:
            raise CheckpointError(
                f"{architecture_of(config)} is supported with {key}={value} only. Got {key}={found}. "
                "Use another model, or add this setting to tc_adapters_lens/models/families.py."
            )


_ROPE_SCALING_KEYS = {
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
}


def _rotary(config: PretrainedConfig, rotary_dim: int) -> dict[str, Any]:
    """Rotary base and scaling. Supported scalings: none, linear, llama3 (NTK by parts)."""
    args: dict[str, Any] = {"rotary_dim": rotary_dim, "rotary_base": getattr(config, "rope_theta", 10_000.0)}
    scaling = getattr(config, "rope_scaling", None) or {}
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind == "default":
        return args
    missing = [key for key in _ROPE_SCALING_KEYS.get(kind, ()) if key not in scaling]
    if missing:
        raise CheckpointError(
            f"rope_scaling of type {kind} must have {', '.join(_ROPE_SCALING_KEYS[kind])}. "
            f"Got none of {', '.join(missing)}. Repair the model's config.json."
        )
    if kind == "linear":
        return {**args, "rotary_scaling_factor": float(scaling["factor"])}
    if kind == "llama3":
        return {
            **args,
            "use_NTK_by_parts_rope": True,
            "NTK_by_parts_factor": float(scaling["factor"]),
            "NTK_by_parts_low_freq_factor": float(scaling["low_freq_factor"]),
            "NTK_by_parts_high_freq_factor": float(scaling["high_freq_factor"]),
            "NTK_original_ctx_len": int(scaling["original_max_position_embeddings"]),
        }
    raise CheckpointError(
        f"rope_scaling must be one of default, linear, llama3. Got {kind}. If sequences stay below the "
        "model's original length, remove rope_scaling from its config.json; else use another model."
    )


def _rms_gated(config: PretrainedConfig, d_head: int) -> dict[str, Any]:
    """What Qwen, Llama, Mistral and Gemma share: RMS norms, gated MLP, rotary over the whole head."""
    _refuse(config, partial_rotary_factor=1.0)
    return {
        "d_head": d_head,
        "eps": config.rms_norm_eps,
        "normalization_type": "RMS",
        "final_rms": True,
        "gated_mlp": True,
        **_rotary(config, d_head),
    }


def _head_dim(config: PretrainedConfig) -> int:
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def _grouped(config: PretrainedConfig) -> int | None:
    """TransformerLens' Llama and Qwen3 converters want None where no heads are grouped."""
    grouped = config.num_key_value_heads != config.num_attention_heads
    return config.num_key_value_heads if grouped else None


def _windowed(config: PretrainedConfig) -> dict[str, Any]:
    """Sliding-window layers, by the HF config's own `layer_types` where it has them."""
    window = getattr(config, "sliding_window", None)
    kinds = (
        getattr(config, "layer_types", None)
        or ["sliding_attention" if window else "full_attention"] * config.num_hidden_layers
    )
    if not window or "sliding_attention" not in kinds:
        return {}
    return {
        "use_local_attn": True,
        "window_size": window,
        "attn_types": ["local" if kind == "sliding_attention" else "global" for kind in kinds],
    }


def _qwen2(config: PretrainedConfig) -> dict[str, Any]:
    return {
        **_rms_gated(config, _head_dim(config)),
        "n_key_value_heads": config.num_key_value_heads,
        "default_prepend_bos": False,
        **_windowed(config),
    }


def _qwen3(config: PretrainedConfig) -> dict[str, Any]:
    _refuse(config, attention_bias=False)
    return {
        **_rms_gated(config, _head_dim(config)),
        "n_key_value_heads": _grouped(config),
        "use_qk_norm": True,
        "default_prepend_bos": False,
        **_windowed(config),
    }


def _llama(config: PretrainedConfig) -> dict[str, Any]:
    _refuse(config, attention_bias=False, mlp_bias=False)
    return {**_rms_gated(config, _head_dim(config)), "n_key_value_heads": _grouped(config)}


def _mistral(config: PretrainedConfig) -> dict[str, Any]:
    return {
        **_rms_gated(config, _head_dim(config)),
        "n_key_value_heads": config.num_key_value_heads,
        **_windowed(config),
    }


def _gemma2(config: PretrainedConfig) -> dict[str, Any]:
    _refuse(config, attention_bias=False)
    return {
        **_rms_gated(config, _head_dim(config)),
        "n_key_value_heads": config.num_key_value_heads,
        "attn_scale": config.query_pre_attn_scalar**0.5,
        "attn_scores_soft_cap": config.attn_logit_softcapping or -1.0,
        "output_logits_soft_cap": config.final_logit_softcapping or -1.0,
        "use_normalization_before_and_after": True,
        **_windowed(config),
    }


def _neox(config: PretrainedConfig) -> dict[str, Any]:
    _refuse(config, attention_bias=True)
    d_head = config.hidden_size // config.num_attention_heads
    return {
        "d_head": d_head,
        "eps": config.layer_norm_eps,
        "normalization_type": "LN",
        "parallel_attn_mlp": config.use_parallel_residual,
        "default_prepend_bos": False,
        **_rotary(config, int(config.rotary_pct * d_head)),
    }


_GATED_MLP = {
    "W_gate": "model.layers.{layer}.mlp.gate_proj.weight",
    "W_in": "model.layers.{layer}.mlp.up_proj.weight",
    "W_out": "model.layers.{layer}.mlp.down_proj.weight",
}

_NEOX_MLP = {
    "W_in": "gpt_neox.layers.{layer}.mlp.dense_h_to_4h.weight",
    "b_in": "gpt_neox.layers.{layer}.mlp.dense_h_to_4h.bias",
    "W_out": "gpt_neox.layers.{layer}.mlp.dense_4h_to_h.weight",
    "b_out": "gpt_neox.layers.{layer}.mlp.dense_4h_to_h.bias",
}

FAMILIES: dict[str, Family] = {
    "Qwen2ForCausalLM": Family(_qwen2, convert_qwen2_weights, _GATED_MLP),
    "Qwen3ForCausalLM": Family(_qwen3, convert_qwen3_weights, _GATED_MLP),
    "LlamaForCausalLM": Family(_llama, convert_llama_weights, _GATED_MLP),
    "MistralForCausalLM": Family(_mistral, convert_mistral_weights, _GATED_MLP),
    "Gemma2ForCausalLM": Family(_gemma2, convert_gemma_weights, _GATED_MLP),
    "GPTNeoXForCausalLM": Family(_neox, convert_neox_weights, _NEOX_MLP),
}
