"""The page in a real browser: filters, order, keys, history, links, and text that would like to be more than text."""

from __future__ import annotations

import re
from functools import partial

import pytest
from playwright.sync_api import expect

from tc_adapters_lens.assets import ASSETS, COMMAND, find
from tests.chromium import needs_chromium
from tests.features.builder import HOSTILE
from tests.serve.conftest import PEAKED
from tests.serve.running import running

NAME = ".".join(map(str, PEAKED))
REFUSED = "the server responded with a status of 400"  # the browser's word for a wrong filter
pytestmark = [
    needs_chromium,
    pytest.mark.skipif(find("lit-html") is None, reason=f"needs lit-html, fetched by {COMMAND}"),
]


@pytest.fixture
def page(browser, address):
    """A page in which nothing may go wrong: no dialog, no error, no request elsewhere, no script of the data's."""
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    context.grant_permissions(["clipboard-read", "clipboard-write"])
    page = context.new_page()
    page.set_default_timeout(10_000)
    wrong: list[str] = []
    page.on("dialog", lambda dialog: (wrong.append(f"dialog {dialog.message}"), dialog.dismiss()))
    page.on("pageerror", lambda error: wrong.append(f"error {error}"))
    page.on(
        "console",
        lambda said: (
            wrong.append(said.text) if said.type in ("error", "warning") and REFUSED not in said.text else None
        ),
    )
    page.on("request", lambda asked: None if asked.url.startswith(address) else wrong.append(asked.url))
    page.goto(f"{address}/")
    page.wait_for_selector("td.feature")
    yield page
    assert page.evaluate("window.hacked === undefined")
    assert wrong == []
    context.close()


def lists(page, n: int) -> None:
    """Waits until so many lists have been shown since the page was loaded."""
    expect(page.locator("body")).to_have_attribute("data-lists", str(n))


def total(page) -> int:
    return int(page.locator(".count b").inner_text().replace(",", ""))


def first(page) -> str:
    """layer.feature in the first row."""
    cells = page.locator("tr[id=row-0] td").all_inner_texts()
    return f"{cells[0]}.{cells[1]}"


def title(page) -> str:
    return page.locator("section.panel h2").inner_text()


def test_filters_write_the_address_and_back_undoes_them(page, address):
    everything = total(page)
    page.fill("#f-layers", "1")
    expect(page).to_have_url(f"{address}/?layers=1")
    expect(page.locator(".count b")).not_to_have_text(f"{everything}")
    assert {text[0] for text in page.locator("td.feature a").evaluate_all("all => all.map(a => a.textContent)")} == {
        "1"
    }
    page.select_option("#f-share", "domain:math")
    expect(page).to_have_url(f"{address}/?layers=1&share=0.5,domain:math")
    lists(page, 3)
    fewer = total(page)
    assert 0 < fewer < everything
    page.fill("#f-promoted", "<script>")
    lists(page, 4)
    assert all("<script>" in text for text in page.locator("td.promoted").all_inner_texts()) or total(page) < fewer
    page.go_back()
    page.go_back()
    expect(page).to_have_url(f"{address}/?layers=1")
    expect(page.locator("#f-promoted")).to_have_value("")
    page.go_back()
    expect(page.locator(".count b")).to_have_text(f"{everything}")
    expect(page.locator("#f-layers")).to_have_value("")


def test_dead_features_classes_and_clearing(page):
    everything = total(page)
    page.check("#f-dead")
    expect(page.locator(".count")).to_have_text("300 features")
    page.get_by_label("output").check()
    expect(page.locator(".count b")).to_have_text("100")
    page.fill("#f-layers", "x")
    expect(page.locator(".count .error")).to_contain_text("layers must be like 3 or 0-5,7")
    page.get_by_role("button", name="Clear all filters").click()
    expect(page.locator(".count b")).to_have_text(f"{everything}")


def test_labels_are_filters_of_their_own(page, address):
    everything = total(page)
    page.select_option("#f-label", "score_top")
    lists(page, 2)
    expect(page).to_have_url(f"{address}/?label=score_top,,")
    known = total(page)
    assert 0 < known < everything
    page.get_by_label("detection, highest examples, from").fill("0.8")
    lists(page, 3)
    expect(page).to_have_url(f"{address}/?label=score_top,0.8,")
    assert 0 < total(page) < known
    page.get_by_label("detection, highest examples, to").fill("0.95")
    lists(page, 4)
    column = page.locator("thead th").all_inner_texts().index("detection\nhighest")
    shown = page.locator(f"tr[id^=row-] td:nth-child({column + 1})").all_inner_texts()
    assert {float(text) for text in shown} == {0.8, 0.9}
    page.fill("#f-description", "SECOND")
    lists(page, 5)
    assert 0 < total(page) < len(shown)
    column = page.locator("thead th").all_inner_texts().index("Description")
    told = page.locator(f"tr[id^=row-] td:nth-child({column + 1})").all_inner_texts()
    assert set(told) == {"opens a <b>second</b> thought"}
    page.go_back()
    expect(page.locator("#f-description")).to_have_value("")
    page.get_by_role("button", name="Remove the filter on detection, highest examples").click()
    expect(page.locator(".count b")).to_have_text(f"{everything}")
    page.get_by_role("button", name=re.compile("^detection *highest$")).click()
    expect(page).to_have_url(f"{address}/?sort=-score_top")


