"""Labels of positions and sequences, against what a reader of the words would say."""

from __future__ import annotations

import json
import time
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import datasets
import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from tc_adapters_lens import toy
from tc_adapters_lens.errors import ConfigError, DataError
from tc_adapters_lens.models.vocabulary import Vocabulary
from tc_adapters_lens.training.config import DataConfig
from tc_adapters_lens.training.labels import LabelledText, load_labelled
from tc_adapters_lens.training.positions import label_regions, label_template, template_ids

WORDS = ["<unk>", "<bos>", "<eos>", "<user>", "<bot>", "<think>", "</think>", *"abcdefgh", "yes", "no", "#"]
N_CTX = 32
PLAIN = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}<user>{{ m.content }}"
    "{% else %}<bot>{{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<bot>{% endif %}"
)
UNMARKED = PLAIN.partition("{% if add_gen")[0]  # nothing tells where a response begins


@pytest.fixture(autouse=True)
def _cache_is_temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def make_tokenizer(words: list[str] | None = None, chat_template: str | None = PLAIN) -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words or WORDS)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.add_special_tokens([word for word in words or WORDS if word.startswith("<")])
    names = {"bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=backend, chat_template=chat_template, **names)


def chat(*contents: str) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[i % 2], "content": content} for i, content in enumerate(contents)]


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("\n".join(map(json.dumps, rows)))
    return str(path)


def ids(text: str) -> list[int]:
    return [WORDS.index(word) for word in text.split()]


def load(path: str, tokenizer: Any = None, group_by: str | None = None, **options: Any) -> LabelledText:
    return load_labelled(DataConfig(path, **options), tokenizer or make_tokenizer(), len(WORDS), N_CTX, group_by)


def letters(labelled: LabelledText) -> list[str]:
    """Per sequence one letter a token: p, t, a."""
    assert labelled.regions is not None
    text = "".join(labelled.region_names[number][0] for number in labelled.regions)
    bounds = labelled.sequences.offsets
    return [text[start:stop] for start, stop in pairwise(bounds)]


CASES = [  # the prompt, the response, a letter a token
    ("<bos> <user> a <bot>", "<think> b </think> yes <eos>", "pppp tttaa"),
    ("<bos> <user> a <bot>", "b </think> yes <eos>", "pppp ttaa"),
    ("<bos> <user> a <bot>", "<think> b c", "pppp ttt"),
    ("<bos> <user> a <bot>", "yes <eos>", "pppp aa"),
    ("<bos> <user> a <bot> <think>", "b </think> yes </think> no", "ppppt ttaaa"),
    ("<bos> <user> a <bot> <think>", "b c", "ppppt tt"),
    ("<bos> <user> <think> a <bot>", "b </think> yes", "ppppp tta"),  # a word of the question
    ("<bos> <user> <think> a <bot>", "yes", "ppppp a"),
    ("<user> <think> a <bot> <think>", "b </think> yes", "ppppt tta"),
    ("<user> a <bot> <think> b </think> c <user> d <bot>", "<think> e </think> no", "ppptttpppp ttta"),
    ("a", "<think> b </think> yes <think> c </think> no </think>", "p tttatttaa"),
    ("a", "<think> b <think> c </think> no", "p ttttta"),
]


@pytest.mark.parametrize("loss_on", ["all", "response"])
def test_regions_of_token_ids(tmp_path, loss_on) -> None:
    rows = [{"input_ids": ids(f"{p} {r}"), "prompt_length": len(p.split())} for p, r, _ in CASES]
    labelled = load(write(tmp_path / "rows.jsonl", rows), loss_on=loss_on)
    assert letters(labelled) == [expected.replace(" ", "") for *_, expected in CASES]
    counted = len(labelled.sequences.tokens) if loss_on == "all" else sum(len(r.split()) for _, r, _ in CASES)
    assert labelled.sequences.mask.sum() == counted


@pytest.mark.parametrize("loss_on", ["all", "response"])
def test_regions_of_chats(tmp_path, loss_on) -> None:
    chats = [chat("a b", "<think> c </think> yes", "d", "no"), chat("a", "b </think> yes"), chat("f")]
    rows = [{"messages": messages} for messages in chats]
    found = letters(load(write(tmp_path / "rows.jsonl", rows), loss_on=loss_on))
    expected = ["ppppp" + "tttaa" + "ppp" + "aa", "pppp" + "ttaa", "ppp"]
    assert found == (expected if loss_on == "all" else expected[:2])  # nothing of the last chat counts


def test_rows_without_a_response_keep_their_place(tmp_path) -> None:
    chats = [chat("a", "yes") if index % 3 else chat("a b c") for index in range(20)]
    path = write(tmp_path / "rows.jsonl", [{"messages": messages} for messages in chats])
    labelled = load(path, max_sequences=9, subset_seed=3)
    assert labelled.sequences.rows is not None
    assert letters(labelled) == ["ppppaa" if row % 3 else "ppppp" for row in labelled.sequences.rows]


