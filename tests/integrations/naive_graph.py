"""Attribution graphs the slow way: plain PyTorch on Hugging Face weights, an edge is a gradient times its source.

Nothing of the package, of TransformerLens or of circuit-tracer is used, so that agreement with it means something.
The forward pass is written out; what a linear model must hold constant goes through `Held.once`, every source of the
graph through `Held.leaf`. A second pass over the same `Held` is then the linear model, a fresh one the real model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel

from tests.integrations.naive_weights import Weights, read_weights

KINDS = ("attention", "norm", "mlp", "adapter", "own")


class Held:
    """Constants and sources of a linear model: made by the first pass, read by the next."""

    def __init__(self, values: Mapping[str, Tensor] | None = None) -> None:
        self.values = dict(values or {})
        self.leaves: dict[str, Tensor] = {}

    def once(self, name: str, make: Callable[[], Tensor]) -> Tensor:
        if name not in self.values:
            self.values[name] = make().detach()
        return self.values[name]

    def leaf(self, name: str, make: Callable[[], Tensor]) -> Tensor:
        self.leaves[name] = self.once(name, make).clone().requires_grad_()
        return self.leaves[name]


@dataclass(frozen=True)
class Edges:
    """What flows into k nodes: gradient times source, summed over d_model.

    features [k n_layers n_pos n_features], errors [k n_layers n_pos], tokens [k n_pos], terms: kind -> [k].
    """

    features: Tensor
    errors: Tensor
    tokens: Tensor
    terms: dict[str, Tensor]

    def total(self) -> Tensor:
        """Everything added up: the node's own value, [k]."""
        parts = [self.features.flatten(1), self.errors.flatten(1), self.tokens]
        return torch.stack([*(part.sum(1) for part in parts), *self.terms.values()]).sum(0)

    def zeroed(self) -> Tensor:
        """What comes from features and errors at position 0, [k]."""
        return self.features[:, :, 0].sum((1, 2)) + self.errors[:, :, 0].sum(1)

    def rows(self, active: Tensor) -> Tensor:
        """In circuit-tracer's order: active features (layer, position, feature), errors by layer, tokens."""
        chosen = self.features[:, active[:, 0], active[:, 1], active[:, 2]]
        return torch.cat([chosen, self.errors.flatten(1), self.tokens], dim=1)


