"""A feature store: what is written comes back, what is broken is refused."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.numpy import load_file

from tc_adapters_lens.errors import FeatureStoreError
from tc_adapters_lens.features.records import KeptExamples, LayerFeatures, StoreInfo, TokenEffects
from tc_adapters_lens.features.store import FeatureStore
from tc_adapters_lens.features.store_files import write_store
from tc_adapters_lens.features.text import Text
from tc_adapters_lens.features.windows import Windows
from tests.features.builder import HOSTILE, PAIR, make_vocabulary, synthetic_store

# Two sequences: flat positions 0..3 and 4..8. One layer of two features; feature 1 is active at positions 1 and 4.
TEXT = Text(
    tokens=np.array([5, 6, 7, 8, 5, 6, 7, 8, 9]),
    offsets=np.array([0, 4, 9]),
    counted=np.array([1, 1, 1, 1, 1, 1, 1, 1, 0], bool),
    regions=np.array([0, 0, 1, 1, 0, 1, 1, 1, 1]),
    template=np.array([0, 1, 0, 0, 1, 0, 0, 0, 0]),
    groups=np.array([1, 0]),
    region_names=("prompt", "answer"),
    template_names=("content", "<think>"),
    group_names=("math", "code"),
)
INFO = StoreInfo(
    model="replacement",
    hook="blocks.{layer}.mlp.hook_delta.hook_sae_acts_post",
    n_layers=1,
    n_features=2,
    k=3,
    before=2,
    after=1,
    n_windows=2,
    n_sequences=2,
    n_tokens=9,
    n_counted=8,
    regions=("prompt", "answer"),
    region_tokens=(4, 4),
    group_by="domain",
    groups=("math", "code"),
    group_tokens=(4, 4),
    template=("content", "<think>"),
    template_tokens=(7, 1),
    pair=PAIR,
    adapters="runs/toy/adapters",
    adapters_fingerprint="xxh3:0",
    histogram_edges=(0.0, 1.0, 2.0),
)

WINDOWS = Windows(np.array([0, 1]), np.array([1, 0]), np.array([4, 2]), np.array([0, 4]))


def examples() -> KeptExamples:
    """Windows are [pos-2 pos-1 pos pos+1]. At 4: 2.0, and 0.5 after it; at 1: 1.5, and 0.25 before it."""
    return KeptExamples(
        positions=np.array([[-1, -1, -1], [4, 1, -1]]),
        activations=np.array([[0, 0, 0], [2.0, 1.5, 0]], np.float32),
        starts=np.array([0, 0, 0, 0, 2, 4, 4]),
        offsets=np.array([2, 3, 1, 2], np.uint8),
        values=np.array([2.0, 0.5, 0.25, 1.5], np.float32),
    )


def layer() -> LayerFeatures:
    effects = TokenEffects(np.array([[3, 4], [0, 1]], np.int32), np.array([[2, 1], [4, 3]], np.float32))
    return LayerFeatures(
        n_active=np.array([0, 2]),
        mean=np.array([0, 1.75], np.float32),
        maximum=np.array([0, 2.0], np.float32),
        histogram=np.array([[0, 0], [0, 2]]),
        regions=np.array([[0, 0], [1, 1]]),
        groups=np.array([[0, 0], [1, 1]]),
        template=np.array([[0, 0], [2, 0]]),
        promoted=effects,
        inhibited=TokenEffects(effects.ids, -effects.effects),
        top=examples(),
        sampled=examples(),
        window_maxima=np.array([[0, 0], [0.5, 2.0]], np.float16),
    )


def written(directory) -> FeatureStore:
    write_store(directory, INFO, [layer()], TEXT, WINDOWS, make_vocabulary(20))
    return FeatureStore.open(directory)


def test_a_feature_is_read_back(tmp_path):
    feature = written(tmp_path / "store")[0, 1]
    assert (feature.n_active, feature.frequency, feature.mean, feature.max) == (2, 2 / 8, 1.75, 2.0)
    assert feature.regions == {"prompt": 0.5, "answer": 0.5}
    assert feature.groups == {"math": 0.5, "code": 0.5}
    assert feature.template == {"content": 1.0, "<think>": 0.0}
    assert [effect.token for effect in feature.promoted] == [0, 1]
    assert [effect.text for effect in feature.promoted] == ["⟨e2 82⟩", "⟨ac⟩"]
    assert [effect.effect for effect in feature.inhibited] == [-4, -3]

    first, second = feature.top
    assert (first.sequence, first.position, first.activation, first.group) == (1, 0, 2.0, "math")
    assert (first.region, first.template) == ("prompt", "<think>")
    assert (first.start, first.tokens.tolist(), first.activations.tolist()) == (0, [5, 6], [2.0, 0.5])
    assert (second.sequence, second.position, second.group) == (0, 1, "code")
    assert (second.start, second.tokens.tolist(), second.activations.tolist()) == (0, [5, 6, 7], [0.25, 1.5, 0.0])


def test_windows_and_entries_of_examples_are_read_back(tmp_path):
    """The second sequence starts at flat position 4; of the first feature nothing is kept."""
    store = written(tmp_path / "store")
    assert store.windows.tolist() == [[0, 1, 4], [1, 0, 2]]
    assert store.window_maxima(0, 1).tolist() == [0.5, 2.0]
    assert store.window_maxima(0).tolist() == [[0, 0], [0.5, 2.0]]
    for kind in ("top", "sampled"):
        features, positions, values = store.entries(kind, 0, 0, 2)
        assert features.tolist() == [1, 1, 1, 1]
        assert positions.tolist() == [4, 5, 0, 1]
        assert values.tolist() == [2.0, 0.5, 0.25, 1.5]
        assert [len(part) for part in store.entries(kind, 0, 0, 1)] == [0, 0, 0]
        assert store.entries(kind, 0, 1, 2)[1].tolist() == [4, 5, 0, 1]


def test_a_dead_feature_has_no_examples_and_no_shares(tmp_path):
    feature = written(tmp_path / "store")[0, 0]
    assert (feature.n_active, feature.top, feature.sampled, feature.regions) == (0, [], [], {})


def test_dead_features_behind_the_last_example_have_none_either(tmp_path):
    store = synthetic_store(tmp_path / "store", n_layers=3, n_features=6, dead=0.5)
    dead = [(layer, feature) for layer in range(3) for feature in range(6) if not store[layer, feature].n_active]
    assert any(feature == 5 for _, feature in dead)
    assert all(store[key].top == store[key].sampled == [] for key in dead)
    silent = synthetic_store(tmp_path / "silent", n_features=3, dead=1.0)
    assert silent[1, 2].top == []


@pytest.mark.parametrize("key", [(1, 0), (0, 2), (-1, 0), (0, -1)])
def test_features_that_are_not_there(tmp_path, key):
    with pytest.raises(KeyError, match=r"features \(0, 0\) to \(0, 1\). Got"):
        written(tmp_path / "store")[key]


def test_the_table(tmp_path):
    store = written(tmp_path / "store")
    frame = store.frame()
    assert frame["feature"].tolist() == [0, 1]
    assert frame["domain:math"].tolist()[1] == 0.5
    assert np.isnan(frame["region:prompt"][0])
    assert list(frame["promoted"][1]) == [0, 1]
    assert frame["top_template"].isna().tolist() == [True, False]
    assert frame["top_template"][1] == "<think>"  # both examples, at 4 and 1, are there
    assert frame["top_template_share"][1] == 1.0
    assert np.isnan(frame["top_template_share"][0])
    assert store.column("promoted").tolist() == [[3, 4], [0, 1]]
    assert store.column("frequency").tolist() == [0, 0.25]
    assert store.position_regions.tolist() == TEXT.regions.tolist()
    assert store.position_template.tolist() == TEXT.template.tolist()
    with pytest.raises(FeatureStoreError, match=r"Got frequenzy. Did you mean 'frequency'\?"):
        store.column("frequenzy")


def test_every_feature_of_a_larger_store_agrees_with_its_table_and_arrays(tmp_path):
    store = synthetic_store(tmp_path / "store", n_layers=3, n_features=7)
    frame = store.frame()
    assert len(frame) == len(store) == 21
    for row in frame.to_dict("records"):
        feature = store[row["layer"], row["feature"]]
        assert feature.n_active == row["n_active"] == feature.histogram.sum()
        assert feature.max == pytest.approx(row["max"])
        peaks = store.peaks("top", feature.layer)[feature.feature]
        assert [store.offsets[e.sequence] + e.position for e in feature.top] == peaks[peaks >= 0].tolist()
        for example in (*feature.top, *feature.sampled):
            assert example.activations[example.position - example.start] == pytest.approx(example.activation)
            assert len(example.tokens) == len(example.activations) <= 71
        if feature.n_active:
            assert sum(feature.groups.values()) == pytest.approx(1)
            assert feature.regions["think"] == pytest.approx(row["region:think"], rel=1e-6)


def test_hostile_token_texts_come_back_as_they_are(tmp_path):
    store = synthetic_store(tmp_path / "store")
    assert tuple(store.vocabulary.texts(range(len(HOSTILE)))) == HOSTILE


def test_labels_join_features_and_table(tmp_path):
    store = written(tmp_path / "store")
    store.add_labels("judged", pd.DataFrame({"layer": [0], "feature": [1], "class": ["output"], "score": [0.75]}))
    for opened in (store, FeatureStore.open(store.directory)):
        assert opened[0, 1].labels == {"class": "output", "score": 0.75}
        assert opened[0, 0].labels == {}
        assert opened.column("class")[1] == "output"
        assert opened.column_names[-2:] == ["class", "score"]
        assert np.isnan(opened.frame()["score"][0])
    store.add_labels("judged", pd.DataFrame({"layer": [0], "feature": [1], "class": ["input"]}))
    assert store[0, 1].labels == {"class": "input"}


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"layer": [0]}, "columns layer and feature. Got layer"),
        ({"layer": [0], "feature": [2], "class": ["a"]}, r"Got \(0, 2\)"),
        ({"layer": [0, 0], "feature": [1, 1], "class": ["a", "b"]}, r"Got \(0, 1\) twice"),
        ({"layer": [0], "feature": [1], "max": [2.0]}, "Got max, which is there already"),
    ],
)
def test_labels_that_do_not_fit(tmp_path, columns, message):
    store = written(tmp_path / "store")
    with pytest.raises(FeatureStoreError, match=message):
        store.add_labels("judged", pd.DataFrame(columns))
    assert not (store.directory / "labels").exists()


def test_a_name_of_labels_cannot_leave_the_store(tmp_path):
    with pytest.raises(FeatureStoreError, match="letters, digits"):
        written(tmp_path / "store").add_labels("../x", pd.DataFrame({"layer": [], "feature": []}))


def test_a_directory_that_is_no_store(tmp_path):
    with pytest.raises(FeatureStoreError, match=r"no such directory\. Make one: `tc-adapters features`"):
        FeatureStore.open(tmp_path / "none")
    with pytest.raises(FeatureStoreError, match=r"it has no store\.json"):
        FeatureStore.open(tmp_path)


@pytest.mark.parametrize("name", ["table.parquet", "layer_0.safetensors", "tokens.safetensors"])
def test_missing_and_truncated_files(tmp_path, name):
    path = written(tmp_path / "store").directory / name
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(FeatureStoreError, match=f"{name} must have .* bytes. Got"):
        FeatureStore.open(path.parent)
    path.unlink()
    with pytest.raises(FeatureStoreError, match=f"{name} must have .* Got it is missing"):
        FeatureStore.open(path.parent)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"format": "other", "format_version": 1, "files": {}}'])
def test_a_damaged_description(tmp_path, text):
    path = written(tmp_path / "store").directory / "store.json"
    path.write_text(text)
    with pytest.raises(FeatureStoreError, match=r"store\.json (must|cannot be read)"):
        FeatureStore.open(path.parent)


def test_description_of_another_version(tmp_path):
    path = written(tmp_path / "store").directory / "store.json"
    values = json.loads(path.read_text())
    path.write_text(json.dumps({**values, "format_version": 3}))
    with pytest.raises(FeatureStoreError, match=r"format_version 2\. Got 3\. Update"):
        FeatureStore.open(tmp_path / "store")
    path.write_text(json.dumps({**values, "format_version": 1}))
    with pytest.raises(FeatureStoreError, match=r"format_version 2\. Got 1\. Make the store again"):
        FeatureStore.open(path.parent)
    path.write_text(json.dumps({**values, "colour": 2}))
    with pytest.raises(FeatureStoreError, match=r"differs in .*colour"):
        FeatureStore.open(path.parent)


def test_writing_stops_halfway(tmp_path):
    """The old store stays; no new one is there, and nothing else."""
    old = written(tmp_path / "store")

    def layers():
        yield layer()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_store(tmp_path / "store", INFO, layers(), TEXT, WINDOWS, make_vocabulary(20))
    with pytest.raises(KeyboardInterrupt):
        write_store(tmp_path / "new", INFO, layers(), TEXT, WINDOWS, make_vocabulary(20))
    assert [path.name for path in tmp_path.iterdir()] == ["store"]
    assert FeatureStore.open(tmp_path / "store")[0, 1].n_active == old[0, 1].n_active


def test_a_store_replaces_a_store_and_nothing_else(tmp_path):
    written(tmp_path / "store")
    written(tmp_path / "store")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("mine")
    with pytest.raises(FeatureStoreError, match="holds something else"):
        written(tmp_path / "other")


def test_files_are_plain_tensors(tmp_path):
    directory = written(tmp_path / "store").directory
    arrays = load_file(directory / "layer_0.safetensors")
    assert arrays["top.positions"].tolist() == [[-1, -1, -1], [4, 1, -1]]
    assert torch.from_numpy(arrays["histogram"]).sum() == 2
    shutil.rmtree(directory)