def test_nothing_tells_regions(tmp_path, caplog) -> None:
    texts = load(write(tmp_path / "text.jsonl", [{"text": "a b <think> c"}]))
    numbers = load(write(tmp_path / "ids.jsonl", [{"input_ids": [7, 8]}]))
    path = write(tmp_path / "chat.jsonl", [{"messages": chat("a", "yes")}])
    caplog.set_level("INFO", logger="tc_adapters_lens")
    unmarked = load(path, make_tokenizer(chat_template=UNMARKED))
    assert "regions: none, " in caplog.text
    for labelled in (texts, numbers, unmarked):
        assert (labelled.region_names, labelled.regions) == ((), None)
    assert "<think>+1" in texts.template_names


def test_without_a_tokenizer_all_is_content(tmp_path) -> None:
    path = write(tmp_path / "ids.jsonl", [{"input_ids": [7, 8, 5], "prompt_length": 1}])
    labelled = load_labelled(DataConfig(path), None, len(WORDS), N_CTX)
    assert labelled.template_names == ("content",)
    assert labelled.template.tolist() == [0, 0, 0]
    assert labelled.regions is None


def test_a_prompt_length_that_is_no_count_is_one_line(tmp_path) -> None:
    rows = [{"input_ids": [7, 8], "prompt_length": 1}, {"input_ids": [7, 8], "prompt_length": None}]
    with pytest.raises(DataError, match=r"must be a count of tokens\. Got None in row 1"):
        load(write(tmp_path / "rows.jsonl", rows))


def test_markers_of_several_tokens_are_found_in_the_text() -> None:
    pieces = ["<unk>", "Ġa", "Ġ<", "think", ">Ċ", ">", "</", "b", "Ġ", "x<"]
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(pieces)}, unk_token="<unk>"))
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")
    vocabulary = Vocabulary.of(tokenizer, len(pieces))
    sequences = [[1, 2, 3, 4, 7, 6, 3, 4, 1], [1, 7, 6, 3, 5, 7], [1, 9, 3, 5, 8, 7, 3, 6, 3, 5]]
    prompts = [4, 1, 5]  # the prompt of the first and of the last ends with the marker
    written = np.concatenate([np.arange(len(s)) >= n for s, n in zip(sequences, prompts, strict=True)])
    offsets = np.cumsum([0, *map(len, sequences)])
    tokens = np.concatenate(sequences).astype(np.int32)
    regions = label_regions(tokens, offsets, written, tokenizer, vocabulary)
    text = "".join("pta"[region] for region in regions)
    assert text == "pttttttta" + "ptttta" + "p" + "t" * 9


@pytest.mark.parametrize("loss_on", ["all", "response"])
def test_template_positions(tmp_path, loss_on) -> None:
    chats = [chat("a b c d", "<think> e </think> yes"), chat("a", "# b c d")]
    labelled = load(write(tmp_path / "rows.jsonl", [{"messages": messages} for messages in chats]), loss_on=loss_on)
    named = [labelled.template_names[number] for number in labelled.template]
    assert named == [
        *["<bos>", "<user>", "<user>+1", "<user>+2", "content", "content", "<bot>"],
        *["<think>", "<think>+1", "</think>", "</think>+1", "<eos>"],
        *["<bos>", "<user>", "<user>+1", "<bot>", "<bot>+1", "<bot>+2", "content", "content", "<eos>"],
    ]
    assert labelled.template_names[0] == "content"
    assert set(labelled.template_names) == {"content", *named}


def test_template_positions_stay_in_their_sequence() -> None:
    tokenizer = make_tokenizer()
    vocabulary = Vocabulary.of(tokenizer, len(WORDS))
    sequences = ["a <think>", "b", "c d e", "<bot>", "f g"]
    tokens = np.array([i for text in sequences for i in ids(text)])
    offsets = np.cumsum([0, *(len(text.split()) for text in sequences)])
    names, template = label_template(tokens, offsets, template_ids(tokenizer, None), vocabulary)
    assert [names[number] for number in template] == [
        *["content", "<think>", "content", "content", "content", "content", "<bot>", "content", "content"]
    ]


def test_template_tokens_are_the_templates_own() -> None:
    tokenizer = make_tokenizer()
    in_order = ids("<bos> <user> <bot> <eos> <think> </think>")
    assert template_ids(tokenizer, None) == in_order
    assert template_ids(tokenizer, "<user>{{ messages[0].content }}") == ids("<bos> <user> <eos> <think> </think>")
    assert template_ids(make_tokenizer(chat_template=None), None) == ids("<bos> <eos> <think> </think>")
    assert template_ids(make_tokenizer(chat_template="{{ raise_exception('no') }}"), None) == template_ids(
        make_tokenizer(chat_template=None), None
    )


