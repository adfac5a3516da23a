"""A graph's files in a run: which are there, and all that is made from a traced graph."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from tc_adapters_lens.errors import GraphError
from tc_adapters_lens.integrations.circuit_tracer.graph_files import page_state, write_graph_files
from tc_adapters_lens.integrations.circuit_tracer.prune import prune
from tc_adapters_lens.integrations.circuit_tracer.sparse_graph import GRAPH_FILE, SparseGraph
from tc_adapters_lens.integrations.circuit_tracer.summary import Words, summarise
from tc_adapters_lens.integrations.circuit_tracer.words import DecoderWords
from tc_adapters_lens.models.atomic import atomic_file, write_json, writing
from tc_adapters_lens.report.graph_picture import draw_graph

__all__ = ["SUMMARY_FILE", "GraphView", "known", "there", "write"]

SUMMARY_FILE = "summary.json"
PICTURES = ("graph.svg", "graph.png")
_N_FEATURES = 20  # that a summary has words for


@dataclass(frozen=True)
class GraphView:
    """What of a graph the page and the picture show: thresholds as circuit-tracer has them, and the most edges."""

    node_threshold: float
    edge_threshold: float
    most_edges: int


def there(out: Path, slug: str, key: str, view: GraphView, words: Words) -> dict[str, Any] | None:
    """The summary of a graph that is whole and shows what is wanted in these words; None where there is none."""
    files = [out / f"{slug}.json", *(out / slug / file for file in (SUMMARY_FILE, GRAPH_FILE, *PICTURES))]
    if not all(file.is_file() for file in files):
        return None
    try:
        summary = json.loads((out / slug / SUMMARY_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    wanted = {"key": key, "view": asdict(view), "words": words.source}
    same = isinstance(summary, dict) and all(summary.get(name) == value for name, value in wanted.items())
    return summary if same else None


def known(out: Path, slug: str, key: str, *, may_replace: bool) -> SparseGraph | None:
    """A graph that was traced before; None where there is none.

    Args:
        may_replace: whether a page's file of that name may be replaced, where no traced graph tells what it is of.
    Raises:
        GraphError: what is there is of something else, or damaged.
    """
    directory, page = out / slug, out / f"{slug}.json"
    if not (directory / GRAPH_FILE).is_file():
        if page.exists() and not may_replace:
            raise _taken(page)
        if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
            raise GraphError(f"A graph must have its directory to itself. Got {directory}, which is none; delete it.")
        return None
    try:
        graph = SparseGraph.load(directory)
    except GraphError as error:
        reason = str(error).removesuffix(" Make the graph again.")
        raise GraphError(f"{reason} Delete {directory}, then the same command makes it again.") from error
    if graph.info.get("key") != key:
        raise _taken(directory)
    return graph


def write(graph: SparseGraph, slug: str, view: GraphView, words: Words, out: Path) -> dict[str, Any]:
    """Write a traced graph and everything that is made from it; the summary last, which says that the rest is there.

    Raises:
        GraphError: writing fails.
    """
    directory = out / slug
    if not (directory / GRAPH_FILE).is_file():
        graph.save(directory)
    with writing(directory / SUMMARY_FILE, GraphError):
        (directory / SUMMARY_FILE).unlink(missing_ok=True)
    pruned = prune(graph, view.node_threshold, view.edge_threshold)
    summary = summarise(graph)
    shown = graph.active_features[graph.selected[pruned.node_mask[: graph.n_selected]]]
    features = list(dict.fromkeys((layer, feature) for layer, _, feature in shown.tolist()))
    if isinstance(words, DecoderWords):
        words.find([*features, *islice(summary.features, _N_FEATURES)])
    written = write_graph_files(
        graph,
        pruned,
        slug,
        out,
        {feature: words[feature].label for feature in features},
        node_threshold=view.node_threshold,
        most_edges=view.most_edges,
        state=page_state(out / f"{slug}.json"),
    )
    content = json.loads(written.path.read_text(encoding="utf-8"))
    for file in PICTURES:
        draw_graph(content, directory / file)
    found = {
        **summary.to_dict(words, _N_FEATURES),
        "view": asdict(view),
        "words": words.source,
        "shown": {"nodes": written.n_nodes, "edges": written.n_edges, "edges_left_out": written.n_edges_left_out},
    }
    with atomic_file(directory / SUMMARY_FILE, error=GraphError) as file:
        write_json(file, found)
    return found


def _taken(path: Path) -> GraphError:
    return GraphError(
        f"A graph's name must be its own. Got {path}, which is there and of another prompt, adapters or settings; "
        "give another --name, or delete it."
    )
