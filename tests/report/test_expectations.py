"""Every expectation held, failed and not measured, on figures whose order is known."""

from __future__ import annotations

import pytest

from tc_adapters_lens.evaluation.estimate import Estimate
from tc_adapters_lens.report.expectations import Comparison, Expectation, expectations
from tc_adapters_lens.report.groups import ablations, sparsity_groups
from tc_adapters_lens.report.numbers import mean
from tests.report.builder import bare, estimate, evaluation, toy_config


def found(name: str, **evaluations) -> Expectation:
    return next(expectation for expectation in expectations(evaluations) if expectation.name == name)


def values(expectation: Expectation) -> list[tuple[float, float]]:
    return [(one.greater_value.value, one.lesser_value.value) for one in expectation.comparisons]


def with_model(name: str, **figures: float):
    """An evaluation in which one model has other figures."""
    changed = evaluation()
    for key, value in figures.items():
        changed["models"][name][key] = estimate(value)
    return changed


def test_all_hold_on_the_figures_of_the_builder():
    outcomes = {
        one.name: one.outcome for one in expectations({"run": evaluation(), "dense": evaluation(5, 0.017, 0.035)})
    }
    assert outcomes.pop("sparsity_tradeoff") == "not measured"  # one recipe, as if two seeds
    assert set(outcomes.values()) == {"held"}
    assert len(outcomes) == 9


def test_nothing_optional_measured():
    outcomes = {one.name: one.outcome for one in expectations({"run": bare()})}
    assert outcomes.pop("hybrid_above_adapters") == "held"
    assert set(outcomes.values()) == {"not measured"}
    assert all(one.intervals is None for one in expectations({"run": bare()}) if one.outcome == "not measured")


@pytest.mark.parametrize(
    ("name", "model", "figure", "value", "pairs"),
    [
        ("base_above_hybrid", "base", "kl", 1.5, (1.5, 1.87)),
        ("hybrid_above_adapters", "replacement", "top1_error", 0.4, (0.355, 0.4)),
        ("skyline_is_best", "skyline", "kl", 0.05, (0.044, 0.05)),
        ("shuffled_is_no_help", "shuffled", "kl", 1.5, (1.5, 1.87)),
    ],
)
def test_one_figure_in_the_wrong_order_fails(name, model, figure, value, pairs):
    expectation = found(name, run=with_model(model, **{figure: value}))
    assert expectation.outcome == "failed"
    assert [(one.greater_value.value, one.lesser_value.value) for one in expectation.failed] == [pairs]
    assert "is not above" in expectation.evidence()[0]


def test_equal_figures_hold_only_where_that_is_expected():
    assert found("base_above_hybrid", run=with_model("base", kl=1.87)).outcome == "undecided"
    assert found("skyline_is_best", run=with_model("skyline", kl=0.044)).outcome == "held"
    assert found("shuffled_is_no_help", run=with_model("shuffled", kl=1.87)).outcome == "held"


@pytest.mark.parametrize(
    ("other", "spreads", "said"),
    [
        (2.0, (0.01, 0.01), "intervals apart"),  # 1.98 to 2.02 and 0.99 to 1.01
        (1.01, (0.02, 0.02), "intervals overlap"),
        (2.0, (0.01, None), "no intervals"),
        (0.5, (0.01, 0.01), "intervals apart"),  # failed, clearly
    ],
)
def test_intervals(other, spreads, said):
    one, two = Estimate.of(estimate(other, spreads[0])), Estimate.of(estimate(1.0, spreads[1]))
    comparison = Comparison("KL", "a", one, "b", two)
    assert comparison.intervals == said
    assert comparison.held == (other > 1)


def test_one_overlap_is_said_of_the_whole_and_failures_decide_a_failed_one():
    apart = Comparison("KL", "a", Estimate(2, 1.9, 2.1), "b", Estimate(1, 0.9, 1.1))
    overlap = Comparison("KL", "a", Estimate(2, 1.0, 3.0), "b", Estimate(1, 0.5, 1.5))
    failed = Comparison("KL", "a", Estimate(1, 0.9, 1.1), "b", Estimate(2, 1.9, 2.1))
    assert Expectation("x", "", (apart,)).intervals == "intervals apart"
    assert Expectation("x", "", (apart, overlap)).intervals == "intervals overlap"
    assert Expectation("x", "", (overlap, failed)).intervals == "intervals apart"
    assert Expectation("x", "", (overlap, failed)).to_dict()["outcome"] == "failed"


def test_what_the_tokens_cannot_tell_is_undecided():
    close = Comparison("KL", "a", Estimate(1, 0.8, 1.2), "b", Estimate(1.1, 0.9, 1.3))
    apart = Comparison("KL", "a", Estimate(1, 0.9, 1.1), "b", Estimate(2, 1.9, 2.1))
    without = Comparison("KL", "a", Estimate(1), "b", Estimate(1.1))
    assert Expectation("x", "", (close,)).outcome == "undecided"
    assert Expectation("x", "", (close, apart)).outcome == "failed"
    assert Expectation("x", "", (close, without)).outcome == "failed"
    assert Expectation("x", "", ()).outcome == "not measured"


