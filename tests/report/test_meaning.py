"""What the features mean: read, checked, drawn and told as the results have it, and nothing where there is none."""

from __future__ import annotations

import copy
import json
import re

import numpy as np
import pytest
from plotly import graph_objects
from safetensors.numpy import save_file

from tc_adapters_lens.errors import AdapterLensError, JudgeError, RunError
from tc_adapters_lens.models.adapter_fingerprint import stored_fingerprint
from tc_adapters_lens.models.names import PARAMETERS
from tc_adapters_lens.report.meaning_expectations import meaning_expectations
from tc_adapters_lens.report.page import MEANING
from tc_adapters_lens.report.plots_detection import detection as detection_section
from tc_adapters_lens.report.runs import read_runs
from tests.features.builder import HOSTILE
from tests.report.builder import evaluation, write_run
from tests.report.results_builder import (
    CLASSES,
    classes,
    detection,
    everything,
    overlaps,
    write_results,
)
from tests.report.test_page import page_of

EVIL = "</script><script>window.hacked=1</script><img src=x onerror=window.hacked=1>\"' %{x} $y$"


@pytest.fixture
def judged(tmp_path):
    """A run with a result of everything."""
    return write_results(write_run(tmp_path / "run"), everything())


def tables(page) -> str:
    return re.sub(r"\s+", " ", " ".join(page.words))


def test_a_run_without_results_has_no_such_section(tmp_path):
    page, result = page_of([write_run(tmp_path / "run")], tmp_path / "report.html")
    assert "What the features mean" not in tables(page)
    assert "detection_order" not in {one["name"] for one in result["expectations"]}
    assert result["runs"][0]["results"] == {}
    assert all(make(read_runs([tmp_path / "run"])) is None for make in MEANING)


def test_shares_on_the_page_are_those_of_the_file(judged, tmp_path):
    page, result = page_of([judged], tmp_path / "report.html")
    written = json.loads((judged / "judge" / "classify-target.json").read_text())
    overall = written["overall"]
    bars = {trace["name"]: trace for trace in page.figures["classes-0"]["data"]}
    assert list(bars) == ["adapter features", "target's neurons", "base's neurons"]
    names = [name for name, _ in CLASSES]
    shares = [overall["classes"][name]["n"] / 992 for name in names]  # 4 * (250 - 2) got a class
    assert bars["target's neurons"]["x"] == pytest.approx([*shares, overall["groups"]["reasoning"]["n"] / 992])
    upper = overall["classes"]["domain"]["share"]["high"] - overall["classes"]["domain"]["share"]["value"]
    assert bars["target's neurons"]["error_x"]["array"][1] == pytest.approx(upper)
    stacked = page.figures["classes-layers-1"]["data"]
    assert [trace["name"] for trace in stacked] == names
    assert np.sum([trace["y"] for trace in stacked], axis=0) == pytest.approx([1, 1, 1, 1])
    assert stacked[0]["y"][2] == pytest.approx(written["layers"][2]["classes"]["general language"]["n"] / 248)
    text = tables(page)
    assert f"{shares[0]:.2%}" in text
    assert f"n = {overall['classes'][names[0]]['n']}" in text
    for said in ("judge-model", "classify.yaml (888888888888)", "250 a layer at most, seed 42", "of 3,000"):
        assert said in text
    held = result["runs"][0]["results"]["classify-target"]
    assert held == {key: value for key, value in written.items() if key != "features"}


def test_scores_are_drawn_as_they_are_and_means_are_those_of_the_file(judged, tmp_path):
    page, _ = page_of([judged], tmp_path / "report.html")
    written = json.loads((judged / "judge" / "detect-replacement.json").read_text())
    traces = page.figures["detection-0"]["data"]
    violins = [trace for trace in traces if trace["type"] == "violin"]
    marks = [trace for trace in traces if trace["type"] == "scatter"]
    assert len(violins) == len(marks) == 3 + 2  # the neurons have no shuffled descriptions
    assert violins[1]["x"] == [feature["scores"]["sampled"] for feature in written["features"]]
    assert marks[1]["x"] == [written["overall"]["scores"]["sampled"]["mean"]["value"]]
    assert len({place for trace in violins for place in trace["y"]}) == 5
    layers = page.figures["detection-layers-0"]["data"]
    top = [feature["scores"]["top"] for feature in written["features"]]
    assert layers[0]["y"] == top
    assert np.round(layers[0]["x"][150]) == 1  # 100 a layer
    assert layers[1]["y"] == [part["scores"]["top"]["mean"]["value"] for part in written["layers"]]
    (line,) = page.figures["detection-layers-0"]["layout"]["shapes"]
    assert (line["y0"], line["y1"]) == (0.5, 0.5)
    text = tables(page)
    for said in (
        "5 active and 5 random texts",
        "too few examples: 3",
        "describe.yaml",
        "another feature's description",
    ):
        assert said in text


