"""The stock Hugging Face model with adapters against the pair's hooked model, for every family."""

from __future__ import annotations

import copy
import subprocess
import sys
from functools import partial

import pytest
import torch
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from tc_adapters_lens.errors import AdapterSetError, FeatureGroupError, PairError
from tc_adapters_lens.integrations.hf import modeling_transcoder_adapters as modeling
from tc_adapters_lens.integrations.hf.model import adapter_model, set_adapters
from tc_adapters_lens.models.adapter_set import AdapterSet, AdapterSetInfo
from tc_adapters_lens.models.checkpoints import Checkpoint
from tc_adapters_lens.models.feature_group import FeatureGroup
from tc_adapters_lens.models.pair import load_pair
from tests.tiny import D_MODEL, D_VOCAB, FAMILY_CONFIGS, N_LAYERS, hybrid, tiny_pair

N_FEATURES = 20
TOKENS = torch.randint(3, D_VOCAB, (2, 12), generator=torch.Generator().manual_seed(0))
GROUPS = (
    FeatureGroup("first", tuple((0, feature) for feature in range(10))),
    FeatureGroup("mixed", ((0, 12), (1, 3), (1, 4), (2, 0), (2, 19))),
)


def random_adapters(pair_info, seed: int = 0, dtype: torch.dtype = torch.float32) -> AdapterSet:
    """Adapters of which every tensor is random."""
    adapters = AdapterSet.fresh(N_LAYERS, D_MODEL, N_FEATURES, AdapterSetInfo(pair_info), seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in (p for adapter in adapters.values() for p in adapter.parameters()):
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return adapters.to(dtype=dtype)


def without(adapters: AdapterSet, *groups: FeatureGroup) -> AdapterSet:
    """The same with the groups' features taken out of the decoder."""
    adapters = copy.deepcopy(adapters)
    for layer, feature in (pair for group in groups for pair in group):
        adapters[layer].W_dec.data[feature] = 0
    return adapters


def logits(model, tokens=TOKENS, **options) -> torch.Tensor:
    with torch.no_grad():
        output = model(tokens, **options)
    return output if isinstance(output, torch.Tensor) else output.logits


@pytest.fixture(scope="module", params=FAMILY_CONFIGS)
def trio(request):
    """(base, target, hooked pair, adapters) of a family."""
    base, target = tiny_pair(request.param)
    pair = load_pair(base, target)
    return base, target, pair, random_adapters(pair.pair)


def made(trio, adapters=None, **options):
    base, target = (Checkpoint.open(model) for model in trio[:2])
    return adapter_model(base, target, trio[3] if adapters is None else adapters, **options)


def close(found, expected, tolerance=1e-4):
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=0)


def test_it_is_the_replacement_model_and_its_switches_are_the_pairs(trio):
    base, target, pair, adapters = trio
    before = {name: tensor.clone() for name, tensor in target.state_dict().items()}
    model = made(trio, groups=GROUPS)
    assert not model.training
    with pair.adapters(adapters):
        expected = logits(pair)
    close(logits(model), expected)
    for names in (["first"], ["first", "mixed"], ["mixed"], []):
        model.set_groups_off(names)
        with pair.adapters(without(adapters, *(group for group in GROUPS if group.name in names))):
            close(logits(model), logits(pair))
    close(logits(model), expected)
    model.set_adapters_on(False)
    close(logits(model), logits(hybrid(base, target)))
    assert all(torch.equal(tensor, before[name]) for name, tensor in target.state_dict().items())


def test_other_adapters_in_place(trio):
    pair = trio[2]
    model, other = made(trio), random_adapters(pair.pair, seed=9)
    set_adapters(model, other)
    with pair.adapters(other):
        close(logits(model), logits(pair))
    with pair.adapters(trio[3]):
        assert (logits(pair) - logits(model)).abs().max() > 0.01  # those it was made of are untouched
    assert made(trio).config.adapter_features == N_FEATURES


