"""What of an attribution graph is drawn: the most influential features and the strongest links between them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import inf, isfinite
from typing import Any

from tc_adapters_lens.errors import AdapterLensError, ConfigError
from tc_adapters_lens.features.graph_nodes import unpair

__all__ = ["Link", "Node", "Shown", "choose"]

_KINDS = {
    "cross layer transcoder": "feature",
    "mlp reconstruction error": "error",
    "embedding": "token",
    "logit": "logit",
}
_OUTPUT = re.compile(r'Output "(.*)" \(p=[\d.]+\)', re.DOTALL)
_SHORT_PROMPT = 24  # tokens, up to which all are shown
_INPUTS = 3  # links into a node
_LEAST_SHARE = 0.02
_MOST_LOGITS = 10


@dataclass(frozen=True)
class Node:
    """A node of the graph.

    kind: "feature", "error", "token" or "logit".
    layer: -1 for tokens, one above the last layer for logits.
    influence: the share of all influence that it and the nodes above it have; infinite where the graph has none.
    text: of a feature its label, of a logit its token.
    probability: of a logit's token; a direction's weight.
    is_direction: what is explained is no token's logit.
    """

    id: str
    kind: str
    layer: int
    position: int
    influence: float = inf
    text: str = ""
    probability: float = 0.0
    is_direction: bool = False


@dataclass(frozen=True)
class Link:
    """source and end: ids of nodes. share: |weight| as a share of all |weight| that enters the end."""

    source: str
    end: str
    weight: float
    share: float


@dataclass(frozen=True)
class Shown:
    """What is drawn, and of how much.

    nodes: features first, the most influential first.
    links: the strongest first.
    tokens: of the prompt, all of them.
    n_nodes: in the whole graph, by kind. n_links: in the whole graph.
    """

    nodes: tuple[Node, ...]
    links: tuple[Link, ...]
    tokens: tuple[str, ...]
    n_nodes: Mapping[str, int]
    n_links: int

    def of(self, kind: str) -> list[Node]:
        """The nodes of a kind."""
        return [node for node in self.nodes if node.kind == kind]


def choose(graph: Mapping[str, Any], max_features: int, fits: Callable[[Sequence[Node]], bool]) -> Shown:
    """The `max_features` most influential features and the 10 likeliest logits; the errors and tokens where their
    strongest links begin. Links: a node's 3 strongest from what is shown, and a feature's strongest to what is shown.

    Args:
        graph: circuit-tracer's JSON.
        fits: whether the picture has room for these nodes. Asked before the position of a token or an error is added
            at which nothing is shown yet.
    Raises:
        ConfigError: max_features is below 0.
        AdapterLensError: not a graph.
    """
    if max_features < 0:
        raise ConfigError(f"A picture's greatest number of features must be at least 0. Got {max_features}.")
    try:
        tokens = tuple(str(token) for token in graph["metadata"]["prompt_tokens"])
        nodes = _nodes(graph["nodes"])
        links = _links(graph["links"], nodes)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise AdapterLensError(
            "A graph must be JSON as circuit-tracer writes it, with metadata, nodes and links. "
            f"Got one with a wrong or missing value: {' '.join(str(error).split())}. Make the graph again."
        ) from error
    by_kind = {kind: [node for node in nodes.values() if node.kind == kind] for kind in _KINDS.values()}
    features = sorted(by_kind["feature"], key=lambda node: (node.influence, node.id))[:max_features]
    logits = sorted(by_kind["logit"], key=lambda node: (-node.probability, node.id))[:_MOST_LOGITS]
    is_short = len(tokens) <= _SHORT_PROMPT
    others = _sources(features, logits, by_kind, links, lambda chosen: is_short or fits(chosen))
    shown = [*features, *logits, *others]
    positions = {node.position for node in shown}
    there = {node.id for node in shown}
    shown += [node for node in by_kind["token"] if node.id not in there and (is_short or node.position in positions)]
    return Shown(
        nodes=tuple(shown),
        links=tuple(_strongest(links, {node.id for node in shown}, {node.id for node in features})),
        tokens=tokens,
        n_nodes={kind: len(ones) for kind, ones in by_kind.items()},
        n_links=len(links),
    )


def _sources(
    features: Sequence[Node],
    logits: Sequence[Node],
    by_kind: Mapping[str, Sequence[Node]],
    links: Sequence[Link],
    fits: Callable[[Sequence[Node]], bool],
) -> list[Node]:
    """The errors, about half as many as features at the most, and tokens from which the strongest links come."""
    named = {node.id: node for kind in ("error", "token") for node in by_kind[kind]}
    allowed = {*named, *(node.id for node in (*features, *logits))}
    chosen: list[Node] = [*features, *logits]
    taken = {node.id for node in chosen}
    positions = {node.position for node in chosen}
    n_errors, most_errors = 0, max(len(features) // 2, _INPUTS)
    for link in _strongest(links, allowed, {node.id for node in features}):
        node = named.get(link.source)
        if node is None or node.id in taken or (node.kind == "error" and n_errors >= most_errors):
            continue
        if node.position in positions or fits([*chosen, node]):
            chosen.append(node)
            taken.add(node.id)
            positions.add(node.position)
            n_errors += node.kind == "error"
    return chosen[len(features) + len(logits) :]


def _strongest(links: Iterable[Link], shown: set[str], features: set[str]) -> list[Link]:
    """Of the links between nodes that are shown: each node's strongest inputs, and each feature's strongest output."""
    kept: list[Link] = []
    n_inputs: dict[str, int] = {}
    served: set[str] = set()
    between = [link for link in links if link.source in shown and link.end in shown]
    for link in sorted(between, key=lambda link: (-link.share, link.end, link.source)):
        is_strong = n_inputs.get(link.end, 0) < _INPUTS and link.share >= _LEAST_SHARE
        if is_strong:
            n_inputs[link.end] = n_inputs.get(link.end, 0) + 1
        if is_strong or (link.source in features and link.source not in served):
            kept.append(link)
        served.add(link.source)
    return kept


def _nodes(values: Iterable[Mapping[str, Any]]) -> dict[str, Node]:
    """By id. An error may have the id of a feature of layer 0: then the feature is meant, which comes first."""
    found: dict[str, Node] = {}
    for value in values:
        kind = _KINDS[value["feature_type"]]
        influence = value.get("influence")
        text = str(value.get("clerp") or "")
        if kind == "feature":
            text = " ".join(("{}.{}".format(*unpair(int(value["feature"]))), text.strip())).strip()
        match = _OUTPUT.fullmatch(text)
        node = Node(
            id=str(value["node_id"]),
            kind=kind,
            layer=-1 if kind == "token" else int(value["layer"]) - (kind == "logit"),
            position=int(value["ctx_idx"]),
            influence=float(influence) if influence is not None and isfinite(influence) else inf,
            text=match[1] if kind == "logit" and match else text,
            probability=float(value.get("token_prob") or 0),
            is_direction=kind == "logit" and match is None,
        )
        found.setdefault(node.id, node)
    return found


def _links(values: Iterable[Mapping[str, Any]], nodes: Mapping[str, Node]) -> list[Link]:
    """Links between nodes that are there, with weights other than 0."""
    weights: dict[tuple[str, str], float] = {}
    totals: dict[str, float] = {}
    for value in values:
        source, end, weight = str(value["source"]), str(value["target"]), float(value["weight"])
        if source in nodes and end in nodes and isfinite(weight) and weight != 0:
            weights[source, end] = weights.get((source, end), 0.0) + weight
            totals[end] = totals.get(end, 0.0) + abs(weight)
    return [Link(source, end, weight, abs(weight) / totals[end]) for (source, end), weight in weights.items()]
