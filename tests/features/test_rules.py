"""Rules against plain loops over features as the store reads them."""

# ruff: noqa: RUF001

from __future__ import annotations

import json
import math
from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest

from tc_adapters_lens import FeatureGroup, FeatureGroupError, FeatureStore, FeatureStoreError
from tc_adapters_lens.errors import ConfigError
from tc_adapters_lens.features.choice import Choice, named, of_group
from tc_adapters_lens.features.conditions import where
from tc_adapters_lens.features.graph_nodes import cantor, in_graph, node_names, unpair
from tc_adapters_lens.features.random_groups import random_like
from tc_adapters_lens.features.records import Feature
from tc_adapters_lens.features.rules import (
    BUILT_IN,
    at_template,
    built_in,
    opening_positions,
    promotes,
)
from tc_adapters_lens.toy import HESITATIONS
from tests.features.builder import synthetic_store

WORDS = (" wait", "Wait", "WAIT\n", "waiting", " hmm", "But", " but", "Alternatively", "Straße", "altern", " al", "z")
N_LAYERS, N_FEATURES = 3, 200


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> FeatureStore:
    store = synthetic_store(tmp_path_factory.mktemp("rules") / "features", N_LAYERS, N_FEATURES, words=WORDS, seed=4)
    features = [(layer, feature) for layer in range(N_LAYERS) for feature in range(0, N_FEATURES, 3)]
    labels = pd.DataFrame(features, columns=["layer", "feature"])
    labels["class"] = [("reasoning output", "input", "a >= b")[i % 3] for i in range(len(labels))]
    labels["score"] = np.arange(len(labels)) / 10
    labels["checked"] = [i % 2 == 0 for i in range(len(labels))]
    store.add_labels("judge", labels)
    return store


@pytest.fixture(scope="module")
def features(store) -> list[Feature]:
    return [store[layer, feature] for layer in range(N_LAYERS) for feature in range(N_FEATURES)]


@pytest.fixture
def holds(features) -> Callable[..., None]:
    """That a choice is those features of which something holds, some and not all."""

    def check(choice: Choice, holds: Callable[[Feature], bool]) -> None:
        wanted = tuple((feature.layer, feature.feature) for feature in features if holds(feature))
        assert 0 < len(wanted) == len(choice) < len(features)
        assert choice.group("a").features == wanted

    return check


def says(feature: Feature, words: set[str], top: int) -> bool:
    return any(effect.text.strip().casefold() in words for effect in feature.promoted[:top])


def at_one(feature: Feature, names: tuple[str, ...], share: float) -> bool:
    there = [example.template for example in feature.top]
    return any(there and there.count(name) / len(there) >= share for name in names)


def test_promoted_words_are_whole_tokens(store, holds) -> None:
    for top in (1, 10, 20):
        holds(promotes(store, ["wait"], top), lambda feature, top=top: says(feature, {"wait"}, top))
    holds(promotes(store, [" HMM ", "strasse"], 5), lambda feature: says(feature, {"hmm", "strasse"}, 5))
    assert any(effect.text == "waiting" for effect in store[0, 0].promoted) or len(promotes(store, ["waiting"]))
    rule = promotes(store, ["Wait", "but"]).group("a").rule
    assert rule == {"promotes": ["Wait", "but"], "top": 10}


def test_a_word_that_no_token_is_comes_with_its_pieces(store) -> None:
    with pytest.raises(ConfigError) as error:
        promotes(store, ["wait", "Alternate", "zé"])
    message = str(error.value)
    assert "\n" not in message
    assert "'Alternate', whose longest pieces are 'A' 'l' 't' 'e' 'r' 'n' 'a' 't' 'e', after a space ' ' 'A'" in message
    with pytest.raises(ConfigError, match=r"'altern' 's', after a space ' al' 't' 'e' 'r' 'n' 's'\. Name one of"):
        promotes(store, ["alterns"])
    with pytest.raises(ConfigError, match=r"'z' '\\xc3' '\\xa9'"):
        promotes(store, ["zé"])
    for words in ([], ["wait", " "]):
        with pytest.raises(ConfigError, match="Promoted words must be given"):
            promotes(store, words)
    for top in (0, 21):
        with pytest.raises(ConfigError, match=rf"must be 1 to 20, which a store keeps. Got {top}"):
            promotes(store, ["wait"], top)


