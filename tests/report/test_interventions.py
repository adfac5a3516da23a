"""The page on interventions: its numbers are the JSON's, what was not measured is left out, and text is inert."""

from __future__ import annotations

import copy
import json
import re

import pytest
from matplotlib import pyplot as plt
from plotly import graph_objects

from tc_adapters_lens.errors import AdapterLensError
from tc_adapters_lens.report.conditions import METRIC, Controls, in_rows, read_conditions
from tc_adapters_lens.report.interventions import conditions_table, draw_interventions, write_interventions_page
from tc_adapters_lens.report.interventions_summary import summary
from tc_adapters_lens.report.label_places import label_places
from tc_adapters_lens.report.rule_words import rule_words
from tc_adapters_lens.report.samples import pieces
from tests.chromium import launched, needs_chromium
from tests.features.builder import HOSTILE
from tests.report.interventions_builder import REMOVED, TEXT, condition, figures, interventions
from tests.report.test_page import Page

DRAWS = [5.6, 5.5, 5.4]
"""Hesitation words per 1,000 tokens of the random draws."""


def page_of(result, out) -> Page:
    write_interventions_page(result, out)
    return Page(out.read_text(encoding="utf-8"))


def sections(page: Page) -> list[str]:
    return [str(attrs["id"]) for tag, attrs in page.tags if tag == "section"]


def cells(page: Page) -> list[tuple[str, float, float | None]]:
    """Metric, value and difference of every figure of the table, in its order."""
    found = [attrs for tag, attrs in page.tags if tag == "td" and "data-value" in attrs]
    number = {True: float, False: lambda _: None}
    return [
        (str(attrs["data-figure"]), float(str(attrs["data-value"])), number[bool(at)](at))
        for attrs in found
        for at in [attrs.get("data-difference")]
    ]


def test_every_figure_of_every_condition_is_in_the_table(tmp_path):
    result = interventions()
    expected = []
    for one in result["conditions"]:
        for key, found in one["measured"].items():
            if key != "per_word" and found is not None:
                change = (one["difference"] or {}).get(key)
                expected.append((key, found["value"], change and change["value"]))
    shown = cells(page_of(result, tmp_path / "index.html"))
    n_folded = 8 * len(METRIC)  # remove, keep, three scales and three negations have controls
    assert len(shown) == len(expected) + n_folded
    for figure in expected:
        assert figure in shown


def test_controls_are_folded_into_their_mean_and_range(tmp_path):
    result = interventions(kinds=("remove",))
    rows = in_rows(read_conditions(result))
    assert [type(row).__name__ for row in rows] == ["Condition"] * 6 + ["Controls"]
    (folded,) = [row for row in rows if isinstance(row, Controls)]
    assert folded.of is rows[5]
    spread = folded.spread("hesitation_per_1000")
    assert spread is not None
    assert spread.value == pytest.approx(sum(DRAWS) / 3)
    assert spread.interval == (min(DRAWS), max(DRAWS))
    difference = folded.difference("hesitation_per_1000")
    assert difference is not None
    assert difference.value == pytest.approx(sum(DRAWS) / 3 - 5.5)
    assert folded.n_sure("hesitation_per_1000") == 0  # 0.1 of 5.5, with intervals of 0.05 * 5.5 to both sides
    assert folded.n_sure("kl") == 3
    text = "".join(page_of(result, tmp_path / "index.html").words)
    assert "120 random features, 3 draws" in text
    assert "5.40 to 5.60" in text


def test_controls_of_another_number_of_features_are_folded_by_themselves():
    result = interventions(kinds=("remove",))
    for one in result["conditions"]:
        if one["draw"] == 2:
            one["n_features"] = 240
    labels = [row.label for row in in_rows(read_conditions(result)) if isinstance(row, Controls)]
    assert labels == ["120 random features, 2 draws", "240 random features, 1 draw"]


def test_controls_of_nothing_come_last():
    result = interventions(kinds=("remove",))
    result["conditions"] = [one for one in result["conditions"] if one["name"] != "remove-hesitation"]
    last = in_rows(read_conditions(result))[-1]
    assert isinstance(last, Controls)
    assert last.of is None


