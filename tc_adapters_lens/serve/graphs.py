"""A run's attribution graphs, and which of them contain a feature."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

from tc_adapters_lens.errors import AdapterLensError
from tc_adapters_lens.features.graph_nodes import feature_nodes, node_names
from tc_adapters_lens.models.atomic import atomic_file
from tc_adapters_lens.serve.run_files import inside

FOLDER = "graphs"
SLUG = re.compile(r"\w[\w.-]*", re.ASCII)


class Graph(NamedTuple):
    """A circuit-tracer graph file, as much of it as a list of graphs shows.

    name: of the file, relative to the run.
    slug: the file's name without its ending, by which the page asks for it; None if it cannot be asked for.
    title: the graph's own name for itself.
    features: (layer, feature) pairs that are nodes of it -> the most influential such node.
    """

    name: str
    slug: str | None
    title: str
    prompt: str
    node_threshold: float | None
    features: Mapping[tuple[int, int], str]


class Graphs:
    """The graphs in RUN/graphs, each read once and again when it has changed."""

    def __init__(self, run: Path | None):
        self._run = run
        self._read: dict[str, tuple[tuple[int, int], Graph | None]] = {}
        self._lock = Lock()
        self.key = hashlib.sha256(str(run).encode("utf-8", "surrogateescape")).hexdigest()[:12]  # of this run alone

    def of_feature(self, layer: int, feature: int) -> list[Graph]:
        """Graphs with a node of that feature, by name of file."""
        return [graph for graph in self._all() if (layer, feature) in graph.features]

    def listed(self) -> list[Graph]:
        """Graphs that the page can show, by name of file."""
        return [graph for graph in self._all() if graph.slug is not None]

    def content(self, slug: str) -> dict[str, Any] | None:
        """All of a graph; None if there is none of that slug."""
        path = self._path(slug)
        content = None if path is None else read_content(path)
        return content if content is not None and read_graph(content, "") is not None else None

    def write(self, slug: str, content: Mapping[str, Any]) -> None:
        """Writes a graph that is there again, as circuit-tracer does.

        Raises:
            AdapterLensError: it is gone, the disk is full, or writing is not permitted.
        """
        path = self._path(slug)
        if path is None:
            raise AdapterLensError(f"There is no graph {slug!r} any more. Make it again, or save another.")
        with atomic_file(path) as partial:
            partial.write_text(json.dumps(content, indent=2, allow_nan=False), encoding="utf-8")

    def _path(self, slug: str) -> Path | None:
        if self._run is None or not SLUG.fullmatch(slug):
            return None
        return inside(self._run, f"{FOLDER}/{slug}.json")

    def _all(self) -> list[Graph]:
        if self._run is None or not (self._run / FOLDER).is_dir():
            return []
        found = []
        with self._lock:
            for listed in sorted((self._run / FOLDER).glob("*.json")):
                name = f"{FOLDER}/{listed.name}"
                path = inside(self._run, name)
                if path is None:
                    continue
                stat = path.stat()
                stamp = (stat.st_mtime_ns, stat.st_size)
                if self._read.get(name, (None,))[0] != stamp:
                    content = read_content(path)
                    self._read[name] = stamp, None if content is None else read_graph(content, name)
                graph = self._read[name][1]
                if graph is not None:
                    found.append(graph)
        return found


def read_content(path: Path) -> dict[str, Any] | None:
    """JSON of a file as browsers read it, without NaN; None if it holds something else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse)
    except (OSError, ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


def read_graph(content: Mapping[str, Any], name: str) -> Graph | None:
    """The graph in a file's JSON; None if it is something else, such as circuit-tracer's list of graphs."""
    try:
        metadata = content["metadata"]
        feature_nodes(content)
        features = node_names(content)
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    if not isinstance(metadata, Mapping):
        return None
    stem, threshold = Path(name).stem, metadata.get("node_threshold")
    return Graph(
        name,
        stem if SLUG.fullmatch(stem) else None,
        str(metadata.get("slug", "")),
        str(metadata.get("prompt", "")),
        threshold if isinstance(threshold, (int, float)) else None,
        features,
    )


def _refuse(constant: str) -> None:
    raise ValueError(constant)
