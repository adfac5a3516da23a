"""Files for circuit-tracer's page: as its own, with labels."""

from __future__ import annotations

import json
import re

import pytest
import torch

from tc_adapters_lens.errors import GraphError
from tests.integrations.tiny_graph import TOKENS, graph_of, random_graph, upstream_model
from tests.tiny import word_tokenizer

pytest.importorskip("circuit_tracer")

from tc_adapters_lens.integrations.circuit_tracer.graph_files import write_graph_files
from tc_adapters_lens.integrations.circuit_tracer.prune import prune
from tc_adapters_lens.integrations.circuit_tracer.trace import trace

pytestmark = pytest.mark.filterwarnings("ignore:Full backward hook is firing:UserWarning")


THEIR_NAME = re.compile("^error_")  # an error that shares its name with a feature, where ours has its own


class Labels(dict):
    """A label for every feature."""

    def get(self, key, default=None):
        layer, feature = key
        return f"L{layer} F{feature}"


@pytest.mark.parametrize("thresholds", [(0.8, 0.98), (0.95, 0.9)])
@pytest.mark.parametrize("n_features", [None, 60])
def test_as_circuit_tracer_writes_them(thresholds, n_features, tmp_path) -> None:
    from circuit_tracer import attribute
    from circuit_tracer.utils import create_graph_files

    model = upstream_model()
    word_tokenizer().save_pretrained(tmp_path / "tokenizer")
    model.cfg.tokenizer_name = str(tmp_path / "tokenizer")
    options = {"max_n_logits": 3, "batch_size": 16, "max_feature_nodes": n_features}
    create_graph_files(attribute(TOKENS, model, **options), "some-1", str(tmp_path / "theirs"), None, *thresholds)
    graph = trace(TOKENS, model, keep=1.0, **options)
    pruned = prune(graph, *thresholds)
    written = write_graph_files(graph, pruned, "some-1", tmp_path / "ours", {}, node_threshold=thresholds[0])

    theirs = json.loads((tmp_path / "theirs" / "some-1.json").read_text())
    ours = json.loads(written.path.read_text())
    assert written.path == tmp_path / "ours" / "some-1.json"
    assert (written.n_nodes, written.n_edges, written.n_edges_left_out) == (len(ours["nodes"]), len(ours["links"]), 0)
    assert ours.keys() == theirs.keys()
    assert ours["metadata"] == theirs["metadata"]
    assert ours["qParams"] == theirs["qParams"]
    kinds = {node["feature_type"] for node in ours["nodes"]}
    assert kinds == {"cross layer transcoder", "mlp reconstruction error", "embedding", "logit"}
    assert len(ours["nodes"]) == len(theirs["nodes"])
    for mine, their in zip(ours["nodes"], theirs["nodes"], strict=True):
        assert mine.keys() == their.keys()
        influence, their_influence = mine.pop("influence"), their.pop("influence")
        assert influence == pytest.approx(their_influence, abs=1e-5)
        mine["node_id"] = THEIR_NAME.sub("0_", mine["node_id"])
        assert mine == their
    links, their_links = (
        sorted((THEIR_NAME.sub("0_", link["source"]), link["target"], link["weight"]) for link in content["links"])
        for content in (ours, theirs)
    )
    assert [link[:2] for link in links] == [link[:2] for link in their_links]
    assert [link[2] for link in links] == pytest.approx([link[2] for link in their_links], rel=1e-4, abs=1e-6)
    assert len(links) > 100
    ours, theirs = (json.loads((tmp_path / who / "graph-metadata.json").read_text()) for who in ("ours", "theirs"))
    assert ours == theirs


