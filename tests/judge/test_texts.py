"""Texts as a judge is shown them."""

from __future__ import annotations

import numpy as np
import pytest

from tc_adapters_lens.features.records import Example
from tc_adapters_lens.judge.texts import MARKED_SHARE, show_example, show_window, token_texts
from tests.features.builder import HOSTILE, synthetic_store

WORDS = (" wait", ",", " a<<b", " >", "\xe4b", "", " x")
WAIT, COMMA, SHIFT, GREATER, UMLAUT, EMPTY, X, HALF, OTHER_HALF = range(9)  # € is two tokens; the builder adds them


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return synthetic_store(tmp_path_factory.mktemp("texts") / "features", 2, 20, words=WORDS)


def example(tokens: list[int], activations: list[float], at: int) -> Example:
    values = np.array(activations, np.float32)
    return Example(3, 40 + at, float(values[at]), 40, np.array(tokens, np.int32), values)


def test_neighbours_share_one_pair_of_marks(store) -> None:
    shown = show_example(store, example([WAIT, COMMA, X, WAIT, X], [2, 1, 0.99, 0, 1.5], at=0))
    assert shown.with_marks == "<< wait,>> x wait<< x>>"
    assert shown.plain == " wait, x wait x"
    assert shown.marked == (True, True, False, False, True)
    assert shown.tokens == (" wait", ",", " x", " wait", " x")
    assert (shown.sequence, shown.start, shown.stop) == (3, 40, 45)
    assert shown.facts() == {"tokens": [" wait", ",", " x", " wait", " x"], "marked": [True, True, False, False, True]}


@pytest.mark.parametrize("fires_on", [[HALF], [OTHER_HALF], [HALF, OTHER_HALF]])
def test_a_character_of_several_tokens_stays_one(store, fires_on) -> None:
    tokens = [X, HALF, OTHER_HALF, COMMA]
    shown = show_example(
        store, example(tokens, [float(token in fires_on) for token in tokens], tokens.index(fires_on[0]))
    )
    assert shown.with_marks == " x<<€>>,"
    assert shown.plain == " x€,"
    assert shown.tokens == (" x", "⟨e2 82⟩", "⟨ac⟩", ",")
    assert [token for token, marked in zip(tokens, shown.marked, strict=True) if marked] == fires_on


def test_pieces_of_characters_at_a_window_s_ends(store) -> None:
    shown = show_example(store, example([OTHER_HALF, X, HALF], [1, 0, 1], at=0))
    assert shown.with_marks == "<<\ufffd>> x<<\ufffd>>"
    assert shown.marked == (True, False, True)


def test_tokens_without_bytes_and_texts_with_such_signs(store) -> None:
    shown = show_example(store, example([EMPTY, SHIFT, GREATER, UMLAUT], [1, 0, 1, 0], at=0))
    assert shown.with_marks == " a<<b<< >>>äb"
    assert shown.plain == " a<<b >äb"
    assert shown.tokens[0] == f"⟨id {EMPTY}⟩"


def test_any_example_of_a_store(tmp_path) -> None:
    store = synthetic_store(tmp_path / "features", 2, 20, words=HOSTILE)
    n_marked = 0
    for layer in range(2):
        for feature in range(20):
            for one in store[layer, feature].top:
                shown = show_example(store, one)
                ids = one.tokens.tolist()
                assert shown.plain.encode() == store.vocabulary.join(ids).decode(errors="replace").encode()
                assert shown.with_marks.replace("<<", "").replace(">>", "") == shown.plain
                assert list(shown.tokens) == store.vocabulary.texts(ids)
                strong = [float(value) >= MARKED_SHARE * one.activation for value in one.activations]
                assert list(shown.marked) == strong
                assert shown.marked[one.position - one.start]
                n_marked += sum(strong)
    assert n_marked > 100


def test_a_window_has_nothing_marked(store) -> None:
    start = int(store.offsets[5])
    shown = show_window(store, 5, 1, 4)
    ids = store.tokens[start + 1 : start + 4].tolist()
    assert shown.plain == shown.with_marks
    assert shown.plain.encode() == store.vocabulary.join(ids).decode(errors="replace").encode()
    assert (shown.sequence, shown.start, shown.stop, shown.marked) == (5, 1, 4, (False,) * 3)


def test_the_first_promoted_tokens(store) -> None:
    effects = store[0, 0].promoted
    assert token_texts(effects, 3) == [effect.text for effect in effects][:3]
