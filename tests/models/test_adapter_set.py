"""Adapter sets: what SAELens makes of them, that they come back bit for bit, how they can be wrong."""

from __future__ import annotations

import dataclasses
import errno
import json
import math
import shutil
import warnings
from pathlib import Path

import huggingface_hub
import pytest
import torch
from huggingface_hub import constants
from sae_lens import SAE, Transcoder
from safetensors.torch import load_file, save_file

from tc_adapters_lens.errors import AdapterSetError, CheckpointError
from tc_adapters_lens.models import adapter_files
from tc_adapters_lens.models.adapter_fingerprint import stored_fingerprint
from tc_adapters_lens.models.adapter_set import PARAMETERS, AdapterSet, AdapterSetInfo
from tc_adapters_lens.models.names import hook_delta, hook_in
from tc_adapters_lens.models.pair_info import PairInfo

N_LAYERS, D_MODEL, N_FEATURES = 3, 16, 40
PAIR = PairInfo("org/base", "org/target", None, "abc", "sha256:" + "1" * 64, "sha256:" + "2" * 64)
INFO = AdapterSetInfo(PAIR, recipe={"lambda": 0.001, "steps": [1, 2]}, measured={"l0": 1.4, "kl": None})
WEIGHTS = "layer_1/sae_weights.safetensors"


def random_set(dtype: torch.dtype = torch.float32, seed: int = 0) -> AdapterSet:
    fresh = AdapterSet.fresh(N_LAYERS, D_MODEL, N_FEATURES, INFO, dtype=dtype)
    generator = torch.Generator().manual_seed(seed)
    state = {n: torch.randn(t.shape, generator=generator).to(dtype) for n, t in fresh.state().items()}
    return AdapterSet.from_state(state, INFO)


def same_bits(one: AdapterSet, other: AdapterSet) -> bool:
    a, b = one.state(), other.state()
    return all(a[n].dtype == b[n].dtype and torch.equal(a[n].view(torch.uint8), b[n].view(torch.uint8)) for n in a)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    random_set().save(tmp_path / "set")
    return tmp_path / "set"


