"""How much memory training with a configuration takes, from the pair's config.json alone.

Fixed, in bytes, with P adapter parameters and e bytes per number of the models' dtype:

    target weights    e * (all its parameters)
    base MLPs         e * (MLP parameters)
    adapters          4 P, and e P for the copy in the models' dtype where that is not float32
    Adam              8 P
    gradients         4 P, and e P for those of single layers before they are stacked

Kept for backward by ONE layer that gradients pass through, for B sequences of T tokens:

    attention         B T H ((2 e + 1) T + 3 d_head e)        pattern before and after NaNs are dealt with, a flag
                                                              per entry; queries, keys, values of all H heads
                      + B T^2 H e                             where scores are soft-capped
                      + 4 B T d_head (H + H_kv)               where queries and keys are normalised
    MLP               B T d_mlp e m                           m = 3 gated, 1 plain
    norms             B T d_model * 4 c                       c = 2 for RMS norms in float32, else 4; Gemma adds 2
    residual stream   B T d_model e

and by one layer's adapter B T (d_model + n_features) e, for the NMSE 4 B T d_model, at every layer of the pass.

How many layers: the replacement pass has L adapters and L - 1 layers (nothing needs a gradient before the first
adapter). Bridges differ with the cutoff; the worst one, 1, adds L - 1 layers of the target, and L - 1 adapters
with L - 2 layers of the replacement. The target's own pass keeps no more than its residual streams.

On top: causal masks (T^2 flags per layer), the working space of one layer (the larger of 2 B T^2 H e in attention
and 2 B T n_features e in the adapter), and five float32 tensors of [chunk, d_vocab] for the output's KL. The total is
an upper bound: gradients come while activations go.

Checked against the peak of live tensors over two training steps at the worst cutoff (tests/training/test_memory.py,
tiny pairs of five families, float32 and bfloat16): 1 % to 17 % above it.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass

import torch
from transformers import PretrainedConfig

from tc_adapters_lens.core.losses import chunked_kl
from tc_adapters_lens.models.families import hooked_config, weight_shapes
from tc_adapters_lens.models.pair_checks import mlp_tensor_names
from tc_adapters_lens.training.config import TrainingConfig

GIB = 2**30
_KL_TENSORS, _WORKING_TENSORS = 5, 2


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
    """
    dtype = getattr(torch, training.dtype)
    e = dtype.itemsize
    cfg = hooked_config(model, dtype, "cpu")
    B, T = training.training.batch_size_prompts, training.data.context_size or model.max_position_embeddings
    L, F, d, H, d_head = cfg.n_layers, training.adapters.n_features, cfg.d_model, cfg.n_heads, cfg.d_head
    assert cfg.d_mlp is not None

    n_of = {name: torch.Size(shape).numel() for name, shape in weight_shapes(model).items()}
    P = L * (2 * d * F + F + d)
    scores = B * T * T * H

    attention = scores * (2 * e + 1) + B * T * H * 3 * d_head * e
    if cfg.attn_scores_soft_cap > 0:
        attention += scores * e
    if cfg.use_qk_norm:
        attention += 4 * B * T * d_head * (H + (cfg.n_key_value_heads or H))
    norms = 2 if e == 4 and cfg.normalization_type == "RMS" else 4
    norms += 2 if cfg.use_normalization_before_and_after else 0
    mlp = B * T * cfg.d_mlp * e * (3 if cfg.gated_mlp else 1)
    residual = B * T * d * e
    adapter = B * T * (d + F) * e

    n_layers = (L - 1) + (L - 1) + max(L - 2, 0)
    n_adapters = L + (L - 1)
    chunk = min(B * T, inspect.signature(chunked_kl).parameters["chunk_size"].default)
    return MemoryEstimate(
        {
            "target weights": e * sum(n_of.values()),
            "base MLPs": e * sum(n_of[name] for name in mlp_tensor_names(model)),
            "adapters, float32": 4 * P + (e * P if e != 4 else 0),
            "Adam": 8 * P,
            "gradients": (4 + e) * P,
            "attention for backward": n_layers * attention,
            "MLPs for backward": n_layers * mlp,
            "norms and residuals for backward": n_layers * (4 * norms * B * T * d + residual)
            + L * (residual + 4 * B * T * d),
            "adapters for backward": n_adapters * adapter,
            "causal masks": L * max(T, cfg.n_ctx) ** 2,
            "working space": _WORKING_TENSORS * e * max(scores, B * T * F),
            "logits chunk": _KL_TENSORS * 4 * chunk * cfg.d_vocab,
        },
        B,
        T,
    )
