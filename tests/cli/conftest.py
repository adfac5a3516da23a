"""A tiny pair on disk and adapters for it."""

from __future__ import annotations

import pytest
import torch

from tc_adapters_lens.models.adapter_set import AdapterSet, AdapterSetInfo
from tc_adapters_lens.models.checkpoints import Checkpoint
from tc_adapters_lens.models.pair_info import PairInfo
from tests.tiny import D_MODEL, N_LAYERS, save, tiny_pair, word_tokenizer

N_FEATURES = 6


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """(base, target) directories."""
    root = tmp_path_factory.mktemp("pair")
    models = tiny_pair("qwen2")
    return tuple(
        str(save(model, root / name, word_tokenizer())) for name, model in zip(("base", "target"), models, strict=True)
    )


@pytest.fixture
def adapters(pair, tmp_path):
    """Directory of adapters whose every tensor is random."""
    base, target = (Checkpoint.open(directory) for directory in pair)
    info = AdapterSetInfo(PairInfo(base.name, target.name, None, None, base.fingerprint(), target.fingerprint()))
    adapters = AdapterSet.fresh(N_LAYERS, D_MODEL, N_FEATURES, info, seed=0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for adapter in adapters.values():
            for parameter in adapter.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
    adapters.save(tmp_path / "adapters")
    return tmp_path / "adapters"
