"""circuit-tracer's own functions, one after another, on the package's replacement model: nothing of it is changed."""

from __future__ import annotations

import json
import urllib.request
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tc_adapters_lens.errors import AdapterSetError, ConfigError
from tc_adapters_lens.models.adapter_set import AdapterSet, AdapterSetInfo
from tc_adapters_lens.models.diff_transformer import HookedDiffTransformer
from tc_adapters_lens.models.pair import load_pair
from tests.tiny import D_MODEL, D_VOCAB, N_LAYERS, nudged, tiny_pair, word_tokenizer

pytest.importorskip("circuit_tracer")

from tc_adapters_lens.integrations.circuit_tracer.replacement import (
    AdapterReplacementModel,
    Route,
    Sampled,
    replacement_model,
)

pytestmark = pytest.mark.filterwarnings("ignore:Full backward hook is firing:UserWarning")
TOKENS = torch.tensor([1, *range(30, 40)])  # w1 and w2 are special, and would be found in w10 too
N_FEATURES = 20


@pytest.fixture(scope="module")
def pair(tmp_path_factory) -> HookedDiffTransformer:
    directory = tmp_path_factory.mktemp("tokenizer")
    tokenizer = word_tokenizer()
    tokenizer.save_pretrained(directory)
    base, target = tiny_pair("qwen3")
    own = type(tokenizer).from_pretrained(directory)
    return load_pair((base, own), (target, own))


@pytest.fixture(scope="module")
def adapters(pair) -> AdapterSet:
    fresh = AdapterSet.fresh(N_LAYERS, D_MODEL, N_FEATURES, AdapterSetInfo(pair.pair))
    generator = torch.Generator().manual_seed(0)
    state = {name: torch.randn(t.shape, generator=generator) * 0.1 for name, t in fresh.state().items()}
    return AdapterSet.from_state(state, fresh.info)


def fetched(address: str) -> bytes:
    with urllib.request.urlopen(address, timeout=10) as response:
        return response.read()


@pytest.mark.parametrize("route", ["frozen", "upstream"])
@pytest.mark.parametrize("sampled", ["replacement", "target"])
def test_from_attribute_to_the_server(pair, adapters, tmp_path: Path, route: Route, sampled: Sampled) -> None:
    from circuit_tracer import attribute
    from circuit_tracer.frontend.local_server import serve
    from circuit_tracer.graph import Graph, compute_graph_scores, prune_graph
    from circuit_tracer.utils.create_graph_files import create_graph_files

    model = replacement_model(pair, adapters, route=route, sampled=sampled)
    graph = attribute(TOKENS, model, max_n_logits=2, batch_size=16, verbose=False)
    assert graph.scan == "./data/features"
    pruned = prune_graph(graph, 0.9, 0.98)
    assert 0 < int(pruned.node_mask.sum()) < len(pruned.node_mask)
    replacement_score, completeness_score = compute_graph_scores(graph)
    assert (replacement_score == completeness_score == 1) == (sampled == "replacement")
    create_graph_files(graph, "one", str(tmp_path), node_threshold=0.9)
    server = serve(str(tmp_path), port=0)
    try:
        address = f"http://127.0.0.1:{server.httpd.server_address[1]}"
        assert b"attribution" in fetched(f"{address}/index.html").lower()
        listed = json.loads(fetched(f"{address}/data/graph-metadata.json"))
        assert [about["slug"] for about in listed["graphs"]] == ["one"]
        shown = json.loads(fetched(f"{address}/graph_data/one.json"))
    finally:
        server.stop()
    kinds = {node["feature_type"] for node in shown["nodes"]}
    errors = {"mlp reconstruction error"} if sampled == "target" else set()
    assert kinds == {"cross layer transcoder", "embedding", "logit"} | errors
    graph.to_pt(str(tmp_path / "graph.pt"))
    assert Graph.from_pt(str(tmp_path / "graph.pt")).adjacency_matrix.equal(graph.adjacency_matrix)


def first_feature(model: AdapterReplacementModel, tokens: Tensor) -> tuple[int, int, int]:
    _, activations = model.get_activations(tokens)
    layer, position, feature = activations.nonzero()[0].tolist()
    return layer, position, feature


def test_generation_goes_on_from_an_intervention(pair, adapters) -> None:
    model = replacement_model(pair, adapters)
    text = model.tokenizer.decode(TOKENS)
    tokens = model.ensure_tokenized(text)
    feature = first_feature(model, tokens)
    said, logits, activations = model.feature_intervention_generate(
        text, [(*feature, 50.0)], freeze_attention=False, max_new_tokens=3, do_sample=False, verbose=False
    )
    expected, _ = model.feature_intervention(text, [(*feature, 50.0)], freeze_attention=False)
    plain = model(tokens[None])
    torch.testing.assert_close(logits[0], expected[0, -1], atol=1e-4, rtol=1e-4)
    assert (expected - plain).abs().max() > 1e-2
    assert said.startswith(text.removeprefix("w1 "))
    assert activations is not None
    assert activations.shape[0] == N_LAYERS
    torch.testing.assert_close(model(tokens[None]), plain)  # nothing stays behind


def test_a_context_lets_hooks_be(pair, adapters) -> None:
    model = replacement_model(pair, adapters)
    context = model.setup_attribution(TOKENS)
    before = sum(len(point.fwd_hooks) + len(point.bwd_hooks) for point in model.hook_dict.values())
    with context.install_hooks(model):
        assert sum(len(point.fwd_hooks) + len(point.bwd_hooks) for point in model.hook_dict.values()) == before
    assert context.logits.shape == (1, 1, D_VOCAB)


@pytest.mark.parametrize("offload", ["cpu", "disk"])
def test_offloading_leaves_the_pair_alone(pair, adapters, offload) -> None:
    from circuit_tracer import attribute

    model = replacement_model(pair, adapters)
    plain = attribute(TOKENS, model, max_n_logits=2)
    found = attribute(TOKENS, model, max_n_logits=2, offload=offload)
    assert found.adjacency_matrix.equal(plain.adjacency_matrix)


def test_adapters_of_another_pair(adapters) -> None:
    nudged_pair = load_pair(*(nudged(model, 0.01, seed=5) for model in tiny_pair("qwen3")))
    with pytest.raises(AdapterSetError, match=r"Adapters were trained on another pair: base .* allow_other_pair\."):
        replacement_model(nudged_pair, adapters)
    replacement_model(nudged_pair, adapters, allow_other_pair=True)


@pytest.mark.parametrize("word", ["sampled", "rule", "route"])
def test_unknown_words(pair, adapters, word) -> None:
    with pytest.raises(ConfigError, match=rf"{word} must be one of .*, .*\. Got 'hybrid'\."):
        replacement_model(pair, adapters, **{word: "hybrid"})
