"""A tiny pair with adapters, a text whose words are hostile, and a true feature store of both."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tc_adapters_lens.features.collect import Collector, Keeping, collect
from tc_adapters_lens.features.promoted import promoted_tokens
from tc_adapters_lens.features.records import StoreInfo
from tc_adapters_lens.features.store import FeatureStore
from tc_adapters_lens.features.store_files import write_store
from tc_adapters_lens.features.text import Text
from tc_adapters_lens.models.adapter_set import AdapterSet, AdapterSetInfo
from tc_adapters_lens.models.diff_transformer import HookedDiffTransformer
from tc_adapters_lens.models.pair import load_pair
from tests.features.builder import HOSTILE, make_vocabulary
from tests.tiny import D_VOCAB, tiny_pair

HOOK = "blocks.{layer}.mlp.hook_delta.hook_sae_acts_post"
N_FEATURES = 12
DEAD = 11  # never active, in every layer


def random_adapters(model: HookedDiffTransformer, seed: int = 5) -> AdapterSet:
    """Features that are active on some tokens, feature 11 on none."""
    adapters = AdapterSet.fresh(model.cfg.n_layers, model.cfg.d_model, N_FEATURES, AdapterSetInfo(model.pair), seed=3)
    generator = torch.Generator().manual_seed(seed)
    for adapter in adapters.values():
        adapter.b_enc.data.uniform_(-0.3, -0.1, generator=generator)
        adapter.b_enc.data[DEAD] = -1000
        adapter.W_dec.data.normal_(std=0.1, generator=generator)
    return adapters


def make_store(directory: Path, model: HookedDiffTransformer, adapters: AdapterSet) -> FeatureStore:
    """30 sequences of 12 to 40 random tokens, a quarter of them hostile, and what the features do on them."""
    rng = np.random.default_rng(0)
    offsets = np.concatenate([[0], np.cumsum(rng.integers(12, 41, 30))])
    tokens = rng.integers(0, 40, offsets[-1]).astype(np.int32)
    text = Text(tokens, offsets, np.ones(len(tokens), dtype=bool))
    keeping = Keeping(k=4, before=5, after=3)
    collector = Collector(adapters.n_layers, N_FEATURES, text, keeping)
    hooks = [HOOK.format(layer=layer) for layer in range(adapters.n_layers)]
    with model.adapters(adapters):
        list(collect(model, hooks, (text.batch(chosen, "cpu") for chosen in text.batches(8)), collector))
    layers = []
    for layer, adapter in adapters.items():
        layers.append(collector.features(layer, *promoted_tokens(model, layer, adapter.W_dec)))
    info = StoreInfo(
        model="replacement",
        hook=HOOK,
        n_layers=adapters.n_layers,
        n_features=N_FEATURES,
        k=keeping.k,
        before=keeping.before,
        after=keeping.after,
        n_windows=len(collector.windows),
        n_sequences=len(text),
        n_tokens=len(tokens),
        n_counted=len(tokens),
        regions=(),
        region_tokens=(),
        group_by=None,
        groups=(),
        group_tokens=(),
        template=(),
        template_tokens=(),
        pair=model.pair.to_dict(),
        adapters="adapters",
        adapters_fingerprint=adapters.fingerprint(),
    )
    write_store(directory, info, layers, text, collector.windows, make_vocabulary(D_VOCAB, HOSTILE))
    return FeatureStore.open(directory, adapters)


@pytest.fixture(scope="session")
def drawable(tmp_path_factory: pytest.TempPathFactory) -> tuple[HookedDiffTransformer, AdapterSet, FeatureStore]:
    model = load_pair(*tiny_pair("qwen2"))
    adapters = random_adapters(model)
    return model, adapters, make_store(tmp_path_factory.mktemp("store") / "features", model, adapters)
