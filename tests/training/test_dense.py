"""Dense weights in place of adapters: their step against plain HF models, and whole runs."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
import torch
import wandb
from safetensors.torch import load_file
from torch import Tensor

from tc_adapters_lens.core.losses import kl_divergence
from tc_adapters_lens.errors import StopTraining
from tc_adapters_lens.models.adapter_set import AdapterSetInfo
from tc_adapters_lens.models.dense_weights import DenseWeights, dense_names
from tc_adapters_lens.models.diff_transformer import HookedDiffTransformer
from tc_adapters_lens.models.pair import load_pair
from tc_adapters_lens.training.config import ObjectiveConfig, TrainingConfig
from tc_adapters_lens.training.dense import JointDense
from tc_adapters_lens.training.objective import ObjectiveTerms, weighted_sum
from tc_adapters_lens.training.runner import AdapterTrainingRunner, newest_checkpoint, train
from tc_adapters_lens.training.step import DenseLayer, training_step
from tests.naive import NaiveDense
from tests.tiny import D_MODEL, D_VOCAB, FAMILY_CONFIGS, N_LAYERS, save, tiny_pair, word_tokenizer

TOKENS = torch.randint(0, D_VOCAB, (3, 11), generator=torch.Generator().manual_seed(0))
MASK = torch.ones(3, 11, dtype=torch.bool)
MASK[0, 7:] = False  # padding
MASK[1, :4] = False  # a prompt
OBJECTIVE = ObjectiveConfig.paper(0.0)

# name in a block -> name in a Hugging Face layer
GATED = {
    "mlp.base.W_gate": "mlp.gate_proj.weight",
    "mlp.base.W_in": "mlp.up_proj.weight",
    "mlp.base.W_out": "mlp.down_proj.weight",
}
RMS = {"ln1.w": "input_layernorm.weight", "ln2.w": "post_attention_layernorm.weight"}
NAMES = {
    ("qwen2", "mlps"): GATED,
    ("qwen2", "norms"): RMS,
    ("qwen3", "norms"): RMS | {"attn.q_norm.w": "self_attn.q_norm.weight", "attn.k_norm.w": "self_attn.k_norm.weight"},
    ("gemma2", "mlps"): GATED,
    ("gemma2", "norms"): {
        "ln1.w": "input_layernorm.weight",
        "ln1_post.w": "post_attention_layernorm.weight",
        "ln2.w": "pre_feedforward_layernorm.weight",
        "ln2_post.w": "post_feedforward_layernorm.weight",
    },
    ("neox", "mlps"): {
        "mlp.base.W_in": "mlp.dense_h_to_4h.weight",
        "mlp.base.b_in": "mlp.dense_h_to_4h.bias",
        "mlp.base.W_out": "mlp.dense_4h_to_h.weight",
        "mlp.base.b_out": "mlp.dense_4h_to_h.bias",
    },
    ("neox", "norms"): {
        "ln1.w": "input_layernorm.weight",
        "ln1.b": "input_layernorm.bias",
        "ln2.w": "post_attention_layernorm.weight",
        "ln2.b": "post_attention_layernorm.bias",
    },
}


def step(model: HookedDiffTransformer, layers: list[DenseLayer], cutoff: int, **kwargs: object) -> ObjectiveTerms:
    positions = MASK.flatten().nonzero().squeeze(-1)
    return training_step(model, layers, TOKENS, MASK, positions, cutoff, OBJECTIVE, 0.0, **kwargs)


def naive_loss(naive: NaiveDense, cutoff: int) -> Tensor:
    """Output KL, NMSE and bridging as the paper states them, every term from its own full forward passes."""

    def kl(replaced: range) -> Tensor:
        log_p, log_q = (naive.run(TOKENS, r)[0].log_softmax(-1) for r in (range(0), replaced))
        return (log_p.exp() * (log_p - log_q)).sum(-1)[MASK].mean()

    residuals = [naive.run(TOKENS, replaced)[1] for replaced in (range(0), range(N_LAYERS))]
    nmse = sum((r - t)[MASK].pow(2).sum() / t[MASK].pow(2).sum() for t, r in zip(*residuals, strict=True)) / N_LAYERS
    loss = kl(range(N_LAYERS)) + nmse
    if cutoff > 0:
        loss = loss + kl(range(cutoff))
    if cutoff < N_LAYERS:
        loss = loss + kl(range(cutoff, N_LAYERS))
    return loss


def leaves(naive: NaiveDense, names: dict[str, str], dtype: torch.dtype = torch.float64) -> list[DenseLayer]:
    """The naive version's leaves, in a block's names; matrices the other way round, Gemma's norms counted from 0."""

    def ours(name: str, tensor: Tensor) -> Tensor:
        tensor = tensor.detach().to(dtype) + float(naive.gemma and "norm" in name)
        return (tensor.T if tensor.ndim == 2 else tensor).requires_grad_()

    return [{name: ours(theirs, layer[theirs]) for name, theirs in names.items()} for layer in naive.leaves]


