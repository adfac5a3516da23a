"""The README's Python runs as it stands, and what it names exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tc_adapters_lens import AdapterSet, AdapterSetInfo, load_pair
from tc_adapters_lens.cli.main import VERBS
from tests.features.builder import synthetic_store

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")

PYTHON = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_python_of_the_first_screen_runs(tmp_path, monkeypatch, capsys) -> None:
    block = PYTHON[0]
    assert len(block.splitlines()) <= 12
    model = load_pair("toy:base", "toy:target")
    untrained = AdapterSet.fresh(model.cfg.n_layers, model.cfg.d_model, 64, AdapterSetInfo(model.pair))
    untrained.save(tmp_path / re.findall(r'load\("(.*?)"', block)[0])
    monkeypatch.chdir(tmp_path)
    exec(compile(block, "README.md", "exec"), {})
    printed = capsys.readouterr().out
    assert "What is 17 + 25 - 8?" in printed
    assert "features active at the last position" in printed


def test_python_of_the_feature_store_runs(tmp_path, monkeypatch, capsys) -> None:
    block = PYTHON[1]
    store = synthetic_store(tmp_path / re.findall(r'open\("(.*?)"', block)[0])
    monkeypatch.chdir(tmp_path)
    exec(compile(block, "README.md", "exec"), {})
    first, *examples = capsys.readouterr().out.splitlines()
    assert first.startswith(str(store.frame()["frequency"].max()))
    assert len(examples) >= 3


def test_python_of_interventions_runs(tmp_path, monkeypatch, capsys) -> None:
    block = PYTHON[2]
    model = load_pair("toy:base", "toy:target")
    adapters = AdapterSet.fresh(model.cfg.n_layers, model.cfg.d_model, 30, AdapterSetInfo(model.pair))
    adapters.save(tmp_path / re.findall(r'load\("(.*?)"', block)[0])
    synthetic_store(
        tmp_path / re.findall(r'open\("(.*?)"', block)[0],
        4,
        words=("wait", " but"),
        adapters_fingerprint=adapters.fingerprint(),
    )
    monkeypatch.chdir(tmp_path)
    exec(compile(block, "README.md", "exec"), {})
    assert capsys.readouterr().out.splitlines().count(f"torch.Size([1, 8, {model.cfg.d_vocab}])") == 3
    (saved,) = re.findall(r'save\("(.*?)"', block)
    assert "remove" in AdapterSet.load(tmp_path / saved).info.recipe["interventions"][0]


def test_every_verb_and_recipe_is_in_the_readme() -> None:
    for verb in VERBS:
        assert f"`{verb}`" in README, verb
    for recipe in (ROOT / "configs").glob("*.yaml"):
        assert f"`{recipe.stem}`" in README, recipe


@pytest.mark.parametrize("target", re.findall(r"\]\((?!http)(.*?)\)", README))
def test_links_lead_somewhere(target: str) -> None:
    assert (ROOT / target).exists()