def test_the_summary_says_what_the_sample_shows_and_what_not():
    removed, random, kept, kept_random, negated = summary(read_conditions(interventions()))
    assert removed == (
        "Without the 120 features of hesitation, compared with the replacement model: 1.50 hesitation words per 1,000 "
        "tokens instead of 5.50, 78.0 tokens per response instead of 119 and 79.0% right answers instead of 80.0% "
        "(no difference that the sample shows: \N{MINUS SIGN}5.0 to +3.0 points)."
    )
    assert random == (
        "Without 120 random features in their place, in the mean of 3 draws: 5.50 hesitation words per 1,000 tokens, "
        "119 tokens per response and 79.0% right answers; no difference that the sample shows in any draw."
    )
    assert kept.startswith(
        "With the 120 features of hesitation alone, compared with the hybrid with biases alone: 8.20 "
    )
    assert kept_random == (
        "With 120 random features alone, in the mean of 3 draws: 0.400 hesitation words per 1,000 tokens, 200 tokens "
        "per response and 43.0% right answers; the sample shows a difference in hesitation words in 2 of 3."
    )
    assert negated.startswith(
        "The target with the 120 features of hesitation negated at factor 1, compared with the target: 0.400 "
    )


def test_the_summary_counts_draws_with_a_difference_and_names_degeneration():
    result = interventions(kinds=("remove",))
    for one in result["conditions"]:
        if one["draw"] == 1:
            one["difference"]["response_length"] = {"value": -9.0, "low": -12.0, "high": -6.0}
        if one["name"] == "remove-hesitation":
            one["measured"]["degeneration_rate"] = {"value": 0.31, "low": 0.28, "high": 0.34}
            one["difference"]["degeneration_rate"] = {"value": 0.3, "low": 0.27, "high": 0.33}
    removed, random = summary(read_conditions(result))
    assert removed.endswith("and 31.0% degenerate responses instead of 1.0%.")
    assert random.endswith("; the sample shows a difference in length in 1 of 3.")


def test_without_intervals_nothing_is_said_of_chance(tmp_path):
    result = interventions(spread=None)
    page = page_of(result, tmp_path / "index.html")
    text = "".join(page.words)
    assert "Intervals were left out" in text
    assert "the sample shows" not in text
    assert "bold" not in text
    assert not any("sure" in str(attrs.get("class", "")).split() for _, attrs in page.tags)
    assert all(
        not trace["error_y"]["visible"]
        for figure in page.figures.values()
        for trace in figure["data"]
        if "error_y" in trace
    )


def test_differences_are_bold_where_the_interval_leaves_out_0(tmp_path):
    result = interventions(kinds=("remove",))
    sure = 0
    for one in result["conditions"]:
        for found in (one["difference"] or {}).values():
            sure += not found["low"] <= 0 <= found["high"]
    page = page_of(result, tmp_path / "index.html")
    assert [attrs.get("class") for _, attrs in page.tags].count("change sure") == sure > 0


@pytest.mark.parametrize(
    ("change", "left_out", "there"),
    [
        (lambda: interventions(kinds=("remove", "keep", "scale")), {"dose-negate"}, {"dose-scale"}),
        (lambda: interventions(kinds=("remove", "negate")), {"dose-scale"}, {"dose-negate", "accuracy"}),
        (lambda: interventions(answers=False), {"accuracy"}, {"dose-scale", "samples"}),
        (lambda: interventions(n_samples=0), {"samples"}, {"groups"}),
        (lambda: interventions(kinds=(), groups=()), {"groups", "dose-scale", "dose-negate"}, {"hesitation"}),
        (lambda: interventions(kinds=("remove",), n_draws=0), {"dose-scale"}, {"conditions"}),
    ],
)
def test_what_has_no_data_has_no_heading(change, left_out, there, tmp_path):
    page = page_of(change(), tmp_path / "index.html")
    found = sections(page)
    assert not left_out & {*found}
    assert there <= {*found}
    ids = {attrs["id"] for _, attrs in page.tags if "id" in attrs}
    linked = [str(attrs["href"])[1:] for tag, attrs in page.tags if tag == "a"]
    assert linked == found
    assert {*linked} <= ids
    for figure in page.figures.values():
        assert figure["data"]
        graph_objects.Figure(figure)


def test_one_condition_alone(tmp_path):
    result = interventions(kinds=(), groups=(), n_samples=1)
    result["conditions"] = [one for one in result["conditions"] if one["name"] == "target"]
    result["samples"][0]["responses"] = {"target": result["samples"][0]["responses"]["target"]}
    page = page_of(result, tmp_path / "index.html")
    text = "".join(page.words)
    assert "Target: 5.70 hesitation words per 1,000 tokens, 121 tokens per response and 81.0% right answers." in text
    assert sections(page) == ["conditions", "hesitation", "accuracy", "samples", "provenance"]
    assert "KL to the target" not in text
    assert "Δ" not in text
    draw_interventions(result, tmp_path / "picture.png")


