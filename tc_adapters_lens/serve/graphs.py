"""Which of a run's attribution graphs contain a feature."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

from tc_adapters_lens.features.graph_nodes import feature_nodes
from tc_adapters_lens.serve.run_files import inside


class Graph(NamedTuple):
    """A circuit-tracer graph file, as much of it as the page shows.

    name: of the file, relative to the run.
    features: (layer, feature) pairs that are nodes of it.
    """

    name: str
    slug: str
    prompt: str
    features: frozenset[tuple[int, int]]


class Graphs:
    """The graphs in RUN/graphs, each read once and again when it has changed."""

    def __init__(self, run: Path | None):
        self._run = run
        self._read: dict[tuple[str, int, int], Graph | None] = {}
        self._lock = Lock()

    def of_feature(self, layer: int, feature: int) -> list[Graph]:
        """Graphs with a node of that feature, by name of file."""
        return [graph for graph in self._all() if (layer, feature) in graph.features]

    def _all(self) -> list[Graph]:
        if self._run is None or not (self._run / "graphs").is_dir():
            return []
        found = []
        with self._lock:
            for listed in sorted((self._run / "graphs").glob("*.json")):
                name = f"graphs/{listed.name}"
                path = inside(self._run, name)
                if path is None:
                    continue
                stat = path.stat()
                key = (name, stat.st_mtime_ns, stat.st_size)
                if key not in self._read:
                    self._read[key] = read_graph(path, name)
                graph = self._read[key]
                if graph is not None:
                    found.append(graph)
        return found


def read_graph(path: Path, name: str) -> Graph | None:
    """The graph in a file; None if it holds something else, such as circuit-tracer's list of graphs."""
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8"))
        metadata = content["metadata"]
        pairs = frozenset(feature_nodes(content))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    if not isinstance(metadata, Mapping):
        return None
    return Graph(name, str(metadata.get("slug", "")), str(metadata.get("prompt", "")), pairs)