@pytest.mark.parametrize("cutoff", range(N_LAYERS + 1))
@pytest.mark.parametrize(("family", "kind"), NAMES)
def test_value_and_gradients_equal_the_naive_version(family: str, kind: str, cutoff: int) -> None:
    tolerance = 1e-6 if family == "gemma2" else 1e-8
    naive = NaiveDense(family, kind)
    expected = naive_loss(naive, cutoff)
    expected.backward()

    names = NAMES[family, kind]
    assert set(naive.leaves[0]) == set(names.values())
    model = load_pair(*tiny_pair(family), dtype=torch.float64).requires_grad_(False)
    assert set(dense_names(model, kind)) == set(names)
    layers = leaves(naive, names)
    terms = step(model, layers, cutoff)

    torch.testing.assert_close(weighted_sum(terms, OBJECTIVE, 0.0), expected, atol=tolerance, rtol=tolerance)
    assert terms.l1 == 0
    assert terms.counts.shape == (N_LAYERS, 0)
    for ours, theirs in zip(layers, naive.leaves, strict=True):
        for name, tensor in ours.items():
            grad = theirs[names[name]].grad
            assert grad.abs().max() > 1e-4
            torch.testing.assert_close(tensor.grad, grad.T if grad.ndim == 2 else grad, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("cutoff", range(N_LAYERS + 1))
@pytest.mark.parametrize("kind", ["mlps", "norms"])
def test_checkpointed_blocks_give_the_same_bits(kind: str, cutoff: int) -> None:
    model = load_pair(*tiny_pair()).requires_grad_(False)
    naive = NaiveDense("qwen2", kind)
    plain, checkpointed = (leaves(naive, NAMES["qwen2", kind], torch.float32) for _ in range(2))
    terms = step(model, plain, cutoff)
    for ours, theirs in zip(step(model, checkpointed, cutoff, checkpoint_blocks=True), terms, strict=True):
        assert torch.equal(ours, theirs)
    for ours, theirs in zip(checkpointed, plain, strict=True):
        assert all(torch.equal(ours[name].grad, theirs[name].grad) for name in theirs)


@pytest.mark.parametrize("kind", ["mlps", "norms"])
@pytest.mark.parametrize("family", FAMILY_CONFIGS)
def test_training_starts_at_the_hybrid_with_weights_that_the_family_has(family: str, kind: str) -> None:
    base, target = tiny_pair(family)
    model = load_pair(base, target).requires_grad_(False)
    joint = JointDense.of(model, kind)
    layers = base.gpt_neox.layers if "neox" in family else base.model.layers
    part = "mlp." if kind == "mlps" else "norm"
    n_wanted = sum(p.numel() for name, p in layers.named_parameters() if part in name)
    assert sum(p.numel() for p in joint.parameters()) == n_wanted
    resid = model.embed_tokens(TOKENS)
    with model.mode("base"):
        expected = model.run_layers(resid)
        weights = joint.layer_weights(torch.float32)
        for block, own, after in zip(model.blocks, weights, expected, strict=True):
            resid = torch.func.functional_call(block, own, (resid,))
            assert torch.equal(resid, after)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["mlps", "norms"])
def test_gradients_add_up_in_the_stacked_parameters(kind: str, dtype: torch.dtype) -> None:
    model = load_pair(*tiny_pair(), dtype=dtype).requires_grad_(False)
    joint = JointDense.of(model, kind)
    alone = [{name: t.detach().requires_grad_() for name, t in layer.items()} for layer in joint.layer_weights(dtype)]
    for _ in range(2):
        step(model, joint.layer_weights(dtype), 1)
    step(model, alone, 1)
    for name, param in joint.named_parameters():
        assert param.dtype == param.grad.dtype == torch.float32
        grad = torch.stack([layer[name.replace("/", ".")].grad for layer in alone]).float()
        grad = grad.mT if grad.ndim == 3 else grad
        # In bfloat16 a leaf of that precision rounds where the backward passes of one step add up.
        tolerance = 2e-5 if dtype == torch.float32 else 3e-2
        torch.testing.assert_close(param.grad, 2 * grad, rtol=tolerance, atol=tolerance * float(grad.abs().max()))


