"""Loading a pair: every source, every check and its message, and what is kept in memory."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, PreTrainedModel

from tc_adapters_lens.errors import AdapterLensError, CheckpointError, PairError
from tc_adapters_lens.models.pair import load_base, load_pair
from tests.tiny import D_VOCAB, FAMILY_CONFIGS, hybrid, nudged, save, tiny_model, tiny_pair, word_tokenizer

TOKENS = torch.randint(0, D_VOCAB, (2, 12), generator=torch.Generator().manual_seed(0))
WEIGHTS = "model.safetensors"
MLP = "model.layers.1.mlp.up_proj.weight"
ATTENTION = "model.layers.1.self_attn.q_proj.weight"


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Path, Path]:
    """A pair of saved models with tokenizers."""
    base, target = tiny_pair("qwen2")
    return (
        save(base, tmp_path / "base", word_tokenizer()),
        save(target, tmp_path / "target", word_tokenizer()),
    )


def refusal(base, target, error: type[AdapterLensError] = PairError, **options) -> str:
    """The message with which a pair is refused: one line."""
    with pytest.raises(error) as caught:
        load_pair(base, target, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def rewrite(directory: Path, **changes: torch.Tensor | None) -> None:
    """Change or (None) drop tensors of a saved model."""
    tensors = load_file(directory / WEIGHTS) | changes
    save_file({n: t for n, t in tensors.items() if t is not None}, directory / WEIGHTS, {"format": "pt"})


def configure(directory: Path, **changes: object) -> None:
    """Change settings in a saved model's config.json."""
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def spoiled(directory: Path, name: str, value: float) -> torch.Tensor:
    """A saved model's tensor with one element replaced."""
    tensor = load_file(directory / WEIGHTS)[name].clone()
    tensor.view(-1)[5] = value
    return tensor


# What can be loaded


@pytest.mark.parametrize("as_text", [True, False])
def test_local_directories(saved, as_text):
    base, target = saved
    model = load_pair(*((str(base), str(target)) if as_text else saved))
    assert (model.pair.base_name, model.pair.target_name) == (str(base), str(target))
    assert model.pair.base_revision is model.pair.target_revision is None
    assert model.tokenizer is not None
    with torch.no_grad():
        _, target_model = tiny_pair("qwen2")
        torch.testing.assert_close(model(TOKENS), target_model(TOKENS).logits, atol=1e-5, rtol=0)


def test_sharded_directories_load_as_whole_ones(saved, tmp_path):
    shards = []
    for name, model in zip(("base", "target"), tiny_pair("qwen2"), strict=True):
        model.save_pretrained(tmp_path / "sharded" / name, max_shard_size="20KB")
        shards.append(tmp_path / "sharded" / name)
        assert len(list(shards[-1].glob("*.safetensors"))) > 3
    whole, sharded = load_pair(*saved), load_pair(*shards)
    assert whole.pair.base_fingerprint == sharded.pair.base_fingerprint
    for (name, ours), theirs in zip(whole.state_dict().items(), sharded.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs), name


def test_loaded_models_with_and_without_tokenizers(saved):
    base, target = tiny_pair("qwen2")
    bare = load_pair(base, target)
    assert bare.tokenizer is None
    assert bare.pair.base_name == bare.pair.target_name == "in memory"
    with_tokenizers = load_pair((base, word_tokenizer()), (target, word_tokenizer()))
    assert with_tokenizers.to_tokens("w5 w6", prepend_bos=False).tolist() == [[5, 6]]
    from_files = load_pair(*saved)
    assert from_files.pair.target_fingerprint == bare.pair.target_fingerprint
    assert torch.equal(from_files(TOKENS), bare(TOKENS))


