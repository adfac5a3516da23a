"""Tokenised once: a cached load equals a fresh one, is made anew when anything it depends on changes or it is
damaged, and never stands in the way of a run."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import datasets
import numpy as np
import pytest
from tokenizers import AddedToken
from transformers import PreTrainedTokenizerFast

from tc_adapters_lens.errors import DataError
from tc_adapters_lens.training import data as data_module
from tc_adapters_lens.training import data_cache, data_key
from tc_adapters_lens.training.config import DataConfig
from tc_adapters_lens.training.data import DataReport, TokenSequences, load_sequences
from tc_adapters_lens.training.data_key import LocalContent, sequences_key
from tests.tiny import D_VOCAB, word_tokenizer

N_CTX = 16
TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'user' %}w3 {{ m.content }} {% else %}w4 {% generation %}"
    "{{ m.content }} w2 {% endgeneration %}{% endif %}{% endfor %}"
)
ROWS: dict[str, list[dict[str, Any]]] = {
    "text": [{"text": f"w{n} w5 w{n + 1} w6"} for n in range(30, 50)] + [{"text": ""}, {"text": "w7"}],
    "tokens": [{"input_ids": [n, 5, 6] * (n // 4), "prompt_length": 2} for n in range(10, 40)],
    "chat": [
        {"messages": [{"role": "user", "content": f"w{n} w5"}, {"role": "assistant", "content": f"w6 w{n}"}]}
        for n in range(30, 50)
    ],
}


@pytest.fixture(autouse=True)
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where this test's entries are."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    monkeypatch.setenv("TC_ADAPTERS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "sequences"


@pytest.fixture
def n_made(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """How often rows were tokenised since it was asked last."""
    calls, tokenise = [], data_module._tokenise

    def counting(*arguments: Any) -> Any:
        calls.append(arguments)
        return tokenise(*arguments)

    def count() -> int:
        n = len(calls)
        calls.clear()
        return n

    monkeypatch.setattr(data_module, "_tokenise", counting)
    return count


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """What the cache logged since it was asked last."""
    caplog.set_level(logging.INFO, logger="tc_adapters_lens")

    def take() -> list[str]:
        told = [message for message in caplog.messages if message.startswith("tokenised data: ")]
        caplog.clear()
        return told

    return take


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


@pytest.fixture
def text_file(tmp_path: Path) -> Path:
    return write(tmp_path / "rows.jsonl", ROWS["text"])


def load(path: Path, **options: Any) -> tuple[TokenSequences, DataReport]:
    tokenizer = word_tokenizer(chat_template=TEMPLATE)
    return load_sequences(DataConfig(str(path), **options), tokenizer, D_VOCAB, N_CTX)


def entry(directory: Path) -> Path:
    (path,) = directory.glob("*.safetensors")
    return path


def assert_equal(ours: tuple[TokenSequences, DataReport], theirs: tuple[TokenSequences, DataReport]) -> None:
    assert (ours[0].rows is None) == (theirs[0].rows is None)
    for name in ("tokens", "mask", "offsets", *([] if ours[0].rows is None else ["rows"])):
        mine, other = getattr(ours[0], name), getattr(theirs[0], name)
        assert mine.dtype == other.dtype
        assert np.array_equal(mine, other)
    assert ours[1] == theirs[1]
    assert ours[0].fingerprint() == TokenSequences(theirs[0].tokens, theirs[0].mask, theirs[0].offsets).fingerprint()


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("text", {}),
        ("text", {"packing": True, "context_size": 7}),
        ("text", {"max_sequences": 5}),
        ("tokens", {"loss_on": "response", "too_long": "drop"}),
        ("chat", {}),
        ("chat", {"loss_on": "response"}),
    ],
)
def test_a_hit_equals_a_miss(tmp_path: Path, n_made, lines, caplog, directory: Path, kind: str, options: dict):
    path = write(tmp_path / "rows.jsonl", ROWS[kind])
    missed = load(path, **options)
    assert n_made() == 1
    assert lines() == [f"tokenised data: kept in the cache, {entry(directory)} (TC_ADAPTERS_CACHE moves it)"]
    hit = load(path, **options)
    assert n_made() == 0
    assert caplog.messages == [f"tokenised data: read from the cache, {entry(directory)}", *hit[1].lines()]
    assert_equal(hit, missed)
    assert hit[0].n_counted.tolist() == missed[0].n_counted.tolist()
    assert not list(directory.glob("*.partial")) + list(directory.glob(".*.partial"))


def test_a_hit_is_mapped_and_cannot_be_written(text_file: Path):
    load(text_file)
    sequences, _ = load(text_file)
    for array in (sequences.tokens, sequences.mask, sequences.offsets):
        assert not array.flags.writeable
        assert not array.flags.owndata
    assert sequences.batch([0]).tokens.tolist() == [[30, 5, 31, 6]]


def test_a_hit_neither_opens_the_rows_nor_hashes_the_sequences(text_file: Path, monkeypatch: pytest.MonkeyPatch):
    missed, _ = load(text_file)

    def refuse(*_: Any) -> None:
        raise AssertionError

    monkeypatch.setattr(data_module, "open_rows", refuse)
    monkeypatch.setattr("tc_adapters_lens.training.sequences.hashlib.sha256", refuse)
    monkeypatch.setattr(data_module, "sequences_key", lambda *_: entry(data_cache.cache_directory()).stem)
    assert load(text_file)[0].fingerprint() == missed.fingerprint()


class TestKey:
    OTHERS: ClassVar[dict[str, Any]] = {
        "path": "elsewhere",
        "name": "other",
        "split": "test",
        "revision": "abc",
        "format": "text",
        "text_column": "body",
        "chat_column": "chat",
        "tokens_column": "ids",
        "chat_template": "{{ messages[0].content }}",
        "loss_on": "response",
        "context_size": 8,
        "packing": True,
        "too_long": "drop",
        "max_sequences": 3,
        "subset_seed": 43,
    }

    def key(self, tokenizer: PreTrainedTokenizerFast | None = None, **changes: Any) -> str:
        values = {"data": DataConfig("rows.jsonl"), "rows": "x", "d_vocab": D_VOCAB, "limit": N_CTX, **changes}
        return sequences_key(tokenizer=tokenizer or word_tokenizer(chat_template=TEMPLATE), **values)

    def test_is_a_function_of_its_parts(self):
        assert self.key() == self.key()

    @pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(DataConfig)])
    def test_every_field_counts(self, field: str):
        changed = dataclasses.replace(DataConfig("rows.jsonl"), **{field: self.OTHERS[field]})
        assert self.key(data=changed) != self.key()

    @pytest.mark.parametrize("changes", [{"rows": "y"}, {"d_vocab": D_VOCAB + 1}, {"limit": N_CTX - 1}])
    def test_rows_and_model_count(self, changes: dict):
        assert self.key(**changes) != self.key()

    @pytest.mark.parametrize(
        "tokenizer",
        [
            word_tokenizer(D_VOCAB - 1, chat_template=TEMPLATE),
            word_tokenizer(chat_template=TEMPLATE + " "),
            word_tokenizer(chat_template=TEMPLATE, eos_token="w5"),
            word_tokenizer(chat_template=TEMPLATE, additional_special_tokens=["w9"]),
            word_tokenizer(),
        ],
    )
    def test_the_tokenizers_content_counts(self, tokenizer: PreTrainedTokenizerFast):
        assert self.key(tokenizer) != self.key()

    def test_a_token_added_later_counts(self):
        tokenizer = word_tokenizer(chat_template=TEMPLATE)
        tokenizer.add_tokens([AddedToken("w10 w11")])
        assert self.key(tokenizer) != self.key()

    def test_the_tokenizers_name_does_not_count(self, tmp_path: Path):
        keys = set()
        for name in ("one", "other"):
            word_tokenizer(chat_template=TEMPLATE).save_pretrained(tmp_path / name)
            keys.add(self.key(PreTrainedTokenizerFast.from_pretrained(tmp_path / name)))
        assert len(keys) == 1

    def test_no_tokenizer_is_not_some_tokenizer(self):
        assert sequences_key(DataConfig("rows.jsonl"), "x", None, D_VOCAB, N_CTX) != self.key()

    def test_versions_and_code_count(self, monkeypatch: pytest.MonkeyPatch):
        before = self.key()
        with monkeypatch.context() as patched:
            patched.setattr(data_key, "version", lambda name: "0.0")
            assert self.key() != before
        monkeypatch.setattr(data_key, "_CODE", data_key._CODE[:-1])
        assert self.key() != before

    def test_all_code_that_makes_sequences_counts(self):
        package = Path(data_module.__file__).parent
        reached, ahead = set(), ["data"]
        while ahead:
            name = ahead.pop()
            reached.add(f"{name}.py")
            imports = re.findall(r"from tc_adapters_lens\.training\.(\w+) import", (package / f"{name}.py").read_text())
            ahead += [found for found in imports if f"{found}.py" not in reached]
        assert reached == set(data_key._CODE)


class TestContentCounts:
    def same_times(self, path: Path, content: bytes) -> None:
        """Rewrites a file so that its size and modification time stay."""
        stat = path.stat()
        assert len(content) == stat.st_size
        path.write_bytes(content)
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))

    def test_of_a_file_whose_time_and_size_stay(self, text_file: Path, n_made):
        before, _ = load(text_file)
        self.same_times(text_file, text_file.read_bytes().replace(b"w32 ", b"w77 "))
        after, _ = load(text_file)
        assert n_made() == 2
        assert before.fingerprint() != after.fingerprint()
        assert 77 in after.tokens
        assert 77 not in before.tokens

    @pytest.mark.parametrize("saved", [True, False])
    def test_of_a_directory_whose_times_and_sizes_stay(self, tmp_path: Path, n_made, saved: bool):
        rows = tmp_path / "rows"
        if saved:
            datasets.Dataset.from_list(ROWS["text"]).save_to_disk(rows)
        else:
            rows.mkdir()
            write(rows / "train.jsonl", ROWS["text"])
        load(rows)
        (file,) = [path for path in rows.iterdir() if path.suffix in (".arrow", ".jsonl")]
        self.same_times(file, file.read_bytes().replace(b"w32 ", b"w77 "))
        assert 77 in load(rows)[0].tokens
        assert n_made() == 2
        load(rows)
        assert n_made() == 0

    def test_of_files_behind_links(self, tmp_path: Path, n_made):
        rows, elsewhere = tmp_path / "rows", tmp_path / "elsewhere"
        (rows / "a").mkdir(parents=True)
        elsewhere.mkdir()
        file = write(elsewhere / "train.jsonl", ROWS["text"])
        (rows / "a" / "there").symlink_to(elsewhere)
        (rows / "a" / "back").symlink_to(rows)
        before = LocalContent(rows)
        self.same_times(file, file.read_bytes().replace(b"w32 ", b"w77 "))
        assert before.changed()
        assert LocalContent(rows).digest != before.digest

    def test_of_names(self, tmp_path: Path):
        for name in ("a", "b"):
            (tmp_path / name).mkdir()
            (tmp_path / name / f"{name}.txt").write_text("same")
        assert LocalContent(tmp_path / "a").digest != LocalContent(tmp_path / "b").digest

    def test_of_a_chat_template_file(self, tmp_path: Path, n_made):
        rows = write(tmp_path / "rows.jsonl", ROWS["chat"])
        template = tmp_path / "chat.jinja"
        template.write_text(TEMPLATE)
        load(rows, chat_template=str(template))
        template.write_text(TEMPLATE.replace("w3", "w8"))
        sequences, _ = load(rows, chat_template=str(template))
        assert n_made() == 2
        assert sequences[0][0][0] == 8

    def test_of_a_hub_dataset_by_revision(self, n_made, monkeypatch: pytest.MonkeyPatch):
        revision = ["a"]

        def fetch(*_: Any, **__: Any) -> datasets.Dataset:
            return datasets.Dataset(datasets.Dataset.from_list(ROWS["text"]).data, fingerprint=revision[0])

        monkeypatch.setattr(datasets, "load_dataset", fetch)
        counts = []
        for revision[0] in ("a", "a", "b"):
            load(Path("someone/rows"))
            counts.append(n_made())
        assert counts == [1, 0, 1]


@pytest.mark.parametrize("damage", ["truncated", "longer", "empty", "garbage", "token", "mask", "report", "other key"])
def test_a_damaged_entry_is_made_again(text_file: Path, n_made, lines, directory: Path, damage: str):
    fresh = load(text_file)
    path = entry(directory)
    content = bytearray(path.read_bytes())
    header = 8 + int.from_bytes(content[:8], "little")
    n_tokens = len(fresh[0].tokens)
    if damage == "truncated":
        content = content[:-5]
    elif damage == "longer":
        content += b"\0" * 8
    elif damage == "empty":
        content = bytearray()
    elif damage == "garbage":
        content = bytearray(b"\xff" * 500)
    elif damage in ("token", "mask"):
        stored = json.loads(bytes(content[8:header]))[f"{damage}s" if damage == "token" else damage]["data_offsets"]
        assert stored[1] - stored[0] == n_tokens * (4 if damage == "token" else 1)
        content[header + stored[0] + 3 - 3 * (damage == "mask")] ^= 1
    elif damage == "report":
        assert content.count(b'n_rows\\": 22') == 1
        content = content.replace(b'n_rows\\": 22', b'n_rows\\": 23')
    else:
        load(text_file, context_size=3)
        (other,) = [found for found in directory.glob("*.safetensors") if found != path]
        content = bytearray(other.read_bytes())
        other.unlink()
    path.write_bytes(content)
    n_made()
    lines()

    assert_equal(load(text_file), fresh)
    assert n_made() == 1
    told = lines()
    assert len([line for line in told if "is damaged" in line]) >= 1
    assert all("\n" not in line for line in told)
    assert_equal(load(text_file), fresh)
    assert n_made() == 0
    assert len(list(directory.glob("*.safetensors"))) == 1


def test_what_a_killed_writer_left_is_no_entry(text_file: Path, n_made, directory: Path):
    fresh = load(text_file)
    path = entry(directory)
    path.rename(path.with_name(f".{path.name}.partial"))
    n_made()
    assert_equal(load(text_file), fresh)
    assert n_made() == 1
    assert sorted(found.name for found in directory.iterdir()) == sorted([f".{path.stem}.lock", path.name])


class TestNothingStopsARun:
    def uncached(self, path: Path, n_made, lines, **options: Any) -> str:
        for _ in range(2):
            assert len(load(path, **options)[0]) == 20
            assert n_made() == 1
            told = lines()
            assert len(told) == 1
        return told[0]

    def test_a_file_where_the_directory_should_be(self, text_file, n_made, lines, tmp_path, monkeypatch):
        (tmp_path / "cache").write_text("mine")
        assert "not cached: " in self.uncached(text_file, n_made, lines)
        monkeypatch.delenv("TC_ADAPTERS_CACHE")
        monkeypatch.setattr("huggingface_hub.utils._cache_assets.HF_ASSETS_CACHE", str(tmp_path / "cache"))
        assert "not cached: " in self.uncached(text_file, n_made, lines)
        assert (tmp_path / "cache").read_text() == "mine"

    def test_a_full_disk(self, text_file, n_made, lines, directory, monkeypatch):
        def full(*_: Any, **__: Any) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(data_cache, "save_file", full)
        line = self.uncached(text_file, n_made, lines)
        assert "not cached: Writing " in line
        assert "no space left" in line
        assert not list(directory.glob("*.safetensors"))
        assert not list(directory.glob(".*.partial"))

    def test_a_directory_that_is_not_ours(self, text_file, n_made, lines, monkeypatch):
        def refuse(*_: Any, **__: Any) -> None:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(data_cache, "FileLock", refuse)
        assert "not cached: [Errno 13] Permission denied" in self.uncached(text_file, n_made, lines)

    def test_rows_that_change_while_they_are_read(self, text_file, n_made, lines, directory, monkeypatch):
        tokenise = data_module._tokenise
        contents = iter([b"{}", b"{ }"])

        def meddle(*arguments: Any) -> Any:
            before = text_file.read_bytes()
            made = tokenise(*arguments)
            text_file.write_bytes(next(contents))
            text_file.write_bytes(before)
            return made

        monkeypatch.setattr(data_module, "_tokenise", meddle)
        assert self.uncached(text_file, n_made, lines).endswith("not cached, the rows changed while they were read")
        assert not list(directory.glob("*.safetensors"))

    def test_a_template_that_writes_the_date(self, tmp_path, n_made, lines):
        rows = write(tmp_path / "rows.jsonl", ROWS["chat"])
        dated = "{{ strftime_now('%d') }} " + TEMPLATE
        line = self.uncached(rows, n_made, lines, chat_template=dated)
        assert line.endswith("not cached, the chat template writes the date")

    def test_a_tokenizer_that_cannot_be_saved(self, text_file, n_made, lines, monkeypatch):
        def refuse(*_: Any, **__: Any) -> None:
            raise NotImplementedError("no vocabulary\nfile")

        monkeypatch.setattr(PreTrainedTokenizerFast, "save_pretrained", refuse)
        line = self.uncached(text_file, n_made, lines)
        assert line == "tokenised data: not cached, the tokenizer cannot be saved: no vocabulary"

    def test_unusable_data_is_the_same_error_every_time(self, tmp_path, directory):
        rows = write(tmp_path / "rows.jsonl", [{"text": ""}])
        for _ in range(2):
            with pytest.raises(DataError, match="must have a usable row"):
                load(rows)
        assert not list(directory.glob("*.safetensors"))


def test_off(text_file: Path, tmp_path: Path, n_made, lines, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TC_ADAPTERS_CACHE", "off")
    load(text_file)
    load(text_file)
    assert n_made() == 2
    assert lines() == []
    assert not (tmp_path / "cache").exists()
    assert not Path("off").exists()


def test_given_rows_are_not_cached(tmp_path: Path, lines):
    for rows in (ROWS["text"], datasets.Dataset.from_list(ROWS["text"])):
        load_sequences(DataConfig("rows"), word_tokenizer(), D_VOCAB, N_CTX, rows)
    assert lines() == []
    assert not (tmp_path / "cache").exists()


def test_the_place_without_a_wish_is_hugging_faces(tmp_path: Path, text_file: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("TC_ADAPTERS_CACHE")
    monkeypatch.setattr("huggingface_hub.utils._cache_assets.HF_ASSETS_CACHE", str(tmp_path / "assets"))
    load(text_file)
    assert entry(tmp_path / "assets" / "tc-adapters-lens" / "data" / "sequences").is_file()


def test_tests_leave_the_users_cache_alone():
    from tests import conftest

    assert os.environ["HF_DATASETS_CACHE"].startswith(conftest._CACHES.name)


def test_an_entry_is_readable_as_its_directory(text_file: Path, directory: Path):
    directory.mkdir(parents=True)
    directory.chmod(0o755)
    load(text_file)
    assert entry(directory).stat().st_mode & 0o777 == 0o644


_LOAD = """
import logging, sys, time
from pathlib import Path
from tc_adapters_lens.training import data
from tc_adapters_lens.training.config import DataConfig

logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
tokenise = data._tokenise

def slowly(*arguments):
    time.sleep(1)
    return tokenise(*arguments)

data._tokenise = slowly
own, other = map(Path, sys.argv[2:])
own.touch()
while not other.exists():
    time.sleep(0.001)
print(data.load_sequences(DataConfig(sys.argv[1]), None, 97, 1000)[0].fingerprint())
"""


def test_two_processes_make_one_entry(tmp_path: Path, directory: Path, lines):
    rows = write(tmp_path / "rows.jsonl", ROWS["tokens"] * 50)
    names = [tmp_path / "a", tmp_path / "b"]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", _LOAD, str(rows), str(own), str(other)], stdout=subprocess.PIPE, text=True
        )
        for own, other in (names, names[::-1])
    ]
    outputs = [process.communicate(timeout=120)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    fresh, _ = load_sequences(DataConfig("rows"), None, D_VOCAB, 1000, ROWS["tokens"] * 50)
    assert {output.splitlines()[-1] for output in outputs} == {fresh.fingerprint()}
    assert sorted("kept in the cache" in output for output in outputs) == [False, True]
    assert sorted("read from the cache" in output for output in outputs) == [False, True]
    assert not list(directory.glob(".*.partial"))
    assert entry(directory).is_file()
