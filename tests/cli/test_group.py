"""`group`: what it writes, how its options combine, and wrong use."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tc_adapters_lens import FeatureGroup, FeatureStore
from tc_adapters_lens.cli.main import main
from tc_adapters_lens.features.conditions import where
from tc_adapters_lens.features.random_groups import random_like
from tc_adapters_lens.features.rules import BUILT_IN, at_template, built_in, promotes
from tests.features.builder import synthetic_store

WORDS = (" wait", "Hmm", " but", "Alternatively", "evil\u202e\x1b[31m")


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("group") / "run"
    synthetic_store(run / "features", 3, 120, words=WORDS)
    return run


@pytest.fixture(scope="module")
def store(run) -> FeatureStore:
    return FeatureStore.open(run / "features")


@pytest.fixture
def group(run, capsys):
    """Runs the verb; returns what it printed, or its error line."""

    def call(*argv: str, code: int = 0, of_run: bool = True) -> str:
        assert main(["group", *(["--run", str(run)] if of_run else []), *argv]) == code
        captured = capsys.readouterr()
        assert captured.err.count("\n") == (1 if code else 0)
        return captured.err if code else captured.out

    return call


def test_a_built_in_rule_is_written_into_the_run(run, store, group, tmp_path) -> None:
    for name in BUILT_IN:
        out = group("--rule", name, "--json", str(tmp_path / "result.json"))
        path = run / f"groups/{name}.json"
        found = FeatureGroup.load(path)
        assert found == built_in(store, name)
        assert out.startswith(f"{name}: {len(found)} features, active at ")
        assert f"Written: {path}\n" in out
        (made,) = json.loads((tmp_path / "result.json").read_text())["groups"]
        frequencies = [store[key].frequency for key in found]
        assert made["frequency"] == pytest.approx(sum(frequencies) / len(found))
        assert made["never_active"] == frequencies.count(0)
        assert made["per_layer"] == [len(found.by_layer()[layer]) for layer in range(3)]
        assert (made["n_features"], made["name"], made["path"]) == (len(found), name, str(path))
        first = max(found, key=lambda key: store[key].n_active)
        tokens = " ".join(repr(effect.text) for effect in store[first].promoted[:5])
        assert out.split("promotes\n")[1].splitlines()[0].split() == [
            f"{first[0]}.{first[1]}",
            f"{store[first].frequency:.3%}",
            *tokens.split(),
        ]


def test_what_a_terminal_would_obey_is_not_printed(group, tmp_path) -> None:
    out = group("--where", "frequency > 0", "--out", str(tmp_path / "all.json"))
    assert not {"\u202e", "\x1b"} & {*out}


def test_rules_given_together_must_all_hold_then_come_files(store, group, tmp_path) -> None:
    added, kept, taken = (tmp_path / f"{name}.json" for name in ("added", "kept", "taken"))
    group("--named", "0.1,2.5-2.9", "--out", str(added))
    group("--where", "layer != 1", "--out", str(kept))
    taken.write_text('{"features": [[2, 6], [2, 7]]}')
    assert FeatureGroup.load(added).features == ((0, 1), *((2, feature) for feature in range(5, 10)))

    rules = ("--promotes", "Wait,hmm", "--top", "15", "--where", "domain:math < 0.6", "--where", "n_active > 3")
    template = ("--template", "<think>", "--template", "<think>+1", "--share", "0.5")
    found = promotes(store, ["wait", "hmm"], 15) & at_template(store, ["<think>", "<think>+1"], 0.5)
    found = found & where(store, "domain:math < 0.6") & where(store, "n_active > 3")
    wanted = {*found.group("a")}
    out = tmp_path / "out.json"
    group(*rules, *template, "--out", str(out))
    assert {*FeatureGroup.load(out)} == wanted
    assert FeatureGroup.load(out).name == "out"

    files = ("--or", str(added), "--and", str(kept), "--minus", str(taken))
    group(*rules, *template, *files, "--name", "all of it", "--out", str(out))
    combined = FeatureGroup.load(out)
    assert combined.name == "all of it"
    assert {*combined} == {key for key in wanted | {*FeatureGroup.load(added)} if key[0] != 1} - {(2, 6), (2, 7)}
    assert json.dumps(combined.rule).index('"added"') < json.dumps(combined.rule).index('"kept"')

    group("--and", str(kept), "--and", str(added), "--out", str(out))
    assert {*FeatureGroup.load(out)} == {*FeatureGroup.load(added)}
    group("--template", "any", "--name", "any position")
    assert FeatureGroup.load(store.directory.parent / "groups/any-position.json").features == tuple(
        at_template(store).group("a")
    )


def test_a_graph(group, tmp_path) -> None:
    nodes = [
        {"feature_type": "cross layer transcoder", "feature": (layer + f) * (layer + f + 1) // 2 + f, "influence": i}
        for layer, f, i in ((0, 4, 0.5), (1, 2, 0.2), (2, 9, 0.8))
    ]
    (tmp_path / "g.json").write_text(json.dumps({"metadata": {}, "nodes": nodes}))
    group("--graph", str(tmp_path / "g.json"), "--top-nodes", "2", "--out", str(tmp_path / "circuit.json"))
    assert list(FeatureGroup.load(tmp_path / "circuit.json")) == [(0, 4), (1, 2)]


def test_random_groups(run, store, group, tmp_path) -> None:
    mine = tmp_path / "mine.json"
    group("--promotes", "wait", "--name", "mine", "--out", str(mine))
    group("--random-like", str(mine), "--draws", "3")
    like = FeatureGroup.load(mine)
    for draw in range(3):
        found = FeatureGroup.load(run / f"groups/mine-random-{draw}.json")
        assert found == random_like(store, like, 42, draw)
        assert found.name == f"mine random {draw}"
    other = tmp_path / "other.json"
    found.save(other)
    out = tmp_path / "twice.json"
    group("--random-like", str(mine), "--seed", "3", "--times", "2", "--not", str(other), "--out", str(out))
    assert FeatureGroup.load(out).features == random_like(store, like, 3, 0, times=2, exclude=[found]).features
    assert FeatureGroup.load(out).name == "twice 0"


def test_the_same_command_writes_the_same_bytes(group, tmp_path) -> None:
    paths = [tmp_path / "a.json", tmp_path / "b.json"]
    for path in paths:
        group("--rule", "hesitation", "--name", "same", "--out", str(path))
    assert paths[0].read_bytes() == paths[1].read_bytes()


@pytest.mark.parametrize(
    ("argv", "code", "says"),
    [
        ((), 2, "must say which features. Got none of them."),
        (("--minus", "x"), 2, "must say which features. Got none of them."),
        (("--rule", "hesitaton"), 2, "Did you mean 'hesitation'?"),
        (("--rule", "template", "--features", "x"), 2, "Either --run or --features must say which store. Got both."),
        (("--promotes", "wait"), 2, "--name must say what the group is called"),
        (("--promotes", "zebra", "--name", "a"), 2, "'zebra', whose longest pieces"),
        (("--rule", "template", "--top", "3"), 2, "--top is for --promotes"),
        (("--rule", "template", "--seed", "3"), 2, "--seed is for --random-like"),
        (("--rule", "template", "--top-nodes", "3"), 2, "--top-nodes is for --graph"),
        (("--random-like", "x", "--rule", "template"), 2, "--random-like is in place of rules. Got it with --rule."),
        (("--random-like", "x", "--draws", "0"), 2, "--draws must be at least 1. Got 0."),
        (("--random-like", "x", "--seed", "-1"), 2, "--seed must not be negative. Got -1."),
        (("--random-like", "x.json"), 1, "x.json cannot be read: No such file or directory."),
        (("--named", "0.1-1.2", "--name", "a"), 2, "--named: a range must go up within one layer."),
        (("--named", "9.1", "--name", "a"), 1, "Got 9.1 by hand."),
        (("--where", "frequency > 2", "--name", "a"), 1, "at least one feature. Got none for 'a'"),
    ],
)
def test_wrong_use_is_one_line(argv, code, says, group) -> None:
    assert says in group(*argv, code=code)


def test_without_a_run(run, group, tmp_path) -> None:
    store = ("--features", str(run / "features"))
    assert "--out must be given" in group(*store, "--rule", "template", code=2, of_run=False)
    group(*store, "--rule", "template", "--out", str(tmp_path / "t.json"), of_run=False)
    assert "Got neither" in group("--rule", "template", code=2, of_run=False)
    missing = ("--run", str(tmp_path), "--rule", "template")
    assert "is not a feature store" in group(*missing, code=1, of_run=False)
    (tmp_path / "config.yaml").write_text("a: 1\n")
    error = group("--rule", "template", "--out", str(tmp_path / "config.yaml"), code=1)
    assert "is there already and is not a feature group" in error
