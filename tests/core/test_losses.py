"""Losses against arithmetic done by hand and against naive versions."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tc_adapters_lens.core.losses import chunked_kl, kl_divergence, squared_error, squared_norm, weighted_l1

D_MODEL, D_VOCAB = 6, 50


class OutputSizes(TorchDispatchMode):
    """Records (numel, dtype) of every tensor that an operation returns."""

    def __init__(self):
        super().__init__()
        self.seen: list[tuple[int, torch.dtype]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(tensor, Tensor):
                self.seen.append((tensor.numel(), tensor.dtype))
        return out

    def largest(self, dtype: torch.dtype | None = None) -> int:
        return max((numel for numel, seen in self.seen if dtype in (None, seen)), default=0)


def ones(*shape: int) -> Tensor:
    return torch.ones(shape, dtype=torch.bool)


def random_unembed(dtype: torch.dtype = torch.float64) -> Callable[[Tensor], Tensor]:
    """A final norm, an unembedding and a soft cap, as a model's end has them."""
    weight = torch.randn(D_MODEL, D_VOCAB, dtype=dtype)

    def unembed(resid: Tensor) -> Tensor:
        normed = resid / resid.square().mean(-1, keepdim=True).sqrt()
        return 5 * torch.tanh(normed @ weight / 5)

    return unembed


def random_case(dtype: torch.dtype = torch.float64):
    """unembed, the target's stream, another stream, a mask, and the mask as positions."""
    torch.manual_seed(0)
    unembed = random_unembed(dtype)
    target = torch.randn(2, 11, D_MODEL, dtype=dtype)
    resid = torch.randn(2, 11, D_MODEL, dtype=dtype).requires_grad_()
    mask = ones(2, 11)
    mask[1, 4:] = False
    mask[0, 2] = False
    return unembed, target, resid, mask, mask.flatten().nonzero().squeeze(-1)


def naive_kl(resid: Tensor, target: Tensor, unembed: Callable[[Tensor], Tensor], mask: Tensor) -> Tensor:
    return kl_divergence(unembed(target), unembed(resid))[mask].sum()


class TestKL:
    def test_by_hand(self):
        target = torch.tensor([[[0.0, 0.0]]])  # p  = 1/2, 1/2
        other = torch.tensor([[[math.log(3.0), 0.0]]])  # p' = 3/4, 1/4
        by_hand = 0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25)
        torch.testing.assert_close(kl_divergence(target, other), torch.tensor([[by_hand]]))

    def test_direction(self):
        target = torch.tensor([[[math.log(3.0), 0.0]]])
        other = torch.tensor([[[0.0, 0.0]]])
        by_hand = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
        torch.testing.assert_close(kl_divergence(target, other), torch.tensor([[by_hand]]))

    def test_equal_distributions(self):
        logits = torch.randn(2, 3, 7)
        assert (kl_divergence(logits, logits) == 0).all()

    def test_logits_gradient_is_difference_of_probabilities(self):
        target, logits = torch.randn(1, 2, 5).requires_grad_(), torch.randn(1, 2, 5).requires_grad_()
        kl_divergence(target, logits).sum().backward()
        assert target.grad is None
        torch.testing.assert_close(logits.grad, logits.softmax(-1).detach() - target.softmax(-1).detach())

    def test_half_precision_is_reduced_in_float32(self):
        target, logits = torch.randn(1, 2, 5).bfloat16(), torch.randn(1, 2, 5).bfloat16()
        kl = kl_divergence(target, logits)
        assert kl.dtype == torch.float32
        torch.testing.assert_close(kl, kl_divergence(target.float(), logits.float()))


