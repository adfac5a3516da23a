"""Prompts of graphs: texts, messages, and places in sampled responses."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

pytest.importorskip("circuit_tracer")

from tc_adapters_lens.cli.graph_prompts import TextPrompts, TokenPrompts, parse_rows
from tc_adapters_lens.errors import ConfigError, DataError
from tc_adapters_lens.training.config import DataConfig
from tests.cli.graph_run import CHAT
from tests.tiny import D_VOCAB, word_tokenizer

MODEL = SimpleNamespace(tokenizer=word_tokenizer(), cfg=SimpleNamespace(d_vocab=D_VOCAB, n_ctx=64))


def encode(text: str) -> list[int]:
    return MODEL.tokenizer(text).input_ids


def of_rows(tmp_path, content, template=None, **options):
    """Prompts' tokens and sources from rows of a file."""
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in content))
    data = DataConfig(path=str(path), chat_template=template)
    found = TokenPrompts(data, **{"rows": None, "before": None, "end": None, "n": None, **options}).load(MODEL)
    assert all(prompt.source["from"] == str(path) for prompt in found)
    return {prompt.name: (prompt.tokens, prompt.source["next"]) for prompt in found}


def test_a_text_and_its_name() -> None:
    (prompt,) = TextPrompts("w5 w6", None, False, None).load(MODEL, encode)
    assert prompt == ("w5-w6", [5, 6], {"from": "--prompt", "chat": False})
    for text, name in (
        ("What is 17 + 25?", "what-is-17-25"),
        ("../../etc/passwd", "etc-passwd"),
        ("<script>alert(1)</script>\n", "script-alert-1-script"),
        ("日本語 \u202e", "prompt"),
        ("a" * 90, "a" * 40),
        ("a" * 39 + " b", "a" * 39),
        ("CON\x00.json", "con-json"),
    ):
        assert TextPrompts(text, None, False, None).load(MODEL, encode)[0].name == name


def test_a_directory_of_texts(tmp_path) -> None:
    (tmp_path / "b b.txt").write_bytes(b"\xef\xbb\xbfw7\r\n")
    (tmp_path / "a.txt").write_text("w5\nw6\n\n", encoding="utf-8")
    (tmp_path / "notes.md").write_text("w9")
    texts = []
    found = TextPrompts(None, str(tmp_path), False, None).load(MODEL, lambda text: texts.append(text) or encode(text))
    assert [(prompt.name, prompt.source["from"]) for prompt in found] == [("a", "a.txt"), ("b-b", "b b.txt")]
    assert [prompt.tokens for prompt in found] == [[5, 6], [7]]
    assert texts == ["w5\nw6\n", "w7"]  # the last line break is the editor's


def test_texts_that_are_none(tmp_path) -> None:
    def refused(line, prompt=None, directory=None, **options):
        with pytest.raises(DataError, match=line) as failure:
            TextPrompts(prompt, directory, options.get("chat", False), options.get("template")).load(MODEL, encode)
        assert "\n" not in str(failure.value)

    refused(r"at least a word\. Got none in --prompt", " \n")
    refused(r"must be text in UTF-8\. Got other bytes in --prompt", "w5 \udc80")
    refused(r"must be a directory with \.txt files.* Got .*nowhere", None, str(tmp_path / "nowhere"))
    refused(r"must be a directory with \.txt files", None, str(tmp_path))
    (tmp_path / "a.txt").write_bytes(b"w5 \xff")
    refused(r"a\.txt must be text in UTF-8\. Got: ", None, str(tmp_path))
    (tmp_path / "a.txt").write_text("\n")
    refused(r"Got none in a\.txt", None, str(tmp_path))
    refused("needs a chat template", "w5", chat=True)
    refused("must be valid Jinja", "w5", chat=True, template="{% if %}")
    refused("does not: refused by the chat template", "w5", chat=True, template="{{ raise_exception('no') }}")


def test_a_message() -> None:
    (prompt,) = TextPrompts("w5 w6", None, True, CHAT).load(MODEL, encode)
    assert prompt.tokens == [90, 5, 6, 91]
    assert prompt.source == {"from": "--prompt", "chat": True}


