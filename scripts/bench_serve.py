"""How long `tc-adapters serve` takes, in a real browser, with 200,000 features.

    bash scripts/bench_serve [--json bench.json] [--store DIR]

Builds a store of made-up features (kept in --store for the next time), shows it, and drives the system's Chromium
without a window. First paint is the first contentful one of a fresh page; first rows, when the list is drawn. Every
other time is from the input to the frame that shows the new list; after typing, the DEBOUNCE milliseconds that the page
waits for its end are part of it.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from playwright.sync_api import Page

from tc_adapters_lens.cli.output import write_json
from tc_adapters_lens.features.store import FeatureStore
from tc_adapters_lens.features.store_files import is_feature_store
from tc_adapters_lens.serve.app import STATIC
from tests.chromium import launched
from tests.features.builder import HOSTILE, synthetic_store
from tests.serve.running import running

DEBOUNCE = int(re.findall(r"DEBOUNCE = (\d+)", (STATIC / "filters.js").read_text(encoding="utf-8"))[0])

# Sets a field as typing does and resolves with the milliseconds until the next list is drawn.
MEASURE = """([selector, value]) => new Promise(resolve => {
    const field = document.querySelector(selector), start = performance.now();
    const drawn = () => requestAnimationFrame(() => setTimeout(() => resolve(performance.now() - start)));
    const watch = new MutationObserver(() => { watch.disconnect(); drawn(); });
    watch.observe(document.body, { attributes: true, attributeFilter: ["data-lists"] });
    if (value === null) return field.click();
    field.value = value;
    field.dispatchEvent(new Event(field.matches("select") ? "change" : "input", { bubbles: true }));
})"""
PAINT = "performance.getEntriesByName('first-contentful-paint')[0].startTime"

# What is done, in order: its name, the field and what is typed (None clicks). `{}` is the repetition, so that no answer
# is one that was kept.
STEPS: tuple[tuple[str, str, str | None], ...] = (
    ("sort by max", "thead .c-max button", None),
    ("filter layers", "#f-layers", "3-9"),
    ("promoted token", "#f-promoted", "w77{}"),
    ("promoted token cleared", "#f-promoted", ""),
    ("layers cleared", "#f-layers", ""),
    ("frequency", "#f-min_frequency", "0.01{}"),
    ("frequency cleared", "#f-min_frequency", ""),
    ("share of a group", "#f-share", "domain:math"),
    ("share removed", ".remove", None),
    ("rare text", "#f-text", "w123{} w"),
    ("common text", "#f-text", "w{}"),
    ("a digit", "#f-text", "{}"),
    ("text cleared", "#f-text", ""),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", type=Path, help="where the made-up store is kept; default: nowhere")
    parser.add_argument("--layers", type=int, default=25)
    parser.add_argument("--features", type=int, default=8000, help="of a layer")
    parser.add_argument("--tokens", type=int, default=2_000_000)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--json", type=Path, help="also write the result there")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        store = build(args.store or Path(place) / "features", args.layers, args.features, args.tokens)
        result = measure(store, args.repeat)
    for name, values in result["milliseconds"].items():
        print(f"{name:<28}{statistics.median(values):8.0f} ms   (at most {max(values):.0f})")
    print(f"{result['n_features']:,} features, {result['n_tokens']:,} tokens")
    print(f"what is typed is asked for after {DEBOUNCE} ms of quiet, which are part of these times")
    if args.json:
        write_json(args.json, result)


def build(directory: Path, n_layers: int, n_features: int, n_tokens: int) -> FeatureStore:
    """The made-up store: 20 examples of either kind, a vocabulary of 50,000."""
    if is_feature_store(directory):
        return FeatureStore.open(directory)
    n_sequences = 400
    longest = 2 * n_tokens // n_sequences
    return synthetic_store(
        directory, n_layers, n_features, k=20, n_sequences=n_sequences, longest=longest, d_vocab=50_000, words=HOSTILE
    )


def measure(store: FeatureStore, repeat: int) -> dict[str, Any]:
    """Milliseconds by name, one for each repetition."""
    times: dict[str, list[float]] = {}
    with launched() as browser, running(store.directory) as url:
        page = browser.new_page(viewport={"width": 1280, "height": 860})
        start = time.perf_counter()
        page.goto(url)
        page.wait_for_selector("td.feature")
        times["first rows, cold server"] = [1000 * (time.perf_counter() - start)]
        start = time.perf_counter()
        step(page, "#f-text", "w4321")
        times["first search, cold server"] = [1000 * (time.perf_counter() - start)]
        page.close()
        for repetition in range(repeat):
            page = browser.new_page(viewport={"width": 1280, "height": 860})
            start = time.perf_counter()
            page.goto(url)
            page.wait_for_selector("td.feature")
            times.setdefault("first rows", []).append(1000 * (time.perf_counter() - start))
            times.setdefault("first paint", []).append(page.evaluate(PAINT))
            for name, selector, value in STEPS:
                took = step(page, selector, value and value.replace("{}", str(repetition)))
                times.setdefault(name, []).append(took)
            start = time.perf_counter()
            page.click("#row-3 td.feature")
            page.wait_for_selector(".passage")
            times.setdefault("feature opened", []).append(1000 * (time.perf_counter() - start))
            page.close()
    info = store.info
    return {
        "n_features": info.n_layers * info.n_features,
        "n_examples": 2 * info.k,
        "n_tokens": info.n_tokens,
        "debounce_ms": DEBOUNCE,
        "cpus": os.cpu_count(),
        "python": platform.python_version(),
        "milliseconds": times,
    }


def step(page: Page, selector: str, value: str | None) -> float:
    """One change of the list, in milliseconds."""
    return float(page.evaluate(MEASURE, [selector, value]))


if __name__ == "__main__":
    main()