def test_examples_at_one_template_position(store, holds) -> None:
    both = ("<think>", "<think>+1")
    for share in (0.25, 0.5, 0.75, 1.0):
        holds(at_template(store, share=share), lambda feature, share=share: at_one(feature, both, share))
        holds(at_template(store, ["<think>"], share), lambda feature, share=share: at_one(feature, both[:1], share))
    frame = store.frame()
    column = frame["top_template"].isin(both) & (frame["top_template_share"] >= 0.8)
    assert (at_template(store).chosen == column.to_numpy()).all()


def test_template_positions_that_are_none(store, tmp_path) -> None:
    with pytest.raises(ConfigError, match=r"one of <think>, <think>\+1\. Got <thinks>\. Did you mean '<think>'\?"):
        at_template(store, ["<think>", "<thinks>"])
    for share in (0, 1.1, math.nan):
        with pytest.raises(ConfigError, match="above 0 and at most 1"):
            at_template(store, share=share)
    plain = synthetic_store(tmp_path / "plain", template=(), template_tokens=(), regions=(), region_tokens=())
    with pytest.raises(ConfigError, match=r"Template positions need chats\. Got none"):
        at_template(plain)


@pytest.mark.parametrize(
    ("condition", "wanted"),
    [
        ("domain:math >= 0.4", lambda f: f.groups.get("math", math.nan) >= 0.4),
        ("domain:math<0.4", lambda f: f.groups.get("math", math.nan) < 0.4),
        ("domain:math != 0", lambda f: f.groups.get("math", 0) != 0),
        ("region:think > .5", lambda f: f.regions.get("think", math.nan) > 0.5),
        ("template:<think> >= 0.2", lambda f: f.template.get("<think>", math.nan) >= 0.2),
        ("template:<think>+1>=0.2", lambda f: f.template.get("<think>+1", math.nan) >= 0.2),
        ("frequency < 0.01", lambda f: f.frequency < 0.01),
        ("n_active == 0", lambda f: f.n_active == 0),
        ("layer <= 1", lambda f: f.layer <= 1),
        ("max > 2e0", lambda f: np.float32(f.max) > 2),
        ("score >= 3", lambda f: f.labels.get("score", math.nan) >= 3),
        ("score != 3", lambda f: "score" in f.labels and f.labels["score"] != 3),
        ("class == reasoning output", lambda f: f.labels.get("class") == "reasoning output"),
        ("class==a >= b", lambda f: f.labels.get("class") == "a >= b"),
        ("class != input", lambda f: f.labels.get("class", "input") != "input"),
        ("checked == True", lambda f: f.labels.get("checked") is True),
        ("top_template == <think>", lambda f: at_one(f, ("<think>",), 0.6)),
    ],
)
def test_conditions(condition, wanted, store, features, holds) -> None:
    if condition.startswith("top_template"):  # of equally many the first is the top one
        found = {(layer, feature) for layer, feature in where(store, condition).group("a")}
        assert {(f.layer, f.feature) for f in features if wanted(f)} <= found
        assert all(at_one(store[key], ("<think>",), 0.3) for key in found)
    else:
        holds(where(store, condition), wanted)


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        ("domain:math", "must be COLUMN OPERATOR VALUE"),
        ("domain:math = 0.4", "must be COLUMN OPERATOR VALUE"),
        ("domain:math >=", "which has no value"),
        ("domain:maths >= 0.4", "Got 'domain:maths' in .* Did you mean 'domain:math'"),
        ("template:<thinks> >= 0.4", "Got 'template:<thinks>' in .* Did you mean 'template:<think>'"),
        (">= 0.4", "Got '' in"),
        ("promoted == 3", "Got 'promoted' in"),
        ("frequency < rare", "must have a number. Got 'rare'"),
        ("frequency < nan", "must have a number. Got 'nan'"),
        ("frequency < inf", "must have a number"),
        ("class >= input", "must have == or !=. Got >="),
        ("class == inputs", "a >= b, input, reasoning output. Got 'inputs'. Did you mean 'input'"),
    ],
)
def test_conditions_that_are_none(condition, message, store) -> None:
    with pytest.raises(ConfigError, match=rf"^[^\n]*{message}[^\n]*$"):
        where(store, condition)


