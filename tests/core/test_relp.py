"""The MLP as a linear map: its value, its coefficients by hand, and that `transposed` is the transposed of `linear`."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tc_adapters_lens.core.relp import LinearMlp, MlpWeights, Rule, slope

ACTIVATIONS = {"silu": F.silu, "gelu": F.gelu, "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"), "relu": F.relu}
N_POS, D_MODEL, D_MLP = 5, 6, 9


def weights(gated: bool, activation: str) -> MlpWeights:
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    W_gate = random(D_MODEL, D_MLP) if gated else None
    return MlpWeights(
        W_gate, random(D_MODEL, D_MLP), random(D_MLP), random(D_MLP, D_MODEL), random(D_MODEL), ACTIVATIONS[activation]
    )


def mlp(w: MlpWeights, x: Tensor) -> Tensor:
    if w.W_gate is None:
        return w.activation(x @ w.W_in + w.b_in) @ w.W_out + w.b_out
    return (w.activation(x @ w.W_gate) * (x @ w.W_in) + w.b_in) @ w.W_out + w.b_out


@pytest.fixture
def x() -> Tensor:
    return torch.randn(N_POS, D_MODEL, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


MAPS = [(True, "relp"), (True, "gate-detach"), (False, "relp")]


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(("gated", "rule"), MAPS)
def test_it_is_the_mlp_at_its_own_input(x, gated, rule: Rule, activation) -> None:
    w = weights(gated, activation)
    linear = w.linear_at(x, rule)
    torch.testing.assert_close(linear.linear(x) + linear.bias(), mlp(w, x))
    torch.testing.assert_close(linear.linear(3 * x), 3 * linear.linear(x))
    torch.testing.assert_close(linear.linear(torch.zeros_like(x)), torch.zeros_like(x))


def test_the_rules_by_hand() -> None:
    one = torch.ones(1, 1, dtype=torch.float64)
    w = MlpWeights(2 * one, 3 * one, 0 * one[0], 5 * one, 0 * one[0], F.silu)
    x = one  # gate 2, up 3, and 5 at the end
    sigmoid = float(torch.sigmoid(torch.tensor(2.0, dtype=torch.float64)))
    half = w.linear_at(x, "relp")
    assert float(half.c_gate) == pytest.approx(sigmoid * 3 / 2)  # of 2 sigmoid 3 one half by way of the gate
    assert float(half.c_up) == pytest.approx(2 * sigmoid / 2)  # and one by way of up
    assert float(half.linear(one)) == pytest.approx(2 * sigmoid * 3 * 5)
    detached = w.linear_at(x, "gate-detach")
    assert detached.c_gate is None
    assert float(detached.c_up) == pytest.approx(2 * sigmoid)


@pytest.mark.parametrize("n_pos", [1, 3, N_POS])
@pytest.mark.parametrize(("gated", "rule"), MAPS)
def test_transposed(x, gated, rule: Rule, n_pos) -> None:
    linear: LinearMlp = weights(gated, "silu").linear_at(x, rule)
    generator = torch.Generator().manual_seed(2)
    grad = torch.randn(n_pos, 4, D_MODEL, generator=generator, dtype=torch.float64)
    source = torch.randn(N_POS, D_MODEL, generator=generator, dtype=torch.float64)
    kept = grad.clone()
    back = linear.transposed(grad, n_pos)
    torch.testing.assert_close(grad, kept, rtol=0, atol=0)
    forward = torch.einsum("pd,pnd->n", linear.linear(source)[:n_pos], grad)
    torch.testing.assert_close(torch.einsum("pd,pnd->n", source[:n_pos], back), forward)


@pytest.mark.parametrize(("gated", "rule"), MAPS)
def test_transposed_as_a_matrix(x, gated, rule: Rule) -> None:
    linear = weights(gated, "silu").linear_at(x, rule)
    identity = torch.eye(D_MODEL, dtype=torch.float64).expand(N_POS, -1, -1)
    expected = linear.transposed(identity, N_POS)
    for pos in range(N_POS):
        torch.testing.assert_close(linear.matrix_transposed(pos), expected[pos])


def test_the_slope_at_zero() -> None:
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        g = torch.tensor([0.0, -0.0, 1.0, -2.0], dtype=dtype)
        found = slope(F.silu, g)
        torch.testing.assert_close(found, torch.sigmoid(g), rtol=1e-2 if dtype == torch.bfloat16 else 1e-6, atol=0)
    assert slope(F.gelu, torch.zeros(1)).item() == pytest.approx(0.5)


def test_a_plain_mlp_has_no_gate(x) -> None:
    with pytest.raises(ValueError, match=r"gate-detach needs gated MLPs\. Got plain ones; use relp\."):
        weights(False, "gelu").linear_at(x, "gate-detach")


def test_no_gradient_reaches_the_coefficients(x) -> None:
    leaf = x.clone().requires_grad_()
    linear = weights(True, "silu").linear_at(leaf)
    assert linear.c_gate is not None
    assert not linear.c_gate.requires_grad
    assert not linear.c_up.requires_grad
