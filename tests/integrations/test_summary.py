"""What is said of a graph: circuit-tracer's scores, sums that add up, shares, and JSON that anything can read."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch

pytest.importorskip("circuit_tracer")

from tc_adapters_lens.integrations.circuit_tracer.influence import node_influences, target_shares
from tc_adapters_lens.integrations.circuit_tracer.prune import prune
from tc_adapters_lens.integrations.circuit_tracer.replacement import replacement_model
from tc_adapters_lens.integrations.circuit_tracer.sparse_graph import Target
from tc_adapters_lens.integrations.circuit_tracer.summary import (
    FeatureWords,
    largest_gap,
    summarise,
    top_features,
)
from tc_adapters_lens.integrations.circuit_tracer.targets import GraphTargets
from tc_adapters_lens.integrations.circuit_tracer.trace import trace
from tc_adapters_lens.models.adapter_set import AdapterSet, AdapterSetInfo
from tc_adapters_lens.models.pair import load_pair
from tests.integrations.tiny_graph import TOKENS, graph_of, random_graph
from tests.tiny import D_MODEL, N_LAYERS, tiny_pair, word_tokenizer


class Named:
    """Words on every feature."""

    def __getitem__(self, feature):
        return FeatureWords(f"{feature}", ("a", "b"), ("c",), 0.5, ({"before": "", "token": "x"},))


@pytest.fixture(scope="module")
def models():
    """By whose forward pass is explained."""
    base, target = tiny_pair("qwen2")
    pair = load_pair((base, word_tokenizer()), (target, word_tokenizer()))
    fresh = AdapterSet.fresh(N_LAYERS, D_MODEL, 20, AdapterSetInfo(pair.pair))
    generator = torch.Generator().manual_seed(0)
    state = {name: torch.randn(t.shape, generator=generator) * 0.1 for name, t in fresh.state().items()}
    adapters = AdapterSet.from_state(state, fresh.info)
    return {sampled: replacement_model(pair, adapters, sampled=sampled) for sampled in ("replacement", "target")}


def as_json(graph):
    """The summary, written and read again."""
    return json.loads(json.dumps(summarise(graph).to_dict(Named()), allow_nan=False))


@pytest.mark.parametrize("sampled", ["replacement", "target"])
@pytest.mark.parametrize("n_features", [None, 40])
def test_scores_are_circuit_tracers(models, sampled, n_features) -> None:
    from circuit_tracer.graph import compute_graph_scores

    model = models[sampled]
    graph = trace(TOKENS, model, max_n_logits=3, keep=1.0, max_feature_nodes=n_features)
    summary = summarise(graph)
    theirs = compute_graph_scores(graph.to_graph(model.cfg))
    assert (summary.replacement_score, summary.completeness_score) == pytest.approx(theirs, abs=1e-5)
    assert (summary.replacement_score < 1) == (sampled == "target")
    assert sum(summary.features.values()) == pytest.approx(1)
    assert summary.largest_gap < 1e-5


@pytest.mark.parametrize("sampled", ["replacement", "target"])
def test_what_enters_a_target_is_its_value(models, sampled) -> None:
    for keep in (1.0, 0.9):
        found = as_json(trace(TOKENS, models[sampled], max_n_logits=4, keep=keep, max_feature_nodes=50))
        assert len(found["targets"]) == 4
        for target in found["targets"]:
            enters = target["features"] + target["tokens"] + target["errors"] + target["dropped"]
            assert enters + sum(target["terms"].values()) == pytest.approx(target["value"], abs=1e-4)
            assert (target["errors"] != 0) == (sampled == "target")
            assert (target["dropped"] != 0) == (keep < 1)


def test_scores_of_random_graphs() -> None:
    from circuit_tracer.graph import compute_graph_scores

    class Config:
        n_layers = 3

        def to_dict(self):
            names = "d_model d_head n_heads n_key_value_heads d_mlp d_vocab dtype tokenizer_name model_name"
            return {"n_layers": 3, "original_architecture": "", **dict.fromkeys(names.split(), 1)}

    for seed in range(20):
        graph = random_graph(seed, selected=0.7)
        summary = summarise(graph)
        theirs = compute_graph_scores(graph.to_graph(Config()))
        assert (summary.replacement_score, summary.completeness_score) == pytest.approx(theirs, abs=1e-5)


def by_hand(**changes):
    """A = 2 token + 1 own, target = 3 A - 4 token - 0.5 dropped; one layer, one position."""
    dense = torch.tensor([[0.0, 0, 2], [3, 0, -4]])  # A, error, token
    graph = graph_of(
        dense,
        torch.tensor([[0, 0, 7]]),
        torch.tensor([0]),
        1,
        torch.tensor([0.25]),
        {"own": torch.tensor([1.0, 0.0])},
        torch.tensor([0, 0.5], dtype=torch.float64),
        torch.tensor([0, -0.5], dtype=torch.float64),
    )
    return dataclasses.replace(graph, values=torch.tensor([3.0, -1.5]), **changes)


def test_the_largest_gap_by_hand() -> None:
    assert largest_gap(by_hand()) == 0
    wrong = dataclasses.replace(by_hand(), values=torch.tensor([3.3, -1.5]))
    assert largest_gap(wrong) == pytest.approx(0.3 / 3, rel=1e-5)  # 2 and 1 enter A
    worse = dataclasses.replace(by_hand(), values=torch.tensor([3.3, 1.5]))
    assert largest_gap(worse) == pytest.approx(3 / 7.5, rel=1e-5)  # 3, 4 and 0.5 enter the target
    assert as_json(worse)["largest_gap"] == pytest.approx(0.4, rel=1e-5)


def test_a_summary_by_hand() -> None:
    found = as_json(by_hand())
    assert (found["prompt"], found["n_tokens"], found["sampled"]) == ("w3", 1, "replacement")
    assert found["size"] == {"active_features": 1, "features": 1, "edges": 3}
    assert found["targets"] == [
        {
            "label": "w50",
            "vocab_idx": 50,
            "kind": "token",
            "probability": 0.25,
            "value": -1.5,
            "features": 3.0,
            "errors": 0.0,
            "tokens": -4.0,
            "terms": {"own": 0.0},
            "dropped": -0.5,
        }
    ]
    (feature,) = found["features"]
    assert feature == {
        "layer": 0,
        "feature": 7,
        "influence": 1.0,
        "label": "(0, 7)",
        "nodes": [{"position": 0, "token": "w3", "activation": 1.0}],
        "promoted": ["a", "b"],
        "inhibited": ["c"],
        "frequency": 0.5,
        "examples": [{"before": "", "token": "x"}],
    }
    (path,) = found["paths"]
    assert (path["weight"], path["sign"]) == (pytest.approx(3 / 7.5 * 2 / 3), 1)
    assert [(node["kind"], node["text"]) for node in path["nodes"]] == [
        ("token", "w3"),
        ("feature", "(0, 7)"),
        ("target", "w50"),
    ]
    assert (found["replacement_score"], found["completeness_score"]) == (1, 1)


def test_a_feature_is_counted_at_all_its_positions() -> None:
    graph = random_graph(4)
    influences = node_influences(graph)
    shares = top_features(graph, influences)
    assert sum(shares.values()) == pytest.approx(1)
    assert list(shares.values()) == sorted(shares.values(), reverse=True)
    own = influences[: graph.n_selected] / influences[: graph.n_selected].sum()
    for (layer, feature), share in shares.items():
        rows = [
            row for row, (at, _, index) in enumerate(graph.active_features.tolist()) if (at, index) == (layer, feature)
        ]
        assert share == pytest.approx(float(own[rows].sum()))
    assert len(shares) < graph.n_active  # one is there twice


@pytest.mark.parametrize(
    "weights", [(0.0, 0.0), (-1.0, 0.5), (-1.0, -1.0), (1.0, -1.0), (1e-30, 1e-30), (1e-44, 0.0)], ids=str
)
def test_targets_of_any_weight(weights) -> None:
    """Sizes of weights count, all are the same where none has one; nothing is lost in tiny ones."""
    graph = random_graph(5, selected=0.7)
    like = dataclasses.replace(graph, probabilities=torch.tensor(weights).abs() / max(map(abs, weights)))
    if weights == (0.0, 0.0):
        like = dataclasses.replace(graph, probabilities=torch.ones(2))
    graph = dataclasses.replace(graph, probabilities=torch.tensor(weights))
    found, expected = as_json(graph), as_json(like)
    for name in ("replacement_score", "completeness_score", "features", "paths"):
        assert found[name] == expected[name], name
    assert sum(found["shares"]["first_hop"].values()) == pytest.approx(1)
    ours, theirs = prune(graph), prune(like)
    assert ours.node_mask.equal(theirs.node_mask)
    assert ours.edge_mask.equal(theirs.edge_mask)
    assert 0 < int(ours.edge_mask.sum()) < graph.n_edges
    assert float(target_shares(graph.probabilities).sum()) == pytest.approx(1)


def test_custom_targets_of_negative_and_no_weight(models) -> None:
    vector = torch.linspace(-1, 1, D_MODEL)
    for first, second in ((-0.5, 1.0), (0.0, 0.0)):
        targets = GraphTargets([("down", first, -vector), ("up", second, vector)])
        for n_features in (None, 30):
            graph = trace(TOKENS, models["target"], targets=targets, max_feature_nodes=n_features, batch_size=8)
            found = as_json(graph)
            assert [target["label"] for target in found["targets"]] == ["down", "up"]
            assert sum(feature["influence"] for feature in found["features"]) > 0
            assert found["largest_gap"] < 1e-4


@pytest.mark.parametrize("changed", ["one token", "no edges", "no features with rows", "no terms"])
def test_graphs_with_little_in_them(changed) -> None:
    graph = random_graph(6, n_pos=1, n_active=4) if changed == "one token" else random_graph(6)
    if changed == "no features with rows":
        graph = random_graph(6, selected=0.0)
    if changed == "no terms":
        graph = dataclasses.replace(graph, terms={}, targets=(Target("<b>\n\u202e", 5), Target("", 9999)))
    if changed == "no edges":
        none = torch.zeros(0)
        changes = {"columns": none.int(), "weights": none, "row_starts": torch.zeros_like(graph.row_starts)}
        zeros = torch.zeros(graph.n_rows, dtype=torch.float64)
        changes |= {"row_abs": zeros, "dropped_abs": zeros, "dropped_sum": zeros, "terms": {}}
        graph = dataclasses.replace(graph, **changes, values=torch.zeros(graph.n_rows))
    found = as_json(graph)
    assert len(found["targets"]) == 2
    assert (found["paths"] == []) == (changed == "no edges")
    if changed == "no edges":
        assert found["largest_gap"] == 0
        assert found["shares"]["without_rows"] == pytest.approx(1)
