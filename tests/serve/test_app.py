"""What the server answers: lists, features, the page."""

from __future__ import annotations

import math
import re
import shutil
from urllib.parse import quote

import numpy as np
import pandas as pd
import pytest

from tc_adapters_lens import assets
from tc_adapters_lens.features.graph_nodes import unpair
from tc_adapters_lens.features.store import FeatureStore
from tc_adapters_lens.serve.app import STATIC, Site, make_app
from tests.features.builder import HOSTILE, synthetic_store
from tests.serve.client import request
from tests.serve.conftest import N_FEATURES, N_LAYERS, PEAKED, WORDS, cantor


@pytest.fixture(scope="module")
def store(run) -> FeatureStore:
    return FeatureStore.open(run / "features")


def test_info_names_stores_and_filters(app, store):
    info = request(app, "/api/info").json
    assert info["name"] == "toy"
    assert info["stores"] == {"features": "replacement", "features-target": "target"}
    of = info["store"]
    assert (of["n_layers"], of["n_features"]) == (N_LAYERS, N_FEATURES)
    assert of["classes"] == ["domain", "output"]
    assert of["scores"] == ["detection", "score_top", "score_top_mine", "overlap_target"]
    assert set(of["scores"]) < set(of["numeric"])
    assert of["described"]
    shares = dict(of["shares"])
    assert list(shares)[:4] == ["region:prompt", "region:think", "region:answer", "domain:code"]
    assert shares["region:think"] == pytest.approx(store.info.region_tokens[1] / store.info.n_counted)
    alive = store.column("n_active") > 0
    assert sum(of["histogram"]["counts"]) == alive.sum()
    neurons = request(app, "/api/info?store=features-target").json["store"]
    assert (neurons["classes"], neurons["scores"], neurons["described"]) == ([], [], False)


def test_the_list_is_sorted_filtered_and_cut_into_pages(app, store):
    frequency, layer = store.column("frequency"), store.column("layer")
    first, second = (request(app, f"/api/table?layers=1-2&offset={offset}").json for offset in (0, 200))
    wanted = [row for row in np.argsort(-frequency, kind="stable") if frequency[row] > 0 and layer[row] >= 1]
    assert first["total"] == len(wanted)
    assert first["of"] == N_LAYERS * N_FEATURES
    rows = first["rows"] + second["rows"]
    assert [row[0] * N_FEATURES + row[1] for row in rows] == wanted[:400]
    assert first["columns"][:6] == ["layer", "feature", "frequency", "mean", "max", "class"]
    assert sum(first["histogram"]) == len(wanted)
    best = store[int(layer[wanted[0]]), int(wanted[0]) % N_FEATURES]
    assert rows[0][-1] == [token.text for token in best.promoted[:10]]
    assert "template:<think>" not in first["columns"]
    assert "template:<think>" in request(app, "/api/table?sort=template:%3Cthink%3E").json["columns"]


def test_labels_are_listed_sorted_and_filtered(app, store):
    frame = store.frame()
    alive = frame[frame["n_active"] > 0]
    answer = request(app, "/api/table?label=score_top,0.8,&sort=score_top").json
    wanted = alive[alive["score_top"] >= 0.8].sort_values("score_top", kind="stable")
    assert [row[:2] for row in answer["rows"]] == wanted[["layer", "feature"]].to_numpy().tolist()[:200]
    assert answer["total"] == len(wanted) > 0
    columns = answer["columns"]
    assert columns[5:10] == ["class", "detection", "score_top", "score_top_mine", "overlap_target"]
    assert columns[10:13] == ["description", "description_mine", "region:prompt"]
    both = request(app, "/api/table?label=score_top,0.3,0.6&label=overlap_target,,0.5").json
    kept = alive[alive["score_top"].between(0.3, 0.6) & (alive["overlap_target"] <= 0.5)]
    assert both["total"] == len(kept) > 0
    known = request(app, "/api/table?label=score_top,,").json
    assert known["total"] == alive["score_top"].notna().sum() < len(alive)
    said = (alive["description"] + "\n" + alive["description_mine"]).str.lower()
    for text in ("SECOND", "mine</i"):
        wanted = said.str.contains(text.lower(), regex=False).sum()
        assert request(app, f"/api/table?description={quote(text)}").json["total"] == wanted > 0
    assert request(app, "/api/table?description=SECOND&case=1").json["total"] == 0
    refused = request(app, "/api/table?store=features-target&label=score_top,0,")
    assert (refused.status, "none here" in refused.json["error"]) == (400, True)


def test_features_of_one_template_position_are_found(app, store):
    frame = store.frame()
    wanted = frame[(frame["top_template_share"] >= 0.8) & (frame["n_active"] > 0)]
    found = request(app, "/api/table?share=0.8,top_template_share").json
    assert found["total"] == len(wanted) > 0
    names = dict(zip(zip(wanted["layer"], wanted["feature"], strict=True), wanted["top_template"], strict=True))
    column = found["columns"].index("top_template")
    assert all(row[column] == names[row[0], row[1]] for row in found["rows"])
    assert "top_template" not in request(app, "/api/table").json["columns"]


