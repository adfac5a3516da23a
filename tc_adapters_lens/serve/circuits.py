"""The page of a run's attribution graphs: circuit-tracer's own, with the run's graphs and its features."""

from __future__ import annotations

import json
from collections.abc import Mapping
from threading import Lock
from typing import Any
from urllib.parse import urlencode

from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route

from tc_adapters_lens.assets import find
from tc_adapters_lens.errors import AdapterLensError
from tc_adapters_lens.features.exports import circuit_tracer_feature
from tc_adapters_lens.features.graph_nodes import unpair
from tc_adapters_lens.serve.circuit_page import MISSING, SCRIPTS, circuits_policy, index_html, page_file, page_root
from tc_adapters_lens.serve.graphs import Graphs
from tc_adapters_lens.serve.guard import SAVE
from tc_adapters_lens.serve.open_store import OpenStore
from tc_adapters_lens.serve.run_files import KINDS
from tc_adapters_lens.serve.saved_params import MOST_BYTES, filled, saved_with

NO_GRAPHS = "This run has no graphs. Make one: tc-adapters graph"
FRESH = {"Cache-Control": "no-store"}  # the page asks its browser for answers of any age


class Circuits:
    """A run's graphs as the page asks for them, and what it saves."""

    def __init__(self, name: str, graphs: Graphs, store: OpenStore | None, how_to_make_features: str):
        """
        Args:
            name: of the run.
            graphs: its graphs.
            store: features of the replacement model; None if there are none.
            how_to_make_features: a line in their place.
        """
        self.name, self.graphs, self.store = name, graphs, store
        self._how = how_to_make_features
        self._saving = Lock()

    def index(self, request: Request) -> Response:
        """The page."""
        root = page_root()
        if root is None:
            return PlainTextResponse(MISSING, status_code=404)
        if not self.graphs.listed():
            return PlainTextResponse(NO_GRAPHS, status_code=404)
        page = index_html(root, self.name if self.store is not None else "")
        return Response(page, media_type="text/html", headers={"Content-Security-Policy": circuits_policy()})

    def file(self, request: Request) -> Response:
        """One of its scripts and styles."""
        root, name = page_root(), request.path_params["name"]
        text = None if root is None else page_file(root, name)
        if text is None:
            return PlainTextResponse("There is no such file.", status_code=404)
        return Response(text, media_type=KINDS[name[name.rindex(".") :]])

    def listing(self, request: Request) -> Response:
        """Graphs to choose from; the page writes `scan` before each prompt."""
        graphs = [
            {"slug": graph.slug, "scan": self.name, "prompt": graph.prompt, "node_threshold": graph.node_threshold}
            for graph in self.graphs.listed()
        ]
        return _json({"graphs": graphs})

    def graph(self, request: Request) -> Response:
        """A graph with what the page cannot do without, its features those of this run and linked to their pages."""
        content = self.graphs.content(request.path_params["slug"])
        if content is None:
            return _json({"error": f"There is no graph {request.path_params['slug']!r}."}, 404)
        # labels that a user writes are kept by the browser under the scan's name
        scan = {"scan": f"./data/features/{self.graphs.key}", "slug": request.path_params["slug"]}
        content["metadata"] = {**content["metadata"], **scan}
        content["qParams"] = filled(content.get("qParams"))
        for node in content["nodes"]:
            node["vis_link"] = _feature_address(node) if self.store is not None else "#"
        return _json(content)

    def feature(self, request: Request) -> Response:
        """A feature of the run in circuit-tracer's layout; where there is none, one line in the place of examples."""
        if self.store is None:
            return _json(_nothing(self._how), 404)
        layer, feature = unpair(request.path_params["number"])
        try:
            self.store.refresh()
            return _json(circuit_tracer_feature(self.store.store, layer, feature))
        except KeyError as error:
            return _json(_nothing(error.args[0]), 404)
        except AdapterLensError as error:
            return _json(_nothing(str(error)), 404)

    async def save(self, request: Request) -> Response:
        """Writes pins, groups and labels into a graph's file; all else in it stays."""
        body = bytearray()
        async for part in request.stream():
            body += part
            if len(body) > MOST_BYTES:
                return _json({"error": f"What is saved must have at most {MOST_BYTES:,} bytes."}, 413)
        try:
            await run_in_threadpool(self._save, request.path_params["slug"], bytes(body))
        except HTTPException as error:
            return _json({"error": error.detail}, error.status_code)
        except AdapterLensError as error:
            return _json({"error": str(error)}, 500)
        return _json({"saved": request.path_params["slug"]})

    def _save(self, slug: str, body: bytes) -> None:
        with self._saving:
            content = self.graphs.content(slug)
            if content is None:
                raise HTTPException(404, f"There is no graph {slug!r}.")
            try:
                posted = json.loads(body)["qParams"]
                content["qParams"] = saved_with(content.get("qParams"), posted, content["nodes"])
            except ModuleNotFoundError as missing:
                raise HTTPException(404, MISSING) from missing
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as wrong:
                raise HTTPException(400, "What is saved must be the page's own pins, groups and labels.") from wrong
            self.graphs.write(slug, content)


def circuit_routes(circuits: Circuits) -> list[Route]:
    """Addresses as the page asks for them, below /circuits/ but for the one that saves."""
    return [
        Route("/circuits/", circuits.index),
        Route("/circuits/data/graph-metadata.json", circuits.listing),
        Route("/circuits/graph_data/{slug}.json", circuits.graph),
        Route("/circuits/data/features/{number:int}.json", circuits.feature),
        Route("/circuits/data/features/{key}/{number:int}.json", circuits.feature),
        Route("/circuits/{name:path}", circuits.file),
        Route("/lib/{name}.js", library),
        Route(SAVE + "{slug}", circuits.save, methods=["POST"]),
    ]


def library(request: Request) -> Response:
    """A script of the page as fetched at set-up."""
    name = request.path_params["name"]
    file = find(name) if name in SCRIPTS else None
    if file is None:
        return PlainTextResponse("There is no such file.", status_code=404)
    return FileResponse(file, media_type=KINDS[".js"])


def to_circuits(request: Request) -> Response:
    """For runs that have nothing else to show."""
    return RedirectResponse("/circuits/")


def circuits_address(slug: str, node: str | None = None) -> str:
    """The page's address at a graph, a node of it clicked."""
    return "/circuits/?" + urlencode({"slug": slug} | ({} if node is None else {"clickedId": node}))


def _feature_address(node: Mapping[str, Any]) -> str:
    """Of the page of a node's feature; "#" for other nodes."""
    number = node.get("feature")
    if not isinstance(number, int) or number < 0:
        return "#"
    layer, feature = unpair(number)
    return f"/?feature={layer}.{feature}"


def _nothing(line: str) -> dict[str, Any]:
    """A feature that the page shows as one line."""
    shown = {"examples_quantiles": [{"quantile_name": line, "examples": []}], "top_logits": [], "bottom_logits": []}
    return {"error": line, "act_min": 0.0, "act_max": 1.0, **shown}


def _json(value: Mapping[str, Any], status: int = 200) -> Response:
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return Response(text, status_code=status, media_type="application/json", headers=FRESH)
