"""Time of a feature pass: beside a loop over single activations, and beside the model's forward pass alone.

    bash scripts/bench_features                       # the built-in pair
    bash scripts/bench_features --json bench.json --repeats 7

1. The toy pair with adapters of 1,024 features: `Loop` does, an activation at a time, what the pass does; both read the
   same tokens, model included, and must find the same.
2. The toy pair with adapters of 8,192 features: the pass beside the same forward passes with nothing read.

Adapters are random, with biases set so that each feature is active on as many tokens as it takes for the L0 asked for:
time depends on how many features are active, not on which. Repetitions alternate and ratios are taken within one.
"""

from __future__ import annotations

import argparse
import heapq
import json
import platform
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scripts.bench_measure import alternate, median_ratio
from tc_adapters_lens import AdapterSet, AdapterSetInfo, load_pair, toy
from tc_adapters_lens.cli.feature_pass import as_text
from tc_adapters_lens.features.collect import Collector, Keeping, collect
from tc_adapters_lens.features.kept import random_keys
from tc_adapters_lens.features.records import HISTOGRAM_EDGES, TokenEffects
from tc_adapters_lens.features.text import Text, TextBatch
from tc_adapters_lens.models.diff_transformer import HookedDiffTransformer
from tc_adapters_lens.models.names import hook_delta, hook_in
from tc_adapters_lens.training.config import DataConfig
from tc_adapters_lens.training.labels import load_labelled


class Subject:
    """The built-in pair with adapters of a given size and sparsity, and held-out text.

    Args:
        n_features: of every adapter.
        l0: active features a token and layer.
        n_sequences: how much text.
        batch_size: sequences of a forward pass.
    """

    def __init__(self, n_features: int, l0: float, n_sequences: int, batch_size: int) -> None:
        self.model = load_pair(toy.BASE, toy.TARGET)
        data = DataConfig(path=str(toy.EVAL_TOKENS), max_sequences=n_sequences)
        cfg = self.model.cfg
        read = load_labelled(data, self.model.tokenizer, cfg.d_vocab, cfg.n_ctx, "domain")
        self.text = as_text(read)
        self.batches = [self.text.batch(chosen, "cpu") for chosen in self.text.batches(batch_size)]
        self.hooks = [f"{hook_delta(layer)}.hook_sae_acts_post" for layer in range(cfg.n_layers)]
        self.adapters = AdapterSet.fresh(cfg.n_layers, cfg.d_model, n_features, AdapterSetInfo(self.model.pair), seed=0)
        self._set_l0(l0)

    @torch.no_grad()
    def _set_l0(self, l0: float) -> None:
        """Biases at each feature's quantile of the activations of the hybrid; decoders stay zero, so nothing moves."""
        with self.model.mode("base"):
            _, cache = self.model.run_with_cache(
                self.batches[0].tokens, names_filter=[hook_in(layer) for layer in self.adapters]
            )
        for layer, adapter in self.adapters.items():
            x = cache[hook_in(layer)][self.batches[0].inside]
            wanted = 1 - l0 / adapter.cfg.d_sae
            adapter.b_enc.data = -(x @ adapter.W_enc).quantile(wanted, dim=0)

    def measured_l0(self, collector: Collector) -> float:
        active = sum(int(tensor.sum()) for name, tensor in collector.state().items() if name.endswith("n_active"))
        return active / self.text.n_counted / len(self.hooks)

    def forward(self) -> None:
        """The replacement model's forward passes, nothing read."""
        with torch.no_grad(), self.model.adapters(self.adapters):
            for batch in self.batches:
                self.model(batch.tokens, return_type=None, stop_at_layer=self.model.cfg.n_layers)

    def ours(self, keeping: Keeping) -> Collector:
        collector = Collector(len(self.hooks), self.adapters.n_features, self.text, keeping)
        with self.model.adapters(self.adapters):
            for _ in collect(self.model, self.hooks, self.batches, collector):
                pass
        return collector

    def loop(self, keeping: Keeping) -> Loop:
        loop = Loop(self.adapters.n_features, len(self.hooks), self.text, keeping)
        with self.model.adapters(self.adapters):
            for batch in self.batches:
                loop.add(batch, read_all(self.model, self.hooks, batch))
        return loop


