"""One family's pair and adapters as circuit-tracer's replacement model, and their slow graphs."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tc_adapters_lens.models.adapter_set import AdapterSet, AdapterSetInfo
from tc_adapters_lens.models.diff_transformer import HookedDiffTransformer
from tc_adapters_lens.models.pair import load_pair
from tests.integrations.naive_graph import Edges, NaiveGraph, Trace
from tests.tiny import D_MODEL, D_VOCAB, N_LAYERS, tiny_pair, word_tokenizer

if TYPE_CHECKING:
    from circuit_tracer.attribution.context_transformerlens import AttributionContext

    from tc_adapters_lens.integrations.circuit_tracer.replacement import AdapterReplacementModel

FAMILIES = ("qwen2", "qwen3", "llama", "mistral", "gemma2", "neox", "neox_sequential")
CAPS = {"gemma2": {"attn_logit_softcapping": 1.0, "final_logit_softcapping": 2.0}}  # low enough to matter
N_FEATURES, N_POS = 20, 10
TOKENS = torch.randint(30, D_VOCAB, (N_POS,), generator=torch.Generator().manual_seed(0))
TOKENS[0] = 1  # the special token that circuit-tracer wants there, and puts there with zero_first
TARGETS = torch.tensor([5, 17, 40])
SAMPLED = ("replacement", "target")
ROUTES = ("frozen", "upstream")


def parameters(silent: Sequence[int]) -> dict[str, Tensor]:
    """Adapters about half of whose features are active, all biases included; in silent layers none is."""
    shapes = {
        "W_enc": (N_LAYERS, D_MODEL, N_FEATURES),
        "b_enc": (N_LAYERS, N_FEATURES),
        "W_dec": (N_LAYERS, N_FEATURES, D_MODEL),
        "b_dec": (N_LAYERS, D_MODEL),
    }
    generator = torch.Generator().manual_seed(3)
    params = {name: torch.randn(shape, generator=generator) * 0.2 for name, shape in shapes.items()}
    params["b_enc"][list(silent)] = -1000
    return params


class Case:
    """One family: the package's pair and adapters in a dtype, and the slow graphs of the same weights in float64."""

    def __init__(self, family: str, silent: Sequence[int] = ()) -> None:
        self.family, self.params = family, parameters(silent)
        self.rules = ("relp",) if "neox" in family else ("relp", "gate-detach")
        self.models = tiny_pair(family, **CAPS.get(family, {}))
        self.pair = cache(self._pair)
        self.model = cache(self._model)
        self.trace = cache(self._trace)
        self.edges = cache(self._edges)

    def _pair(self, dtype: torch.dtype) -> tuple[HookedDiffTransformer, AdapterSet]:
        base, target = ((model, word_tokenizer()) for model in self.models)
        pair = load_pair(base, target, dtype=dtype)
        state = {name: tensor.to(dtype) for name, tensor in self.params.items()}
        return pair, AdapterSet.from_state(state, AdapterSetInfo(pair.pair))

    def _model(self, dtype: torch.dtype, **options: object) -> AdapterReplacementModel:
        from tc_adapters_lens.integrations.circuit_tracer.replacement import replacement_model

        return replacement_model(*self.pair(dtype), **options)

    def graph(self, sampled: str, rule: str) -> NaiveGraph:
        base, target = (copy.deepcopy(model).double() for model in self.models)
        graph = NaiveGraph(base, target, {n: t.double() for n, t in self.params.items()}, sampled, rule)
        if graph.gemma:  # whose norms TransformerLens takes as 1 + w in float32, and whose embeddings are scaled in it
            weights, scale = graph.target, D_MODEL**0.5
            weights.update({name: (weights[name].float() + 1).double() - 1 for name in weights if _is_norm(name)})
            weights["embed"] = (weights["embed"].float() * scale).double() / scale
        return graph

    def _trace(self, sampled: str, rule: str) -> Trace:
        return self.graph(sampled, rule).run(TOKENS)

    def _edges(self, sampled: str, rule: str) -> tuple[Tensor, Edges, Edges]:
        """Active features [n 3], what flows into them, what flows into the demeaned logits of all tokens."""
        trace = self.trace(sampled, rule)
        active = trace.acts.nonzero()
        return active, trace.feature_edges(active), trace.logit_edges(torch.arange(D_VOCAB))


def _is_norm(name: str) -> bool:
    return name.endswith(("_norm", "_post"))


def near(got: Tensor, expected: Tensor, tolerance: float) -> None:
    """Relative to the largest entry of a row (of a vector)."""
    assert got.shape == expected.shape
    size = expected.detach().abs().amax(-1, keepdim=True).clamp(min=1e-6)
    torch.testing.assert_close(got.double() / size, expected.double() / size, atol=tolerance, rtol=0)


def rows_of(
    model: AdapterReplacementModel, tokens: Tensor = TOKENS, batch: int = 64
) -> tuple[AttributionContext, Tensor]:
    """A context and the rows of every active feature, then of `TARGETS`, in the model's dtype."""
    ctx = model.setup_attribution(tokens)
    model.run_forward_pass(tokens, batch, ctx)
    layers, positions, _ = ctx.activation_matrix.indices()
    layers = torch.cat([layers, torch.full_like(TARGETS, N_LAYERS)])
    positions = torch.cat([positions, torch.full_like(TARGETS, len(tokens) - 1)])
    vectors = torch.cat([ctx.encoder_vecs, demeaned(model)])
    chosen = torch.arange(len(layers)).split(batch)
    return ctx, torch.cat([ctx.compute_batch(layers[b], positions[b], vectors[b]) for b in chosen])


def demeaned(model: AdapterReplacementModel) -> Tensor:
    """[n_targets d_model]"""
    unembed = model.unembed_proj
    return (unembed[:, TARGETS] - unembed.mean(1, keepdim=True)).T


def some(active: Tensor) -> list[tuple[int, int, int]]:
    """An active feature of every layer, none of them at the last position."""
    return [
        tuple(nodes[len(nodes) // 2].tolist())
        for layer in range(N_LAYERS)
        if len(nodes := active[(active[:, 0] == layer) & (active[:, 1] < N_POS - 1)])
    ]
