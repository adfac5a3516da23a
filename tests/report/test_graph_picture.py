"""Pictures of graphs, read back from the SVG: what is drawn, where, and that texts can be read."""

from __future__ import annotations

from collections import defaultdict
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tc_adapters_lens.errors import AdapterLensError, ConfigError
from tc_adapters_lens.report.graph_picture import draw_graph
from tests.report.graph_builder import error, feature, graph, height, link, logit, random_graph, token
from tests.report.graph_svg import Box, Picture


def _drawn(values: dict[str, Any], tmp_path: Path, **options: Any) -> Picture:
    draw_graph(values, tmp_path / "graph.svg", **options)
    return Picture(tmp_path / "graph.svg")


def _middle(box: Box) -> tuple[float, float]:
    return (box[0] + box[2]) / 2, (box[1] + box[3]) / 2


def _meet(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _is_inside(box: Box, picture: Picture) -> bool:
    return min(box) >= 0 and box[2] <= picture.width and box[3] <= picture.height


SIZES = [(10, 4, 6, 0), (60, 4, 100, 20), (800, 4, 100, 30), (45, 28, 300, 80), (2000, 40, 60, 10), (30, 1, 40, 5)]


@pytest.fixture(scope="module", params=SIZES, ids=lambda sizes: "-".join(map(str, sizes)))
def drawn(request, tmp_path_factory) -> tuple[dict[str, Any], Picture]:
    values = random_graph(*request.param)
    return values, _drawn(values, tmp_path_factory.mktemp("picture"))


def test_the_most_influential_features_and_all_logits_are_drawn(drawn) -> None:
    values, picture = drawn
    features = [node for node in values["nodes"] if node["feature_type"] == "cross layer transcoder"]
    wanted = {node["node_id"] for node in sorted(features, key=lambda node: node["influence"])[:40]}
    shown = set(picture.nodes())
    assert {node["node_id"] for node in features} & shown == wanted
    assert {node["node_id"] for node in values["nodes"] if node["feature_type"] == "logit"} <= shown


def test_nodes_stand_by_token_and_layer(drawn) -> None:
    values, picture = drawn
    boxes = picture.nodes()
    assert picture.width == 504  # 7 inches
    nodes = [node for node in values["nodes"] if node["node_id"] in boxes]
    for a, b in combinations(nodes, 2):
        (left, top), (right, bottom) = _middle(boxes[a["node_id"]]), _middle(boxes[b["node_id"]])
        if "logit" not in (a["feature_type"], b["feature_type"]) and a["ctx_idx"] < b["ctx_idx"]:
            assert left < right
        if height(a) < height(b):
            assert top > bottom
        assert not _meet(boxes[a["node_id"]], boxes[b["node_id"]])
    assert all(_is_inside(box, picture) for box in boxes.values())


def test_a_larger_circle_is_more_influential(drawn) -> None:
    values, picture = drawn
    boxes = picture.nodes()
    features = [node for node in values["nodes"] if node["feature_type"] == "cross layer transcoder"]
    shown = [boxes[node["node_id"]] for node in sorted(features, key=lambda node: node["influence"])[:40]]
    widths = [right - left for left, _, right, _ in shown]
    assert all(before > after for before, after in pairwise(widths))


def test_the_strongest_links_between_what_is_shown(drawn) -> None:
    values, picture = drawn
    shown = set(picture.nodes())
    features = {node["node_id"] for node in values["nodes"] if node["feature_type"] == "cross layer transcoder"}
    total = defaultdict(float)
    for one in values["links"]:
        total[one["target"]] += abs(one["weight"])
    shares = {
        (one["source"], one["target"]): abs(one["weight"]) / total[one["target"]]
        for one in values["links"]
        if one["source"] in shown and one["target"] in shown
    }
    wanted = set()
    for node in shown:
        into = sorted((pair for pair in shares if pair[1] == node), key=lambda pair: -shares[pair])
        wanted |= {pair for pair in into[:3] if shares[pair] >= 0.02}
        out = [pair for pair in shares if pair[0] == node]
        if node in features and out:
            wanted.add(max(out, key=lambda pair: shares[pair]))
    links = picture.links()
    assert set(links) == {f"{source}>{end}" for source, end in wanted}
    for source, end in wanted:
        width = float(links[f"{source}>{end}"].get("stroke-width", 1))
        assert width == pytest.approx(0.4 + 2.2 * shares[source, end], abs=1e-4)


def test_a_sign_is_a_colour_and_dashes(drawn) -> None:
    values, picture = drawn
    weights = {f"{one['source']}>{one['target']}": one["weight"] for one in values["links"]}
    for of, style in picture.links().items():
        assert ("stroke-dasharray" in style) == (weights[of] < 0)
        assert style["stroke"] == ("#b2182b" if weights[of] < 0 else "#2166ac")


def test_labels_cover_neither_each_other_nor_nodes(drawn) -> None:
    values, picture = drawn
    nodes, labels = picture.nodes(), picture.ink("label")
    kinds = {node["node_id"]: node["feature_type"] for node in values["nodes"]}
    assert labels
    for a, b in combinations(labels.values(), 2):
        assert not _meet(a, b)
    for of, label in labels.items():
        assert _is_inside(label, picture)
        covered = [other for other, box in nodes.items() if _meet(label, box)]
        assert covered == ([of] if kinds[of] == "logit" else [])


def test_errors_are_drawn_where_a_link_begins(drawn) -> None:
    values, picture = drawn
    shown = {node["node_id"] for node in values["nodes"] if node["feature_type"] == "mlp reconstruction error"}
    sources = {of.split(">")[0] for of in picture.links()}
    assert shown & set(picture.nodes()) <= sources


def test_a_small_graph_in_full(tmp_path) -> None:
    tokens = [token(i) for i in range(3)]
    near, far = feature(0, 5, 1, 0.2, "sum"), feature(1, 9, 2, 0.4)
    miss, out = error(1, 0), logit(2, 2, 8, " Wait", 0.625)
    links = [link(tokens[1], near, 2.0), link(near, far, -1.0), link(far, out, 3.0), link(miss, out, 1.0)]
    values = graph(["<bos>", " 19", "\n"], [near, far, miss, *tokens, out], links)
    picture = _drawn(values, tmp_path, title="Why $5 < 6$")
    assert set(picture.nodes()) == {node["node_id"] for node in values["nodes"]}
    # 1.0 of 1.0 + 3.0 enters the logit from the error
    widths = {of: float(style["stroke-width"]) for of, style in picture.links().items()}
    expected = {"E_7_1>0_5_1": 2.6, "0_5_1>1_9_2": 2.6, "1_9_2>3_8_2": 0.4 + 2.2 * 0.75, "0_1_0>3_8_2": 0.4 + 2.2 / 4}
    assert widths == pytest.approx(expected)
    assert [picture.text("token", str(i)) for i in range(3)] == ["<bos>", "␣19", "↵"]
    assert picture.text("label", "0_5_1") == "0.5 sum"
    assert picture.text("label", "1_9_2") == "1.9"
    assert picture.text("label", "3_8_2") == "␣Wait 0.62"
    assert "Why $5 < 6$" in picture.texts
    assert "Shown: 2 of 2 features, 1 of 1 error, 1 of 1 logit, 4 of 4 edges, 3 of 3 tokens." in picture.texts
    assert "gap" not in picture.parts
    x, _ = _middle(picture.nodes()["1_9_2"])
    assert x == pytest.approx(_middle(picture.nodes()["E_7_2"])[0])


def test_left_out_stretches_are_marked(tmp_path) -> None:
    last = 499
    near, far = feature(0, 1, 10, 0.1), feature(1, 2, 300, 0.2)
    tokens = [token(i) for i in range(last + 1)]
    out = logit(2, last, 1, "a", 0.5)
    links = [link(tokens[9], near, 1.0), link(near, far, 1.0), link(far, out, 1.0), link(tokens[9], out, 1e-9)]
    picture = _drawn(graph(["x"] * (last + 1), [near, far, *tokens, out], links), tmp_path)
    assert set(picture.parts["token"]) == {"9", "10", "300", "499"}
    boxes = picture.nodes()
    gaps = sorted(float(of) for of in picture.parts["gap"])
    at = [_middle(boxes[f"E_7_{i}"])[0] for i in (9, 10, 300, 499)]
    assert len(gaps) == 3
    assert gaps[0] < at[0] < at[1] < gaps[1] < at[2] < gaps[2] < at[3]
    assert list(picture.links()).count("E_7_9>3_1_499") == 0


def test_features_of_one_place_are_spread(tmp_path) -> None:
    together = [feature(1, 10 + i, 4, 0.1 + 0.01 * i) for i in range(30)]
    picture = _drawn(graph(["a"] * 5, [*together, token(4)]), tmp_path)
    boxes = picture.nodes()
    assert len(boxes) == 31
    assert not any(_meet(a, b) for a, b in combinations(boxes.values(), 2))


def test_only_so_many_features(tmp_path) -> None:
    values = random_graph(20, 3, 30)
    for wanted in (0, 1, 7):
        picture = _drawn(values, tmp_path, max_features=wanted)
        numbers = {str(node["node_id"]) for node in values["nodes"] if node["feature_type"].startswith("cross")}
        assert len(numbers & set(picture.nodes())) == wanted
        assert any(f"Shown: {wanted} of 30 features" in text for text in picture.texts)


def test_7_inches_hold_40_features_wherever_they_are(tmp_path) -> None:
    spread = [feature(i % 2, i + 1, 3 + 4 * i, 0.01 * i) for i in range(40)]
    others = [*(token(i) for i in range(200)), logit(2, 199, 1, "a", 0.5)]
    picture = _drawn(graph(["abc"] * 200, [*spread, *others]), tmp_path)
    assert picture.width == 504
    assert len(picture.parts["gap"]) == 41
    boxes = picture.nodes()
    assert {one["node_id"] for one in spread} <= set(boxes)
    assert not any(_meet(a, b) for a, b in combinations(boxes.values(), 2))


def test_more_features_than_7_inches_hold_widen_the_picture(tmp_path) -> None:
    spread = [feature(0, i + 1, 3 * i, 0.001 * i) for i in range(90)]
    picture = _drawn(graph(["a"] * 300, spread), tmp_path, max_features=90)
    assert picture.width > 504
    boxes = picture.nodes()
    assert not any(_meet(a, b) for a, b in combinations(boxes.values(), 2))


def test_a_feature_of_layer_0_keeps_its_id_before_an_error(tmp_path) -> None:
    one = feature(0, 3, 2, 0.1, "kept")
    picture = _drawn(graph(["a", "b", "c"], [one, error(3, 2)]), tmp_path)
    assert picture.text("label", "0_3_2") == "0.3 kept"


HOSTILE = [
    "$x_{$",
    "\\frac{",
    "<b>&amp;",
    "a\n\n\tb",
    "مرحبا",
    "",
    "中文",
    "\u200b",
    "e\u0301",
    "🙂",
    "--",
    "\ud800",
    "x" * 999,
    " ",
]


@pytest.mark.parametrize("suffix", [".svg", ".png"])
def test_any_text_can_be_drawn(suffix, tmp_path) -> None:
    tokens = [token(i) for i in range(len(HOSTILE))]
    ones = [feature(i % 3, i + 1, i, 0.01 * i, text) for i, text in enumerate(HOSTILE)]
    outs = [logit(3, len(HOSTILE) - 1, i, text, 0.05) for i, text in enumerate(HOSTILE)]
    links = [link(a, b, -1.0) for a, b in zip(ones, outs, strict=True)]
    values = graph(HOSTILE, [*ones, *tokens, *outs], links)
    draw_graph(values, tmp_path / f"graph{suffix}", title="".join(sorted(HOSTILE, key=len)))
    if suffix == ".svg":
        picture = Picture(tmp_path / "graph.svg")
        assert picture.text("token", "0") == "$x_{$"
        assert picture.text("token", "6") == "□□"
        assert picture.text("token", "13") == "␣"
        assert len([node for node in picture.nodes() if node.startswith("4_")]) == 10  # logits
        assert all(box[2] <= picture.width for box in picture.ink("label").values())


def test_a_character_without_a_glyph_is_drawn_as_one_that_means_the_same(tmp_path) -> None:
    texts = ["<\uff5cUser\uff5c>", "㎏中", "①"]
    picture = _drawn(graph(texts, [token(0), token(1), token(2), logit(3, 2, 0, "bye", 0.5)]), tmp_path)
    assert [picture.text("token", str(i)) for i in range(3)] == ["<|User|>", "kg□", "①"]  # the font has the last


def test_a_png_is_7_inches_at_300_dots(tmp_path) -> None:
    draw_graph(random_graph(12, 2, 5), tmp_path / "graph.png")
    with Image.open(tmp_path / "graph.png") as image:
        assert image.width == 2100
        assert image.info["dpi"] == pytest.approx((300, 300), abs=0.1)


@pytest.mark.parametrize("name", ["a.svg", "a.png"])
def test_the_same_graph_gives_the_same_bytes(name, tmp_path) -> None:
    for folder in ("one", "two"):
        draw_graph(random_graph(40, 3, 50, 10), tmp_path / folder / name, title="a")
    assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    assert [path.name for path in (tmp_path / "one").iterdir()] == [name]


def test_a_graph_of_nothing(tmp_path) -> None:
    picture = _drawn(graph([], []), tmp_path)
    assert not picture.nodes()
    assert "Shown: 0 of 0 features." in picture.texts


def test_what_cannot_be_drawn(tmp_path) -> None:
    values = random_graph(5, 1, 2)
    with pytest.raises(AdapterLensError, match=r"^A graph's picture must be an \.svg or a \.png\. Got a\.pdf\."):
        draw_graph(values, tmp_path / "a.pdf")
    with pytest.raises(ConfigError, match=r"^A picture's greatest number of features must be at least 0\. Got -1\.$"):
        draw_graph(values, tmp_path / "a.svg", max_features=-1)
    for broken in ({}, values | {"nodes": [{}]}, values | {"nodes": [1]}, values | {"links": [{"source": "a"}]}):
        with pytest.raises(AdapterLensError, match=r"^A graph must be JSON as circuit-tracer writes it.*\.$"):
            draw_graph(broken, tmp_path / "a.svg")
    assert not list(tmp_path.iterdir())


def test_links_that_say_nothing_are_left_out(tmp_path) -> None:
    one, out = feature(0, 1, 0), logit(1, 0, 1, "a", 0.5)
    links = [link(one, out, float("nan")), link(one, out, 0.0), {"source": "gone", "target": "2_1_0", "weight": 1.0}]
    picture = _drawn(graph(["a"], [one, out], links), tmp_path)
    assert not picture.links()
