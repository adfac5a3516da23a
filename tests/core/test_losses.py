"""Losses against arithmetic done by hand and against naive versions."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tc_adapters_lens.core.losses import chunked_kl, kl_divergence, masked_mean, nmse, sparsity

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


def random_case(n_resids: int = 3, dtype: torch.dtype = torch.float64):
    torch.manual_seed(0)
    unembed = random_unembed(dtype)
    target = torch.randn(2, 11, D_MODEL, dtype=dtype)
    resids = [torch.randn(2, 11, D_MODEL, dtype=dtype).requires_grad_() for _ in range(n_resids)]
    mask = ones(2, 11)
    mask[1, 4:] = False
    mask[0, 2] = False
    return unembed, target, resids, mask


def naive_kl(resids: list[Tensor], target: Tensor, unembed: Callable[[Tensor], Tensor], mask: Tensor) -> Tensor:
    return torch.stack([kl_divergence(unembed(target), unembed(resid))[mask].mean() for resid in resids])


class TestMaskedMean:
    def test_ignores_masked_positions(self):
        x = torch.tensor([[1.0, 2.0, 100.0], [6.0, math.nan, math.inf]])
        mask = torch.tensor([[True, True, False], [True, False, False]])
        assert masked_mean(x, mask) == 3  # (1 + 2 + 6) / 3

    def test_reduces_in_float32(self):
        x = torch.ones(1, 1001, dtype=torch.bfloat16)  # 1001 has no bfloat16
        assert masked_mean(x, ones(1, 1001)) == 1
        assert masked_mean(x, ones(1, 1001)).dtype == torch.float32
        assert masked_mean(x.double(), ones(1, 1001)).dtype == torch.float64

    def test_nothing_unmasked(self):
        with pytest.raises(ValueError, match="at least one unmasked position"):
            masked_mean(torch.ones(1, 2), ~ones(1, 2))


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
    def test_by_hand(self):
        target = torch.tensor([[[3.0, 4.0], [1.0, 0.0], [9.0, 9.0]]])
        resid = torch.tensor([[[3.0, 3.0], [2.0, 2.0], [0.0, 0.0]]])
        mask = torch.tensor([[True, True, False]])
        # errors 0+1 and 1+4, target squares 25 and 1
        torch.testing.assert_close(nmse(resid, target, mask), torch.tensor(6 / 26))

    def test_limits(self):
        target = torch.randn(2, 3, 4)
        assert nmse(target, target, ones(2, 3)) == 0
        assert nmse(torch.zeros_like(target), target, ones(2, 3)) == 1

    def test_is_a_ratio_of_sums(self):
        """A position with a large norm weighs more; the mean of per-position ratios would be 0.5."""
        target = torch.tensor([[[3.0], [1.0]]])
        resid = torch.tensor([[[3.0], [0.0]]])
        torch.testing.assert_close(nmse(resid, target, ones(1, 2)), torch.tensor(1 / 10))

    def test_target_receives_no_gradient(self):
        target, resid = torch.randn(1, 2, 3).requires_grad_(), torch.randn(1, 2, 3).requires_grad_()
        mask = torch.tensor([[True, False]])
        nmse(resid, target, mask).backward()
        assert target.grad is None
        assert resid.grad is not None
        assert (resid.grad[0, 1] == 0).all()
        by_hand = 2 * (resid - target)[0, 0] / target[0, 0].square().sum()
        torch.testing.assert_close(resid.grad[0, 0], by_hand.detach())

    def test_nothing_unmasked(self):
        with pytest.raises(ValueError, match="at least one unmasked position"):
            nmse(torch.ones(1, 2, 3), torch.ones(1, 2, 3), ~ones(1, 2))

    def test_half_precision_differences_are_exact(self):
        target = torch.full((1, 1, 1), 256.0, dtype=torch.bfloat16)
        resid = torch.full((1, 1, 1), 258.0, dtype=torch.bfloat16)
        assert nmse(resid, target, ones(1, 1)) == 4 / 65536


class TestSparsity:
    def test_by_hand(self):
        W_dec = torch.tensor([[3.0, 4.0], [0.0, 2.0]])  # norms 5 and 2
        acts = torch.tensor([[[1.0, 0.0], [2.0, 3.0], [100.0, 100.0]]])
        mask = torch.tensor([[True, True, False]])
        assert sparsity(acts, W_dec, mask) == 10.5  # (1*5 + (2*5 + 3*2)) / 2

    def test_gradients(self):
        W_dec = torch.tensor([[3.0, 4.0], [0.0, 2.0]]).requires_grad_()
        acts = torch.tensor([[[1.0, 0.0], [2.0, 3.0], [100.0, 100.0]]]).requires_grad_()
        sparsity(acts, W_dec, torch.tensor([[True, True, False]])).backward()
        # d/df = norm / positions; d/dW_dec = sum of f / positions * direction: 1.5 * [.6 .8], 1.5 * [0 1]
        torch.testing.assert_close(acts.grad, torch.tensor([[[2.5, 1.0], [2.5, 1.0], [0.0, 0.0]]]))
        torch.testing.assert_close(W_dec.grad, torch.tensor([[0.9, 1.2], [0.0, 1.5]]))

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_fresh_decoder_has_zero_gradients(self, dtype: torch.dtype):
        W_dec = torch.zeros(4, 3, dtype=dtype).requires_grad_()
        acts = torch.rand(1, 2, 4).to(dtype).requires_grad_()
        loss = sparsity(acts, W_dec, ones(1, 2))
        loss.backward()
        assert loss == 0
        assert W_dec.grad is not None
        assert acts.grad is not None
        assert (W_dec.grad == 0).all()
        assert (acts.grad == 0).all()

    def test_half_precision_is_reduced_in_float32_without_a_float_copy(self):
        acts = torch.ones(1, 1001, 8, dtype=torch.bfloat16).requires_grad_()
        with OutputSizes() as sizes:
            loss = sparsity(acts, torch.ones(8, 1), ones(1, 1001))
            loss.backward()
        assert loss == 8  # a sum of 1001 ones is not exact in bfloat16
        assert loss.dtype == torch.float32
        # the expanded gradient is a view of n_features numbers; it is all that has this shape in float32
        assert [dtype for numel, dtype in sizes.seen if numel == acts.numel()].count(torch.float32) <= 1
        assert acts.grad is not None
        assert acts.grad.dtype == torch.bfloat16

    def test_nothing_unmasked(self):
        with pytest.raises(ValueError, match="at least one unmasked position"):
            sparsity(torch.ones(1, 2, 3), torch.ones(3, 2), ~ones(1, 2))


class TestChunkedKL:
    @pytest.mark.parametrize("chunk_size", [1, 4, 7, 1000])
    def test_equals_naive(self, chunk_size: int):
        unembed, target, resids, mask = random_case()
        weights = torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64)

        naive = naive_kl(resids, target, unembed, mask)
        naive_grads = torch.autograd.grad(naive @ weights, resids)
        chunked = chunked_kl(resids, target, unembed, mask, chunk_size)
        grads = torch.autograd.grad(chunked @ weights, resids)

        torch.testing.assert_close(chunked, naive, rtol=0, atol=1e-10)
        for grad, naive_grad in zip(grads, naive_grads, strict=True):
            torch.testing.assert_close(grad, naive_grad, rtol=0, atol=1e-10)

    def test_gradcheck(self):
        unembed, target, resids, mask = random_case(2)
        streams = [resid.detach()[:, :3].requires_grad_() for resid in resids]
        assert torch.autograd.gradcheck(
            lambda *streams: chunked_kl(streams, target[:, :3], unembed, mask[:, :3], 2),
            streams,
            fast_mode=True,
        )

    def test_gradient_goes_on_to_what_made_the_stream(self):
        unembed, target, (resid, *_), mask = random_case()
        scale = torch.ones((), dtype=torch.float64, requires_grad=True)
        chunked_kl([resid.detach() * scale + 1], target, unembed, mask)[0].backward()
        grad, scale.grad = scale.grad, None
        naive_kl([resid.detach() * scale + 1], target, unembed, mask)[0].backward()
        torch.testing.assert_close(grad, scale.grad)

    def test_only_streams_that_want_a_gradient_get_one(self):
        unembed, target, resids, mask = random_case(2)
        target.requires_grad_()
        chunked_kl([resids[0], resids[1].detach()], target, unembed, mask).sum().backward()
        assert resids[0].grad is not None
        assert resids[1].grad is None
        assert target.grad is None

    def test_masked_positions_have_no_influence(self):
        unembed, target, resids, mask = random_case(1)
        garbage = resids[0].detach().clone()
        garbage[~mask] = math.nan
        garbage.requires_grad_()
        expected, actual = (chunked_kl([r], target, unembed, mask) for r in (resids[0], garbage))
        assert torch.equal(expected, actual)
        actual[0].backward()
        assert garbage.grad is not None
        assert (garbage.grad[~mask] == 0).all()

    def test_identical_streams(self):
        unembed, target, _, mask = random_case(1)
        assert chunked_kl([target], target, unembed, mask) == 0

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_low_precision(self, dtype: torch.dtype):
        unembed, target, resids, mask = random_case(1, dtype)
        chunked = chunked_kl(resids, target, unembed, mask, 4)
        naive = naive_kl(resids, target, unembed, mask)
        assert chunked.dtype == torch.float32
        torch.testing.assert_close(chunked, naive)
        (grad,) = torch.autograd.grad(chunked.sum(), resids)
        (naive_grad,) = torch.autograd.grad(naive.sum(), resids)
        assert grad.dtype == dtype
        tolerance = {torch.float32: 1e-6, torch.bfloat16: 2e-3}[dtype]
        torch.testing.assert_close(grad, naive_grad, rtol=0, atol=tolerance)

    def test_never_holds_all_logits(self):
        unembed, target, resids, mask = random_case()
        with OutputSizes() as sizes:
            chunked_kl(resids, target, unembed, mask, 2).sum().backward()
        assert sizes.largest() <= max(2 * D_VOCAB, target.numel(), D_MODEL * D_VOCAB)
        assert sizes.largest() < int(mask.sum()) * D_VOCAB

    def test_keeps_only_gradients_for_backward(self):
        unembed, target, resids, mask = random_case(2)
        loss = chunked_kl([resids[0], resids[1].detach()], target, unembed, mask)
        gradient, nothing = loss.grad_fn.saved_tensors  # pyright: ignore[reportOptionalMemberAccess, reportAttributeAccessIssue]
        assert gradient.shape == target.shape
        assert nothing is None

    def test_no_gradient_work_when_gradients_are_off(self):
        unembed, target, resids, mask = random_case(1)
        modes = []

        def watched(resid: Tensor) -> Tensor:
            modes.append(torch.is_grad_enabled())
            return unembed(resid)

        with torch.no_grad():
            quiet = chunked_kl(resids, target, watched, mask)
        assert not any(modes)
        assert not quiet.requires_grad
        assert torch.equal(quiet, chunked_kl(resids, target, unembed, mask))

    def test_wrong_use(self):
        unembed, target, resids, mask = random_case(1)
        with pytest.raises(ValueError, match="at least one unmasked position"):
            chunked_kl(resids, target, unembed, torch.zeros_like(mask))
        with pytest.raises(ValueError, match="Got 0 streams and 4"):
            chunked_kl([], target, unembed, mask, 4)
        with pytest.raises(ValueError, match="Got 1 streams and 0"):
            chunked_kl(resids, target, unembed, mask, 0)
