"""Every figure of an evaluation against plain Hugging Face models and NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tc_adapters_lens.errors import DataError
from tc_adapters_lens.evaluation.faithfulness import Faithfulness, measure_faithfulness
from tc_adapters_lens.models.adapter_set import AdapterSet, AdapterSetInfo
from tc_adapters_lens.models.pair import load_base, load_pair
from tests.naive import Naive
from tests.tiny import D_MODEL, D_VOCAB, N_LAYERS, tiny_pair

N_FEATURES = 20
TOKENS = torch.randint(0, D_VOCAB, (5, 13), generator=torch.Generator().manual_seed(0))
MASK = torch.ones(5, 13, dtype=torch.bool)
MASK[0, 6:] = False
MASK[3, :9] = False


def random_state() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    shapes = {
        "W_enc": (D_MODEL, N_FEATURES),
        "b_enc": (N_FEATURES,),
        "W_dec": (N_FEATURES, D_MODEL),
        "b_dec": (D_MODEL,),
    }
    state = {n: torch.randn(N_LAYERS, *s, generator=generator, dtype=torch.float64) * 0.2 for n, s in shapes.items()}
    state["b_enc"][:, :4] -= 100  # features that never fire
    return state


def measure(family: str, batches, state=None) -> Faithfulness:
    base, target = tiny_pair(family)
    model = load_pair(base, target, dtype=torch.float64)
    adapters = AdapterSet.from_state(state or random_state(), AdapterSetInfo(model.pair))
    return measure_faithfulness(model, adapters, batches, load_base(base, dtype=torch.float64))


def log_softmax(logits: torch.Tensor) -> np.ndarray:
    x = logits.detach().numpy()[MASK.numpy()]
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


@pytest.mark.parametrize("family", ["qwen2", "neox"])
def test_every_figure_equals_numpy_on_plain_models(family: str) -> None:
    state = random_state()
    result = measure(family, [(TOKENS[:2], MASK[:2]), (TOKENS[2:], MASK[2:])])
    naive = Naive(family, [state[name] for name in ("W_enc", "b_enc", "W_dec", "b_dec")])
    mask, everything = MASK.numpy(), range(N_LAYERS)
    target_logits, target, _ = naive.run(TOKENS, range(0))
    logits, ours, features = naive.run(TOKENS, everything)
    log_p = log_softmax(target_logits)

    def kl(other: torch.Tensor) -> float:
        return float((np.exp(log_p) * (log_p - log_softmax(other))).sum(-1).mean())

    def error(other: torch.Tensor) -> float:
        return float((log_p.argmax(-1) != log_softmax(other).argmax(-1)).mean())

    zeros = Naive(family, [torch.zeros_like(p) for p in naive.params])
    hybrid = zeros.run(TOKENS, everything)[0]
    base = naive.base(TOKENS).logits
    close = {"rel": 1e-9, "abs": 1e-12}
    assert result.n_tokens == mask.sum()
    assert result.kl == pytest.approx(kl(logits), **close)
    assert result.top1_error == pytest.approx(error(logits))
    assert (result.hybrid.kl, result.hybrid.top1_error) == pytest.approx((kl(hybrid), error(hybrid)), **close)
    assert (result.base.kl, result.base.top1_error) == pytest.approx((kl(base), error(base)), **close)
    nmse = [
        float(((r - t).numpy()[mask] ** 2).sum() / (t.numpy()[mask] ** 2).sum())
        for r, t in zip(ours, target, strict=True)
    ]
    assert result.nmse_per_layer == pytest.approx(nmse, **close)
    assert result.nmse == pytest.approx(np.mean(nmse), **close)
    acts = [f.detach().numpy()[mask] for f in features]
    assert result.l0_per_layer == pytest.approx([(a > 0).sum(-1).mean() for a in acts])
    assert result.l0 == pytest.approx(np.mean([(a > 0).sum(-1).mean() for a in acts]))
    norms = np.linalg.norm(state["W_dec"].numpy(), axis=-1)
    assert result.l1 == pytest.approx(sum((a @ n).mean() for a, n in zip(acts, norms, strict=True)), **close)
    assert result.dead_features == sum(int((a.max(0) == 0).sum()) for a in acts) >= 4 * N_LAYERS
    assert result.n_features == N_LAYERS * N_FEATURES
    for cutoff in range(N_LAYERS + 1):
        for direction, replaced in (
            ("replacement_to_target", range(cutoff)),
            ("target_to_replacement", range(cutoff, N_LAYERS)),
        ):
            expected = kl(naive.run(TOKENS, replaced)[0])
            assert result.bridging_kl[direction][cutoff] == pytest.approx(expected, **close), (
                direction,
                cutoff,
            )


def test_batching_and_padding_change_nothing() -> None:
    whole = measure("qwen2", [(TOKENS, MASK)])
    padded = torch.nn.functional.pad(TOKENS, (0, 4), value=5), torch.nn.functional.pad(MASK, (0, 4))
    single = measure("qwen2", [(t[None], m[None]) for t, m in zip(*padded, strict=True)])
    for name in ("kl", "top1_error", "nmse", "l0", "l1", "dead_features"):
        assert getattr(single, name) == pytest.approx(getattr(whole, name), rel=1e-9), name


def test_fresh_adapters_are_the_hybrid() -> None:
    state = {name: torch.zeros_like(tensor) for name, tensor in random_state().items()}
    result = measure("qwen2", [(TOKENS, MASK)], state)
    assert result.kl == pytest.approx(result.hybrid.kl, rel=1e-12)
    assert result.l0 == 0
    assert result.dead_features == result.n_features


def test_nothing_that_counts_is_an_error() -> None:
    with pytest.raises(DataError, match="at least one position"):
        measure("qwen2", [(TOKENS, torch.zeros_like(MASK))])
