"""The page of graphs: what it is made of, and what it asks for."""

from __future__ import annotations

import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tc_adapters_lens.assets import ASSETS, COMMAND, find
from tc_adapters_lens.features.exports import export_features
from tc_adapters_lens.features.store import FeatureStore
from tc_adapters_lens.serve import circuit_page
from tc_adapters_lens.serve.app import Site, make_app
from tests.features.builder import HOSTILE, synthetic_store
from tests.serve.client import request
from tests.serve.conftest import cantor
from tests.serve.graph_builder import write_graph
from tests.serve.test_circuits_saving import saved

pytest.importorskip("circuit_tracer")
FETCHED = pytest.mark.skipif(
    not all(map(find, circuit_page.SCRIPTS)), reason=f"needs the page's scripts, fetched by {COMMAND}"
)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "toy"
    synthetic_store(run / "features", n_layers=3, n_features=100, k=3, d_vocab=40, words=HOSTILE)
    write_graph(run, "one")
    write_graph(run, "b.2", labels=HOSTILE, texts=HOSTILE)
    (run / "graphs/graph-metadata.json").write_text('{"graphs": [{"slug": "gone"}]}', encoding="utf-8")
    (run / "graphs/nan.json").write_text('{"metadata": {}, "nodes": [], "x": NaN}', encoding="utf-8")
    (run / "graphs/broken.json").write_text("[", encoding="utf-8")
    outside = run.parent / "outside"
    write_graph(outside, "secret")
    (run / "graphs/link.json").symlink_to(outside / "graphs/secret.json")
    return run


@pytest.fixture(scope="module")
def app(run):
    return make_app(Site(run))


class Tags(HTMLParser):
    """A page's scripts, styles and what could run in it."""

    def __init__(self, page: str):
        super().__init__()
        self.scripts: list[dict[str, str | None]] = []
        self.styles: list[str | None] = []
        self.inline, self._in_script = "", False
        self.handlers: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.handlers += [name for name in found if name.startswith("on")]
        self._in_script = tag == "script"
        if tag == "script":
            self.scripts.append(found)
        if tag == "link" and found.get("rel") == "stylesheet":
            self.styles.append(found["href"])

    def handle_data(self, data):
        if self._in_script:
            self.inline += data.strip()

    def handle_endtag(self, tag):
        self._in_script = False


@pytest.mark.parametrize(
    ("name", "old", "new"), [(name, *patch) for name, patches in circuit_page.PATCHES.items() for patch in patches]
)
def test_each_change_fits_the_installed_circuit_tracer_once(name, old, new):
    root = circuit_page.page_root()
    assert root is not None
    assert (root / name).read_text(encoding="utf-8").count(old) == 1
    served = circuit_page.page_file(root, name if name.endswith(".js") else circuit_page.INLINE)
    assert served is not None
    assert new in served


def test_a_change_that_does_not_fit_is_left_out():
    assert circuit_page.patched("a b b c", (("a", "A"), ("b", "B"), ("d", "D"), ("c", "C"))) == "A b b C"


@FETCHED
def test_the_index_asks_for_nothing_elsewhere_and_all_it_asks_for_is_here(app):
    answer = request(app, "/circuits/")
    page = Tags(answer.body.decode())
    assert (page.inline, page.handlers) == ("", [])
    addresses = [str(script["src"]) for script in page.scripts] + [str(style) for style in page.styles]
    assert len(page.scripts) == 3 + 1 + 15 + 1, "libraries, shims, upstream's own, its inline one"
    for address in addresses:
        assert not re.match(r"\w+:|//", address)
        found = request(app, address if address.startswith("/") else f"/circuits/{address.removeprefix('./')}")
        assert found.status == 200, address
        kind = "text/javascript" if address.endswith(".js") else "text/css"
        assert found.headers["content-type"].startswith(kind)
    policy = dict(part.split(" ", 1) for part in answer.headers["content-security-policy"].split("; "))
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"


def test_scripts_that_were_not_fetched_come_from_their_cdn_with_their_hash(app, monkeypatch):
    monkeypatch.setattr(circuit_page, "find", lambda name: None)
    answer = request(app, "/circuits/")
    linked = [script for script in Tags(answer.body.decode()).scripts if str(script["src"]).startswith("https:")]
    assets = [ASSETS[name] for name in ("d3-7", "d3-jetpack", "dagre")]
    assert [(script["src"], script["integrity"]) for script in linked] == [(a.cdn, a.integrity) for a in assets]
    assert all("crossorigin" in script for script in linked)
    script_src = answer.headers["content-security-policy"].split("; ")[1]
    assert script_src.split() == ["script-src", "'self'", *(asset.cdn for asset in assets)]
    assert b"from cdn.jsdelivr.net" in answer.body


@pytest.mark.parametrize("name", ["../local_server.py", "..%2flocal_server.py", "feature-view.html", "LICENSE", "x.js"])
def test_nothing_else_of_the_package_is_served(app, name):
    assert request(app, f"/circuits/{name}").status == 404


def test_a_library_that_the_page_does_not_use_is_not_there(app):
    assert request(app, "/lib/d3.js").status == 404


