"""Every figure of an evaluation against plain Hugging Face models and NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tc_adapters_lens.errors import DataError
from tc_adapters_lens.evaluation.bootstrap import Bootstrap
from tc_adapters_lens.evaluation.faithfulness import FREQUENCY_EDGES, Faithfulness, measure_faithfulness
from tc_adapters_lens.evaluation.partial import measure_partial
from tc_adapters_lens.evaluation.variants import (
    base_variant,
    reverse_variant,
    shuffled_order,
    shuffled_variant,
)
from tc_adapters_lens.models.adapter_set import AdapterSet, AdapterSetInfo
from tc_adapters_lens.models.pair import load_base, load_pair
from tests.naive import Naive, in_float64
from tests.tiny import D_MODEL, D_VOCAB, N_LAYERS, hybrid, tiny_pair

N_FEATURES = 20
TOKENS = torch.randint(0, D_VOCAB, (5, 13), generator=torch.Generator().manual_seed(0))
MASK = torch.ones(5, 13, dtype=torch.bool)
MASK[0, 6:] = False
MASK[3, :9] = False
NO_INTERVALS = Bootstrap(0)
SPLIT = 0.04  # random models are never sure of anything; this halves the positions
CLOSE = {"rel": 1e-9, "abs": 1e-12}


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


def pair_and_adapters(family: str, state=None):
    base, target = tiny_pair(family)
    model = load_pair(base, target, dtype=torch.float64)
    adapters = AdapterSet.from_state(state or random_state(), AdapterSetInfo(model.pair))
    return model, adapters, load_base(base, dtype=torch.float64, pair=model)


def measure(batches, state=None, family: str = "qwen2", bootstrap: Bootstrap = NO_INTERVALS, **options) -> Faithfulness:
    model, adapters, base = pair_and_adapters(family, state)
    variants = {
        "base": base_variant(model, base),
        "reverse": reverse_variant(model, base),
        "shuffled": shuffled_variant(model, adapters, [2, 0, 1]),
    }
    return measure_faithfulness(model, adapters, batches, bootstrap, variants, **options)


def log_softmax(logits: torch.Tensor) -> np.ndarray:
    x = logits.detach().numpy()
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def check_agreement(found, target_logits: torch.Tensor, logits: torch.Tensor, hybrid_ce: float) -> None:
    """One model's figures, positions split at `SPLIT`."""
    mask = MASK.numpy()
    log_p, log_q = log_softmax(target_logits), log_softmax(logits)
    kl = (np.exp(log_p) * (log_p - log_q)).sum(-1)
    error = log_p.argmax(-1) != log_q.argmax(-1)
    sure = np.exp(log_p).max(-1) > SPLIT
    assert found.kl.value == pytest.approx(kl[mask].mean(), **CLOSE)
    assert found.top1_error.value == pytest.approx(error[mask].mean())
    for where, part in ((mask & sure, found.sure), (mask & ~sure, found.unsure)):
        if where.any():
            assert part.kl.value == pytest.approx(kl[where].mean(), **CLOSE)
            assert part.top1_error.value == pytest.approx(error[where].mean())
        else:
            assert part is None
    assert found.cross_entropy.value == pytest.approx(cross_entropy(logits), **CLOSE)
    recovered = (hybrid_ce - cross_entropy(logits)) / (hybrid_ce - cross_entropy(target_logits))
    assert found.loss_recovered.value == pytest.approx(recovered, rel=1e-7, abs=1e-9)


def cross_entropy(logits: torch.Tensor) -> float:
    """Of the next token, where both it and the position before it count."""
    log_q, tokens = log_softmax(logits), TOKENS.numpy()
    there = [(b, t) for b, t in zip(*MASK.numpy().nonzero(), strict=True) if t + 1 < 13 and MASK[b, t + 1]]
    return float(np.mean([-log_q[b, t, tokens[b, t + 1]] for b, t in there]))