def test_plain_text_has_no_shares(tmp_path):
    plain = dict.fromkeys(["regions", "region_tokens", "template", "template_tokens", "groups", "group_tokens"], ())
    store = synthetic_store(tmp_path / "features", n_layers=1, n_features=8, dead=0, group_by=None, **plain)
    app = make_app(Site(tmp_path))
    assert request(app, "/api/info").json["store"]["shares"] == []
    listed = request(app, "/api/table").json
    assert listed["columns"] == ["layer", "feature", "frequency", "mean", "max"]
    assert listed["total"] == len(store)
    answer = request(app, "/api/feature/0/3").json
    assert answer["regions"] == answer["groups"] == answer["template"] == []
    assert {example["group"] for example in answer["top"]} == {None}


def test_text_is_searched_in_the_store_that_is_asked_for(app, run):
    for name in ("features", "features-target"):
        store = FeatureStore.open(run / name)
        found = request(app, f"/api/table?store={name}&text=answer").json
        wanted = {
            (layer, feature)
            for layer in range(N_LAYERS)
            for feature in range(N_FEATURES)
            for example in (*store[layer, feature].top, *store[layer, feature].sampled)
            if b"answer" in store.vocabulary.join(example.tokens)
        }
        assert found["total"] == len(wanted)
        assert {tuple(row[:2]) for row in found["rows"]} <= wanted


def test_a_feature_is_all_there(app, store):
    layer, feature = PEAKED
    answer = request(app, f"/api/feature/{layer}/{feature}?sort=layer&dead=1").json
    read = store[layer, feature]
    assert answer["frequency"] == read.frequency
    assert answer["histogram"]["counts"] == read.histogram.tolist()
    assert len(answer["histogram"]["edges"]) == len(read.histogram) + 1
    assert [token["text"] for token in answer["promoted"]] == [token.text for token in read.promoted]
    assert dict(answer["groups"]) == pytest.approx(read.groups)
    for shown, example in zip(answer["top"], read.top, strict=True):
        assert shown["texts"] == store.vocabulary.texts(example.tokens)
        assert shown["activations"] == pytest.approx(example.activations, abs=1e-5)
        assert shown["start"] + shown["peak"] == example.position
        assert shown["activations"][shown["peak"]] == pytest.approx(example.activation, abs=1e-5)
        assert (shown["group"], shown["region"]) == (example.group, example.region)
        assert shown["template"] == (None if example.template == "content" else example.template)
    assert answer["labels"]["description"] == "opens a <b>second</b> thought"
    assert answer["place"] == {"index": 109, "total": 300, "previous": [1, 8], "next": [1, 10]}
    assert answer["dashboard"] == "/run/dashboards/a%20b.html#9"
    assert answer["graphs"] == [
        {"address": "/circuits/?slug=add&clickedId=1_9_0", "slug": "<b>add</b>", "prompt": "What is 17 + 25?"}
    ]


def test_a_feature_out_of_the_list_has_no_place_and_ends_have_one_neighbour(app):
    assert request(app, "/api/feature/1/9?layers=0").json["place"] is None
    first = request(app, "/api/feature/0/0?sort=layer&dead=1").json["place"]
    assert (first["previous"], first["next"]) == (None, [0, 1])


def test_dead_features_are_json_too(app, store):
    dead = int(np.flatnonzero(store.column("n_active") == 0)[0])
    answer = request(app, f"/api/feature/{dead // N_FEATURES}/{dead % N_FEATURES}?dead=1").json
    assert answer["top"] == answer["sampled"] == answer["regions"] == []


def test_files_of_adapters_are_not_those_of_neurons(app):
    answer = request(app, f"/api/feature/{PEAKED[0]}/{PEAKED[1]}?store=features-target").json
    assert (answer["dashboard"], answer["graphs"]) == (None, [])


@pytest.mark.parametrize(("layer", "feature"), [(0, 0), (0, 4), (3, 2), (5, 0)])
def test_features_of_graphs_are_unpaired(layer, feature):
    assert unpair(cantor(layer, feature)) == (layer, feature)


def test_context_is_the_text_around(app, store):
    sequence = int(np.argmax(np.diff(store.offsets)))
    begin, end = store.offsets[sequence], store.offsets[sequence + 1]
    answer = request(app, f"/api/context?sequence={sequence}&start=5&stop=9").json
    assert answer["texts"] == store.vocabulary.texts(store.tokens[begin + 5 : begin + 9])
    rest = request(app, f"/api/context?sequence={sequence}&start=5&stop=100000").json["texts"]
    assert len(rest) == end - begin - 5
    assert request(app, f"/api/context?sequence={sequence}&start=100000&stop=100005").json["texts"] == []


def test_a_store_is_shown_by_itself(run):
    site = Site(run / "features-target")
    app = make_app(site)
    assert request(app, "/api/info").json["stores"] == {"features-target": "target"}
    assert request(app, "/run/graphs/add.json").status == 404


