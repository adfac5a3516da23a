"""The estimate of training memory, against what two training steps really hold."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tc_adapters_lens.models.adapter_set import AdapterSet, AdapterSetInfo
from tc_adapters_lens.models.pair import load_pair
from tc_adapters_lens.training.config import AdapterConfig, DataConfig, ObjectiveConfig, OptimConfig, TrainingConfig
from tc_adapters_lens.training.joint import JointTranscoder, JointTranscoderConfig
from tc_adapters_lens.training.memory import estimate_memory
from tc_adapters_lens.training.step import training_step
from tests.tiny import D_VOCAB, tiny_pair

WORST_CUTOFF = 1


class LiveBytes(TorchDispatchMode):
    """Bytes of every storage that torch made inside, now and at most."""

    def __init__(self) -> None:
        super().__init__()
        self.live: dict[int, int] = {}
        self.now = self.peak = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, torch.Tensor):
                self._see(leaf.untyped_storage())
        return out

    def _see(self, storage: torch.UntypedStorage) -> None:
        key = id(storage)
        if key not in self.live:
            self.live[key] = storage.nbytes()
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._forget, key)

    def _forget(self, key: int) -> None:
        self.now -= self.live.pop(key)


def config(dtype: str, batch: int, context: int, n_features: int) -> TrainingConfig:
    return TrainingConfig(
        base="base",
        target="target",
        dtype=dtype,
        data=DataConfig(path="none", context_size=context),
        adapters=AdapterConfig(n_features),
        training=OptimConfig(batch_size_prompts=batch),
    )


@pytest.mark.parametrize(
    ("family", "dtype", "batch", "context", "n_features"),
    [
        ("qwen2", "float32", 2, 256, 64),  # attention outweighs all else
        ("gemma2", "bfloat16", 2, 256, 64),
        ("qwen3", "bfloat16", 2, 256, 64),
        ("neox", "float32", 2, 256, 64),
        ("llama", "float32", 2, 64, 2048),  # features do
        ("llama", "bfloat16", 2, 64, 2048),
        ("qwen2", "float32", 1, 8, 4096),  # adapter weights do
        ("qwen2", "bfloat16", 1, 8, 4096),
    ],
)
def test_the_estimate_is_a_close_upper_bound(family, dtype, batch, context, n_features):
    base, target = tiny_pair(family)
    run = config(dtype, batch, context, n_features)
    estimate = estimate_memory(run, target.config)
    n_layers, d_model = target.config.num_hidden_layers, target.config.hidden_size
    with LiveBytes() as bytes_:
        model = load_pair(base, target, dtype=getattr(torch, dtype)).requires_grad_(False)
        joint = JointTranscoder(JointTranscoderConfig(d_in=d_model, d_sae=n_features, n_layers=n_layers))
        joint.load_adapters(AdapterSet.fresh(n_layers, d_model, n_features, AdapterSetInfo(model.pair)))
        adam = torch.optim.Adam(joint.parameters())
        tokens = torch.randint(0, D_VOCAB, (batch, context))
        gc.collect()
        bytes_.peak = bytes_.now
        for _ in range(2):
            mask = torch.ones_like(tokens).bool()
            positions = torch.arange(tokens.numel())
            adapters = joint.layer_weights(model.cfg.dtype)
            training_step(model, adapters, tokens, mask, positions, WORST_CUTOFF, ObjectiveConfig(), 1e-3)
            adam.step()
            adam.zero_grad(set_to_none=False)
    assert bytes_.peak <= estimate.total <= 1.25 * bytes_.peak


def test_the_estimate_grows_with_what_it_depends_on():
    model = tiny_pair("qwen2")[1].config
    small = estimate_memory(config("float32", 1, 128, 64), model)
    assert small.total == sum(small.parts.values())
    twice = estimate_memory(config("float32", 1, 256, 64), model)
    assert twice.parts["attention for backward"] > 3.5 * small.parts["attention for backward"]
    assert twice.parts["MLPs for backward"] == 2 * small.parts["MLPs for backward"]
    more = estimate_memory(config("float32", 1, 128, 128), model)
    assert more.parts["Adam"] == 8 * 3 * (2 * 32 * 128 + 128 + 32)  # two float32 moments of three adapters
    half = estimate_memory(config("bfloat16", 1, 128, 64), model)
    assert half.parts["target weights"] == small.parts["target weights"] / 2


def test_without_a_context_size_sequences_are_as_long_as_the_model_takes():
    run = TrainingConfig(base="base", target="target", data=DataConfig(path="none"))
    assert estimate_memory(run, tiny_pair("qwen2")[1].config).context == 1024