def test_hostile_descriptions_are_text(page, address):
    page.goto(f"{address}/?dead=1&sort=feature&layers=0&description=window.hacked")
    page.wait_for_selector("td.feature")
    cells = page.locator("td.label bdi")
    assert {HOSTILE[0], HOSTILE[1]} <= set(cells.all_text_contents())
    titles = {cell.get_attribute("title") for cell in cells.all()}
    assert HOSTILE[0] in titles, "the whole of what may be cut off"
    page.locator("#row-0").click()
    expect(page.locator("p.description").first).to_have_text(re.compile("window.hacked"))
    expect(page.locator("p.description").nth(1)).to_have_text("mine: <i>mine</i>")
    assert page.locator(".panel header :is(script, img, b, i)").count() == 0
    figures = page.locator("dl.figures").inner_text()
    assert re.search(r"overlap, target\s+[01]\.\d\d", figures, re.IGNORECASE)
    assert re.search(r"detection, highest examples, mine\s+0\.25", figures, re.IGNORECASE)


def test_headings_sort_either_way(page):
    heading = page.locator("thead th", has_text="Max")
    for direction, ordered in (("descending", lambda v: sorted(v, reverse=True)), ("ascending", sorted)):
        heading.get_by_role("button").click()
        expect(heading).to_have_attribute("aria-sort", direction)
        lists(page, 2 if direction == "descending" else 3)
        values = [float(text) for text in page.locator("td.c-max").all_inner_texts()]
        assert values == ordered(values)


def test_a_feature_opens_by_click_and_its_link_opens_it_again(page, address):
    page.fill("#f-layers", "2")
    expect(page).to_have_url(f"{address}/?layers=2")
    lists(page, 2)
    name = first(page)
    page.click("#row-0 td.promoted")
    expect(page.locator("section.panel h2")).to_have_text(f"Layer {name[0]}, feature {name[2:]}")
    expect(page).to_have_url(f"{address}/?layers=2&feature={name}")
    page.get_by_role("button", name="Copy link").click()
    expect(page.get_by_role("button", name="Copied")).to_be_visible()
    link = page.evaluate("navigator.clipboard.readText()")
    page.goto("about:blank")
    page.goto(link)
    expect(page.locator("section.panel h2")).to_have_text(f"Layer {name[0]}, feature {name[2:]}")
    expect(page.locator(".place")).to_have_text(re.compile(r"^1 of "))
    page.locator("section.panel").get_by_role("button", name="Close").click()
    expect(page.locator("section.panel")).to_have_count(0)
    page.go_back()
    expect(page.locator("section.panel h2")).to_have_text(f"Layer {name[0]}, feature {name[2:]}")


def test_all_of_it_works_by_keys(page, address):
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.id") == "f-text"
    page.keyboard.type("wait")
    expect(page).to_have_url(f"{address}/?text=wait")
    lists(page, 2)
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "grid"
    for key in ("j", "ArrowDown", "k"):
        page.keyboard.press(key)
    expect(page.locator("#row-1")).to_have_class(re.compile("cursor"))
    page.keyboard.press("Enter")
    expect(page.locator("#row-1")).to_have_attribute("aria-selected", "true")
    before = title(page)
    page.keyboard.press("j")
    expect(page.locator("section.panel h2")).not_to_have_text(before)
    expect(page.locator("#row-2")).to_have_attribute("aria-selected", "true")
    assert page.locator(".t.hit").count() > 0
    page.keyboard.press("t")
    expect(page.get_by_role("tab", name="Sampled")).to_have_attribute("aria-selected", "true")
    page.keyboard.press("?")
    expect(page.get_by_role("dialog")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_be_hidden()
    page.keyboard.press("Escape")
    expect(page.locator("section.panel")).to_have_count(0)
    page.keyboard.press("End")
    last = total(page) - 1
    expect(page.locator(f"#row-{last}")).to_be_visible()


def test_a_range_of_frequencies_is_dragged(page):
    everything = total(page)
    box = page.locator("svg.frequencies").bounding_box()
    page.mouse.move(box["x"] + box["width"] * 0.6, box["y"] + 20)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] - 2, box["y"] + 20)
    page.mouse.up()
    lists(page, 2)
    assert 0 < total(page) < everything
    lowest = float(page.locator("#f-min_frequency").input_value())
    assert all(float(text.rstrip("%")) >= lowest * 0.99 for text in page.locator("td.c-frequency").all_inner_texts())
    page.fill("#f-min_frequency", "")
    expect(page.locator(".count b")).to_have_text(f"{everything}")


