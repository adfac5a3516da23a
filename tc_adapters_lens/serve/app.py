"""The server: what it answers at which address."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from tc_adapters_lens import __version__
from tc_adapters_lens.assets import ASSETS, find
from tc_adapters_lens.errors import AdapterLensError, RunError
from tc_adapters_lens.features.records import StoreInfo
from tc_adapters_lens.features.store_files import share_columns
from tc_adapters_lens.serve.circuits import Circuits, circuit_routes, circuits_address, to_circuits
from tc_adapters_lens.serve.feature_page import context_json, feature_json, file_address
from tc_adapters_lens.serve.graphs import Graph, Graphs
from tc_adapters_lens.serve.guard import LOOPBACK, Guard, dashboard_policy, picture_policy
from tc_adapters_lens.serve.open_store import OpenStore
from tc_adapters_lens.serve.query import DEFAULT_SORT, PAGE, Query, parse_query, whole
from tc_adapters_lens.serve.run_files import (
    KINDS,
    dashboard,
    find_stores,
    inside,
    make_features,
    require_own_adapters,
    served_file,
)
from tc_adapters_lens.serve.table import (
    BINS_PER_DECADE,
    DECADES,
    TOP_SHARE,
    TOP_TEMPLATE,
    Table,
    bin_counts,
)

STATIC = Path(__file__).resolve().parent / "static"
LIT = "lit-html"
LISTED = ("layer", "feature", "frequency", "mean", "max")
N_PROMOTED = 10  # tokens of a row of the list
MOST = 10**9


class Site:
    """A run's stores and files, and the answers about them."""

    def __init__(self, path: str | Path):
        """
        Args:
            path: a run's directory, or a store's.
        Raises:
            AdapterLensError: there is nothing to show, or it is broken.
        """
        self.run, stores = find_stores(path)
        self.name = Path(path).expanduser().resolve().name
        self.stores = {name: OpenStore(directory) for name, directory in stores.items()}
        if self.run is not None:
            require_own_adapters(self.run, [opened.store for opened in self.stores.values()])
        self.graphs = Graphs(self.run)
        if not self.stores and not self.graphs.listed():
            raise RunError(
                f"RUN must hold features or graphs to show. Got {path}, which has none; make them: "
                f"{make_features(path)}"
            )
        self.shown = [*self.stores, *(["graphs"] if self.graphs.listed() else [])]
        of_adapters = [opened for opened in self.stores.values() if opened.store.info.model == "replacement"]
        self._no_features = f"This run has no features of its adapters. Make them: {make_features(path)}"
        self.circuits = Circuits(self.name, self.graphs, of_adapters[0] if of_adapters else None, self._no_features)

    def warm(self) -> None:
        """Reads the first store, and begins its index, so that the first visitor need not wait."""
        for opened in list(self.stores.values())[:1]:
            with suppress(AdapterLensError):  # who asks is told
                opened.warm()

    def info(self, request: Request) -> dict[str, Any]:
        """The run's stores, and what there is to choose from in one."""
        opened = self._store(request)
        return {
            "name": self.name,
            "version": __version__,
            "default_sort": DEFAULT_SORT,
            "page": PAGE,
            "n_promoted": N_PROMOTED,
            "stores": {name: other.store.info.model for name, other in self.stores.items()},
            "store": store_json(opened),
            "n_graphs": len(self.graphs.listed()),
        }

    def table(self, request: Request) -> dict[str, Any]:
        """A page of the list, with how many match and how often they are active."""
        opened = self._store(request)
        table, query = opened.table, self._query(request, opened)
        offset = whole("offset", request.query_params.get("offset", "0"), 0, MOST)
        rows = opened.rows(query)
        columns = listed(table, query)
        return {
            "total": len(rows),
            "of": len(table),
            "offset": offset,
            "columns": columns,
            "rows": table.page(rows[offset : offset + PAGE], columns, N_PROMOTED),
            "histogram": bin_counts(table.bins[rows]),
        }

    def feature(self, request: Request) -> dict[str, Any]:
        """One feature, its place in the list, and what else the run has about it."""
        opened = self._store(request)
        store, (layer, feature) = opened.store, (request.path_params["layer"], request.path_params["feature"])
        try:
            found = feature_json(store, store[layer, feature])
        except KeyError as error:
            raise HTTPException(404, error.args[0]) from error
        rows = opened.rows(self._query(request, opened))
        of_adapters = store.info.model == "replacement"
        page = dashboard(self.run, layer, feature) if of_adapters else None
        graphs = self.graphs.of_feature(layer, feature) if of_adapters else []
        return found | {
            "place": place(rows, layer * store.info.n_features + feature, store.info.n_features),
            "dashboard": None if page is None else file_address(page),
            "graphs": [graph_json(graph, graph.features[layer, feature]) for graph in graphs],
        }

    def context(self, request: Request) -> dict[str, Any]:
        """Text of the held-out sequences around an example."""
        store = self._store(request).store
        sequence = whole("sequence", request.query_params.get("sequence", ""), 0, store.info.n_sequences - 1)
        start, stop = (whole(name, request.query_params.get(name, ""), 0, MOST) for name in ("start", "stop"))
        return context_json(store, sequence, start, stop)

    def _store(self, request: Request) -> OpenStore:
        if not self.stores:
            raise HTTPException(404, self._no_features)
        name = request.query_params.get("store") or next(iter(self.stores))
        if name not in self.stores:
            raise HTTPException(404, f"store must be one of {', '.join(self.stores)}. Got {name!r}.")
        self.stores[name].refresh()
        return self.stores[name]

    def _query(self, request: Request, opened: OpenStore) -> Query:
        table = opened.table
        return parse_query(request.query_params.multi_items(), table.numeric, table.shares, table.scores)


