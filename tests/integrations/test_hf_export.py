"""What `export --format hf` writes, loaded back by transformers alone."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from tc_adapters_lens.cli.main import main
from tc_adapters_lens.errors import AdapterSetError, CheckpointError
from tc_adapters_lens.integrations.hf import modeling_transcoder_adapters as modeling
from tc_adapters_lens.integrations.hf.export import export_hf
from tc_adapters_lens.models.adapter_set import AdapterSet
from tc_adapters_lens.models.checkpoints import Checkpoint
from tc_adapters_lens.models.feature_group import FeatureGroup
from tc_adapters_lens.models.pair import load_pair
from tests.integrations.test_hf_model import GROUPS, TOKENS, close, logits, random_adapters, without
from tests.tiny import FAMILY_CONFIGS, hybrid, save, tiny_pair, word_tokenizer

TRUSTED = {"trust_remote_code": True, "local_files_only": True}
TEMPLATE = "{% for m in messages %}{{ m['content'] }}{% endfor %}"


@pytest.fixture(scope="module", params=FAMILY_CONFIGS)
def exported(request, tmp_path_factory):
    """(directory, base, target, pair, adapters) of a family."""
    root = tmp_path_factory.mktemp(request.param)
    base, target = tiny_pair(request.param)
    target.generation_config = GenerationConfig(do_sample=True, temperature=0.6, top_p=0.95, eos_token_id=[2, 7])
    tokenizer = word_tokenizer()
    tokenizer.chat_template = TEMPLATE
    opened = [
        Checkpoint.open(save(model, root / role, tokenizer)) for role, model in (("base", base), ("target", target))
    ]
    pair = load_pair(root / "base", root / "target")
    adapters = random_adapters(pair.pair)
    export_hf(root / f"{request.param}.out", *opened, adapters, groups=GROUPS)
    return root / f"{request.param}.out", base, target, pair, adapters


def load(directory: Path, kind=AutoModelForCausalLM, **options):
    return kind.from_pretrained(directory, **TRUSTED, **options).eval()


def test_it_loads_as_the_replacement_model(exported):
    directory, base, target, pair, adapters = exported
    model = load(directory)
    assert type(model).__module__.startswith("transformers_modules.")
    with pair.adapters(adapters):
        close(logits(model), logits(pair))
    model.set_groups_off(["mixed"])
    with pair.adapters(without(adapters, GROUPS[1])):
        close(logits(model), logits(pair))
    model.set_adapters_on(False)
    close(logits(model), logits(hybrid(base, target)))
    off = load(directory, groups_off=["first", "mixed"])
    with pair.adapters(without(adapters, *GROUPS)):
        close(logits(off), logits(pair))
    close(logits(load(directory, adapters_on=False)), logits(hybrid(base, target)))


def test_the_body_loads_alone(exported):
    directory, *_ = exported
    whole, body = load(directory), load(directory, AutoModel)
    assert type(body).__name__.endswith("TranscoderAdaptersModel")
    with torch.no_grad():
        hidden = body(TOKENS).last_hidden_state
        close(hidden, whole.base_model(TOKENS).last_hidden_state, 1e-6)


def test_saved_again_it_is_the_same_bytes(exported, tmp_path):
    directory = exported[0]
    model = load(directory)
    model.save_pretrained(tmp_path / "again")
    for name in ("model.safetensors", "config.json", "generation_config.json", Path(modeling.__file__).name):
        assert (tmp_path / "again" / name).read_bytes() == (directory / name).read_bytes(), name
    model.set_groups_off(["first"])
    model.save_pretrained(tmp_path / "off")
    assert torch.equal(logits(load(tmp_path / "off")), logits(model))


def test_generation_and_tokens_are_the_targets(exported):
    directory = exported[0]
    tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
    assert tokenizer.chat_template == TEMPLATE
    assert tokenizer.get_vocab() == word_tokenizer().get_vocab()
    model = load(directory)
    assert (model.generation_config.temperature, model.generation_config.eos_token_id) == (0.6, [2, 7])
    options = {"max_new_tokens": 6, "do_sample": False, "temperature": None, "top_p": None, "pad_token_id": 0}
    assert model.generate(TOKENS, **options).shape[1] <= TOKENS.shape[1] + 6


def test_an_inference_engine_can_make_an_empty_one(exported):
    """As vLLM does: the body on the meta device, from the configuration alone."""
    config = AutoConfig.from_pretrained(exported[0], **TRUSTED)
    assert config.model_type.endswith("_transcoder_adapters")
    with torch.device("meta"):
        model = AutoModel.from_config(config, trust_remote_code=True)
    assert model._supports_attention_backend
    assert {type(module) for module in model.modules() if type(module).__name__ == "Linear"} == {torch.nn.Linear}
    stored = {name.removeprefix(f"{model.base_model_prefix}.") for name in load(exported[0]).state_dict()}
    assert {name for name, _ in model.named_parameters()} <= stored
    assert all(parameter.is_meta for parameter in model.parameters())


def test_without_trust_no_code_is_run(exported):
    with pytest.raises(ValueError, match="trust_remote_code"):
        AutoModelForCausalLM.from_pretrained(exported[0], trust_remote_code=False)


@pytest.fixture
def saved(tmp_path):
    """(base, target) checkpoints of a small pair in bfloat16, and adapters in float32, with their directories."""
    names = []
    for role, model in zip(("base", "target"), tiny_pair("qwen2"), strict=True):
        names.append(save(model.bfloat16(), tmp_path / role, word_tokenizer()))
    adapters = random_adapters(load_pair(*names).pair)
    adapters.save(tmp_path / "run" / "adapters")
    return *map(Checkpoint.open, names), adapters


def test_float32_adapters_stay_so_in_a_bfloat16_model(saved, tmp_path):
    *pair, adapters = saved
    export_hf(tmp_path / "out", *pair, adapters)
    mixed = load(tmp_path / "out", dtype="auto")
    assert mixed.lm_head.weight.dtype == torch.bfloat16
    assert {p.dtype for branch in mixed.branches() for p in branch.parameters()} == {torch.float32}
    assert torch.equal(mixed.branches()[1].encoder.weight, adapters[1].W_enc.T)
    assert load(tmp_path / "out", dtype=torch.float32).lm_head.weight.dtype == torch.float32
    text = (tmp_path / "out" / "README.md").read_text()
    assert "keeps the adapters of this model in float32" in text
    assert "has not been run with" in text
    assert str(tmp_path / "out") not in text


def test_what_cannot_be_written_is_left_alone(saved, tmp_path):
    base, target, adapters = saved
    path = tmp_path / "target" / "generation_config.json"
    path.write_text(json.dumps({"do_sample": False, "temperature": 0.5}))
    with pytest.raises(CheckpointError, match="one that transformers writes"):
        export_hf(tmp_path / "out", base, target, adapters)
    path.unlink()
    with pytest.raises(AdapterSetError, match="trained on another pair"):
        export_hf(tmp_path / "out", target, base, adapters)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").touch()
    with pytest.raises(AdapterSetError, match="something else"):
        export_hf(tmp_path / "taken", base, target, adapters)
    assert not (tmp_path / "out").exists()


def test_the_verb(saved, tmp_path, capsys):
    _, _, adapters = saved
    FeatureGroup("some", ((0, 1), (2, 3)), adapters_fingerprint=adapters.fingerprint()).save(tmp_path / "some.json")
    argv = ["export", "--run", str(tmp_path / "run"), "--format", "hf", "--group", str(tmp_path / "some.json")]
    result = tmp_path / "result.json"
    assert main([*argv, "--out", str(tmp_path / "out"), "--dtype", "float32", "--json", str(result)]) == 0
    assert "replacement model (3 layers, 20 features each) written to" in capsys.readouterr().out
    assert json.loads(result.read_text())["mlps"] == "base"
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["groups"] == {"some": [[0, 1], [2, 3]]}
    assert config["groups_off"] == []
    assert config["dtype"] == "float32"
    assert str(tmp_path) not in (tmp_path / "out" / "config.json").read_text()
    assert main([*argv, "--mlps", "target", "--out", str(tmp_path / "around")]) == 0
    assert "The target with adapters added" in (tmp_path / "around" / "README.md").read_text()
    assert main([*argv, "--out", str(tmp_path / "out")]) == 1
    assert main([*argv, "--adapters", "a", "--out", str(tmp_path / "b")]) == 2
    assert "Got --run and --adapters." in capsys.readouterr().err


def test_it_runs_without_this_package(saved, tmp_path):
    *pair, adapters = saved
    export_hf(tmp_path / "out", *pair, adapters, groups=GROUPS[:1])
    program = (
        "import sys, torch; from transformers import AutoModelForCausalLM as A;"
        "m = A.from_pretrained(sys.argv[1], trust_remote_code=True, dtype=torch.float32);"
        "m.set_groups_off(['first']);"
        "print(m(torch.tensor([[1, 5, 9]])).logits.shape, 'tc_adapters_lens' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-c", program, str(tmp_path / "out")], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "torch.Size([1, 3, 97]) False"


def test_adapters_are_not_changed_by_it(saved, tmp_path):
    *pair, adapters = saved
    before = adapters.fingerprint()
    export_hf(tmp_path / "out", *pair, adapters)
    assert adapters.fingerprint() == before == AdapterSet.load(tmp_path / "run" / "adapters").fingerprint()