def test_a_file_and_a_loaded_model_make_a_pair(saved):
    base, target = tiny_pair("qwen2")
    expected = load_pair(base, target)(TOKENS)
    assert torch.equal(load_pair(saved[0], target)(TOKENS), expected)
    assert torch.equal(load_pair(base, saved[1])(TOKENS), expected)


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("wanted", [torch.float32, torch.bfloat16])
def test_any_stored_precision_loads_in_any_other(tmp_path, stored, wanted):
    base, target = (model.to(stored) for model in tiny_pair("qwen2"))
    directories = save(base, tmp_path / "base"), save(target, tmp_path / "target")
    model = load_pair(*directories, dtype=wanted)
    assert {param.dtype for param in model.parameters()} == {wanted}
    assert model.cfg.dtype == wanted
    layer = target.model.layers[1].mlp
    assert torch.equal(model.mlps[1].W_in, layer.up_proj.weight.T.to(wanted))
    with torch.no_grad():
        expected = AutoModelForCausalLM.from_pretrained(directories[1], dtype=wanted)(TOKENS).logits
        torch.testing.assert_close(model(TOKENS), expected, atol=1e-5 if wanted == torch.float32 else 0.1, rtol=0)


def test_a_pair_of_different_precisions_loads(tmp_path):
    base, target = tiny_pair("qwen2")
    model = load_pair(save(base.bfloat16(), tmp_path / "base"), save(target, tmp_path / "target"))
    assert torch.equal(model.mlps[0].base.W_in, base.model.layers[0].mlp.up_proj.weight.T.float())


@pytest.mark.parametrize("family", FAMILY_CONFIGS)
@pytest.mark.parametrize("tied", [True, False])
def test_tied_and_untied_embeddings_of_every_family(family, tied, tmp_path):
    base, target = tiny_pair(family, tie_word_embeddings=tied)
    for model in (base, target):
        model.tie_weights()
    model = load_pair(save(base, tmp_path / "base"), save(target, tmp_path / "target"))
    with torch.no_grad():
        torch.testing.assert_close(model(TOKENS), target(TOKENS).logits, atol=3e-5, rtol=0)


def test_a_tied_base_and_an_untied_target_make_a_pair(tmp_path):
    """As Qwen2.5-Math-1.5B and its R1 distill."""
    base, target = tiny_model("qwen2", tie_word_embeddings=True), tiny_model("qwen2", seed=1)
    base.tie_weights()
    model = load_pair(save(base, tmp_path / "base"), save(target, tmp_path / "target"))
    with torch.no_grad(), model.mode("base"):
        torch.testing.assert_close(model(TOKENS), hybrid(base, target)(TOKENS).logits, atol=3e-5, rtol=0)


# Families' settings, against plain HF models

_SHAPE = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": D_VOCAB,
    "max_position_embeddings": 1024,
}
_WINDOW = {"use_sliding_window": True, "sliding_window": 7, "max_window_layers": 1}
SETTINGS: dict[str, Callable[[], transformers.PretrainedConfig]] = {
    "qwen2, sliding window above layer 1": lambda: transformers.Qwen2Config(**_WINDOW, **_SHAPE),
    "qwen2, window switched off": lambda: transformers.Qwen2Config(**_WINDOW | {"use_sliding_window": False}, **_SHAPE),
    "qwen2, head_dim": lambda: transformers.Qwen2Config(head_dim=16, **_SHAPE),
    "qwen3, sliding window above layer 1": lambda: transformers.Qwen3Config(head_dim=16, **_WINDOW, **_SHAPE),
    "qwen3, no grouped heads": lambda: transformers.Qwen3Config(head_dim=12, **_SHAPE | {"num_key_value_heads": 4}),
    "gemma2, default layer types": lambda: transformers.Gemma2Config(head_dim=16, sliding_window=7, **_SHAPE),
    "gemma2, no soft caps": lambda: transformers.Gemma2Config(
        head_dim=8,
        sliding_window=7,
        attn_logit_softcapping=None,
        final_logit_softcapping=None,
        query_pre_attn_scalar=20,
        **_SHAPE,
    ),
    "mistral, no window": lambda: transformers.MistralConfig(sliding_window=None, **_SHAPE),
    "mistral, head_dim": lambda: transformers.MistralConfig(
        sliding_window=None, head_dim=16, **_SHAPE | {"num_key_value_heads": 4}
    ),
    "llama, linear rope": lambda: transformers.LlamaConfig(
        rope_scaling={"rope_type": "linear", "factor": 4.0}, **_SHAPE
    ),
    "llama, linear rope, old key": lambda: transformers.LlamaConfig(
        rope_scaling={"type": "linear", "factor": 4.0}, **_SHAPE
    ),
    "llama, head_dim and gelu": lambda: transformers.LlamaConfig(head_dim=16, hidden_act="gelu", **_SHAPE),
    "llama, one key/value head": lambda: transformers.LlamaConfig(**_SHAPE | {"num_key_value_heads": 1}),
    "neox, rotary part not whole": lambda: transformers.GPTNeoXConfig(rotary_pct=0.6, hidden_act="gelu_fast", **_SHAPE),
    "neox, linear rope, relu": lambda: transformers.GPTNeoXConfig(
        rotary_pct=0.5, hidden_act="relu", rope_scaling={"rope_type": "linear", "factor": 2.0}, **_SHAPE
    ),
}


