"""What the method leads one to expect of features' detection and overlap."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

from tc_adapters_lens.evaluation.estimate import Estimate
from tc_adapters_lens.report.expectations import Comparison, Expectation
from tc_adapters_lens.report.numbers import mean
from tc_adapters_lens.report.plots_detection import CHANCE, WORDS, means
from tc_adapters_lens.report.plots_overlap import mean_overlap
from tc_adapters_lens.report.results_shown import Shown, shown
from tc_adapters_lens.report.runs import Runs

NEAR_CHANCE = 0.1


def meaning_expectations(runs: Runs) -> tuple[Expectation, ...]:
    """All of them; none where no run has results of its features."""
    if not any(run.results for run in runs.ordered):
        return ()
    scored, overlaps = shown(runs, "detect"), shown(runs, "overlap")
    return (
        Expectation(
            "detection_order",
            "Descriptions tell highest examples better than uniform ones, and these better than chance",
            tuple(_order(scored)),
        ),
        Expectation(
            "shuffled_description_is_chance",
            f"Another feature's description scores within {NEAR_CHANCE} of chance",
            tuple(_shuffled(scored)),
        ),
        Expectation(
            "overlap_target_above_base",
            "Activations overlap more with the target's hidden states than with the base's",
            tuple(_overlap(overlaps)),
        ),
    )


def _order(ones: Sequence[Shown]) -> Iterator[Comparison]:
    for one in ones:
        found = means(one.result.values["overall"])
        chain = [(WORDS[kind], found[kind]) for kind in ("top", "sampled") if kind in found]
        for (greater, high), (lesser, low) in pairwise([*chain, ("chance", Estimate(CHANCE, CHANCE, CHANCE))]):
            yield Comparison(f"score, {one.label}", greater, high, lesser, low)


def _shuffled(ones: Sequence[Shown]) -> Iterator[Comparison]:
    for one in ones:
        found = means(one.result.values["overall"]).get("shuffled")
        if found is None:
            continue
        low, high = (Estimate(end, end, end) for end in (CHANCE - NEAR_CHANCE, CHANCE + NEAR_CHANCE))
        yield Comparison(f"score, {one.label}", "chance and a little", high, WORDS["shuffled"], found, True)
        yield Comparison(f"score, {one.label}", WORDS["shuffled"], found, "chance less a little", low, True)


def _overlap(ones: Sequence[Shown]) -> Iterator[Comparison]:
    """Layer 0 is left out: the replacement model reads there what the target reads."""
    for one in ones:
        models = one.result.values["models"]
        if not {"target", "base"} <= set(models):
            continue
        pairs = [
            [mean_overlap(models[model]["layers"][layer]) for model in ("target", "base")]
            for layer in range(1, one.result.values["n_layers"])
        ]
        target, base = ([pair[side] for pair in pairs if None not in pair] for side in range(2))
        if target:
            found = [mean([estimate for estimate in side if estimate]) for side in (target, base)]
            yield Comparison(f"mean overlap past layer 0, {one.label}", "target", found[0], "base", found[1])