class NaiveGraph:
    """The replacement model, or the target with errors.

    Args:
        params: W_enc [n_layers d_model n_features], b_enc, W_dec [n_layers n_features d_model], b_dec; the models'
            dtype.
        rule: relp: half of gate * up to each; gate-detach: all of it to up.
    """

    def __init__(
        self,
        base: PreTrainedModel,
        target: PreTrainedModel,
        params: Weights,
        sampled: Literal["replacement", "target"] = "replacement",
        rule: Literal["relp", "gate-detach"] = "relp",
    ) -> None:
        self.config: Any = target.config
        self.params, self.sampled, self.rule = params, sampled, rule
        self.neox = target.config.model_type == "gpt_neox"
        self.gemma = target.config.model_type == "gemma2"
        self.target = read_weights(target)
        self.base = read_weights(base)
        self.n_layers = target.config.num_hidden_layers

    def run(self, tokens: Tensor, changes: Mapping[tuple[int, int, int], float] | None = None) -> Trace:
        """Tokens [n_pos], nothing frozen; (layer, position, feature) set to a value, all else recomputed."""
        return self.pass_over(tokens, Held(), changes or {})

    def pass_over(self, tokens: Tensor, held: Held, changes: Mapping[tuple[int, int, int], float]) -> Trace:
        """One pass, in which all that `held` has is not computed anew."""
        weights = self.target
        scale = self.config.hidden_size**0.5 if self.gemma else 1.0
        x = held.leaf("tokens", lambda: weights["embed"][tokens] * scale)
        pre = []
        for layer in range(self.n_layers):
            attended = self.attention(self.norm(x, f"{layer}.attn_norm", held), layer, held)
            if self.gemma:
                attended = self.norm(attended, f"{layer}.attn_post", held)
            middle = x if self.neox and self.config.use_parallel_residual else x + attended
            read = self.norm(middle, f"{layer}.mlp_norm", held)
            pre.append(read @ self.params["W_enc"][layer] + self.params["b_enc"][layer])
            here = {at[1:]: value for at, value in changes.items() if at[0] == layer}
            written = self.mlp(self.base, read, layer, held) + self.adapter(read, pre[layer], layer, held, here)
            if self.gemma:
                written = self.norm(written, f"{layer}.mlp_post", held)
            x = x + attended + written
        final = self.norm(x, "final_norm", held)
        return Trace(self, tokens, held, torch.stack(pre), final)

    def norm(self, x: Tensor, name: str, held: Held) -> Tensor:
        if self.neox:
            x = x - x.mean(-1, keepdim=True)
        eps = self.config.layer_norm_eps if self.neox else self.config.rms_norm_eps
        factor = held.once(f"{name}.factor", lambda: (x.pow(2).mean(-1, keepdim=True) + eps).rsqrt())
        y = x * factor * (self.target[name] + float(self.gemma))
        return y + held.leaf(f"norm/{name}", lambda: self.target[f"{name}.bias"]) if self.neox else y

    def attention(self, x: Tensor, layer: int, held: Held) -> Tensor:
        weights = {key: self.target.get(f"{layer}.{key}") for key in ("W_Q", "W_K", "W_V", "W_O", "b_Q", "b_K")}
        n_heads, group, d_head = self.heads()
        pattern = held.once(f"{layer}.pattern", lambda: self.pattern(x, weights, layer))
        values = x @ weights["W_V"]
        if f"{layer}.b_V" in self.target:
            values = values + held.leaf(f"attention/{layer}.b_V", lambda: self.target[f"{layer}.b_V"])
        values = values.view(len(x), -1, d_head).repeat_interleave(group, dim=1)
        out = torch.einsum("hqk,khd->qhd", pattern, values).reshape(len(x), n_heads * d_head) @ weights["W_O"]
        if f"{layer}.b_O" in self.target:
            out = out + held.leaf(f"attention/{layer}.b_O", lambda: self.target[f"{layer}.b_O"])
        return out

    def heads(self) -> tuple[int, int, int]:
        """Query heads, query heads for each key head, width of a head."""
        n_heads = self.config.num_attention_heads
        d_head = getattr(self.config, "head_dim", None) or self.config.hidden_size // n_heads
        return n_heads, n_heads // getattr(self.config, "num_key_value_heads", n_heads), d_head

    def pattern(self, x: Tensor, weights: Weights, layer: int) -> Tensor:
        """[head query key]"""
        config = self.config
        n_heads, group, d_head = self.heads()
        queries, keys = x @ weights["W_Q"], x @ weights["W_K"]
        if weights["b_Q"] is not None:
            queries, keys = queries + weights["b_Q"], keys + weights["b_K"]
        queries, keys = queries.view(len(x), n_heads, d_head), keys.view(len(x), -1, d_head)
        if f"{layer}.q_norm" in self.target:
            queries = _rms(queries, config.rms_norm_eps) * self.target[f"{layer}.q_norm"]
            keys = _rms(keys, config.rms_norm_eps) * self.target[f"{layer}.k_norm"]
        width = int(d_head * config.rotary_pct) if self.neox else d_head
        queries, keys = (_rotated(part, width, config.rope_theta) for part in (queries, keys))
        keys = keys.repeat_interleave(group, dim=1)
        scores = torch.einsum("qhd,khd->hqk", queries, keys)
        scores = scores / (config.query_pre_attn_scalar if self.gemma else d_head) ** 0.5
        if self.gemma:
            scores = config.attn_logit_softcapping * torch.tanh(scores / config.attn_logit_softcapping)
        back = torch.arange(len(x))[:, None] - torch.arange(len(x))[None]
        windowed = config.model_type == "mistral" or (self.gemma and layer % 2 == 0)
        allowed = (back >= 0) & (back < (config.sliding_window if windowed else len(x)))
        exponents = scores.masked_fill(~allowed, -math.inf)
        exponents = (exponents - exponents.amax(-1, keepdim=True)).exp()
        return exponents / exponents.sum(-1, keepdim=True)

    def mlp(self, weights: Weights, x: Tensor, layer: int, held: Held) -> Tensor:
        part = {name: weights[f"{layer}.{name}"] for name in ("W_in", "W_out")}
        if self.neox:
            hidden = x @ part["W_in"] + held.leaf(f"mlp/{layer}.b_in", lambda: weights[f"{layer}.b_in"])
            ratio = held.once(f"{layer}.ratio", lambda: self.act(hidden) / hidden)
            out = (hidden * ratio) @ part["W_out"]
            return out + held.leaf(f"mlp/{layer}.b_out", lambda: weights[f"{layer}.b_out"])
        gate, up = x @ weights[f"{layer}.W_gate"], x @ part["W_in"]
        share = 0.5 if self.rule == "relp" else 0.0
        of_gate = held.once(f"{layer}.of_gate", lambda: share * self.act(gate) / gate * up)
        of_up = held.once(f"{layer}.of_up", lambda: (1 - share) * self.act(gate))
        return (gate * of_gate + up * of_up) @ part["W_out"]

    def act(self, x: Tensor) -> Tensor:
        if self.gemma:
            return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
        return 0.5 * x * (1 + torch.erf(x / math.sqrt(2))) if self.neox else x / (1 + torch.exp(-x))

    def adapter(
        self, x: Tensor, pre: Tensor, layer: int, held: Held, changes: Mapping[tuple[int, int], float]
    ) -> Tensor:
        """What is added to the base's MLP: features, b_dec, error; all of them sources."""
        decoder, bias = self.params["W_dec"][layer], self.params["b_dec"][layer]
        acts = held.once(f"{layer}.acts", lambda: _changed(pre.clamp(min=0), changes))
        features = held.leaf(f"features/{layer}", lambda: acts[:, :, None] * decoder)
        error = held.leaf(f"errors/{layer}", lambda: self.error(x, pre, layer))
        return features.sum(1) + held.leaf(f"adapter/{layer}", lambda: bias) + error

    def error(self, x: Tensor, pre: Tensor, layer: int) -> Tensor:
        if self.sampled == "replacement":
            return torch.zeros_like(x)
        delta = self.mlp(self.target, x, layer, Held()) - self.mlp(self.base, x, layer, Held())
        return delta - pre.clamp(min=0) @ self.params["W_dec"][layer] - self.params["b_dec"][layer]


