"""Token bytes against what each kind of tokenizer itself decodes."""

from __future__ import annotations

import time

import numpy as np
import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer, GPT2Tokenizer, PreTrainedTokenizerFast

from tc_adapters_lens import toy
from tc_adapters_lens.errors import CheckpointError
from tc_adapters_lens.models.vocabulary import Vocabulary
from tests.tiny import word_tokenizer

TEXTS = [
    "Wait, the answer is 42.\n\nIsn't it? do not ask! 's",
    "é ü ñ 漢字かな 한국어 🤔👩‍👩‍👧 \u202eabc\u202c \u200f שלום مرحبا",
    "<script>alert('x')</script>\t\r\n\0 end  two   three",
    "⟨e2 80⟩ ▁ Ġ <0x0A> \ufeff \U0010ffff ~",
]
CORPUS = [*TEXTS, "the cat sat on the mat and the dog sat on the log " * 3] * 3
ADDED = ["<think>", "</think>", AddedToken("<|of▁sentence|>", special=True), "éclair", "a b"]


def _of(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False)
    fast.add_tokens(ADDED)
    return fast


def _byte_level() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=330, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(CORPUS, trainer)
    return _of(tokenizer)


def _sentencepiece(*, strip: bool) -> PreTrainedTokenizerFast:
    """Llama 2's (with strip) and Gemma's own make: blanks as ▁, bytes for what is not in the vocabulary."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    steps = [normalizers.Replace(" ", "▁")]
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), *steps] if strip else steps)
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*parts, decoders.Strip(" ", 1, 0)] if strip else parts)
    alphabet = [f"<0x{byte:02X}>" for byte in range(256)]
    tokenizer.train_from_iterator(CORPUS[-1:], trainers.BpeTrainer(vocab_size=330, special_tokens=["<unk>", *alphabet]))
    tokenizer = Tokenizer.from_str(tokenizer.to_str().replace('"special": true', '"special": false'))
    return _of(tokenizer)


def _metaspace(scheme: str) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme=scheme)
    trainer = trainers.UnigramTrainer(vocab_size=250, unk_token="<unk>", special_tokens=["<unk>"])
    tokenizer.train_from_iterator(CORPUS, trainer)
    return _of(tokenizer)


def _word_piece() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.train_from_iterator(CORPUS, trainers.WordPieceTrainer(vocab_size=250, special_tokens=["[UNK]"]))
    return _of(tokenizer)


def _suffixed() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>", unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.decoder = decoders.BPEDecoder()
    trainer = trainers.BpeTrainer(vocab_size=250, end_of_word_suffix="</w>", special_tokens=["<unk>"])
    tokenizer.train_from_iterator(CORPUS, trainer)
    return _of(tokenizer)


def _words() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.WordLevel(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.train_from_iterator(CORPUS, trainers.WordLevelTrainer(special_tokens=["<unk>"]))
    return _of(tokenizer)


KINDS = {
    "byte_level": (_byte_level, ""),
    "gemma": (lambda: _sentencepiece(strip=False), ""),
    "llama2": (lambda: _sentencepiece(strip=True), "front"),
    "metaspace": (lambda: _metaspace("always"), "front"),
    "metaspace_never": (lambda: _metaspace("never"), ""),
    "word_piece": (_word_piece, "front"),
    "suffixed": (_suffixed, "behind"),
    "words": (_words, "front"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_bytes_joined_are_what_the_tokenizer_decodes(kind) -> None:
    make, dropped = KINDS[kind]
    tokenizer = make()
    vocabulary = Vocabulary.of(tokenizer, len(tokenizer) + 7)
    for text in [*TEXTS, " ".join(TEXTS), "the <think> cat</think><think>"]:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        joined = vocabulary.join(np.array(ids)).decode()
        decoded = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        if dropped == "front":
            joined = joined.removeprefix(" ")
        elif dropped == "behind" and joined != decoded:
            joined = joined.removesuffix(" ")
        assert joined == decoded
        assert b"".join(map(vocabulary.bytes, ids)) == vocabulary.join(ids)
    for token_id, text in enumerate(vocabulary.texts(range(len(vocabulary)))):
        assert text.encode("utf-8")  # no lone surrogate
        assert text == vocabulary.text(token_id)


@pytest.mark.parametrize("kind", ["byte_level", "gemma", "metaspace_never"])
def test_bytes_joined_are_the_text(kind) -> None:
    tokenizer = KINDS[kind][0]()
    vocabulary = Vocabulary.of(tokenizer, len(tokenizer))
    known = tokenizer.get_vocab()
    for text in TEXTS[:1] if kind == "metaspace_never" else TEXTS[:3]:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert known.get("<unk>") not in ids
        assert vocabulary.join(ids) == text.encode()


def test_added_tokens_are_their_text_as_it_is() -> None:
    for make, _ in KINDS.values():
        tokenizer = make()
        vocabulary = Vocabulary.of(tokenizer, len(tokenizer))
        for token in map(str, ADDED):
            assert vocabulary.text(tokenizer.convert_tokens_to_ids(token)).removeprefix(" ") == token


def test_a_broken_piece_and_an_unknown_id_say_what_they_are() -> None:
    tokenizer = _byte_level()
    vocabulary = Vocabulary.of(tokenizer, len(tokenizer) + 3)
    assert vocabulary.text(tokenizer.convert_tokens_to_ids("Ġ")) == " "
    assert vocabulary.text(tokenizer.convert_tokens_to_ids("â")) == "⟨e2⟩"
    assert vocabulary.text(len(tokenizer)) == f"⟨id {len(tokenizer)}⟩"
    assert vocabulary.bytes(len(tokenizer)) == b""
    assert vocabulary.n_known == len(tokenizer)
    with pytest.raises(IndexError, match="Got -1"):
        vocabulary.text(-1)
    pieces = [b"a\xe2\x80", b"\xed\xa0\x80", "é".encode(), b""]
    made = Vocabulary(np.frombuffer(b"".join(pieces), np.uint8), np.cumsum([0, *map(len, pieces)]))
    assert made.texts([0, 1, 2, 3]) == ["a⟨e2 80⟩", "⟨ed a0 80⟩", "é", "⟨id 3⟩"]
    assert made.n_known == 3


def test_the_built_in_pairs_tokenizer() -> None:
    tokenizer = AutoTokenizer.from_pretrained(toy.TARGET)
    vocabulary = Vocabulary.of(tokenizer, len(tokenizer))
    chat = [{"role": "user", "content": "What is 17 + 25 - 8?"}]
    ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True)
    assert vocabulary.join(ids).decode() == tokenizer.decode(ids, clean_up_tokenization_spaces=False)


def test_words_without_a_decoder_have_a_blank_in_front() -> None:
    vocabulary = Vocabulary.of(word_tokenizer(5), 5)
    assert vocabulary.texts(range(5)) == [" w0", " w1", " w2", " w3", " w4"]


def test_slow_tokenizers() -> None:
    class Slow:
        added_tokens_decoder = {3: AddedToken("<a▁b>")}  # noqa: RUF012

        def __len__(self):
            return 5

        def convert_ids_to_tokens(self, ids):
            return [["▁the", "<0x0A>", "cat", "<a▁b>", None][token_id] for token_id in ids]

    vocabulary = Vocabulary.of(Slow(), 6)  # pyright: ignore[reportArgumentType]
    assert vocabulary.texts(range(6)) == [" the", "\n", "cat", "<a▁b>", "⟨id 4⟩", "⟨id 5⟩"]


def test_a_slow_byte_level_tokenizer(tmp_path) -> None:
    fast = _byte_level()
    fast.backend_tokenizer.model.save(str(tmp_path))
    slow = GPT2Tokenizer(str(tmp_path / "vocab.json"), str(tmp_path / "merges.txt"), unk_token=None)
    slow.add_tokens(["<think>", "é▁"])
    vocabulary = Vocabulary.of(slow, len(slow))
    for text in [*TEXTS[:3], "a<think>é▁"]:
        assert vocabulary.join(slow(text)["input_ids"]) == text.encode()


@pytest.mark.parametrize("decoder", [decoders.CTC(), decoders.Replace(Regex("a+"), "b")])
def test_a_decoder_that_needs_the_whole_text_is_one_line(decoder) -> None:
    tokenizer = Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
    tokenizer.decoder = decoder
    with pytest.raises(CheckpointError, match="one by one") as refused:
        Vocabulary.of(PreTrainedTokenizerFast(tokenizer_object=tokenizer), 3)
    assert "\n" not in str(refused.value)


def test_a_large_vocabulary_takes_under_a_second() -> None:
    letters = [chr(code) for code in range(0x4E00, 0x4E00 + 400)]
    words = [a + b for a in letters for b in letters][:152_000]
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token=words[0]))
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    start = time.process_time()
    vocabulary = Vocabulary.of(fast, 152_000)
    assert time.process_time() - start < 3  # 0.5 s; a shared machine may be slower
    assert vocabulary.text(151_999) == words[-1]