def test_accuracy_that_only_some_conditions_have(tmp_path):
    result = interventions()
    for one in result["conditions"]:
        if one["kind"] in ("negate", "keep"):
            one["measured"]["accuracy"] = None
            one["difference"]["accuracy"] = None
    page = page_of(result, tmp_path / "index.html")
    assert "dose-negate-accuracy" not in page.figures
    assert "dose-scale-accuracy" in page.figures
    assert len(page.figures["accuracy"]["layout"]["yaxis"]["ticktext"]) == 7


def test_points_and_bars_are_the_conditions(tmp_path):
    result = interventions()
    page = page_of(result, tmp_path / "index.html")
    points = {
        trace["name"]: trace for trace in page.figures["hesitation-length"]["data"] if trace["mode"] == "markers+text"
    }
    named = [one for one in result["conditions"] if one["control_of"] is None]
    assert set(points) == {one["label"] for one in named}
    for one in named:
        point, x, y = (
            points[one["label"]],
            one["measured"]["hesitation_per_1000"],
            one["measured"]["response_length"],
        )
        assert (point["x"], point["y"]) == ([x["value"]], [y["value"]])
        assert point["error_x"]["array"] == [pytest.approx(x["high"] - x["value"])]
    assert points["hesitation x 0.5"]["text"] == ["\N{MULTIPLICATION SIGN}0.5"]
    bars = [trace for trace in page.figures["accuracy"]["data"] if trace["type"] == "bar"]
    assert [bar["x"] for bar in bars] == [
        [0.31],
        [0.42],
        [0.81],
        [0.80],
        [0.43],
        [0.79],
        [pytest.approx(0.79)],
        [0.45],
        [pytest.approx(0.43)],
    ]
    dots = next(trace for trace in page.figures["accuracy"]["data"] if trace["type"] == "scatter")
    assert dots["x"] == [0.78, 0.79, 0.80]


def test_curves_go_through_the_unchanged_model(tmp_path):
    page = page_of(interventions(), tmp_path / "index.html")
    scaled = {trace["name"]: trace for trace in page.figures["dose-scale-hesitation_per_1000"]["data"]}
    assert scaled["hesitation"]["x"] == [0, 0.5, 1, 1.5, 2]
    assert scaled["hesitation"]["y"] == pytest.approx([REMOVED, 2.4, 5.5, 6.4, 8.4])
    assert scaled["replacement model"]["y"] == [5.5, 5.5]
    negated = page.figures["dose-negate-hesitation_per_1000"]
    lines = [trace for trace in negated["data"] if trace["name"] == "random features"]
    assert [line["y"] for line in lines] == [[5.7, value, value, value] for value in DRAWS]
    assert negated["layout"]["shapes"][0]["x0"] == 0


def test_two_groups_differ_in_colour(tmp_path):
    result = interventions(groups=("hesitation", "template"))
    styles = {one.group: one.style.colour for one in read_conditions(result) if one.control_of is None}
    assert styles["hesitation"] != styles["template"]
    page = page_of(result, tmp_path / "index.html")
    assert {"hesitation", "template", "random features"} <= {
        trace["name"] for trace in page.figures["dose-negate-response_length"]["data"]
    }


def test_pieces_of_a_text_are_the_text():
    text = "a\tWait\u200b b\n" + "c" * 4
    found = pieces(text, [[2, 6]], 9)
    assert [(one.text, one.is_mark, one.is_hesitation, one.is_tail) for one in found] == [
        ("a", False, False, False),
        ("⇥", True, False, False),
        ("Wait", False, True, False),
        ("U+200B", True, False, False),
        (" b", False, False, False),
        ("↵", True, False, True),
        ("cccc", False, False, True),
    ]
    assert [one.ends_line for one in found].count(True) == 1
    assert pieces("") == ()
    assert [one.is_tail for one in pieces("ab", [], 0)] == [True]


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        ({}, ""),
        ({"promotes": ["wait", "hmm"], "top": 10}, "one of wait, hmm among the 10 most promoted tokens"),
        (
            {"built_in": "template", "template": ["user", "think"], "share": 0.8},
            "the rule template; at least 80% of the highest examples at one template position (user, think)",
        ),
        ({"or": [{"where": "domain:math >= 0.8"}, {"given": "a.json"}]}, "domain:math >= 0.8 or read from a.json"),
        (
            {"minus": [{"or": [{"where": "a > 1"}, {"where": "b > 1"}]}, {"name": "x", "rule": {"named": ["0.1"]}}]},
            "(a > 1 or b > 1) but not x (named one by one)",
        ),
        ({"graph": "g.json", "top_nodes": 50}, "the 50 most influential features of the attribution graph g.json"),
        ({"like": {"a": [1, None]}, "seed": 3}, 'like {"a": [1, null]}; seed 3'),
        ({"promotes": {"odd": 1}}, 'promotes {"odd": 1}'),
    ],
)
def test_rules_in_words(rule, said):
    assert rule_words(rule) == said