def test_few_scores_are_points(tmp_path):
    run = write_results(write_run(tmp_path / "run"), {"detect-replacement": detection(per_layer=8)})
    page, _ = page_of([run], tmp_path / "report.html")
    assert {trace["type"] for trace in page.figures["detection-layers-0"]["data"]} == {"box", "scatter"}
    assert {trace["type"] for trace in page.figures["detection-0"]["data"]} == {"violin", "scatter"}  # 32 of them


def test_overlap_is_drawn_beside_chance(judged, tmp_path):
    page, _ = page_of([judged], tmp_path / "report.html")
    written = json.loads((judged / "overlap.json").read_text())
    target, base, chance = page.figures["overlap-0"]["data"]
    counts = np.array(written["models"]["target"]["overall"]["histogram"])
    assert target["y"][1:-1] == pytest.approx(counts / 1200)  # 4 * 300 features
    assert target["x"][1:] == written["edges"]
    assert sum(base["y"][1:-1]) == pytest.approx(1)
    assert chance["x"] == [0.021, 0.021]
    means = page.figures["overlap-layers-0"]["data"][1]
    assert means["y"] == [layer["mean"]["value"] for layer in written["models"]["base"]["layers"]]


def test_what_was_expected(judged, tmp_path):
    _, result = page_of([judged], tmp_path / "report.html")
    found = {one["name"]: one for one in result["expectations"]}
    order = found["detection_order"]
    assert order["outcome"] == "held"
    assert [(one["greater"]["of"], one["lesser"]["of"]) for one in order["comparisons"][:2]] == [
        ("held-out highest examples", "uniform examples"),
        ("uniform examples", "chance"),
    ]
    assert len(order["comparisons"]) == 4
    assert found["shuffled_description_is_chance"]["outcome"] == "held"
    (comparison,) = found["overlap_target_above_base"]["comparisons"]
    layers = json.loads((judged / "overlap.json").read_text())["models"]["base"]["layers"]
    assert comparison["lesser"]["value"] == pytest.approx(np.mean([layer["mean"]["value"] for layer in layers[1:]]))
    assert comparison["held"]


def test_what_was_not_expected(tmp_path):
    bad = {
        "detect-replacement": detection(scores={"top": 0.6, "sampled": 0.8, "shuffled": 0.7}),
        "overlap": overlaps(0.3, 0.6),
    }
    runs = read_runs([write_results(write_run(tmp_path / "bad"), bad)])
    assert [one.outcome for one in meaning_expectations(runs)] == ["failed", "failed", "failed"]
    runs = read_runs([write_results(write_run(tmp_path / "some"), {"classify-target": classes("target")})])
    assert [one.outcome for one in meaning_expectations(runs)] == ["not measured"] * 3


def test_several_judges_and_prompts_are_kept_apart(tmp_path):
    prompts = {"classify": {"name": "own.yaml", "sha256": "ab" * 32}}
    other = {"kind": "endpoint", "model": "other-model"}
    named = [("positive", "positive"), *CLASSES[1:]]
    files = {
        "classify-replacement": classes(),
        "classify-replacement-other": classes(judge=other),
        "classify-replacement-own": classes(prompts=prompts, names=named),
        "classify-target": classes("target"),
    }
    page, _ = page_of([write_results(write_run(tmp_path / "run"), files)], tmp_path / "report.html")
    drawn = {id_: [trace["name"] for trace in found["data"]] for id_, found in page.figures.items() if "classes" in id_}
    assert drawn["classes-0"] == ["adapter features, judge judge-model", "target's neurons, judge judge-model"]
    assert drawn["classes-1"] == ["adapter features, other, judge other-model"]
    assert drawn["classes-2"] == ["adapter features, own, judge judge-model"]
    assert "positive" in page.figures["classes-2"]["layout"]["yaxis"]["ticktext"]
    assert "general language" not in page.figures["classes-2"]["layout"]["yaxis"]["ticktext"]
    text = tables(page)
    assert "Classes, all layers, judge other-model, prompts classify: classify.yaml" in text
    assert "own.yaml (abababababab)" in text


def test_judges_of_one_model_are_told_apart_in_full(tmp_path):
    files = {
        "detect-replacement": detection(),
        "detect-replacement-warm": detection(judge={"kind": "endpoint", "model": "judge-model", "temperature": 1}),
    }
    page, _ = page_of([write_results(write_run(tmp_path / "run"), files)], tmp_path / "report.html")
    assert {"detection-0", "detection-1"} <= page.figures.keys()
    assert "adapter features, warm, judge kind endpoint, model judge-model, temperature 1" in tables(page)


