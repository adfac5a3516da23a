"""How far two judges, or one judge asked twice, give the same features the same classes.

Source: Cohen 1960, "A coefficient of agreement for nominal scales", whose kappa counts only what agreement there is
beyond that of two judges who give classes as often as these do, but blindly.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from tc_adapters_lens.errors import JudgeError
from tc_adapters_lens.evaluation.bootstrap import MIN_SEQUENCES, Bootstrap, estimate, ratio
from tc_adapters_lens.evaluation.estimate import Estimate

__all__ = ["agreement", "kappa"]

_NAMES = ("base_name", "target_name", "base_revision", "target_revision")  # of one and the same pair they may differ


def agreement(first: Mapping[str, Any], second: Mapping[str, Any], bootstrap: Bootstrap) -> dict[str, Any]:
    """Two results of `classify` compared.

    Args:
        first, second: as `results.read_result` has them.
        bootstrap: how intervals over features are made.
    Returns:
        n_first, n_second, n_common: features that each judged, and that both did.
        n_unparsable: of the common ones: without a class in the first, in the second, in either.
        n, agreement, kappa: features with a class in both; share of them with the same one; Cohen's kappa, None where
            it is undefined because both always gave one and the same class. Intervals need 10 features.
        classes, confusion: names, and counts `[first][second]`.
        layers: n, agreement and kappa of each layer that has 10 features or more.
    Raises:
        JudgeError: of other features, with other classes, or without one feature that both gave a class.
    """
    _require_alike(first, second)
    names = [one["name"] for one in first["classes"]]
    of_first, of_second = (
        {(one["layer"], one["feature"]): one["class"] for one in result["features"]} for result in (first, second)
    )
    common = sorted(of_first.keys() & of_second.keys())
    both = [key for key in common if of_first[key] is not None and of_second[key] is not None]
    if not both:
        raise JudgeError(
            f"Two results must have a feature that both gave a class. Got {len(of_first):,} and {len(of_second):,} "
            f"features, {len(common):,} of them the same; judge the same features: the same --seed and --min-frequency."
        )
    counts = np.zeros((first["store"]["n_layers"], len(names), len(names)), np.int64)
    for key in both:
        counts[key[0], names.index(of_first[key]), names.index(of_second[key])] += 1
    confusion = np.stack([_resampled(of_layer, bootstrap, layer) for layer, of_layer in enumerate(counts)])
    return {
        "n_first": len(of_first),
        "n_second": len(of_second),
        "n_common": len(common),
        "n_unparsable": {
            "first": sum(of_first[key] is None for key in common),
            "second": sum(of_second[key] is None for key in common),
            "either": len(common) - len(both),
        },
        **_measured(confusion.sum(axis=0)),
        "classes": names,
        "confusion": counts.sum(axis=0).tolist(),
        "layers": [
            {"layer": layer, **_measured(confusion[layer])}
            for layer, of_layer in enumerate(counts)
            if of_layer.sum() >= MIN_SEQUENCES
        ],
    }


def kappa(confusion: Float[np.ndarray, "n_rows n n"]) -> Float[np.ndarray, " n_rows"]:
    """Cohen's kappa of each table of counts; NaN where chance alone agrees always, or there is nothing."""
    totals = confusion.sum(axis=(1, 2))
    observed = ratio(np.trace(confusion, axis1=1, axis2=2), totals)
    chance = ratio((confusion.sum(axis=1) * confusion.sum(axis=2)).sum(axis=1), totals**2)
    return ratio(observed - chance, 1 - chance)


def _resampled(counts: Int[np.ndarray, "n n"], bootstrap: Bootstrap, layer: int) -> Float[np.ndarray, "n_rows n n"]:
    """Row 0 is the counts; in every other one each feature counts Poisson(1) times, and so n of them Poisson(n)."""
    draws = np.random.default_rng([bootstrap.seed, layer]).poisson(counts, (bootstrap.n_replicates, *counts.shape))
    return np.concatenate([counts[None], draws]).astype(np.float64)


def _measured(confusion: Float[np.ndarray, "n_rows n n"]) -> dict[str, Any]:
    n = int(confusion[0].sum())
    rows = confusion if n >= MIN_SEQUENCES else confusion[:1]
    same = ratio(np.trace(rows, axis1=1, axis2=2), rows.sum(axis=(1, 2)))
    return {"n": n, "agreement": _within_one(estimate(same)), "kappa": _within_one(estimate(kappa(rows)))}


def _within_one(found: Estimate | None) -> dict[str, float | None] | None:
    """An interval that was shifted to be around its figure may end beyond what there can be."""
    if found is None:
        return None
    ends = found.interval
    return Estimate(found.value, *(min(max(end, -1.0), 1.0) for end in ends or ())).to_dict()


def _require_alike(first: Mapping[str, Any], second: Mapping[str, Any]) -> None:
    one, other = (_about(result["store"]) for result in (first, second))
    if differing := [key for key in one if one[key] != other.get(key)]:
        key = differing[0]
        raise JudgeError(
            f"Two results must be of one feature store. They differ in {key}: {one[key]} and {other.get(key)}."
        )
    names, others = (_names(result["classes"]) for result in (first, second))
    if names != others:
        name = sorted(names ^ others)[0]
        raise JudgeError(
            f"Two results must have the same classes. Got '{name}' in {'the first' if name in names else 'the second'} "
            "only; judge again with the same classes in --prompts."
        )


def _about(store: Mapping[str, Any]) -> dict[str, Any]:
    pair = {key: value for key, value in store["pair"].items() if key not in _NAMES}
    return {**{key: value for key, value in store.items() if key != "pair"}, **pair}


def _names(classes: Sequence[Mapping[str, Any]]) -> set[str]:
    return {one["name"] for one in classes}
