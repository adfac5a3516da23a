"""What the page of graphs saves, and that nobody else does."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tc_adapters_lens.serve.app import Site, make_app
from tc_adapters_lens.serve.saved_params import MOST_BYTES
from tests.serve.client import request
from tests.serve.graph_builder import write_graph

pytest.importorskip("circuit_tracer")
OURS = {"Origin": "http://127.0.0.1:8765", "Content-Type": "application/json", "Sec-Fetch-Site": "same-origin"}


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "toy"
    write_graph(run, "one")
    (run / "graphs/graph-metadata.json").write_text('{"graphs": [{"slug": "gone"}]}', encoding="utf-8")
    (run / "graphs/nan.json").write_text('{"metadata": {}, "nodes": [], "x": NaN}', encoding="utf-8")
    write_graph(run.parent / "outside", "secret")
    (run / "graphs/link.json").symlink_to(run.parent / "outside/graphs/secret.json")
    return run


@pytest.fixture(scope="module")
def app(run):
    return make_app(Site(run))


def saved(app, slug: str, params: object, **changes) -> tuple[int, dict]:
    options = {"headers": OURS, "body": json.dumps({"qParams": params, "timestamp": "now"}).encode()} | changes
    answer = request(app, f"/save_graph/{slug}", method="POST", **options)
    kind = answer.headers["content-type"]
    return answer.status, answer.json if kind == "application/json" else {"error": answer.body.decode()}


def test_saving_writes_what_the_page_sends_and_nothing_else(tmp_path):
    written = write_graph(tmp_path, "one")
    app = make_app(Site(tmp_path))
    names = [node["node_id"] for node in written["nodes"]]
    groups = json.dumps([["50% of them", names[6], "no-node", names[7]], ["empty", "no-node"]])
    sent = {
        "pinnedIds": ",".join([*names[5:9], "no-node"]),
        "supernodes": groups,
        "linkType": None,
        "clickedId": "undefined",
        "sg_pos": None,
        "pruningThreshold": "0.5",
        "clerps": '[["12", "mine"], ["13", "other"]]',
    }
    assert saved(app, "one", sent) == (200, {"saved": "one"})
    content = json.loads((tmp_path / "graphs/one.json").read_text(encoding="utf-8"))
    assert content.pop("qParams") == {
        "pinnedIds": names[5:9],
        "supernodes": [["50% of them", names[6], names[7]]],
        "linkType": "both",
        "clickedId": "",
        "sg_pos": "",
        "clerps": '[["12", "mine"], ["13", "other"]]',
    }
    assert content == {name: value for name, value in written.items() if name != "qParams"}
    # A page on which only the pins and one label were touched:
    later = {"pinnedIds": names[5], "supernodes": None, "clickedId": names[6], "clerps": '[["12", ""]]'}
    assert saved(app, "one", later)[0] == 200
    params = request(app, "/circuits/graph_data/one.json").json["qParams"]
    assert (params["pinnedIds"], params["clickedId"]) == (names[5:6], names[6])
    assert params["supernodes"] == [["50% of them", names[6], names[7]]]
    assert params["clerps"] == '[["13", "other"]]'
    assert saved(app, "one", {"pinnedIds": "", "supernodes": "[]", "clerps": '[["13", ""]]'})[0] == 200
    params = request(app, "/circuits/graph_data/one.json").json["qParams"]
    assert (params["pinnedIds"], params["supernodes"], params.get("clerps")) == ([], [], None)
    assert sorted(path.name for path in (tmp_path / "graphs").iterdir()) == ["one.json"]


@pytest.mark.parametrize(
    "params",
    [
        None,
        [],
        "x",
        {"pinnedIds": 5},
        {"pinnedIds": [["a"]]},
        {"supernodes": "["},
        {"supernodes": '{"a": 1}'},
        {"supernodes": "[[1]]"},
        {"linkType": ["x"]},
        {"clickedId": {}},
        {"clerps": "[[1]]"},
        {"clerps": 3},
    ],
)
def test_what_the_page_would_not_send_is_refused(app, run, params):
    before = (run / "graphs/one.json").read_bytes()
    status, answer = saved(app, "one", params)
    assert (status, answer) == (400, {"error": "What is saved must be the page's own pins, groups and labels."})
    assert (run / "graphs/one.json").read_bytes() == before


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"headers": {}}, 403),
        ({"headers": OURS | {"Origin": "http://evil.example"}}, 403),
        ({"headers": OURS | {"Origin": "http://127.0.0.1:8766"}}, 403),
        ({"headers": OURS | {"Origin": "null"}}, 403),
        ({"headers": OURS | {"Origin": "http://[::1"}}, 403),
        ({"headers": OURS | {"Origin": "file://127.0.0.1:8765"}}, 403),
        ({"headers": OURS | {"Sec-Fetch-Site": "cross-site"}}, 403),
        ({"headers": OURS | {"Sec-Fetch-Site": "same-site"}}, 403),
        ({"headers": OURS | {"Content-Type": "text/plain"}}, 415),
        ({"headers": {"Origin": OURS["Origin"]}}, 415),
        ({"host": "evil.example", "headers": OURS | {"Origin": "http://evil.example"}}, 421),
        ({"body": b"x" * (MOST_BYTES + 1)}, 413),
        ({"body": b"\xff"}, 400),
        ({"body": b"[" * 100_000}, 400),
    ],
)
def test_nobody_else_saves(app, run, changes, status):
    before = (run / "graphs/one.json").read_bytes()
    assert saved(app, "one", {"pinnedIds": ""}, **changes)[0] == status
    assert (run / "graphs/one.json").read_bytes() == before


@pytest.mark.parametrize("slug", ["gone", "link", "graph-metadata", "nan", "..", "a%2fb"])
def test_only_graphs_that_are_there_are_saved(app, run, slug):
    before = {path.name: path.read_bytes() for path in (run / "graphs").iterdir()}
    assert saved(app, slug, {"pinnedIds": ""})[0] == 404
    assert {path.name: path.read_bytes() for path in (run / "graphs").iterdir()} == before


@pytest.mark.parametrize("target", ["/", "/circuits/", "/api/info", "/run/graphs/one.json", "/circuits/save_graph/one"])
def test_nothing_else_takes_a_post(app, target):
    assert request(app, target, method="POST", headers=OURS, body=b"{}").status == 405
    assert request(app, "/save_graph/one", method="PUT", headers=OURS, body=b"{}").status == 405
    assert request(app, "/save_graph/one").status == 405