def test_negatives_are_told_and_digests_are_short(tmp_path):
    files = {
        "detect-replacement": detection(judge={"kind": "rules", "sha256": "0123456789ab" * 5 + "cdef"}),
        "detect-replacement-hard": detection(
            judge={"kind": "rules", "sha256": "0123456789ab" * 6}, negatives="similar"
        ),
    }
    page, _ = page_of([write_results(write_run(tmp_path / "run"), files)], tmp_path / "report.html")
    text = tables(page)
    assert "negatives: random" in text
    assert "negatives: similar" in text
    assert "kind rules, sha256 0123456789ab " in text


def test_two_runs_have_names_and_colours_of_their_own(tmp_path):
    runs = [
        write_results(write_run(tmp_path / name, evaluation(l0)), everything()) for name, l0 in (("a", 1), ("b", 2))
    ]
    page, _ = page_of(runs, tmp_path / "report.html")
    bars = page.figures["classes-0"]["data"]
    assert [trace["name"] for trace in bars[:4]] == [
        "adapter features, a", "target's neurons, a", "base's neurons, a", "adapter features, b",
    ]  # fmt: skip
    looks = [(trace["marker"]["color"], trace["marker"]["pattern"]["shape"]) for trace in bars]
    assert len(set(looks)) == len(bars) == 6
    figures = [attrs for tag, attrs in page.tags if tag == "figure"]
    plots = [attrs["data-figure"] for _, attrs in page.tags if attrs.get("class") == "plot"]
    hidden = {plot: "hidden" in attrs for plot, attrs in zip(plots, figures, strict=True)}
    assert [hidden[f"overlap-{i}"] for i in range(2)] == [False, True]
    assert [hidden[f"classes-layers-{i}"] for i in range(6)] == [False, *[True] * 5]


@pytest.mark.parametrize("n_layers", [1, 28])
def test_every_figure_is_valid_plotly(n_layers, tmp_path):
    run = write_results(write_run(tmp_path / "run", evaluation(n_layers=n_layers)), everything(n_layers=n_layers))
    panels = [panel for make in MEANING for panel in make(read_runs([run])).panels]
    assert len({panel.id for panel in panels}) == len(panels) == 1 + 3 + 1 + 2 + 2
    for panel in panels:
        graph_objects.Figure(panel.figure)
        assert panel.caption
        assert panel.description


def test_what_could_not_be_measured_is_left_out(tmp_path):
    empty = classes()
    for part in (*empty["layers"], empty["overall"]):
        for found in (*part["classes"].values(), *part["groups"].values()):
            found |= {"n": 0, "share": None}
    scores = detection(scores={"top": 0.8})
    scores["overall"]["scores"]["top"] = {"n": 0, "mean": None}
    scores["layers"][0]["scores"]["top"] = {"n": 0, "mean": None}
    scores["features"] = [{"layer": 0, "feature": 1, "description": None, "scores": {"top": None}}]
    none = overlaps()
    for part in (*none["models"]["base"]["layers"], none["models"]["base"]["overall"]):
        part |= {"n_features": 0, "mean": None, "median": None, "histogram": [0] * 20}
    none["chance"] = {"overall": None, "layers": [None] * 4}
    del none["models"]["target"]
    files = {"classify-replacement": empty, "detect-replacement": scores, "overlap": none}
    page, result = page_of([write_results(write_run(tmp_path / "run"), files)], tmp_path / "report.html")
    for found in page.figures.values():
        graph_objects.Figure(found)
    outcomes = {one["name"]: one["outcome"] for one in result["expectations"]}
    assert outcomes["overlap_target_above_base"] == outcomes["detection_order"] == "not measured"


