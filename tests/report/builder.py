"""Evaluations and run directories with made-up figures of the size that the built-in pair has."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
PARTS = ["embedding", "attention", "norms", "MLP", "unembedding"]
N_LAYERS, N_FEATURES = 4, 1024
EDGES = [0.0, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.01]
BASE_KL, HYBRID_KL, SKYLINE_KL = 5.03, 1.87, 0.012


def estimate(value: float, spread: float | None = 0.04) -> dict[str, float | None]:
    """A figure with an interval of `spread` times itself to both sides; None: without one."""
    if spread is None:
        return {"value": value, "low": None, "high": None}
    low, high = sorted((value * (1 - spread), value * (1 + spread)))
    return {"value": value, "low": low, "high": high}


def agreement(kl: float, error: float, recovered: float | None, spread: float | None = 0.04) -> dict[str, Any]:
    """A model's agreement with the target; it is worse where the target is unsure."""
    return {
        "kl": estimate(kl, spread),
        "top1_error": estimate(error, spread),
        "unsure": {"kl": estimate(1.6 * kl, spread), "top1_error": estimate(1.8 * error, spread)},
        "sure": {"kl": estimate(0.7 * kl, spread), "top1_error": estimate(0.5 * error, spread)},
        "cross_entropy": estimate(0.41 + kl, spread),
        "loss_recovered": None if recovered is None else estimate(recovered, spread),
    }


def toy_config(l1_coefficient: float = 0.02, seed: int = 42, bridging_weight: float = 1.0) -> dict[str, Any]:
    """The recipe of configs/toy.yaml, its preset written out."""
    config = yaml.safe_load((ROOT / "configs" / "toy.yaml").read_text(encoding="utf-8"))
    config["seed"] = seed
    config["objective"] = {
        "l1_coefficient": l1_coefficient,
        "kl_weight": 1.0,
        "nmse_weight": 1.0,
        "bridging_weight": bridging_weight,
    }
    return config


def evaluation(
    l0: float = 1.3,
    kl: float = 0.044,
    error: float = 0.0594,
    *,
    config: Mapping[str, Any] | None = None,
    nmse: float = 0.094,
    partial: float = 0.6,
    spread: float | None = 0.04,
    n_layers: int = N_LAYERS,
) -> dict[str, Any]:
    """A whole evaluation, every optional part in it.

    Args:
        l0, kl, error, nmse: of the replacement model.
        partial: the highest KL of partial replacement, as a share of full replacement's.
        spread: of every interval; None leaves all out.
    """

    def e(value: float) -> dict[str, float | None]:
        return estimate(value, spread)

    def shares(total: float) -> list[dict[str, float | None]]:
        return [e(2 * total * (n_layers - i) / (n_layers + 1)) for i in range(n_layers)]

    def curves(full: float, highest: float) -> dict[str, Any]:
        inner = [e(full * highest * k / (n_layers - 1)) for k in range(1, n_layers)]
        nothing = {"value": 0.0, "low": e(0.0)["low"], "high": e(0.0)["high"]}
        return {
            "first": [nothing, *inner, e(full)],
            "last": [nothing, *copy.deepcopy(inner), e(full)],
            "single": [e(full * highest * (i + 1) / (2 * n_layers)) for i in range(n_layers)],
        }

    config = toy_config() if config is None else config
    dead = [300, 420, 480, 461][:n_layers] + [400] * (n_layers - 4)
    without_embedding = [("embedding", 4.9), ("attention", 3.1), ("norms", 3.25), ("unembedding", HYBRID_KL)]
    return {
        "format": "tc_adapters_lens.evaluation",
        "format_version": 1,
        "n_tokens": 24312,
        "n_sequences": 400,
        "replicates": 0 if spread is None else 1000,
        "seed": 0,
        "positions": "response",
        "tokens": "eval.jsonl",
        "tokens_fingerprint": "sha256:" + "7e" * 32,
        "data": {"source": "eval.jsonl"},
        "sampling": {"temperature": 0.7, "top_p": 1.0},
        "pair": {
            "base_name": "toy:base",
            "target_name": "toy:target",
            "base_revision": None,
            "target_revision": None,
            "base_fingerprint": "sha256:" + "09" * 32,
            "target_fingerprint": "sha256:" + "91" * 32,
        },
        "adapters": "adapters",
        "recipe": {"config": dict(config), "n_steps": 848, "n_tokens": 300278} if config else {},
        "n_layers": n_layers,
        "n_features": N_FEATURES,
        "versions": {"tc_adapters_lens": "0.1.0", "torch": "2.13.0", "python": "3.11.2"},
        "target": {"cross_entropy": e(0.41), "sure_share": e(0.71), "entropy": e(0.40)},
        "models": {
            "hybrid": agreement(HYBRID_KL, 0.355, None, spread),
            "replacement": agreement(kl, error, 1 - kl / HYBRID_KL, spread),
            "base": agreement(BASE_KL, 0.5085, -1.69, spread),
            "reverse": agreement(3.4, 0.45, -0.82, spread),
            "norm_refit": agreement(0.93, 0.24, 0.5, spread),
            "skyline": agreement(SKYLINE_KL, 0.031, 0.993, spread),
            "shuffled": agreement(2.1, 0.37, -0.12, spread),
            "no_bridging": agreement(0.9 * kl, 0.95 * error, 1 - 0.9 * kl / HYBRID_KL, spread),
        },
        "skyline_sweep": [{"lr": 1e-3, "kl": e(SKYLINE_KL), "top1_error": e(0.031)}],
        "nmse": e(nmse),
        "nmse_per_layer": shares(nmse),
        "partial_kl": curves(kl, partial),
        "partial_sequences": 100,
        "l0": e(l0),
        "l0_per_layer": shares(l0),
        "l1": e(3.5 * l0),
        "frequency": {
            "edges": EDGES,
            "per_layer": [[e(n) for n in (dead[i], 90, 130, 170, 120, 80, 20, 4, 0)] for i in range(n_layers)],
        },
        "dead": e(sum(dead)),
        "dead_per_layer": [e(n) for n in dead],
        "no_bridging": {
            "l0": e(0.97 * l0),
            "nmse": e(1.1 * nmse),
            "nmse_per_layer": shares(1.1 * nmse),
            "partial_kl": curves(0.9 * kl, 3.5),
        },
        "account": {
            "parts": list(PARTS),
            "alone": {
                part: {"kl": e(left), "recovered": e(BASE_KL - left)}
                for part, left in zip(PARTS, (4.9, 4.2, 5.1, 3.4, 4.6), strict=True)
            },
            "without": {
                part: {"kl": e(left)} for part, left in zip(PARTS, (0.12, 1.2, 0.21, HYBRID_KL, 0.6), strict=True)
            },
            "cumulative": steps(
                [("embedding", 4.9), ("attention", 3.1), ("norms", 3.25), ("MLP", 0.7), ("unembedding", 0.0)], spread
            ),
            "mlps_last": steps([*without_embedding, ("MLP", 0.0)], spread),
            "adapters": {"recovered": e(HYBRID_KL - kl), "left": e(kl)},
        },
    }