def make_app(site: Site, hosts: tuple[str, ...] = LOOPBACK) -> Starlette:
    """The web application.

    Args:
        site: what it shows.
        hosts: names and addresses by which it may be called.
    """
    scripts = [] if find(LIT) else [ASSETS[LIT].cdn]

    def answer(handler: Callable[[Request], dict[str, Any]]) -> Callable[[Request], Response]:
        def respond(request: Request) -> Response:
            try:
                return JSONResponse(handler(request))
            except AdapterLensError as error:
                return JSONResponse({"error": str(error)}, status_code=400)
            except HTTPException as error:
                return JSONResponse({"error": error.detail}, status_code=error.status_code)

        return respond

    def run_file(request: Request) -> Response:
        return serve_run_file(site.run, request.path_params["name"])

    routes = [
        Route("/", index_page if site.stores else to_circuits),
        Route("/static/{name}", static_file),
        Route("/lib/lit-html.js", lit_html),
        Route("/api/info", answer(site.info)),
        Route("/api/table", answer(site.table)),
        Route("/api/feature/{layer:int}/{feature:int}", answer(site.feature)),
        Route("/api/context", answer(site.context)),
        Route("/run/{name:path}", run_file),
        *circuit_routes(site.circuits),
    ]
    return Starlette(routes=routes, middleware=[Middleware(Guard, hosts=hosts, scripts=scripts)])


def index_page(request: Request) -> Response:
    """The page. Where lit-html was not fetched it comes from its CDN, with its hash."""
    asset, note, script = ASSETS[LIT], "", ""
    if find(LIT) is None:
        script = f'<script type="module" src="{asset.cdn}" integrity="{asset.integrity}" crossorigin></script>'
        note = f"lit-html {asset.version} comes from cdn.jsdelivr.net; to have it here: tc-adapters doctor says how."
    page = (STATIC / "index.html").read_text(encoding="utf-8")
    page = page.replace("<!-- lit-html -->", script).replace("<!-- note -->", note)
    return Response(page, media_type="text/html")


def static_file(request: Request) -> Response:
    """A file of the page itself."""
    return _file(inside(STATIC, request.path_params["name"]))


