"""How much memory training with a configuration takes, from the pair's config.json alone.

Fixed, in bytes, with P adapter parameters and e bytes per number of the models' dtype:

    target weights    e * (all its parameters)
    base MLPs         e * (MLP parameters)
    adapters          4 P, and e P for the copy in the models' dtype where that is not float32
    Adam              8 P
    gradients         4 P, and (4 + e) P / L for those of one layer on their way there

Kept for backward by ONE layer of the replacement model, for B sequences of T tokens:

    attention         B T (2 (H + H_kv) d_head e + 4 H)       queries, keys, values, result, log-sum-exp of each row
        windowed      + T^2 e                                 the mask as numbers
        soft-capped   B T H ((3 e + 1) T + 3 d_head e)        the pattern before and after NaNs are dealt with, the
                                                              scores, a flag per entry; queries, keys, values
                      + 4 B T d_head (H + H_kv)               where queries and keys are normalised
    MLP               B T d_mlp e m                           m = 3 gated, 1 plain
    norms             B T d_model * 4 c                       c = 2 for RMS norms in float32, else 4; Gemma adds 2
    adapter           B T (d_model + n_features) e            fresh ones; less once few features are active (CPU)

A step never has more than one graph waiting for its backward pass (training/step.py): L adapters and L - 1 layers
(nothing needs a gradient before the first adapter); with activation checkpointing one layer. The residual streams of
target and replacement model, B T d_model e each, stay for the whole step.

On top: causal masks (T^2 flags) in layers whose attention needs one, rotary tables, and what is alive for a moment, the
larger of

    a layer at work   the largest of 2 B T n_features e in the adapter, 3 B T d_mlp e in the MLP, and
                      2 B T^2 H e in soft-capped attention
    the output's KL   5 [chunk, d_vocab] and 6 [chunk, d_model] in float32, 2 [chunk, d_vocab] in another dtype

Checked against the peak of live tensors over two training steps on small shapes of five families, float32 and
bfloat16, with and without checkpointing (tests/training/test_memory.py): from 7 % below it to 12 % above.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass

import torch
from transformers import PretrainedConfig

from tc_adapters_lens.core.losses import chunked_kl
from tc_adapters_lens.errors import ConfigError
from tc_adapters_lens.models.families import hooked_config, weight_shapes
from tc_adapters_lens.models.pair_checks import mlp_tensor_names
from tc_adapters_lens.training.config import TrainingConfig

GIB = 2**30


@dataclass(frozen=True)
class MemoryEstimate:
    """What training needs.

    Attributes:
        parts: what for -> bytes.
        batch: sequences per step.
        context: most tokens of a sequence.
    """

    parts: dict[str, int]
    batch: int
    context: int

    @property
    def total(self) -> int:
        """Bytes in all."""
        return sum(self.parts.values())

    def to_dict(self) -> dict[str, object]:
        """In GiB."""
        return {
            "batch": self.batch,
            "context": self.context,
            "gib": {what: n_bytes / GIB for what, n_bytes in self.parts.items()},
            "total_gib": self.total / GIB,
        }


def estimate_memory(training: TrainingConfig, model: PretrainedConfig) -> MemoryEstimate:
    """Memory that a training run needs; the module's docstring has the formula.

    Args:
        training: the run; sequences are taken to be as long as its `data.context_size` allows.
        model: the target's HF config.
    Raises:
        CheckpointError: the model is not of a supported kind.
        ConfigError: the run does not train adapters, of which the formula is.
    """
    if training.trained != "adapters":
        raise ConfigError(f"Memory is estimated for trained: adapters only. Got {training.trained}.")
    dtype = getattr(torch, training.dtype)
    e = dtype.itemsize
    cfg = hooked_config(model, dtype, "cpu")
    B, T = training.training.batch_size_prompts, training.data.context_size or model.max_position_embeddings
    L, F, d, H, d_head = cfg.n_layers, training.adapters.n_features, cfg.d_model, cfg.n_heads, cfg.d_head
    assert cfg.d_mlp is not None

    n_of = {name: torch.Size(shape).numel() for name, shape in weight_shapes(model).items()}
    P = L * (2 * d * F + F + d)
    scores = B * T * T * H

    H_kv = cfg.n_key_value_heads or H
    soft_capped = cfg.attn_scores_soft_cap > 0
    if soft_capped:
        attention = scores * (3 * e + 1) + B * T * H * 3 * d_head * e
    else:
        attention = B * T * (2 * (H + H_kv) * d_head * e + 4 * H)
    windows = [cfg.use_local_attn and kind == "local" and (cfg.window_size or T) < T for kind in cfg.attn_types or []]
    if not soft_capped:
        attention += T * T * e * sum(windows) // L
    if cfg.use_qk_norm:
        attention += 4 * B * T * d_head * (H + H_kv)
    norms = 2 if e == 4 and cfg.normalization_type == "RMS" else 4
    norms += 2 if cfg.use_normalization_before_and_after else 0
    residual = B * T * d * e
    kept = {
        "attention for backward": attention,
        "MLPs for backward": B * T * cfg.d_mlp * e * (3 if cfg.gated_mlp else 1),
        "norms for backward": 4 * norms * B * T * d,
    }
    adapter = B * T * (d + F) * e
    n_masks = L if soft_capped else sum(windows)
    masks = n_masks * max(T, cfg.n_ctx) ** 2 + (L - n_masks) * cfg.n_ctx**2
    chunk = min(B * T, inspect.signature(chunked_kl).parameters["chunk_size"].default)
    output = chunk * (4 * (5 * cfg.d_vocab + 6 * d) + (2 * e * cfg.d_vocab if e != 4 else 0))
    at_work = e * max(2 * B * T * F, 3 * B * T * cfg.d_mlp, 2 * scores if soft_capped else 0)
    if training.training.activation_checkpointing:
        backward = {
            "residual streams": (2 * L + 1) * residual,
            "one layer, or the output's KL": max(sum(kept.values()) + adapter + at_work, output),
        }
    else:
        backward = {
            **{what: (L - 1) * n_bytes for what, n_bytes in kept.items()},
            "adapters for backward": L * adapter,
            "residual streams": (L + 1 + (L if e != 4 else 2)) * residual,
            "a layer at work, or the output's KL": max(at_work, output),
        }
    return MemoryEstimate(
        {
            "target weights": e * sum(n_of.values()),
            "base MLPs": e * sum(n_of[name] for name in mlp_tensor_names(model)),
            "adapters, float32": 4 * P + (e * P if e != 4 else 0),
            "Adam": 8 * P,
            "gradients": 4 * P + (4 + e) * P // L,
            "masks and rotary tables": masks + 2 * L * max(T, cfg.n_ctx) * (cfg.rotary_dim or 0) * e,
            **backward,
        },
        B,
        T,
    )
