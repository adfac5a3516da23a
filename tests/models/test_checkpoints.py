"""Opening models: what is read, what fingerprints depend on, and every way a directory can be wrong."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
import torch
from huggingface_hub import constants
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from tc_adapters_lens.errors import CheckpointError
from tc_adapters_lens.models import hub
from tc_adapters_lens.models.checkpoints import Checkpoint
from tc_adapters_lens.models.pair_info import PairInfo
from tc_adapters_lens.models.tensor_files import INDEX_FILE, SINGLE_FILE
from tests.tiny import nudged, save, tiny_model, word_tokenizer

Q_PROJ = "model.layers.0.self_attn.q_proj.weight"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return tiny_model("qwen2")


@pytest.fixture
def directory(model: PreTrainedModel, tmp_path: Path) -> Path:
    return save(model, tmp_path / "model")


@pytest.fixture
def sharded(model: PreTrainedModel, tmp_path: Path) -> Path:
    model.save_pretrained(tmp_path / "sharded", max_shard_size="20KB")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 3
    return tmp_path / "sharded"


def refusal(source, revision=None, **options) -> str:
    """The message with which a source is refused: one line."""
    with pytest.raises(CheckpointError) as caught:
        Checkpoint.open(source, revision, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def rewrite(directory: Path, **changes: torch.Tensor | None) -> None:
    """Change, add or (None) drop tensors of a one-file model."""
    tensors = load_file(directory / SINGLE_FILE) | changes
    save_file({n: t for n, t in tensors.items() if t is not None}, directory / SINGLE_FILE, {"format": "pt"})


def test_a_directory_is_read_as_stored(model, directory):
    checkpoint = Checkpoint.open(directory)
    stored = model.state_dict()
    assert checkpoint.tensor_names() == sorted(stored)
    assert checkpoint.name == str(directory)
    assert checkpoint.directory == directory
    assert checkpoint.revision is checkpoint.model is checkpoint.tokenizer is None
    assert checkpoint.config.num_hidden_layers == model.config.num_hidden_layers
    assert checkpoint.shape(Q_PROJ) == tuple(stored[Q_PROJ].shape)
    assert torch.equal(checkpoint.tensor(Q_PROJ), stored[Q_PROJ])


def test_paths_may_be_text_and_have_a_home(directory, monkeypatch):
    monkeypatch.setenv("HOME", str(directory.parent))
    assert Checkpoint.open(f"~/{directory.name}").fingerprint() == Checkpoint.open(str(directory)).fingerprint()


def test_a_tokenizer_is_loaded_where_there_is_one(model, tmp_path):
    tokenizer = word_tokenizer()
    loaded = Checkpoint.open(save(model, tmp_path / "m", tokenizer)).tokenizer
    assert loaded is not None
    assert loaded("w5 w7")["input_ids"] == [5, 7]
    assert Checkpoint.open((model, tokenizer)).tokenizer is tokenizer


def test_a_broken_tokenizer_is_an_error_when_it_is_asked_for(model, tmp_path):
    directory = save(model, tmp_path / "m", word_tokenizer())
    (directory / "tokenizer.json").write_text("{")
    with pytest.raises(CheckpointError, match="tokenizer cannot be loaded"):
        _ = Checkpoint.open(directory).tokenizer


def test_a_loaded_model_is_named_as_it_would_be_stored(model, directory):
    checkpoint = Checkpoint.open(model)
    assert checkpoint.tensor_names() == Checkpoint.open(directory).tensor_names()
    assert (checkpoint.name, checkpoint.directory, checkpoint.model) == ("in memory", None, model)
    assert checkpoint.tensor(Q_PROJ).data_ptr() == model.get_parameter(Q_PROJ).data_ptr()
    assert not checkpoint.tensor(Q_PROJ).requires_grad


@pytest.mark.parametrize("family", ["qwen2", "gemma2", "neox"])
def test_a_tied_unembedding_is_not_stored(family, tmp_path):
    model = tiny_model(family, tie_word_embeddings=True)
    model.tie_weights()
    in_memory, on_disk = Checkpoint.open(model), Checkpoint.open(save(model, tmp_path / "m"))
    for checkpoint in (in_memory, on_disk):
        assert not checkpoint.has("lm_head.weight")
        assert not checkpoint.has("embed_out.weight")
    assert in_memory.tensor_names() == on_disk.tensor_names()
    assert in_memory.fingerprint() == on_disk.fingerprint()


def test_tensors_are_mapped_not_copied(tmp_path, model, directory):
    rewrite(directory, big=torch.zeros(2**24))  # 64 MiB
    before = resident_bytes()
    assert Checkpoint.open(directory).tensor("big")[12345] == 0
    assert resident_bytes() - before < 2**24


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1]) if Path("/proc/self/statm").exists() else 0
    return pages * 4096


def test_a_fingerprint_does_not_depend_on_how_weights_are_kept(model, directory, sharded, tmp_path):
    print_ = Checkpoint.open(directory).fingerprint()
    assert print_.startswith("sha256:")
    assert len(print_) == len("sha256:") + 64
    assert Checkpoint.open(sharded).fingerprint() == print_
    assert Checkpoint.open(model).fingerprint() == print_

    rounded = nudged(model, 0, 0).bfloat16()
    in_bfloat16 = Checkpoint.open(save(rounded, tmp_path / "bf16")).fingerprint()
    assert Checkpoint.open(rounded.float()).fingerprint() == in_bfloat16
    assert in_bfloat16 == print_  # the sample is rounded to bfloat16 either way


@pytest.mark.parametrize("name", ["model.norm.weight", "model.layers.2.mlp.down_proj.weight"])
def test_a_fingerprint_changes_with_any_tensor(name, model):
    changed = nudged(model, 0.02, seed=3, only=name)
    assert Checkpoint.open(changed).fingerprint() != Checkpoint.open(model).fingerprint()
    assert Checkpoint.open(changed).fingerprint([Q_PROJ]) == Checkpoint.open(model).fingerprint([Q_PROJ])


def test_a_fingerprint_tells_names_and_shapes_apart(tmp_path, model):
    prints = set()
    for number, tensors in enumerate([{"a": (2, 3)}, {"a": (3, 2)}, {"b": (2, 3)}, {"a": (0, 3)}]):
        directory = save(model, tmp_path / str(number))
        save_file({name: torch.zeros(shape) for name, shape in tensors.items()}, directory / SINGLE_FILE)
        prints.add(Checkpoint.open(directory).fingerprint())
    assert len(prints) == 4


def test_a_fingerprint_leaves_out_what_is_no_weight(directory, model):
    print_ = Checkpoint.open(directory).fingerprint()
    rewrite(directory, **{"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)})
    assert Checkpoint.open(directory).fingerprint() == print_


def test_values_that_are_not_finite_are_counted(directory, model):
    weight = model.state_dict()[Q_PROJ].clone()
    weight[0, 0], weight[1, 1:3] = float("nan"), float("inf")
    rewrite(directory, **{Q_PROJ: weight})
    checkpoint = Checkpoint.open(directory)
    checkpoint.check_finite(name for name in checkpoint.tensor_names() if name != Q_PROJ)
    with pytest.raises(CheckpointError, match=f"'{Q_PROJ}' must be finite. Got 1 NaN and 2 infinite of 1024"):
        checkpoint.check_finite(checkpoint.tensor_names())


def test_eight_bit_values_are_checked_too(directory):
    weight = torch.ones(4, 4).to(torch.float8_e4m3fn)
    weight.view(torch.uint8)[2, 1] = 0x7F  # NaN, in the only way this format writes it
    rewrite(directory, **{Q_PROJ: weight})
    with pytest.raises(CheckpointError, match="Got 1 NaN and 0 infinite of 16"):
        Checkpoint.open(directory).check_finite([Q_PROJ])


def test_an_unknown_tensor_is_named_with_its_neighbour(directory, model):
    for checkpoint in (Checkpoint.open(directory), Checkpoint.open(model)):
        with pytest.raises(CheckpointError, match=f"no tensor .* Did you mean '{Q_PROJ}'"):
            checkpoint.tensor(Q_PROJ.replace("q_proj", "q_prjo"))


def test_only_needs_only_the_shards_it_reads(sharded):
    weight_map = json.loads((sharded / INDEX_FILE).read_text())["weight_map"]
    for shard in set(weight_map.values()) - {weight_map[Q_PROJ]}:
        (sharded / shard).unlink()
    assert "are missing" in refusal(sharded)
    assert Checkpoint.open(sharded, only=lambda name: name == Q_PROJ).tensor_names() == [Q_PROJ]


class TestRefused:
    def test_a_path_that_is_not_there(self, tmp_path):
        assert "does not exist" in refusal(tmp_path / "nothing")
        assert "does not exist" in refusal(str(tmp_path / "nothing"))
        assert "does not exist" in refusal("./nothing")
        assert "does not exist" in refusal(Path("owner/name"))

    def test_a_file(self, directory):
        assert "is a file" in refusal(directory / "config.json")

    def test_a_thing_that_is_no_model(self):
        assert "Got int" in refusal(7)
        assert "Got str" in refusal(("model", None))

    def test_a_revision_of_a_directory(self, directory):
        assert "revision 'main'" in refusal(directory, "main")

    def test_a_model_without_its_weights(self, model):
        with torch.device("meta"):
            empty = type(model)(model.config)
        assert "meta device" in refusal(empty)

    def test_a_directory_without_config(self, directory):
        (directory / "config.json").unlink()
        assert "it has no config.json" in refusal(directory)

    @pytest.mark.parametrize(("config", "message"), [("{", "as JSON"), ("[]", "object"), ("{}", "transformers")])
    def test_a_config_that_is_none(self, directory, config, message):
        (directory / "config.json").write_text(config)
        assert message in refusal(directory)

    def test_a_model_that_brings_its_own_code(self, directory):
        config = json.loads((directory / "config.json").read_text())
        config |= {"model_type": "own", "auto_map": {"AutoConfig": "code.Config"}}
        (directory / "config.json").write_text(json.dumps(config))
        (directory / "code.py").write_text("raise SystemExit('was run')")
        assert "config.json cannot be used by transformers" in refusal(directory)

    def test_pickles_alone(self, directory):
        (directory / SINGLE_FILE).rename(directory / "pytorch_model.bin")
        assert "safe_serialization=True" in refusal(directory)

    def test_no_weights(self, directory):
        (directory / SINGLE_FILE).unlink()
        assert f"neither {SINGLE_FILE} nor {INDEX_FILE}" in refusal(directory)

    def test_a_missing_shard(self, sharded):
        shard = sorted(sharded.glob("*.safetensors"))[1]
        shard.unlink()
        assert f"1 are missing, first {shard.name}" in refusal(sharded)

    @pytest.mark.parametrize("index", ["no", "{}", '{"weight_map": {}}', '{"weight_map": {"a": "../../b"}}'])
    def test_a_broken_index(self, sharded, index):
        (sharded / INDEX_FILE).write_text(index)
        assert INDEX_FILE in refusal(sharded)

    def test_an_index_that_does_not_fit_its_files(self, sharded):
        index = json.loads((sharded / INDEX_FILE).read_text())
        index["weight_map"]["another"] = index["weight_map"][Q_PROJ]
        (sharded / INDEX_FILE).write_text(json.dumps(index))
        assert "places 'another' in" in refusal(sharded)

    def test_a_truncated_file_with_both_sizes(self, directory):
        file = directory / SINGLE_FILE
        size = file.stat().st_size
        with file.open("r+b") as opened:
            opened.truncate(size - 1000)
        assert f"{file} is truncated: its header needs {size} bytes, it has {size - 1000}." in refusal(directory)

    def test_a_truncated_shard_is_named(self, sharded):
        shard = sorted(sharded.glob("*.safetensors"))[2]
        shard.write_bytes(shard.read_bytes()[:-4])
        assert f"{shard} is truncated" in refusal(sharded)

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"", "is truncated: 0 bytes"),
            (b"abc", "is truncated: 3 bytes"),
            ((50_000).to_bytes(8, "little") + b'{"a"', "is truncated: 12 bytes"),
            (b"x" * 300, "is not a safetensors file"),
            ((4).to_bytes(8, "little") + b"nope", "is not a safetensors file"),
            (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 9\n", "git-lfs pointer"),
        ],
    )
    def test_a_file_that_is_no_safetensors(self, directory, content, message):
        (directory / SINGLE_FILE).write_bytes(content)
        assert message in refusal(directory)

    def test_a_file_with_too_much_in_it(self, directory):
        with (directory / SINGLE_FILE).open("ab") as file:
            file.write(b"1234")
        assert "is corrupt: its header needs" in refusal(directory)


class FakeHub:
    """In place of `snapshot_download`: copies files that match into a cache, or raises."""

    def __init__(self, source: Path, cache: Path, error: Exception | None = None):
        self.source, self.snapshot, self.error = source, cache / "snapshots" / COMMIT, error
        self.calls: list[list[str]] = []

    def __call__(self, repo_id, *, revision, allow_patterns, local_files_only):
        self.calls.append(allow_patterns)
        if self.error is not None:
            raise self.error
        self.snapshot.mkdir(parents=True, exist_ok=True)
        for path in () if local_files_only else self.source.iterdir():
            if any(path.match(pattern) for pattern in allow_patterns):
                shutil.copy(path, self.snapshot)
        return str(self.snapshot)


class TestHub:
    @pytest.fixture
    def fake(self, monkeypatch, sharded, tmp_path):
        fake = FakeHub(sharded, tmp_path / "cache")
        monkeypatch.setattr(huggingface_hub, "snapshot_download", fake)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
        return fake

    def test_a_model_is_downloaded_with_its_commit(self, fake, sharded):
        (sharded / "consolidated.safetensors").write_bytes(b"the same weights again")
        (sharded / "pytorch_model.bin").write_bytes(b"a pickle")
        checkpoint = Checkpoint.open("owner/name", "main")
        assert (checkpoint.name, checkpoint.revision) == ("owner/name", COMMIT)
        assert checkpoint.fingerprint() == Checkpoint.open(sharded).fingerprint()
        assert not (fake.snapshot / "consolidated.safetensors").exists()
        assert not (fake.snapshot / "pytorch_model.bin").exists()
        n_calls = len(fake.calls)
        Checkpoint.open("owner/name")
        assert len(fake.calls) == n_calls + 1  # the shards are there

    def test_only_some_shards_are_downloaded(self, fake):
        Checkpoint.open("owner/name", only=lambda name: name == Q_PROJ)
        assert len(list(fake.snapshot.glob("*.safetensors"))) == 1

    def test_a_model_in_one_file(self, fake, directory):
        fake.source = directory
        assert Checkpoint.open("name").has(Q_PROJ)

    def test_pickles_on_the_hub(self, fake, directory):
        fake.source = directory
        (directory / SINGLE_FILE).rename(directory / "pytorch_model.bin")
        assert "pickles are never loaded" in refusal("owner/name")

    def test_a_model_cached_in_part(self, fake, monkeypatch):
        Checkpoint.open("owner/name", only=lambda name: name == Q_PROJ)
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        assert "not cached whole" in refusal("owner/name")

    @pytest.mark.parametrize("source", ["owner/name", "gpt2"])
    def test_offline_and_not_cached(self, source, monkeypatch, tmp_path):
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
        message = refusal(source)
        assert f"'{source}' is neither a local directory nor in the hub cache, and HF_HUB_OFFLINE is set" in message

    @pytest.mark.parametrize(
        ("error", "message"),
        [
            (GatedRepoError, "is gated: accept its terms"),
            (RepositoryNotFoundError, "neither a local directory nor a model on the hub"),
            (RevisionNotFoundError, "has no revision 'v9'"),
        ],
    )
    def test_what_the_hub_refuses(self, fake, error, message):
        response = SimpleNamespace(headers={}, status_code=404, request=None)
        fake.error = error("several\nlines", response=response)
        assert message in refusal("owner/name", "v9")

    def test_a_download_that_breaks(self, fake):
        fake.error = OSError(28, "No space left on device")
        assert "Downloading 'owner/name' failed: [Errno 28] No space left" in refusal("owner/name")

    @pytest.mark.parametrize(
        ("text", "is_id"),
        [
            ("gpt2", True),
            ("Qwen/Qwen2.5-7B", True),
            ("a/b/c", False),
            ("../a", False),
            ("/a", False),
            ("", False),
        ],
    )
    def test_what_looks_like_an_id(self, text, is_id):
        assert hub.is_hub_id(text) == is_id


def test_pair_information_survives_json():
    info = PairInfo("a", "b", None, COMMIT, "sha256:1", "sha256:2")
    assert PairInfo.from_dict(json.loads(json.dumps(info.to_dict()))) == info