class TestGroups:
    ROWS: ClassVar = [
        {"input_ids": [7, 8], "domain": "math"},
        {"input_ids": [7], "domain": "dropped"},
        {"input_ids": [8, 9, 10], "domain": None},
        {"input_ids": [9, 8], "domain": "code"},
        {"input_ids": [9, 9], "domain": "math"},
    ]

    def test_follow_their_rows(self, tmp_path) -> None:
        path = write(tmp_path / "rows.jsonl", self.ROWS)
        for again in range(2):  # the second load is the cache's
            labelled = load(path, group_by="domain")
            assert labelled.groups is not None, again
            assert [labelled.group_names[number] for number in labelled.groups] == ["math", "(none)", "code", "math"]
            assert labelled.group_names == ("(none)", "code", "math")
        drawn = load(path, group_by="domain", max_sequences=3)
        assert drawn.groups is not None
        assert drawn.sequences.rows is not None
        told = [drawn.group_names[number] for number in drawn.groups]
        assert told == [self.ROWS[row]["domain"] or "(none)" for row in drawn.sequences.rows]

    def test_an_unknown_column_is_one_line(self, tmp_path) -> None:
        with pytest.raises(DataError, match=r"Got columns input_ids, domain, not 'domian'\. Did you mean 'domain'\?"):
            load(write(tmp_path / "rows.jsonl", self.ROWS), group_by="domian")

    def test_too_many_values_are_one_line(self, tmp_path) -> None:
        rows = [{"input_ids": [7, 8], "number": n} for n in range(65)]
        path = write(tmp_path / "rows.jsonl", rows)
        with pytest.raises(DataError, match=r"at most 64 values\. Got 65 in 'number'"):
            load(path, group_by="number")

    @pytest.mark.parametrize("group_by", [None, "domain"])
    def test_packed_sequences_are_refused(self, tmp_path, group_by) -> None:
        rows = [{**row, "prompt_length": 1} for row in self.ROWS]
        path = write(tmp_path / "rows.jsonl", rows)
        with pytest.raises(ConfigError, match=r"data\.packing must be off"):
            load(path, group_by=group_by, packing=True, context_size=4)

    def test_packed_text_has_template_positions_alone(self, tmp_path) -> None:
        path = write(tmp_path / "rows.jsonl", [{"text": "a b <think> c"}] * 3)
        labelled = load(path, packing=True, context_size=4)
        assert labelled.sequences.rows is None
        assert labelled.regions is None
        assert len(labelled.template) == 12


def test_the_built_in_pairs_sequences() -> None:
    tokenizer = AutoTokenizer.from_pretrained(toy.TARGET)
    rows = [json.loads(line) for line in toy.EVAL_TOKENS.read_text(encoding="utf-8").splitlines()]
    labelled = load_labelled(DataConfig(str(toy.EVAL_TOKENS)), tokenizer, len(tokenizer), 512, "domain")
    think, end = (tokenizer.convert_tokens_to_ids(word) for word in ("<think>", "</think>"))
    expected = []
    for row in rows:
        region = "prompt"
        for position, token in enumerate(row["input_ids"]):
            if position == row["prompt_length"] and region != "think":
                region = "answer"
            if token == think:
                region = "think"
            expected.append(region)
            if token == end:
                region = "answer"
    assert labelled.regions is not None
    assert [labelled.region_names[number] for number in labelled.regions] == expected
    assert set(expected) == {"prompt", "think", "answer"}
    assert labelled.groups is not None
    assert [labelled.group_names[number] for number in labelled.groups] == [row["domain"] for row in rows]


def test_millions_of_tokens_take_seconds() -> None:
    tokenizer = make_tokenizer()
    vocabulary = Vocabulary.of(tokenizer, len(WORDS))
    n, length = 500, 7_500
    tokens = np.tile(np.array(ids("a b c d"), dtype=np.int32), n * length // 4)
    offsets = np.arange(n + 1) * length
    written = np.arange(len(tokens)) % length >= 100
    tokens[offsets[:-1] + 100], tokens[offsets[:-1] + 5_000] = ids("<think> </think>")
    start = time.process_time()
    regions = label_regions(tokens, offsets, written, tokenizer, vocabulary)
    _, template = label_template(tokens, offsets, template_ids(tokenizer, None), vocabulary)
    assert time.process_time() - start < 3  # 3.75M tokens in 0.2 s
    assert np.bincount(regions).tolist() == [n * 100, n * 4_901, n * 2_499]
    assert np.bincount(template).tolist() == [n * (length - 6), *[n] * 6]