class TestNMSE:
    """NMSE is squared_error / squared_norm."""

    def test_by_hand(self):
        target = torch.tensor([[[3.0, 4.0], [1.0, 0.0], [9.0, 9.0]]])
        resid = torch.tensor([[[3.0, 3.0], [2.0, 2.0], [0.0, 0.0]]])
        mask = torch.tensor([[True, True, False]])
        assert squared_error(resid, target, mask) == 6  # 0 + 1 and 1 + 4
        assert squared_norm(target, mask) == 26  # 25 and 1
        assert squared_error(resid, target) == 6 + 162
        assert squared_norm(target) == 26 + 162

    def test_limits(self):
        target = torch.randn(2, 3, 4)
        assert squared_error(target, target, ones(2, 3)) == 0
        torch.testing.assert_close(squared_error(torch.zeros_like(target), target), squared_norm(target))

    @pytest.mark.parametrize("mask", [torch.tensor([[True, False]]), None])
    def test_gradient(self, mask: Tensor | None):
        target, resid = torch.randn(1, 2, 3).requires_grad_(), torch.randn(1, 2, 3).requires_grad_()
        (5 * squared_error(resid, target, mask)).backward()
        assert target.grad is None
        by_hand = 5 * 2 * (resid - target).detach()
        if mask is not None:
            by_hand[0, 1] = 0
        torch.testing.assert_close(resid.grad, by_hand)
        assert not squared_norm(target).requires_grad

    def test_gradcheck(self):
        resid, target = (torch.randn(1, 3, 4, dtype=torch.float64) for _ in range(2))
        mask = torch.tensor([[True, True, False]])
        assert torch.autograd.gradcheck(lambda r: squared_error(r, target, mask), resid.requires_grad_())

    def test_what_masked_positions_hold_has_no_influence(self):
        resid = torch.tensor([[[1.0], [math.nan], [math.inf]]]).requires_grad_()
        target = torch.tensor([[[3.0], [math.inf], [math.nan]]])
        mask = torch.tensor([[True, False, False]])
        assert squared_norm(target, mask) == 9
        error = squared_error(resid, target, mask)
        error.backward()
        assert error == 4
        torch.testing.assert_close(resid.grad, torch.tensor([[[-4.0], [0.0], [0.0]]]))

    def test_nothing_is_kept_but_the_streams(self):
        resid, target = torch.randn(1, 2, 3).requires_grad_(), torch.randn(1, 2, 3)
        kept: list[Tensor] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
            squared_error(resid, target)
        assert {t.data_ptr() for t in kept} == {resid.data_ptr(), target.data_ptr()}

    def test_half_precision_differences_are_exact(self):
        target = torch.full((1, 1, 1), 256.0, dtype=torch.bfloat16)
        resid = torch.full((1, 1, 1), 258.0, dtype=torch.bfloat16).requires_grad_()
        assert squared_error(resid, target) / squared_norm(target) == 4 / 65536
        squared_error(resid, target).backward()
        assert resid.grad is not None
        assert resid.grad.dtype == torch.bfloat16


class TestWeightedL1:
    def test_by_hand(self):
        W_dec = torch.tensor([[3.0, 4.0], [0.0, 2.0]]).requires_grad_()  # norms 5 and 2
        totals = torch.tensor([3.0, 3.0]).requires_grad_()
        l1 = weighted_l1(totals, W_dec)
        l1.backward()
        assert l1 == 21  # 3*5 + 3*2
        torch.testing.assert_close(totals.grad, torch.tensor([5.0, 2.0]))
        torch.testing.assert_close(W_dec.grad, torch.tensor([[1.8, 2.4], [0.0, 3.0]]))  # 3 * direction

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_fresh_decoder_has_zero_gradients(self, dtype: torch.dtype):
        W_dec = torch.zeros(4, 3, dtype=dtype).requires_grad_()
        totals = torch.rand(4).requires_grad_()
        loss = weighted_l1(totals, W_dec)
        loss.backward()
        assert loss == 0
        assert loss.dtype == torch.float32
        assert W_dec.grad is not None
        assert totals.grad is not None
        assert (W_dec.grad == 0).all()
        assert (totals.grad == 0).all()