@pytest.mark.parametrize("family", ["qwen2", "neox"])
def test_every_figure_equals_numpy_on_plain_models(family: str, monkeypatch) -> None:
    monkeypatch.setattr("tc_adapters_lens.evaluation.predictions.SURE", SPLIT)
    state = random_state()
    result = measure([(TOKENS[:2], MASK[:2]), (TOKENS[2:], MASK[2:])], state, family)
    params = [state[name] for name in ("W_enc", "b_enc", "W_dec", "b_dec")]
    naive = Naive(family, params)
    everything = range(N_LAYERS)
    target_logits, target, _ = naive.run(TOKENS, range(0))
    logits, ours, features = naive.run(TOKENS, everything)
    base, whole_target = (in_float64(m) for m in tiny_pair(family))
    of = {
        "replacement": logits,
        "hybrid": in_float64(hybrid(base, whole_target))(TOKENS).logits,
        "base": base(TOKENS).logits,
        "reverse": in_float64(hybrid(whole_target, base))(TOKENS).logits,
        "shuffled": Naive(family, [p[[2, 0, 1]] for p in params]).run(TOKENS, everything)[0],
    }
    assert result.models.keys() == of.keys()
    for name, its_logits in of.items():
        check_agreement(result.models[name], target_logits, its_logits, cross_entropy(of["hybrid"]))
    assert result.models["base"].sure is not None
    assert result.models["base"].unsure is not None
    check_target(result, log_softmax(target_logits), cross_entropy(target_logits))

    mask = MASK.numpy()
    assert (result.n_tokens, result.n_sequences) == (mask.sum(), 5)
    nmse = [
        float(((r - t).numpy()[mask] ** 2).sum() / (t.numpy()[mask] ** 2).sum())
        for r, t in zip(ours, target, strict=True)
    ]
    assert values(result.nmse_per_layer) == pytest.approx(nmse, **CLOSE)
    assert result.nmse.value == pytest.approx(np.mean(nmse), **CLOSE)
    acts = [f.detach().numpy()[mask] for f in features]
    assert values(result.l0_per_layer) == pytest.approx([(a > 0).sum(-1).mean() for a in acts])
    assert result.l0.value == pytest.approx(np.mean([(a > 0).sum(-1).mean() for a in acts]))
    norms = np.linalg.norm(state["W_dec"].numpy(), axis=-1)
    assert result.l1.value == pytest.approx(sum((a @ n).mean() for a, n in zip(acts, norms, strict=True)), **CLOSE)
    for layer, a in enumerate(acts):
        frequencies = (a > 0).mean(0)
        never = int((frequencies == 0).sum())
        assert result.dead_per_layer[layer].value == never >= 4
        expected = np.histogram(frequencies[frequencies > 0], FREQUENCY_EDGES)[0]
        expected[0] = never
        assert values(result.frequency.per_layer[layer]) == expected.tolist()
    assert result.dead.value == sum(int((a.max(0) == 0).sum()) for a in acts)
    assert (result.n_layers, result.n_features) == (N_LAYERS, N_FEATURES)


def check_target(result: Faithfulness, log_p: np.ndarray, its_cross_entropy: float) -> None:
    p = np.exp(log_p)[MASK.numpy()]
    assert result.target.cross_entropy.value == pytest.approx(its_cross_entropy, **CLOSE)
    assert result.target.entropy.value == pytest.approx(-(p * np.log(p)).sum(-1).mean(), **CLOSE)
    assert result.target.sure_share.value == pytest.approx((p.max(-1) > SPLIT).mean())


def values(found) -> list[float]:
    return [estimate.value for estimate in found]