def refusal(directory: Path, **options) -> str:
    with pytest.raises(AdapterSetError) as caught:
        AdapterSet.load(directory, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def edit(path: Path, **changes) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_fingerprint_is_of_every_bit_wherever_it_is(saved):
    known = random_set().fingerprint()
    assert stored_fingerprint(saved) == AdapterSet.load(saved).fingerprint() == known
    for name in PARAMETERS:
        changed = AdapterSet.load(saved)
        changed[1].get_parameter(name).data.view(-1)[0] += 1e-3
        assert changed.fingerprint() != known
    (saved / WEIGHTS).write_bytes((saved / WEIGHTS).read_bytes()[:-4])
    with pytest.raises(AdapterSetError, match="truncated"):
        stored_fingerprint(saved)


class TestFresh:
    def test_starts_as_the_paper_says(self):
        adapters = AdapterSet.fresh(N_LAYERS, D_MODEL, 5000, INFO, seed=3)
        state = adapters.state()
        assert not any(state[name].any() for name in ("b_enc", "W_dec", "b_dec"))
        bound = 1 / math.sqrt(D_MODEL)
        assert state["W_enc"].abs().max() < bound
        assert state["W_enc"].std().item() == pytest.approx(bound / math.sqrt(3), rel=0.01)  # of a uniform
        assert state["W_enc"].mean().abs() < 0.01 * bound
        assert not torch.equal(state["W_enc"][0], state["W_enc"][1])

    def test_its_output_is_zero(self):
        for adapter in AdapterSet.fresh(N_LAYERS, D_MODEL, N_FEATURES, INFO).values():
            assert not adapter(torch.randn(4, D_MODEL)).any()

    def test_follows_from_the_seed_and_leaves_torchs_alone(self):
        torch.manual_seed(0)
        before = torch.get_rng_state()
        sets = [AdapterSet.fresh(N_LAYERS, D_MODEL, N_FEATURES, INFO, seed=seed) for seed in (5, 5, 6)]
        assert torch.equal(torch.get_rng_state(), before)
        assert same_bits(sets[0], sets[1])
        assert not same_bits(sets[0], sets[2])

    def test_dtype(self):
        adapters = AdapterSet.fresh(N_LAYERS, D_MODEL, N_FEATURES, INFO, dtype=torch.bfloat16)
        assert adapters.dtype == torch.bfloat16
        assert adapters[0].cfg.dtype == "bfloat16"
        full = AdapterSet.fresh(N_LAYERS, D_MODEL, N_FEATURES, INFO)
        assert same_bits(full.to(dtype=torch.bfloat16), adapters)

    def test_sizes_start_at_one(self):
        with pytest.raises(AdapterSetError, match=r"at least 1. Got \(3, 16, 0\)"):
            AdapterSet.fresh(N_LAYERS, D_MODEL, 0, INFO)


class TestSet:
    def test_maps_layers_to_stock_transcoders(self):
        adapters = random_set()
        assert list(adapters) == [0, 1, 2]
        assert (adapters.n_layers, adapters.d_model, adapters.n_features) == (N_LAYERS, D_MODEL, N_FEATURES)
        for layer, adapter in adapters.items():
            assert type(adapter) is Transcoder
            assert adapter.cfg.metadata.hook_name == hook_in(layer)
            assert adapter.cfg.metadata.hook_name_out == hook_delta(layer)
            assert adapter.cfg.metadata.model_name == "org/target"
        with pytest.raises(KeyError, match=r"layers 0\.\.2\. Got -1"):
            adapters[-1]

    def test_computes_relu_features(self):
        adapter = AdapterSet.from_state(
            {
                "W_enc": torch.tensor([[[1.0, -1.0, 2.0], [0.0, 1.0, 0.0]]]),  # width 2, 3 features
                "b_enc": torch.tensor([[0.0, 0.5, -3.0]]),
                "W_dec": torch.tensor([[[1.0, 0.0], [0.0, 10.0], [5.0, 5.0]]]),
                "b_dec": torch.tensor([[0.1, 0.2]]),
            },
            INFO,
        )[0]
        # before ReLU: [1, -1 + 2 + 0.5, 2 - 3] = [1, 1.5, -1]
        assert torch.equal(adapter.encode(torch.tensor([1.0, 2.0])), torch.tensor([1.0, 1.5, 0.0]))
        torch.testing.assert_close(adapter(torch.tensor([1.0, 2.0])), torch.tensor([1.1, 15.2]))

    def test_stacked_state_and_back(self):
        adapters = random_set()
        state = adapters.state()
        assert {n: tuple(t.shape) for n, t in state.items()} == {
            "W_enc": (N_LAYERS, D_MODEL, N_FEATURES),
            "b_enc": (N_LAYERS, N_FEATURES),
            "W_dec": (N_LAYERS, N_FEATURES, D_MODEL),
            "b_dec": (N_LAYERS, D_MODEL),
        }
        again = AdapterSet.from_state(state, INFO)
        assert same_bits(again, adapters)
        state["W_dec"][1] = 7.0
        assert bool((again[1].W_dec == 7).all())  # memory is shared
        assert not bool((adapters[1].W_dec == 7).any())  # state() was a copy

    @pytest.mark.parametrize("change", ["drop", "add", "shape", "flat"])
    def test_a_state_that_does_not_fit(self, change):
        state = random_set().state()
        if change == "drop":
            del state["b_dec"]
        elif change == "add":
            state["W_skip"] = torch.zeros(1)
        elif change == "shape":
            state["W_dec"] = state["W_dec"].mT
        else:
            state["W_enc"] = state["W_enc"][0]
        with pytest.raises(AdapterSetError, match="Stacked adapters must be"):
            AdapterSet.from_state(state, INFO)

    def test_adapters_that_do_not_fit_together(self):
        adapters = list(random_set().values())
        other = AdapterSet.fresh(N_LAYERS, D_MODEL, 8, INFO)
        with pytest.raises(
            AdapterSetError, match="16 -> 40 -> 16 float32 in layer 0 and 16 -> 8 -> 16 float32 in layer 1"
        ):
            AdapterSet([adapters[0], other[1]], INFO)
        with pytest.raises(AdapterSetError, match=r"must have hook_name 'blocks.0.mlp.hook_in'. Got 'blocks.1"):
            AdapterSet(adapters[1:], INFO)
        with pytest.raises(AdapterSetError, match="at least one layer"):
            AdapterSet([], INFO)

    def test_to_casts_all(self):
        adapters = random_set()
        assert adapters.to(dtype=torch.float64, device="cpu") is adapters
        assert {p.dtype for a in adapters.values() for p in a.parameters()} == {torch.float64}
        assert adapters[0].cfg.dtype == "float64"


class TestSaveAndLoad:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_comes_back_bit_for_bit(self, dtype, tmp_path):
        adapters = random_set(dtype)
        with torch.no_grad():
            adapters[1].W_dec[0, :3] = torch.tensor([-0.0, 1e-40, 3e38])
        adapters.save(tmp_path / "a")
        loaded = AdapterSet.load(tmp_path / "a")
        assert loaded.dtype == dtype
        assert same_bits(loaded, adapters)
        assert loaded.info == INFO

        loaded.save(tmp_path / "b")
        files = [path.relative_to(tmp_path / "a") for path in sorted((tmp_path / "a").rglob("*")) if path.is_file()]
        assert len(files) == 2 * N_LAYERS + 1
        for file in files:
            assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()

    def test_each_layer_loads_with_plain_saelens(self, saved):
        adapters, x = random_set(), torch.randn(5, 7, D_MODEL)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for layer, adapter in adapters.items():
                plain = SAE.load_from_disk(saved / f"layer_{layer}")
                assert type(plain) is Transcoder
                torch.testing.assert_close(plain(x), adapter(x), atol=1e-6, rtol=0)
                assert plain.cfg.metadata.hook_name_out == hook_delta(layer)

    def test_writes_what_saelens_writes(self, saved, tmp_path):
        random_set()[1].save_model(tmp_path / "stock")
        assert (tmp_path / "stock" / "sae_weights.safetensors").read_bytes() == (saved / WEIGHTS).read_bytes()
        stock = json.loads((tmp_path / "stock" / "cfg.json").read_text())
        assert stock == json.loads((saved / "layer_1" / "cfg.json").read_text())

    def test_settings_that_saelens_warns_of_are_not_written(self, tmp_path):
        adapters = random_set()
        adapters[0].cfg.metadata.model_from_pretrained_kwargs = {"center_writing_weights": False}
        adapters.save(tmp_path / "set")
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            SAE.load_from_disk(tmp_path / "set" / "layer_0")

    def test_dtype_and_device_are_the_callers(self, saved):
        loaded = AdapterSet.load(saved, dtype=torch.bfloat16, device=torch.device("cpu"))
        assert loaded.dtype == torch.bfloat16
        assert loaded[2].cfg.dtype == "bfloat16"
        assert same_bits(loaded, random_set().to(dtype=torch.bfloat16))

    def test_the_description_can_be_read(self, saved):
        description = json.loads((saved / "adapter_set.json").read_text())
        assert description["pair"]["base_fingerprint"] == PAIR.base_fingerprint
        assert description["hooks"][2] == {"in": hook_in(2), "out": hook_delta(2)}
        assert description["measured"] == {"l0": 1.4, "kl": None}

    def test_measured_can_be_set_later(self, saved):
        adapters = AdapterSet.load(saved)
        adapters.info = dataclasses.replace(adapters.info, measured={"l0": 2.0})
        adapters.save(saved)
        assert AdapterSet.load(saved).info.measured == {"l0": 2.0}

    def test_nothing_is_pickled(self, saved):
        assert {path.suffix for path in saved.rglob("*") if path.is_file()} == {".json", ".safetensors"}


class TestSaveFails:
    def test_disk_full(self, saved, monkeypatch, tmp_path):
        def full(tensors, path):
            Path(path).write_bytes(b"half")
            if "layer_2" in str(path):
                raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(adapter_files, "save_file", full)
        for directory in (saved, tmp_path / "new"):
            before = sorted(directory.rglob("*")) if directory.exists() else None
            with pytest.raises(AdapterSetError) as caught:
                random_set(seed=1).save(directory)
            assert str(caught.value).startswith(f"Writing {directory} failed: no space left on its disk.")
            assert "\n" not in str(caught.value)
            assert (sorted(directory.rglob("*")) if directory.exists() else None) == before
        assert [path.name for path in tmp_path.iterdir()] == ["set"]
        assert same_bits(AdapterSet.load(saved), random_set())

    def test_a_set_is_replaced_whole(self, saved):
        (saved / "layer_0" / "of_the_old_one").touch()
        random_set(seed=1).save(saved)
        assert not (saved / "layer_0" / "of_the_old_one").exists()
        assert same_bits(AdapterSet.load(saved), random_set(seed=1))
        assert [path.name for path in saved.parent.iterdir()] == ["set"]

    def test_something_else_is_not_replaced(self, tmp_path):
        (tmp_path / "thesis").mkdir()
        (tmp_path / "thesis" / "chapter1").touch()
        with pytest.raises(AdapterSetError, match="holds something else, so it is not replaced"):
            random_set().save(tmp_path / "thesis")
        with pytest.raises(AdapterSetError, match="is a file"):
            random_set().save(tmp_path / "thesis" / "chapter1")
        assert [path.name for path in tmp_path.rglob("*")] == ["thesis", "chapter1"]

    def test_an_empty_directory_and_new_parents_are_used(self, tmp_path):
        (tmp_path / "empty").mkdir()
        for directory in (tmp_path / "empty", tmp_path / "a" / "b" / "c"):
            random_set().save(directory)
            assert same_bits(AdapterSet.load(directory), random_set())

    def test_a_place_that_cannot_be_written(self, tmp_path):
        (tmp_path / "file").touch()
        with pytest.raises(AdapterSetError, match="Name a directory that can be written to"):
            random_set().save(tmp_path / "file" / "set")

    @pytest.mark.parametrize("value", [float("nan"), torch.zeros(1), {1, 2}])
    def test_what_json_cannot_hold(self, saved, value):
        adapters = random_set(seed=1)
        adapters.info = dataclasses.replace(INFO, measured={"kl": value})
        with pytest.raises(AdapterSetError, match="recipe and measured must be JSON"):
            adapters.save(saved)
        assert same_bits(AdapterSet.load(saved), random_set())


class TestLoadRefuses:
    def test_what_is_no_set(self, tmp_path):
        assert "there is no such directory" in refusal(tmp_path / "nothing")
        assert "it has no adapter_set.json" in refusal(tmp_path)

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"format": "other"}, "must have format"),
            ({"format_version": 2}, "must have format_version 1. Got 2. Update"),
            ({"n_layers": 0}, "n_layers must be a whole number from 1. Got 0"),
            ({"n_features": True}, "n_features must be a whole number"),
            ({"d_model": 17}, "must hold {'W_enc': (17, 40)"),
            ({"n_layers": 4}, "must have 4 layers. Got 3, without layer_3"),
            ({"recipe": []}, "recipe must be an object"),
            ({"pair": {"base_name": "x"}}, "A pair must have the keys"),
            ({"pair": PAIR.to_dict() | {"target_name": None}}, "target_name must be text"),
        ],
    )
    def test_a_description_that_is_wrong(self, saved, changes, message):
        edit(saved / "adapter_set.json", **changes)
        assert message in refusal(saved)

    def test_a_description_that_is_no_json(self, saved):
        (saved / "adapter_set.json").write_text("{")
        assert "cannot be read as JSON" in refusal(saved)

    def test_a_missing_layer(self, saved):
        shutil.rmtree(saved / "layer_1")
        assert "without layer_1" in refusal(saved)

    def test_a_missing_file(self, saved):
        (saved / WEIGHTS).unlink()
        assert "sae_weights.safetensors" in refusal(saved)

    def test_a_truncated_file(self, saved):
        (saved / WEIGHTS).write_bytes((saved / WEIGHTS).read_bytes()[:-10])
        assert f"{saved / WEIGHTS} is truncated" in refusal(saved)

    @pytest.mark.parametrize("name", ["W_enc", "b_dec"])
    @pytest.mark.parametrize("value", [None, float("nan"), float("inf"), "narrow"])
    def test_wrong_tensors(self, saved, name, value):
        tensors = load_file(saved / WEIGHTS)
        if value is None:
            del tensors[name]
        elif value == "narrow":
            tensors[name] = tensors[name][..., :-1].contiguous()
        else:
            tensors[name].view(-1)[3] = value
        save_file(tensors, saved / WEIGHTS)
        message = refusal(saved)
        assert str(saved / "layer_1") in message
        assert ("must hold" if value in (None, "narrow") else f"{name} must be finite. Got 1 NaN") in message

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"architecture": "standard"}, "must have architecture 'transcoder'. Got 'standard'"),
            ({"normalize_activations": "layer_norm"}, "must have normalize_activations 'none'"),
            ({"apply_b_dec_to_input": True}, "must have apply_b_dec_to_input False. Got True"),
            ({"d_out": 8}, "must have d_out 16. Got 8"),
            ({"d_sae": 8}, "Got {'cfg.json': (16, 8)}"),
            ({"metadata": {"hook_name": hook_in(2)}}, "must have hook_name 'blocks.1.mlp.hook_in'"),
            ({"metadata": {"hook_name": hook_in(1)}}, "must have hook_name_out 'blocks.1.mlp.hook_delta'"),
        ],
    )
    def test_a_layer_that_is_no_adapter(self, saved, changes, message):
        edit(saved / "layer_1" / "cfg.json", **changes)
        assert message in refusal(saved)

    @pytest.mark.parametrize("role", ["base", "target"])
    def test_adapters_of_another_pair(self, saved, role):
        other = dataclasses.replace(PAIR, **{f"{role}_fingerprint": "sha256:" + "f" * 64, f"{role}_name": "x/y"})
        old = getattr(PAIR, f"{role}_fingerprint")[:19]
        message = refusal(saved, pair=other)
        assert f"{role} org/{role} ({old}). Got {role} x/y (sha256:ffffffffffff)" in message
        assert "allow_other_pair" in message
        assert same_bits(AdapterSet.load(saved, pair=other, allow_other_pair=True), random_set())

    def test_a_pair_is_known_by_its_weights(self, saved):
        moved = dataclasses.replace(PAIR, base_name="/elsewhere", target_revision=None)
        assert same_bits(AdapterSet.load(saved, pair=moved), random_set())


