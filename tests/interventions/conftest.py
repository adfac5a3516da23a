"""A tiny pair with random adapters, in which every feature counts."""

from __future__ import annotations

import pytest
import torch

from tc_adapters_lens.models.adapter_set import AdapterSet, AdapterSetInfo
from tc_adapters_lens.models.diff_transformer import HookedDiffTransformer
from tc_adapters_lens.models.feature_group import FeatureGroup
from tc_adapters_lens.models.pair import load_pair
from tests.tiny import D_VOCAB, tiny_pair, word_tokenizer

N_FEATURES = 24
TOKENS = torch.randint(0, D_VOCAB, (2, 30), generator=torch.Generator().manual_seed(0))
GROUP = FeatureGroup("some", ((0, 1), (0, 5), (2, 0), (2, 23), (2, 7)), {"by": "hand"})


@pytest.fixture(scope="package")
def model() -> HookedDiffTransformer:
    base, target = tiny_pair("qwen2")
    return load_pair((base, word_tokenizer()), (target, word_tokenizer()), dtype=torch.float64)


@pytest.fixture(scope="package")
def adapters(model: HookedDiffTransformer) -> AdapterSet:
    info = AdapterSetInfo(model.pair, recipe={"config": {"seed": 1}}, measured={"l0": 3.0})
    fresh = AdapterSet.fresh(model.cfg.n_layers, model.cfg.d_model, N_FEATURES, info, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    state = {n: torch.randn(t.shape, generator=generator, dtype=t.dtype) * 0.1 for n, t in fresh.state().items()}
    return AdapterSet.from_state(state, info)