def test_without_adapters_it_is_the_hybrid_or_the_target(trio):
    base, target = trio[:2]
    opened = Checkpoint.open(base), Checkpoint.open(target)
    close(logits(adapter_model(*opened, None)), logits(hybrid(base, target)))
    model = adapter_model(*opened, None, mlps="target")
    close(logits(model), logits(target))
    assert not any("adapter" in name for name, _ in model.named_parameters())


def test_adapters_beside_the_targets_mlps(trio):
    _, target, _, adapters = trio

    def add(mlp, inputs, output, layer):
        W_enc, b_enc, W_dec, b_dec = (adapters[layer].get_parameter(n) for n in ("W_enc", "b_enc", "W_dec", "b_dec"))
        return output + torch.clamp(inputs[0] @ W_enc + b_enc, min=0) @ W_dec + b_dec

    layers = target.base_model.layers
    hooks = [layer.mlp.register_forward_hook(partial(add, layer=n)) for n, layer in enumerate(layers)]
    expected = logits(target)
    for hook in hooks:
        hook.remove()
    model = made(trio, mlps="target")
    close(logits(model), expected)
    model.set_adapters_on(False)
    close(logits(model), logits(target))


def test_cache_and_left_padding_change_nothing(trio):
    model = made(trio, groups=GROUPS)
    model.set_groups_off(["mixed"])
    row = TOKENS[:1]
    found = model.generate(row, max_new_tokens=12, do_sample=False, eos_token_id=None, pad_token_id=0)
    slow = row
    for _ in range(12):  # the whole sequence anew for each token
        slow = torch.cat([slow, logits(model, slow)[:, -1].argmax(-1, keepdim=True)], dim=1)
    assert torch.equal(found, slow)
    padded = torch.cat([torch.zeros(1, 5, dtype=torch.long), row], dim=1)
    mask = (torch.arange(17) >= 5).long()[None]
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    close(logits(model, padded, attention_mask=mask, position_ids=positions)[:, 5:], logits(model, row))
    again = model.generate(
        padded, attention_mask=mask, max_new_tokens=12, do_sample=False, eos_token_id=None, pad_token_id=0
    )
    assert torch.equal(again[:, 5:], found)


def test_attention_is_fused_unless_it_is_capped(trio):
    model = made(trio)
    capped = getattr(model.config, "attn_logit_softcapping", None)
    assert model.config._attn_implementation == ("eager" if capped else "sdpa")
    if capped:
        model.config.attn_logit_softcapping = None
        for layer in model.base_model.layers:
            layer.self_attn.attn_logit_softcapping = None
    model.set_attn_implementation("sdpa")
    fused = logits(model)
    model.set_attn_implementation("eager")
    close(logits(model), fused)


def test_a_given_attention_is_called_with_what_is_passed_down(trio):
    """What an inference engine needs to put its own attention in."""
    model = made(trio)
    model.set_attn_implementation("eager")
    expected, seen = logits(model), []

    def own(module, query, key, value, attention_mask, **options):
        seen.append(options["engine"])
        length = query.shape[2]
        groups = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
        scores = query @ key.transpose(2, 3) * options["scaling"]
        if options.get("softcap"):
            scores = options["softcap"] * torch.tanh(scores / options["softcap"])
        places = torch.arange(length)
        hidden = places[None] > places[:, None]
        if options.get("sliding_window"):
            hidden |= places[None] <= places[:, None] - options["sliding_window"]
        weights = scores.masked_fill(hidden, -torch.inf).softmax(-1)
        return (weights @ value).transpose(1, 2).contiguous(), None

    assert type(model)._supports_attention_backend
    ALL_ATTENTION_FUNCTIONS.register("own", own)
    try:
        model.config._attn_implementation = "own"
        close(logits(model, engine="here"), expected)
    finally:
        ALL_ATTENTION_FUNCTIONS._global_mapping.pop("own")
    assert seen == ["here"] * N_LAYERS