def test_the_pair_is_as_before_after_a_step_and_after_an_exception() -> None:
    model = load_pair(*tiny_pair()).requires_grad_(False)
    expected = model(TOKENS)
    layers = leaves(NaiveDense("qwen2", "mlps"), NAMES["qwen2", "mlps"], torch.float32)
    step(model, layers, 1)
    assert torch.equal(model(TOKENS), expected)
    layers[2] = {"mlp.base.W_in": layers[2]["mlp.base.W_in"].double()}
    with pytest.raises(RuntimeError, match="dtype"):
        step(model, layers, 1)
    assert model.modes == ["target"] * N_LAYERS
    assert torch.equal(model(TOKENS), expected)


@pytest.fixture(scope="module")
def pair_dirs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """A saved pair and 60 token sequences of different lengths."""
    root = tmp_path_factory.mktemp("pair")
    base, target = tiny_pair()
    generator = torch.Generator().manual_seed(3)
    rows = [{"input_ids": torch.randint(3, D_VOCAB, (5 + i % 9,), generator=generator).tolist()} for i in range(60)]
    (root / "tokens.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return (
        save(base, root / "base", word_tokenizer()),
        save(target, root / "target", word_tokenizer()),
        root / "tokens.jsonl",
    )


def make_config(pair_dirs: tuple[Path, Path, Path], trained: str, **changes: object) -> TrainingConfig:
    base, target, data = pair_dirs
    values = {
        "base": str(base),
        "target": str(target),
        "device": "cpu",
        "data": {"path": str(data)},
        "trained": trained,
        "training": {
            "batch_size_prompts": 4,
            "training_tokens": 1500,
            "lr": 5e-3 if trained == "mlps" else 2e-2,
            "n_checkpoints": 2,
            "feature_sampling_window": 7,
        },
        "logger": {"wandb_log_frequency": 1},
    }
    return TrainingConfig.from_dict({**values, **changes})


@pytest.fixture(scope="module", params=["mlps", "norms"])
def finished(request, pair_dirs, tmp_path_factory) -> tuple[str, Path, DenseWeights]:
    """A run that was never interrupted."""
    out = tmp_path_factory.mktemp("run") / "run"
    weights = train(make_config(pair_dirs, request.param), out)
    assert isinstance(weights, DenseWeights)
    return request.param, out, weights