def lit_html(request: Request) -> Response:
    """lit-html as fetched at set-up, else a module that passes on what its CDN serves."""
    file = find(LIT)
    if file is not None:
        return FileResponse(file, media_type=KINDS[".js"])
    return Response(f"export * from {json.dumps(ASSETS[LIT].cdn)};\n", media_type=KINDS[".js"])


def serve_run_file(run: Path | None, name: str) -> Response:
    """A dashboard or a graph of the run. Dashboards run their own scripts, so they get an origin of their own."""
    response = _file(served_file(run, name))
    if name.startswith("dashboards/"):
        scripts = [asset.cdn for asset in ASSETS.values()]
        response.headers["Content-Security-Policy"] = dashboard_policy(scripts)
        if name.endswith((".js", ".css")):
            response.headers["Cross-Origin-Resource-Policy"] = "cross-origin"
    elif name.endswith(".svg"):
        response.headers["Content-Security-Policy"] = picture_policy()
    return response


def graph_json(graph: Graph, node: str) -> dict[str, str]:
    """A link to a graph, a node of it clicked; to its file where the page cannot show it."""
    address = file_address(graph.name) if graph.slug is None else circuits_address(graph.slug, node)
    return {"address": address, "slug": graph.title, "prompt": graph.prompt}


def store_json(opened: OpenStore) -> dict[str, Any]:
    """What the page must know of a store before it asks for features."""
    info, table = opened.store.info, opened.table
    return {
        "model": info.model,
        "hook": info.hook,
        "n_layers": info.n_layers,
        "n_features": info.n_features,
        "n_tokens": info.n_tokens,
        "n_counted": info.n_counted,
        "n_sequences": info.n_sequences,
        "pair": dict(info.pair),
        "shares": [[name, expected(info).get(name)] for name in table.shares],
        "numeric": list(table.numeric),
        "scores": table.scores,
        "described": bool(table.descriptions),
        "classes": table.classes,
        "histogram": {"first": DECADES[0], "per_decade": BINS_PER_DECADE, "counts": bin_counts(table.bins)},
    }


def expected(info: StoreInfo) -> dict[str, float]:
    """The share of all positions that counted, by column: what a feature without preferences has."""
    columns = [name for names in share_columns(info).values() for name in names]
    tokens = (*info.region_tokens, *info.group_tokens, *info.template_tokens)
    return {name: n_tokens / max(info.n_counted, 1) for name, n_tokens in zip(columns, tokens, strict=True)}


def place(rows: np.ndarray, row: int, n_features: int) -> dict[str, Any] | None:
    """Where a row stands in a list, and its neighbours as [layer, feature]; None where it is not in it."""
    found = np.flatnonzero(rows == row)
    if not len(found):
        return None
    index = int(found[0])

    def at(other: int) -> list[int] | None:
        return list(divmod(int(rows[other]), n_features)) if 0 <= other < len(rows) else None

    return {"index": index, "total": len(rows), "previous": at(index - 1), "next": at(index + 1)}


def listed(table: Table, query: Query) -> list[str]:
    """Columns of the list: labels before shares; template positions are many, so only those that the query names."""
    named = {query.sort, *dict(query.shares)}
    shares = [name for name in table.shares if name in named or not name.startswith(("template:", TOP_SHARE))]
    template = [TOP_TEMPLATE] if TOP_TEMPLATE in table.texts and TOP_SHARE in named else []
    texts = [name for name in table.labels if name not in table.scores and name != TOP_TEMPLATE]
    first = ["class"] if "class" in texts else []
    others = sorted((name for name in texts if name not in first), key=lambda name: name not in table.descriptions)
    return [*LISTED, *first, *table.scores, *others, *shares, *template]


def _file(path: Path | None) -> Response:
    if path is None:
        return PlainTextResponse("There is no such file.", status_code=404)
    return FileResponse(path, media_type=KINDS[path.suffix])
