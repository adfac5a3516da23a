"""interventions.json with made-up figures: a group removed, kept, scaled and negated, and random features."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tests.report.builder import estimate

N = 400
REMOVED = 1.5
"""Hesitation words per 1,000 tokens without the group."""
WORDS = ("wait", "hmm", "but", "alternatively")
RULE = {
    "or": [
        {"name": "hesitation output", "rule": {"promotes": ["wait", "hmm"], "top": 10}},
        {"name": "template", "rule": {"template": "any", "share": 0.8}},
    ]
}
TEXT = "First 17 + 25 = 42.\nWait, is it? But then 42 - 8 = 34."


def figures(
    hesitation: float, length: float, accuracy: float | None, kl: float | None, spread: float | None
) -> dict[str, Any]:
    """What was measured of a condition."""
    return {
        "accuracy": None if accuracy is None else estimate(accuracy, spread),
        "response_length": estimate(length, spread),
        "hesitation_per_1000": estimate(hesitation, spread),
        "degeneration_rate": estimate(0.01, spread),
        "kl": None if kl is None else estimate(kl, spread),
    }


def difference(own: dict[str, Any], other: dict[str, Any], half: float | None) -> dict[str, Any]:
    """Differences of figures, with intervals of `half` times the other's figure to both sides; None: without."""
    found = {}
    for key, one in own.items():
        if one is None or other[key] is None:
            found[key] = None
            continue
        value, room = one["value"] - other[key]["value"], (half or 0) * other[key]["value"]
        ends = (None, None) if half is None else (value - room, value + room)
        found[key] = {"value": value, "low": ends[0], "high": ends[1]}
    return found


def condition(
    name: str,
    kind: str,
    measured: dict[str, Any],
    against: tuple[str, dict[str, Any]] | None,
    half: float | None,
    **of: Any,
) -> dict[str, Any]:
    """One condition. of: label, group, control_of, draw, factor, n_features where they are not None."""
    shares = (0.5, 0.05, 0.4, 0.05)
    hesitation = measured["hesitation_per_1000"]
    words = {
        word: {key: end and end * share for key, end in hesitation.items()}
        for word, share in zip(WORDS, shares, strict=True)
    }
    return {
        "name": name,
        "label": name,
        "kind": kind,
        "group": None,
        "control_of": None,
        "draw": None,
        "factor": None,
        "n_features": None,
        "n_finished": 398,
        "n_degenerate": 4,
        "n_parsed": 395,
        "measured": {**measured, "per_word": words},
        "difference": None if against is None else difference(measured, against[1], half),
        "against": None if against is None else against[0],
        **of,
    }


