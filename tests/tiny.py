"""Tiny random HF pairs of every family, and a word tokenizer: what tests need in place of downloaded models."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedModel, PreTrainedTokenizerFast

D_MODEL, N_LAYERS, D_VOCAB = 32, 3, 97
_COMMON = {
    "hidden_size": D_MODEL,
    "intermediate_size": 48,
    "num_hidden_layers": N_LAYERS,
    "num_attention_heads": 4,
    "vocab_size": D_VOCAB,
    "max_position_embeddings": 1024,
}
_LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}

FAMILY_CONFIGS = {
    "qwen2": lambda: transformers.Qwen2Config(num_key_value_heads=2, rope_theta=5_000.0, **_COMMON),
    "qwen3": lambda: transformers.Qwen3Config(num_key_value_heads=2, head_dim=16, **_COMMON),
    "llama": lambda: transformers.LlamaConfig(num_key_value_heads=4, **_COMMON),
    "llama3": lambda: transformers.LlamaConfig(num_key_value_heads=2, rope_scaling=_LLAMA3, **_COMMON),
    "mistral": lambda: transformers.MistralConfig(num_key_value_heads=2, sliding_window=7, **_COMMON),
    "gemma2": lambda: transformers.Gemma2Config(
        num_key_value_heads=2, head_dim=16, sliding_window=7, query_pre_attn_scalar=20, **_COMMON
    ),
    "neox": lambda: transformers.GPTNeoXConfig(rotary_pct=0.5, **_COMMON),
    "neox_sequential": lambda: transformers.GPTNeoXConfig(rotary_pct=0.25, use_parallel_residual=False, **_COMMON),
}


def tiny_model(family: str, seed: int = 0, **changes: object) -> PreTrainedModel:
    """A random model of a family; every parameter, biases and norms included, differs from its default."""
    config = FAMILY_CONFIGS[family]()
    for key, value in changes.items():
        setattr(config, key, value)
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    config.architectures = model.config.architectures = [type(model).__name__]
    return nudged(model, 0.1, seed)


def nudged(model: PreTrainedModel, scale: float, seed: int, only: str = "") -> PreTrainedModel:
    """A copy with noise added to the parameters whose name contains `only`."""
    model = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, param in model.named_parameters():
            if only in name:
                param.add_(torch.randn(param.shape, generator=generator) * scale)
    return model


def tiny_pair(family: str = "qwen2", **changes: object) -> tuple[PreTrainedModel, PreTrainedModel]:
    """(base, target): the target is the base with every weight moved a little."""
    base = tiny_model(family, **changes)
    return base, nudged(base, 0.05, seed=1)


def hybrid(base: PreTrainedModel, target: PreTrainedModel) -> PreTrainedModel:
    """The target with the base's MLPs, as a plain HF model."""
    model = copy.deepcopy(target)
    weights = base.state_dict()
    model.load_state_dict({n: weights[n] if ".mlp." in n else t for n, t in model.state_dict().items()})
    return model


def word_tokenizer(words: int = D_VOCAB, **special: str) -> PreTrainedTokenizerFast:
    """A tokenizer of `words` words w0, w1, ... separated by blanks; w0 is unknown, w1 begins, w2 ends."""
    vocab = {f"w{index}": index for index in range(words)}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    names = {"unk_token": "w0", "bos_token": "w1", "eos_token": "w2", "pad_token": "w2", **special}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


def save(model: PreTrainedModel, directory: Path, tokenizer: PreTrainedTokenizerFast | None = None) -> Path:
    """Save as HF does; returns the directory."""
    model.save_pretrained(directory)
    if tokenizer is not None:
        tokenizer.save_pretrained(directory)
    return directory
