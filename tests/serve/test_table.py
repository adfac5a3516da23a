"""Filters and orders of the list, beside loops over rows."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest

from tc_adapters_lens.errors import ConfigError
from tc_adapters_lens.serve.query import Query, parse_query
from tc_adapters_lens.serve.table import Table, bin_counts, frequency_bins, lower

TEXTS = [" wait", " WAIT", " the", "é", "İ", "<b>", " awaiting"]
N = 60


def table(seed: int = 0) -> Table:
    rng = np.random.default_rng(seed)
    n_active = rng.integers(0, 4, N)
    share = np.where(n_active > 0, rng.random(N), np.nan).astype(np.float32)
    numeric = {
        "layer": np.repeat(np.arange(3), N // 3).astype(np.int32),
        "feature": np.tile(np.arange(N // 3), 3).astype(np.int32),
        "n_active": n_active,
        "frequency": n_active / 1000,
        "mean": rng.random(N),
        "max": rng.integers(0, 5, N).astype(np.float32),
        "domain:math": share,
        "score": np.where(rng.random(N) < 0.5, rng.random(N), np.nan),
    }
    classes = np.array([["output", "input", None][index % 3] for index in range(N)], dtype=object)
    described = np.array([[" Waits", "İ <b>wait</b>", None, "the"][index % 4] for index in range(N)], dtype=object)
    again = np.array(["awaits" if index == 7 else None for index in range(N)], dtype=object)
    promoted = rng.integers(0, len(TEXTS), (N, 20)).astype(np.int32)
    texts = {"class": classes, "description": described, "description_again": again}
    return Table(numeric, texts, ["domain:math"], promoted, TEXTS)


def never(text: str, match_case: bool) -> np.ndarray:
    raise AssertionError("there is no text to search for")


def naive(of: Table, query: Query) -> list[int]:
    """Rows by the words of Query's documentation, one after another."""
    kept = []
    for row in range(N):
        column = {name: values[row].item() for name, values in of.numeric.items()}
        texts = [TEXTS[token] for token in of.promoted[row, : query.promoted_n]]
        part = query.promoted if query.match_case else lower(query.promoted)
        said = [of.texts[name][row] or "" for name in ("description", "description_again")]
        sought = query.description if query.match_case else lower(query.description)
        passes = [
            all(least <= column[name] <= most for name, least, most in query.labels),
            not sought or any(sought in (text if query.match_case else lower(text)) for text in said),
            query.dead or column["n_active"] > 0,
            query.min_frequency <= column["frequency"] <= query.max_frequency,
            not query.layers or any(first <= column["layer"] <= last for first, last in query.layers),
            all(column[name] >= least for name, least in query.shares),
            not query.classes or of.texts["class"][row] in query.classes,
            not part or any(part in (text if query.match_case else lower(text)) for text in texts),
        ]
        if all(passes):
            kept.append(row)
    values = of.numeric[query.sort]
    there = [row for row in kept if not math.isnan(values[row])]
    there.sort(key=lambda row: ((-1 if query.descending else 1) * values[row].item(), row))
    return there + [row for row in kept if math.isnan(values[row])]


@pytest.mark.parametrize(
    "query",
    [
        Query(),
        Query(dead=True, sort="max", descending=True),
        Query(dead=True, sort="score", descending=False),
        Query(dead=True, sort="score", descending=True),
        Query(sort="feature", descending=False),
        Query(layers=((0, 0), (2, 7))),
        Query(min_frequency=0.002),
        Query(min_frequency=0.001, max_frequency=0.002, dead=True),
        Query(shares=(("domain:math", 0.5),), dead=True),
        Query(classes=("output",)),
        Query(classes=("output", "input"), layers=((1, 1),)),
        Query(labels=(("score", 0.5, math.inf),)),
        Query(labels=(("score", -math.inf, 0.5), ("layer", 1, 2)), dead=True),
        Query(labels=(("score", -math.inf, math.inf),), dead=True),
        Query(description="WAIT", dead=True),
        Query(description="wait", dead=True, match_case=True),
        Query(description="<b>", labels=(("score", 0.1, 0.9),), classes=("input",), dead=True),
        Query(promoted="wait", promoted_n=2),
        Query(promoted="WAIT", promoted_n=2),
        Query(promoted="WAIT", promoted_n=2, match_case=True),
        Query(promoted="<b>", promoted_n=1, shares=(("domain:math", 0.2),), sort="domain:math"),
        Query(promoted="nothing has this"),
    ],
)
def test_rows_are_those_of_a_loop(query):
    of = table()
    assert of.rows(query, never).tolist() == naive(of, query)
    assert of.rows(query, never).tolist() == naive(of, query), "the kept answer"


def test_text_is_one_more_filter():
    of = table()
    asked = []

    def search(text, match_case):
        asked.append((text, match_case))
        return np.arange(N) % 2 == 0

    found = of.rows(Query(text="so", match_case=True, layers=((1, 1),), dead=True), search)
    assert sorted(found.tolist()) == list(range(20, 40, 2))
    assert asked == [("so", True)]