def interventions(
    *,
    kinds: Sequence[str] = ("remove", "keep", "scale", "negate"),
    groups: Sequence[str] = ("hesitation",),
    answers: bool = True,
    spread: float | None = 0.04,
    n_draws: int = 3,
    n_samples: int = 2,
) -> dict[str, Any]:
    """A whole interventions.json.

    Args:
        kinds: what was done with each group.
        answers: whether the problems have answers.
        spread: of every interval; None leaves all out.
        n_draws: random groups like each, switched in the same ways.
        n_samples: problems whose responses are kept.
    """

    def f(hesitation: float, length: float, accuracy: float, kl: float | None) -> dict[str, Any]:
        return figures(hesitation, length, accuracy if answers else None, kl, spread)

    measured = {
        "base": f(0.1, 310.0, 0.31, 5.03),
        "hybrid": f(0.25, 215.0, 0.42, 1.87),
        "target": f(5.7, 121.0, 0.81, None),
        "replacement": f(5.5, 119.0, 0.80, 0.044),
        "biases": f(0.3, 208.0, 0.43, 1.80),
    }
    labels = {"replacement": "replacement model", "biases": "hybrid with biases alone"}
    conditions = [
        condition(name, "reference", one, None, None, label=labels.get(name, name)) for name, one in measured.items()
    ]
    replacement, target = (("replacement", measured["replacement"]), ("target", measured["target"]))
    for at, group in enumerate(groups):
        own = {"group": group, "n_features": 120}

        def draws(
            name: str,
            kind: str,
            of: str,
            start: tuple[str, dict[str, Any]],
            centre: tuple[float, float, float],
            factor: float | None = None,
        ) -> list[dict[str, Any]]:
            hesitation, length, right = centre
            return [
                condition(
                    f"{name}-random-{draw}",
                    kind,
                    f(hesitation - 0.1 * (draw - 1), length + 2 * (draw - 1), right + 0.01 * (draw - 1), 0.05),
                    start,
                    None if spread is None else 0.05,
                    label=f"{kind} random {draw}",
                    group=f"{of} random {draw}",
                    control_of=of,
                    draw=draw,
                    factor=factor,
                    n_features=120,
                )
                for draw in range(n_draws)
            ]

        near = (5.5, 119.0, 0.79)
        if "remove" in kinds:
            removed = f(REMOVED + at, 78.0 + 3 * at, 0.79, 0.31)
            name = f"remove-{group}"
            conditions.append(condition(name, "remove", removed, replacement, 0.05, label=f"without {group}", **own))
            conditions += draws(name, "remove", group, replacement, near)
        if "keep" in kinds:
            kept = f(8.2, 150.0, 0.45, 1.1)
            biases = ("biases", measured["biases"])
            name = f"keep-{group}"
            conditions.append(condition(name, "keep", kept, biases, 0.05, label=f"only {group}", **own))
            conditions += draws(name, "keep", group, biases, (0.4, 200.0, 0.43))
        for kind, start, factors in (("scale", replacement, (0.5, 1.5, 2.0)), ("negate", target, (0.25, 0.5, 1.0))):
            for factor in factors if kind in kinds else ():
                name = f"{kind}-{group}-{factor:g}"
                strength = factor if kind == "scale" else 1 - factor
                found = f(
                    0.4 + 4.0 * strength + 0.2 * at, 60.0 + 55 * strength, 0.5 + 0.28 * min(strength, 1), 0.2 * factor
                )
                named = {"label": f"{group} x {factor}" if kind == "scale" else f"target - {factor} x {group}"}
                conditions.append(condition(name, kind, found, start, 0.05, factor=factor, **named, **own))
                conditions += draws(name, kind, group, start, near, factor)
    if spread is None:
        for one in conditions:
            for found in (one["difference"] or {}).values():
                if found is not None:
                    found |= {"low": None, "high": None}
    return {
        "format": "tc_adapters_lens.interventions",
        "format_version": 1,
        "pair": {
            "base_name": "toy:base",
            "target_name": "toy:target",
            "base_revision": None,
            "target_revision": None,
            "base_fingerprint": "sha256:" + "09" * 32,
            "target_fingerprint": "sha256:" + "91" * 32,
        },
        "adapters": "runs/toy/adapters",
        "adapters_fingerprint": "sha256:" + "5a" * 32,
        "versions": {"tc_adapters_lens": "0.1", "torch": "2.6.0"},
        "groups": [
            {
                "name": group,
                "n_features": 120,
                "per_layer": [30, 40, 20, 30],
                "frequency": 0.0123,
                "control_frequencies": [0.0119, 0.0121],
                "rule": RULE,
                "features": [[i % 4, 7 * i] for i in range(120)],
            }
            for group in groups
        ],
        "problems": {
            "source": "toy",
            "n": N,
            "fingerprint": "sha256:" + "7e" * 32,
            "n_with_answers": N if answers else 0,
        },
        "sampling": {"temperature": 0.7, "top_p": 1.0, "max_new_tokens": 256, "seed": 42},
        "hesitation_words": list(WORDS),
        "degeneration": {"window": 200, "threshold": 0.25, "sizes": [2, 20]},
        "replicates": 0 if spread is None else 1000,
        "conditions": conditions,
        "samples": [sample(at, [one["name"] for one in conditions], answers) for at in range(n_samples)],
    }


def sample(problem: int, names: Sequence[str], answers: bool = True) -> dict[str, Any]:
    """Responses of some conditions to one problem: every third is degenerate, cut off and without an answer."""
    responses = {}
    for at, name in enumerate(names):
        degenerate = at % 3 == 2
        text = f"{TEXT}\nIt is {30 + problem}." + " and so on" * (30 if degenerate else 0)
        start = text.index("Wait")
        but = text.index("But")
        responses[name] = {
            "text": text,
            "hesitations": [[start, start + 4], [but, but + 3]],
            "n_tokens": 30 if degenerate else 27,
            "finished": not degenerate,
            "truncated": text.index(" and so on") + 10 if degenerate else None,
            "parsed": None if degenerate else "34",
            "correct": None if not answers else problem == 4 and not degenerate,
        }
    question = f"What is 17 + 25 - {8 - problem}?"
    return {
        "problem": problem,
        "question": question,
        "answer": str(34 + problem) if answers else None,
        "responses": responses,
    }
