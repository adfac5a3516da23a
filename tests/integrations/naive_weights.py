"""Hugging Face's weights of every family under one set of short names."""

from __future__ import annotations

from torch import Tensor
from transformers import PreTrainedModel

Weights = dict[str, Tensor]

_OUTER = ("model.embed_tokens", "model.norm", "lm_head")
_RMS_GATED = {
    "attn_norm": "model.layers.{layer}.input_layernorm.weight",
    "mlp_norm": "model.layers.{layer}.post_attention_layernorm.weight",
    "mlp_pre": "model.layers.{layer}.pre_feedforward_layernorm.weight",
    "mlp_post": "model.layers.{layer}.post_feedforward_layernorm.weight",
    "q_norm": "model.layers.{layer}.self_attn.q_norm.weight",
    "k_norm": "model.layers.{layer}.self_attn.k_norm.weight",
    **{f"W_{p.upper()}": f"model.layers.{{layer}}.self_attn.{p}_proj.weight" for p in "qkvo"},
    **{f"b_{p.upper()}": f"model.layers.{{layer}}.self_attn.{p}_proj.bias" for p in "qkvo"},
    "W_gate": "model.layers.{layer}.mlp.gate_proj.weight",
    "W_in": "model.layers.{layer}.mlp.up_proj.weight",
    "W_out": "model.layers.{layer}.mlp.down_proj.weight",
}
_NEOX = {
    "attn_norm": "gpt_neox.layers.{layer}.input_layernorm.weight",
    "attn_norm.bias": "gpt_neox.layers.{layer}.input_layernorm.bias",
    "mlp_norm": "gpt_neox.layers.{layer}.post_attention_layernorm.weight",
    "mlp_norm.bias": "gpt_neox.layers.{layer}.post_attention_layernorm.bias",
    "W_QKV": "gpt_neox.layers.{layer}.attention.query_key_value.weight",
    "b_QKV": "gpt_neox.layers.{layer}.attention.query_key_value.bias",
    "W_O": "gpt_neox.layers.{layer}.attention.dense.weight",
    "b_O": "gpt_neox.layers.{layer}.attention.dense.bias",
    "W_in": "gpt_neox.layers.{layer}.mlp.dense_h_to_4h.weight",
    "b_in": "gpt_neox.layers.{layer}.mlp.dense_h_to_4h.bias",
    "W_out": "gpt_neox.layers.{layer}.mlp.dense_4h_to_h.weight",
    "b_out": "gpt_neox.layers.{layer}.mlp.dense_4h_to_h.bias",
}


def read_weights(model: PreTrainedModel) -> Weights:
    """Hugging Face's tensors under short names; linear weights as [in, out], NeoX' fused ones taken apart."""
    neox = model.config.model_type == "gpt_neox"
    state = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    names = _NEOX if neox else _RMS_GATED
    found: Weights = {}
    for layer in range(model.config.num_hidden_layers):
        for short, name in names.items():
            if (tensor := state.get(name.format(layer=layer))) is not None:
                found[f"{layer}.{short}"] = tensor.T if tensor.ndim == 2 else tensor
        if neox:
            n_heads, width = model.config.num_attention_heads, model.config.hidden_size
            fused = found.pop(f"{layer}.W_QKV").view(width, n_heads, 3, -1)
            biases = found.pop(f"{layer}.b_QKV").view(n_heads, 3, -1)
            for part, letter in enumerate("QKV"):
                found[f"{layer}.W_{letter}"] = fused[:, :, part].reshape(width, -1)
                found[f"{layer}.b_{letter}"] = biases[:, part].reshape(-1)
    if model.config.model_type == "gemma2":  # its names say where a norm stands, not what it precedes
        for layer in range(model.config.num_hidden_layers):
            found[f"{layer}.attn_post"] = found[f"{layer}.mlp_norm"]
            found[f"{layer}.mlp_norm"] = found.pop(f"{layer}.mlp_pre")
    embed, norm, unembed = ("gpt_neox.embed_in", "gpt_neox.final_layer_norm", "embed_out") if neox else _OUTER
    outer = {"embed": state[f"{embed}.weight"], "final_norm": state[f"{norm}.weight"]}
    if neox:
        outer["final_norm.bias"] = state[f"{norm}.bias"]
    return {**found, **outer, "unembed": state[f"{unembed}.weight"].T}
