"""`overlap`: the file, the table and the labels it makes, going on after a kill, and wrong use."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import numpy as np
import pytest

from tc_adapters_lens import AdapterSet, load_pair
from tc_adapters_lens.cli.main import main
from tc_adapters_lens.features.overlap import activation_overlap
from tc_adapters_lens.features.store import FeatureStore
from tc_adapters_lens.features.text import Text
from tc_adapters_lens.models import progress
from tc_adapters_lens.models.pair import load_base
from tests.cli.graph_run import N_FEATURES, make_run
from tests.features.builder import synthetic_store
from tests.tiny import D_VOCAB, N_LAYERS

LENGTHS = (14, 9, 26, 15, 8, 17, 24, 16, 9, 25, 7, 18)
ROWS = [
    {"input_ids": [3 + (7 * n + 3 * i * (row + 1)) % (D_VOCAB - 3) for i in range(n)], "prompt_length": 2}
    for row, n in enumerate(LENGTHS)
]


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> tuple[Path, Path]:
    """A run, and a text."""
    root = tmp_path_factory.mktemp("overlap")
    tokens = root / "tokens.jsonl"
    tokens.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return make_run(root), tokens


@pytest.fixture
def overlap(made, capsys):
    """Runs the verb; returns what it printed, or its error line."""

    def call(*argv: str, code: int = 0, run: Path | None = made[0]) -> str:
        of_run = ["--run", str(run)] if run else []
        assert main(["overlap", *of_run, "--tokens", str(made[1]), "--device", "cpu", *argv]) == code
        captured = capsys.readouterr()
        return captured.err.splitlines()[-1] if code else captured.out

    return call


def expected(run: Path, counted: np.ndarray, min_active: int):
    pair = load_pair(str(run.parent / "base"), str(run.parent / "target"))
    text = Text(np.concatenate([row["input_ids"] for row in ROWS]), np.cumsum([0, *LENGTHS]), counted)
    adapters = AdapterSet.load(run / "adapters", pair=pair.pair)
    return adapters, activation_overlap(
        pair, adapters, load_base(str(run.parent / "base")), text, min_active=min_active
    )


def test_a_run_gets_file_table_and_labels(made, overlap, tmp_path):
    run, tokens = made
    adapters, wanted = expected(run, np.ones(sum(LENGTHS), bool), 10)
    store = synthetic_store(
        run / "features", N_LAYERS, N_FEATURES, k=2, adapters_fingerprint=adapters.fingerprint(), words=("a",)
    )
    assert "overlap_target" not in store.column_names
    out = overlap("--json", str(tmp_path / "result.json"))
    store = FeatureStore.open(run / "features")
    result = json.loads((run / "overlap.json").read_text())
    assert json.loads((tmp_path / "result.json").read_text()) == result

    assert (result["format"], result["format_version"]) == ("tc_adapters_lens.activation_overlap", 1)
    assert result["adapters_fingerprint"] == adapters.fingerprint()
    assert result["pair"] == adapters.info.pair.to_dict()
    assert (result["tokens"], result["positions"]) == (str(tokens), "all")
    assert (result["n_sequences"], result["n_positions"]) == (len(LENGTHS), sum(LENGTHS))
    assert (result["n_layers"], result["n_features"], result["min_active"]) == (N_LAYERS, N_FEATURES, 10)
    assert result["edges"] == [bin_ / 20 for bin_ in range(21)]
    assert list(result["models"]) == ["target", "base"]
    for model, found in result["models"].items():
        values = wanted.overlap[model]
        assert [layer["layer"] for layer in found["layers"]] == [0, 1, 2]
        for layer, row in zip(found["layers"], values, strict=True):
            assert layer["n_features"] == (~np.isnan(row)).sum() == sum(layer["histogram"])
            assert layer["mean"]["value"] == pytest.approx(np.nanmean(row))
            assert layer["median"] == pytest.approx(np.nanmedian(row))
        assert found["overall"]["mean"]["value"] == pytest.approx(np.nanmean(values))
        assert found["overall"]["mean"]["low"] < found["overall"]["mean"]["value"] < found["overall"]["mean"]["high"]
        np.testing.assert_array_equal(store.column(f"overlap_{model}").reshape(values.shape), values)
        assert f"{np.nanmean(values):.1%}" in out.splitlines()[6]
    assert result["chance"]["layers"] == pytest.approx(np.nanmean(wanted.chance, axis=1))
    assert result["chance"]["overall"] == pytest.approx(np.nanmean(wanted.chance))
    assert (
        out.splitlines()[0] == f"12 sequences, {sum(LENGTHS)} positions counted, features active at 10 or more of them"
    )
    assert f"Written: {run / 'overlap.json'}." in out
    assert "Joined to features" in out

    layer, feature = np.argwhere(wanted.measured)[0]
    labels = store[int(layer), int(feature)].labels
    assert labels["overlap_base"] == wanted.overlap["base"][layer, feature]
    overlap()  # again: labels are replaced


def test_response_positions_and_no_run(made, overlap, tmp_path):
    run, _ = made
    counted = np.concatenate([np.arange(n) >= 2 for n in LENGTHS])
    _, wanted = expected(run, counted, 40)
    names = ("--base", str(run.parent / "base"), "--target", str(run.parent / "target"))
    names += ("--adapters", str(run / "adapters"), "--out", str(tmp_path / "new" / "o.json"))
    out = overlap(*names, "--positions", "response", "--min-active", "40", "--batch-size", "3", run=None)
    result = json.loads((tmp_path / "new" / "o.json").read_text())
    assert result["n_positions"] == counted.sum()
    assert [layer["n_features"] for layer in result["models"]["base"]["layers"]] == wanted.measured.sum(1).tolist()
    assert result["models"]["base"]["overall"]["mean"]["value"] == pytest.approx(np.nanmean(wanted.overlap["base"]))
    assert "features:" not in out


def test_a_store_of_other_adapters_is_left_alone(made, overlap, tmp_path, monkeypatch):
    run, _ = made
    monkeypatch.setattr("tc_adapters_lens.cli.overlap.FEATURE_STORES", {"replacement": "elsewhere"})
    assert "Not joined to features: there is no store in" in overlap("--out", str(tmp_path / "o.json"))
    store = synthetic_store(run / "elsewhere", N_LAYERS, N_FEATURES, k=2, words=("a",))
    assert "Not joined to features: " in overlap("--out", str(tmp_path / "o.json"))
    assert "overlap_target" not in FeatureStore.open(store.directory).column_names


def test_an_interrupted_command_goes_on(made, overlap, tmp_path, monkeypatch):
    out = tmp_path / "o.json"
    overlap("--out", str(out), "--batch-size", "2")
    whole = out.read_bytes()
    out.unlink()
    monkeypatch.setattr(progress, "Progress", functools.partial(progress.Progress, seconds=0))
    made_batches, batch = [], Text.batch

    def interrupted(text, chosen, device):
        made_batches.append(1)
        if len(made_batches) == 9:  # of 18
            raise KeyboardInterrupt
        return batch(text, chosen, device)

    monkeypatch.setattr(Text, "batch", interrupted)
    assert overlap("--out", str(out), "--batch-size", "2", code=130) == "tc-adapters: interrupted"
    assert not out.exists()
    overlap("--out", str(out), "--batch-size", "2")
    assert len(made_batches) == 9 + 10
    assert out.read_bytes() == whole
    assert list(tmp_path.iterdir()) == [out]


@pytest.mark.parametrize(
    ("extra", "code", "message"),
    [
        (["--min-active", "0"], 2, "--min-active must be at least 1. Got 0."),
        (["--batch-size", "0"], 2, "--batch-size must be at least 1. Got 0."),
        (["--min-active", "5000"], 1, "A feature must be active at 5000 positions at least. Got "),
        (["--out", "{tmp}"], 2, "--out must be a file. Got "),
    ],
)
def test_wrong_use_is_one_line(extra, code, message, overlap, tmp_path):
    assert message in overlap(*(word.replace("{tmp}", str(tmp_path)) for word in extra), code=code)


def test_without_a_run_all_must_be_named(overlap):
    assert "--base is missing" in overlap(code=2, run=None)
    names = ("--base", "a", "--target", "b", "--adapters", "c")
    assert "--out must be given where there is no --run" in overlap(*names, code=2, run=None)