@pytest.mark.parametrize(
    ("target", "status", "says"),
    [
        ("/api/table?layers=x", 400, "layers must be like 3 or 0-5,7"),
        ("/api/table?store=feature", 404, "store must be one of features, features-target. Got 'feature'."),
        ("/api/feature/0/100", 404, "There are features (0, 0) to (2, 99). Got (0, 100)."),
        ("/api/context?sequence=60&start=0&stop=1", 400, "sequence must be a whole number from 0 to 59. Got '60'."),
        ("/api/context?sequence=0&start=-1&stop=1", 400, "start must be a whole number"),
    ],
)
def test_what_cannot_be_answered_is_one_line(app, target, status, says):
    answer = request(app, target)
    assert answer.status == status
    assert says in answer.json["error"]


def test_a_dashboard_is_linked_only_if_it_is_inside(app):
    for feature in (1, 2, 3):  # out of the run, a link out of it, no name
        assert request(app, f"/api/feature/0/{feature}").json["dashboard"] is None


def test_graphs_are_read_again_when_they_change(tmp_path):
    synthetic_store(tmp_path / "features", n_layers=1, n_features=4)
    app = make_app(Site(tmp_path))
    assert request(app, "/api/feature/0/2").json["graphs"] == []
    (tmp_path / "graphs").mkdir()
    node = f'{{"node_id": "0_2_5", "feature_type": "cross layer transcoder", "feature": {cantor(0, 2)}}}'
    (tmp_path / "graphs/new.json").write_text(f'{{"metadata": {{"slug": "s"}}, "nodes": [{node}]}}', encoding="utf-8")
    assert [graph["slug"] for graph in request(app, "/api/feature/0/2").json["graphs"]] == ["s"]


def test_a_store_that_changed_is_read_again(tmp_path):
    store = synthetic_store(tmp_path / "features", n_layers=1, n_features=4, words=("before",), d_vocab=4)
    app = make_app(Site(tmp_path))
    assert request(app, "/api/info").json["store"]["classes"] == []
    labels = pd.DataFrame({"layer": [0], "feature": [2], "class": ["output"]})
    store.add_labels("judge", labels)
    assert request(app, "/api/info").json["store"]["classes"] == ["output"]
    assert request(app, "/api/table?class=output&dead=1").json["total"] == 1
    assert request(app, "/api/table?text=before").json["total"] > 0
    synthetic_store(tmp_path / "features", n_layers=1, n_features=5, words=("after",), d_vocab=4)
    assert request(app, "/api/table?dead=1").json["of"] == 5
    assert request(app, "/api/table?text=before").json["total"] == 0
    shutil.rmtree(tmp_path / "features")
    answer = request(app, "/api/table")
    assert answer.status == 400
    assert "is not a feature store" in answer.json["error"]


# ------------------------------------------------------------------------------------------------------------- page


def test_token_text_is_data_of_json(app):
    answer = request(app, "/api/table?promoted=%3Cscript%3E")
    assert answer.headers["content-type"] == "application/json"
    tokens = {text for row in answer.json["rows"] for text in row[-1]}
    assert HOSTILE[0] in tokens
    assert "⟨e2 82⟩" in {text for row in request(app, "/api/table").json["rows"] for text in row[-1]}
    assert set(tokens) <= {*WORDS, "⟨e2 82⟩", "⟨ac⟩", *(f" w{index}" for index in range(40))}
    assert not any(isinstance(value, float) and math.isnan(value) for row in answer.json["rows"] for value in row[:-1])


def test_the_page_has_no_inline_script_or_style():
    page = (STATIC / "index.html").read_text(encoding="utf-8")
    assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\sstyle=|\son\w+=", page)
    for path in STATIC.glob("*.js"):
        source = path.read_text(encoding="utf-8")
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|unsafeHTML|\beval\b", source), (
            path
        )
        assert not re.search(r"\sstyle=\$", source), f"{path}: style attributes are refused by the page's own policy"
        assert not re.search(r"https?://", source), path


def test_lit_html_comes_from_here_where_it_was_fetched(app, tmp_path, monkeypatch):
    script = tmp_path / "lit-html.js"
    script.write_text("export const html = 1;", encoding="utf-8")
    monkeypatch.setattr("tc_adapters_lens.serve.app.find", lambda name: script)
    assert request(app, "/lib/lit-html.js").body == script.read_bytes()
    page = request(app, "/")
    assert b"cdn" not in page.body


def test_lit_html_comes_from_its_cdn_with_its_hash_where_it_was_not(site, monkeypatch):
    monkeypatch.setattr("tc_adapters_lens.serve.app.find", lambda name: None)
    app, asset = make_app(site), assets.ASSETS["lit-html"]
    page = request(app, "/")
    text = page.body.decode()
    assert f'src="{asset.cdn}" integrity="{asset.integrity}" crossorigin' in text
    assert text.index(asset.integrity) < text.index("/static/app.js"), (
        "the first request is the one whose hash is checked"
    )
    assert "comes from cdn.jsdelivr.net" in text
    assert f"script-src 'self' {asset.cdn};" in page.headers["content-security-policy"]
    assert request(app, "/lib/lit-html.js").body.decode() == f'export * from "{asset.cdn}";\n'