def test_choices_combine_and_say_how(store, holds) -> None:
    a, b, c = promotes(store, ["wait"]), where(store, "region:think > 0.3"), where(store, "layer >= 1")
    holds(a & b & c, lambda f: says(f, {"wait"}, 10) and f.regions.get("think", 0) > 0.3 and f.layer >= 1)
    holds(a | b, lambda f: says(f, {"wait"}, 10) or f.regions.get("think", 0) > 0.3)
    holds(a - c, lambda f: says(f, {"wait"}, 10) and f.layer < 1)
    assert (a & b & c).rule == {"and": [a.rule, b.rule, c.rule]}
    assert (a | b & c).rule == {"or": [a.rule, {"and": [b.rule, c.rule]}]}
    assert (a - c).group("a").adapters_fingerprint == "xxh3:0"
    with pytest.raises(FeatureGroupError, match=r"Got none for 'nothing' \(rule"):
        (a - a).group("nothing")


def test_built_in_rules(store, features, tmp_path) -> None:
    found = {name: built_in(store, name) for name in BUILT_IN}
    words = {*HESITATIONS}
    output = {(f.layer, f.feature) for f in features if says(f, words, 10)}
    template = {(f.layer, f.feature) for f in features if at_one(f, ("<think>", "<think>+1"), 0.8)}
    assert set(found["hesitation-output"].features) == output
    assert set(found["template"].features) == template
    assert set(found["hesitation"].features) == output | template
    assert output - template and template - output  # noqa: PT018
    for name, group in found.items():
        assert (group.name, group.rule["built_in"]) == (name, name)
        group.save(tmp_path / f"{name}.json")
        assert FeatureGroup.load(tmp_path / f"{name}.json") == group
    assert "not_tokens" not in found["hesitation-output"].rule
    with pytest.raises(ConfigError, match="Did you mean 'hesitation'"):
        built_in(store, "hesitaton")
    some = synthetic_store(tmp_path / "some", words=(" but", " Hmm"))
    rule = built_in(some, "hesitation-output").rule
    assert (rule["promotes"], rule["not_tokens"]) == (["hmm", "but"], ["wait", "alternatively"])
    with pytest.raises(ConfigError, match="'wait', whose longest pieces"):
        built_in(synthetic_store(tmp_path / "none"), "hesitation-output")


