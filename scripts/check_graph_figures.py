"""Predictions of a graph beside what ablations did: correlations with intervals over prompts, and a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tc_adapters_lens.evaluation.bootstrap import MIN_SEQUENCES, Bootstrap, estimate, ratio
from tc_adapters_lens.evaluation.estimate import Estimate
from tc_adapters_lens.models.atomic import atomic_file

PREDICTIONS = ("direct", "total")


class Ablations(NamedTuple):
    """One prompt's features, each ablated alone.

    top: whether one is among the most influential by a rule, `[n]`; the others are drawn at random.
    changes: of the target's demeaned logit, `[n]`.
    changes_held: the same with attention patterns and norm denominators held.
    predicted: rule -> `PREDICTIONS` -> changes, `[n]`.
    frozen_gap: how far frozen ablations are from the edges, as a share of the largest edge, over all rules.
    """

    top: np.ndarray
    changes: np.ndarray
    changes_held: np.ndarray
    predicted: dict[str, dict[str, np.ndarray]]
    frozen_gap: float


def ranks(values: np.ndarray) -> np.ndarray:
    """From 1; ties share their mean."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[place]


def agreement(x: Sequence[np.ndarray], y: Sequence[np.ndarray], bootstrap: Bootstrap) -> dict[str, Any]:
    """Pearson's and Spearman's correlation and the slope of y on x, over all prompts' features together.

    Args:
        x, y: predictions and changes, of each prompt.
    """
    weights, ends = bootstrap.weights(range(len(x))), np.cumsum([len(part) for part in x])[:-1]

    def both(all_x: np.ndarray, all_y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        all_x, all_y = all_x - all_x.mean(), all_y - all_y.mean()
        products = (np.ones_like(all_x), all_x, all_y, all_x * all_x, all_y * all_y, all_x * all_y)
        n, sx, sy, xx, yy, xy = (weights @ [part.sum() for part in np.split(p, ends)] for p in products)
        covariance, of_x, of_y = n * xy - sx * sy, n * xx - sx**2, n * yy - sy**2
        return ratio(covariance, np.sqrt(np.maximum(of_x * of_y, 0))), ratio(covariance, of_x)

    whole = np.concatenate(x), np.concatenate(y)
    (pearson, slope), (spearman, _) = both(*whole), both(*map(ranks, whole))
    found = {"pearson": estimate(pearson), "spearman": estimate(spearman), "slope": estimate(slope)}
    for name in ("pearson", "spearman"):
        if (value := found[name]) is not None and value.interval is not None:
            low, high = value.interval
            found[name] = Estimate(value.value, max(low, -1.0), min(high, 1.0))
    return {name: value and value.to_dict() for name, value in found.items()}


def figures(ablations: Sequence[Ablations], seed: int) -> dict[str, Any]:
    """What JSON holds of all prompts."""
    bootstrap = Bootstrap(1000 if len(ablations) >= MIN_SEQUENCES else 0, seed)
    weights, rng = bootstrap.weights(range(len(ablations))), np.random.default_rng(seed)
    groups = {"top": [one.top for one in ablations], "random": [~one.top for one in ablations]}
    groups["all"] = [np.ones(len(one.top), dtype=bool) for one in ablations]
    changes, held = ([getattr(one, name) for one in ablations] for name in ("changes", "changes_held"))
    sizes = {}
    for name in ("top", "random"):
        of = [abs(change[chosen]) for change, chosen in zip(changes, groups[name], strict=True)]
        mean = estimate(ratio(weights @ [part.sum() for part in of], weights @ [len(part) for part in of]))
        sizes[name] = {"n": sum(map(len, of)), "mean_absolute_change": mean and mean.to_dict()}
    rules: dict[str, Any] = {}
    for rule in ablations[0].predicted:
        for kind in PREDICTIONS:
            x = [one.predicted[rule][kind] for one in ablations]
            found = rules.setdefault(rule, {}).setdefault(kind, {})
            for group, chosen in groups.items():
                for name, y in ((group, changes), (f"{group}, held", held)):
                    own_x, own_y = ([part[c] for part, c in zip(all_, chosen, strict=True)] for all_ in (x, y))
                    found[name] = agreement(own_x, own_y, bootstrap)
            found["shuffled"] = agreement([rng.permutation(part) for part in x], changes, bootstrap)
    return {
        "n_prompts": len(ablations),
        "features": sizes,
        "rules": rules,
        "largest_frozen_gap": max(one.frozen_gap for one in ablations),
    }


def draw(ablations: Sequence[Ablations], rule: str, file: Path) -> None:
    """Predicted against real changes: direct, total, and total beside ablations with norms and attention held."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 4.6), layout="constrained")
    axes = figure.subplots(1, 3, sharex=True, sharey=True)
    top, free, held = (
        np.concatenate([getattr(one, n) for one in ablations]) for n in ("top", "changes", "changes_held")
    )
    panels = (("direct", "", free), ("total", "", free), ("total", ", norms and attention held", held))
    for axis, (kind, how, y) in zip(axes, panels, strict=True):
        x = np.concatenate([one.predicted[rule][kind] for one in ablations])
        axis.axline((0, 0), slope=1, color="#8c8c8c", linewidth=1, linestyle="--", label="as predicted")
        axis.plot(x[top], y[top], "o", color="#4c72b0", alpha=0.6, markersize=5, label="most influential")
        axis.plot(x[~top], y[~top], "x", color="#d97a1c", markersize=5, label="random others of the same layers")
        axis.set(title=f"{kind} effect{how}", xlabel="change that the graph predicts")
    axes[0].set_ylabel("change of the logit when ablated")
    axes[0].legend(fontsize=8)
    with atomic_file(file) as partial:
        figure.savefig(partial, dpi=150, format=file.suffix[1:] or "png")


def shown(found: Mapping[str, Any] | None) -> str:
    """A figure with its interval."""
    if found is None:
        return "-"
    return f"{found['value']:.3f}" + (f" ({found['low']:.3f}, {found['high']:.3f})" if found["low"] is not None else "")
