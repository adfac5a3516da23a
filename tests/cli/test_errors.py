from __future__ import annotations

import pytest

from tc_adapters_lens import errors


@pytest.mark.parametrize("name", [name for name in errors.__all__ if name.endswith("Error")])
def test_one_except_clause_catches_them_all(name):
    assert issubclass(getattr(errors, name), errors.AdapterLensError)


def test_they_are_what_python_programmers_expect():
    for name in ("ConfigError", "CheckpointError", "PairError", "DataError", "AdapterSetError"):
        assert issubclass(getattr(errors, name), ValueError)
    assert issubclass(errors.MissingExtraError, ImportError)


def test_did_you_mean():
    assert errors.did_you_mean("trian", ["train", "evaluate"]) == " Did you mean 'train'?"
    assert errors.did_you_mean("xyz", ["train", "evaluate"]) == ""
    assert errors.did_you_mean("train", []) == ""