def rows(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def assert_same_bits(ours: DenseWeights, theirs: DenseWeights) -> None:
    assert set(ours.tensors) == set(theirs.tensors)
    for name, tensor in theirs.tensors.items():
        assert torch.equal(ours.tensors[name], tensor), name


def kl_of_all(model: HookedDiffTransformer, data: Path, weights: DenseWeights | None) -> float:
    """KL(target || hybrid, with weights in place of its own or without), mean over all sequences' positions."""
    per_position = []
    for line in data.read_text().splitlines():
        tokens = torch.tensor([json.loads(line)["input_ids"]])
        target = model(tokens)
        with model.mode("base") if weights is None else weights.applied(model):
            per_position.append(kl_divergence(target, model(tokens))[0])
    return torch.cat(per_position).mean().item()


@torch.no_grad()
def test_a_run_ends_below_the_hybrid(pair_dirs, finished) -> None:
    kind, out, weights = finished
    model = load_pair(*map(str, pair_dirs[:2]))
    assert set(weights.tensors) == {
        f"blocks.{layer}.{name}" for layer in range(N_LAYERS) for name in dense_names(model, kind)
    }
    hybrid, ours = (kl_of_all(model, pair_dirs[2], dense) for dense in (None, weights))
    metrics = rows(out)
    assert metrics[0]["losses/kl"] == pytest.approx(hybrid, rel=0.5)  # of one batch, before the first step
    assert ours < (0.5 if kind == "mlps" else 0.85) * hybrid
    assert weights.kind == kind
    assert weights.info.recipe["config"]["trained"] == kind
    assert_same_bits(DenseWeights.load(out / "weights", pair=model.pair), weights)
    assert weights.info.measured["kl"] == pytest.approx(sum(r["losses/kl"] for r in metrics[-20:]) / 20)
    assert set(weights.info.measured) == {"on", "kl", "nmse"}


def test_nothing_is_told_of_features_that_are_not_there(finished) -> None:
    _, out, _ = finished
    assert not (out / "adapters").exists()
    for row in rows(out):
        assert not [key for key in row if key.startswith("sparsity/") or "l0" in key or "l1" in key]
        assert {"losses/overall_loss", "losses/kl", "losses/nmse", "metrics/cutoff"} <= set(row)
    row = rows(out)[0]
    loss = row["losses/kl"] + row["losses/nmse"]
    loss += row["losses/bridging_to_target"] + row["losses/bridging_to_replacement"]
    assert row["losses/overall_loss"] == pytest.approx(loss, rel=1e-5)
    state = load_file(newest_checkpoint(out) / "trainer_state.safetensors")
    assert state["tokens_since_fired"].shape == (N_LAYERS, 0)


def test_a_complete_run_is_not_trained_again(pair_dirs, finished) -> None:
    kind, out, weights = finished
    before = (out / "metrics.jsonl").stat().st_mtime_ns
    assert_same_bits(train(make_config(pair_dirs, kind), out), weights)
    assert (out / "metrics.jsonl").stat().st_mtime_ns == before


@pytest.mark.parametrize("step", [1, 14, 23])
def test_sigterm_saves_and_the_rest_of_the_run_is_bit_identical(pair_dirs, finished, tmp_path, step) -> None:
    kind, reference, weights = finished
    config = make_config(pair_dirs, kind)
    runner = AdapterTrainingRunner(config, tmp_path / "run")
    write = runner._write_metrics

    def write_and_stop(row: dict) -> None:
        write(row)
        if row["step"] == step:
            os.kill(os.getpid(), signal.SIGTERM)

    runner._write_metrics = write_and_stop  # type: ignore[method-assign]
    with pytest.raises(StopTraining, match=f"Stopped at step {step} of"):
        runner.run()
    assert not (tmp_path / "run" / "weights").exists()
    assert_same_bits(train(config, tmp_path / "run"), weights)
    losses = [[row["losses/overall_loss"] for row in rows(out)] for out in (tmp_path / "run", reference)]
    assert losses[0] == losses[1]


def test_bf16_models_train_float32_weights_with_blocks_computed_again(pair_dirs, tmp_path) -> None:
    config = make_config(pair_dirs, "mlps", dtype="bfloat16")
    weights = train(config, tmp_path / "plain")
    assert all(tensor.dtype == torch.float32 for tensor in weights.tensors.values())
    metrics = rows(tmp_path / "plain")
    assert sum(r["losses/kl"] for r in metrics[-5:]) < 0.75 * sum(r["losses/kl"] for r in metrics[:5])
    values = config.to_dict()
    values["training"]["activation_checkpointing"] = True
    assert_same_bits(train(TrainingConfig.from_dict(values), tmp_path / "again"), weights)


def test_wandb_offline_logs_what_there_is(pair_dirs, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    seen: dict[str, object] = {}
    log = wandb.Run.log
    monkeypatch.setattr(wandb.Run, "log", lambda run, values, *a, **k: (seen.update(values), log(run, values, *a, **k)))
    train(make_config(pair_dirs, "norms", logger={"log_to_wandb": True}), tmp_path / "run")
    assert {"losses/overall_loss", "details/current_learning_rate"} <= set(seen)
    assert not [key for key in seen if key.startswith(("sparsity/", "plots/"))]


def test_weights_are_a_copy_in_the_models_shapes() -> None:
    model = load_pair(*tiny_pair())
    joint = JointDense.of(model, "mlps")
    weights = joint.weights(AdapterSetInfo(model.pair))
    assert weights.tensors["blocks.1.mlp.base.W_in"].shape == (D_MODEL, 48)
    for name, tensor in weights.tensors.items():
        assert torch.equal(tensor, model.get_parameter(name))
        assert tensor.is_contiguous()
    with torch.no_grad():
        for param in joint.parameters():
            param.zero_()
    assert weights.tensors["blocks.1.mlp.base.W_in"].any()
