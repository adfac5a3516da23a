"""The pair as one hooked model, against plain HF models of every family."""

from __future__ import annotations

import pytest
import torch
from sae_lens import SAE, HookedSAETransformer
from transformer_lens.hook_points import HookPoint

from tc_adapters_lens.errors import AdapterSetError
from tc_adapters_lens.models.adapter_set import AdapterSet, AdapterSetInfo
from tc_adapters_lens.models.diff_transformer import HookedDiffTransformer
from tc_adapters_lens.models.names import hook_delta, hook_in, hook_io
from tc_adapters_lens.models.pair import load_pair
from tests.tiny import D_MODEL, D_VOCAB, FAMILY_CONFIGS, N_LAYERS, hybrid, tiny_pair, word_tokenizer

TOKENS = torch.randint(0, D_VOCAB, (2, 40), generator=torch.Generator().manual_seed(0))


def random_adapters(model: HookedDiffTransformer, n_features: int = 24, seed: int = 0) -> AdapterSet:
    fresh = AdapterSet.fresh(model.cfg.n_layers, model.cfg.d_model, n_features, AdapterSetInfo(model.pair))
    generator = torch.Generator().manual_seed(seed)
    state = {n: torch.randn(t.shape, generator=generator) * 0.1 for n, t in fresh.state().items()}
    return AdapterSet.from_state(state, fresh.info)


@pytest.fixture(scope="module")
def model() -> HookedDiffTransformer:
    base, target = tiny_pair("qwen2")
    return load_pair((base, word_tokenizer()), (target, word_tokenizer()))


@pytest.mark.parametrize("family", FAMILY_CONFIGS)
def test_target_and_hybrid_equal_plain_hf_models(family: str) -> None:
    base, target = tiny_pair(family)
    tokens = torch.randint(0, D_VOCAB, (2, 600))  # past the size at which position buffers start
    model = load_pair(base, target)
    with torch.no_grad():
        torch.testing.assert_close(model(tokens), target(tokens).logits, atol=3e-5, rtol=0)
        with model.mode("base"):
            torch.testing.assert_close(model(tokens), hybrid(base, target)(tokens).logits, atol=3e-5, rtol=0)
        hidden = target(tokens, output_hidden_states=True).hidden_states
        residuals = model.run_layers(model.embed_tokens(tokens))
        for layer in range(N_LAYERS - 1):  # HF applies the final norm to the last one
            torch.testing.assert_close(residuals[layer], hidden[layer + 1], atol=3e-5, rtol=0)
        torch.testing.assert_close(model.unembed_resid(residuals[-1]), model(tokens))


@pytest.mark.parametrize("family", FAMILY_CONFIGS)
def test_delta_is_the_difference_of_the_two_mlps(family: str) -> None:
    base, target = tiny_pair(family)
    model = load_pair(base, target, dtype=torch.float64)
    _, cache = model.run_with_cache(TOKENS)
    for layer in range(N_LAYERS):
        x = cache[hook_in(layer)]
        mlps = [
            dict(m.named_modules())[f"{'gpt_neox' if 'neox' in family else 'model'}.layers.{layer}.mlp"].double()
            for m in (base, target)
        ]
        expected = mlps[1](x) - mlps[0](x)
        assert expected.abs().max() > 1e-3
        torch.testing.assert_close(cache[hook_delta(layer)], expected, atol=1e-12, rtol=1e-10)


def test_unhooked_target_is_bitwise_the_target_mlp(model: HookedDiffTransformer) -> None:
    x = torch.randn(1, 5, D_MODEL)
    mlp = model.mlps[0]
    plain = torch.nn.functional.silu(x @ mlp.W_gate) * (x @ mlp.W_in)
    torch.testing.assert_close(mlp(x), plain @ mlp.W_out)
    plain_class = type(mlp).__mro__[2]
    assert torch.equal(mlp(x), plain_class.forward(mlp, x))


def test_hook_io_carries_input_and_delta_only_when_hooked(model: HookedDiffTransformer) -> None:
    seen = {}
    names = [hook_in(1), hook_delta(1), hook_io(1)]
    model.run_with_hooks(TOKENS, fwd_hooks=[(n, lambda t, hook: seen.__setitem__(hook.name, t)) for n in names])
    assert seen[hook_io(1)].shape == (*TOKENS.shape, 2 * D_MODEL)
    torch.testing.assert_close(seen[hook_io(1)], torch.cat([seen[hook_in(1)], seen[hook_delta(1)]], -1))
    # only the base's hooks: the base MLP runs, and the output stays the target's
    _, cache = model.run_with_cache(TOKENS, names_filter="blocks.1.mlp.base.hook_post")
    assert list(cache) == ["blocks.1.mlp.base.hook_post"]


