"""Attention that never holds the pattern: TransformerLens' weights, hooks and rotary around torch's fused kernel.

The pattern of a layer takes n_heads * T^2 numbers, twice over for backward; the kernel
(`torch.nn.functional.scaled_dot_product_attention`) needs T * d_model. It is used wherever it says the same:
`hook_q`, `hook_k`, `hook_v`, `hook_rot_q`, `hook_rot_k` and `hook_z` fire as ever, while a layer goes back to
TransformerLens' own attention by itself

- for as long as `hook_attn_scores` or `hook_pattern` is hooked (so also in a full `run_with_cache`), or
  `use_attn_result` is set;
- where scores are soft-capped (Gemma 2), which the kernel cannot express.

A window shorter than the sequence, padding and queries that follow a KV cache are passed as a mask.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn
from transformer_lens.cache.key_value_cache_entry import TransformerLensKeyValueCacheEntry
from transformer_lens.components.abstract_attention import AbstractAttention
from transformer_lens.components.attention import Attention
from transformer_lens.components.grouped_query_attention import GroupedQueryAttention
from transformer_lens.config.HookedTransformerConfig import HookedTransformerConfig
from transformer_lens.hook_points import HookPoint


class FusedAttention(AbstractAttention):
    """Mixin over a TransformerLens attention with rotary positions: the fused kernel where it says the same."""

    def forward(
        self,
        query_input: Tensor,
        key_input: Tensor,
        value_input: Tensor,
        past_kv_cache_entry: TransformerLensKeyValueCacheEntry | None = None,
        additive_attention_mask: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_bias: Tensor | None = None,
    ) -> Float[Tensor, "batch pos d_model"]:
        """As TransformerLens' attention, whose arguments these are."""
        if self._needs_pattern() or additive_attention_mask is not None or position_bias is not None:
            return super().forward(
                query_input,
                key_input,
                value_input,
                past_kv_cache_entry,
                additive_attention_mask,
                attention_mask,
                position_bias,
            )
        q, k, v = self.calculate_qkv_matrices(query_input, key_input, value_input)
        n_past = 0
        if past_kv_cache_entry is not None:
            n_past = past_kv_cache_entry.past_keys.size(1)
            k, v = past_kv_cache_entry.append(k, v)
        q = self.hook_rot_q(self.apply_rotary(q, n_past, attention_mask))
        k = self.hook_rot_k(self.apply_rotary(k, 0, attention_mask))
        z = self.hook_z(self._fused_z(q, k, v, self._kernel_mask(q.size(1), k.size(1), attention_mask)))
        return F.linear(z.flatten(2), self.W_O.flatten(0, 1).T, self.b_O)

    def _needs_pattern(self) -> bool:
        read = (self.hook_attn_scores, self.hook_pattern)
        looked_at = any(not isinstance(point, HookPoint) or point.has_hooks() for point in read)
        return looked_at or self.cfg.use_attn_result or self.cfg.attn_scores_soft_cap > 0

    def _kernel_mask(
        self, n_queries: int, n_keys: int, attention_mask: Tensor | None
    ) -> Bool[Tensor, "#batch 1 query_pos key_pos"] | None:
        """Which keys a query sees, or None where the kernel's own causal mask says it."""
        windowed = self.attn_type == "local" and n_keys > (self.cfg.window_size or n_keys)
        causal_alone = n_queries in (1, n_keys)
        if attention_mask is None and not windowed and causal_alone:
            return None
        if n_keys > self.mask.size(0):
            self._extend_mask(n_keys)
        seen = self.mask[-n_queries:, -n_keys:]
        return seen[None, None] if attention_mask is None else seen & attention_mask[:, None, None, :].bool()

    def _fused_z(
        self,
        q: Float[Tensor, "batch query_pos head_index d_head"],
        k: Float[Tensor, "batch key_pos kv_head_index d_head"],
        v: Float[Tensor, "batch key_pos kv_head_index d_head"],
        mask: Bool[Tensor, "#batch 1 query_pos key_pos"] | None,
    ) -> Float[Tensor, "batch query_pos head_index d_head"]:
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        z = F.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=mask,
            is_causal=mask is None and q.size(2) > 1,
            scale=1 / self.attn_scale,
            enable_gqa=q.size(1) != k.size(1),
        )
        return z.transpose(1, 2)


class _FusedAttention(FusedAttention, Attention):
    pass


class _FusedGroupedQueryAttention(FusedAttention, GroupedQueryAttention):
    pass


def fused_attention(cfg: HookedTransformerConfig, layer: int) -> nn.Module:
    """One layer's attention as `HookedTransformer` would make it, with the fused kernel; weights not yet loaded."""
    kind: Any = _FusedAttention if cfg.n_key_value_heads is None else _FusedGroupedQueryAttention
    attn_type = cfg.attn_types[layer] if cfg.use_local_attn and cfg.attn_types is not None else "global"
    return kind(cfg, attn_type, layer)
