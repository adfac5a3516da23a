"""A sparse graph on disk: what is read is what was written, and nothing damaged is read."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from tc_adapters_lens.errors import GraphError
from tc_adapters_lens.integrations.circuit_tracer import sparse_graph
from tc_adapters_lens.integrations.circuit_tracer.sparse_graph import GRAPH_FILE, WEIGHTS_FILE, SparseGraph
from tests.integrations.tiny_graph import random_graph


@pytest.fixture
def graph():
    return random_graph(1, selected=0.7)


def assert_same(one: SparseGraph, other: SparseGraph) -> None:
    for field in dataclasses.fields(SparseGraph):
        left, right = getattr(one, field.name), getattr(other, field.name)
        if isinstance(left, torch.Tensor):
            assert left.dtype == right.dtype
            assert left.equal(right), field.name
        elif field.name == "terms":
            assert left.keys() == right.keys()
            assert all(term.equal(right[kind]) for kind, term in left.items())
        else:
            assert left == right, field.name


def test_written_and_read(graph, tmp_path) -> None:
    graph.save(tmp_path / "graphs" / "a")
    assert_same(SparseGraph.load(tmp_path / "graphs" / "a"), graph)
    assert sorted(path.name for path in (tmp_path / "graphs" / "a").iterdir()) == [GRAPH_FILE, WEIGHTS_FILE]


def test_a_graph_takes_the_place_of_another_only(graph, tmp_path) -> None:
    graph.save(tmp_path / "a")
    (tmp_path / "a" / "graph.svg").write_text("of the old one")
    other = random_graph(2)
    other.save(tmp_path / "a")
    assert_same(SparseGraph.load(tmp_path / "a"), other)
    assert not (tmp_path / "a" / "graph.svg").exists()
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "thesis.tex").write_text("mine")
    with pytest.raises(GraphError, match=r"b holds something else, so it is not replaced\."):
        graph.save(tmp_path / "b")
    assert (tmp_path / "b" / "thesis.tex").read_text() == "mine"


def test_sizes(graph) -> None:
    assert graph.n_sources == 12 + 3 * 4 + 4
    assert graph.n_nodes == graph.n_selected + 3 * 4 + 4 + 2
    assert graph.n_rows == graph.n_selected + 2 == len(graph.row_starts) - 1
    layers = graph.active_features[graph.selected, 0].tolist()
    assert graph.layer_rows == tuple(sum(layer < at for layer in layers) for at in range(4))
    nodes = graph.node_of_source.tolist()
    assert [source for source in range(12) if nodes[source] >= 0] == graph.selected.tolist()
    assert nodes[12:] == list(range(graph.n_selected, graph.n_nodes - 2))


def test_too_many_nodes_for_a_dense_graph(graph) -> None:
    pytest.importorskip("circuit_tracer")
    with pytest.raises(
        GraphError, match=rf"may take at most 0\.0 GiB\. Got {graph.n_nodes} nodes, which take 0\.0 GiB"
    ):
        graph.to_graph(None, limit=4 * graph.n_nodes**2 - 1)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("file", [GRAPH_FILE, WEIGHTS_FILE])
def test_files_cut_short(graph, tmp_path, file, share) -> None:
    graph.save(tmp_path / "a")
    path = tmp_path / "a" / file
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    refused(tmp_path / "a")


def test_any_byte_of_the_tensors_changed(graph, tmp_path) -> None:
    graph.save(tmp_path / "a")
    path = tmp_path / "a" / WEIGHTS_FILE
    content = path.read_bytes()
    for at in range(0, len(content), 97):
        path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        refused(tmp_path / "a")


def test_files_that_are_missing_or_something_else(graph, tmp_path) -> None:
    assert "cannot be read as JSON" in refused(tmp_path / "nowhere")
    graph.save(tmp_path / "a")
    about = json.loads((tmp_path / "a" / GRAPH_FILE).read_text())
    for change, said in [
        ({"version": 2}, "must be of format tc_adapters_lens.sparse_graph 1. Got tc_adapters_lens.sparse_graph 2;"),
        ({"format": "x"}, "Got x 1;"),
        ({"tensors": "xxh3:0"}, "is not the file that graph.json beside it describes."),
        ({"targets": [1]}, "is not a whole graph"),
        ({"targets": []}, "A graph's probabilities must be torch.float32 (0,). Got torch.float32 (2,)."),
        ({"token_texts": ["one"]}, "A graph's tokens must be torch.int64 (1,). Got torch.int64 (4,)."),
        ({"n_layers": 2}, "In a graph active features lie in its layers and positions"),
    ]:
        (tmp_path / "a" / GRAPH_FILE).write_text(json.dumps({**about, **change}))
        assert said in refused(tmp_path / "a")
    for name in about:
        (tmp_path / "a" / GRAPH_FILE).write_text(json.dumps({key: about[key] for key in about if key != name}))
        refused(tmp_path / "a")


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("columns", lambda t: t + 1000, "edges come from its nodes"),
        ("columns", lambda t: t - 1000, "edges come from its nodes"),
        ("columns", lambda t: t * 0 + 11, "edges of a feature come from lower layers"),
        ("row_starts", lambda t: t.flip(0), "rows follow each other"),
        ("row_starts", lambda t: t + 1, "rows follow each other"),
        ("selected", lambda t: t.flip(0), "selected features are active ones, ascending"),
        ("selected", lambda t: t * 0, "selected features are active ones, ascending"),
        ("active_features", lambda t: t.flip(0), "active features are in ascending layers"),
        ("active_features", lambda t: t + 9, "active features lie in its layers and positions"),
        ("weights", lambda t: t / 0, "weights must be finite"),
        ("weights", lambda t: t.double(), "weights must be torch.float32"),
        ("terms.own", lambda t: t[1:], "own must be torch.float32"),
        ("values", None, "is not a whole graph"),
    ],
)
def test_tensors_that_are_no_graph(graph, tmp_path, name, change, said) -> None:
    graph.save(tmp_path / "a")
    tensors = load_file(tmp_path / "a" / WEIGHTS_FILE)
    tensor = tensors.pop(name)
    if change is not None:
        tensors[name] = change(tensor).contiguous()
    save_file(tensors, tmp_path / "a" / WEIGHTS_FILE)
    about = json.loads((tmp_path / "a" / GRAPH_FILE).read_text())
    about["tensors"] = sparse_graph._hash(tmp_path / "a" / WEIGHTS_FILE)
    (tmp_path / "a" / GRAPH_FILE).write_text(json.dumps(about))
    assert said in refused(tmp_path / "a")


def refused(directory) -> str:
    """The one line that loading it says."""
    with pytest.raises(GraphError) as failure:
        SparseGraph.load(directory)
    line = str(failure.value)
    assert line.endswith("Make the graph again.")
    assert "\n" not in line
    return line