def test_zeroed_delta_is_the_hybrid(model: HookedDiffTransformer) -> None:
    zero = [(hook_delta(layer), lambda delta, hook: torch.zeros_like(delta)) for layer in range(N_LAYERS)]
    zeroed = model.run_with_hooks(TOKENS, fwd_hooks=zero)
    with model.mode("base"):
        torch.testing.assert_close(zeroed, model(TOKENS), atol=1e-5, rtol=0)


def test_base_mode_does_not_run_the_target_mlp(model: HookedDiffTransformer) -> None:
    with model.mode("base", layers=[1]):
        _, cache = model.run_with_cache(TOKENS)
    assert "blocks.0.mlp.hook_post" in cache
    assert "blocks.1.mlp.hook_post" not in cache
    assert "blocks.1.mlp.base.hook_post" in cache
    assert not cache[hook_delta(1)].any()


def test_modes_are_restored_after_an_exception(model: HookedDiffTransformer) -> None:
    model.set_modes("base", [2])
    with model.mode("base"):
        assert model.modes == ["base"] * N_LAYERS
    with pytest.raises(IndexError), model.mode("base"):
        model(TOKENS + D_VOCAB)
    assert model.modes == ["target", "target", "base"]
    model.set_modes("target")
    with pytest.raises(ValueError, match="must be 'target' or 'base'"):
        model.set_modes("hybrid")  # type: ignore[arg-type]


@pytest.mark.parametrize("cutoff", range(N_LAYERS + 1))
def test_bridging_by_layers_equals_bridging_by_modes(model: HookedDiffTransformer, cutoff: int) -> None:
    with torch.no_grad():
        with model.mode("base"):
            below = [model.embed_tokens(TOKENS), *model.run_layers(model.embed_tokens(TOKENS))]
        bridged = [below[cutoff], *model.run_layers(below[cutoff], cutoff)][-1]
        with model.mode("base", range(cutoff)):
            torch.testing.assert_close(model.unembed_resid(bridged), model(TOKENS))


def test_fresh_adapters_change_no_logit_of_the_hybrid(model: HookedDiffTransformer) -> None:
    fresh = AdapterSet.fresh(N_LAYERS, D_MODEL, 24, AdapterSetInfo(model.pair))
    with model.mode("base"):
        expected = model(TOKENS)
    with model.adapters(fresh):
        assert torch.equal(model(TOKENS), expected)


def test_adapters_attached_one_by_one_and_as_a_set_agree(model: HookedDiffTransformer) -> None:
    adapters = random_adapters(model)
    with model.adapters(adapters):
        expected = model(TOKENS)
        assert model.modes == ["base"] * N_LAYERS
    assert not model.acts_to_saes
    for adapter in adapters.values():
        HookedSAETransformer.add_sae(model, adapter)
    torch.testing.assert_close(model(TOKENS), expected, atol=1e-6, rtol=0)  # the wrapper drops the delta
    model.remove_adapters()
    model.add_adapters(adapters)
    assert torch.equal(model(TOKENS), expected)
    model.remove_adapters()
    assert model.modes == ["target"] * N_LAYERS
    assert isinstance(model.mlps[0].hook_delta, HookPoint)


def test_replacement_model_equals_the_formula(model: HookedDiffTransformer) -> None:
    adapters = random_adapters(model)
    with model.adapters(adapters):
        _, cache = model.run_with_cache(TOKENS)
    for layer, a in adapters.items():
        x = cache[hook_in(layer)]
        f = torch.relu(x @ a.W_enc + a.b_enc)
        torch.testing.assert_close(cache[f"{hook_delta(layer)}.hook_sae_acts_post"], f)
        expected = model.mlps[layer].base(x) + f @ a.W_dec + a.b_dec
        torch.testing.assert_close(cache[f"blocks.{layer}.hook_mlp_out"], expected)


def test_error_term_gives_the_target_back(model: HookedDiffTransformer) -> None:
    expected = model(TOKENS)
    with model.adapters(random_adapters(model), use_error_term=True):
        logits, cache = model.run_with_cache(TOKENS)
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=0)
    assert cache[f"{hook_delta(0)}.hook_sae_error"].abs().max() > 1e-3


