"""Feature groups: sets that combine, files that come back bit for bit, one-line errors."""

from __future__ import annotations

import json

import pytest

from tc_adapters_lens import AdapterSet, AdapterSetInfo, FeatureGroup, FeatureGroupError, load_pair
from tests.tiny import tiny_pair

A = FeatureGroup("a", ((1, 2), (0, 3), (1, 2), (0, 1)), {"promotes": ["wait"]}, "xxh3:1")
B = FeatureGroup("b", ((0, 3), (2, 0)), {"given": "b.json"})


@pytest.fixture(scope="module")
def adapters() -> AdapterSet:
    model = load_pair(*tiny_pair())
    return AdapterSet.fresh(model.cfg.n_layers, model.cfg.d_model, 5, AdapterSetInfo(model.pair))


def test_a_group_is_a_sorted_set() -> None:
    assert A.features == ((0, 1), (0, 3), (1, 2)) == tuple(A)
    assert len(A) == 3
    assert (0, 3) in A
    assert (3, 0) not in A
    assert A.by_layer() == {0: [1, 3], 1: [2]}


def test_groups_combine_as_sets_and_say_how() -> None:
    for combined, word, features in (
        (A | B, "or", {(0, 1), (0, 3), (1, 2), (2, 0)}),
        (A & B, "and", {(0, 3)}),
        (A - B, "minus", {(0, 1), (1, 2)}),
    ):
        assert set(combined.features) == features
        assert combined.name == f"a {word} b"
        assert combined.rule == {word: [{"name": "a", "rule": dict(A.rule)}, {"name": "b", "rule": dict(B.rule)}]}
        assert combined.adapters_fingerprint == "xxh3:1"
    with pytest.raises(FeatureGroupError, match="Groups must be of the same adapters"):
        _ = A | FeatureGroup("c", ((0, 0),), {}, "xxh3:2")
    with pytest.raises(FeatureGroupError, match="at least one feature"):
        _ = A - A


def test_files_come_back_bit_for_bit(tmp_path) -> None:
    first, second = tmp_path / "new/a.json", tmp_path / "b.json"
    A.save(first)
    loaded = FeatureGroup.load(first)
    assert loaded == A
    loaded.save(second)
    assert first.read_bytes() == second.read_bytes()
    assert json.loads(first.read_text())["features"] == [[0, 1], [0, 3], [1, 2]]
    B.save(first)
    assert FeatureGroup.load(first) == B
    assert [path.name for path in first.parent.iterdir()] == ["a.json"]


def test_a_file_may_be_written_by_hand(tmp_path, adapters) -> None:
    path = tmp_path / "doubt.json"
    path.write_text('{"features": [[1, 4], [0, 2], [1, 4]]}')
    group = FeatureGroup.load(path, adapters)
    assert group == FeatureGroup("doubt", ((0, 2), (1, 4)), {"given": "doubt.json"})


def test_a_group_is_of_its_adapters(adapters) -> None:
    last = adapters.n_layers - 1
    FeatureGroup("own", ((last, 4),), {}, adapters.fingerprint()).require_in(adapters)
    for features in (((last + 1, 0),), ((0, 5),)):
        with pytest.raises(FeatureGroupError, match=rf"^Features must be from 0\.0 to {last}\.4[^\n]+'far'\.$"):
            FeatureGroup("far", features).require_in(adapters)
    with pytest.raises(FeatureGroupError, match=r"^Group 'a' must be of these adapters [^\n]+make it again"):
        A.require_in(adapters)


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{}", '{"features": [[1]]}', '{"features": [[1, true]]}', '{"features": [[0, 1.0]]}',
     '{"features": "0.1"}', '{"features": [[0, 1, 2]]}', "\x00"],
)  # fmt: skip
def test_other_files_are_none_and_stay(content, tmp_path) -> None:
    path = tmp_path / "group.json"
    path.write_text(content)
    with pytest.raises(FeatureGroupError, match=r"^A feature group must be a JSON file with [^\n]+$"):
        FeatureGroup.load(path)
    with pytest.raises(FeatureGroupError, match=r"is not a feature group\. Name another file\.$"):
        A.save(path)
    assert path.read_text() == content


def test_what_no_group_can_be(tmp_path) -> None:
    with pytest.raises(FeatureGroupError, match="cannot be read: No such file"):
        FeatureGroup.load(tmp_path / "absent.json")
    (tmp_path / "empty.json").write_text('{"features": []}')
    with pytest.raises(FeatureGroupError, match=r"at least one feature\. Got none for 'empty'"):
        FeatureGroup.load(tmp_path / "empty.json")
    with pytest.raises(FeatureGroupError, match="count from 0"):
        FeatureGroup("a", ((0, -1),))
    with pytest.raises(FeatureGroupError, match="must have a name"):
        FeatureGroup(" ", ((0, 1),))
    with pytest.raises(FeatureGroupError, match=r"Writing .* failed"):
        A.save(tmp_path / "empty.json/a.json")
    long = {"where": ["x" * 20] * 50}
    with pytest.raises(FeatureGroupError) as error:
        FeatureGroup("a", (), long)
    assert len(str(error.value)) < 400