def test_what_has_weights_is_a_linear_a_norm_or_an_embedding(trio):
    """What an inference engine can put its own layers in for."""
    model = made(trio)
    kinds = {type(module) for module in model.modules() if any(True for _ in module.parameters(recurse=False))}
    assert {kind for kind in kinds if "Norm" not in kind.__name__} == {torch.nn.Linear, torch.nn.Embedding}
    linear = {name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    prefix = f"{model.base_model_prefix}.layers.1.mlp.adapter"
    assert {name for name in linear if name.startswith(prefix)} == {f"{prefix}.encoder", f"{prefix}.decoder"}
    assert model.config.base_model_tp_plan
    assert model.config.base_model_pp_plan


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_bfloat16_model_with_adapters_of_either_type(dtype):
    base, target = (model.bfloat16() for model in tiny_pair("qwen2"))
    pair = load_pair(base, target, dtype=torch.bfloat16)
    adapters = random_adapters(pair.pair, dtype=dtype)
    model = adapter_model(Checkpoint.open(base), Checkpoint.open(target), adapters, dtype=torch.bfloat16)
    branch = model.branches()[0]
    assert (branch.encoder.weight.dtype, model.lm_head.weight.dtype) == (dtype, torch.bfloat16)
    with pair.adapters(adapters):
        close(logits(model).float(), logits(pair).float(), 0.05)
    x = torch.randn(3, D_MODEL, dtype=torch.bfloat16)
    expected = pair.blocks[0].mlp.base(x[None])[0] + adapters[0](x).to(torch.bfloat16)
    with torch.no_grad():
        close(model.base_model.layers[0].mlp(x).float(), expected.float(), 0.001 if dtype == torch.float32 else 0.04)


def test_weights_in_memory_are_shared_where_they_fit():
    base, target = tiny_pair("qwen2")
    pair = load_pair(base, target)
    model = adapter_model(Checkpoint.open(base), Checkpoint.open(target), random_adapters(pair.pair))
    own, theirs = model.state_dict(), target.state_dict()
    for name in ("lm_head.weight", "model.layers.1.self_attn.q_proj.weight"):
        assert own[name].data_ptr() == theirs[name].data_ptr()
    mlp = "model.layers.1.mlp.up_proj.weight"
    assert own[mlp].data_ptr() == base.state_dict()[mlp].data_ptr()


def test_what_does_not_fit_is_refused():
    base, target = tiny_pair("qwen2")
    opened = Checkpoint.open(base), Checkpoint.open(target)
    info = load_pair(base, target).pair
    narrow = AdapterSet.fresh(N_LAYERS, D_MODEL, 4, AdapterSetInfo(info))
    model = adapter_model(*opened, random_adapters(info), groups=GROUPS)
    with pytest.raises(AdapterSetError, match=rf"\({N_LAYERS}, {D_MODEL}, {N_FEATURES}\). Got"):
        set_adapters(model, narrow)
    with pytest.raises(ValueError, match=r"one of the configuration's \(first, mixed\). Got 'other'\."):
        model.set_groups_off(["first", "other"])
    assert model.config.groups_off == []
    with pytest.raises(AdapterSetError, match="same layers and width"):
        adapter_model(*opened, AdapterSet.fresh(N_LAYERS - 1, D_MODEL, 4, AdapterSetInfo(info)))
    with pytest.raises(FeatureGroupError, match=r"Features must be from 0\.0 to 2\.3"):
        adapter_model(*opened, narrow, groups=GROUPS)
    with pytest.raises(FeatureGroupError, match="Got 'first' twice"):
        adapter_model(*opened, random_adapters(info), groups=[GROUPS[0], GROUPS[0]])
    with pytest.raises(FeatureGroupError, match="Got 'first' without any"):
        adapter_model(*opened, None, groups=GROUPS)
    with pytest.raises(PairError, match="identical layers"):
        adapter_model(opened[1], opened[1], random_adapters(info))
    with pytest.raises(ValueError, match="Got layer 3, feature 0 in group 'g'"):
        modeling.LlamaTranscoderAdaptersConfig(num_hidden_layers=3, adapter_features=2, groups={"g": [[3, 0]]})


def test_the_modeling_file_stands_alone():
    """Copied beside weights, it has torch and transformers, and nothing of this package."""
    program = "import runpy, sys; runpy.run_path(sys.argv[1]); print('tc_adapters_lens' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program, modeling.__file__], capture_output=True, text=True, check=True
    )
    assert done.stdout.split()[-1] == "False"