def test_names_of_points_keep_apart():
    points = [(50.0, 50.0), (54.0, 50.0), (190.0, 50.0)]
    places = label_places(points, [40.0, 40.0, 40.0], 12.0, (200.0, 100.0))
    assert len({places[0], places[1]}) == 2
    assert places[2][0] == -1  # to the left, where there is room


def hostile(result):
    """The result with texts that must be shown and never run, wherever text comes from outside."""
    result = copy.deepcopy(result)
    bad = "".join(HOSTILE) + " %{x} $y$"
    result["pair"] |= {"base_name": bad, "target_name": bad, "base_revision": bad}
    result |= {"adapters": bad, "versions": {bad: bad}, "hesitation_words": list(HOSTILE)}
    result["problems"]["source"] = bad
    result["groups"][0] |= {"name": bad, "rule": {bad: [bad], "where": bad}}
    names = {one["name"]: f"{at} {bad}" for at, one in enumerate(result["conditions"])}
    for one in result["conditions"]:
        one |= {"name": names[one["name"]], "label": bad, "against": names.get(one["against"])}
        one |= {key: one[key] and one[key].replace("hesitation", bad) for key in ("group", "control_of")}
        one["measured"]["per_word"] = {word: {"value": 1.0, "low": None, "high": None} for word in HOSTILE}
    for sample in result["samples"]:
        sample |= {"question": bad, "answer": bad}
        sample["responses"] = {
            names[name]: one | {"text": bad, "parsed": bad, "truncated": 30, "hesitations": [[3, 9], [28, 40]]}
            for name, one in sample["responses"].items()
        }
    return result


def test_text_from_outside_is_inert(tmp_path):
    page = page_of(hostile(interventions()), tmp_path / "index.html")
    assert [tag for tag, _ in page.tags].count("script") == 3
    assert "img" not in {tag for tag, _ in page.tags}
    assert not any(name.startswith("on") for _, attrs in page.tags for name in attrs)
    text = "".join(page.words)
    for wanted in ("<script>window.hacked=1</script>", "{{7*7}}${7*7}", "U+202E", "U+2066", "U+0000", "&lt;b&gt;"):
        assert wanted in text
    assert not set(text) & {*"\u202e\u2066\u0000\u202c"}

    def labels(value, key=""):
        if isinstance(value, dict):
            for name, inner in value.items():
                yield from labels(inner, name)
        elif isinstance(value, list):
            for inner in value:
                yield from labels(inner, key)
        elif isinstance(value, str) and key != "legendgroup":  # never drawn
            yield value

    for label in labels(page.figures):
        assert set(re.findall(r"<[^>]*>?", label)) <= {"<br>"}, label
        assert "%{" not in label


def test_the_page_needs_nothing_but_itself_and_its_plots_are_described(tmp_path):
    page = page_of(interventions(), tmp_path / "index.html")
    policy = next(attrs["content"] for _, attrs in page.tags if attrs.get("http-equiv") == "Content-Security-Policy")
    assert str(policy).startswith("default-src 'none'")
    for tag, attrs in page.tags:
        for name in ("src", "href", "action", "data"):
            assert str(attrs.get(name, "#")).startswith(("#", "data:,")), (tag, attrs)
    plots = [attrs for _, attrs in page.tags if attrs.get("class") == "plot"]
    assert {str(attrs["data-figure"]) for attrs in plots} == page.figures.keys()
    assert all(attrs["role"] == "img" and attrs["aria-label"] for attrs in plots)
    ids = [str(attrs["id"]) for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids))


def test_the_same_result_gives_the_same_bytes_and_is_not_changed(tmp_path):
    result = interventions()
    before = json.dumps(result)
    for name in ("a.html", "b.html"):
        write_interventions_page(result, tmp_path / name)
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()
    assert json.dumps(result) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.html", "b.html"]


def test_a_page_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(AdapterLensError) as caught:
        write_interventions_page(interventions(), tmp_path / "file" / "index.html")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("make", [interventions, lambda: interventions(answers=False, spread=None)])