@pytest.mark.parametrize("setting", SETTINGS)
def test_settings_that_are_supported_give_the_logits_of_hf(setting):
    config = SETTINGS[setting]()
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    model.config.architectures = [type(model).__name__]
    base, target = nudged(model, 0.1, seed=0), nudged(model, 0.1, seed=1)
    tokens = torch.randint(0, D_VOCAB, (2, 600))  # past the size at which position buffers start
    pair = load_pair(base, target)
    with torch.no_grad():
        torch.testing.assert_close(pair(tokens), target(tokens).logits, atol=3e-5, rtol=0)
        with pair.mode("base"):
            torch.testing.assert_close(pair(tokens), hybrid(base, target)(tokens).logits, atol=3e-5, rtol=0)


@pytest.mark.parametrize(
    ("family", "setting", "says"),
    [
        ("llama", {"attention_bias": True}, "attention_bias=False only. Got attention_bias=True."),
        ("llama", {"mlp_bias": True}, "mlp_bias=False only. Got mlp_bias=True."),
        ("qwen3", {"attention_bias": True}, "attention_bias=False only. Got attention_bias=True."),
        ("gemma2", {"attention_bias": True}, "attention_bias=False only. Got attention_bias=True."),
        ("neox", {"attention_bias": False}, "attention_bias=True only. Got attention_bias=False."),
        ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor=1.0 only. Got partial_rotary_factor=0.5."),
        (
            "qwen2",
            {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}},
            "rope_scaling must be one of default, linear, llama3. Got yarn.",
        ),
        (
            "llama",
            {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}},
            "Got none of low_freq_factor, high_freq_factor, original_max_position_embeddings.",
        ),
        ("llama", {"hidden_act": "silu2"}, "The activation must be one of silu, gelu"),
    ],
)
def test_settings_that_are_not_supported_are_refused(family, setting, says):
    base, target = tiny_pair(family)
    for model in (base, target):
        for key, value in setting.items():
            setattr(model.config, key, value)
    assert says in refusal(base, target, CheckpointError)


@pytest.mark.parametrize("role", ["base", "target"])
def test_quantized_weights_are_refused(role, saved):
    directory = saved[role == "target"]
    configure(directory, quantization_config={"quant_method": "gptq", "bits": 4})
    message = refusal(*saved, error=CheckpointError)
    assert message.startswith("Weights must be stored in float32, bfloat16 or float16. Got a Qwen2ForCausalLM")
    assert "quant_method gptq" in message


def test_an_unsupported_architecture_names_the_nearest(saved):
    for directory in saved:
        configure(directory, architectures=["Qwen2MoeForCausalLM"])
    message = refusal(*saved, error=CheckpointError)
    assert "Got Qwen2MoeForCausalLM. Did you mean 'Qwen2ForCausalLM'?" in message
    assert "GPTNeoXForCausalLM" in message


def test_an_architecture_of_another_make_is_one_line(tmp_path):
    config = transformers.GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=D_VOCAB, n_positions=64)
    model = AutoModelForCausalLM.from_config(config)
    directory = save(model, tmp_path / "gpt2")
    assert "Got GPT2LMHeadModel." in refusal(directory, directory, CheckpointError)


