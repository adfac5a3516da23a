"""A run to show: two stores, labels, a dashboard, a graph, and things that must not be shown."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from playwright.sync_api import Browser

from tc_adapters_lens.serve.app import Site, make_app
from tests.chromium import launched
from tests.features.builder import HOSTILE, synthetic_store
from tests.serve.running import running

N_LAYERS, N_FEATURES = 3, 100
WORDS = (*HOSTILE, " wait", " Wait", " but", " the", " of", " answer")
PEAKED = (1, 9)  # in the dashboard and the graph


def cantor(layer: int, feature: int) -> int:
    """circuit-tracer's number of a feature: pairs counted along diagonals, (0,0) (1,0) (0,1) (2,0) (1,1) (0,2) ..."""
    pairs = [(total - second, second) for total in range(layer + feature + 1) for second in range(total + 1)]
    return pairs.index((layer, feature))


@pytest.fixture(scope="session")
def run(tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "toy"
    shape = {"n_layers": N_LAYERS, "n_features": N_FEATURES, "d_vocab": 40, "words": WORDS}
    store = synthetic_store(run / "features", k=5, n_sequences=60, **shape)
    n = N_LAYERS * N_FEATURES
    labels = {
        "layer": np.repeat(np.arange(N_LAYERS), N_FEATURES),
        "feature": np.tile(np.arange(N_FEATURES), N_LAYERS),
        "class": [["output", "domain", None][row % 3] for row in range(n)],
        "description": [HOSTILE[row % 10] if row % 7 == 0 else "opens a <b>second</b> thought" for row in range(n)],
        "detection": np.linspace(0, 1, n),
        "score_top": [row % 11 / 10 if row % 4 else math.nan for row in range(n)],
        "score_top_mine": [0.25] * n,
        "overlap_target": np.linspace(1, 0, n),
        "description_mine": ["<i>mine</i>"] * n,
    }
    store.add_labels("judge", pd.DataFrame(labels))
    neurons = {
        "model": "target",
        "hook": "blocks.{layer}.mlp.hook_post",
        "adapters": None,
        "adapters_fingerprint": None,
    }
    synthetic_store(run / "features-target", seed=1, **shape, **neurons)
    for folder in ("dashboards/lib", "graphs"):
        (run / folder).mkdir(parents=True)
    name = ".".join(map(str, PEAKED))
    dashboards = {"features": {name: "a b.html", "0.1": "../../secret.html", "0.2": "link.html", "0.3": 5}}
    (run / "dashboards/index.json").write_text(json.dumps(dashboards), encoding="utf-8")
    (run / "dashboards/a b.html").write_text("<!doctype html><script>document.title = 'ran'</script>", encoding="utf-8")
    (run / "dashboards/lib/d3.js").write_text("1", encoding="utf-8")
    (run / "dashboards/notes.txt").write_text("not served", encoding="utf-8")
    node = {"node_id": "1_9_0", "feature_type": "cross layer transcoder", "feature": cantor(*PEAKED)}
    other = {"node_id": "E_3_0", "feature_type": "embedding", "feature": cantor(0, 5)}
    graph = {"metadata": {"slug": "<b>add</b>", "prompt": "What is 17 + 25?"}, "nodes": [node, other], "links": []}
    (run / "graphs/add.json").write_text(json.dumps(graph), encoding="utf-8")
    (run / "graphs/graph-metadata.json").write_text('{"graphs": []}', encoding="utf-8")
    (run / "graphs/broken.json").write_text("{", encoding="utf-8")
    (run.parent / "secret.html").write_text("secret", encoding="utf-8")
    (run.parent / "secret.json").write_text(json.dumps(graph), encoding="utf-8")
    (run / "config.json").write_text('{"key": "secret"}', encoding="utf-8")
    (run / "dashboards/link.html").symlink_to(run.parent / "secret.html")
    (run / "graphs/link.json").symlink_to(run.parent / "secret.json")
    (run / "dashboards/out").symlink_to(run.parent)
    return run


@pytest.fixture(scope="session")
def site(run) -> Site:
    return Site(run)


@pytest.fixture(scope="session")
def app(site):
    return make_app(site)


@pytest.fixture(scope="module")
def address(run) -> Iterator[str]:
    """Of the run, served."""
    with running(run) as url:
        yield url


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with launched() as browser:
        yield browser
