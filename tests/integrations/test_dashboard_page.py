"""Pages in a real browser without a network: charts are drawn, nothing comes from elsewhere, token texts stay texts."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import expect

from tc_adapters_lens import assets
from tc_adapters_lens.integrations.sae_dashboard.dashboards import write_dashboards
from tc_adapters_lens.integrations.sae_dashboard.page import visible
from tc_adapters_lens.integrations.sae_dashboard.text import HeldOutText
from tests.chromium import launched, needs_chromium
from tests.features.builder import HOSTILE
from tests.integrations.conftest import DEAD

pytestmark = [
    needs_chromium,
    pytest.mark.skipif(assets.find("d3") is None, reason=f"needs d3, fetched by {assets.COMMAND}"),
]

FEATURES = [(1, 3), (1, 0)]


@pytest.fixture(scope="module")
def pages(drawable, tmp_path_factory) -> Path:
    model, adapters, store = drawable
    out = tmp_path_factory.mktemp("dashboards")
    text = HeldOutText(store.tokens, store.offsets, store.vocabulary, "held-out")
    write_dashboards(model, adapters, FEATURES, text, out, store=store)
    write_dashboards(model, adapters, [(2, 1), (2, DEAD)], text, out)
    return out


@pytest.fixture
def page(pages) -> Iterator:
    """A page that fails the test at its end if anything went wrong in it, and that has no network."""
    wrong: list[str] = []
    with launched() as browser:
        context = browser.new_context(offline=True, viewport={"width": 1500, "height": 900})
        opened = context.new_page()
        opened.on("console", lambda said: wrong.append(said.text) if said.type in ("error", "warning") else None)
        opened.on("pageerror", lambda error: wrong.append(str(error)))
        opened.on("dialog", lambda dialog: (wrong.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        opened.on(
            "request", lambda asked: None if asked.url.startswith(("file:", "data:")) else wrong.append(asked.url)
        )
        yield opened
        assert opened.evaluate("window.hacked") is None
    assert not wrong


def ready(page) -> None:
    expect(page.locator(".plotly-hist .bars .point").nth(10)).to_be_attached()


def test_charts_are_drawn_and_the_index_leads_to_each_feature(page, pages):
    page.goto((pages / "index.html").as_uri())
    assert page.locator("tbody tr").count() == 4
    page.get_by_role("link", name="1.3", exact=True).click()
    ready(page)
    assert page.locator(".plotly-hist .bars").count() == 3  # activations; logits above and below zero
    assert page.get_by_label("Feature").input_value() == "3"
    assert page.locator("header [data-feature]:visible").inner_text().startswith("Feature 1.3: active on ")
    assert 1 <= page.locator("#seq-group-2-0 .seq").count() <= 20
    assert "MAX = " in page.locator("#seq-group-2-0 h4").inner_text()
    first = page.locator("#seq-group-2-0").inner_text()

    page.get_by_label("Feature").select_option("0")
    expect(page).to_have_url(re.compile("#0$"))
    ready(page)
    assert page.locator("#seq-group-2-0").inner_text() != first
    assert page.locator("header [data-feature]:visible").inner_text().startswith("Feature 1.0: ")
    page.evaluate("location.hash = '#3'")
    expect(page.get_by_label("Feature")).to_have_value("3")
    assert page.locator("#seq-group-2-0").inner_text() == first


def test_a_silent_feature_has_no_examples(page, pages):
    (file,) = pages.glob("layer_2-*.html")
    page.goto(f"{file.as_uri()}#{DEAD}")
    page.get_by_text("NOT ACTIVE ON THIS PAGE'S TOKENS").wait_for()
    assert page.locator(".seq").count() == 0


def test_hostile_tokens_are_shown_and_their_tooltips_too(page, pages):
    (file,) = pages.glob("layer_1-*.html")
    page.goto(file.as_uri())
    ready(page)
    tokens = page.locator(".seq-group .token")
    shown = tokens.all_inner_texts()
    seen = [text for text in map(visible, HOSTILE) if text in shown]
    assert len(seen) > 7
    for text in seen:
        token = tokens.nth(shown.index(text))
        token.hover()
        tip = token.locator("xpath=ancestor::span[contains(@class, 'hover-text')]/following-sibling::div[1]")
        assert text in tip.inner_text()
        assert page.locator(".tooltip img, .tooltip script, .token img").count() == 0
        assert page.locator(".plotly-hist .annotation-text").first.text_content() is not None