@pytest.mark.parametrize("family", ["qwen2", "neox"])
def test_partial_replacement_equals_plain_models(family: str) -> None:
    state = random_state()
    model, adapters, _ = pair_and_adapters(family, state)
    found = measure_partial(model, adapters, [(TOKENS[:2], MASK[:2]), (TOKENS[2:], MASK[2:])], NO_INTERVALS)
    naive = Naive(family, [state[name] for name in ("W_enc", "b_enc", "W_dec", "b_dec")])
    log_p = log_softmax(naive.run(TOKENS, range(0))[0])[MASK.numpy()]

    def kl(replaced: range) -> float:
        log_q = log_softmax(naive.run(TOKENS, replaced)[0])[MASK.numpy()]
        return float((np.exp(log_p) * (log_p - log_q)).sum(-1).mean())

    assert values(found.first) == pytest.approx([kl(range(k)) for k in range(N_LAYERS + 1)], **CLOSE)
    assert values(found.last) == pytest.approx(
        [kl(range(N_LAYERS - k, N_LAYERS)) for k in range(N_LAYERS + 1)], **CLOSE
    )
    assert values(found.single) == pytest.approx([kl(range(k, k + 1)) for k in range(N_LAYERS)], **CLOSE)
    assert found.n_sequences == 5


def test_partial_replacement_of_a_single_layer() -> None:
    base, target = tiny_pair("qwen2", num_hidden_layers=1)
    model = load_pair(base, target, dtype=torch.float64)
    state = {name: tensor[:1] for name, tensor in random_state().items()}
    adapters = AdapterSet.from_state(state, AdapterSetInfo(model.pair))
    found = measure_partial(model, adapters, [(TOKENS, MASK)], NO_INTERVALS)
    assert found.first == found.last
    assert found.single == found.first[1:]
    assert found.single[0].value > 0


def sequences(n: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    tokens = torch.randint(0, D_VOCAB, (n, 7), generator=torch.Generator().manual_seed(3))
    mask = torch.ones_like(tokens, dtype=torch.bool)
    mask[:, 0] = False
    mask[1, 4:] = False
    return [(tokens[i : i + 1], mask[i : i + 1]) for i in range(n)]


def test_batching_and_padding_change_nothing_intervals_included() -> None:
    single = sequences(12)
    padded = [(torch.nn.functional.pad(t, (0, 4), value=5), torch.nn.functional.pad(m, (0, 4))) for t, m in single]
    batched = [tuple(torch.cat(parts) for parts in zip(*single[i : i + 4], strict=True)) for i in (0, 4, 8)]
    options = {"bootstrap": Bootstrap(100, seed=5)}
    alone, wide, together = (measure(b, **options) for b in (single, padded, batched))
    for other in (wide, together):
        for figure in ("nmse", "l0", "l1", "dead"):
            ours, theirs = getattr(alone, figure), getattr(other, figure)
            assert (ours.value, ours.low, ours.high) == pytest.approx((theirs.value, theirs.low, theirs.high)), figure
        for name, agreement in alone.models.items():
            kl, same = agreement.kl, other.models[name].kl
            assert (kl.value, kl.low, kl.high) == pytest.approx((same.value, same.low, same.high), rel=1e-9), name
            assert kl.low < kl.value < kl.high


def test_fresh_adapters_are_the_hybrid() -> None:
    state = {name: torch.zeros_like(tensor) for name, tensor in random_state().items()}
    result = measure([(TOKENS, MASK)], state)
    assert result.models["replacement"].kl.value == pytest.approx(result.models["hybrid"].kl.value, rel=1e-12)
    assert result.models["hybrid"].loss_recovered.value == 0
    assert result.l0.value == 0
    assert result.dead.value == N_LAYERS * N_FEATURES


def test_shuffling_leaves_no_layer_its_own_adapter() -> None:
    for seed in range(20):
        order = shuffled_order(4, seed)
        assert sorted(order) == [0, 1, 2, 3]
        assert all(layer != other for layer, other in enumerate(order))
    assert shuffled_order(1, 0) == [0]


def test_nothing_that_counts_is_an_error() -> None:
    with pytest.raises(DataError, match="at least one position"):
        measure([(TOKENS, torch.zeros_like(MASK))])


def test_too_few_sequences_for_intervals() -> None:
    with pytest.raises(DataError, match=r"at least 10 sequences.*Got 5"):
        measure([(TOKENS, MASK)], bootstrap=Bootstrap(100))


def test_broken_predictions_are_one_line() -> None:
    state = random_state()
    state["b_dec"][1] = float("inf")
    with pytest.raises(DataError, match="must be finite"):
        measure([(TOKENS, MASK)], state)