# Two models that do not fit


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"num_hidden_layers": 2}, "number of layers. Got 3 (base) and 2 (target)."),
        ({"hidden_size": 48}, "residual width (hidden_size). Got 32 (base) and 48 (target)."),
        ({"intermediate_size": 64}, "MLP width (intermediate_size). Got 48 (base) and 64 (target)."),
        ({"num_attention_heads": 8}, "number of attention heads. Got 4 (base) and 8 (target)."),
        ({"num_key_value_heads": 4}, "number of key/value heads. Got 2 (base) and 4 (target)."),
        ({"head_dim": 16}, "head width (head_dim). Got 8 (base) and 16 (target)."),
        ({"hidden_act": "gelu"}, "activation. Got silu (base) and gelu (target)."),
        ({"rms_norm_eps": 1e-5}, "norm epsilon. Got 1e-06 (base) and 1e-05 (target)."),
        ({"vocab_size": 101}, "vocabulary size. Got 97 (base) and 101 (target)."),
    ],
)
def test_a_setting_that_differs_is_named_with_both_values(changes, says):
    config = FAMILY_CONFIGS["qwen2"]()
    for key, value in changes.items():
        setattr(config, key, value)
    config.layer_types = config.layer_types[: config.num_hidden_layers]
    target = AutoModelForCausalLM.from_config(config)
    target.config.architectures = ["Qwen2ForCausalLM"]
    message = refusal(tiny_model("qwen2"), target)
    assert message.startswith(f"base and target must have the same {says}")
    assert message.endswith("Name the model that the target was fine-tuned from.")


def test_another_architecture_is_named(saved):
    message = refusal(tiny_model("llama"), saved[1])
    assert "same architecture. Got LlamaForCausalLM (base) and Qwen2ForCausalLM (target)." in message


def test_biases_of_the_base_that_would_be_dropped_are_refused():
    base, target = tiny_pair("llama")
    base.config.mlp_bias = True
    assert "MLP biases (mlp_bias). Got True (base) and False (target)." in refusal(base, target)


def renamed(**names: str):
    """The word tokenizer with some words renamed."""
    tokenizer = word_tokenizer()
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    vocab = state["model"]["vocab"]
    state["model"]["vocab"] = {names.get(word, word): index for word, index in vocab.items()}
    tokenizer._tokenizer = type(tokenizer.backend_tokenizer).from_str(json.dumps(state))
    return tokenizer


def test_tokenizers_that_disagree_are_named():
    base, target = tiny_pair("qwen2")
    message = refusal((base, word_tokenizer()), (target, renamed(w5="<think>", w9="</think>")))
    assert "id 5: 'w5' (base), '<think>' (target); id 9: 'w9' (base), '</think>' (target)." in message
    assert "set allow_tokenizer_mismatch" in message


def test_only_the_first_of_many_tokens_are_named():
    base, target = tiny_pair("qwen2")
    message = refusal((base, word_tokenizer(90)), (target, word_tokenizer()))
    assert "id 90: None (base), 'w90' (target); id 91: None (base), 'w91' (target)" in message
    assert message.count("(base)") == 3
    assert "and 4 more" in message


def test_a_mismatch_that_is_allowed_uses_the_targets_tokenizer():
    base, target = tiny_pair("qwen2")
    model = load_pair((base, word_tokenizer()), (target, renamed(w5="<think>")), allow_tokenizer_mismatch=True)
    assert model.to_tokens("<think>", prepend_bos=False).tolist() == [[5]]


def test_a_model_without_a_tokenizer_is_no_mismatch():
    base, target = tiny_pair("qwen2")
    assert load_pair(base, (target, word_tokenizer())).tokenizer is not None
    assert load_pair((base, word_tokenizer()), target).tokenizer is None


def test_identical_mlps_are_refused(saved):
    base = tiny_model("qwen2")
    only_attention = nudged(base, 0.05, seed=1, only="self_attn")
    half = copy.deepcopy(base).bfloat16()
    for pair in ((base, only_attention), (base, base), (saved[0], saved[0]), (half, only_attention)):
        message = refusal(*pair)
        assert message.startswith("base and target must have different MLPs. Got 3 identical layers in")
        assert "nothing to learn" in message
    load_pair(base, nudged(base, 0.05, seed=1, only="layers.2.mlp.down_proj"))