def test_tradeoff_compares_neighbours_along_l0_with_seeds_averaged():
    weights = {"a": (0.02, 42), "b": (0.02, 1), "c": (0.1, 42), "d": (0.001, 42)}
    configs = {label: toy_config(weight, seed) for label, (weight, seed) in weights.items()}
    figures = {"a": (1.2, 0.05, 0.06), "b": (1.4, 0.03, 0.04), "c": (0.3, 0.25, 0.13), "d": (5.0, 0.02, 0.045)}
    runs = {label: evaluation(*figures[label], config=configs[label]) for label in weights}
    groups = sparsity_groups(runs)
    assert [group.labels for group in groups] == [("c",), ("b", "a"), ("d",)]
    assert [group.family for group in groups] == [groups[0].family] * 3
    assert groups[1].name == "sparsity weight 0.02, 2 seeds"
    assert groups[1].l0 == pytest.approx(1.3)
    expectation = found("sparsity_tradeoff", **runs)
    expected = [(0.25, 0.04), (0.13, 0.05), (0.04, 0.02), (0.05, 0.045)]  # KL, error; sparse to middle to dense
    assert values(expectation) == [pytest.approx(pair) for pair in expected]
    assert expectation.outcome == "held"
    runs["d"]["models"]["replacement"]["kl"] = estimate(0.041)
    assert found("sparsity_tradeoff", **runs).outcome == "undecided"
    runs["d"]["models"]["replacement"]["kl"] = estimate(0.05)
    assert found("sparsity_tradeoff", **runs).outcome == "failed"


def test_recipes_of_other_kinds_are_not_on_one_line():
    other = toy_config(0.1) | {"adapters": {"n_features": 512}}
    runs = {"a": evaluation(config=toy_config(0.02)), "b": evaluation(0.3, 0.01, 0.01, config=other)}
    assert found("sparsity_tradeoff", **runs).outcome == "not measured"


@pytest.mark.parametrize(("curve", "inner"), [("first", [1, 2, 3]), ("last", [1, 2, 3]), ("single", [0, 1, 2, 3])])
def test_partial_replacement_below_full(curve, inner):
    run = evaluation(kl=0.044)
    expectation = found(f"partial_{curve}", run=run)
    assert values(expectation) == [(0.044, run["partial_kl"][curve][k]["value"]) for k in inner]
    assert expectation.outcome == "held"
    run["partial_kl"][curve][inner[-1]] = estimate(0.06)
    failed = found(f"partial_{curve}", run=run)
    assert failed.outcome == "failed"
    assert len(failed.failed) == 1


@pytest.mark.parametrize(
    ("without", "outcome"),
    [
        (0.1, "held"),
        (0.188, "held"),
        (0.19, "undecided"),
        (0.21, "failed"),
        (0.047, "held"),
        (0.046, "undecided"),
        (0.04, "failed"),
    ],
)
def test_nmse_without_bridging_within_a_factor_of_2(without, outcome):
    run = evaluation(nmse=0.094)
    run["no_bridging"]["nmse"] = estimate(without)
    assert found("nmse_without_bridging", run=run).outcome == outcome


def test_partial_kl_without_bridging_is_a_mean_over_inner_k():
    run = evaluation()
    expectation = found("partial_without_bridging", run=run)
    sides = run["no_bridging"]["partial_kl"], run["partial_kl"]
    means = [tuple(sum(one["value"] for one in side[curve][1:-1]) / 3 for side in sides) for curve in ("first", "last")]
    means.append(tuple(sum(one["value"] for one in side["single"]) / 4 for side in sides))
    assert values(expectation) == [pytest.approx(pair) for pair in means]
    assert expectation.outcome == "held"
    run["no_bridging"]["partial_kl"]["last"] = [estimate(0.001)] * 5
    assert found("partial_without_bridging", run=run).outcome == "failed"


def test_a_run_without_bridging_is_set_beside_the_nearest_and_not_expected_to_bridge():
    runs = {
        "sparse": evaluation(0.3, config=toy_config(0.1)),
        "middle": evaluation(1.3, config=toy_config(0.02)),
        "seed": evaluation(1.2, config=toy_config(0.02, seed=1)),
        "plain": evaluation(1.2, config=toy_config(0.02, bridging_weight=0.0), partial=4.0),
    }
    for run in runs.values():
        run["no_bridging"] = None
    (ablation,) = ablations(runs)
    assert (ablation.label, ablation.other) == ("middle", "plain")
    assert ablation.without is runs["plain"]
    partial = found("partial_first", **runs)
    assert partial.outcome == "held"
    assert not any("plain" in comparison.what for comparison in partial.comparisons)


def test_mean_of_estimates():
    assert mean([Estimate(1, 0, 2), Estimate(3, 2, 6)]) == Estimate(2, 1, 4)
    assert mean([Estimate(1, 0, 2), Estimate(3)]) == Estimate(2)


def test_evidence_is_short():
    many = tuple(Comparison("KL", "a", Estimate(10 + i), "b", Estimate(1)) for i in range(30))
    assert Expectation("x", "", many).evidence() == [
        "KL: a 10.0 > b 1.00",
        "KL: a 11.0 > b 1.00",
        "and 28 more, 28 of them in order",
    ]
    failed = tuple(Comparison("top-1 error", "a", Estimate(0.1), "b", Estimate(0.2)) for _ in range(9))
    lines = Expectation("x", "", many + failed).evidence()
    assert lines[0] == "top-1 error: a 10.00% is not above b 20.00%"
    assert lines[-1] == "and 31 more, 30 of them in order"