@dataclass(frozen=True)
class Trace:
    """One pass: pre-activations [n_layers n_pos n_features] and the final norm's output [n_pos d_model], with graph."""

    graph: NaiveGraph
    tokens: Tensor
    held: Held
    pre: Tensor
    final: Tensor

    @property
    def acts(self) -> Tensor:
        """[n_layers n_pos n_features]"""
        return torch.stack([self.held.values[f"{layer}.acts"] for layer in range(self.graph.n_layers)])

    @property
    def demeaned(self) -> Tensor:
        """Logits before any cap, less their mean over the vocabulary, [n_pos d_vocab]."""
        unembed = self.graph.target["unembed"]
        return self.final @ (unembed - unembed.mean(1, keepdim=True))

    @property
    def logits(self) -> Tensor:
        """As the model gives them, [n_pos d_vocab]."""
        logits = self.final @ self.graph.target["unembed"]
        cap = self.graph.config.final_logit_softcapping if self.graph.gemma else None
        return cap * torch.tanh(logits / cap) if cap else logits

    def feature_edges(self, nodes: Tensor) -> Edges:
        """Into pre-activations at (layer, position, feature), [k 3]."""
        layers, positions, features = nodes.T
        return self._edges(self.pre[layers, positions, features], self.graph.params["b_enc"][layers, features])

    def logit_edges(self, ids: Tensor) -> Edges:
        """Into demeaned logits at the last position, [k]."""
        values = self.demeaned[-1, ids]
        return self._edges(values, torch.zeros_like(values))

    def _edges(self, values: Tensor, own: Tensor) -> Edges:
        names, leaves = list(self.held.leaves), list(self.held.leaves.values())
        each = torch.eye(len(values), dtype=values.dtype)
        found = torch.autograd.grad(values, leaves, each, retain_graph=True, is_grads_batched=True, allow_unused=True)
        flows = {
            name: values.new_zeros(len(values), *leaf.shape) if grad is None else grad * leaf.detach()
            for name, grad, leaf in zip(names, found, leaves, strict=True)
        }
        layers = range(self.graph.n_layers)
        terms = {
            kind: sum((flow.flatten(1).sum(1) for name, flow in flows.items() if name.startswith(f"{kind}/")), 0 * own)
            for kind in KINDS
        }
        return Edges(
            torch.stack([flows[f"features/{layer}"].sum(-1) for layer in layers], dim=1),
            torch.stack([flows[f"errors/{layer}"].sum(-1) for layer in layers], dim=1),
            flows["tokens"].sum(-1),
            {**terms, "own": own},
        )

    def frozen(self, changes: Mapping[tuple[int, int, int], float]) -> Trace:
        """The linear model with features set to other values, all other activations, errors and constants held."""
        values = dict(self.held.values)
        for layer, position, feature in changes:
            acts = values[f"{layer}.acts"].clone()
            acts[position, feature] = changes[layer, position, feature]
            values[f"{layer}.acts"] = acts
            values[f"features/{layer}"] = acts[:, :, None] * self.graph.params["W_dec"][layer]
        return self.graph.pass_over(self.tokens, Held(values), {})

    def alone(self, name: str, index: tuple[int, ...] = ()) -> Trace:
        """The linear model in which every source is zero but one (a part of one)."""
        values = {**self.held.values, **{other: torch.zeros_like(leaf) for other, leaf in self.held.leaves.items()}}
        values[name][index] = self.held.values[name][index]
        return self.graph.pass_over(self.tokens, Held(values), {})


def _rms(x: Tensor, eps: float) -> Tensor:
    return x * (x.pow(2).mean(-1, keepdim=True) + eps).rsqrt()


def _rotated(x: Tensor, width: int, theta: float) -> Tensor:
    """Pairs (i, i + width/2) of [position head d_head] turned by position * theta^(-2i/width)."""
    half = width // 2
    speeds = theta ** -(torch.arange(half, dtype=torch.float64) / half)
    angles = (torch.arange(len(x), dtype=torch.float64)[:, None] * speeds)[:, None]
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    first, second, rest = x[..., :half], x[..., half:width], x[..., width:]
    return torch.cat([first * cos - second * sin, second * cos + first * sin, rest], dim=-1)


def _changed(acts: Tensor, changes: Mapping[tuple[int, int], float]) -> Tensor:
    acts = acts.clone()
    for at, value in changes.items():
        acts[at] = value
    return acts