class TestHub:
    @pytest.fixture(autouse=True)
    def _online(self, monkeypatch):
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)

    def test_from_pretrained_takes_directories(self, saved):
        for source in (saved, str(saved)):
            assert same_bits(AdapterSet.from_pretrained(source, dtype=torch.float32), random_set())
        with pytest.raises(AdapterSetError, match="Only a hub repository has revisions"):
            AdapterSet.from_pretrained(saved, revision="main")
        with pytest.raises(AdapterSetError, match="no such directory"):
            AdapterSet.from_pretrained("./nothing")

    def test_from_pretrained_takes_ids(self, saved, monkeypatch):
        asked = {}
        monkeypatch.setattr(
            huggingface_hub,
            "snapshot_download",
            lambda repo, **options: asked.update(options, repo=repo) or str(saved),
        )
        loaded = AdapterSet.from_pretrained("me/adapters", revision="v1", pair=PAIR)
        assert same_bits(loaded, random_set())
        assert (asked["repo"], asked["revision"]) == ("me/adapters", "v1")
        assert asked["allow_patterns"] == ["adapter_set.json", "layer_*/*"]

    def test_an_id_that_is_not_cached(self, monkeypatch, tmp_path):
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
        with pytest.raises(CheckpointError, match="nor in the hub cache, and HF_HUB_OFFLINE is set"):
            AdapterSet.from_pretrained("me/adapters")

    def test_push_uploads_the_set_and_a_card(self, monkeypatch, tmp_path):
        class Api:
            def create_repo(self, repo_id, *, private, exist_ok):
                assert (repo_id, private, exist_ok) == ("me/adapters", True, True)

            def upload_folder(self, *, repo_id, folder_path, commit_message):
                shutil.copytree(folder_path, tmp_path / "uploaded")
                return f"https://huggingface.co/{repo_id}/commit/1"

        monkeypatch.setattr(huggingface_hub, "HfApi", Api)
        assert random_set().push_to_hub("me/adapters", private=True).endswith("/commit/1")
        assert same_bits(AdapterSet.load(tmp_path / "uploaded"), random_set())
        card = (tmp_path / "uploaded" / "README.md").read_text()
        assert card.startswith("---\nlibrary_name: saelens\n")
        assert "base_model: org/target\n" in card
        assert "| l0 | 1.4 |" in card
        assert 'AdapterSet.from_pretrained("me/adapters")' in card
        assert '"lambda": 0.001' in card

    def test_push_that_fails(self, monkeypatch):
        class Api:
            def create_repo(self, *_, **__):
                raise ConnectionError("several\nlines")

        monkeypatch.setattr(huggingface_hub, "HfApi", Api)
        with pytest.raises(AdapterSetError, match=r"^Uploading to 'me/adapters' failed: several"):
            random_set().push_to_hub("me/adapters")
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        with pytest.raises(AdapterSetError, match="Unset HF_HUB_OFFLINE"):
            random_set().push_to_hub("me/adapters")