def steps(after: list[tuple[str, float]], spread: float | None) -> list[dict[str, Any]]:
    """Parts swapped in one after another: name and KL afterwards."""
    before, found = BASE_KL, []
    for part, kl in after:
        recovered = before - kl
        ends = (None, None) if spread is None else sorted((recovered * (1 - spread), recovered * (1 + spread)))
        interval = {"value": recovered, "low": ends[0], "high": ends[1]}
        found.append({"added": part, "kl": estimate(kl, spread), "recovered": interval})
        before = kl
    return found


def bare(**changes: Any) -> dict[str, Any]:
    """An evaluation with nothing optional in it."""
    found = evaluation(spread=None, **changes)
    found["models"] = {name: found["models"][name] for name in ("hybrid", "replacement")}
    for model in found["models"].values():
        model["sure"] = None
    found |= {"recipe": {}, "sampling": None, "skyline_sweep": [], "versions": {}}
    return found | {"partial_kl": None, "partial_sequences": 0, "no_bridging": None, "account": None}


def metrics(kl: float, l0: float, n_rows: int = 60, local: int = 0) -> list[dict[str, float]]:
    """Rows of a run whose KL and L0 fall towards the given ones; the first `local` are of the local phase."""
    rows = []
    for i in range(n_rows):
        left = 1 - i / n_rows
        row = {"step": 10 * (i + 1), "metrics/l0": l0 + 400 * left**6, "details/n_training_samples": 3500 * (i + 1)}
        if i < local:
            row["losses/local_error"] = 0.45 * left
        else:
            row |= {"losses/kl": kl + 1.5 * left**4, "losses/nmse": 0.09 + 0.1 * left}
            row |= {"losses/bridging_to_target": kl * (1 + left), "losses/bridging_to_replacement": kl * (i % 3) / 2}
        rows.append(row)
    return rows


def write_run(
    directory: Path, found: Mapping[str, Any] | None = None, rows: list[dict[str, float]] | None = None
) -> Path:
    """A run's directory with config.yaml (where there is a recipe), metrics.jsonl and evaluation.json."""
    found = evaluation() if found is None else found
    directory.mkdir(parents=True, exist_ok=True)
    if config := found["recipe"].get("config"):
        (directory / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    if rows is None:
        rows = metrics(found["models"]["replacement"]["kl"]["value"], found["l0"]["value"])
    if rows:
        (directory / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (directory / "evaluation.json").write_text(json.dumps(found), encoding="utf-8")
    return directory