def test_a_page_has_json_values():
    of = table()
    rows = np.array([5, 0])
    page = of.page(rows, ["layer", "feature", "domain:math", "class"], 2)
    for row, (layer, feature, share, label, tokens) in zip(rows, page, strict=True):
        assert (layer, feature) == (of.numeric["layer"][row], of.numeric["feature"][row])
        expected = of.numeric["domain:math"][row]
        assert share is None if np.isnan(expected) else share == pytest.approx(expected)
        assert label == of.texts["class"][row]
        assert tokens == [TEXTS[token] for token in of.promoted[row, :2]]


def test_frequencies_fall_in_quarters_of_a_decade():
    frequencies = np.array([0.0, 1e-9, 1e-8, 1.7e-8, 1.8e-8, 0.099, 0.101, 1.0])
    # 1e-8 to 1.78e-8 is the first bin; 0.1 is 7 decades, so 28 bins, up; what lies outside goes to the ends.
    assert frequency_bins(frequencies).tolist() == [-1, 0, 0, 0, 1, 27, 28, 31]
    counts = bin_counts(frequency_bins(frequencies))
    assert (len(counts), sum(counts), counts[0]) == (32, 7, 3)


def test_lower_is_of_ascii_only():
    assert lower("ÀZé İ Wait") == "Àzé İ wait"


def test_an_address_becomes_a_query():
    items = [
        ("layers", "0-3, 7"),
        ("min_frequency", "1e-4"),
        ("share", "0.5,domain:math"),
        ("share", "0.25,template:<think>+1,x"),
        ("label", "score_top,0.8,"),
        ("label", "a,b,,-1e-2"),
        ("label", "score_top, ,"),
        ("class", "output"),
        ("description", "doubts <b>"),
        ("promoted", " wait"),
        ("promoted_n", "5"),
        ("case", "1"),
        ("sort", "-max"),
        ("feature", "3.1"),
    ]
    shares = ["domain:math", "template:<think>+1,x"]
    assert parse_query(items, ["max", "frequency"], shares, ["score_top", "a,b"]) == Query(
        layers=((0, 3), (7, 7)),
        min_frequency=1e-4,
        shares=(("domain:math", 0.5), ("template:<think>+1,x", 0.25)),
        labels=(
            ("score_top", 0.8, math.inf),
            ("a,b", -math.inf, -0.01),
            ("score_top", -math.inf, math.inf),
        ),
        classes=("output",),
        description="doubts <b>",
        promoted=" wait",
        promoted_n=5,
        match_case=True,
        sort="max",
    )
    assert parse_query([], ["frequency"], []) == Query()


def test_a_table_without_labels_says_so():
    with pytest.raises(ConfigError, match="label names a column, of which there is none here"):
        parse_query([("label", "score_top,0,1")], ["frequency"], [])


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("layers", "a-b", "layers must be like 3 or 0-5,7. Got 'a-b'."),
        ("layers", "9" * 400, "layers must be like"),
        ("min_frequency", "nan", "min_frequency must be a number from 0. Got 'nan'."),
        ("max_frequency", "-1", "max_frequency must be a number from 0."),
        ("share", "0.5,domain:mth", "Did you mean 'domain:math'?"),
        ("share", "x,domain:math", "share must be a number from 0. Got 'x'."),
        ("label", "score_tup,0,1", "label must name one of score_top. Got 'score_tup'. Did you mean 'score_top'?"),
        ("label", "score_top", "label must be like score_top,0.5,1, where 0.5 or 1 may be left out. Got 'score_top'."),
        ("label", "score_top,nan,", "label must have numbers as bounds. Got 'score_top,nan,'."),
        ("label", "score_top,,x", "label must have numbers as bounds."),
        ("description", "x" * 1001, "description must have at most 1000 characters. Got 1001."),
        ("sort", "-frequenzy", "Did you mean 'frequency'?"),
        ("promoted_n", "21", "promoted_n must be a whole number from 1 to 20. Got '21'."),
        ("text", "x" * 1001, "text must have at most 1000 characters. Got 1001."),
    ],
)
def test_a_wrong_value_is_one_line(name, value, says):
    with pytest.raises(ConfigError) as caught:
        parse_query([(name, value)], ["frequency"], ["domain:math"], ["score_top"])
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_two_hundred_thousand_rows_take_a_fraction_of_a_second():
    rng = np.random.default_rng(0)
    n, texts = 200_000, [f" w{index}" for index in range(50_000)]
    numeric = {
        "layer": np.repeat(np.arange(25), n // 25),
        "feature": np.tile(np.arange(n // 25), 25),
        "n_active": rng.integers(1, 9, n),
        "frequency": rng.random(n),
        "max": rng.random(n),
    }
    of = Table(numeric, {}, [], rng.integers(0, len(texts), (n, 20)).astype(np.int32), texts)
    took = []
    for query in (Query(sort="max", layers=((3, 9),)), Query(promoted="w77"), Query(min_frequency=0.5)):
        start = time.perf_counter()
        of.rows(query, never)
        took.append(time.perf_counter() - start)
    assert max(took) < 1.0, f"{took} s; 0.2 is wanted of a machine that has nothing else to do"
