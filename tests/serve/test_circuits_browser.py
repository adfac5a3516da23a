"""circuit-tracer's page in a real browser without a network: draws, examples, pins, groups, saving, hostile text."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from playwright.sync_api import expect

from tc_adapters_lens.assets import COMMAND, find
from tc_adapters_lens.serve.circuit_page import SCRIPTS
from tests.chromium import needs_chromium
from tests.features.builder import HOSTILE, synthetic_store
from tests.serve.graph_builder import write_graph
from tests.serve.running import running

pytest.importorskip("circuit_tracer")
pytestmark = [
    needs_chromium,
    pytest.mark.skipif(not all(map(find, SCRIPTS)), reason=f"needs the page's scripts, fetched by {COMMAND}"),
]
FEATURE = "cross layer transcoder"
PLACE = """id => {
  const nodes = [...document.querySelectorAll("text.node")];
  const box = nodes.find((one) => one.__data__.nodeId === id).getBoundingClientRect();
  return [box.x + box.width / 2, box.y + box.height / 2];
}"""


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "toy"
    synthetic_store(run / "features", n_layers=3, n_features=100, k=5, n_sequences=60, d_vocab=40, dead=0.0)
    write_graph(run, "one", labels=(" 50% off", " wait", " but"))
    write_graph(run, "two", seed=1)
    hostile = write_graph(run, "hostile", texts=(" a", *HOSTILE), labels=HOSTILE, n_tokens=8, per_layer=9)
    for node in hostile["nodes"]:
        node["note"] = HOSTILE[1]
    (run / "graphs/hostile.json").write_text(json.dumps(hostile), encoding="utf-8")
    return run


@pytest.fixture
def wrong() -> list[str]:
    return []


@pytest.fixture
def page(browser, wrong):
    """A page whose requests elsewhere fail and are noted, as is all that goes wrong in it."""
    context = browser.new_context(viewport={"width": 1400, "height": 900})
    page = context.new_page()
    page.set_default_timeout(10_000)
    page.route(
        lambda url: not url.startswith("http://127.0.0.1:"),
        lambda route: (wrong.append(route.request.url), route.abort()),
    )
    page.on("dialog", lambda dialog: (wrong.append(f"dialog {dialog.message}"), dialog.dismiss()))
    page.on("pageerror", lambda error: wrong.append(f"error {error}"))
    page.on("console", lambda said: wrong.append(said.text) if said.type in ("error", "warning") else None)
    yield page
    assert page.evaluate("window.hacked === undefined")
    context.close()


def nodes(run: Path, slug: str, kind: str = FEATURE) -> list[str]:
    graph = json.loads((run / f"graphs/{slug}.json").read_text(encoding="utf-8"))
    return [node["node_id"] for node in graph["nodes"] if node["feature_type"] == kind]


def shown(page, address: str, slug: str) -> None:
    page.goto(f"{address}/circuits/?slug={slug}")
    page.wait_for_selector("text.node")


def click(page, node: str, *, pin: bool = False) -> None:
    x, y = page.evaluate(PLACE, node)
    if pin:
        page.keyboard.down("Control")
    page.mouse.click(x, y)
    if pin:
        page.keyboard.up("Control")


def test_a_graph_is_drawn_and_a_node_shows_its_feature(page, wrong, address, run):
    shown(page, address, "one")
    graph = json.loads((run / "graphs/one.json").read_text(encoding="utf-8"))
    assert page.locator("text.node").count() == len(graph["nodes"])
    assert page.locator(".link-graph .y .tick").count() == 3 + 2, "three layers, tokens and logits"
    expect(page.locator(".prompt-token text")).to_have_text([" the", " of", " answer", " is", " two"])
    node = nodes(run, "one")[0]
    click(page, node)
    layer, feature, _ = node.split("_")
    expect(page.locator(".feature-title a")).to_have_text(f"L{layer}/{feature}")
    expect(page.locator("div.feature-title")).to_contain_text("pct, Freq: ")
    stored = page.evaluate(
        "address => fetch(address).then((answer) => answer.json())", f"/api/feature/{layer}/{feature}"
    )
    expect(page.locator(".example-quantile")).to_have_text(["Highest activations ", "Sampled uniformly "])
    assert page.locator(".ctx-container .text-wrapper").count() == len(stored["top"]) + len(stored["sampled"])
    promoted = page.locator(".feature-example-logits .ctx-container").first.locator(".token").all_inner_texts()
    words = [effect["text"].strip() for effect in stored["promoted"] if re.fullmatch(r" w\d+", effect["text"])]
    assert set(words) <= {text.strip() for text in promoted}
    links = [link for link in graph["links"] if node in (link["source"], link["target"])]
    assert page.locator(".node-connections .feature-row").count() == len(links)
    with page.context.expect_page() as opened:
        page.locator(".feature-title a").click()
    expect(opened.value.locator("section.panel h2")).to_have_text(f"Layer {layer}, feature {feature}")
    opened.value.close()
    assert wrong == []


def test_pins_and_groups_are_saved_and_there_again(page, wrong, address, run):
    shown(page, address, "one")
    pinned = [*nodes(run, "one")[:4], nodes(run, "one", "logit")[0]]
    for node in pinned:
        click(page, node, pin=True)
    boxes = page.locator(".supernode-container")
    expect(boxes).to_have_count(5)
    page.keyboard.down("g")
    for text in ("50% off", "wait"):
        boxes.filter(has_text=text).first.locator(".node-text-container").click()
    page.keyboard.up("g")
    expect(boxes).to_have_count(4)
    page.click(".save-button")
    expect(page.locator(".save-button")).to_have_text("Saved!")
    params = json.loads((run / "graphs/one.json").read_text(encoding="utf-8"))["qParams"]
    assert set(params["pinnedIds"]) == set(pinned)
    ((label, *members),) = params["supernodes"]
    assert label == " 50% off"
    assert len(members) == 2
    assert set(members) < set(pinned)
    page.reload()
    expect(boxes).to_have_count(4)
    shown(page, address, "one")  # with nothing in the address
    expect(boxes).to_have_count(4)
    expect(boxes.filter(has_text="50% off").locator(".member-circle")).to_have_count(2)
    assert page.locator("text.node.pinned").count() == 5
    click(page, pinned[0], pin=True)  # from what was saved: unpinned, so that its group has one member
    page.click(".save-button")
    expect(page.locator(".save-button")).to_have_text("Saved!")
    params = json.loads((run / "graphs/one.json").read_text(encoding="utf-8"))["qParams"]
    assert set(params["pinnedIds"]) == set(pinned[1:])
    assert params["supernodes"] == [[label, *members]]
    page.select_option("select.graph-prompt-select", "two")
    expect(boxes).to_have_count(0)
    assert "pinnedIds" not in page.url
    assert wrong == []


def test_a_label_that_a_user_writes_is_saved_for_other_browsers(page, wrong, browser, address, run):
    shown(page, address, "two")
    node = nodes(run, "two")[0]
    click(page, node)
    page.get_by_role("button", name="Edit").click()
    page.fill(".clerp-edit input", "100% <mine>")
    page.locator(".clerp-edit input").blur()
    page.click(".save-button")
    expect(page.locator(".save-button")).to_have_text("Saved!")
    shown(page, address, "one")
    click(page, nodes(run, "one")[0])
    expect(page.locator(".pp-clerp")).not_to_have_text("100% <mine>")
    other = browser.new_context(viewport={"width": 1400, "height": 900}).new_page()
    shown(other, address, "two")
    click(other, node)
    expect(other.locator(".pp-clerp")).to_have_text("100% <mine>")
    other.reload()
    expect(other.locator(".pp-clerp")).to_have_text("100% <mine>")
    other.context.close()
    assert wrong == []


def test_hostile_text_is_shown_and_not_run(page, wrong, address, run):
    shown(page, address, "hostile")
    tips = set()
    for index, node in enumerate([*nodes(run, "hostile")[:10], *nodes(run, "hostile", "embedding")[:3]]):
        x, y = page.evaluate(PLACE, node)
        page.mouse.move(x, y)
        expect(page.locator(".tooltip")).to_be_visible()
        tips.add(page.locator(".tooltip").inner_text().strip())
        if index < 3:
            page.keyboard.down("Meta")
            page.mouse.move(x + 1, y)
            expect(page.locator(".tooltip")).to_contain_text("influence")
            page.keyboard.up("Meta")
        assert page.locator(".tooltip :not(div):not(b)").count() == 0
    assert {HOSTILE[0], HOSTILE[1], HOSTILE[9]} <= tips
    for node in nodes(run, "hostile")[:3]:
        click(page, node)
        click(page, node, pin=True)
    page.wait_for_selector(".feature-examples .token")
    assert page.locator("body img, .cg script, .nav script, .tooltip script").count() == 0
    assert HOSTILE[0] in page.locator(".feature-examples").inner_text()
    assert wrong == []


def test_hostile_text_is_not_run_even_where_it_is_not_escaped(page, wrong, address, run, monkeypatch):
    monkeypatch.setattr("tc_adapters_lens.serve.circuit_page.PATCHES", {})
    shown(page, address, "hostile")
    for node in nodes(run, "hostile")[:10]:
        page.mouse.move(*page.evaluate(PLACE, node))
        page.wait_for_timeout(20)
        if page.locator(".tooltip img").count():
            break
    assert page.locator(".tooltip img").count() == 1
    page.wait_for_timeout(200)
    assert page.evaluate("window.hacked === undefined")
    assert any("Content Security Policy" in said for said in wrong)


def test_without_features_a_line_stands_in_their_place(page, wrong, tmp_path):
    write_graph(tmp_path / "bare", "one")
    with running(tmp_path / "bare") as address:
        page.goto(address)
        expect(page).to_have_url(re.compile("/circuits/"))
        page.wait_for_selector("text.node")
        node = nodes(tmp_path / "bare", "one")[0]
        click(page, node)
        expect(page.locator(".example-quantile")).to_contain_text("Make them: tc-adapters features --run")
        click(page, node, pin=True)
        expect(page.locator(".supernode-container")).to_have_count(1)
    assert set(wrong) <= {"Failed to load resource: the server responded with a status of 404 (Not Found)"}


def test_a_feature_s_page_opens_a_graph_at_it(page, wrong, address, run):
    node = nodes(run, "two")[0]
    layer, feature, _ = node.split("_")
    page.goto(f"{address}/?feature={layer}.{feature}")
    with page.context.expect_page() as opened:
        page.get_by_role("link", name="Graph two").click()
    expect(opened.value.locator(".feature-title a")).to_have_text(f"L{layer}/{feature}")
    opened.value.get_by_role("link", name="Features of toy").click()
    expect(opened.value.get_by_role("link", name="3 graphs")).to_be_visible()
    assert wrong == []
