"""Search in the held-out text, beside a loop over features, examples and places in the text."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from tc_adapters_lens.serve.text_search import Building, TextIndex, byte_counts
from tests.features.builder import synthetic_store

WORDS = ("a", "ab", "b", "ba", " Wait", " wait", "", "é", "\n", "aaa")


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return synthetic_store(
        tmp_path_factory.mktemp("store") / "features",
        n_layers=2,
        n_features=12,
        k=3,
        n_sequences=30,
        longest=25,
        d_vocab=14,
        words=WORDS,
        before=4,
        after=2,
    )


def naive(store, part: str, match_case: bool) -> set[int]:
    """Rows of features with an example whose window, cut at its sequence, holds the whole text in whole tokens."""
    needle = part.encode() if match_case else part.encode().lower()
    found = set()
    for layer in range(store.info.n_layers):
        for feature in range(store.info.n_features):
            read = store[layer, feature]
            for example in (*read.top, *read.sampled):
                text = store.vocabulary.join(example.tokens)
                if needle in (text if match_case else text.lower()):
                    found.add(layer * store.info.n_features + feature)
    return found


@pytest.mark.parametrize("match_case", [True, False])
@pytest.mark.parametrize(
    "part", ["a", "ab", "aa", "abab", "aaaa", " wait", "wait wait", "é", "\n", "aé", "z", "ab" * 40, " w11", "Wait\n"]
)
def test_found_as_by_a_loop(store, part, match_case):
    found = TextIndex.of(store).rows(part, match_case)
    assert found.dtype == bool
    assert set(np.flatnonzero(found).tolist()) == naive(store, part, match_case)


def test_half_a_character_is_in_no_search(store):
    assert not TextIndex.of(store).rows("").any()
    # E2 82 AC, the two halves that `make_vocabulary` adds, are found as the character they make.
    assert set(np.flatnonzero(TextIndex.of(store).rows("€")).tolist()) == naive(store, "€", True)


def small(text: list[bytes], sequences: list[int], peaks: list[int], before: int, after: int) -> TextIndex:
    sizes = np.array([len(token) for token in text])
    return TextIndex(b"".join(text), sizes, np.array(sequences), np.array(peaks)[:, None], before, after)


def tokens(index: TextIndex, part: str) -> list[tuple[int, int]]:
    """First and last token of each occurrence."""
    spans = index.occurrences(part)
    return list(zip(spans.first.tolist(), spans.last.tolist(), strict=True))


def test_a_window_must_hold_all_of_it_and_sequences_part_it():
    text = [b"x", b"so", b"me", b"y", b"so", b"me", b"z"]
    #        0    1      2      3  | 4      5      6       two sequences
    index = small(text, [0, 4, 7], [0, 1, 2, 3, 4, 5, 6], before=1, after=1)
    assert tokens(index, "some") == [(1, 2), (4, 5)]
    # "some" is tokens 1 to 2: windows round 1 (0 to 2) and 2 (1 to 3) hold it; of tokens 4 to 5, those round 4 and 5.
    assert np.flatnonzero(index.rows("some")).tolist() == [1, 2, 4, 5]
    assert not index.rows("yso").any(), "the end of one sequence and the start of the next"
    assert not index.rows("xsomey").any(), "four tokens do not fit in three"
    assert not index.rows("zx").any(), "the text's end and its start"
    none = small(text, [0, 4, 7], [-1, 5], before=1, after=1)
    assert none.rows("z").tolist() == [False, True], "where there is no example there is no peak at the text's end"


def test_occurrences_overlap_and_empty_tokens_hold_nothing():
    index = small([b"a", b"", b"aa"], [0, 3], [0], before=2, after=2)
    # "aa" at byte 0 touches tokens 0 to 2 (the empty token 1 between), at byte 1 token 2 only.
    assert tokens(index, "aa") == [(0, 2), (2, 2)]


def test_bytes_are_counted_in_blocks():
    text = np.tile(np.arange(256, dtype=np.uint8), (1 << 22) // 256 + 1)
    assert (byte_counts(text) == (1 << 22) // 256 + 1).all()


def test_the_index_is_made_in_a_thread_and_its_failure_told(store):
    assert (Building(store).rows("ab", True) == TextIndex.of(store).rows("ab")).all()

    class Broken:
        @property
        def info(self):
            raise ValueError(threading.current_thread().name)

    with pytest.raises(ValueError, match="Thread"):
        Building(Broken()).rows("ab", True)
