"""Tests run without a network, an account or a display, and leave nothing behind."""

import atexit
import os
import tempfile

import pytest

# Nobody's own caches are read or written, by processes that tests start neither.
_CACHES = tempfile.TemporaryDirectory(prefix="tc-adapters-tests-")
atexit.register(_CACHES.cleanup)
os.environ["TC_ADAPTERS_CACHE"] = os.path.join(_CACHES.name, "tc-adapters")
os.environ["HF_MODULES_CACHE"] = os.path.join(_CACHES.name, "modules")
os.environ["HF_DATASETS_CACHE"] = os.path.join(_CACHES.name, "datasets")

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["WANDB_MODE"] = "offline"
os.environ["MPLBACKEND"] = "Agg"
os.environ["TOKENIZERS_PARALLELISM"] = "false"


@pytest.fixture
def stand_in_scripts(monkeypatch, tmp_path_factory):
    """Browser scripts as if they had been fetched, whether or not they were."""
    from tc_adapters_lens import assets

    directory = tmp_path_factory.mktemp("scripts")

    def find(name):
        path = directory / assets.ASSETS[name].file.name
        path.write_text(f"// stands in for {name}\n")
        return path

    monkeypatch.setattr(assets, "find", find)