def read_all(model: HookedDiffTransformer, hooks: list[str], batch: TextBatch) -> list[Tensor]:
    found: dict[str, Tensor] = {}

    def keep(acts: Tensor, hook: Any) -> None:
        found[hook.name] = acts

    reading: list[Any] = [(name, keep) for name in hooks]
    with torch.no_grad(), model.hooks(fwd_hooks=reading):
        model(batch.tokens, return_type=None, stop_at_layer=model.cfg.n_layers)
    return [found[name] for name in hooks]


class Loop:
    """What `Collector` does, one activation after another: what one writes first."""

    def __init__(self, n_features: int, n_layers: int, text: Text, keeping: Keeping) -> None:
        self.text, self.keeping = text, keeping
        shape = n_layers, n_features
        self.n_active = np.zeros(shape, np.int64)
        self.total = np.zeros(shape)
        self.histogram = np.zeros((*shape, len(HISTOGRAM_EDGES) - 1), np.int64)
        self.regions = np.zeros((*shape, len(text.region_names)), np.int64)
        self.groups = np.zeros((*shape, len(text.group_names)), np.int64)
        self.template = np.zeros((*shape, len(text.template_names)), np.int64)
        self.top: list[list[list[Any]]] = [[[] for _ in range(n_features)] for _ in range(n_layers)]
        self.sampled: list[list[list[Any]]] = [[[] for _ in range(n_features)] for _ in range(n_layers)]

    def add(self, batch: TextBatch, acts_of_layers: list[Tensor]) -> None:
        for layer, acts in enumerate(acts_of_layers):
            for sequence, length in enumerate(batch.inside.sum(1).tolist()):
                for position in range(length):
                    if not batch.counted[sequence, position]:
                        continue
                    for feature in acts[sequence, position].nonzero().flatten().tolist():
                        self._add_one(layer, feature, sequence, position, length, acts, batch)

    def _add_one(
        self, layer: int, feature: int, sequence: int, position: int, length: int, acts: Tensor, batch: TextBatch
    ) -> None:
        value = acts[sequence, position, feature].item()
        flat = int(batch.positions[sequence, position])
        self.n_active[layer, feature] += 1
        self.total[layer, feature] += value
        bin_ = int(np.searchsorted(HISTOGRAM_EDGES, value, side="right")) - 1
        self.histogram[layer, feature, min(max(bin_, 0), len(HISTOGRAM_EDGES) - 2)] += 1
        self.regions[layer, feature, int(batch.regions[sequence, position])] += 1
        self.groups[layer, feature, int(batch.groups[sequence, position])] += 1
        self.template[layer, feature, int(batch.template[sequence, position])] += 1
        key = random_keys(self.keeping.seed, layer, torch.tensor([feature]), torch.tensor([flat])).item()
        for heap, rank in ((self.top[layer][feature], (value, -flat)), (self.sampled[layer][feature], (key, -flat))):
            if len(heap) < self.keeping.k or rank > heap[0][0]:
                first, last = position - self.keeping.before, position + self.keeping.after
                inside = acts[sequence, max(0, first) : min(length, last + 1), feature].tolist()
                window = [0.0] * max(0, -first) + inside + [0.0] * max(0, last + 1 - length)
                (heapq.heappush if len(heap) < self.keeping.k else heapq.heapreplace)(heap, (rank, window))


