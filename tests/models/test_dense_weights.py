"""Dense weights: that they come back bit for bit, take the place of a model's own, and how they can be wrong."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tc_adapters_lens.errors import AdapterSetError
from tc_adapters_lens.models.adapter_set import AdapterSetInfo
from tc_adapters_lens.models.dense_weights import DenseWeights, dense_names
from tc_adapters_lens.models.diff_transformer import HookedDiffTransformer
from tc_adapters_lens.models.pair import load_pair
from tests.tiny import D_VOCAB, N_LAYERS, hybrid, nudged, tiny_pair

TOKENS = torch.randint(0, D_VOCAB, (2, 9), generator=torch.Generator().manual_seed(0))
NAME = "blocks.1.mlp.base.W_in"


@pytest.fixture(scope="module")
def model() -> HookedDiffTransformer:
    return load_pair(*tiny_pair())


def others(model: HookedDiffTransformer, kind: str = "mlps", dtype: torch.dtype = torch.float32) -> DenseWeights:
    """Weights a little off the hybrid's."""
    generator = torch.Generator().manual_seed(3)
    own = {f"blocks.{layer}.{name}" for layer in range(N_LAYERS) for name in dense_names(model, kind)}
    tensors = {
        name: (param.detach() + 0.1 * torch.randn(param.shape, generator=generator)).to(dtype)
        for name, param in model.named_parameters()
        if name in own
    }
    return DenseWeights(kind, tensors, AdapterSetInfo(model.pair, recipe={"lr": 1e-3}, measured={"kl": 0.5}))


@pytest.fixture
def saved(model, tmp_path: Path) -> Path:
    others(model).save(tmp_path / "weights")
    return tmp_path / "weights"


def refusal(directory: Path, **options) -> str:
    with pytest.raises(AdapterSetError) as caught:
        DenseWeights.load(directory, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["mlps", "norms"])
def test_they_come_back_bit_for_bit(model, tmp_path, kind, dtype) -> None:
    weights = others(model, kind, dtype)
    weights.save(tmp_path / "weights")
    weights.save(tmp_path / "weights")  # in place of the same
    again = DenseWeights.load(tmp_path / "weights", pair=model.pair)
    assert (again.kind, again.n_layers, again.info) == (kind, N_LAYERS, weights.info)
    assert set(again.tensors) == set(weights.tensors)
    for name, tensor in weights.tensors.items():
        assert again.tensors[name].dtype == dtype
        assert torch.equal(again.tensors[name], tensor)
    assert DenseWeights.load(tmp_path / "weights", dtype=torch.float64).tensors[name].dtype == torch.float64
    assert sorted(path.name for path in tmp_path.iterdir()) == ["weights"]


@pytest.mark.parametrize("family", ["qwen2", "neox"])
def test_applied_mlps_of_the_target_make_the_target(family) -> None:
    base, target = tiny_pair(family)
    model = load_pair(base, target)
    tensors = {
        f"blocks.{layer}.{name}": model.blocks[layer].get_parameter(name.replace("mlp.base.", "mlp.")).detach()
        for layer in range(N_LAYERS)
        for name in dense_names(model, "mlps")
    }
    expected = target(TOKENS).logits
    with DenseWeights("mlps", tensors, AdapterSetInfo(model.pair)).applied(model):
        torch.testing.assert_close(model(TOKENS), expected, atol=2e-5, rtol=2e-5)