def test_features_of_a_graph(store, tmp_path) -> None:
    nodes_of = pytest.importorskip("circuit_tracer.frontend.graph_models").Node
    influences = {(0, 3, 7): 0.30, (1, 0, 5): 0.20, (1, 4, 5): 0.55, (2, 0, 7): 0.40, (2, 4, 9): 0.70}  # layer, pos, f
    nodes = [nodes_of.feature_node(*key, influence=value) for key, value in influences.items()]
    nodes += [nodes_of.token_node(0, 17, influence=0.1), nodes_of.error_node(0, 1, influence=0.05)]
    nodes.append(nodes_of.logit_node(4, 3, "x", N_LAYERS))
    content = {"metadata": {"slug": "a", "prompt": "b"}, "nodes": [node.model_dump() for node in nodes], "links": []}
    path = tmp_path / "graph.json"
    path.write_text(json.dumps(content))
    for n, wanted in (
        (1, [(1, 5)]),
        (2, [(0, 7), (1, 5)]),
        (3, [(0, 7), (1, 5), (2, 7)]),
        (4, [(0, 7), (1, 5), (2, 7), (2, 9)]),
        (9, [(0, 7), (1, 5), (2, 7), (2, 9)]),
        (None, [(0, 7), (1, 5), (2, 7), (2, 9)]),
    ):
        group = in_graph(store, path, n).group("circuit")
        assert list(group) == wanted
        assert group.rule["graph"] == "graph.json"
        assert group.rule["n_features_in_graph"] == 4
        assert group.rule.get("top_nodes") == n
    assert all(unpair(cantor(layer, f)) == (layer, f) for layer in range(9) for f in range(9))
    # feature 5 of layer 1 is at positions 0 and 4, of which 0 has more influence
    assert node_names(content) == {(0, 7): "0_7_3", (1, 5): "1_5_0", (2, 7): "2_7_0", (2, 9): "2_9_4"}

    content["nodes"][0]["influence"] = None
    path.write_text(json.dumps(content))
    assert len(in_graph(store, path)) == 4
    with pytest.raises(FeatureGroupError, match="with 1 of 4 features without one"):
        in_graph(store, path, 2)
    content["nodes"] = [nodes_of.feature_node(N_LAYERS, 0, 1, influence=0.1).model_dump()]
    path.write_text(json.dumps(content))
    with pytest.raises(FeatureGroupError, match=r"must be a graph of the store's adapters: .* Got 3\.1"):
        in_graph(store, path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "A graph must be a JSON file as circuit-tracer writes it"),
        ("[]", "A graph must be a JSON file"),
        ('{"nodes": 3}', "A graph must be a JSON file"),
        ('{"nodes": [{"feature_type": "cross layer transcoder", "feature": -1}]}', "A graph must be a JSON file"),
        ('{"nodes": []}', "must have nodes that are features"),
    ],
)
def test_graphs_that_are_none(content, message, store, tmp_path) -> None:
    (tmp_path / "graph.json").write_text(content)
    with pytest.raises(FeatureGroupError, match=message):
        in_graph(store, tmp_path / "graph.json")
    with pytest.raises(FeatureGroupError, match="cannot be read"):
        in_graph(store, tmp_path / "absent.json")
    with pytest.raises(ConfigError, match=r"must be at least 1\. Got 0"):
        in_graph(store, tmp_path / "graph.json", 0)


def around(*tokens: str) -> list[str]:
    return ["content", *(token + after for token in tokens for after in ("", "+1", "+2"))]