def test_labels(tmp_path) -> None:
    graph = random_graph(0)
    pruned = prune(graph, 0.95)
    path = write_graph_files(graph, pruned, "a", tmp_path, Labels(), node_threshold=0.95).path
    features = [n for n in json.loads(path.read_text())["nodes"] if n["feature_type"] == "cross layer transcoder"]
    for node in features:
        layer, feature, position = node["node_id"].split("_")
        assert node["clerp"] == f"L{layer} F{feature}"
        assert (node["layer"], node["ctx_idx"]) == (layer, int(position))
    assert len(features) == int(pruned.node_mask[: graph.n_selected].sum()) > 5
    path = write_graph_files(graph, pruned, "a", tmp_path, {}, node_threshold=0.95).path
    features = [n for n in json.loads(path.read_text())["nodes"] if n["feature_type"] == "cross layer transcoder"]
    assert {node["clerp"] for node in features} == {""}


def test_most_links(tmp_path) -> None:
    graph = random_graph(0, n_active=20)
    pruned = prune(graph)
    whole = write_graph_files(graph, pruned, "whole", tmp_path, {}, node_threshold=0.8)
    cut = write_graph_files(graph, pruned, "cut", tmp_path, {}, node_threshold=0.8, most_edges=7)
    assert (cut.n_edges, cut.n_edges_left_out) == (7, whole.n_edges - 7)
    every, few = (json.loads(file.path.read_text()) for file in (whole, cut))
    order = pruned.edge_scores.argsort(descending=True)[:7].sort().values.tolist()
    assert few["links"] == [every["links"][place] for place in order]
    ends = {link[end] for link in few["links"] for end in ("source", "target")}
    fixed = {n["node_id"] for n in every["nodes"] if n["feature_type"] in ("embedding", "logit")}
    assert {node["node_id"] for node in few["nodes"]} == ends | fixed


def test_a_feature_and_an_error_of_the_same_name(tmp_path) -> None:
    """circuit-tracer calls feature 1 of layer 0 and the error of layer 1 both 0_1_0."""
    dense = torch.tensor([[0.0, 0, 0, 1], [1, 0, 1, 1]])  # A | errors of two layers | token
    zeros = torch.zeros(2, dtype=torch.float64)
    active, selected = torch.tensor([[0, 0, 1]]), torch.tensor([0])
    graph = graph_of(dense, active, selected, 2, torch.tensor([1.0]), {}, zeros, zeros)
    file = write_graph_files(graph, prune(graph, 1.0, 1.0), "a", tmp_path, {}, node_threshold=1.0)
    content = json.loads(file.path.read_text())
    assert [node["node_id"] for node in content["nodes"]] == ["0_1_0", "error_1_0", "E_3_0", "3_50_0"]
    assert {(link["source"], link["target"]) for link in content["links"]} == {
        ("E_3_0", "0_1_0"),
        ("0_1_0", "3_50_0"),
        ("error_1_0", "3_50_0"),
        ("E_3_0", "3_50_0"),
    }


def test_the_list_of_graphs(tmp_path) -> None:
    graph, other = random_graph(0), random_graph(1, n_pos=5)
    for slug, content in (("a", graph), ("b", graph), ("a", other)):
        write_graph_files(content, prune(content), slug, tmp_path, {}, node_threshold=0.8)
    listed = json.loads((tmp_path / "graph-metadata.json").read_text())["graphs"]
    assert [(about["slug"], len(about["prompt_tokens"])) for about in listed] == [("b", 4), ("a", 5)]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json", "b.json", "graph-metadata.json"]
    for damaged in ("", "[]", '{"graphs": [1]}', "{}"):
        (tmp_path / "graph-metadata.json").write_text(damaged)
        with pytest.raises(GraphError, match=r"circuit-tracer's list of graphs\. Got something else; delete it\."):
            write_graph_files(graph, prune(graph), "c", tmp_path, {}, node_threshold=0.8)
        assert (tmp_path / "graph-metadata.json").read_text() == damaged


@pytest.mark.parametrize("slug", ["", "a b", "../a", "a.json", "ä", "a" * 101])
def test_names(slug, tmp_path) -> None:
    graph = random_graph(0)
    with pytest.raises(GraphError, match=r"must be of letters, digits, - and _, at most 100\. Got"):
        write_graph_files(graph, prune(graph), slug, tmp_path, {}, node_threshold=0.8)
    assert not list(tmp_path.iterdir())
