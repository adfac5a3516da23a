"""`doctor` on tiny saved pairs, on pairs in which things are wrong, and on every published configuration."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from tc_adapters_lens import toy
from tc_adapters_lens.cli import environment
from tc_adapters_lens.cli.main import main
from tests.tiny import nudged, save, tiny_model, tiny_pair, word_tokenizer

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
HUB_CONFIGS = [path for path in CONFIGS if not path.stem.startswith("toy")]
WEIGHTS = "model.safetensors"
MLP = "model.layers.1.mlp.up_proj.weight"


@pytest.fixture
def saved(tmp_path: Path) -> tuple[str, str]:
    """A pair of saved models with tokenizers."""
    base, target = tiny_pair("qwen2")
    return (
        str(save(base, tmp_path / "base", word_tokenizer())),
        str(save(target, tmp_path / "target", word_tokenizer())),
    )


@pytest.fixture(autouse=True)
def _no_whole_model(monkeypatch):
    """Doctor streams tensors: nothing may load a model."""

    def refuse(*args, **kwargs):
        raise AssertionError("a whole model was loaded")

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", refuse)


@pytest.fixture
def doctor(tmp_path, capsys):
    """Runs the verb; returns its exit code, what it printed, its error line and its JSON."""

    def run(*argv: str, code: int = 0):
        file = tmp_path / "doctor.json"
        assert main(["doctor", *argv, "--json", str(file)]) == code
        captured = capsys.readouterr()
        assert captured.err.count("\n") == (1 if code else 0)
        assert all(len(line) < 500 for line in captured.out.splitlines())
        result = json.loads(file.read_text()) if file.exists() else None
        return captured.out, captured.err, result

    return run


def write_config(path: Path, base: str, target: str, **data: object) -> str:
    values = {"base": base, "target": target, "data": {"path": "toy", **data}, "adapters": {"n_features": 64}}
    path.write_text(json.dumps(values))
    return str(path)


def failed(result: dict) -> list[str]:
    return [check["check"] for check in result["checks"] if check["status"] == "failed"]


def spoil(directory: str, name: str, value: float | None) -> None:
    """One element of a saved tensor replaced; None drops the tensor."""
    tensors = load_file(Path(directory) / WEIGHTS)
    if value is None:
        del tensors[name]
    else:
        tensors[name].view(-1)[0] = value
    save_file(tensors, Path(directory) / WEIGHTS, {"format": "pt"})


def test_alone_it_shows_the_installation(doctor):
    out, _, result = doctor()
    for name in environment.SHOWN:
        assert f" {name} " in out
    assert "  ok      torch " in out
    assert "cpu: " in out
    assert result["ok"]
    assert result["weight_change"] is result["memory"] is result["config"] is None


def test_missing_browser_scripts_are_a_note_with_the_command(monkeypatch, tmp_path, doctor):
    monkeypatch.setattr("sys.prefix", str(tmp_path))
    out, _, result = doctor()
    assert "scripts not here: d3, d3-7, d3-jetpack, dagre, lit-html" in out
    assert "python -m tc_adapters_lens.assets fetches them" in out
    assert result["environment"]["missing_scripts"] == ["d3", "d3-7", "d3-jetpack", "dagre", "lit-html"]
    assert result["ok"]


def test_a_good_pair_shows_every_check_passed_and_the_weight_change(saved, doctor):
    out, _, result = doctor("--base", saved[0], "--target", saved[1])
    for line in (
        f"ok      base can be read: {saved[0]}, 39 tensors",
        "ok      same architecture: Qwen2ForCausalLM",
        "ok      same number of layers: 3",
        "ok      same vocabulary size: 97",
        "ok      the tokenizers agree: 97 tokens",
        "ok      base holds every MLP weight: 9 tensors",
        "ok      every weight of target is finite: 39 tensors",
        "ok      the MLPs differ: first in model.layers.0.mlp.gate_proj.weight",
    ):
        assert f"  {line}\n" in out
    assert "FAILED" not in out
    header = next(line for line in out.splitlines() if line.split()[:1] == ["layer"])
    assert header.split() == ["layer", "embedding", "attention", "norms", "MLP", "unembedding", "total"]
    rows = [line.split()[0] for line in out.splitlines()[out.splitlines().index(header) + 1 :][:5]]
    assert rows == ["0", "1", "2", "outside", "total"]
    change = result["weight_change"]
    assert 0 < change["mlp_share_of_squared_change"] < 1
    assert f"the MLPs hold {change['mlp_share_of_squared_change']:.1%} of the squared change" in out
    assert [row["layer"] for row in change["per_layer"]] == [0, 1, 2, None]


@pytest.mark.parametrize("family", ["llama3", "gemma2", "neox"])
def test_other_families_have_no_unknown_tensors(family, tmp_path, doctor):
    base, target = tiny_pair(family)
    _, _, result = doctor(
        "--base", str(save(base, tmp_path / "base")), "--target", str(save(target, tmp_path / "target"))
    )
    assert result["weight_change"]["other_tensors"] == result["weight_change"]["not_compared"] == []


def test_everything_that_is_wrong_is_listed(tmp_path, doctor):
    base = save(tiny_model("qwen2"), tmp_path / "base", word_tokenizer(90))
    other = tiny_model("qwen2", intermediate_size=64, rms_norm_eps=1e-5)
    target = save(other, tmp_path / "target", word_tokenizer())
    spoil(str(target), MLP, float("nan"))
    spoil(str(base), MLP, None)
    out, err, result = doctor("--base", str(base), "--target", str(target), code=1)
    assert failed(result) == [
        "same MLP width (intermediate_size)",
        "same norm epsilon",
        "the tokenizers agree",
        "base holds every MLP weight",
        "every weight of target is finite",
    ]
    assert out.count("  FAILED  ") == 5
    assert "Got 48 (base) and 64 (target)." in out
    assert f"tensor '{MLP}' must be finite. Got 1 NaN and 0 infinite" in out
    assert "  -       the MLPs differ: not checked, for it needs: same MLP width" in out
    assert err.startswith("tc-adapters: error: 5 checks failed, among them: base and target must have the same MLP")
    assert not result["ok"]


def test_one_failure_is_the_error_line_itself(saved, doctor):
    spoil(saved[0], MLP, float("inf"))
    out, err, result = doctor("--base", saved[0], "--target", saved[1], code=1)
    assert err.startswith(f"tc-adapters: error: {saved[0]}: tensor '{MLP}' must be finite. Got 0 NaN and 1 infinite")
    assert failed(result) == ["every MLP weight of base is finite"]
    assert result["weight_change"]["per_kind"]["attention"] > 0
    assert "relative weight change" in out


@pytest.mark.parametrize("role", ["base", "target"])
def test_a_truncated_file_does_not_hide_what_is_wrong_with_the_other(role, saved, doctor):
    bad, good = (saved[0], saved[1]) if role == "base" else (saved[1], saved[0])
    spoil(good, MLP, float("nan"))
    path = Path(bad) / WEIGHTS
    path.write_bytes(path.read_bytes()[:-8])
    out, err, result = doctor("--base", saved[0], "--target", saved[1], code=1)
    assert "is truncated: its header needs" in out
    assert f"{role} can be read" in failed(result)
    assert len(failed(result)) == 2
    assert f"{good}: tensor '{MLP}' must be finite" in out
    assert "2 checks failed" in err


def test_identical_mlps(tmp_path, doctor):
    base = tiny_model("qwen2")
    target = nudged(base, 0.05, seed=1, only="self_attn")
    out, err, _ = doctor(
        "--base", str(save(base, tmp_path / "base")), "--target", str(save(target, tmp_path / "target")), code=1
    )
    assert "base and target must have different MLPs" in err
    assert "the MLPs hold 0.0% of the squared change" in out


def test_tokenizers_that_disagree_can_be_allowed(tmp_path, doctor):
    base, target = tiny_pair("qwen2")
    pair = [
        *("--base", str(save(base, tmp_path / "base", word_tokenizer(95)))),
        *("--target", str(save(target, tmp_path / "target", word_tokenizer()))),
    ]
    _, err, _ = doctor(*pair, code=1)
    assert "id 95: None (base), 'w95' (target); id 96: None (base), 'w96' (target)." in err
    out, _, _ = doctor(*pair, "--allow-tokenizer-mismatch")
    assert "the tokenizers agree: they do not, which is allowed: id 95" in out


def test_missing_and_unsupported_models(tmp_path, saved, doctor):
    _, err, _ = doctor("--base", str(tmp_path / "none"), "--target", saved[1], code=1)
    assert "none does not exist. Name a local model directory or a hub id" in err
    _, err, _ = doctor("--base", saved[0], "--target", str(tmp_path), code=1)
    assert "is not a model directory: it has no config.json" in err
    _, err, _ = doctor("--base", "nobody/no-such-model", "--target", saved[1], code=1)
    assert "nor in the hub cache" in err
    config = Path(saved[1]) / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"quantization_config": {"quant_method": "awq"}}))
    out, err, result = doctor("--base", saved[0], "--target", saved[1], code=1)
    assert "quant_method awq" in err
    assert failed(result) == ["target is of a supported kind"]
    assert "target holds every weight: not checked" in out


def test_one_of_the_two_models_alone_is_wrong_use(saved, doctor):
    _, err, _ = doctor("--base", saved[0], code=2)
    assert "--base and --target must be given together" in err


@pytest.mark.parametrize("path", HUB_CONFIGS, ids=lambda path: path.stem)
def test_published_configurations_are_valid_without_weights(path, doctor):
    out, _, result = doctor("--config", str(path))
    assert "  ok      every key and value is valid\n" in out
    assert "is not on this machine. Name --base and --target to fetch and check them." in out
    assert "not estimated: the config.json of" in out
    assert result["ok"]
    assert result["memory"] is None


def test_there_are_five_published_configurations():
    assert len(CONFIGS) == 5
    assert len(HUB_CONFIGS) == 3


@pytest.mark.parametrize("name", ["toy", "toy-fast"])
def test_the_toy_configurations_check_the_shipped_pair(doctor, name):
    out, _, result = doctor("--config", str(ROOT / "configs" / f"{name}.yaml"))
    assert "pair toy:base -> toy:target" in out
    assert result["weight_change"]["mlp_share_of_squared_change"] > 0
    assert 0 < result["memory"]["total_gib"] < 4
    assert toy.BASE.is_dir()


@pytest.fixture
def cached_config(tmp_path, monkeypatch):
    """A hub cache that holds a Qwen2.5-7B's config.json and nothing else."""
    import huggingface_hub
    import transformers

    config = transformers.Qwen2Config(
        vocab_size=152064,
        hidden_size=3584,
        intermediate_size=18944,
        num_hidden_layers=28,
        num_attention_heads=28,
        num_key_value_heads=4,
        max_position_embeddings=131072,
        architectures=["Qwen2ForCausalLM"],
    )
    config.save_pretrained(tmp_path / "snapshot")

    def cached(repo_id, filename, revision=None):
        wanted = (repo_id, filename) == ("deepseek-ai/DeepSeek-R1-Distill-Qwen-7B", "config.json")
        return str(tmp_path / "snapshot" / filename) if wanted else None

    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", cached)


