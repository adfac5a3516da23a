"""Words on features: from a store whose text is hostile, and from decoders."""

from __future__ import annotations

import pandas as pd
import pytest
import torch

pytest.importorskip("circuit_tracer")

from tc_adapters_lens.features.promoted import promoted_tokens
from tc_adapters_lens.features.store import FeatureStore
from tc_adapters_lens.integrations.circuit_tracer import words
from tc_adapters_lens.integrations.circuit_tracer.words import DecoderWords, StoreWords, label_of
from tc_adapters_lens.models.vocabulary import Vocabulary
from tests.features.builder import HOSTILE, synthetic_store
from tests.tiny import D_VOCAB, word_tokenizer


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> FeatureStore:
    return synthetic_store(tmp_path_factory.mktemp("words") / "features", d_vocab=24)


def test_a_stores_features(store) -> None:
    found = StoreWords(store)
    seen = set()
    for key in [(layer, feature) for layer in range(2) for feature in range(30)]:
        feature, ours = store[key], found[key]
        assert ours.promoted == tuple(effect.text for effect in feature.promoted[:10])
        assert ours.inhibited == tuple(effect.text for effect in feature.inhibited[:10])
        assert ours.frequency == feature.frequency
        assert ours.label == label_of(ours.promoted)
        assert len(ours.examples) == min(3, len(feature.top))
        for example, theirs in zip(ours.examples, feature.top, strict=False):
            tokens, at = theirs.tokens.tolist(), theirs.position - theirs.start
            whole = store.vocabulary.join(tokens[max(0, at - 20) : at + 9]).decode(errors="replace")
            joined = example["before"] + example["token"] + example["after"]
            if "\ufffd" not in joined:  # half a character stands alone in a part, and is whole in the text
                assert joined == whole
            assert store.vocabulary.bytes(tokens[at]).decode(errors="replace") == example["token"]
            assert example["activation"] == pytest.approx(float(theirs.activations[at]))
        seen |= {*ours.promoted, *ours.inhibited}
    assert seen >= set(HOSTILE)
    assert found[1, 3] is found[1, 3]


def test_a_description_wins_over_tokens_and_a_class_does_not(tmp_path) -> None:
    store = synthetic_store(tmp_path / "features")
    frame = pd.DataFrame({"layer": [0, 0, 1], "feature": [1, 2, 1], "class": ["output", "output", None]})
    store.add_labels("classes", frame)
    frame = pd.DataFrame({"layer": [0, 1], "feature": [2, 2], "description": ["<b>says wait</b>", ""]})
    store.add_labels("judge", frame)
    found = StoreWords(FeatureStore.open(tmp_path / "features"))
    assert found[0, 2].label == "<b>says wait</b>"
    for key in ((0, 1), (1, 1), (1, 2), (0, 3)):
        assert found[key].label == label_of(found[key].promoted) != ""


def test_decoders_promote_what_features_has_of_them(drawable, monkeypatch) -> None:
    model, adapters, _ = drawable
    vocabulary = Vocabulary.of(word_tokenizer(90), D_VOCAB)
    found = DecoderWords(model, adapters, vocabulary)
    found.find([(1, 5), (0, 3), (1, 2), (1, 5)])
    calls = []
    monkeypatch.setattr(words, "promoted_tokens", lambda *args: calls.append(args) or promoted_tokens(*args))
    for layer, feature in ((1, 5), (0, 3), (1, 2)):
        more, less = promoted_tokens(model, layer, adapters[layer].W_dec[feature][None], 10, 90)
        ours = found[layer, feature]
        assert ours.promoted == tuple(f" w{token}" for token in more.ids[0])
        assert ours.inhibited == tuple(f" w{token}" for token in less.ids[0])
        assert ours.label == ", ".join(f"w{token}" for token in more.ids[0][:3])
        assert (ours.frequency, ours.examples) == (None, ())
    assert not calls
    assert len(found[2, 0].promoted) == 10  # nobody asked for it before
    assert len(calls) == 1
    assert torch.equal(calls[0][2], adapters[2].W_dec[[0]])


@pytest.mark.parametrize(
    ("promoted", "label"),
    [
        ((" Wait", "wait", " Wait ", "Hmm"), "Wait, wait, Hmm"),
        ((" ", "\n", " a", "b", "c", "d"), "a, b, c"),
        ((), ""),
        (("<i>",), "<i>"),
    ],
)
def test_labels(promoted, label) -> None:
    assert label_of(promoted) == label
