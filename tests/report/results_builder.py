"""Results of judging and of activation overlap, with made-up figures that fit together."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tc_adapters_lens.evaluation.shares import share
from tests.report.builder import N_FEATURES, N_LAYERS, evaluation

CLASSES = (
    ("general language", "general language"),
    ("domain", "domain"),
    ("reasoning output", "reasoning"),
    ("reasoning, simple input", "reasoning"),
    ("reasoning, abstract input", "reasoning"),
    ("uninterpretable", "uninterpretable"),
)
SHARES = {
    "replacement": (0.48, 0.37, 0.04, 0.02, 0.03, 0.06),
    "target": (0.6, 0.3, 0.01, 0.01, 0.01, 0.07),
    "base": (0.61, 0.3, 0.01, 0.01, 0.0, 0.07),
}
JUDGE = {"kind": "endpoint", "model": "judge-model", "temperature": 0}
ADAPTERS = "xxh3:" + "ad" * 16


def about(model: str, pair: Mapping[str, Any] | None = None, fingerprint: str | None = ADAPTERS) -> dict[str, Any]:
    """The store that was judged."""
    return {
        "pair": dict(pair or evaluation()["pair"]),
        "model": model,
        "n_layers": N_LAYERS,
        "n_features": N_FEATURES,
        "n_counted": 35268,
        "adapters_fingerprint": fingerprint if model == "replacement" else None,
    }


def prompts(*tasks: str) -> dict[str, Any]:
    return {task: {"name": f"{task}.yaml", "sha256": f"{len(task):x}" * 64} for task in tasks}


def classes(
    model: str = "replacement",
    *,
    names: Sequence[tuple[str, str]] = CLASSES,
    n_layers: int = N_LAYERS,
    per_layer: int = 250,
    n_unparsable: int = 2,
    seed: int = 0,
    **changes: Any,
) -> dict[str, Any]:
    """What `judge classify` writes. names: class and group of each."""
    rng = np.random.default_rng(seed)
    given = rng.multinomial(per_layer - n_unparsable, SHARES[model], n_layers)

    def part(counts: np.ndarray, n_drawn: int, n_bad: int) -> dict[str, Any]:
        total = int(counts.sum())
        by_class = {name: int(n) for (name, _), n in zip(names, counts, strict=True)}
        groups: dict[str, int] = {}
        for (name, group), n in zip(names, counts, strict=True):
            if group != name:
                groups[group] = groups.get(group, 0) + int(n)

        def counted(n: int) -> dict[str, Any]:
            found = share(n, total)
            return {"n": n, "share": found.to_dict() if found else None}

        return {
            "n_eligible": 3 * n_drawn,
            "n_sampled": n_drawn,
            "n_unparsable": n_bad,
            "classes": {name: counted(n) for name, n in by_class.items()},
            "groups": {name: counted(n) for name, n in groups.items()},
        }

    return {
        "format": "tc_adapters_lens.feature_classes",
        "format_version": 1,
        "store": about(model),
        "judge": JUDGE,
        "repeat": 0,
        "prompts": prompts("classify"),
        "seed": 42,
        "per_layer": per_layer,
        "min_frequency": 0.0,
        "n_examples": 10,
        "classes": [{"name": name, "description": f"What is {name}.", "group": group} for name, group in names],
        "layers": [{"layer": i, **part(counts, per_layer, n_unparsable)} for i, counts in enumerate(given)],
        "overall": part(given.sum(0), n_layers * per_layer, n_layers * n_unparsable),
        "features": [],
        "usage": {},
        "versions": {"python": "3.11.2"},
        **changes,
    }


def detection(
    model: str = "replacement",
    *,
    scores: Mapping[str, float] | None = None,
    n_layers: int = N_LAYERS,
    per_layer: int = 100,
    seed: int = 1,
    **changes: Any,
) -> dict[str, Any]:
    """What `judge detect` writes. scores: mean by kind, about."""
    scores = {"top": 0.83, "sampled": 0.71, "shuffled": 0.5} if scores is None else scores
    rng = np.random.default_rng(seed)
    drawn = {kind: rng.binomial(10, mean, (n_layers, per_layer)) / 10 for kind, mean in scores.items()}

    def part(values: Mapping[str, np.ndarray]) -> dict[str, Any]:
        n = next(iter(values.values())).size
        means = {}
        for kind, found in values.items():
            half = 1.96 * found.std() / np.sqrt(n)
            mean = float(found.mean())
            means[kind] = {"n": n, "mean": {"value": mean, "low": mean - half, "high": mean + half}}
        return {"n_eligible": 4 * n, "n_sampled": n + 2, "n_scored": n, "n_unparsable": 2, "scores": means}

    return {
        "format": "tc_adapters_lens.feature_detection",
        "format_version": 1,
        "store": about(model),
        "judge": JUDGE,
        "repeat": 0,
        "prompts": prompts("describe", "detect"),
        "seed": 42,
        "per_layer": per_layer,
        "min_frequency": 1e-4,
        "n_exemplars": 10,
        "n_texts": 5,
        "negatives": "random",
        "left_out": {"too few examples": 3},
        "layers": [{"layer": i, **part({kind: drawn[kind][i] for kind in drawn})} for i in range(n_layers)],
        "overall": part(drawn),
        "features": [
            {
                "layer": layer,
                "feature": feature,
                "description": "opens a second thought",
                "scores": {kind: float(values[layer, feature]) for kind, values in drawn.items()},
            }
            for layer in range(n_layers)
            for feature in range(per_layer)
        ],
        "usage": {},
        "versions": {"python": "3.11.2"},
        **changes,
    }


def overlaps(
    target: float = 0.74,
    base: float = 0.41,
    *,
    n_layers: int = N_LAYERS,
    n_features: int = 300,
    seed: int = 2,
    **changes: Any,
) -> dict[str, Any]:
    """What `overlap` writes. target, base: mean overlaps, about."""
    rng = np.random.default_rng(seed)
    edges = np.linspace(0, 1, 21).round(2)

    def part(values: np.ndarray) -> dict[str, Any]:
        mean, half = float(values.mean()), 1.96 * float(values.std()) / np.sqrt(values.size)
        return {
            "n_features": values.size,
            "mean": {"value": mean, "low": mean - half, "high": mean + half},
            "median": float(np.median(values)),
            "histogram": np.histogram(values, edges)[0].tolist(),
        }

    def model(mean: float) -> dict[str, Any]:
        values = rng.beta(6 * mean, 6 * (1 - mean), (n_layers, n_features))
        layers = [{"layer": i, **part(found)} for i, found in enumerate(values)]
        return {"layers": layers, "overall": part(values)}

    return {
        "format": "tc_adapters_lens.activation_overlap",
        "format_version": 1,
        "pair": evaluation()["pair"],
        "adapters_fingerprint": ADAPTERS,
        "tokens": "eval.jsonl",
        "tokens_fingerprint": "sha256:" + "7e" * 32,
        "positions": "all",
        "n_sequences": 400,
        "n_positions": 35268,
        "n_layers": n_layers,
        "n_features": 1024,
        "min_active": 10,
        "edges": edges.tolist(),
        "models": {"target": model(target), "base": model(base)},
        "chance": {"overall": 0.021, "layers": [0.02] * n_layers},
        "versions": {"python": "3.11.2"},
        **changes,
    }


def write_results(run: Path, found: Mapping[str, Mapping[str, Any]]) -> Path:
    """Files by name: `overlap` beside the evaluation, all else in RUN/judge."""
    for name, values in found.items():
        path = run / "overlap.json" if name == "overlap" else run / "judge" / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(values), encoding="utf-8")
    return run


def everything(**changes: Any) -> dict[str, dict[str, Any]]:
    """Classes and detection of features and of both models' neurons, and overlap."""
    found: dict[str, dict[str, Any]] = {}
    for i, model in enumerate(("replacement", "target", "base")):
        found[f"classify-{model}"] = classes(model, seed=10 + i, **changes)
    found["detect-replacement"] = detection(**changes)
    found["detect-target"] = detection("target", scores={"top": 0.8, "sampled": 0.66}, seed=3, **changes)
    return found | {"overlap": overlaps(**changes)}