@pytest.mark.usefixtures("cached_config")
def test_memory_is_estimated_from_a_cached_config_json(doctor):
    out, _, result = doctor("--config", str(ROOT / "configs" / "r1-distill-qwen-7b.yaml"))
    gib = result["memory"]["gib"]
    assert result["memory"]["context"] == 10000
    assert gib["target weights"] == pytest.approx(7.6e9 * 2 / 2**30, rel=0.01)
    assert gib["base MLPs"] == pytest.approx(28 * 3 * 3584 * 18944 * 2 / 2**30)
    assert gib["Adam"] == pytest.approx(28 * (2 * 3584 * 8192 + 8192 + 3584) * 8 / 2**30)
    assert result["memory"]["total_gib"] == pytest.approx(sum(gib.values()))
    assert "with 1 x 10,000 tokens a step, at most" in out
    assert "NOT enough" in out


def test_the_configurations_pair_is_used_and_its_memory_estimated(saved, tmp_path, doctor):
    out, _, result = doctor("--config", write_config(tmp_path / "c.yaml", *saved, context_size=64))
    assert f"pair {saved[0]} -> {saved[1]}" in out
    assert result["memory"]["batch"] == 1
    assert result["memory"]["gib"]["adapters, float32"] == 4 * 3 * (2 * 32 * 64 + 64 + 32) / 2**30
    assert f"{'total':<32} {result['memory']['total_gib']:>12,.3f} GiB" in out
    assert "main memory has" in out