def test_examples_with_the_searched_text_are_marked(page, address, run):
    page.goto(f"{address}/?text=answer+wait&sort=layer")
    lists(page, 1)
    page.locator("#row-0").click()
    page.wait_for_selector(".passage")
    found = sum(int(re.findall(r"\((\d+) of", text)[0]) for text in page.get_by_role("tab").all_inner_texts())
    assert found > 0
    marked = 0
    for _ in ("top", "sampled"):
        marked += page.locator("li.found").count()
        assert all("answer wait" in text.lower() for text in page.locator("li.found .passage").all_inner_texts())
        page.keyboard.press("t")
        page.wait_for_timeout(100)
    assert marked == found


def test_scrolling_fetches_further_pages(page):
    page.check("#f-dead")
    expect(page.locator(".count")).to_have_text("300 features")
    page.locator(".rows").evaluate("pane => { pane.scrollTop = pane.scrollHeight; }")
    expect(page.locator("#row-299 td.feature")).to_be_visible()


def test_hostile_text_is_shown(page, address):
    page.goto(f"{address}/?dead=1&sort=layer&feature={NAME}")
    page.wait_for_selector(".passage")
    page.get_by_role("button", name="All 20").first.click()
    page.get_by_role("button", name="More context").first.click()
    page.wait_for_selector(".passage .context")
    shown = page.locator("body").inner_text()
    for text in (HOSTILE[0], HOSTILE[1], HOSTILE[2], HOSTILE[6], HOSTILE[7], HOSTILE[9]):
        assert text in shown
    assert page.locator(".passage script, .passage img, .chip script, .chip img, header.panel b").count() == 0
    assert "opens a <b>second</b> thought" in shown
    assert not re.search("[\u202a-\u202e\u2066-\u2069]", page.locator("body").text_content() or "")
    assert {"U+202E", "U+0000", "CR", "↵"} <= set(page.locator(".hidden-character").all_inner_texts())
    directions = page.locator(".passage bdi").evaluate_all("all => all.map(one => getComputedStyle(one).unicodeBidi)")
    assert set(directions) == {"isolate"}


def test_tokens_are_coloured_and_tell_their_value(page, address):
    page.goto(f"{address}/?feature={NAME}")
    peak = page.locator(".t.peak").first
    peak.hover()
    tip = page.locator(".tip")
    expect(tip).to_have_text(re.compile(r"^[\d.]+ at position \d+$"))
    assert tip.inner_text().split()[0] == f"{float(peak.get_attribute('data-activation')):.4g}"
    colours = page.locator(".t.on").evaluate_all("all => all.map(one => getComputedStyle(one).backgroundColor)")
    assert "rgba(0, 0, 0, 0)" not in colours


def test_a_dashboard_and_a_graph_are_linked(page, address):
    page.goto(f"{address}/?feature={NAME}")
    expect(page.get_by_role("link", name="Graph <b>add</b>")).to_have_attribute(
        "href", "/circuits/?slug=add&clickedId=1_9_0"
    )
    expect(page.get_by_role("link", name="1 graph")).to_have_attribute("href", "/circuits/")
    with page.context.expect_page() as opened:
        page.get_by_role("link", name="Dashboard").click()
    other = opened.value
    expect(other).to_have_title("ran")
    assert other.evaluate("window.origin") == "null", "it must not be this page's origin"


def test_another_store_is_chosen(page, address):
    page.select_option("select.store", "features-target")
    expect(page).to_have_url(f"{address}/?store=features-target")
    expect(page.locator("thead")).not_to_contain_text("class")


def test_narrow_screens(page, address):
    page.set_viewport_size({"width": 420, "height": 800})
    page.goto(f"{address}/")
    page.wait_for_selector("td.feature")
    assert page.evaluate("document.documentElement.scrollWidth") <= 420
    page.get_by_role("button", name="Filters").click()
    page.fill("#f-layers", "0")
    page.get_by_role("button", name="Filters").click()
    page.locator("#row-0").click()
    expect(page.locator("section.panel h2")).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= 420
    expect(page.locator(".rows")).to_be_hidden()


def fulfill(answer, route) -> None:
    route.fulfill(**answer)


def test_another_script_than_the_cdn_s_is_not_run(browser, run, monkeypatch):
    monkeypatch.setattr("tc_adapters_lens.serve.app.find", lambda name: None)
    script = find("lit-html")
    assert script is not None
    for body, works in ((script.read_bytes(), True), (b"window.hacked = 1; export const html = 1;", False)):
        context = browser.new_context()
        page = context.new_page()
        answer = {"body": body, "content_type": "text/javascript", "headers": {"access-control-allow-origin": "*"}}
        page.route(ASSETS["lit-html"].cdn, partial(fulfill, answer))
        with running(run) as url:
            page.goto(f"{url}/", wait_until="load")
            if works:
                page.wait_for_selector("td.feature")
            else:
                page.wait_for_timeout(500)
                assert page.locator("td.feature").count() == 0
            assert page.evaluate("window.hacked === undefined")
            expect(page.locator("#note")).to_contain_text("cdn.jsdelivr.net")
            context.close()
