"""`graph`: what is explained, how it is traced, and where prompts and words come from."""

from __future__ import annotations

import json
import re
import shutil

import pandas as pd
import pytest
import torch
from safetensors.torch import save_file

pytest.importorskip("circuit_tracer")

from circuit_tracer.frontend.graph_models import Model

from tc_adapters_lens.cli.main import main
from tc_adapters_lens.models.adapter_set import AdapterSet
from tc_adapters_lens.serve.graphs import read_content, read_graph
from tests.cli.graph_run import CHAT, PROMPT, WORDS
from tests.features.builder import synthetic_store
from tests.tiny import D_MODEL, N_LAYERS


def test_what_is_explained(graph_dir, graph_verb, no_pictures, tmp_path) -> None:
    vector = torch.linspace(-1, 1, D_MODEL)
    save_file({"any": vector}, tmp_path / "mine.safetensors")
    whole = ("--max-features", "15")
    for options, labels, n_features in (
        (("--target-token", "w5", "--target-token", "#9"), ["w5", "w9"], None),
        (("--contrast", "w5", WORDS[0]), [f"w5 - {WORDS[0]}"], None),
        (("--direction", str(tmp_path / "mine.safetensors"), *whole), ["mine"], 15),
        (("--max-logits", "2", "--logit-share", "1"), None, None),
        (("--max-logits", "2", "--logit-share", "0.01", "--influence-share", "0.5"), None, None),
    ):
        result = tmp_path / "result.json"
        out, _, n_traced = graph_verb("--prompt", PROMPT, *options, "--json", str(result))
        (found,) = json.loads(result.read_text())["graphs"]
        assert n_traced == 1
        if labels is None:
            assert len(found["targets"]) == (1 if "0.5" in options else 2)
        else:
            assert [target["label"] for target in found["targets"]] == labels
        if n_features is not None:
            assert found["size"]["features"] == n_features < found["size"]["active_features"]
        line = out.splitlines()[3]
        assert ("%" in line) == (labels is None or labels == ["w5", "w9"])  # only tokens have probabilities
        assert graph_verb("--prompt", PROMPT, *options)[2] == 0
    slugs = [path.stem for path in (graph_dir / "graphs").glob("w1-*.json")]
    assert len(slugs) == 5
    save_file({"any": -vector}, tmp_path / "mine.safetensors")  # another direction under the same name
    assert graph_verb("--prompt", PROMPT, "--direction", str(tmp_path / "mine.safetensors"), *whole)[2] == 1


@pytest.mark.parametrize(
    ("options", "key", "value"),
    [
        (("--sampled", "target"), "sampled", "target"),
        (("--rule", "gate-detach"), "rule", "gate-detach"),
        (("--zero-first",), "zero_first", True),
        (("--keep", "0.5"), "keep", 0.5),
        (("--dtype", "bfloat16"), "dtype", "bfloat16"),
    ],
)
def test_how_it_is_traced(graph_dir, graph_verb, no_pictures, tmp_path, options, key, value) -> None:
    result = tmp_path / "result.json"
    graph_verb("--prompt", PROMPT, *options, "--json", str(result))
    (found,) = json.loads(result.read_text())["graphs"]
    assert found[key] == value
    assert found["adapters_fingerprint"] == AdapterSet.load(graph_dir / "adapters").fingerprint()
    assert found["largest_gap"] < (0.05 if "bfloat16" in options else 1e-5)
    assert (found["shares"]["errors"] > 0) == (value == "target")
    assert ("zeroed" in found["targets"][0]["terms"]) == (value is True) or found["targets"][0]["terms"]["zeroed"] == 0
    assert any(node["position"] == 0 for f in found["features"] for node in f["nodes"]) == (value is not True)
    assert (found["shares"]["dropped"] > 0.1) == (key == "keep")


def test_sequences_and_chats(graph_dir, graph_verb, no_pictures, tmp_path) -> None:
    rows = [{"input_ids": [1, 9, 8, 30, 7], "prompt_length": 3}, {"input_ids": [1, 5, 6, 7], "prompt_length": 2}]
    path, result = tmp_path / "rows.jsonl", tmp_path / "result.json"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def slugs(*options):
        graph_verb(*options, "--json", str(result))
        return [one["slug"].rpartition("-")[0] for one in json.loads(result.read_text())["graphs"]]

    assert slugs("--tokens", str(path)) == ["row0-at3", "row1-at2"]
    assert slugs("--tokens", str(path), "--before", "w7", "--n", "1") == ["row0-at4"]
    assert slugs("--tokens", str(path), "--rows", "1", "--end", "4") == ["row1-at4"]
    assert slugs("--prompt", "w9", "--chat", "--chat-template", CHAT) == ["w9"]
    (found,) = json.loads(result.read_text())["graphs"]
    assert (found["prompt"], found["source"]) == ("w90 w9 w91", {"from": "--prompt", "chat": True})
    chat = [{"role": "user", "content": "w5"}, {"role": "assistant", "content": "w6 w7"}]
    path.write_text(json.dumps({"messages": chat}) + "\n")
    config = json.loads((graph_dir / "config.yaml").read_text())
    config["data"]["chat_template"] = CHAT  # the run's own is taken
    (graph_dir / "config.yaml").write_text(json.dumps(config))
    assert slugs("--tokens", str(path)) == ["row0-at3"]
    (found,) = json.loads(result.read_text())["graphs"]
    assert (found["prompt"], found["source"]["next"]) == ("w90 w5 w91", 6)