def test_the_picture_shows_the_conditions(make, tmp_path, monkeypatch):
    drawn = []
    close = plt.close
    monkeypatch.setattr(plt, "close", drawn.append)
    result = make()
    draw_interventions(result, tmp_path / "picture.png")
    (figure,) = drawn
    points, *bars = figure.axes
    assert len(bars) == (result["conditions"][0]["measured"]["accuracy"] is not None)
    assert (points.get_xlabel(), points.get_ylabel()) == (
        "hesitation words per 1,000 tokens",
        "response length, tokens",
    )
    at = {text.get_text(): text.xy for text in points.texts}
    assert at["without hesitation"] == (REMOVED, 78.0)
    assert len(at) == len([one for one in result["conditions"] if one["control_of"] is None])
    for axis in bars:
        assert [bar.get_width() for bar in axis.patches] == pytest.approx([31, 42, 81, 80, 43, 79, 79, 45, 43])
    assert (tmp_path / "picture.png").stat().st_size > 10_000
    close(figure)


def test_hostile_names_in_the_picture(tmp_path):
    result = hostile(interventions(kinds=("remove",)))
    for one in result["conditions"]:
        one["label"] = "$\\frac{" + one["label"]
    draw_interventions(result, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").exists()


def test_a_figure_of_zero_and_a_single_point(tmp_path):
    result = interventions(kinds=(), groups=(), n_samples=0)
    zero = figures(0.0, 0.0, 0.0, None, None)
    result["conditions"] = [condition("target", "reference", zero, None, None)]
    page = page_of(result, tmp_path / "index.html")
    low, high = page.figures["hesitation-length"]["layout"]["xaxis"]["range"]
    assert low < 0 < high
    draw_interventions(result, tmp_path / "picture.png")


def test_the_terminal_table_folds_controls_and_stars_differences():
    result = interventions(kinds=("remove", "keep"))
    head, line, *rows, note = conditions_table(result).splitlines()
    assert set(line) == {"-"}
    assert [row.split()[0] for row in rows] == [
        "base", "hybrid", "target", "replacement", "hybrid", "without", "120", "only", "120",
    ]  # fmt: skip
    assert rows[5].split()[2:] == ["79.0%", "78.0*", "1.50*", "1.0%", "0.310*"]
    assert rows[6].split()[-5:] == ["79.0%", "119", "5.50", "1.0%", "0.0500"]
    assert note.startswith("* ")
    assert "*" not in conditions_table(interventions(spread=None))
    assert "accuracy" in head
    assert "accuracy" not in conditions_table(interventions(answers=False))


@needs_chromium
def test_responses_are_chosen_and_draws_unfolded(tmp_path):
    write_interventions_page(interventions(), tmp_path / "index.html")
    write_interventions_page(hostile(interventions(kinds=("remove",))), tmp_path / "hostile.html")
    with launched() as browser:
        page = browser.new_page()
        failed = []
        page.on("pageerror", lambda error: failed.append(str(error)))
        page.on("console", lambda message: failed.append(message.text) if message.type == "error" else None)
        page.goto(f"file://{tmp_path}/index.html")
        left, right = page.locator("#left"), page.locator("#right")
        assert left.locator("b").inner_text() == "replacement model"
        assert right.locator("b").inner_text() == "without hesitation"
        assert left.locator("mark").all_inner_texts() == ["Wait", "But"]
        shown = left.locator(".passage").evaluate("node => node.textContent")
        assert shown.replace("↵", "\n").startswith(TEXT)
        page.get_by_label("Right").select_option(label="target")
        assert right.locator("b").inner_text() == "target"
        assert right.locator(".here").inner_text() == "degenerate from here"
        assert right.locator(".tail").inner_text().strip().startswith("and so on")
        page.get_by_role("button", name="Next").press("Enter")
        assert page.locator("#question .passage").inner_text() == "What is 17 + 25 - 7?"
        assert left.locator(".passage").inner_text().endswith("It is 31.")
        assert page.get_by_role("button", name="Next").is_disabled()
        assert page.locator("tr.draw:visible").count() == 0
        page.locator(".unfold").first.press("Enter")
        assert page.locator("tr.draw:visible").count() == 3

        page.goto(f"file://{tmp_path}/hostile.html")
        page.locator("#choose-right").press("ArrowDown")
        assert page.evaluate("window.hacked") is None
        shown = page.locator("#right .passage").evaluate("node => node.textContent")
        assert "<script>window.hacked=1</script>" in shown.replace("degenerate from here", "")
        assert failed == []

        plain = browser.new_context(java_script_enabled=False).new_page()
        plain.goto(f"file://{tmp_path}/index.html")
        assert plain.locator("#left mark").all_inner_texts() == ["Wait", "But"]
        assert plain.locator("tr.draw:visible").count() == 24
        assert plain.locator(".choices").is_hidden()