def test_memory_of_dense_weights_is_not_claimed(saved, tmp_path, doctor):
    config = write_config(tmp_path / "c.yaml", *saved, context_size=64)
    Path(config).write_text(json.dumps({**json.loads(Path(config).read_text()), "trained": "mlps"}))
    out, _, result = doctor("--config", config)
    assert "not estimated: Memory is estimated for trained: adapters only. Got mlps." in out
    assert result["memory"] is None


def test_models_on_the_command_line_win_over_the_configurations(saved, tmp_path, doctor):
    config = write_config(tmp_path / "c.yaml", "nobody/base", "nobody/target", context_size=64)
    out, _, result = doctor("--config", config, "--base", saved[0], "--target", saved[1])
    assert f"pair {saved[0]} -> {saved[1]}" in out
    assert result["memory"] is not None


def test_a_missing_local_model_of_a_configuration_is_a_failure(saved, tmp_path, doctor):
    config = write_config(tmp_path / "c.yaml", str(tmp_path / "none"), saved[1], context_size=64)
    _, err, result = doctor("--config", config, code=1)
    assert "does not exist" in err
    assert result["memory"] is not None  # from the other model


def test_a_context_longer_than_the_model_takes(saved, tmp_path, doctor):
    config = write_config(tmp_path / "c.yaml", *saved, context_size=5000)
    _, err, _ = doctor("--config", config, code=2)
    assert "data.context_size must not exceed what the model takes. Got 5000 and 1024." in err


