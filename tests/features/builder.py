"""Stores made up for tests: small ones with known contents, and large ones to be fast on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from tc_adapters_lens.features.records import HISTOGRAM_EDGES, KeptExamples, LayerFeatures, StoreInfo, TokenEffects
from tc_adapters_lens.features.store import FeatureStore
from tc_adapters_lens.features.store_files import write_store
from tc_adapters_lens.features.text import Text
from tc_adapters_lens.features.windows import draw_windows
from tc_adapters_lens.models.vocabulary import Vocabulary

PAIR = {
    "base_name": "toy:base",
    "target_name": "toy:target",
    "base_revision": None,
    "target_revision": None,
    "base_fingerprint": "sha256:base",
    "target_fingerprint": "sha256:target",
}
N_WINDOWS = 16
HOSTILE = (
    "<script>window.hacked=1</script>",
    '"><img src=x onerror="window.hacked=1">',
    "'; alert(1) //",
    "line\nbreak\r\ttab",
    "\u202eright to left\u202c",
    "\u2066isolate",
    "{{7*7}}${7*7}",
    "</script><!--",
    "\x00nul",
    "&lt;b&gt;",
)
"""Texts that must be shown and never run."""


def make_vocabulary(d_vocab: int, words: tuple[str, ...] = ()) -> Vocabulary:
    """The words given, two halves of a broken character, then ` w0`, ` w1` and so on."""
    pieces = [word.encode() for word in words] + [b"\xe2\x82", b"\xac"]
    pieces += [f" w{index}".encode() for index in range(len(pieces), d_vocab)]
    offsets = np.cumsum([0, *map(len, pieces)]).astype(np.int64)
    return Vocabulary(np.frombuffer(b"".join(pieces), np.uint8), offsets)


def synthetic_store(
    directory: Path,
    n_layers: int = 2,
    n_features: int = 30,
    *,
    k: int = 4,
    n_sequences: int = 40,
    longest: int = 120,
    d_vocab: int = 200,
    words: tuple[str, ...] = HOSTILE,
    dead: float = 0.1,
    seed: int = 0,
    **changes: Any,
) -> FeatureStore:
    """A store of random features whose numbers fit together: examples inside the text, shares that add up.

    Args:
        dead: share of features that never fire.
        changes: fields of StoreInfo to set otherwise; empty `regions`, `template` and `groups` make plain text.
    """
    rng = np.random.default_rng(seed)
    lengths = rng.integers(2, longest, n_sequences)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    n_tokens = int(offsets[-1])
    groups = rng.integers(0, 3, n_sequences)
    regions, template = ("prompt", "think", "answer"), ("content", "<think>", "<think>+1")
    values: dict[str, Any] = {
        "model": "replacement",
        "hook": "blocks.{layer}.mlp.hook_delta.hook_sae_acts_post",
        "before": 50,
        "after": 20,
        "regions": regions,
        "region_tokens": (n_tokens // 2, n_tokens // 4, n_tokens - n_tokens // 2 - n_tokens // 4),
        "group_by": "domain",
        "groups": ("code", "math", "science"),
        "group_tokens": tuple(int(lengths[groups == index].sum()) for index in range(3)),
        "template": template,
        "template_tokens": (n_tokens - 2 * n_sequences, n_sequences, n_sequences),
        "pair": PAIR,
        "adapters": "runs/toy/adapters",
        "adapters_fingerprint": "xxh3:0",
        "provenance": {"source": "synthetic", "seed": seed},
    }
    info = StoreInfo(
        n_windows=min(N_WINDOWS, n_tokens),
        n_layers=n_layers,
        n_features=n_features,
        k=k,
        n_sequences=n_sequences,
        n_tokens=n_tokens,
        n_counted=n_tokens,
        **{**values, **changes},
    )
    text = Text(
        tokens=rng.integers(0, d_vocab, n_tokens),
        offsets=offsets,
        counted=np.ones(n_tokens, bool),
        regions=rng.integers(0, 3, n_tokens) if info.regions else None,
        template=rng.integers(0, 3, n_tokens) if info.template else None,
        groups=groups if info.groups else None,
        region_names=info.regions,
        template_names=info.template,
        group_names=info.groups,
    )
    windows = draw_windows(text, info.n_windows, info.before, info.after, seed)
    heights = np.random.default_rng([seed, 1])
    layers = (_layer(info, rng, heights, d_vocab, dead, offsets) for _ in range(n_layers))
    write_store(directory, info, layers, text, windows, make_vocabulary(d_vocab, words))
    return FeatureStore.open(directory)


def _layer(
    info: StoreInfo,
    rng: np.random.Generator,
    heights: np.random.Generator,
    d_vocab: int,
    dead: float,
    offsets: np.ndarray,
) -> LayerFeatures:
    n, k = info.n_features, info.k
    n_active = np.minimum(np.exp(rng.uniform(0, np.log(info.n_tokens), n)).astype(np.int64), info.n_tokens)
    n_active[rng.random(n) < dead] = 0
    top = _examples(info, rng, n_active, offsets)
    order = np.argsort(-top.activations, axis=1, kind="stable")
    assert (order == np.arange(k)).all()
    maximum = top.activations[:, 0]
    return LayerFeatures(
        n_active=n_active,
        mean=(maximum / 2).astype(np.float32),
        maximum=maximum,
        histogram=_split(rng, n_active, len(HISTOGRAM_EDGES) - 1),
        regions=_split(rng, n_active, len(info.regions)),
        groups=_split(rng, n_active, len(info.groups)),
        template=_split(rng, n_active, len(info.template)),
        promoted=_effects(rng, n, d_vocab, 1),
        inhibited=_effects(rng, n, d_vocab, -1),
        top=top,
        sampled=_examples(info, rng, n_active, offsets),
        window_maxima=(maximum[:, None] * heights.random((n, info.n_windows)).round()).astype(np.float16),
    )


def _examples(info: StoreInfo, rng: np.random.Generator, n_active: np.ndarray, offsets: np.ndarray) -> KeptExamples:
    """As many as there are active positions, at most k; the peak and two of its neighbours are active."""
    n, k = info.n_features, info.k
    there = np.arange(k) < np.minimum(n_active, k)[:, None]
    positions = np.where(there, rng.integers(0, info.n_tokens, (n, k)), -1)
    activations = np.where(there, np.sort(rng.exponential(2.0, (n, k)) + 0.01, 1)[:, ::-1], 0).astype(np.float32)
    near = np.array([0, -3, 2])
    flat, peak = positions[there], activations[there]
    sequence = np.searchsorted(offsets, flat, side="right") - 1
    neighbours = flat[:, None] + near
    inside = (neighbours >= offsets[sequence][:, None]) & (neighbours < offsets[sequence + 1][:, None])
    counts = np.zeros(n * k, np.int64)
    counts[there.reshape(-1)] = inside.sum(1)
    order = np.array([1, 0, 2])  # by offset
    values = (peak[:, None] * np.array([1.0, 0.3, 0.6]))[:, order][inside[:, order]]
    return KeptExamples(
        positions=positions.astype(np.int64),
        activations=activations,
        starts=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        offsets=np.broadcast_to(near[order] + info.before, neighbours.shape)[inside[:, order]].astype(np.uint8),
        values=values.astype(np.float32),
    )


def _split(rng: np.random.Generator, totals: np.ndarray, n_parts: int) -> np.ndarray:
    """Each total cut into parts that add up to it."""
    if n_parts == 0:
        return np.zeros((len(totals), 0), np.int64)
    cuts = np.sort((rng.random((len(totals), n_parts - 1)) * (totals[:, None] + 1)).astype(np.int64), 1)
    return (
        np.diff(np.hstack([np.zeros_like(cuts[:, :1]), cuts, totals[:, None]]), axis=1)
        if n_parts > 1
        else totals[:, None]
    )


def _effects(rng: np.random.Generator, n: int, d_vocab: int, sign: int, n_tokens: int = 20) -> TokenEffects:
    ids = rng.integers(0, d_vocab, (n, n_tokens)).astype(np.int32)
    return TokenEffects(ids, (sign * np.sort(rng.exponential(1.0, (n, n_tokens)), 1)[:, ::-1]).astype(np.float32))
