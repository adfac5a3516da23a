"""Norms and attention with their denominators and patterns held, against the plain formulas and their transposed."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tc_adapters_lens.core import linear_layers
from tc_adapters_lens.core.linear_layers import LinearAttention, LinearNorm

N_POS, D_MODEL, D_HEAD = 7, 6, 4


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def norm(centred: bool) -> LinearNorm:
    scale = random(N_POS, 1, seed=1).abs() + 1
    return LinearNorm(scale, random(D_MODEL, seed=2), random(D_MODEL, seed=3) if centred else None)


def attention(n_heads: int, n_kv: int) -> LinearAttention:
    scores = random(n_heads, N_POS, N_POS, seed=4)
    causal = torch.ones(N_POS, N_POS, dtype=torch.bool).tril()
    pattern = scores.masked_fill(~causal, float("-inf")).softmax(-1)
    return LinearAttention(
        pattern,
        random(n_kv, D_MODEL, D_HEAD, seed=5),
        random(n_kv, D_HEAD, seed=6),
        random(n_heads, D_HEAD, D_MODEL, seed=7),
        random(D_MODEL, seed=8),
    )


@pytest.mark.parametrize("centred", [False, True])
def test_a_norm(centred) -> None:
    held, x = norm(centred), random(2, N_POS, D_MODEL, seed=9)
    expected = torch.empty_like(x)
    for sample in range(2):
        for pos in range(N_POS):
            mean = x[sample, pos].sum() / D_MODEL if centred else 0
            for d in range(D_MODEL):
                expected[sample, pos, d] = (x[sample, pos, d] - mean) / held.scale[pos, 0] * held.w[d]
    torch.testing.assert_close(held.linear(x), expected)


@pytest.mark.parametrize("n_pos", [3, N_POS])
@pytest.mark.parametrize("centred", [False, True])
def test_a_norm_transposed(centred, n_pos) -> None:
    held, x, grad = norm(centred), random(N_POS, D_MODEL, seed=9), random(n_pos, 4, D_MODEL, seed=10)
    forward = torch.einsum("pd,pnd->n", held.linear(x)[:n_pos], grad)
    torch.testing.assert_close(torch.einsum("pd,pnd->n", x[:n_pos], held.transposed(grad)), forward)
    positions = torch.tensor([2, 0, 1, 2])
    at = held.transposed_at(grad[positions, torch.arange(4)], positions)
    torch.testing.assert_close(at, held.transposed(grad)[positions, torch.arange(4)])


@pytest.mark.parametrize(("n_heads", "n_kv"), [(4, 4), (4, 2), (3, 1)])
def test_attention(n_heads, n_kv) -> None:
    held, x = attention(n_heads, n_kv), random(2, N_POS, D_MODEL, seed=9)
    expected = torch.zeros_like(x)
    bias = torch.zeros(N_POS, D_MODEL, dtype=torch.float64)
    for head in range(n_heads):
        kv = head * n_kv // n_heads
        expected += torch.einsum("qk,nkd,de,ef->nqf", held.pattern[head], x, held.W_V[kv], held.W_O[head])
        bias += torch.einsum("qk,e,ef->qf", held.pattern[head], held.b_V[kv], held.W_O[head])
    torch.testing.assert_close(held.linear(x), expected)
    torch.testing.assert_close(held.bias(), bias + held.b_O)


@pytest.mark.parametrize("at_once", [2, 256])
@pytest.mark.parametrize("n_pos", [1, 4, N_POS])
@pytest.mark.parametrize(("n_heads", "n_kv"), [(4, 2), (3, 3)])
def test_attention_transposed(n_heads, n_kv, n_pos, at_once, monkeypatch) -> None:
    monkeypatch.setattr(linear_layers, "_QUERIES_AT_ONCE", at_once)
    held, x, grad = attention(n_heads, n_kv), random(N_POS, D_MODEL, seed=9), random(n_pos, 5, D_MODEL, seed=10)
    back = held.transposed(grad)
    forward = torch.einsum("pd,pnd->n", held.linear(x[None])[0, :n_pos], grad)
    torch.testing.assert_close(torch.einsum("pd,pnd->n", x[:n_pos], back), forward)


def test_attention_transposed_at_one_position() -> None:
    held = attention(4, 2)
    vectors, positions = random(3, D_MODEL, seed=11), torch.tensor([5, 0, 3])
    grad = torch.zeros(6, 3, D_MODEL, dtype=torch.float64)
    grad[positions, torch.arange(3)] = vectors
    torch.testing.assert_close(held.transposed_at(vectors, positions, 6), held.transposed(grad))
