"""Directories and files appear whole or not at all."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from tc_adapters_lens.errors import AdapterSetError
from tc_adapters_lens.models.atomic import atomic_directory, atomic_file, write_json


def test_a_killed_process_is_cleaned_up_after(tmp_path):
    (tmp_path / ".step.partial").mkdir()
    (tmp_path / ".step.partial" / "half").touch()
    with atomic_directory(tmp_path / "step") as directory:
        (directory / "whole").touch()
        assert not (tmp_path / "step").exists()
    assert [path.name for path in tmp_path.rglob("*")] == ["step", "whole"]


def test_killed_between_the_renames_the_old_one_comes_back(tmp_path):
    (tmp_path / ".step.previous").mkdir()
    (tmp_path / ".step.previous" / "old").touch()
    with pytest.raises(RuntimeError), atomic_directory(tmp_path / "step", may_replace=lambda _: True):
        raise RuntimeError
    assert (tmp_path / "step" / "old").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["step"]


def test_a_rename_that_fails_puts_the_old_one_back(tmp_path, monkeypatch):
    (tmp_path / "step").mkdir()
    (tmp_path / "step" / "old").touch()
    rename = Path.rename

    def failing(path, to):
        if path.name == ".step.partial":
            raise OSError(errno.EIO, "Input/output error")
        return rename(path, to)

    monkeypatch.setattr(Path, "rename", failing)
    with (
        pytest.raises(AdapterSetError, match="Input/output error"),
        atomic_directory(tmp_path / "step", may_replace=lambda _: True, error=AdapterSetError),
    ):
        pass
    assert (tmp_path / "step" / "old").exists()


def test_through_a_link(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with atomic_directory(tmp_path / "link") as directory:
        (directory / "x").touch()
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real" / "x").exists()


def test_safetensors_own_words_for_a_full_disk(tmp_path):
    words = "Error while serializing: I/O error: No space left on device (os error 28)"
    with (
        pytest.raises(AdapterSetError, match="no space left on its disk"),
        atomic_directory(tmp_path / "set", error=AdapterSetError),
    ):
        raise SafetensorError(words)
    assert not list(tmp_path.iterdir())


def test_files_may_be_read_by_whom_the_umask_allows(tmp_path):
    with atomic_directory(tmp_path / "set") as directory:
        save_file({"a": torch.zeros(1)}, directory / "a.safetensors")
        (directory / "b").touch()
    modes = {path.stat().st_mode for path in (tmp_path / "set").iterdir()}
    assert len(modes) == 1  # safetensors alone would leave 0600


def test_json_is_strict(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", {"kl": float("inf")})


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    file = tmp_path / "a" / "report.txt"
    with atomic_file(file) as partial:
        partial.write_text("first")
    with pytest.raises(RuntimeError, match="half way"), atomic_file(file) as partial:
        raise RuntimeError(f"half way, after {partial.write_text('half')} letters")
    assert file.read_text() == "first"
    assert [path.name for path in file.parent.iterdir()] == ["report.txt"]
