"""`graph`: what is written, what is not made again, and going on after whatever went wrong."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch

pytest.importorskip("circuit_tracer")

from circuit_tracer.frontend.graph_models import Model

from tc_adapters_lens.cli import graph_output, graph_tracing
from tc_adapters_lens.integrations.circuit_tracer.sparse_graph import SparseGraph
from tc_adapters_lens.models.adapter_set import AdapterSet
from tc_adapters_lens.models.pair import load_pair
from tc_adapters_lens.serve.graphs import read_content, read_graph
from tests.cli.graph_run import PROMPT

FILES = ["graph.json", "graph.png", "graph.safetensors", "graph.svg", "summary.json"]


def changes(directory: Path) -> dict[str, int]:
    return {
        str(path.relative_to(directory)): path.stat().st_mtime_ns for path in directory.rglob("*") if path.is_file()
    }


def test_what_is_written(graph_made, graph_dir, capsys) -> None:
    graphs = graph_dir / "graphs"
    assert sorted(path.name for path in graphs.iterdir()) == ["graph-metadata.json", "one", "one.json"]
    assert sorted(path.name for path in (graphs / "one").iterdir()) == FILES
    assert (graphs / "one" / "graph.png").read_bytes().startswith(b"\x89PNG")
    content = json.loads((graphs / "one.json").read_text(encoding="utf-8"))
    page = Model.model_validate(content)
    assert (page.metadata.slug, page.metadata.scan) == ("one", "./data/features")
    assert page.metadata.prompt_tokens == PROMPT.split()
    listed = json.loads((graphs / "graph-metadata.json").read_text())
    assert [about["slug"] for about in listed["graphs"]] == ["one"]
    read = read_graph(read_content(graphs / "one.json") or {}, "graphs/one.json")
    assert read is not None
    assert len(read.features) > 5
    summary = json.loads((graphs / "one" / "summary.json").read_text(encoding="utf-8"))
    assert (summary["prompt"], summary["n_tokens"], summary["sampled"]) == (PROMPT, 5, "replacement")
    assert summary["shown"]["nodes"] == len(page.nodes)
    assert summary["shown"]["edges"] == len(page.links)
    assert summary["largest_gap"] < 1e-5
    named = {(feature["layer"], feature["feature"]): feature["label"] for feature in summary["features"]}
    for node in page.nodes:
        if node.feature_type == "cross layer transcoder":
            layer, index, _ = map(int, node.node_id.split("_"))
            assert (layer, index) in read.features
            assert node.clerp == named.get((layer, index), node.clerp) != ""
    stored = SparseGraph.load(graphs / "one")
    assert (stored.tokens.tolist(), stored.info["rule"]) == ([1, 9, 8, 7, 5], "relp")
    pair = load_pair(*(str(graph_made.parent / name) for name in ("base", "target")))
    with torch.no_grad(), pair.adapters(AdapterSet.load(graph_dir / "adapters", pair=pair.pair)):
        logits = pair(stored.tokens[None])[0, -1]
    for target in summary["targets"]:
        token = target["vocab_idx"]
        assert target["value"] == pytest.approx(float(logits[token] - logits.mean()), abs=1e-4)
        assert target["probability"] == pytest.approx(float(logits.softmax(0)[token]), abs=1e-5)


def test_the_same_command_makes_nothing(graph_dir, graph_verb, tmp_path) -> None:
    before = changes(graph_dir)
    out, _, n_traced = graph_verb("--prompt", PROMPT, "--name", "one", "--json", str(tmp_path / "r.json"))
    assert n_traced == 0
    assert changes(graph_dir) == before
    assert (
        f"Written: 0 of 1 graphs, 1 were there: {graph_dir / 'graphs'}. To look at them: tc-adapters serve {graph_dir}"
        in out
    )
    found = json.loads((tmp_path / "r.json").read_text())
    (one,) = found["graphs"]
    assert (one["slug"], one["made"], found["failed"]) == ("one", False, [])
    assert one["targets"] == json.loads((graph_dir / "graphs/one/summary.json").read_text())["targets"]


def test_other_thresholds_prune_again_and_keep_what_is_pinned(graph_dir, graph_verb, no_pictures) -> None:
    path = graph_dir / "graphs" / "one.json"
    content = json.loads(path.read_text())
    pinned = [node["node_id"] for node in content["nodes"][:2]]
    state = {**content["qParams"], "pinnedIds": pinned, "supernodes": [["mine", *pinned]], "gridsnap": "1,2"}
    path.write_text(json.dumps({**content, "qParams": state}))
    before = changes(graph_dir / "graphs" / "one")
    n_nodes = []
    for threshold, n_edges in (("0.3", None), ("0.99", None), ("0.3", "5")):
        options = ["--edge-threshold", "0.9999", "--max-edges", n_edges or "50000"]
        out, _, n_traced = graph_verb("--prompt", PROMPT, "--name", "one", "--node-threshold", threshold, *options)
        assert n_traced == 0
        assert "Written: 1 of 1 graphs:" in out
        found = json.loads(path.read_text())
        assert found["qParams"] == state
        assert found["metadata"]["node_threshold"] == float(threshold)
        Model.model_validate(found)
        summary = json.loads((graph_dir / "graphs/one/summary.json").read_text())
        assert summary["view"]["node_threshold"] == float(threshold)
        if n_edges:
            assert (len(found["links"]), summary["shown"]["edges"]) == (5, 5)
            assert summary["shown"]["edges_left_out"] > 0
        elif threshold == "0.99":
            assert len(found["nodes"]) > n_nodes[-1]
        n_nodes.append(len(found["nodes"]))
    after = changes(graph_dir / "graphs" / "one")
    assert [name for name in FILES if before[name] == after[name]] == ["graph.json", "graph.safetensors"]
    path.write_text("{}")  # damaged: nothing is pinned then
    graph_verb("--prompt", PROMPT, "--name", "one")
    assert json.loads(path.read_text())["qParams"]["pinnedIds"] == []


@pytest.mark.parametrize("stopped_at", ["prune", "summarise", "write_graph_files", "draw_graph", "write_json"])
def test_it_goes_on_without_tracing_again(graph_dir, graph_verb, monkeypatch, no_pictures, stopped_at) -> None:
    """Stopped while a traced graph is written, or pruned anew."""
    shutil.rmtree(graph_dir / "graphs")
    command = ["--prompt", PROMPT, "--name", "one"]
    for options in ([], ["--node-threshold", "0.5"]):
        with monkeypatch.context() as patched:
            patched.setattr(graph_output, stopped_at, interrupt)
            _, error, n_traced = graph_verb(*command, *options, code=130)
        assert n_traced == (0 if options else 1)
        assert "Stopped with 0 of 1 graphs in" in error
        assert error.endswith("graphs; the same command goes on.")
        assert not (graph_dir / "graphs/one/summary.json").exists()
        assert not list(graph_dir.rglob(".*"))
        out, _, n_traced = graph_verb(*command, *options)
        assert n_traced == 0
        assert "Written: 1 of 1 graphs:" in out
    # stopped on the way back, it is not taken for what it was
    with monkeypatch.context() as patched:
        patched.setattr(graph_output, stopped_at, interrupt)
        graph_verb(*command, code=130)
    assert "Written: 1 of 1 graphs:" in graph_verb(*command, *options)[0]


def interrupt(*args, **options):
    raise KeyboardInterrupt


def test_interrupted_while_it_traces(graph_dir, graph_verb, monkeypatch, no_pictures) -> None:
    (graph_dir / "prompts").mkdir()
    for number in range(3):
        (graph_dir / "prompts" / f"{number}.txt").write_text(f"w1 w9 w{number + 10}\n")
    n_begun = []

    def stopped(*args, progress, **options):
        def stop(done, total):
            progress(done, total)
            if len(n_begun) == 3:
                raise KeyboardInterrupt

        n_begun.append(1)
        return trace(*args, progress=stop, **options)

    trace = graph_tracing.trace
    with monkeypatch.context() as patched:
        patched.setattr(graph_tracing, "trace", stopped)
        out, error, n_traced = graph_verb("--prompts", str(graph_dir / "prompts"), code=130)
    assert n_traced == 3
    assert "Stopped with 2 of 3 graphs in" in error
    assert out.count("edges and biases add up") == 2
    assert len(list((graph_dir / "graphs").glob("*-*.json"))) == 3  # two, and the list
    assert not list(graph_dir.rglob(".*"))
    out, _, n_traced = graph_verb("--prompts", str(graph_dir / "prompts"))
    assert n_traced == 1
    assert "Written: 1 of 3 graphs, 2 were there" in out


def test_a_prompt_that_fails_does_not_stop_the_others(graph_dir, graph_verb, no_pictures, tmp_path) -> None:
    (graph_dir / "prompts").mkdir()
    for name, text in (("a", "w5 w6"), ("b", "w7"), ("c", "w5 " * 1025), ("d", "w6 w5")):
        (graph_dir / "prompts" / f"{name}.txt").write_text(text)
    result = tmp_path / "result.json"
    before = changes(graph_dir / "graphs")
    out, error, _ = graph_verb("--prompts", str(graph_dir / "prompts"), "--json", str(result), code=1)
    assert re.search(
        r"error: 2 of 4 graphs could not be made, the others are in .*/graphs\. b-[0-9a-f]{8}: A prompt must be of "
        r"2 to 1,024 tokens, the model's context\. Got 1\.$",
        error,
    )
    found = json.loads(result.read_text())
    assert [one["slug"][:2] for one in found["graphs"]] == ["a-", "d-"]
    assert [one["slug"][:2] for one in found["failed"]] == ["b-", "c-"]
    assert found["failed"][1]["error"].endswith("Got 1,025.")
    assert out.count("edges and biases add up") == 2
    new = {name for name in changes(graph_dir / "graphs") if name not in before}
    assert {name[0] for name in new} == {"a", "d"}
    assert len(new) == 12
    _, error, n_traced = graph_verb("--prompts", str(graph_dir / "prompts"), code=1)
    assert n_traced == 2  # those that fail, again


def test_no_active_feature(graph_dir, graph_verb) -> None:
    adapters = AdapterSet.load(graph_dir / "adapters")
    state = adapters.state()
    state["b_enc"] -= 1e6
    AdapterSet.from_state(state, adapters.info).save(graph_dir / "adapters")
    before = changes(graph_dir / "graphs")
    _, error, _ = graph_verb("--prompt", PROMPT, code=1)
    assert "error: A graph needs active features. Got none in the prompt's 5 tokens; take another." in error
    assert changes(graph_dir / "graphs") == before


def test_a_name_is_of_one_graph(graph_dir, graph_verb) -> None:
    before = changes(graph_dir)
    for options in (
        ("--prompt", "w1 w9"),
        ("--prompt", PROMPT, "--sampled", "target"),
        ("--prompt", PROMPT, "--target-token", "w5"),
        ("--prompt", PROMPT, "--keep", "0.5"),
    ):
        _, error, n_traced = graph_verb(*options, "--name", "one", code=1)
        assert re.search(r"name must be its own\. Got .*/graphs/one, which is there and of another prompt", error)
        assert n_traced == 0
    assert changes(graph_dir) == before
    (graph_dir / "graphs" / "theirs.json").write_text('{"metadata": {}}')
    _, error, n_traced = graph_verb("--prompt", PROMPT, "--name", "theirs", code=1)
    assert "theirs.json, which is there" in error
    (graph_dir / "graphs" / "full").mkdir()
    (graph_dir / "graphs" / "full" / "thesis.tex").write_text("mine")
    _, error, n_traced = graph_verb("--prompt", PROMPT, "--name", "full", code=1)
    assert "must have its directory to itself. Got" in error
    assert n_traced == 0


def test_a_damaged_graph_is_named(graph_dir, graph_verb) -> None:
    path = graph_dir / "graphs" / "one" / "graph.safetensors"
    path.write_bytes(path.read_bytes()[:-8])
    (graph_dir / "graphs" / "one" / "summary.json").unlink()
    _, error, n_traced = graph_verb("--prompt", PROMPT, "--name", "one", code=1)
    assert error.endswith(f"Delete {path.parent}, then the same command makes it again.")
    assert n_traced == 0
    shutil.rmtree(path.parent)
    (graph_dir / "graphs" / "one.json").unlink()
    graph_verb("--prompt", PROMPT, "--name", "one")