def test_hostile_words(graph_dir, graph_verb, tmp_path) -> None:
    """In the prompt, in what is explained, in what features promote: all is data, and nothing reaches the terminal."""
    result = tmp_path / "result.json"
    text = "w1 " + "\n".join(WORDS)
    targets = [option for word in WORDS for option in ("--target-token", word)]
    out, _, _ = graph_verb("--prompt", text, *targets, "--json", str(result))
    (found,) = json.loads(result.read_text())["graphs"]
    assert [target["label"] for target in found["targets"]] == list(WORDS)
    assert re.fullmatch(r"[a-z0-9-]{1,49}", found["slug"])
    assert not [letter for letter in out if letter != "\n" and not letter.isprintable()]
    page = Model.model_validate(
        json.loads((graph_dir / "graphs" / f"{found['slug']}.json").read_text(encoding="utf-8"))
    )
    assert page.metadata.prompt_tokens == ["w1", *WORDS]
    assert {path.parent.parent for path in graph_dir.parent.rglob("summary.json")} == {graph_dir / "graphs"}


def test_words_from_a_store(graph_dir, graph_verb, no_pictures, tmp_path) -> None:
    fingerprint = AdapterSet.load(graph_dir / "adapters").fingerprint()
    stores = [
        synthetic_store(directory, N_LAYERS, 12, adapters_fingerprint=fingerprint, seed=seed)
        for seed, directory in enumerate((graph_dir / "features", tmp_path / "own"))
    ]
    result = tmp_path / "result.json"
    for store, options in zip(stores, ((), ("--features", str(tmp_path / "own"))), strict=True):
        graph_verb("--prompt", PROMPT, "--name", f"named{len(options)}", *options, "--json", str(result))
        (found,) = json.loads(result.read_text())["graphs"]
        for feature in found["features"]:
            kept = store[feature["layer"], feature["feature"]]
            assert feature["promoted"] == [effect.text for effect in kept.promoted[:10]]
            assert feature["frequency"] == kept.frequency
    # a description that comes later is taken over without tracing
    assert graph_verb("--prompt", PROMPT, "--name", "named0")[2] == 0
    read = read_graph(read_content(graph_dir / "graphs/named0.json") or {}, "")
    assert read is not None
    (layer, index), *_ = read.features
    frame = pd.DataFrame({"layer": [layer], "feature": [index], "description": ["says <b>wait</b>"]})
    stores[0].add_labels("judge", frame)
    out, _, n_traced = graph_verb("--prompt", PROMPT, "--name", "named0")
    assert ("Written: 1 of 1 graphs:" in out, n_traced) == (True, 0)
    nodes = json.loads((graph_dir / "graphs/named0.json").read_text())["nodes"]
    described = {node["node_id"].rpartition("_")[0] for node in nodes if node["clerp"] == "says <b>wait</b>"}
    assert described == {f"{layer}_{index}"}
    assert "Written: 0 of 1 graphs" in graph_verb("--prompt", PROMPT, "--name", "named0")[0]

    shutil.rmtree(graph_dir / "features")
    synthetic_store(graph_dir / "features", N_LAYERS, 12, adapters_fingerprint="xxh3:other")
    out, _, _ = graph_verb("--prompt", PROMPT, "--name", "other")
    assert "Features are named by what they promote alone: " in out
    _, error, _ = graph_verb("--prompt", PROMPT, "--features", str(graph_dir / "features"), code=1)
    assert "must be of these adapters" in error


def test_without_a_run(graph_dir, graph_verb, graph_made, no_pictures, tmp_path) -> None:
    config = json.loads((graph_dir / "config.yaml").read_text())
    argv = ["graph", "--base", config["base"], "--target", config["target"], "--adapters", str(graph_dir / "adapters")]
    argv += ["--device", "cpu", "--prompt", PROMPT]
    assert main(argv) == 2
    assert main([*argv, "--out", str(tmp_path / "some" / "where")]) == 0
    assert len(list((tmp_path / "some" / "where").glob("w1-*.json"))) == 1
    out, _, _ = graph_verb("--prompt", PROMPT, "--out", str(tmp_path / "there"))
    assert out.endswith(f"Written: 1 of 1 graphs: {tmp_path / 'there'}.\n")  # that page does not show them
