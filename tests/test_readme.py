"""The README's Python runs as it stands, and what it names exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tc_adapters_lens import AdapterSet, AdapterSetInfo, load_pair
from tc_adapters_lens.cli.main import VERBS

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_python_of_the_first_screen_runs(tmp_path, monkeypatch, capsys) -> None:
    (block,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(block.splitlines()) <= 12
    model = load_pair("toy:base", "toy:target")
    untrained = AdapterSet.fresh(model.cfg.n_layers, model.cfg.d_model, 64, AdapterSetInfo(model.pair))
    untrained.save(tmp_path / re.findall(r'load\("(.*?)"', block)[0])
    monkeypatch.chdir(tmp_path)
    exec(compile(block, "README.md", "exec"), {})
    printed = capsys.readouterr().out
    assert "What is 17 + 25 - 8?" in printed
    assert "features active at the last position" in printed


def test_every_verb_and_recipe_is_in_the_readme() -> None:
    for verb in VERBS:
        assert f"`{verb}`" in README, verb
    for recipe in (ROOT / "configs").glob("*.yaml"):
        assert f"`{recipe.stem}`" in README, recipe


@pytest.mark.parametrize("target", re.findall(r"\]\((?!http)(.*?)\)", README))
def test_links_lead_somewhere(target: str) -> None:
    assert (ROOT / target).exists()
