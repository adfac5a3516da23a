"""A sample file grows to the same bytes wherever it was cut, and is never taken for whole before it is."""

from __future__ import annotations

import errno
import json

import pytest

from tc_adapters_lens.errors import DataError
from tc_adapters_lens.models import sampled_file
from tc_adapters_lens.models.sampled_file import meta_path, read_sampled, write_sampled
from tc_adapters_lens.models.sampling import Sampled

PROMPTS = [[1, 5], [1], [1, 6, 7], [2], [3, 4]]
SETTINGS = {"temperature": 0.7, "batch_size": 2, "end_tokens": [2]}
ROWS = [Sampled([*prompt, 8, number], len(prompt), number % 2 == 0) for number, prompt in enumerate(PROMPTS)]


def write(path, stop=None, **settings):
    """Write ROWS, being interrupted before row `stop`; gives the description and the rows that were sampled."""
    sampled = []

    def rows(start):
        for number in range(start, len(ROWS)):
            if number == stop:
                raise KeyboardInterrupt
            sampled.append(number)
            yield ROWS[number]

    meta = write_sampled(path, PROMPTS, {**SETTINGS, **settings}, {"about": "this"}, rows)
    return meta, sampled


def test_rows_and_description(tmp_path):
    path = tmp_path / "new" / "r.jsonl"
    meta, sampled = write(path)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert rows == [row._asdict() for row in ROWS]
    assert sampled == [0, 1, 2, 3, 4]
    assert meta == read_sampled(path)
    assert (meta["n_rows"], meta["n_tokens"], meta["n_response_tokens"], meta["n_finished"]) == (5, 9 + 10, 10, 3)
    assert meta["settings"] == {"n_rows": 5, **SETTINGS}
    assert meta["about"] == "this"
    assert {file.name for file in path.parent.iterdir()} == {"r.jsonl", "r.jsonl.meta.json"}
    before = path.stat().st_mtime_ns
    assert write(path) == (meta, [])
    assert path.stat().st_mtime_ns == before


@pytest.mark.parametrize("stop", range(5))
def test_an_interrupted_one_goes_on_after_its_last_whole_batch(stop, tmp_path):
    whole, path = tmp_path / "whole.jsonl", tmp_path / "r.jsonl"
    write(whole)
    with pytest.raises(KeyboardInterrupt):
        write(path, stop)
    n_whole = stop - stop % 2
    assert path.read_text().count("\n") == n_whole
    with pytest.raises(DataError, match=f"Got {n_whole} of 5 rows"):
        read_sampled(path)
    meta, sampled = write(path)
    assert sampled == list(range(n_whole, 5))
    assert path.read_bytes() == whole.read_bytes()
    assert meta == read_sampled(whole)


def test_cut_or_damaged_at_any_byte(tmp_path):
    path = tmp_path / "r.jsonl"
    meta, _ = write(path)
    whole = path.read_bytes()
    for size in range(len(whole) + 1):
        for tail in (b"", b"\0\0\n"):
            path.write_bytes(whole[:size] + tail)
            meta_path(path).write_text(json.dumps({**meta, "complete": False}))
            n_whole = whole[:size].count(b"\n")
            _, sampled = write(path)
            assert path.read_bytes() == whole
            assert sampled == list(range(5 if n_whole == 5 else n_whole - n_whole % 2, 5))
    assert read_sampled(path) == meta


def test_without_a_description_it_is_not_ours(tmp_path):
    path = tmp_path / "r.jsonl"
    path.write_text("{}\n")
    assert read_sampled(path) is None
    meta_path(path).write_text('{"format": "of something else"}')
    assert read_sampled(path) is None
    with pytest.raises(DataError, match="was not written by"):
        write(path)
    path.unlink()
    with pytest.raises(DataError, match="is something else"):
        write(path)
    with pytest.raises(DataError, match="was not written by"):
        write(tmp_path)


def test_a_description_that_is_left_alone_is_no_obstacle(tmp_path):
    path = tmp_path / "r.jsonl"
    write(path)
    path.unlink()
    with pytest.raises(DataError, match="changed or removed"):
        read_sampled(path)
    _, sampled = write(path, temperature=1.0)
    assert sampled == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("complete", [True, False])
def test_other_settings_are_refused(complete, tmp_path):
    path = tmp_path / "r.jsonl"
    meta, _ = write(path)
    meta_path(path).write_text(json.dumps({**meta, "complete": complete}))
    before = path.read_bytes()
    with pytest.raises(DataError, match=r"begun with temperature 0\.7\. Got 1\.0; name another file"):
        write(path, temperature=1.0)
    assert path.read_bytes() == before


def test_a_whole_file_that_was_changed(tmp_path):
    path = tmp_path / "r.jsonl"
    write(path)
    with path.open("a") as file:
        file.write("\n")
    for use in (read_sampled, write):
        with pytest.raises(DataError, match=r"is not the file that r\.jsonl\.meta\.json describes"):
            use(path)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ('{"format"', "must be JSON"),
        ({"version": 3}, "Got version 3; sample"),
        ({"sha256": None, "version": 0}, "Got version 0"),
        ("without settings", "without settings"),
    ],
)
def test_a_description_that_cannot_be_used(change, says, tmp_path):
    path = tmp_path / "r.jsonl"
    meta, _ = write(path)
    if change == "without settings":
        meta_path(path).write_text(json.dumps({key: meta[key] for key in meta if key != "settings"}))
    else:
        meta_path(path).write_text(change if isinstance(change, str) else json.dumps({**meta, **change}))
    with pytest.raises(DataError, match=says):
        read_sampled(path)


def test_one_of_batchwise_draws_is_read_where_it_is_whole_and_not_gone_on_with(tmp_path):
    path = tmp_path / "r.jsonl"
    meta, _ = write(path)
    old = {**meta, "version": sampled_file.BATCHWISE}
    meta_path(path).write_text(json.dumps(old))
    assert read_sampled(path) == old
    assert write(path) == (old, [])
    meta_path(path).write_text(json.dumps({**old, "complete": False}))
    before = path.read_bytes()
    for use in (read_sampled, write):
        with pytest.raises(DataError, match=r"must be of version 2\. Got version 1; sample to another file\."):
            use(path)
    assert path.read_bytes() == before


def test_a_second_writer_is_noticed(tmp_path):
    path = tmp_path / "r.jsonl"

    def rows(start):
        for number, row in enumerate(ROWS):
            if number == 4:
                with path.open("a") as file:
                    file.write("{}\n")
            yield row

    with pytest.raises(DataError, match="changed while it was written"):
        write_sampled(path, PROMPTS, SETTINGS, {}, rows)


def test_a_full_disk_is_one_line_and_can_be_gone_on_from(tmp_path, monkeypatch):
    path, n_calls = tmp_path / "r.jsonl", []

    def full(descriptor):
        n_calls.append(descriptor)
        if len(n_calls) == 3:  # the description, the first batch, the second batch
            raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(sampled_file.os, "fsync", full)
        with pytest.raises(DataError, match=r"r\.jsonl failed: No space left on device\. Its whole rows stay"):
            write(path)
    with pytest.raises(DataError, match="of 5 rows"):
        read_sampled(path)
    assert write(path)[0] == read_sampled(path)
