"""The benchmark of the training step: its contenders compute the same, and it counts what torch counts."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from scripts import bench_features, bench_measure, bench_train
from scripts.bench_measure import Watch, refusal, saved_bytes, shares, watched_step
from scripts.bench_steps import PARTS, Floor, Naive, Ours, Shape, Subject
from tc_adapters_lens.features.collect import Keeping

SHAPE = Shape(
    d_model=32, n_layers=3, n_heads=4, n_kv_heads=2, d_mlp=48, n_features=40, d_vocab=97, length=24, batch=2, l0=10.0
)
# Torch's counter knows the attention kernels of accelerators only.
ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: lambda grad, q, k, v, *_, **__: (
        sdpa_backward_flop_count(grad, q, k, v)
    ),
}


@pytest.fixture(scope="module")
def subject() -> Subject:
    return Subject(SHAPE)


@pytest.mark.parametrize("cutoff", range(SHAPE.n_layers + 1))
@pytest.mark.parametrize(("eager", "shared"), [(True, False), (False, False), (False, True)])
def test_naive_and_our_losses_are_equal(subject, cutoff, eager, shared):
    naive, ours = Naive(subject, eager, shared), Ours(subject)
    before = [layer.W_enc.clone() for layer in naive.layers]
    expected, found = naive.step(subject.tokens, cutoff), ours.step(subject.tokens, cutoff)
    assert set(expected) == set(found)
    for term, value in found.items():
        torch.testing.assert_close(float(value), float(expected[term]), rtol=2e-4, atol=1e-6, msg=term)
    assert 0.6 * SHAPE.l0 < found["l0"] < 1.4 * SHAPE.l0
    for layer, W_enc in zip(naive.layers, before, strict=True):
        torch.testing.assert_close(layer.W_enc, W_enc)  # a repetition starts where the one before it did


def counted_by_torch(run) -> int:
    with FlopCounterMode(display=False, custom_mapping=ATTENTION) as counter:
        run()
    return counter.get_total_flops()


def layer_flops(shape: Shape) -> dict[str, int]:
    """Multiplications and additions of a layer's parts, for one forward pass."""
    n, d, d_head = shape.n_tokens, shape.d_model, shape.d_model // shape.n_heads
    qkv = 2 * n * d * d_head * (shape.n_heads + 2 * shape.n_kv_heads)
    scores = 2 * shape.batch * shape.n_heads * shape.length**2 * d_head
    return {
        "projections": qkv + 2 * n * d * d_head * shape.n_heads,
        "scores": scores,
        "mlp": 3 * 2 * n * d * shape.d_mlp,
        "adapter": 2 * 2 * n * d * shape.n_features,
        "unembedding": 2 * n * d * shape.d_vocab,
    }


@pytest.mark.parametrize("cutoff", range(SHAPE.n_layers + 1))
def test_the_floor_is_what_an_ideal_step_takes(subject, cutoff):
    part = layer_flops(SHAPE)
    attention, attention_backward = part["projections"] + 2 * part["scores"], part["projections"] + 5 * part["scores"]
    n_layers, bridged = SHAPE.n_layers, 0 < cutoff < SHAPE.n_layers
    bridge = n_layers - cutoff if bridged else 0
    forward = n_layers * (attention + part["mlp"])  # target
    forward += (n_layers - 1) * attention + n_layers * (part["mlp"] + part["adapter"])
    forward += 2 * max(0, bridge - 1) * attention + bridge * (2 * part["mlp"] + part["adapter"])
    backward = (n_layers - 1) * (attention_backward + part["mlp"] + 2 * part["adapter"]) + 1.5 * part["adapter"]
    if bridged:
        backward += 2 * (bridge - 1) * (attention_backward + part["mlp"]) + part["mlp"]
        backward += (2 * bridge - 0.5) * part["adapter"]
    n_streams = 3 if bridged else 1
    expected = forward + backward + (1 + 2 * n_streams) * part["unembedding"]

    floor = Floor(subject)
    watch, _ = watched_step(floor, subject.tokens, cutoff)
    assert watch.matmul_flops + watch.attention_flops == expected
    assert counted_by_torch(lambda: floor.step(subject.tokens, cutoff)) == expected

    ours, _ = watched_step(Ours(subject), subject.tokens, cutoff)
    again = (1 + 2 * bridged) * attention + bridged * (attention_backward + 2 * part["unembedding"])
    assert expected <= ours.matmul_flops + ours.attention_flops <= expected + again
    assert watched_step(Floor(subject, active_only=True), subject.tokens, cutoff)[0].matmul_flops < watch.matmul_flops


