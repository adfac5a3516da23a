"""Rows from the frozen model, whichever way they are computed: MLPs multiplied out or not, in pieces of any size."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tc_adapters_lens.models.adapter_set import AdapterSet, AdapterSetInfo
from tc_adapters_lens.models.pair import load_pair
from tests.tiny import D_MODEL, D_VOCAB, N_LAYERS, tiny_pair

pytest.importorskip("circuit_tracer")

from tc_adapters_lens.integrations.circuit_tracer import context as contexts
from tc_adapters_lens.integrations.circuit_tracer.context import FrozenContext
from tc_adapters_lens.integrations.circuit_tracer.replacement import AdapterReplacementModel, replacement_model

TOKENS = torch.randint(D_VOCAB, (40,), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module", params=["qwen2", "gemma2", "neox"])
def model(request) -> AdapterReplacementModel:
    pair = load_pair(*tiny_pair(request.param), dtype=torch.float64)
    fresh = AdapterSet.fresh(N_LAYERS, D_MODEL, 20, AdapterSetInfo(pair.pair))
    generator = torch.Generator().manual_seed(0)
    state = {name: torch.randn(t.shape, generator=generator).double() * 0.1 for name, t in fresh.state().items()}
    return replacement_model(pair, AdapterSet.from_state(state, fresh.info), sampled="target")


def fresh_context(model: AdapterReplacementModel) -> FrozenContext:
    context = model.setup_attribution(TOKENS)
    assert isinstance(context, FrozenContext)
    return context


def rows(context: FrozenContext, nodes: Tensor) -> Tensor:
    layers, positions, _ = context.activation_matrix.indices()
    return context.compute_batch(layers[nodes], positions[nodes], context.encoder_vecs[nodes])


def plain_rows(model: AdapterReplacementModel, monkeypatch) -> tuple[Tensor, Tensor]:
    """Some nodes in an order of their own, and their rows without anything multiplied out."""
    monkeypatch.setattr(contexts, "_MATRIX_NUMBERS", {"cpu": 0})
    context = fresh_context(model)
    n_active = context.activation_matrix._nnz()
    nodes = torch.randperm(n_active, generator=torch.Generator().manual_seed(1))[:300]
    found = rows(context, nodes)
    assert not context.frozen.mlp_matrices
    monkeypatch.undo()
    return nodes, found


def test_mlps_multiplied_out(model, monkeypatch) -> None:
    nodes, expected = plain_rows(model, monkeypatch)
    context = fresh_context(model)
    for layer in range(N_LAYERS):
        context.frozen.make_mlp_matrix(layer)
    torch.testing.assert_close(rows(context, nodes), expected, rtol=1e-10, atol=1e-12)


def test_they_are_once_that_is_worth_it(model, monkeypatch) -> None:
    nodes, expected = plain_rows(model, monkeypatch)
    context = fresh_context(model)
    found = torch.cat([rows(context, part) for part in nodes.split(50)])
    assert set(context.frozen.mlp_matrices) == {0, 1}  # nothing but logits goes through the last
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    # 48 nodes above layer 0 at position 19 use its MLP 48 * 20 times; 3/4 of 40 positions * 32 numbers is what it costs
    context = fresh_context(model)
    context.expect(torch.full((48,), 1), torch.full((48,), 19))
    assert not context.frozen.mlp_matrices
    context.expect(torch.full((7,), 1), torch.full((7,), 19), times=7)
    assert set(context.frozen.mlp_matrices) == {0}


@pytest.mark.parametrize("numbers", [1, 3000, 10**5])
def test_pieces_of_any_size(model, monkeypatch, numbers) -> None:
    nodes, expected = plain_rows(model, monkeypatch)
    monkeypatch.setattr(contexts, "_NUMBERS_AT_ONCE", {"cpu": numbers})
    monkeypatch.setattr(contexts, "_POSITIONS_PER_BLOCK", 7)
    torch.testing.assert_close(rows(fresh_context(model), nodes), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("b_enc", [0.0, 0.05])
def test_a_pair_without_biases(b_enc) -> None:
    """Llama has none, and these adapters write none: nodes are their edges, and b_enc."""
    pair = load_pair(*tiny_pair("llama"), dtype=torch.float64)
    fresh = AdapterSet.fresh(N_LAYERS, D_MODEL, 20, AdapterSetInfo(pair.pair), dtype=torch.float64)
    state = fresh.state()
    state["W_dec"].normal_(0, 0.1, generator=torch.Generator().manual_seed(0))
    state["b_enc"].fill_(b_enc)
    model = replacement_model(pair, AdapterSet.from_state(state, fresh.info))
    account, context = model.account_and_context(TOKENS)
    nodes = torch.arange(context.activation_matrix._nnz())
    terms = account.feature_terms
    assert {kind for kind, term in terms.items() if term.any()} == ({"own"} if b_enc else set())
    torch.testing.assert_close(rows(context, nodes).sum(1) + terms["own"], account.preactivations)
    assert set(account.target_terms(torch.ones(1, D_MODEL).double(), torch.zeros(1))) == set(terms)
