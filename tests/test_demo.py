"""The main job on the built-in pair, with three seeds: minutes each, so slow; run with -m slow."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tc_adapters_lens.cli.main import main
from tc_adapters_lens.features.store import FeatureStore
from tc_adapters_lens.models.adapter_set import AdapterSet


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("seed", [42, 1, 2])
def test_demo_shows_what_the_paper_shows(seed: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "demo"
    assert main(["demo", "--out", str(out), "--seed", str(seed)]) == 0
    result = json.loads((out / "faithfulness.json").read_text())
    sparse, dense = result["sparse"], result["dense"]
    base, hybrid = (sparse["models"][name] for name in ("base", "hybrid"))
    ours = [result["models"]["replacement"] for result in (sparse, dense)]
    for measure in ("kl", "top1_error"):
        order = [model[measure]["value"] for model in (base, hybrid, *ours)]
        assert order == sorted(order, reverse=True), measure
        assert len(set(order)) == 4, measure
    assert sparse["l0"]["value"] < dense["l0"]["value"]
    assert sparse["l0"]["value"] <= 2
    assert dense["l0"]["value"] <= 5
    assert hybrid["kl"]["value"] >= 20 * ours[0]["kl"]["value"]
    assert hybrid["kl"]["value"] >= 100 * ours[1]["kl"]["value"]

    printed = capsys.readouterr().out
    for row in ("base", "hybrid", "sparse", "dense", "target"):
        assert f"\n{row} " in printed
    assert "<title>" in (out / "report.html").read_text()
    assert (out / "faithfulness.png").stat().st_size > 10_000
    for name in ("sparse", "dense"):
        adapters = AdapterSet.load(out / name / "adapters")
        assert adapters.n_features == 1024
        table = FeatureStore.open(out / name / "features", adapters).frame()
        l0 = table["frequency"].sum() / adapters.n_layers
        assert l0 == pytest.approx(result[name]["l0"]["value"], rel=0.3)  # of all positions, not of responses alone
