"""A tiny pair with adapters that are active here and there."""

from __future__ import annotations

import pytest
import torch

from tc_adapters_lens import AdapterSet, AdapterSetInfo, load_pair
from tests.tiny import tiny_pair


@pytest.fixture(scope="session")
def tiny_adapters():
    model = load_pair(*tiny_pair("qwen2"))
    adapters = AdapterSet.fresh(model.cfg.n_layers, model.cfg.d_model, 24, AdapterSetInfo(model.pair), seed=3)
    generator = torch.Generator().manual_seed(5)
    for adapter in adapters.values():
        adapter.b_enc.data.uniform_(-0.8, 0.1, generator=generator)
        adapter.W_dec.data.normal_(std=0.1, generator=generator)
    return model, adapters