def test_the_list_is_of_the_graphs_that_are_there(app, run):
    answer = request(app, "/circuits/data/graph-metadata.json")
    assert answer.headers["cache-control"] == "no-store", "the page takes stored answers of any age"
    listed = answer.json["graphs"]
    assert [graph["slug"] for graph in listed] == ["b.2", "one"]
    assert listed[1] == {"slug": "one", "scan": "toy", "prompt": " the of answer is two", "node_threshold": 0.8}
    write_graph(run, "later")
    assert len(request(app, "/circuits/data/graph-metadata.json").json["graphs"]) == 3
    (run / "graphs/later.json").unlink()


def test_a_graph_is_its_file_with_this_run_s_features(app, run):
    written = json.loads((run / "graphs/one.json").read_text(encoding="utf-8"))
    answer = request(app, "/circuits/graph_data/one.json")
    assert answer.headers["cache-control"] == "no-store"
    scan = answer.json["metadata"]["scan"]
    assert re.fullmatch(r"\./data/features/[0-9a-f]{12}", scan)
    assert answer.json["links"] == written["links"]
    for served, node in zip(answer.json["nodes"], written["nodes"], strict=True):
        assert served.items() >= node.items()
        if node["feature_type"] == "cross layer transcoder":
            layer, feature, _ = node["node_id"].split("_")
            assert served["vis_link"] == f"/?feature={layer}.{feature}"
            assert request(app, f"/circuits/{scan[2:]}/{node['feature']}.json").status == 200


@pytest.mark.parametrize("slug", ["gone", "link", "nan", "broken", "graph-metadata", "..%2fsecret", "%00", ".one"])
def test_other_files_are_no_graphs(app, slug):
    answer = request(app, f"/circuits/graph_data/{slug}.json")
    assert answer.status == 404
    assert b"links" not in answer.body


def test_features_are_those_of_the_export(app, run, tmp_path):
    export_features(FeatureStore.open(run / "features"), tmp_path, "circuit-tracer", layers=[1])
    for feature in (0, 3, 99):
        name = f"{cantor(1, feature)}.json"
        expected = json.loads((tmp_path / "features" / name).read_text(encoding="utf-8"))
        assert request(app, f"/circuits/data/features/{name}").json == expected
        assert request(app, f"/circuits/data/features/anything/{name}").json == expected
    answer = request(app, f"/circuits/data/features/{cantor(0, 100)}.json")
    assert (answer.status, answer.json["error"]) == (404, "There are features (0, 0) to (2, 99). Got (0, 100).")


def test_without_circuit_tracer_one_line_says_how_to_get_it(app, monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "circuit_tracer"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "circuit_tracer", None)
    answer = request(app, "/circuits/")
    assert (answer.status, answer.body.decode()) == (404, circuit_page.MISSING)
    assert 'pip install "tc-adapters-lens[attribution]"' in circuit_page.MISSING
    assert request(app, "/circuits/util.js").status == 404
    assert saved(app, "one", {}) == (404, {"error": circuit_page.MISSING})
    assert request(app, "/").status == request(app, "/api/table").status == 200


def test_a_picture_of_a_graph_has_its_styles_and_no_scripts(tmp_path):
    synthetic_store(tmp_path / "features", n_layers=1, n_features=4)
    (tmp_path / "graphs/one").mkdir(parents=True)
    (tmp_path / "graphs/one/graph.svg").write_text("<svg xmlns='http://www.w3.org/2000/svg'/>", encoding="utf-8")
    answer = request(make_app(Site(tmp_path)), "/run/graphs/one/graph.svg")
    assert (answer.status, answer.headers["content-type"]) == (200, "image/svg+xml")
    policy = answer.headers["content-security-policy"].split("; ")
    assert {"sandbox", "default-src 'none'", "style-src 'unsafe-inline'"} <= set(policy)
    assert not any(part.startswith("script-src") for part in policy)


def test_a_run_without_graphs_says_so(tmp_path):
    synthetic_store(tmp_path / "features", n_layers=1, n_features=4)
    app = make_app(Site(tmp_path))
    assert request(app, "/circuits/").body == b"This run has no graphs. Make one: tc-adapters graph"
    assert request(app, "/api/info").json["n_graphs"] == 0


def test_a_run_without_features_shows_its_graphs(tmp_path):
    written = write_graph(tmp_path, "one")
    site = Site(tmp_path)
    site.warm()
    app = make_app(site)
    assert site.shown == ["graphs"]
    answer = request(app, "/")
    assert (answer.status, answer.headers["location"]) == (307, "/circuits/")
    line = f"This run has no features of its adapters. Make them: tc-adapters features --run {tmp_path}"
    for target in ("/api/info", "/api/table", "/api/feature/0/1"):
        assert (request(app, target).status, request(app, target).json) == (404, {"error": line})
    feature = next(node["feature"] for node in written["nodes"] if node["feature_type"] == "cross layer transcoder")
    missing = request(app, f"/circuits/data/features/{feature}.json")
    assert (missing.status, missing.json["error"]) == (404, line)
    assert missing.json["examples_quantiles"] == [{"quantile_name": line, "examples": []}]
    if request(app, "/circuits/").status == 200:
        assert b"Features of" not in request(app, "/circuits/").body