def test_applied_norms_are_those_of_a_hugging_face_hybrid() -> None:
    base, target = tiny_pair()
    model = load_pair(base, target)
    other = nudged(target, 0.2, seed=9, only="layernorm")  # not model.norm, the final one
    names = {"ln1.w": "input_layernorm", "ln2.w": "post_attention_layernorm"}
    tensors = {
        f"blocks.{layer}.{ours}": other.get_parameter(f"model.layers.{layer}.{theirs}.weight").detach()
        for layer in range(N_LAYERS)
        for ours, theirs in names.items()
    }
    expected = hybrid(base, other)(TOKENS).logits
    with DenseWeights("norms", tensors, AdapterSetInfo(model.pair)).applied(model):
        torch.testing.assert_close(model(TOKENS), expected, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("kind", ["mlps", "norms"])
def test_the_model_is_as_before_also_after_an_exception(model, kind) -> None:
    weights = others(model, kind)
    params = dict(model.named_parameters())
    places = {name: (param.data_ptr(), param.stride()) for name, param in params.items()}
    target = model(TOKENS)
    with model.mode("base"):
        before = model(TOKENS)
    with weights.applied(model):
        assert model.modes == ["base"] * N_LAYERS
        assert not torch.allclose(model(TOKENS), before, atol=1e-3)
        for name, tensor in weights.tensors.items():
            assert torch.equal(params[name], tensor)
    with pytest.raises(ZeroDivisionError), weights.applied(model):
        raise ZeroDivisionError
    assert places == {name: (param.data_ptr(), param.stride()) for name, param in model.named_parameters()}
    assert torch.equal(model(TOKENS), target)
    with model.mode("base"):
        assert torch.equal(model(TOKENS), before)


def test_they_are_cast_to_the_models_dtype() -> None:
    model = load_pair(*tiny_pair(), dtype=torch.bfloat16)
    weights = others(model)
    with weights.applied(model):
        assert torch.equal(model.get_parameter(NAME), weights.tensors[NAME].bfloat16())


def test_another_pair_is_refused(model, saved) -> None:
    base, target = tiny_pair()
    elsewhere = load_pair(base, nudged(target, 0.01, seed=5))
    says = refusal(saved, pair=elsewhere.pair)
    assert "were trained on another pair: target" in says
    assert says.endswith("Use that pair.")
    before = elsewhere(TOKENS)
    with pytest.raises(AdapterSetError, match="another pair"), DenseWeights.load(saved).applied(elsewhere):
        pytest.fail("they were applied")
    assert torch.equal(elsewhere(TOKENS), before)
    assert elsewhere.modes == ["target"] * N_LAYERS


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda t: {n: x for n, x in t.items() if n != NAME}, rf"must have {NAME} \[32, 48\]. Got none"),
        (lambda t: {**t, "blocks.0.ln1.w": torch.ones(32)}, r"must not have blocks.0.ln1.w. Got \[32\]"),
        (lambda t: {**t, NAME: t[NAME].T}, rf"must have {NAME} \[32, 48\]. Got \[48, 32\]"),
    ],
)
def test_tensors_that_the_model_does_not_have_are_refused(model, change, says) -> None:
    weights = others(model)
    weights = dataclasses.replace(weights, tensors=change(weights.tensors))
    before = model(TOKENS)
    with pytest.raises(AdapterSetError, match=says), weights.applied(model):
        pytest.fail("they were applied")
    assert torch.equal(model(TOKENS), before)


def test_damaged_directories_are_refused_in_one_line(model, saved) -> None:
    assert "there is no such directory" in refusal(saved / "none")
    (saved / "empty").mkdir()
    assert "it has no dense_weights.json" in refusal(saved / "empty")
    description = saved / "dense_weights.json"
    text = description.read_text()
    for key, value, says in (
        ("format", "other", "must have format"),
        ("format_version", 2, "must have format_version 1. Got 2"),
        ("kind", "attention", "kind must be one of mlps, norms. Got 'attention'"),
        ("shapes", 3, "shapes must name every tensor's shape. Got 3"),
        ("pair", None, "pair must be an object"),
    ):
        description.write_text(json.dumps({**json.loads(text), key: value}))
        assert says in refusal(saved)
    description.write_text(text)
    file = saved / "weights.safetensors"
    tensors = load_file(file)
    save_file({**tensors, NAME: tensors[NAME].index_fill(0, torch.tensor(3), float("nan"))}, file)
    assert f"{NAME} must be finite. Got 48 NaN" in refusal(saved)
    save_file({name: tensor for name, tensor in tensors.items() if name != NAME}, file)
    assert f"must have {NAME} [32, 48]. Got none" in refusal(saved)
    save_file(tensors, file)
    file.write_bytes(file.read_bytes()[:-5])
    assert "is truncated" in refusal(saved)
    file.unlink()
    assert "is missing" in refusal(saved)


def test_something_else_is_not_replaced_and_what_json_cannot_say_is_refused(model, tmp_path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "mine.txt").write_text("mine")
    with pytest.raises(AdapterSetError, match="holds something else"):
        others(model).save(tmp_path / "thesis")
    weights = dataclasses.replace(others(model), info=AdapterSetInfo(model.pair, measured={"kl": float("nan")}))
    with pytest.raises(AdapterSetError, match="must be JSON"):
        weights.save(tmp_path / "weights")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis"]