def test_set_is_detached_and_former_adapters_return_after_an_exception(model: HookedDiffTransformer) -> None:
    first, second = random_adapters(model), random_adapters(model, seed=1)
    model.add_adapters(first)
    expected = model(TOKENS)
    with pytest.raises(IndexError), model.adapters(second, use_error_term=True):
        model(TOKENS + D_VOCAB)
    assert torch.equal(model(TOKENS), expected)
    assert model.modes == ["base"] * N_LAYERS
    model.remove_adapters()
    torch.testing.assert_close(model(TOKENS), load_pair(*tiny_pair("qwen2"))(TOKENS))


def test_adapters_of_another_shape_are_refused(model: HookedDiffTransformer) -> None:
    other = AdapterSet.fresh(N_LAYERS - 1, D_MODEL, 8, AdapterSetInfo(model.pair))
    with pytest.raises(AdapterSetError, match=r"2 x 32 \(adapters\) and 3 x 32"), model.adapters(other):
        pass
    with pytest.raises(AdapterSetError, match="same layers and width"):
        model.add_adapters(other)


def test_saved_layer_loads_and_attaches_with_plain_saelens(model: HookedDiffTransformer, tmp_path) -> None:
    adapters = random_adapters(model)
    adapters.save(tmp_path / "adapters")
    with model.adapters(adapters):
        expected = model(TOKENS)
    loaded = [SAE.load_from_disk(tmp_path / "adapters" / f"layer_{layer}") for layer in range(N_LAYERS)]
    logits, cache = model.run_with_cache_with_saes(TOKENS, saes=loaded)
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=0)
    assert f"{hook_delta(2)}.hook_sae_acts_post" in cache


def test_bf16_model_takes_float32_adapters() -> None:
    model = load_pair(*tiny_pair("gemma2"), dtype=torch.bfloat16)
    with model.adapters(random_adapters(model)):
        assert model(TOKENS).dtype == torch.bfloat16


def test_gradients_reach_input_features_and_adapter(model: HookedDiffTransformer) -> None:
    adapters = random_adapters(model)
    with model.adapters(adapters):
        model(TOKENS).square().mean().backward()
    assert all(adapter.W_enc.grad.abs().sum() > 0 for adapter in adapters.values())


@pytest.mark.parametrize("family", ["qwen2", "gemma2", "mistral", "neox"])
def test_generate_with_cache_equals_generate_without(family: str) -> None:
    base, target = tiny_pair(family)
    model = load_pair((base, word_tokenizer()), (target, word_tokenizer()))
    prompt = TOKENS[:, :9]
    with model.adapters(random_adapters(model)), torch.no_grad():
        options = {"max_new_tokens": 12, "do_sample": False, "verbose": False, "stop_at_eos": False}
        cached = model.generate(prompt, use_past_kv_cache=True, **options)
        assert torch.equal(cached, model.generate(prompt, use_past_kv_cache=False, **options))
        for step in range(9, 21):  # and both equal the argmax of full forward passes
            assert torch.equal(model(cached[:, :step])[:, -1].argmax(-1), cached[:, step])


def test_generate_with_left_padding_equals_unpadded(model: HookedDiffTransformer) -> None:
    with model.adapters(random_adapters(model)), torch.no_grad():
        padded = torch.cat([torch.full((1, 3), 2), TOKENS[:1, :9]], dim=1)
        attention = torch.tensor([[0] * 3 + [1] * 9])
        torch.testing.assert_close(
            model(padded, attention_mask=attention)[:, 3:], model(TOKENS[:1, :9]), atol=1e-5, rtol=0
        )


def test_transformer_lens_names_keep_working(model: HookedDiffTransformer) -> None:
    _, target = tiny_pair("qwen2")
    layer = target.model.layers[1].mlp
    assert torch.equal(model.W_in[1], layer.up_proj.weight.T)
    assert torch.equal(model.W_gate[1], layer.gate_proj.weight.T)
    assert torch.equal(model.W_out[1], layer.down_proj.weight.T)
    assert torch.equal(model.blocks[1].mlp.base.W_in, tiny_pair("qwen2")[0].model.layers[1].mlp.up_proj.weight.T)
    _, cache = model.run_with_cache("w5 w6 w7")
    for name in ("hook_resid_pre", "hook_mlp_out", "attn.hook_pattern", "mlp.hook_pre", "mlp.hook_post"):
        assert f"blocks.1.{name}" in cache
    assert model.to_str_tokens("w5 w6", prepend_bos=False) == ["w5", "w6"]
    assert model.to_tokens("w5", prepend_bos=True).tolist() == [[1, 5]]
    assert model.cfg.n_ctx == 1024
