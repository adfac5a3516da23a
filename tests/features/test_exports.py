"""Exports, read by the tools' own classes and compared with the store."""

from __future__ import annotations

import csv
import json

import numpy as np
import pandas as pd
import pytest

from tc_adapters_lens.errors import FeatureStoreError
from tc_adapters_lens.features import exports
from tc_adapters_lens.features.exports import export_features
from tc_adapters_lens.features.graph_nodes import cantor
from tests.features.builder import HOSTILE, synthetic_store


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return synthetic_store(tmp_path_factory.mktemp("made") / "features", n_features=12, k=3, dead=0.3, seed=1)


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


def test_circuit_tracers_own_model_reads_every_feature(store, tmp_path) -> None:
    models = pytest.importorskip("circuit_tracer.frontend.feature_models")
    process_token = pytest.importorskip("circuit_tracer.frontend.utils").process_token
    graph_models = pytest.importorskip("circuit_tracer.frontend.graph_models")
    assert export_features(store, tmp_path, "circuit-tracer") == 24
    assert len(list((tmp_path / "features").glob("*.json"))) == 24 + 1
    pieces = map(store.vocabulary.bytes, range(200))
    texts = [process_token(piece.decode(errors="backslashreplace")) for piece in pieces]
    assert "line⏎break↵→tab" in texts
    for layer in range(2):
        for index in range(12):
            assert cantor(layer, index) == graph_models._cantor_pairing(layer, index)
            path = tmp_path / "features" / f"{cantor(layer, index)}.json"
            model, feature = models.Model.model_validate_json(path.read_text(), strict=True), store[layer, index]
            assert model.index == index
            assert model.top_logits == [texts[effect.token] for effect in feature.promoted]
            assert model.bottom_logits == [texts[effect.token] for effect in feature.inhibited]
            assert model.act_max == pytest.approx(feature.max, rel=1e-4)
            assert model.activation_frequency == feature.frequency
            assert sum(model.histogram) == pytest.approx(feature.n_active, rel=1e-3)
            assert model.quantile_values == sorted(model.quantile_values)
            assert len(model.quantile_values) == (100 if feature.n_active else 0)
            for quantile, examples in zip(model.examples_quantiles, (feature.top, feature.sampled), strict=True):
                for theirs, ours in zip(quantile.examples, examples, strict=True):
                    assert theirs.tokens == [texts[token] for token in ours.tokens]
                    assert theirs.tokens_acts_list == pytest.approx(ours.activations.tolist(), rel=1e-4)
                    assert theirs.tokens_acts_list[theirs.train_token_ind] == pytest.approx(ours.activation, rel=1e-4)


def test_neuronpedias_own_classes_read_every_active_feature(store, tmp_path, monkeypatch) -> None:
    dashboards = pytest.importorskip("sae_dashboard.neuronpedia.neuronpedia_dashboard")
    monkeypatch.setattr(exports, "_FEATURES_PER_FILE", 5)
    out = tmp_path / "out"
    n_active = int((store.column("n_active") > 0).sum())
    assert n_active < 24
    assert export_features(store, out, "neuronpedia") == n_active
    seen = []
    for layer in range(2):
        batches = sorted((out / f"layer_{layer}").iterdir())
        assert [path.name for path in batches] == [f"batch-{number}.json" for number in range(len(batches))]
        for path in batches:
            values = read(path)
            batch = dashboards.NeuronpediaDashboardBatch(**values)
            assert batch.to_dict() == values  # every field theirs, none missing
            assert (batch.layer, batch.model_id, batch.sae_set) == (layer, "toy:target", "adapters")
            assert len(batch.features) <= 5
            for theirs in batch.features:
                feature = store[layer, theirs.feature_index]
                seen.append((layer, theirs.feature_index))
                assert theirs.pos_str == [effect.text for effect in feature.promoted]
                assert theirs.neg_values == pytest.approx([effect.effect for effect in feature.inhibited], rel=1e-4)
                assert len(theirs.activations) == len(feature.top) + len(feature.sampled)
                for activation, example in zip(theirs.activations, [*feature.top, *feature.sampled], strict=True):
                    assert activation.tokens == store.vocabulary.texts(example.tokens)
                    assert activation.qualifying_token_index == example.position - example.start
    expected = [(layer, index) for layer in range(2) for index in range(12) if store[layer, index].n_active]
    assert seen == expected


