"""The authors' checkpoints: bit for bit both ways, equal to the replacement model, how they can be wrong."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import huggingface_hub
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel

from tc_adapters_lens.errors import AdapterSetError, CheckpointError
from tc_adapters_lens.models import authors_format
from tc_adapters_lens.models.adapter_set import AdapterSet, AdapterSetInfo
from tc_adapters_lens.models.authors_format import export_authors, import_authors
from tc_adapters_lens.models.checkpoints import Checkpoint
from tc_adapters_lens.models.pair import load_pair
from tc_adapters_lens.models.pair_info import PairInfo
from tests.tiny import D_MODEL, D_VOCAB, N_LAYERS, hybrid, nudged, tiny_pair, word_tokenizer

N_FEATURES = 8
ENC = "model.layers.1.mlp.transcoder_enc.weight"
DEC_BIAS = "model.layers.1.mlp.transcoder_dec.bias"
Models = tuple[PreTrainedModel, PreTrainedModel]


@pytest.fixture(scope="module")
def models() -> Models:
    return tiny_pair("qwen2")


@pytest.fixture(scope="module")
def pair(models: Models) -> PairInfo:
    base, target = (Checkpoint.open(model) for model in models)
    return PairInfo(base.name, target.name, None, None, base.fingerprint(), target.fingerprint())


@pytest.fixture
def adapters(pair: PairInfo) -> AdapterSet:
    shapes = {
        "W_enc": (N_LAYERS, D_MODEL, N_FEATURES),
        "b_enc": (N_LAYERS, N_FEATURES),
        "W_dec": (N_LAYERS, N_FEATURES, D_MODEL),
        "b_dec": (N_LAYERS, D_MODEL),
    }
    generator = torch.Generator().manual_seed(0)
    state = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    return AdapterSet.from_state(state, AdapterSetInfo(pair, {"lambda": 1e-3}))


@pytest.fixture
def exported(adapters: AdapterSet, models: Models, tmp_path: Path) -> Path:
    """A whole checkpoint in several shards."""
    base, target = (Checkpoint.open((model, word_tokenizer())) for model in models)
    export_authors(adapters, tmp_path / "whole", base, target, max_shard_bytes=20_000)
    return tmp_path / "whole"


@pytest.fixture
def alone(adapters: AdapterSet, tmp_path: Path) -> Path:
    """The adapter tensors in one file."""
    export_authors(adapters, tmp_path / "alone")
    return tmp_path / "alone"


def stored(directory: Path) -> dict[str, Tensor]:
    return {name: tensor for file in directory.glob("*.safetensors") for name, tensor in load_file(file).items()}


def same_bits(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        one[n].dtype == other[n].dtype and torch.equal(one[n].view(torch.uint8), other[n].view(torch.uint8))
        for n in one
    )


def rewrite(directory: Path, **changes: Tensor | None) -> None:
    """Change, add or (None) drop tensors of a checkpoint of one file."""
    (file,) = directory.glob("*.safetensors")
    tensors = {name: tensor for name, tensor in (load_file(file) | changes).items() if tensor is not None}
    save_file(tensors, file)
    index = {"weight_map": dict.fromkeys(tensors, file.name)}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))


def refusal(directory: Path, pair: PairInfo, n_layers: int = N_LAYERS, d_model: int = D_MODEL) -> str:
    with pytest.raises(AdapterSetError) as caught:
        import_authors(directory, pair, n_layers, d_model)
    assert "\n" not in str(caught.value)
    return str(caught.value)


class TestRoundTrip:
    def test_import_of_an_export(self, adapters, exported, alone, pair):
        for directory in (exported, alone):
            again = import_authors(directory, pair, N_LAYERS, D_MODEL)
            assert same_bits(again.state(), adapters.state())
            assert again.info.pair == pair
            assert again.info.recipe["imported"] == {
                "format": "authors",
                "checkpoint": str(directory),
                "revision": None,
                "transcoder_dec_bias": True,
            }

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    @pytest.mark.parametrize("dec_bias", [True, False])
    def test_export_of_an_import(self, tmp_path, pair, dtype, dec_bias):
        tensors = {}
        for layer in range(N_LAYERS):
            mlp = f"model.layers.{layer}.mlp."
            tensors[mlp + "transcoder_enc.weight"] = torch.randn(N_FEATURES, D_MODEL)
            tensors[mlp + "transcoder_enc.bias"] = torch.randn(N_FEATURES)
            tensors[mlp + "transcoder_dec.weight"] = torch.randn(D_MODEL, N_FEATURES)
            if dec_bias:
                tensors[mlp + "transcoder_dec.bias"] = torch.zeros(D_MODEL)
            tensors[mlp + "down_proj.weight"] = torch.randn(3, 3)
        tensors = {name: tensor.to(dtype) for name, tensor in tensors.items()}
        (tmp_path / "theirs").mkdir()
        save_file(tensors, tmp_path / "theirs" / "model.safetensors")

        imported = import_authors(tmp_path / "theirs", pair, N_LAYERS, D_MODEL)
        imported.save(tmp_path / "set")
        export_authors(AdapterSet.load(tmp_path / "set"), tmp_path / "ours")
        theirs = {name: tensor for name, tensor in tensors.items() if "transcoder" in name}
        assert imported.dtype == dtype
        assert same_bits(stored(tmp_path / "ours"), theirs)

    def test_a_bias_learned_after_an_import_without_one_is_kept(self, adapters, pair, tmp_path):
        recipe = {"imported": {"transcoder_dec_bias": False}}
        adapters.info = AdapterSetInfo(pair, recipe)
        export_authors(adapters, tmp_path / "a")
        assert torch.equal(stored(tmp_path / "a")[DEC_BIAS], adapters[1].b_dec)


class TestWholeCheckpoint:
    def test_its_other_tensors_are_the_hybrids(self, exported, models):
        rest = {name: tensor for name, tensor in stored(exported).items() if "transcoder" not in name}
        assert same_bits(rest, hybrid(*models).state_dict())

    def test_it_computes_the_replacement_model(self, exported, models, adapters):
        """A plain HF model of those tensors, with torch Linear layers as the authors have them."""
        tensors = stored(exported)
        plain = hybrid(*models)

        def add_branch(layer: int):
            enc, dec = torch.nn.Linear(D_MODEL, N_FEATURES), torch.nn.Linear(N_FEATURES, D_MODEL)
            for part, linear in (("enc", enc), ("dec", dec)):
                name = f"model.layers.{layer}.mlp.transcoder_{part}."
                linear.load_state_dict({kind: tensors[name + kind] for kind in ("weight", "bias")})
            mlp = plain.model.layers[layer].mlp
            mlp.register_forward_hook(lambda _, inputs, output: output + dec(torch.relu(enc(inputs[0]))))

        for layer in range(N_LAYERS):
            add_branch(layer)
        tokens = torch.randint(0, D_VOCAB, (2, 9), generator=torch.Generator().manual_seed(1))
        model = load_pair(*models)
        with torch.no_grad(), model.adapters(adapters):
            torch.testing.assert_close(model(tokens), plain(tokens).logits, atol=2e-5, rtol=1e-5)

    def test_configuration_and_tokenizer(self, exported, models):
        config = AutoConfig.from_pretrained(exported)
        assert config.architectures == ["Qwen2ForCausalLMWithTranscoder"]
        assert config.transcoder_n_features == N_FEATURES
        assert config.transcoder_dec_bias is True
        assert config.rope_theta == models[1].config.rope_theta
        assert AutoTokenizer.from_pretrained(exported)("w5")["input_ids"] == [5]

    def test_shards_are_of_the_size_asked_for(self, exported):
        files = sorted(exported.glob("*.safetensors"))
        assert len(files) > 4
        index = json.loads((exported / "model.safetensors.index.json").read_text())
        assert set(index["weight_map"].values()) == {file.name for file in files}
        assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in stored(exported).values())
        for file in files:
            tensors = load_file(file)
            assert sum(tensor.nbytes for tensor in tensors.values()) <= 20_000 or len(tensors) == 1
            with safe_open(str(file), "pt") as opened:
                assert opened.metadata() == {"format": "pt"}

    def test_from_directories(self, models, adapters, exported, tmp_path):
        opened = []
        for name, model in zip(("base", "target"), models, strict=True):
            model.save_pretrained(tmp_path / name)
            opened.append(Checkpoint.open(tmp_path / name))
        (tmp_path / "target" / "generation_config.json").write_text('{"temperature": 0.6}')
        export_authors(adapters, tmp_path / "out", *opened)
        assert same_bits(stored(tmp_path / "out"), stored(exported))
        assert json.loads((tmp_path / "out" / "generation_config.json").read_text()) == {"temperature": 0.6}

    def test_reading_it_needs_only_the_shards_with_adapters(self, exported, pair, adapters):
        for file in exported.glob("*.safetensors"):
            if not any("transcoder" in name for name in load_file(file)):
                file.unlink()
        assert same_bits(import_authors(exported, pair, N_LAYERS, D_MODEL).state(), adapters.state())

    def test_from_the_hub(self, exported, pair, adapters, monkeypatch):
        asked = []

        def download(repo_id, *, revision, allow_patterns, local_files_only):
            asked.append((repo_id, revision))
            return str(exported)

        monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
        imported = import_authors("authors/adapters", pair, N_LAYERS, D_MODEL, revision="v1")
        assert same_bits(imported.state(), adapters.state())
        assert asked == [("authors/adapters", "v1")]
        assert imported.info.recipe["imported"]["checkpoint"] == "authors/adapters"


class TestImportRefuses:
    def test_a_checkpoint_without_adapters(self, models, pair, tmp_path):
        models[0].save_pretrained(tmp_path / "plain")
        assert "must hold adapter tensors such as 'model.layers.0.mlp.transcoder_enc" in refusal(
            tmp_path / "plain", pair
        )

    def test_no_checkpoint(self, pair, tmp_path):
        with pytest.raises(CheckpointError, match="does not exist"):
            import_authors(tmp_path / "nothing", pair, N_LAYERS, D_MODEL)

    def test_a_truncated_file(self, alone, pair):
        (file,) = alone.glob("*.safetensors")
        file.write_bytes(file.read_bytes()[:-8])
        with pytest.raises(CheckpointError, match="is truncated"):
            import_authors(alone, pair, N_LAYERS, D_MODEL)

    @pytest.mark.parametrize("name", [ENC, DEC_BIAS])
    def test_a_missing_tensor(self, alone, pair, name):
        rewrite(alone, **{name: None})
        assert f"Got 11, 1 missing: {name}" in refusal(alone, pair)

    @pytest.mark.parametrize(
        "name", ["model.layers.1.mlp.transcoder_skip.weight", "layers.1.mlp.transcoder_enc.weight"]
    )
    def test_an_unexpected_tensor(self, alone, pair, name):
        rewrite(alone, **{name: torch.zeros(1)})
        assert f"Got 13, 1 unexpected: {name}" in refusal(alone, pair)

    def test_another_number_of_layers(self, alone, pair):
        assert "for 4 layers. Got 12, 4 missing: model.layers.3.mlp" in refusal(alone, pair, n_layers=4)
        assert "for 2 layers. Got 12, 4 unexpected: model.layers.2.mlp" in refusal(alone, pair, n_layers=2)

    def test_another_width(self, alone, pair):
        assert "must be [8, 16] (8 features of width 16). Got [8, 32]" in refusal(alone, pair, d_model=16)

    def test_a_transposed_tensor(self, alone, pair):
        rewrite(alone, **{ENC: torch.zeros(D_MODEL, N_FEATURES)})
        assert f"{ENC} must be [8, 32] (8 features of width 32). Got [32, 8]" in refusal(alone, pair)

    @pytest.mark.parametrize("value", [float("nan"), float("-inf")])
    def test_values_that_are_not_finite(self, alone, pair, value):
        rewrite(alone, **{DEC_BIAS: torch.tensor([value] * 2 + [0.0] * (D_MODEL - 2))})
        assert f"{DEC_BIAS} must be finite. Got 2 NaN or infinite" in refusal(alone, pair)

    def test_layers_of_two_dtypes(self, alone, pair):
        rewrite(alone, **{ENC: torch.zeros(N_FEATURES, D_MODEL, dtype=torch.bfloat16)})
        assert "one dtype" in refusal(alone, pair)

    def test_whole_numbers(self, alone, pair):
        rewrite(alone, **{ENC: torch.zeros(N_FEATURES, D_MODEL, dtype=torch.int64)})
        assert "must hold floating-point numbers. Got torch.int64" in refusal(alone, pair)

    def test_a_configuration_that_promises_a_bias(self, exported, pair):
        (exported / "config.json").write_text('{"transcoder_dec_bias": false}')
        assert "3 unexpected: model.layers.0.mlp.transcoder_dec.bias" in refusal(exported, pair)

    def test_a_configuration_of_another_size(self, exported, pair):
        (exported / "config.json").write_text('{"transcoder_n_features": 9}')
        assert "must be [9, 32] (9 features of width 32). Got [8, 32]" in refusal(exported, pair)


class TestExportRefuses:
    def test_one_model_alone(self, adapters, models, tmp_path):
        with pytest.raises(AdapterSetError, match=r"needs base and target\. Got one"):
            export_authors(adapters, tmp_path / "out", base=Checkpoint.open(models[0]))

    def test_another_pair(self, adapters, models, tmp_path):
        base, target = Checkpoint.open(models[0]), Checkpoint.open(nudged(models[1], 0.1, seed=5))
        with pytest.raises(AdapterSetError, match="were trained on another pair: target in memory"):
            export_authors(adapters, tmp_path / "out", base, target)
        assert not list(tmp_path.iterdir())
        export_authors(adapters, tmp_path / "out", base, target, allow_other_pair=True)

    def test_models_of_another_depth(self, adapters, models, tmp_path):
        deep = [Checkpoint.open(model) for model in tiny_pair("qwen2", num_hidden_layers=2)]
        with pytest.raises(AdapterSetError, match=r"Got \(3, 32\) \(adapters\) and \(2, 32\) \(models\)"):
            export_authors(adapters, tmp_path / "out", *deep, allow_other_pair=True)

    def test_models_of_another_layout(self, adapters, tmp_path):
        neox = [Checkpoint.open(model) for model in tiny_pair("neox")]
        with pytest.raises(AdapterSetError, match=r"Got gpt_neox\. Export without base and target"):
            export_authors(adapters, tmp_path / "out", *neox, allow_other_pair=True)

    def test_mlps_of_another_shape(self, adapters, models, tmp_path):
        wide = Checkpoint.open(tiny_pair("qwen2", intermediate_size=64)[0])
        with pytest.raises(AdapterSetError, match=r"one shape in base and target. Got \(32, 64\) \(base\)"):
            export_authors(adapters, tmp_path / "out", wide, Checkpoint.open(models[1]), allow_other_pair=True)

    def test_a_directory_that_is_taken(self, adapters, exported):
        with pytest.raises(AdapterSetError, match="is not replaced"):
            export_authors(adapters, exported)

    def test_disk_full(self, adapters, tmp_path, monkeypatch):
        def full(*_, **__):
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(authors_format, "save_file", full)
        with pytest.raises(AdapterSetError, match="no space left on its disk"):
            export_authors(adapters, tmp_path / "out")
        assert not list(tmp_path.iterdir())