def test_six_passes_of_the_naive_step_are_counted(subject):
    """At cutoff 0: two target passes, two replacement passes, one half of bridging; three unembedded with gradient."""
    part = layer_flops(SHAPE)
    attention, attention_backward = part["projections"] + 2 * part["scores"], part["projections"] + 5 * part["scores"]
    n_layers = SHAPE.n_layers
    forward = n_layers * (5 * (attention + part["mlp"]) + 3 * part["adapter"]) + 3 * part["unembedding"]
    backward = 3 * ((n_layers - 1) * (attention_backward + part["mlp"] + 2 * part["adapter"]) + 1.5 * part["adapter"])
    naive = Naive(subject, eager=False)
    expected = forward + backward + 2 * part["unembedding"]
    assert counted_by_torch(lambda: naive.step(subject.tokens, 0)) == expected
    watch, _ = watched_step(naive, subject.tokens, 0)
    assert watch.matmul_flops + watch.attention_flops == expected


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support")
def test_bytes_are_those_of_storages_made_inside():
    given = torch.zeros(100)
    with Watch() as watch:
        given.add_(1)
        assert watch.peak == 0
        made = given + 1
        made.view(10, 10).mul_(2)
        assert watch.now == watch.peak == 400
        more = torch.cat([made, made])
        assert watch.peak == 400 + 800
        del made, more
        assert watch.now == 0
        parts = torch.arange(3), torch.arange(2), torch.ones(2)
        sparse = torch.sparse_csr_tensor(*parts, (2, 2), check_invariants=False)
        sparse.values().mul_(2)
        assert watch.now == sum(part.nbytes for part in parts)


def test_what_is_kept_for_backward_is_counted_once_and_without_parameters():
    weight = torch.randn(8, 8, requires_grad=True)
    x = torch.randn(4, 8)
    assert saved_bytes(lambda: (x @ weight).square(), [weight]) == 2 * x.nbytes
    assert saved_bytes(lambda: (x @ weight).square(), [weight, x]) == x.nbytes
    assert saved_bytes(lambda: (x @ weight).exp().square(), [weight, x]) == x.nbytes  # exp keeps what square keeps


@pytest.mark.parametrize("n_layers", [1, 2, 3, 8])
def test_quick_cutoffs_weigh_as_all(n_layers):
    def cost(cutoff: int) -> float:
        return 3.0 if cutoff in (0, n_layers) else 7.0 + 2.0 * (n_layers - cutoff)

    quick = bench_train.quick_cutoffs(n_layers)
    assert sum(quick.values()) == pytest.approx(1)
    everything = [cost(cutoff) for cutoff in range(n_layers + 1)]
    assert sum(weight * cost(c) for c, weight in quick.items()) == pytest.approx(sum(everything) / len(everything))


def test_what_would_not_fit_is_not_run(subject, monkeypatch):
    longer = Subject(dataclasses.replace(SHAPE, length=256, batch=1))
    naive = Naive(longer, eager=True)
    needed = watched_step(naive, longer.tokens, 1)[1]
    monkeypatch.setattr(bench_measure, "available_bytes", lambda device: int(1.5 * needed))
    assert not refusal(naive, longer.tokens, 1)
    monkeypatch.setattr(bench_measure, "available_bytes", lambda device: int(0.9 * needed))
    assert "needs about" in refusal(naive, longer.tokens, 1)


def test_shares_are_of_the_whole_step(subject):
    for contender in (Naive(subject, eager=False), Ours(subject)):
        found = shares(contender, subject.tokens, 1)
        assert sum(found.values()) == pytest.approx(1)
        assert set(PARTS) <= set(found)
        assert all(found[part] > 0 for part in ("target pass", "replacement pass", "bridges", "backward", "optimizer"))


def test_everything_is_printed_and_written(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(bench_train, "GROWTH", {"length": (16, 32), "n_features": (16,), "d_vocab": (50,)})
    sizes = (
        "--d-model 64 --layers 2 --features 32 --vocab 60 --length 32 --l0 8 --repeats 1 --grow --hf --checkpointing"
    )
    out, picture = tmp_path / "bench.json", tmp_path / "growth.png"
    bench_train.main([*sizes.split(), "--json", str(out), "--plot", str(picture)])
    printed = capsys.readouterr().out
    report = json.loads(out.read_text())
    assert list(report["step"]) == [*bench_train.CONTENDERS, bench_train.CHECKPOINTING]
    for name, result in report["step"].items():
        assert result["ms"] > 0
        assert result["flop"] > 0
        assert f"\n  {name}" in printed
    assert report["ratios"]["floor"]["time"] > 0
    assert set(report["hf"]) == {"forward, ms", "forward and backward, ms", "kept for backward, MiB"}
    assert set(report["growth"]["length"]) == {"16", "32"}
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "wrong",
    [
        "--d-model 60 --heads 7",
        "--heads 4 --kv-heads 3",
        "--cutoffs 9",
        "--cutoffs some",
        "--device moon",
        "--only theirs",
        "--plot growth.png",
    ],
)
def test_wrong_use_is_one_line(wrong):
    with pytest.raises(SystemExit, match=r"^--[^\n]* Got [^\n]*$"):
        bench_train.main([*wrong.split(), "--layers", "2"])


def test_the_feature_pass_finds_what_a_loop_finds():
    subject, keeping = bench_features.Subject(64, l0=6.0, n_sequences=12, batch_size=5), Keeping(k=4, before=6, after=3)
    collector = subject.ours(keeping)
    assert 3 < subject.measured_l0(collector) < 12
    loop = subject.loop(keeping)
    bench_features.require_same(loop, collector)
    loop.top[1][next(f for f, heap in enumerate(loop.top[1]) if heap)][0][1][6] += 1e-3
    with pytest.raises(AssertionError):
        bench_features.require_same(loop, collector)
