"""The Chromium that the system has, driven by playwright: nothing is downloaded."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from playwright.sync_api import Browser, sync_playwright

_NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, _NAMES)), None)

needs_chromium = pytest.mark.skipif(
    CHROMIUM is None, reason="needs a Chromium: apt install chromium, or name one in CHROMIUM"
)


@contextmanager
def launched() -> Iterator[Browser]:
    """A browser without a window, as long as a block lasts."""
    assert CHROMIUM is not None, "needs a Chromium: apt install chromium, or name one in CHROMIUM"
    with sync_playwright() as playwright:
        is_root = hasattr(os, "geteuid") and os.geteuid() == 0
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"] if is_root else [])
        yield browser
        browser.close()