# Files that are not what they should be


@pytest.mark.parametrize("role", ["base", "target"])
def test_a_missing_path(role, saved, tmp_path):
    pair = list(saved)
    pair[role == "target"] = tmp_path / "absent"
    assert "absent does not exist. Name a local model directory or a hub id" in refusal(*pair, error=CheckpointError)


@pytest.mark.parametrize("role", ["base", "target"])
def test_not_a_model_directory(role, saved, tmp_path):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "read.me").write_text("")
    pair = list(saved)
    pair[role == "target"] = tmp_path / "notes"
    message = refusal(*pair, error=CheckpointError)
    assert "is not a model directory: it has no config.json (it holds read.me)" in message


def test_an_uncached_hub_id_offline(saved):
    message = refusal("nobody/no-such-model", saved[1], CheckpointError)
    assert "'nobody/no-such-model' is neither a local directory nor in the hub cache" in message


@pytest.mark.parametrize("role", ["base", "target"])
def test_truncated_weights(role, saved):
    path = saved[role == "target"] / WEIGHTS
    path.write_bytes(path.read_bytes()[:-100])
    message = refusal(*saved, error=CheckpointError)
    assert "is truncated: its header needs" in message
    assert str(path) in message


@pytest.mark.parametrize(("role", "name"), [("base", MLP), ("target", MLP), ("target", ATTENTION)])
def test_a_missing_tensor(role, name, saved):
    directory = saved[role == "target"]
    rewrite(directory, **{name: None})
    message = refusal(*saved, error=CheckpointError)
    assert message.startswith(f"{directory} must hold every weight of Qwen2ForCausalLM. Got 1 of ")
    assert f"the first of them '{name}'" in message


@pytest.mark.parametrize("role", ["base", "target"])
def test_a_tensor_of_another_shape_than_the_config_says(role, saved):
    directory = saved[role == "target"]
    rewrite(directory, **{MLP: torch.randn(40, 32)})
    message = refusal(*saved, error=CheckpointError)
    assert f"{directory}: tensor '{MLP}' must have the shape" in message
    assert "[48, 32]. Got [40, 32]." in message


@pytest.mark.parametrize(("role", "name"), [("base", MLP), ("target", MLP), ("target", ATTENTION)])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite(role, name, value, saved):
    directory = saved[role == "target"]
    rewrite(directory, **{name: spoiled(directory, name, value)})
    message = refusal(*saved, error=CheckpointError)
    nan = int(value != value)
    assert f"{directory}: tensor '{name}' must be finite. Got {nan} NaN and {1 - nan} infinite of" in message


def test_weights_of_the_base_outside_its_mlps_do_not_matter(saved):
    expected = load_pair(*saved)
    rewrite(saved[0], **{ATTENTION: spoiled(saved[0], ATTENTION, float("nan"))})
    rewrite(saved[0], **{"lm_head.weight": None})
    model = load_pair(*saved)
    for mode in ("target", "base"):
        with model.mode(mode), expected.mode(mode):
            assert torch.equal(model(TOKENS), expected(TOKENS))
    with pytest.raises(CheckpointError, match="must hold every weight"):
        load_base(saved[0])


def test_the_whole_base_is_checked_when_it_is_loaded_whole(saved):
    rewrite(saved[0], **{ATTENTION: spoiled(saved[0], ATTENTION, float("nan"))})
    with pytest.raises(CheckpointError, match=r"must be finite\. Got 1 NaN"):
        load_base(saved[0])


# What is kept in memory


@pytest.fixture
def loaded_by_hf(monkeypatch) -> list[Path]:
    """Directories of which HF is asked to make a whole model."""
    seen: list[Path] = []
    whole = AutoModelForCausalLM.from_pretrained

    def counted(directory, *args, **kwargs):
        seen.append(directory)
        return whole(directory, *args, **kwargs)

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", counted)
    return seen


def test_only_the_target_is_ever_made_whole(saved, loaded_by_hf):
    load_pair(*saved)
    assert loaded_by_hf == [saved[1]]


