"""Attribution graphs with made-up nodes, as circuit-tracer writes them in JSON."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

Values = dict[str, Any]


def feature(layer: int, number: int, position: int, influence: float | None = 0.5, label: str = "") -> Values:
    paired = (layer + number) * (layer + number + 1) // 2 + number
    own = {"feature": paired, "activation": 1.0, "clerp": label, "influence": influence}
    return _node(f"{layer}_{number}_{position}", str(layer), position, "cross layer transcoder") | own


def error(layer: int, position: int) -> Values:
    return _node(f"0_{layer}_{position}", str(layer), position, "mlp reconstruction error")


def token(position: int, vocabulary: int = 7) -> Values:
    return _node(f"E_{vocabulary}_{position}", "E", position, "embedding")


def logit(n_layers: int, position: int, vocabulary: int, text: str, probability: float) -> Values:
    own = {"token_prob": probability, "clerp": f'Output "{text}" (p={probability:.3f})', "influence": None}
    return _node(f"{n_layers + 1}_{vocabulary}_{position}", str(n_layers + 1), position, "logit") | own


def link(source: Values, end: Values, weight: float) -> Values:
    return {"source": source["node_id"], "target": end["node_id"], "weight": weight}


def graph(tokens: Sequence[str], nodes: Sequence[Values], links: Sequence[Values] = ()) -> Values:
    metadata = {"slug": "a", "scan": "./data/features", "transcoder_list": [], "prompt": "".join(tokens)}
    return {"metadata": metadata | {"prompt_tokens": list(tokens)}, "nodes": list(nodes), "links": list(links)}


def random_graph(n_tokens: int, n_layers: int, n_features: int, n_errors: int = 0, seed: int = 0) -> Values:
    """Features everywhere, a third of them at the last position; every node has up to 20 inputs."""
    draw = random.Random(seed)
    last = n_tokens - 1
    nodes = []
    for i in range(n_features):
        position = last if draw.random() < 1 / 3 else draw.randrange(n_tokens)
        label = draw.choice(["wait, Wait, hmm", "=", "end of a sentence after a number", "sum of two digits"])
        nodes.append(feature(draw.randrange(n_layers), 1000 + i, position, (i + 1) / (n_features + 1), label))
    for at in draw.sample(range(n_layers * n_tokens), n_errors):
        nodes.append(error(*divmod(at, n_tokens)))
    nodes += [token(position) for position in range(n_tokens)]
    nodes += [logit(n_layers, last, i, text, p) for i, (text, p) in enumerate(((" Wait", 0.6), ("Hmm", 0.3)))]
    links = []
    for end in nodes:
        if end["feature_type"] in ("cross layer transcoder", "logit"):
            below = [one for one in nodes if height(one) < height(end) and one["ctx_idx"] <= end["ctx_idx"]]
            links += [link(one, end, draw.gauss(0, 1)) for one in draw.sample(below, min(20, len(below)))]
    return graph([f" t{i}" for i in range(n_tokens)], nodes, links)


def height(node: Values) -> int:
    """Layers above the tokens."""
    return -1 if node["layer"] == "E" else int(node["layer"])


def _node(node_id: str, layer: str, position: int, kind: str) -> Values:
    return {
        "node_id": node_id,
        "feature": -1,
        "layer": layer,
        "ctx_idx": position,
        "feature_type": kind,
        "jsNodeId": node_id,
        "token_prob": 0.0,
        "clerp": "",
        "influence": 0.5,
        "activation": None,
    }