def test_hostile_names_are_inert(tmp_path):
    names = [(EVIL, EVIL + "group"), *((text, text) for text in (*HOSTILE[:3], *HOSTILE[4:6]))]
    judge = {"kind": "endpoint", "model": EVIL}
    prompts = {task: {"name": EVIL, "sha256": EVIL} for task in ("classify", "describe", "detect")}
    files = everything()
    files["classify-replacement"] = classes(names=names, judge=judge, prompts=prompts)
    files["detect-replacement"] |= {"judge": judge, "prompts": prompts, "negatives": EVIL, "left_out": {EVIL: 1}}
    files["overlap"] |= {"tokens": EVIL, "tokens_fingerprint": EVIL, "positions": EVIL}
    page, _ = page_of([write_results(write_run(tmp_path / "run"), files)], tmp_path / "report.html")
    assert [tag for tag, _ in page.tags].count("script") == 3
    assert "img" not in {tag for tag, _ in page.tags}
    assert not any(name.startswith("on") for _, attrs in page.tags for name in attrs)
    text = "".join(page.words)
    assert EVIL in text
    assert "U+202Eright to left" in text
    assert not re.search("[\u202a-\u202e\u2066-\u2069]", text)

    def drawn(value, key=""):
        if isinstance(value, dict):
            for name, inner in value.items():
                yield from drawn(inner, name)
        elif isinstance(value, list):
            for inner in value:
                yield from drawn(inner, key)
        elif isinstance(value, str) and key != "legendgroup":  # never drawn
            yield value

    for text in drawn({id_: page.figures[id_] for id_ in page.figures}):
        assert set(re.findall(r"<[^>]*>?", text)) <= {"<br>"}, text
        assert "%{" not in text


def without(found: dict, *keys: str) -> dict:
    found = copy.deepcopy(found)
    inside = found
    for key in keys[:-1]:
        inside = inside[key]
    del inside[keys[-1]]
    return found


@pytest.mark.parametrize(
    ("name", "values", "says"),
    [
        ("classify-replacement", detection(), "must be a result of `tc-adapters judge classify`"),
        ("classify-replacement", classes(format_version=2), "format_version 1. Got 2"),
        ("classify-replacement", without(classes(), "overall"), "overall is missing"),
        (
            "classify-replacement",
            without(classes(), "overall", "classes", "domain"),
            "overall.classes.domain is missing",
        ),
        ("classify-replacement", classes(judge="me"), "judge must be an object. Got 'me'"),
        ("detect-target", without(detection(), "features"), "features is missing"),
        ("detect-target", detection(scores={"top": 0.5, "worst": 0.4}), "may hold top, sampled, shuffled. Got 'worst'"),
        (
            "detect-target",
            detection(features=[{"layer": 0, "feature": 0, "scores": {"top": 3}}]),
            "must be from 0 to 1",
        ),
        ("overlap", overlaps(format="other"), "must be a result of `tc-adapters overlap`"),
        ("overlap", overlaps(edges=[0, 0]), "edges must be two or more, and increase"),
        ("overlap", overlaps(edges=[0, 0.5, 1]), "histogram must have 2 entries. Got 20"),
        ("overlap", overlaps(chance={"overall": 0.1, "layers": []}), "chance.layers must have 4 entries. Got 0"),
    ],
)
def test_a_broken_or_foreign_result_is_one_line(name, values, says, tmp_path):
    run = write_results(write_run(tmp_path / "run"), {name: values})
    with pytest.raises((RunError, JudgeError)) as raised:
        read_runs([run])
    assert says in str(raised.value)
    assert f"{name}.json" in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", ["judge/detect-target.json", "overlap.json"])
def test_a_result_that_is_no_json_is_one_line(name, judged):
    (judged / name).write_text("{")
    with pytest.raises(AdapterLensError, match="cannot be read as JSON") as raised:
        read_runs([judged])
    assert str(judged / name) in str(raised.value)


def test_results_of_other_adapters_or_another_pair_are_refused(judged):
    (judged / "adapters" / "layer_0").mkdir(parents=True)
    (judged / "adapters" / "adapter_set.json").write_text('{"n_layers": 1}')
    weights = {name: np.ones(3, np.float32) for name in PARAMETERS}
    save_file(weights, judged / "adapters" / "layer_0" / "sae_weights.safetensors")
    with pytest.raises(RunError, match=r"must be of the adapters in .* Got one of others") as raised:
        read_runs([judged])
    assert "classify-replacement.json" in str(raised.value)
    own = stored_fingerprint(judged / "adapters")
    for name in ("classify-replacement", "detect-replacement"):
        values = json.loads((judged / "judge" / f"{name}.json").read_text())
        values["store"]["adapters_fingerprint"] = own
        write_results(judged, {name: values})
    with pytest.raises(RunError, match=r"overlap\.json must be of the adapters"):
        read_runs([judged])
    write_results(judged, {"overlap": overlaps(adapters_fingerprint=own)})
    assert len(read_runs([judged]).first) > 0
    pair = evaluation()["pair"] | {"target_fingerprint": "sha256:other"}
    write_results(judged, {"overlap": overlaps(adapters_fingerprint=own, pair=pair)})
    with pytest.raises(RunError, match=r"overlap\.json must be of the run's pair, whose target is"):
        read_runs([judged])


def test_the_section_tells_what_a_blind_reader_needs(judged):
    section = detection_section(read_runs([judged]))
    assert section is not None
    assert "adapter features: held-out highest examples 0.8" in section.panels[0].description
