"""The page: its numbers are the evaluation's, what comes from files is inert, and it needs nothing but itself."""

from __future__ import annotations

import json
import math
import re
from html.parser import HTMLParser

import pytest
from plotly import graph_objects

from tc_adapters_lens.report.page import SECTIONS, write_report
from tc_adapters_lens.report.plots import label, scale
from tc_adapters_lens.report.plots_account import steps
from tc_adapters_lens.report.runs import read_runs
from tests.report.builder import (
    BASE_KL,
    HYBRID_KL,
    bare,
    estimate,
    evaluation,
    metrics,
    toy_config,
    write_run,
)

EVIL = "<script>alert(1)</script>\"' %{x} $y$ &lt;"


class Page(HTMLParser):
    """What a browser makes of a page: elements, scripts' text, tables' figures."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.words: list[str] = []
        self.rows: list[tuple[str, dict[str, float]]] = []
        self._open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        named = dict(attrs)
        self.tags.append((tag, named))
        if tag not in ("meta", "link", "rect", "br"):
            self._open.append(tag)
        if tag == "script":
            self.scripts.append("")
        if tag == "tr":
            self.rows.append(("", {}))
        if "data-value" in named:
            self.rows[-1][1][str(named["data-figure"])] = float(str(named["data-value"]))

    def handle_endtag(self, tag):
        if tag in self._open:
            while self._open.pop() != tag:
                pass

    def handle_data(self, data):
        if self._open[-1:] == ["script"]:
            self.scripts[-1] += data
        elif self._open[-1:] != ["style"]:
            self.words.append(data)
            if self._open[-1:] == ["th"] and self.rows:
                self.rows[-1] = (self.rows[-1][0] + data, self.rows[-1][1])

    @property
    def figures(self) -> dict:
        return json.loads(self.scripts[0])


def page_of(runs, out) -> tuple[Page, dict]:
    result = write_report(runs, out)
    return Page(out.read_text(encoding="utf-8")), result


@pytest.fixture
def three(tmp_path):
    """Two sparsity weights with bridging, and one without."""
    specs = {
        "sparse": evaluation(0.3, 0.25, 0.135, config=toy_config(0.1)),
        "dense": evaluation(5.0, 0.017, 0.0356, config=toy_config(0.0009)),
        "plain": evaluation(4.8, 0.016, 0.035, config=toy_config(0.0009, bridging_weight=0.0), partial=4.0),
    }
    return [write_run(tmp_path / name, found) for name, found in specs.items()]


def test_numbers_on_the_page_are_those_of_the_evaluations(three, tmp_path):
    page, result = page_of(three, tmp_path / "report.html")
    shown = {name: figures for name, figures in page.rows if figures}
    dense = json.loads((tmp_path / "dense" / "evaluation.json").read_text())
    replacement = dense["models"]["replacement"]
    assert shown["dense"] == {
        "l0": 5.0,
        "top1_error": 0.0356,
        "top1_error_sure": replacement["sure"]["top1_error"]["value"],
        "top1_error_unsure": replacement["unsure"]["top1_error"]["value"],
        "kl": 0.017,
        "kl_sure": replacement["sure"]["kl"]["value"],
        "kl_unsure": replacement["unsure"]["kl"]["value"],
        "cross_entropy": replacement["cross_entropy"]["value"],
        "loss_recovered": replacement["loss_recovered"]["value"],
        "nmse": 0.094,
        "dead": 1661,
    }
    assert (shown["base"]["kl"], shown["hybrid"]["kl"], shown["target"]["kl"]) == (BASE_KL, HYBRID_KL, 0)
    assert "loss_recovered" not in shown["hybrid"]
    assert json.loads((tmp_path / "report.json").read_text(encoding="utf-8")) == result
    by_label = {row["label"]: row for row in result["models"]}
    for name, figures in shown.items():
        assert {key: by_label[name][key]["value"] for key in figures} == figures
    text = "".join(page.words)
    for written in ("1.87 nats", "35.50%", "0.300 to 5.00", "0.250 to 0.0170 nats", "24,312 response tokens"):
        assert written in text


def test_rows_go_from_base_to_target_and_adapters_from_sparse_to_dense(three, tmp_path):
    _, result = page_of(three, tmp_path / "report.html")
    models = [row["model"] for row in result["models"]]
    assert models[:4] == ["base", "reverse", "hybrid", "norm_refit"]
    assert models[-2:] == ["skyline", "target"]
    assert [row["label"] for row in result["models"] if row["model"] == "replacement"] == ["sparse", "plain", "dense"]


def test_a_reference_that_the_runs_measured_differently_is_shown_for_each(three, tmp_path):
    other = json.loads((three[0] / "evaluation.json").read_text())
    other["models"]["skyline"]["kl"] = estimate(0.02)
    (three[0] / "evaluation.json").write_text(json.dumps(other))
    _, result = page_of(three, tmp_path / "report.html")
    found = {row["label"]: row["kl"]["value"] for row in result["models"] if row["model"] == "skyline"}
    assert found == {"skyline, sparse": 0.02, "skyline, plain": 0.012}


@pytest.mark.parametrize("n_layers", [1, 4, 28])
def test_every_figure_is_valid_plotly(n_layers, tmp_path):
    weights = (0.1, 0.02, 0.001)
    runs = [
        write_run(tmp_path / f"run{i}", evaluation(0.3 * 3**i, config=toy_config(weight), n_layers=n_layers))
        for i, weight in enumerate(weights)
    ]
    panels = [panel for make in SECTIONS for panel in make(read_runs(runs)).panels]
    assert len({panel.id for panel in panels}) == len(panels) >= 20
    for panel in panels:
        graph_objects.Figure(panel.figure)
        assert panel.caption
        assert panel.description


def test_points_and_curves_are_those_of_the_evaluation(three, tmp_path):
    page, _ = page_of(three, tmp_path / "report.html")
    points = {trace["name"]: trace for trace in page.figures["tradeoff-kl"]["data"] if trace["mode"] == "markers"}
    assert points["dense"]["x"] == [5.0]
    assert points["dense"]["y"] == [0.017]
    assert points["dense"]["error_y"]["array"] == [pytest.approx(0.017 * 0.04)]
    partial = json.loads((tmp_path / "dense" / "evaluation.json").read_text())["partial_kl"]
    lines = [trace for trace in page.figures["partial-first"]["data"] if trace["name"] == "dense"]
    assert lines[0]["x"] == [1, 2, 3, 4]
    assert lines[0]["y"] == [one["value"] for one in partial["first"][1:]]
    assert lines[1]["y"] == [0.017, 0.017]  # all layers replaced


def test_training_curves(tmp_path):
    rows = metrics(0.044, 1.3, n_rows=900, local=450)
    torn = write_run(tmp_path / "run", rows=rows) / "metrics.jsonl"
    torn.write_text(torn.read_text() + '{"step": 90')
    page, _ = page_of([tmp_path / "run"], tmp_path / "report.html")
    kl, l0 = (page.figures[f"training-{name}"]["data"][0] for name in ("kl", "l0"))
    assert len(kl["x"]) == 450 / 2  # blocks of 2
    assert kl["y"][0] == pytest.approx((rows[450]["losses/kl"] + rows[451]["losses/kl"]) / 2)
    assert kl["x"][0] == rows[451]["details/n_training_samples"]
    assert len(l0["x"]) == 900 / 3
    assert "one by one" in "".join(page.words)


def test_a_loss_that_was_not_computed_is_not_drawn(tmp_path):
    rows = [row | {"losses/bridging_to_target": 0.0, "losses/bridging_to_replacement": 0.0} for row in metrics(0.05, 1)]
    page, _ = page_of([write_run(tmp_path / "run", rows=rows)], tmp_path / "report.html")
    assert {"training-kl", "training-nmse", "training-l0"} <= page.figures.keys()
    assert "training-bridging" not in page.figures


def test_waterfall_goes_from_the_base_to_zero(tmp_path):
    (run,) = read_runs([write_run(tmp_path / "run")]).ordered
    found = steps(run)
    assert [step.name for step in found] == [
        "base", "+ embedding", "+ attention", "+ norms", "+ unembedding", "hybrid", "adapters", "left",
    ]  # fmt: skip
    assert [step.after for step in found[:6]] == pytest.approx([BASE_KL, 4.9, 3.1, 3.25, HYBRID_KL, HYBRID_KL])
    changes = [step.after - step.before for step in found if not step.total]
    assert BASE_KL + sum(changes) == pytest.approx(0.044)
    assert [step.sign for step in found if not step.total] == ["-", "-", "+", "-", "-"]


def test_everything_optional_left_out(tmp_path):
    page, result = page_of([write_run(tmp_path / "run", bare(), [])], tmp_path / "report.html")
    text = "".join(page.words)
    assert text.count("Not measured") == 3  # partial replacement, bridging, account
    assert "no run has a metrics.jsonl" in text
    assert "Intervals were left out" in text
    assert [row["label"] for row in result["models"]] == ["hybrid", "run", "target"]
    for figure in page.figures.values():
        graph_objects.Figure(figure)


@pytest.mark.parametrize("figure", ["l0", "kl"])
def test_zero_is_drawn_on_a_linear_axis(figure, tmp_path):
    found = evaluation(0.0) if figure == "l0" else evaluation(kl=0.0)
    page, _ = page_of([write_run(tmp_path / "run", found)], tmp_path / "report.html")
    layout = page.figures["tradeoff-kl"]["layout"]
    assert layout["xaxis" if figure == "l0" else "yaxis"]["type"] == "linear"
    assert layout["yaxis" if figure == "l0" else "xaxis"]["type"] == "log"


@pytest.mark.parametrize(
    ("values", "inside"),
    [
        ((0.01, 5), [0.01, 0.1, 1]),
        ((0.02, 0.2), [0.02, 0.05, 0.1, 0.2]),
        ((0.09, 0.19), [0.09, 0.1, 0.12, 0.14, 0.16, 0.18]),
    ],
)
def test_ticks_of_a_logarithmic_axis_are_round(values, inside):
    ticks = scale(values)["tickvals"]
    assert [tick for tick in ticks if values[0] <= tick <= values[1]] == inside


def test_firing_frequencies_leave_out_bins_that_no_run_has(tmp_path):
    runs = [write_run(tmp_path / name, evaluation(l0)) for name, l0 in (("one", 1.0), ("two", 2.0))]
    page, _ = page_of(runs, tmp_path / "report.html")
    heatmap = page.figures["frequency-0"]["data"][0]
    assert [len(layer) for layer in heatmap["z"]] == [8] * 4  # the last of 9 bins is empty
    assert heatmap["z"][0][:2] == pytest.approx([math.log10(300), math.log10(90)])
    assert heatmap["text"][0][1] == "layer 0, 0.01% to 0.03% of tokens<br>90 (86 to 94) features"
    assert page.figures["frequency-0"]["layout"]["xaxis"]["ticktext"][:2] == ["never", "0.01%"]


def test_names_of_close_lines_stand_on_both_sides(tmp_path):
    found = evaluation()
    found["models"]["reverse"]["kl"] = estimate(HYBRID_KL * 1.1)
    page, _ = page_of([write_run(tmp_path / "run", found)], tmp_path / "report.html")
    places = {trace["name"]: trace["textposition"] for trace in page.figures["tradeoff-kl"]["data"] if "text" in trace}
    assert places["base with the target's MLPs"] == "top right"
    assert places["hybrid"] == "bottom right"


def test_names_from_files_are_inert(tmp_path):
    """Run names, models' names and data paths reach the page as text, in HTML, in scripts and in plotly's labels."""
    found = evaluation()
    bad = "</script><script>alert(2)</script><img src=x onerror=alert(3)>\"'"
    found["pair"] |= {"base_name": bad, "target_name": bad}
    found |= {"tokens": bad, "adapters": bad, "versions": {bad: bad}}
    found["recipe"]["config"]["data"]["path"] = bad
    found["account"]["parts"][0] = bad
    for side in ("alone", "without"):
        found["account"][side][bad] = found["account"][side].pop("embedding")
    for order in ("cumulative", "mlps_last"):
        found["account"][order][0]["added"] = bad
    other = write_run(tmp_path / "other" / EVIL.split("/")[1], evaluation(2.0))  # so that labels need both parts
    page, result = page_of([write_run(tmp_path / EVIL, found), other], tmp_path / "report.html")
    assert [tag for tag, _ in page.tags].count("script") == 3
    assert "img" not in {tag for tag, _ in page.tags}
    assert not any(name.startswith("on") for _, attrs in page.tags for name in attrs)
    assert EVIL in "".join(page.words)
    assert bad in "".join(page.words)
    assert result["runs"][0]["label"] == EVIL

    def labels(value, key=""):
        if isinstance(value, dict):
            for name, inner in value.items():
                yield from labels(inner, name)
        elif isinstance(value, list):
            for inner in value:
                yield from labels(inner, key)
        elif isinstance(value, str) and key != "legendgroup":  # never drawn
            yield value

    for text in labels(page.figures):
        assert set(re.findall(r"<[^>]*>?", text)) <= {"<br>"}, text
        assert "%{" not in text
    assert label(EVIL) in {trace.get("name") for trace in page.figures["partial-first"]["data"]}


def test_the_page_needs_nothing_but_itself(three, tmp_path):
    page, _ = page_of(three, tmp_path / "report.html")
    policy = next(attrs["content"] for _, attrs in page.tags if attrs.get("http-equiv") == "Content-Security-Policy")
    assert str(policy).startswith("default-src 'none'")
    for tag, attrs in page.tags:
        for name in ("src", "href", "action", "data"):
            assert str(attrs.get(name, "#")).startswith(("#", "data:,")), (tag, attrs)
    style = re.findall(r"<style>(.*?)</style>", (tmp_path / "report.html").read_text(encoding="utf-8"), re.DOTALL)[0]
    assert "url(" not in style
    assert "@import" not in style
    assert (tmp_path / "report.html").stat().st_size < 8e6


def test_it_can_be_read_without_seeing_the_plots(three, tmp_path):
    page, _ = page_of(three, tmp_path / "report.html")
    plots = [attrs for _, attrs in page.tags if attrs.get("class") == "plot"]
    assert len(plots) == len(page.figures)
    assert all(attrs["role"] == "img" and attrs["aria-label"] for attrs in plots)
    ids = {attrs["id"] for _, attrs in page.tags if "id" in attrs}
    assert {str(attrs["href"])[1:] for tag, attrs in page.tags if tag == "a"} <= ids


def test_a_failed_expectation_is_in_plain_sight(tmp_path):
    found = evaluation()
    found["models"]["base"]["kl"] = estimate(1.5)
    page, _ = page_of([write_run(tmp_path / "run", found)], tmp_path / "report.html")
    text = "".join(page.words)
    assert "8 held, 1 failed and 1 was not measured" in text
    assert text.count("The base is further from the target than the hybrid") == 2  # on top, and in the table
    assert "KL: base 1.50 is not above hybrid 1.87" in text


def test_the_same_runs_give_the_same_bytes(three, tmp_path):
    write_report(three, tmp_path / "a.html")
    write_report(three, tmp_path / "b.html")
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()


def test_imported_adapters_without_a_recipe(tmp_path):
    found = evaluation(config={})
    directory = write_run(tmp_path / "imported", found, [])
    assert not (directory / "config.yaml").exists()
    write_report([directory], tmp_path / "report.html")
