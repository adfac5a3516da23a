"""Agreement of two judges, against kappa's definition and textbook numbers."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from tc_adapters_lens.cli.main import main
from tc_adapters_lens.errors import JudgeError
from tc_adapters_lens.evaluation.bootstrap import Bootstrap
from tc_adapters_lens.judge.agreement import agreement, kappa
from tc_adapters_lens.judge.results import write_result
from tests.features.builder import PAIR

STORE = {
    "pair": PAIR,
    "model": "replacement",
    "n_layers": 3,
    "n_features": 500,
    "n_counted": 1000,
    "adapters_fingerprint": "xxh3:0",
}
BOOTSTRAP = Bootstrap(1000, 1)


def result(classes: dict[tuple[int, int], str | None], names: str = "abc", **changes: Any) -> dict[str, Any]:
    return {
        "store": STORE,
        "classes": [{"name": name, "description": name, "group": name} for name in names],
        "features": [
            {"layer": layer, "feature": feature, "class": name, "reason": None}
            for (layer, feature), name in classes.items()
        ],
        **changes,
    }


def two(counts: list[list[int]], names: str = "abc", layer: int = 0) -> tuple[dict[str, Any], dict[str, Any]]:
    """Results whose confusion is `counts`."""
    pairs = [(a, b) for a, row in enumerate(counts) for b, n in enumerate(row) for _ in range(n)]
    first, second = (
        result({(layer, index): names[pair[which]] for index, pair in enumerate(pairs)}, names) for which in (0, 1)
    )
    return first, second


def by_definition(pairs: list[tuple[str, str]]) -> float:
    n = len(pairs)
    observed = sum(a == b for a, b in pairs) / n
    names = {name for pair in pairs for name in pair}
    chance = sum(sum(a == name for a, _ in pairs) * sum(b == name for _, b in pairs) for name in names) / n**2
    return (observed - chance) / (1 - chance)


@pytest.mark.parametrize(
    ("counts", "wanted"),
    [
        ([[20, 5], [10, 15]], 0.4),  # observed 35/50; chance (25*30 + 25*20)/2500 = 0.5; 0.2/0.5
        ([[45, 15], [25, 15]], 0.1304),  # 60/100; (60*70 + 40*30)/10000 = 0.54; 0.06/0.46
        ([[25, 35], [5, 35]], 0.2593),  # 60/100; (60*30 + 40*70)/10000 = 0.46; 0.14/0.54
        ([[88, 10, 2], [14, 40, 6], [18, 10, 12]], 0.4915),  # Cohen 1960's proportions: 0.70 against 0.41
        ([[10, 0], [0, 30]], 1.0),
        ([[0, 20], [20, 0]], -1.0),
    ],
)
def test_textbook_numbers(counts, wanted) -> None:
    assert kappa(np.array([counts], float))[0] == pytest.approx(wanted, abs=1e-4)
    found = agreement(*two(counts), BOOTSTRAP)
    assert found["kappa"]["value"] == pytest.approx(wanted, abs=1e-4)
    assert found["agreement"]["value"] == pytest.approx(np.trace(counts) / np.sum(counts))
    n = len(counts)
    assert [row[:n] for row in found["confusion"][:n]] == counts
    assert found["n"] == found["n_common"] == np.sum(counts)
    assert -1 <= found["kappa"]["low"] <= found["kappa"]["value"] <= found["kappa"]["high"] <= 1


def test_as_scikit_learn_has_it() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(0)
    for n_classes in (2, 3, 6):
        first = rng.integers(0, n_classes, 80)
        second = np.where(rng.random(80) < 0.6, first, rng.integers(0, n_classes, 80))
        counts = np.zeros((n_classes, n_classes))
        np.add.at(counts, (first, second), 1)
        assert kappa(counts[None])[0] == pytest.approx(metrics.cohen_kappa_score(first, second))


def test_intervals_are_those_of_features_drawn_again() -> None:
    """Against resampling features with replacement, one by one."""
    counts = [[60, 10, 5], [8, 70, 12], [15, 4, 16]]
    found = agreement(*two(counts), Bootstrap(4000, 3))
    pairs = np.array([(a, b) for a, row in enumerate(counts) for b, n in enumerate(row) for _ in range(n)])
    rng = np.random.default_rng(5)
    drawn = [pairs[rng.integers(0, len(pairs), len(pairs))] for _ in range(1500)]
    for name, values in {
        "agreement": [float((draw[:, 0] == draw[:, 1]).mean()) for draw in drawn],
        "kappa": [by_definition([tuple(pair) for pair in draw.tolist()]) for draw in drawn],
    }.items():
        low, high = np.quantile(values, [0.025, 0.975])
        assert found[name]["low"] == pytest.approx(low, abs=0.02)
        assert found[name]["high"] == pytest.approx(high, abs=0.02)
        assert high - low > 0.08


def test_layers_and_what_has_no_class() -> None:
    rng = np.random.default_rng(1)
    keys = [(layer, feature) for layer, n in ((0, 40), (1, 9), (2, 25)) for feature in range(n)]
    one: dict[Any, Any] = {key: str(rng.choice(["a", "b"])) for key in keys}
    other: dict[Any, Any] = {key: one[key] if rng.random() < 0.7 else "c" for key in keys}
    one[0, 0] = one[0, 1] = None
    other[0, 1] = other[2, 3] = other[2, 4] = None
    one[2, 400] = "a"
    other[0, 401] = other[0, 402] = "b"
    found = agreement(result(one), result(other, "cba"), BOOTSTRAP)  # another order of classes is the same classes
    assert (found["n_first"], found["n_second"], found["n_common"], found["n"]) == (75, 76, 74, 70)
    assert found["n_unparsable"] == {"first": 2, "second": 3, "either": 4}
    both = [key for key in keys if one[key] and other[key]]
    assert found["kappa"]["value"] == pytest.approx(by_definition([(one[key], other[key]) for key in both]))
    assert found["confusion"][0][2] == sum(one[key] == "a" and other[key] == "c" for key in both)
    assert [(layer["layer"], layer["n"]) for layer in found["layers"]] == [(0, 38), (2, 23)]  # layer 1 has too few
    for layer in found["layers"]:
        own = [(one[key], other[key]) for key in both if key[0] == layer["layer"]]
        assert layer["kappa"]["value"] == pytest.approx(by_definition(own))
        assert layer["kappa"]["low"] < layer["kappa"]["value"] < layer["kappa"]["high"]
    assert agreement(result(one), result(other), BOOTSTRAP) == agreement(result(one), result(other), BOOTSTRAP)


def test_kappa_of_one_class_is_undefined_and_few_features_have_no_interval() -> None:
    found = agreement(*two([[12]]), BOOTSTRAP)
    assert found["kappa"] is None
    assert found["agreement"] == {"value": 1.0, "low": 1.0, "high": 1.0}
    few = agreement(*two([[3, 1], [1, 4]]), BOOTSTRAP)
    assert few["kappa"] == {"value": pytest.approx(0.55), "low": None, "high": None}
    assert few["layers"] == []
    without = agreement(*two([[30, 10], [10, 40]]), Bootstrap(0))
    assert without["kappa"]["low"] is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"store": {**STORE, "adapters_fingerprint": "xxh3:1"}}, r"They differ in adapters_fingerprint: xxh3:0 and"),
        ({"store": {**STORE, "model": "target"}}, r"They differ in model: replacement and target"),
        ({"store": {**STORE, "n_counted": 1001}}, r"They differ in n_counted"),
        ({"store": {**STORE, "pair": {**PAIR, "base_fingerprint": "sha256:x"}}}, r"They differ in base_fingerprint"),
        ({"names": "abd"}, r"same classes\. Got 'c' in the first only"),
        ({"names": "abcd"}, r"same classes\. Got 'd' in the second only"),
    ],
)
def test_what_cannot_be_compared(changes, message) -> None:
    with pytest.raises(JudgeError, match=message) as caught:
        agreement(result({(0, 0): "a"}), result({(0, 0): "a"}, **changes), BOOTSTRAP)
    assert "\n" not in str(caught.value)


def test_copies_of_one_pair_may_have_other_names() -> None:
    moved = {**STORE, "pair": {**PAIR, "base_name": "elsewhere/base", "target_revision": "main"}}
    assert agreement(result({(0, 0): "a"}), result({(0, 0): "a"}, store=moved), BOOTSTRAP)["n"] == 1


@pytest.mark.parametrize("other", [{(0, 1): "a"}, {(0, 0): None}])
def test_no_feature_in_common(other) -> None:
    with pytest.raises(JudgeError, match=r"a feature that both gave a class\. Got 1 and 1 features, [01] of them"):
        agreement(result({(0, 0): "a"}), result(other), BOOTSTRAP)


def test_the_verb(tmp_path, capsys) -> None:
    names = ["plain", "evil\u202e\x1b[31m"]
    first, second = (tmp_path / name for name in ("first.json", "second.json"))
    for path, which in ((first, 0), (second, 1)):
        pairs = [pair for pair, n in {(0, 0): 20, (0, 1): 5, (1, 0): 10, (1, 1): 15}.items() for _ in range(n)]
        found = result({(2, index): names[pair[which]] for index, pair in enumerate(pairs)})
        write_result(path, "classify", {**found, "classes": [{"name": name} for name in names]})
    assert main(["judge", "agree", str(first), str(second), "--json", str(tmp_path / "out.json")]) == 0
    out = capsys.readouterr().out
    assert not {"\u202e", "\x1b"} & {*out}
    found = json.loads((tmp_path / "out.json").read_text())
    assert found["kappa"]["value"] == pytest.approx(0.4)
    assert found["confusion"] == [[20, 5], [10, 15]]
    low, high = found["kappa"]["low"], found["kappa"]["high"]
    assert f"Cohen's kappa  0.400 ({low:.3f} to {high:.3f})" in out
    rows = [line.split() for line in out.splitlines()]
    assert rows[rows.index(["first", "\\", "second", "1", "2"]) + 1] == ["1", "plain", "20", "5"]
    assert any(row[:3] == ["2", "50", "0.700"] for row in rows)

    write_result(first, "classify", result({(0, 0): "a"}))
    assert main(["judge", "agree", str(first), str(first)]) == 0
    assert "Cohen's kappa  undefined: both always gave one and the same class" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "code", "message"),
    [
        (["a.json"], 2, "SECOND.json must be given"),
        ([], 2, "FIRST.json, SECOND.json must be given"),
        (["none.json", "none.json"], 1, "none.json must be a result of `tc-adapters judge classify`. There is no"),
        (["other.json", "other.json"], 1, "with format 'tc_adapters_lens.feature_classes'. Got None"),
        (["a.json", "b.json", "--bootstrap", "5"], 2, "at least 100 bootstrap replicates. Got 5"),
        (["a.json", "b.json", "--seed", "-1"], 2, "--seed must not be negative. Got -1"),
    ],
)
def test_wrong_use_is_one_line(argv, code, message, tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other.json").write_text("{}")
    assert main(["judge", "agree", *argv]) == code
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1