ROWS = [
    {"input_ids": [5, 6, 7, 8, 6], "prompt_length": 3},
    {"input_ids": [9, 10, 11], "prompt_length": 3},
    {"input_ids": [12, 13, 6, 14, 6], "prompt_length": 1},
]


def test_places_in_responses(tmp_path) -> None:
    assert of_rows(tmp_path, ROWS) == {
        "row0-at3": ([5, 6, 7], 8),
        "row1-at3": ([9, 10, 11], None),
        "row2-at1": ([12], 13),
    }
    assert of_rows(tmp_path, ROWS, before="W6 ") == {
        "row0-at4": ([5, 6, 7, 8], 6),  # that in the question is none
        "row2-at2": ([12, 13], 6),
    }
    assert of_rows(tmp_path, ROWS, end=5) == {
        "row0-at5": ([5, 6, 7, 8, 6], None),
        "row2-at5": ([12, 13, 6, 14, 6], None),
    }
    assert list(of_rows(tmp_path, ROWS, end=4, n=1)) == ["row0-at4"]
    assert list(of_rows(tmp_path, ROWS, rows=(2, 0), n=2)) == ["row2-at1", "row0-at3"]


def test_places_where_nothing_tells_the_response(tmp_path) -> None:
    rows = [{"input_ids": [5, 6, 7, 6]}, {"input_ids": [8, 9]}]
    assert of_rows(tmp_path, rows) == {"row0-at3": ([5, 6, 7], 6), "row1-at1": ([8], 9)}
    assert of_rows(tmp_path, rows, before="w6") == {"row0-at1": ([5], 6)}
    assert of_rows(tmp_path, [{"text": "w5 w6 w7"}]) == {"row0-at2": ([5, 6], 7)}


def test_places_in_chats(tmp_path) -> None:
    """The prompt ends where the first response begins, and words count in responses only."""
    said = [("user", "w5"), ("assistant", "w6 w7"), ("user", "w8 w9"), ("assistant", "w9")]
    rows = [{"messages": [{"role": role, "content": text} for role, text in said]}]
    tokens = [90, 5, 91, 6, 7, 2, 90, 8, 9, 91, 9, 2]
    assert of_rows(tmp_path, rows, CHAT) == {"row0-at3": (tokens[:3], 6)}
    assert of_rows(tmp_path, rows, CHAT, before="w9") == {"row0-at10": (tokens[:10], 9)}


def test_a_prompt_that_begins_the_thinking(tmp_path) -> None:
    """<think> belongs to the question where the generation prompt has it."""
    tokenizer = word_tokenizer()
    tokenizer.add_tokens(["<think>", "</think>"])
    model = SimpleNamespace(tokenizer=tokenizer, cfg=SimpleNamespace(d_vocab=D_VOCAB + 2, n_ctx=64))
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"input_ids": [5, 6, D_VOCAB, 7, 8, D_VOCAB + 1, 9], "prompt_length": 3}))
    (prompt,) = TokenPrompts(DataConfig(path=str(path)), None, None, None, None).load(model)
    assert prompt.tokens == [5, 6, D_VOCAB]


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"rows": (0, 7)}, r"--rows must be from 0 to 2\. Got 7\."),
        ({"before": "w40"}, r"Got none: the word 'w40' in a response is not in any row\."),
        ({"before": "w6", "rows": (1,)}, r"the word 'w6' in a response is not in rows 1\."),
        ({"end": 9}, r"Got none: 9 tokens is not in any row\."),
    ],
)
def test_places_that_are_none(tmp_path, options, line) -> None:
    with pytest.raises(DataError, match=line):
        of_rows(tmp_path, ROWS, **options)


def test_rows() -> None:
    assert parse_rows("3") == (3,)
    assert parse_rows("4, 0-2,1,7-7") == (4, 0, 1, 2, 7)
    for text in ("", "a", "1-", "-1", "3-1", "1;2", "1,", "0-9999999999", "²"):
        with pytest.raises(ConfigError, match=r"--rows must be .* Got '"):
            parse_rows(text)
