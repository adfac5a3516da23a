"""A pruned graph as circuit-tracer's page reads it: `SLUG.json` and the list `graph-metadata.json` beside it."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from circuit_tracer.frontend.graph_models import Metadata, Model, Node, QParams
from circuit_tracer.frontend.utils import add_graph_metadata
from torch import Tensor

from tc_adapters_lens.errors import GraphError
from tc_adapters_lens.integrations.circuit_tracer.prune import Pruned
from tc_adapters_lens.integrations.circuit_tracer.sparse_graph import SparseGraph
from tc_adapters_lens.models.atomic import atomic_file, write_json

__all__ = ["LIST_FILE", "MOST_EDGES", "GraphFile", "check_slug", "page_state", "write_graph_files"]

LIST_FILE = "graph-metadata.json"
MOST_EDGES = 50_000  # that a browser draws in seconds


class GraphFile(NamedTuple):
    """What was written.

    path: of the graph's file.
    n_nodes, n_edges: in it.
    n_edges_left_out: pruning kept them, the limit did not.
    """

    path: Path
    n_nodes: int
    n_edges: int
    n_edges_left_out: int


def check_slug(slug: str) -> str:
    """The same.

    Raises:
        GraphError: it is no name of a file for every system.
    """
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,100}", slug):
        raise GraphError(f"A graph's name must be of letters, digits, - and _, at most 100. Got {slug!r}.")
    return slug


def page_state(path: str | Path) -> dict[str, Any] | None:
    """What was pinned and grouped on the page in a graph's file, its `qParams`; None where there is no such file."""
    try:
        content = json.loads(Path(path).expanduser().read_text(encoding="utf-8"))
        state = dict(content["qParams"])
        QParams(**state)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return state


def write_graph_files(
    graph: SparseGraph,
    pruned: Pruned,
    slug: str,
    directory: str | Path,
    labels: Mapping[tuple[int, int], str],
    *,
    node_threshold: float,
    most_edges: int = MOST_EDGES,
    state: Mapping[str, Any] | None = None,
) -> GraphFile:
    """Write what circuit-tracer's `create_graph_files` writes, with labels, each file whole or not at all.

    Args:
        slug: the graph's name; a graph of that name is replaced.
        directory: where; made if it is not there.
        labels: (layer, feature) -> what the page calls it; features that are not there have none.
        node_threshold: that of the pruning, which the page shows.
        most_edges: only so many, those with the most influence along them.
        state: `page_state` of the file that is replaced; None: nothing is pinned.
    Raises:
        GraphError: the name is not one, the list that is there is not one, or writing fails.
    """
    check_slug(slug)
    directory = Path(directory).expanduser()
    places = pruned.edge_mask.nonzero().squeeze(1)
    n_left_out = max(0, len(places) - most_edges)
    if n_left_out:
        places = places[pruned.edge_scores.topk(most_edges).indices.sort().values]
    above = torch.searchsorted(graph.row_starts, places, right=True) - 1
    above += (above >= graph.n_selected) * (graph.n_nodes - graph.n_rows)
    below = graph.node_of_source[graph.columns[places]].long()

    nodes = _nodes(graph, pruned, torch.cat([above, below]).unique(), labels)
    links = [
        {"source": nodes[source].node_id, "target": nodes[target].node_id, "weight": weight}
        for source, target, weight in zip(below.tolist(), above.tolist(), graph.weights[places].tolist(), strict=True)
    ]
    about = Metadata(
        slug=slug,
        scan=graph.scan,
        transcoder_list=[],
        prompt_tokens=list(graph.token_texts),
        prompt=graph.prompt,
        node_threshold=node_threshold,
    )
    view = QParams(pinnedIds=[], supernodes=[], linkType="both", clickedId="", sg_pos="")
    content = Model(metadata=about, qParams=view, nodes=list(nodes.values()), links=links).model_dump()
    if state is not None:
        content["qParams"] = dict(state)
    path = directory / f"{slug}.json"
    with atomic_file(path, error=GraphError) as partial:
        write_json(partial, content)
    _list(about, directory / LIST_FILE)
    return GraphFile(path, len(nodes), len(links), n_left_out)


def _nodes(
    graph: SparseGraph, pruned: Pruned, linked: Tensor, labels: Mapping[tuple[int, int], str]
) -> dict[int, Node]:
    """Node number -> the page's node: those with an edge, and all tokens and targets."""
    n_features, n_errors = graph.n_selected, graph.n_layers * graph.n_pos
    tokens, targets = n_features + n_errors, graph.n_nodes - len(graph.targets)
    shown = torch.cat([linked, torch.arange(tokens, graph.n_nodes)]).unique()
    scores = dict(zip(shown.tolist(), pruned.cumulative_scores[shown].tolist(), strict=True))
    nodes: dict[int, Node] = {}
    ids: set[str] = set()
    for number, score in scores.items():
        if number < n_features:
            place = graph.selected[number]
            layer, position, feature = graph.active_features[place].tolist()
            activation = float(graph.activations[place])
            node = Node.feature_node(layer, position, feature, influence=score, activation=activation)
            node.clerp = labels.get((layer, feature), "")
        elif number < tokens:
            layer, position = divmod(number - n_features, graph.n_pos)
            node = Node.error_node(layer, position, influence=score)
            if node.node_id in ids:  # circuit-tracer names the error of layer 3 as feature 3 of layer 0
                node.node_id = f"error_{layer}_{position}"
        elif number < targets:
            position = number - tokens
            node = Node.token_node(position, int(graph.tokens[position]), influence=score)
        else:
            place = number - targets
            label, vocab_idx, kind = graph.targets[place]
            node = Node.logit_node(
                pos=graph.n_pos - 1,
                vocab_idx=vocab_idx,
                token=label,
                target_logit=place == 0,
                token_prob=float(graph.probabilities[place]),
                num_layers=graph.n_layers,
            )
            if kind == "direction":
                node.clerp = label
        nodes[number] = node
        ids.add(node.node_id)
    return nodes


def _list(about: Metadata, path: Path) -> None:
    """Put a graph into circuit-tracer's list of graphs, in place of one of the same name."""
    with atomic_file(path, error=GraphError) as partial:
        if path.exists():
            shutil.copyfile(path, partial)
        try:
            add_graph_metadata(about.model_dump(), str(partial))
        except (ValueError, KeyError, TypeError) as error:
            raise GraphError(
                f"{path} must be circuit-tracer's list of graphs. Got something else; delete it."
            ) from error
