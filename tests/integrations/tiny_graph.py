"""Graphs for tests: circuit-tracer's own replacement model of a tiny pair, and graphs of random edges."""

from __future__ import annotations

import copy
from functools import cache
from types import SimpleNamespace

import torch
from torch import Tensor, nn

from tc_adapters_lens.integrations.circuit_tracer.sparse_graph import SparseGraph, Target
from tc_adapters_lens.models.pair import load_pair
from tests.tiny import D_MODEL, D_VOCAB, N_LAYERS, tiny_pair, word_tokenizer

N_POS, N_FEATURES = 9, 20
TOKENS = torch.randint(3, D_VOCAB, (N_POS,), generator=torch.Generator().manual_seed(0))
TOKENS[0] = 1  # the tokenizer's BOS; without one circuit-tracer adds it


@cache
def upstream_model(threshold: float = 0.0):
    """circuit-tracer's replacement model of the hybrid, with random transcoders and a made-up account.

    threshold: taken off the encoders' biases; at a high one no feature is active.
    """
    from circuit_tracer.replacement_model.replacement_model_transformerlens import TransformerLensReplacementModel
    from circuit_tracer.transcoder.single_layer_transcoder import SingleLayerTranscoder, TranscoderSet

    base, target = tiny_pair("qwen2")
    pair = load_pair((base, word_tokenizer()), (target, word_tokenizer()))
    generator = torch.Generator().manual_seed(0)
    transcoders = {}
    for layer in range(N_LAYERS):
        place = torch.device("cpu")
        transcoders[layer] = SingleLayerTranscoder(
            D_MODEL, N_FEATURES, nn.functional.relu, layer, device=place, dtype=torch.float32
        )
        for name in ("W_enc", "b_enc", "W_dec", "b_dec"):
            tensor = getattr(transcoders[layer], name)
            tensor.data = torch.randn(tensor.shape, generator=generator) * 0.1 - threshold * (name == "b_enc")
    cfg = copy.deepcopy(pair.cfg)
    cfg.n_ctx = pair.blocks[0].attn.mask.shape[0]  # the pair's buffers grow on demand
    model = TransformerLensReplacementModel(cfg, pair.tokenizer, move_to_device=False)
    weights = {name: tensor for name, tensor in pair.state_dict().items() if ".mlp." not in name}
    mlps = {n.replace(".mlp.base.", ".mlp."): t for n, t in pair.state_dict().items() if ".mlp.base." in n}
    model.load_state_dict({**weights, **mlps})
    model._configure_replacement_model(
        TranscoderSet(transcoders, "mlp.hook_in", "mlp.hook_out", scan="./data/features")
    )

    def account_and_context(tokens: torch.Tensor) -> tuple[SimpleNamespace, object]:
        context = model.setup_attribution(tokens)
        return made_up_account(context.activation_matrix._nnz()), context

    model.account_and_context = account_and_context
    return model.eval()


def made_up_account(n_active: int) -> SimpleNamespace:
    """Numbers in the places where a real account has its own."""
    return SimpleNamespace(
        preactivations=torch.arange(n_active) + 0.5,
        feature_terms={"attention": torch.arange(n_active) * 2.0, "own": torch.ones(n_active)},
        target_terms=lambda vectors, own: {"attention": vectors.sum(1), "own": own},
        target_values=lambda vectors, own: vectors[:, 0] + own,
    )


def random_graph(
    seed: int, n_layers: int = 3, n_pos: int = 4, n_active: int = 12, selected: float = 1.0
) -> SparseGraph:
    """A graph of random size and edges, with every kind of node; edges of a feature from lower layers only."""
    rng = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(n_layers * n_pos * 5, generator=rng)[:n_active].sort().values
    active = torch.stack([chosen // (5 * n_pos), chosen // 5 % n_pos, chosen % 5], 1)
    has_row = torch.rand(n_active, generator=rng) < selected
    n_targets = 2
    n_sources = n_active + (n_layers + 1) * n_pos
    layer_of = torch.cat([active[:, 0], torch.arange(n_layers).repeat_interleave(n_pos), torch.full((n_pos,), -1)])
    rows_at = torch.cat([active[has_row, 0], torch.full((n_targets,), n_layers)])
    dense = torch.randn(len(rows_at), n_sources, generator=rng) ** 3
    dense[torch.rand(dense.shape, generator=rng) < 0.3] = 0
    dense[layer_of[None] >= rows_at[:, None]] = 0
    dropped = torch.rand(len(rows_at), generator=rng).double()
    return graph_of(
        dense,
        active,
        has_row.nonzero().squeeze(1),
        n_layers,
        torch.tensor([0.7, 0.2]),
        terms={kind: torch.randn(len(rows_at), generator=rng) for kind in ("attention", "own")},
        dropped_abs=dropped,
        dropped_sum=-dropped / 2,
    )


def graph_of(
    dense: Tensor,
    active: Tensor,
    selected: Tensor,
    n_layers: int,
    probabilities: Tensor,
    terms: dict[str, Tensor],
    dropped_abs: Tensor,
    dropped_sum: Tensor,
) -> SparseGraph:
    """A graph from its rows as a dense matrix `[n_rows n_sources]`."""
    n_pos = (dense.shape[1] - len(active)) // (n_layers + 1)
    columns = dense.nonzero()[:, 1].int()
    starts = torch.cat([torch.zeros(1, dtype=torch.int64), (dense != 0).sum(1).cumsum(0)])
    return SparseGraph(
        tokens=torch.arange(3, 3 + n_pos),
        token_texts=tuple(f"w{token}" for token in range(3, 3 + n_pos)),
        prompt=" ".join(f"w{token}" for token in range(3, 3 + n_pos)),
        n_layers=n_layers,
        active_features=active,
        activations=torch.arange(len(active)) + 1.0,
        selected=selected,
        targets=tuple(Target(f"w{50 + place}", 50 + place) for place in range(len(probabilities))),
        probabilities=probabilities,
        row_starts=starts,
        columns=columns,
        weights=dense[dense != 0],
        values=torch.arange(len(dense)) - 1.0,
        terms=terms,
        row_abs=dense.abs().sum(1, dtype=torch.float64) + dropped_abs,
        dropped_sum=dropped_sum,
        dropped_abs=dropped_abs,
        vocab_size=D_VOCAB,
        scan="./data/features",
        info={"sampled": "replacement", "rule": "relp"},
    )