def require_same(loop: Loop, collector: Collector) -> None:
    """Everything that the loop found is what the collector found.

    Raises:
        AssertionError: it is not.
    """
    n_layers, n_features = loop.n_active.shape
    nothing = TokenEffects(np.zeros((n_features, 0), np.int32), np.zeros((n_features, 0), np.float32))
    for layer in range(n_layers):
        found = collector.features(layer, nothing, nothing)
        for name in ("n_active", "histogram", "regions", "groups", "template"):
            np.testing.assert_array_equal(getattr(found, name), getattr(loop, name)[layer])
        np.testing.assert_allclose(found.mean * found.n_active, loop.total[layer], rtol=1e-5)
        for kind, by_position in (("top", False), ("sampled", True)):
            kept, heaps = getattr(found, kind), getattr(loop, kind)[layer]
            for feature, heap in enumerate(heaps):
                order = sorted(heap, key=lambda entry: -entry[0][1]) if by_position else sorted(heap, reverse=True)
                positions = [-rank[1] for rank, _ in order]
                assert kept.positions[feature].tolist() == positions + [-1] * (loop.keeping.k - len(positions))
                for example, (_, window) in enumerate(order):
                    entries = slice(*kept.starts[feature * loop.keeping.k + example :][:2])
                    dense = np.zeros(loop.keeping.window, np.float32)
                    dense[kept.offsets[entries]] = kept.values[entries]
                    np.testing.assert_array_equal(dense, np.float32(window))


def beside_loop(args: argparse.Namespace) -> dict[str, Any]:
    subject, keeping = Subject(1024, args.l0, args.sequences, args.batch_size), Keeping()
    collector = subject.ours(keeping)
    require_same(subject.loop(keeping), collector)
    runs: dict[str, Callable[[], object]] = {
        "loop": lambda: subject.loop(keeping),
        "pass": lambda: subject.ours(keeping),
    }
    return {"n_features": 1024, **timed(subject, collector, runs, args.repeats)}


def beside_forward(args: argparse.Namespace) -> dict[str, Any]:
    subject, keeping = Subject(args.features, args.l0, args.sequences, args.batch_size), Keeping()
    collector = subject.ours(keeping)
    runs: dict[str, Callable[[], object]] = {"pass": lambda: subject.ours(keeping), "forward": subject.forward}
    return {"n_features": args.features, **timed(subject, collector, runs, args.repeats)}


def timed(
    subject: Subject, collector: Collector, runs: dict[str, Callable[[], object]], repeats: int
) -> dict[str, Any]:
    """Tokens a second of both runs, and how much of the second's time the first takes."""
    wall = {name: [s.wall for s in took] for name, took in alternate(runs, repeats, "cpu").items()}
    first, second = wall.values()
    n = subject.text.n_counted
    return {
        "l0": subject.measured_l0(collector),
        "tokens": n,
        "tokens_per_second": {name: n / statistics.median(took) for name, took in wall.items()},
        "ratio": median_ratio(first, second),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sequences", type=int, default=400, help="of the built-in pair's evaluation text")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--l0", type=float, default=4.0, help="active features a token and layer")
    parser.add_argument("--features", type=int, default=8192, help="of the adapters beside the forward pass")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{platform.processor() or platform.machine()}, one thread, torch {torch.__version__}")
    loop = beside_loop(args)
    print(
        f"{loop['n_features']:,} features a layer, L0 {loop['l0']:.1f}, {loop['tokens']:,} tokens: "
        f"loop {loop['tokens_per_second']['loop']:,.0f} tokens/s, pass {loop['tokens_per_second']['pass']:,.0f}: "
        f"{loop['ratio']:.1f} times as fast, and the same found"
    )
    forward = beside_forward(args)
    print(
        f"{forward['n_features']:,} features a layer, L0 {forward['l0']:.1f}: forward "
        f"{forward['tokens_per_second']['forward']:,.0f} tokens/s, pass {forward['tokens_per_second']['pass']:,.0f}: "
        f"{forward['ratio']:.2f} of the forward's time"
    )
    if args.json:
        args.json.write_text(json.dumps({"loop": loop, "forward": forward}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
