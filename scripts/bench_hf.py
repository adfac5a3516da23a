"""The replacement model beside a plain Hugging Face model with SDPA that has the same adapters beside its base MLPs."""

from __future__ import annotations

import copy
import gc
import statistics
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from scripts.bench_steps import Subject, adapter_hooks
from tc_adapters_lens.core.losses import kl_divergence
from tc_adapters_lens.training.joint import LayerWeights


class MLPWithAdapter(nn.Module):
    """base MLP(x) + adapter(x)."""

    def __init__(self, base: nn.Module, weights: LayerWeights) -> None:
        super().__init__()
        self.base, self.weights = base, weights

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.weights.decode(self.weights.encode(x))


def saved_bytes(run: Callable[[], Tensor], known: Iterable[Tensor]) -> int:
    """Bytes that a forward pass keeps for backward, each storage once, without those of the known tensors."""
    excluded = {tensor.untyped_storage().data_ptr() for tensor in known}
    saved: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in excluded:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = run()
    del out
    gc.collect()
    return sum(saved.values())


def compare_with_hf(
    subject: Subject, repeats: int, alternate: Callable[..., dict[str, list[float]]]
) -> dict[str, dict[str, float]]:
    """Forward, forward and backward on the output KL, and what is kept for backward, of both models.

    Returns:
        What was measured -> {ours, hf, ratio}; seconds, or bytes where the name says MiB.
    """
    shape, model = subject.shape, subject.model
    tokens = subject.tokens.to(shape.device)
    adapters = [
        LayerWeights(*(p.detach().to(shape.torch_dtype).requires_grad_() for p in layer))
        for layer in subject.layer_weights()
    ]
    leaves = [param for layer in adapters for param in layer]
    hf: Any = copy.deepcopy(subject.target, {id(p): p for p in subject.target.parameters()})
    for layer, weights in enumerate(adapters):
        hf.model.layers[layer].mlp = MLPWithAdapter(subject.base.get_submodule(f"model.layers.{layer}.mlp"), weights)
    hf.to(shape.device)

    def ours_resid() -> Tensor:
        hooks = adapter_hooks(dict(enumerate(adapters)), [])
        with model.mode("base"), model.hooks(fwd_hooks=hooks):
            return model.run_layers(model.embed_tokens(tokens))[-1]

    forwards: dict[str, Callable[[], Tensor]] = {
        "ours": lambda: model.unembed_resid(ours_resid()),
        "hf": lambda: hf(tokens, use_cache=False).logits,
    }
    layers_alone: dict[str, Callable[[], Tensor]] = {
        "ours": lambda: model.ln_final(ours_resid()),  # type: ignore[operator]
        "hf": lambda: hf.model(tokens, use_cache=False).last_hidden_state,
    }
    with torch.no_grad():
        target_logits = model(tokens)
        torch.testing.assert_close(forwards["ours"](), forwards["hf"](), atol=1e-1, rtol=1e-1)

    def forward_only(who: str) -> None:
        with torch.no_grad():
            forwards[who]()

    def train(who: str) -> None:
        torch.autograd.grad(kl_divergence(target_logits, forwards[who]()).mean(), leaves)

    results: dict[str, dict[str, float]] = {}
    for what, run in (("forward, ms", forward_only), ("forward and backward, ms", train)):
        runs = {who: lambda who=who, run=run: run(who) for who in forwards}
        alternate(runs, 1, shape.device)
        seconds = alternate(runs, repeats, shape.device)
        results[what] = {who: statistics.median(times) for who, times in seconds.items()}
        pairs = zip(seconds["ours"], seconds["hf"], strict=True)
        results[what]["ratio"] = statistics.median(ours / hf for ours, hf in pairs)
    known = [*model.parameters(), *hf.parameters(), *hf.buffers(), *leaves]
    for what, runs in (("kept by the layers, MiB", layers_alone), ("kept with logits, MiB", forwards)):
        kept = {who: float(saved_bytes(run, known)) for who, run in runs.items()}
        results[what] = {**kept, "ratio": kept["ours"] / kept["hf"]}
    return results