@pytest.mark.parametrize(
    ("names", "opening"),
    [
        (
            around(
                "<｜begin▁of▁sentence｜>",
                "<｜User｜>",
                "<｜Assistant｜>",
                "<think>",
                "</think>",
                "<｜end▁of▁sentence｜>",
            ),
            ["<｜begin▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>", "<think>", "<think>+1", "<think>+2"],
        ),
        (around("<|im_start|>", "<|im_end|>", "<|endoftext|>"), ["<|im_start|>"]),
        (
            around("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
            ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>"],
        ),
        (around("<bos>", "<start_of_turn>", "<end_of_turn>", "</s>"), ["<bos>", "<start_of_turn>"]),
        (["content"], []),
    ],
)
def test_positions_that_open_a_chat(names: list[str], opening: list[str]) -> None:
    assert opening_positions(names) == opening


def test_random_groups_are_alike_and_apart(store) -> None:
    group, other = built_in(store, "hesitation-output"), built_in(store, "template")
    n_active = store.column("n_active")
    draws = [random_like(store, group, 7, draw, exclude=[other]) for draw in range(3)]
    assert draws[1] == random_like(store, group, 7, 1, exclude=[other])
    assert len({draw.features for draw in draws}) == 3
    assert draws[0] != random_like(store, group, 8, 0, exclude=[other])
    for index, draw in enumerate(draws):
        assert draw.name == f"hesitation-output random {index}"
        assert draw.adapters_fingerprint == "xxh3:0"
        assert not {*draw} & ({*group} | {*other})
        assert {layer: len(of) for layer, of in draw.by_layer().items()} == {
            layer: len(of) for layer, of in group.by_layer().items()
        }
        rows = [layer * N_FEATURES + feature for layer, feature in draw]
        assert n_active[rows].min() > 0
        assert draw.rule["mean_frequency"] == pytest.approx(np.mean([store[key].frequency for key in draw]))
        assert draw.rule["mean_frequency_of_group"] == pytest.approx(np.mean([store[key].frequency for key in group]))
        assert draw.rule["mean_log10_frequency_distance"] < 0.2
    twice = random_like(store, FeatureGroup("few", tuple(group)[::9]), 7, times=2)
    assert len(twice) == 2 * len(tuple(group)[::9])


def test_a_random_feature_is_one_of_the_nearest(store) -> None:
    """For one feature of a group every draw is among those that a plain search allows, and each comes up."""
    n_active = store.column("n_active").reshape(N_LAYERS, N_FEATURES)
    active = sorted(np.flatnonzero(n_active[1] > 0), key=lambda feature: n_active[1, feature])
    for own in (active[0], active[60], active[-1], int(np.flatnonzero(n_active[1] == 0)[0])):
        value = np.log10(max(n_active[1, own], 0.5))
        distance = {f: abs(np.log10(n_active[1, f]) - value) for f in active if f != own}
        ranked = sorted(distance, key=distance.__getitem__)
        near = [f for rank, f in enumerate(ranked) if rank < 3 or distance[f] <= 0.1][:20]
        least, most = distance[near[0]], distance[near[-1]]
        drawn = [random_like(store, FeatureGroup("one", ((1, own),)), seed).features for seed in range(150)]
        found = {feature for ((_, feature),) in drawn}
        assert all(least <= distance[feature] <= most for feature in found)
        sure = {f for f in near if distance[f] < most}  # of those at the largest distance some may be left out
        assert sure <= found


def test_random_groups_that_cannot_be(store) -> None:
    group = where(store, "layer == 1").group("all") - where(store, "feature > 149").group("high")
    with pytest.raises(
        FeatureGroupError, match=r"must have 150 features of layer 1, .* in 'all minus high'\. Got \d\d "
    ):
        random_like(store, group, 0)
    few = FeatureGroup("few", ((1, 2),))
    with pytest.raises(FeatureGroupError, match=r"Got 0 to draw from\. Narrow the groups, or draw fewer times"):
        random_like(store, few, 0, times=5, exclude=[where(store, "layer == 1").group("all")])
    for wrong in ({"seed": -1}, {"draw": -1}, {"times": 0}):
        with pytest.raises(ConfigError, match="Seed and draw must be"):
            random_like(store, few, **{"seed": 0, **wrong})


def test_groups_of_other_adapters_and_neurons(store, tmp_path) -> None:
    with pytest.raises(FeatureGroupError, match=r"must be of the adapters of .* Got one of others \(xxh3:1\)"):
        of_group(store, FeatureGroup("a", ((0, 1),), {}, "xxh3:1"))
    with pytest.raises(FeatureGroupError, match=r"from 0\.0 to 2\.199, .* Got 3\.0 in group 'a'"):
        of_group(store, FeatureGroup("a", ((3, 0),)))
    with pytest.raises(FeatureGroupError, match=r"Got 0\.200 by hand"):
        named(store, [(0, 200)])
    by_hand = FeatureGroup("a", ((2, 1), (0, 1)))
    assert of_group(store, by_hand).group("b").features == named(store, by_hand).group("b").features == ((0, 1), (2, 1))
    neurons = synthetic_store(tmp_path / "neurons", model="target", adapters=None, adapters_fingerprint=None)
    with pytest.raises(FeatureStoreError, match="Groups are of adapter features"):
        where(neurons, "layer == 0").group("a")