class TestChunkedKL:
    """A sum over positions; `naive` holds all logits."""

    @pytest.mark.parametrize("chunk_size", [1, 4, 7, 1000])
    def test_equals_naive(self, chunk_size: int):
        unembed, target, resid, mask, positions = random_case()
        naive = naive_kl(resid, target, unembed, mask)
        (naive_grad,) = torch.autograd.grad(3 * naive, resid)
        chunked = chunked_kl(resid, target, unembed, positions, chunk_size)
        (grad,) = torch.autograd.grad(3 * chunked, resid)
        torch.testing.assert_close(chunked, naive, rtol=0, atol=1e-9)
        torch.testing.assert_close(grad, naive_grad, rtol=0, atol=1e-9)

    def test_gradcheck(self):
        unembed, target, resid, _, _ = random_case()
        positions = torch.tensor([0, 2, 3])
        assert torch.autograd.gradcheck(
            lambda r: chunked_kl(r, target, unembed, positions, 2), resid.detach().requires_grad_(), fast_mode=True
        )

    def test_gradient_goes_on_to_what_made_the_stream(self):
        unembed, target, resid, mask, positions = random_case()
        scale = torch.ones((), dtype=torch.float64, requires_grad=True)
        chunked_kl(resid.detach() * scale + 1, target, unembed, positions).backward()
        grad, scale.grad = scale.grad, None
        naive_kl(resid.detach() * scale + 1, target, unembed, mask).backward()
        torch.testing.assert_close(grad, scale.grad)

    def test_the_target_gets_no_gradient(self):
        unembed, target, resid, _, positions = random_case()
        target.requires_grad_()
        chunked_kl(resid, target, unembed, positions).backward()
        assert resid.grad is not None
        assert target.grad is None

    def test_other_positions_have_no_influence(self):
        unembed, target, resid, mask, positions = random_case()
        garbage = resid.detach().clone()
        garbage[~mask] = math.nan
        garbage.requires_grad_()
        expected, actual = (chunked_kl(r, target, unembed, positions) for r in (resid, garbage))
        assert torch.equal(expected, actual)
        actual.backward()
        assert garbage.grad is not None
        assert (garbage.grad[~mask] == 0).all()

    def test_identical_streams_and_no_positions(self):
        unembed, target, resid, _, positions = random_case()
        assert chunked_kl(target, target, unembed, positions) == 0
        nothing = chunked_kl(resid, target, unembed, positions[:0])
        nothing.backward()
        assert nothing == 0
        assert resid.grad is not None
        assert not resid.grad.any()

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_low_precision(self, dtype: torch.dtype):
        unembed, target, resid, mask, positions = random_case(dtype)
        chunked = chunked_kl(resid, target, unembed, positions, 4)
        naive = naive_kl(resid, target, unembed, mask)
        assert chunked.dtype == torch.float32
        torch.testing.assert_close(chunked, naive)
        (grad,) = torch.autograd.grad(chunked, resid)
        (naive_grad,) = torch.autograd.grad(naive, resid)
        assert grad.dtype == dtype
        tolerance = {torch.float32: 1e-5, torch.bfloat16: 3e-2}[dtype]
        torch.testing.assert_close(grad, naive_grad, rtol=tolerance, atol=tolerance)

    def test_never_holds_all_logits(self):
        unembed, target, resid, _, positions = random_case()
        with OutputSizes() as sizes:
            chunked_kl(resid, target, unembed, positions, 2).backward()
        assert sizes.largest() <= max(2 * D_VOCAB, target.numel(), D_MODEL * D_VOCAB)
        assert sizes.largest() < len(positions) * D_VOCAB

    def test_keeps_only_the_gradient_for_backward(self):
        unembed, target, resid, _, positions = random_case()
        loss = chunked_kl(resid, target, unembed, positions)
        (gradient,) = loss.grad_fn.saved_tensors  # pyright: ignore[reportOptionalMemberAccess, reportAttributeAccessIssue]
        assert gradient.shape == target.shape

    @pytest.mark.parametrize("why", ["no_grad", "detached"])
    def test_no_gradient_work_when_none_is_wanted(self, why: str):
        unembed, target, resid, _, positions = random_case()
        modes = []

        def watched(resid: Tensor) -> Tensor:
            modes.append(torch.is_grad_enabled())
            return unembed(resid)

        with torch.set_grad_enabled(why != "no_grad"):
            quiet = chunked_kl(resid.detach() if why == "detached" else resid, target, watched, positions)
        assert not any(modes)
        assert not quiet.requires_grad
        assert torch.equal(quiet, chunked_kl(resid, target, unembed, positions))

    def test_wrong_use(self):
        unembed, target, resid, _, positions = random_case()
        with pytest.raises(ValueError, match="Got 0"):
            chunked_kl(resid, target, unembed, positions, 0)