def test_a_wrong_configuration_is_wrong_use_and_the_pair_is_checked_all_the_same(saved, tmp_path, doctor):
    config = tmp_path / "c.yaml"
    config.write_text("base: a\ntarget: b\ndata: {path: toy}\ntrainng: {lr: 1}\n")
    _, err, _ = doctor("--config", str(config), code=2)
    assert "unknown key 'trainng'. Did you mean 'training'?" in err
    out, err, _ = doctor("--config", str(config), "--base", saved[0], "--target", saved[1], code=2)
    assert "Did you mean 'training'?" in err
    assert "ok      the MLPs differ" in out
    _, err, _ = doctor("--config", str(tmp_path / "none.yaml"), code=2)
    assert "there is no such file" in err


# The installation

REQUIREMENTS = [
    "torch>=2.6",
    "transformers<4.58,>=4.56",
    "numpy<3,>=1.26",
    'tomli>=2 ; python_version < "3.0"',
    'circuit-tracer<0.6,>=0.5 ; extra == "attribution"',
    'eindex-callum<0.2,>=0.1 ; extra == "dashboard"',
    'openai<4,>=2 ; extra == "judge"',
    'tc-adapters-lens[attribution,dashboard,judge,evals] ; extra == "all"',
    'ruff>=0.12 ; extra == "dev"',
]


def packages(**installed: str) -> dict[str, environment.Package]:
    versions = {name.replace("_", "-"): version for name, version in installed.items()}
    return {p.name: p for p in environment.compare_packages(REQUIREMENTS, versions.get)}


def test_ranges_are_compared_with_what_is_installed():
    found = packages(torch="2.13.0+cpu", transformers="5.0.0", circuit_tracer="0.5.0")
    assert found["torch"].satisfied  # a local version counts as its public one
    assert not found["transformers"].satisfied
    assert found["transformers"].wanted == ">=4.56,<4.58"
    assert found["circuit-tracer"] == environment.Package("circuit-tracer", "0.5.0", ">=0.5,<0.6", "attribution", True)
    assert not found["openai"].satisfied
    assert "numpy" in found  # of the core and missing
    assert not {"tomli", "ruff", "tc-adapters-lens"} & set(found)
    assert "numpy" not in packages(numpy="2.4.6")


def test_missing_extras_have_their_install_lines():
    lines = environment.install_lines(packages(circuit_tracer="0.5.0", eindex_callum="0.1.2").values())
    assert lines == {
        "dashboard": 'pip install "tc-adapters-lens[dashboard]" && pip install --no-deps "sae-dashboard==0.8.0"',
        "judge": 'pip install "tc-adapters-lens[judge]"',
    }
    with_dashboard = packages(sae_dashboard="0.8.0").values()
    assert environment.install_lines(with_dashboard)["dashboard"] == 'pip install "tc-adapters-lens[dashboard]"'


def test_a_core_package_outside_its_range_is_a_failure(monkeypatch, doctor):
    real = environment.installed_version
    monkeypatch.setattr(environment, "installed_version", lambda n: "5.0.0" if n == "transformers" else real(n))
    _, err, result = doctor(code=1)
    assert 'transformers must be >=4.56,<4.58. Got 5.0.0. pip install "transformers>=4.56,<4.58"' in err
    assert failed(result) == ["transformers"]


def test_a_source_tree_without_metadata_tells_versions_only(monkeypatch, doctor):
    def absent(name):
        raise environment.importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(environment.importlib.metadata, "requires", absent)
    out, _, result = doctor()
    assert "tc-adapters-lens is not installed, so the ranges it needs are not known" in out
    assert {p["wanted"] for p in result["environment"]["packages"]} == {None}


@pytest.mark.skipif(sys.platform != "linux", reason="reads what the Linux kernel says")
def test_host_memory_is_what_the_system_has():
    total = int(Path("/proc/meminfo").read_text().split()[1]) * 1024
    assert environment.host_memory() == pytest.approx(total, rel=0.01)


def test_torch_is_not_changed_by_looking(doctor):
    before = torch.get_default_dtype(), torch.get_num_threads()
    doctor()
    assert (torch.get_default_dtype(), torch.get_num_threads()) == before