def test_even_bins_and_percentiles(store, monkeypatch) -> None:
    """Uniform activations from 0 to 8: each of 50 bins holds a fiftieth, the percentiles are evenly spaced."""
    edges = np.array(store.info.histogram_edges)
    histogram = np.round(np.diff(np.clip(edges, 0, 8)) * 1e6).astype(np.int64)
    feature = next(found for found in (store[0, index] for index in range(12)) if found.n_active)
    values = {**vars(feature), "max": 8.0, "histogram": histogram, "n_active": int(histogram.sum())}
    uniform = type(feature)(**values)
    assert exports._even_bins(store, uniform) == pytest.approx([8e6 / 50] * 50, rel=1e-3)
    assert exports._percentiles(store, uniform) == pytest.approx([0.08 * (i + 1) for i in range(100)], rel=1e-3)


@pytest.mark.parametrize("layout", ["csv", "parquet"])
def test_tables_have_every_column_and_tokens_as_text(tmp_path, layout) -> None:
    store = synthetic_store(tmp_path / "features", n_features=8)
    store.add_labels("judge", pd.DataFrame({"layer": [1], "feature": [3], "description": ['=1+1, "two"\n']}))
    path = tmp_path / f"table.{layout}"
    assert export_features(store, path, layout, layers=[1]) == 8
    frame = pd.read_csv(path) if layout == "csv" else pd.read_parquet(path)
    assert list(frame.columns) == store.column_names
    assert frame["layer"].tolist() == [1] * 8
    assert frame["description"].tolist()[3] == '=1+1, "two"\n'
    for index, promoted in enumerate(frame["promoted"]):
        words = json.loads(promoted) if layout == "csv" else list(promoted)
        assert words == [effect.text for effect in store[1, index].promoted]
    if layout == "csv":
        with path.open(newline="") as lines:
            assert {row["inhibited"][0] for row in csv.DictReader(lines)} == {"["}


@pytest.mark.parametrize("layout", ["circuit-tracer", "neuronpedia", "csv", "parquet"])
def test_the_same_again_and_a_layer_alone(store, tmp_path, layout) -> None:
    def content(path):
        files = [path] if path.is_file() else sorted(found for found in path.rglob("*") if found.is_file())
        return [file.read_bytes() for file in files]

    out = tmp_path / "out"
    export_features(store, out, layout, layers=[1])
    first = content(out)
    export_features(store, out, layout, layers=[1, 1])
    assert content(out) == first
    assert export_features(store, out, layout) > export_features(store, out, layout, layers=[0])
    if layout == "circuit-tracer":
        found = {path.stem for path in (out / "features").glob("*.json")} - {"export"}
        assert found == {str(cantor(0, index)) for index in range(12)}


def test_other_directories_and_layers_are_refused(store, tmp_path) -> None:
    (tmp_path / "features").mkdir()
    (tmp_path / "features" / "mine.txt").write_text("mine")
    with pytest.raises(FeatureStoreError, match="holds something else"):
        export_features(store, tmp_path, "circuit-tracer")
    with pytest.raises(FeatureStoreError, match=r"from 0 to 1. Got 2\."):
        export_features(store, tmp_path / "other", "neuronpedia", layers=[0, 2])
    assert (tmp_path / "features" / "mine.txt").read_text() == "mine"


def test_halves_of_characters_and_hostile_text_stay_what_they_are(store, tmp_path) -> None:
    export_features(store, tmp_path / "c", "circuit-tracer", layers=[0])
    export_features(store, tmp_path / "n", "neuronpedia", layers=[0])
    half = len(HOSTILE)
    tokens = {t for p in (tmp_path / "n" / "layer_0").iterdir() for f in read(p)["features"] for t in f["pos_str"]}
    escaped = {
        token for path in (tmp_path / "c" / "features").glob("[0-9]*.json") for token in read(path)["top_logits"]
    }
    assert tokens & set(HOSTILE)
    assert escaped & set(HOSTILE)
    assert exports._escaped(store.vocabulary, half) == "\\xe2\\x82"
    assert store.vocabulary.text(half) == "⟨e2 82⟩"
    assert all(path.read_bytes().isascii() for path in (tmp_path / "c" / "features").iterdir())