def test_a_pair_holds_the_target_once_and_the_bases_mlps(saved):
    model = load_pair(*saved)
    _, target = tiny_pair("qwen2")
    held = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in model.parameters()}
    mlps = sum(t.numel() for n, t in target.named_parameters() if ".mlp." in n)
    whole = sum(t.numel() for t in target.parameters())
    zeros = sum(t.numel() for t in model.parameters() if not t.any())  # biases TransformerLens adds
    assert sum(held.values()) == 4 * (whole + mlps + zeros)


def test_models_in_memory_are_shared_not_copied(loaded_by_hf):
    base, target = tiny_pair("qwen2")
    model = load_pair(base, target)
    whole_base = load_base(base)
    assert not loaded_by_hf
    for layer in range(3):
        ours, theirs = target.model.layers[layer], base.model.layers[layer]
        assert model.blocks[layer].mlp.W_in.data_ptr() == ours.mlp.up_proj.weight.data_ptr()
        assert model.blocks[layer].mlp.W_out.data_ptr() == ours.mlp.down_proj.weight.data_ptr()
        assert model.blocks[layer].attn.W_Q.data_ptr() == ours.self_attn.q_proj.weight.data_ptr()
        assert model.blocks[layer].attn.W_O.data_ptr() == ours.self_attn.o_proj.weight.data_ptr()
        assert model.blocks[layer].mlp.base.W_gate.data_ptr() == theirs.mlp.gate_proj.weight.data_ptr()
        assert whole_base.blocks[layer].mlp.W_gate.data_ptr() == theirs.mlp.gate_proj.weight.data_ptr()
    assert model.embed.W_E.data_ptr() == target.model.embed_tokens.weight.data_ptr()
    assert model.unembed.W_U.data_ptr() == target.lm_head.weight.data_ptr()


def same_model(one: PreTrainedModel, other: PreTrainedModel) -> bool:
    return (
        one.config.to_dict() == other.config.to_dict()
        and one.training == other.training
        and all(
            n == m and torch.equal(a, b) and a.requires_grad == b.requires_grad and a.dtype == b.dtype
            for (n, a), (m, b) in zip(one.named_parameters(), other.named_parameters(), strict=True)
        )
    )


@pytest.mark.parametrize("family", FAMILY_CONFIGS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_models_in_memory_are_not_changed(family, dtype):
    base, target = tiny_pair(family)
    before = copy.deepcopy(base), copy.deepcopy(target)
    model = load_pair(base, target, dtype=dtype)
    model(TOKENS)
    load_base(base, dtype=dtype)
    assert same_model(base, before[0])
    assert same_model(target, before[1])


def test_tokenizers_in_memory_are_not_changed():
    base, target = tiny_pair("qwen2")
    tokenizers = word_tokenizer(), word_tokenizer()
    before = [copy.deepcopy(vars(tokenizer)) for tokenizer in tokenizers]
    model = load_pair((base, tokenizers[0]), (target, tokenizers[1]))
    load_base((base, tokenizers[0]))
    assert model.tokenizer is not tokenizers[1]
    for tokenizer, was in zip(tokenizers, before, strict=True):
        now = vars(tokenizer)
        assert {k: str(v) for k, v in now.items() if k != "_tokenizer"} == {
            k: str(v) for k, v in was.items() if k != "_tokenizer"
        }
        assert tokenizer.backend_tokenizer.to_str() == was["_tokenizer"].to_str()


@pytest.mark.parametrize("family", FAMILY_CONFIGS)
def test_the_whole_base_equals_hf(family, tmp_path):
    base, _ = tiny_pair(family)
    tokens = torch.randint(0, D_VOCAB, (2, 600))
    with torch.no_grad():
        expected = base(tokens).logits
        torch.testing.assert_close(load_base(base)(tokens), expected, atol=3e-5, rtol=0)
        from_file = load_base(save(base, tmp_path / "base", word_tokenizer()))
        torch.testing.assert_close(from_file(tokens), expected, atol=3e-5, rtol=0)
    assert from_file.cfg.n_ctx == 1024
