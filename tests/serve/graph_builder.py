"""Graphs made up of circuit-tracer's own classes, over the features of a synthetic store."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np


def write_graph(
    run: Path,
    slug: str,
    *,
    n_layers: int = 3,
    n_features: int = 100,
    per_layer: int = 6,
    n_tokens: int = 5,
    n_links: int = 150,
    texts: Sequence[str] = (" the", " of", " answer", " is", " two"),
    labels: Sequence[str] = (" says wait",),
    seed: int = 0,
) -> dict:
    """Random feature nodes, an error node, tokens and two logits, joined upwards; the file, which is returned as JSON.

    Args:
        per_layer: feature nodes of each layer.
        texts: of tokens, in turn.
        labels: of features, in turn.
    """
    from circuit_tracer.frontend.graph_models import Metadata, Model, Node, QParams

    rng = np.random.default_rng(seed)
    tokens = [texts[index % len(texts)] for index in range(n_tokens)]
    nodes = [Node.token_node(position, 3 + position, influence=0.9) for position in range(n_tokens)]
    for layer in range(n_layers):
        pairs = rng.choice(n_features * n_tokens, per_layer, replace=False)
        for pair in pairs.tolist():
            feature, position = divmod(pair, n_tokens)
            node = Node.feature_node(layer, position, feature, float(rng.uniform(0.1, 0.8)), float(rng.exponential()))
            node.clerp = labels[len(nodes) % len(labels)]
            nodes.append(node)
    nodes.append(Node.error_node(0, 1, influence=0.5))
    last = n_tokens - 1
    nodes.append(Node.logit_node(last, 7, tokens[0], n_layers, target_logit=True, token_prob=0.75))
    nodes.append(Node.logit_node(last, 8, tokens[-1], n_layers, token_prob=0.25))
    order = [-1 if node.layer == "E" else int(node.layer) for node in nodes]
    pairs = [
        (source, target)
        for source in range(len(nodes))
        for target in range(len(nodes))
        if order[source] < order[target] and nodes[source].ctx_idx <= nodes[target].ctx_idx
    ]
    chosen = sorted(rng.choice(len(pairs), min(n_links, len(pairs)), replace=False).tolist())
    links = [
        {"source": nodes[source].node_id, "target": nodes[target].node_id, "weight": float(rng.normal())}
        for source, target in (pairs[index] for index in chosen)
    ]
    metadata = Metadata(
        slug=slug,
        scan="./data/features",
        transcoder_list=[],
        prompt_tokens=tokens,
        prompt="".join(tokens),
        node_threshold=0.8,
    )
    params = QParams(pinnedIds=[], supernodes=[], linkType="both", clickedId="", sg_pos="")
    graph = Model(metadata=metadata, qParams=params, nodes=nodes, links=links).model_dump()
    (run / "graphs").mkdir(parents=True, exist_ok=True)
    (run / "graphs" / f"{slug}.json").write_text(json.dumps(graph, indent=2), encoding="utf-8")
    return graph
