"""Nodes per second of an attribution graph beside circuit-tracer's own, and the memory that a long prompt's takes.

    bash scripts/bench_graph
    bash scripts/bench_graph --repeats 1 --long 0 --json bench.json

- Speed: the same graph of the same replacement model, made by `trace` (rows from the frozen linear model, sparse edges)
  and by circuit-tracer's `attribute` (autograd over copies of the prompt, dense matrix) at several batch sizes.
  Random models and adapters, biases set so that about `--l0` features are active per token and layer. Both compute
  the targets' rows and those of `--nodes` features, chosen by influence; they must choose the same, and their edges
  agree to 1e-5, or this stops. Repetitions alternate; ratios are taken within one.
- Memory: a prompt of `--long` tokens on the built-in pair, all features traced, in a process of its own; adapters are
  those of `--run`, or random. The pair was trained on 512 positions; its rotary embeddings go on.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import platform
import resource
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from circuit_tracer import attribute
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from scripts.bench_measure import alternate, median_ratio
from scripts.bench_steps import Shape, Subject
from tc_adapters_lens import AdapterSet, AdapterSetInfo, load_pair, toy
from tc_adapters_lens.integrations.circuit_tracer.prune import prune
from tc_adapters_lens.integrations.circuit_tracer.replacement import AdapterReplacementModel, replacement_model
from tc_adapters_lens.integrations.circuit_tracer.summary import largest_gap
from tc_adapters_lens.integrations.circuit_tracer.trace import trace
from tc_adapters_lens.models.names import ADAPTERS

_TARGETS = 3
_RSS_UNIT = 1 if sys.platform == "darwin" else 1024  # bytes of ru_maxrss


def measured_speed(args: argparse.Namespace) -> dict[str, Any]:
    """Seconds and nodes per second of every contender, and whether they agree."""
    shape = Shape(n_features=args.n_features, length=args.length, batch=1, l0=args.l0, d_vocab=1000)
    subject = Subject(dataclasses.replace(shape, d_model=256, n_layers=8, d_mlp=1024))
    pair = subject.model
    pair.tokenizer = _numbers(shape.d_vocab)
    adapters = AdapterSet.from_state(subject.adapters, AdapterSetInfo(pair.pair))
    ours = replacement_model(pair, adapters)
    upstream = replacement_model(pair, adapters, route="upstream")
    tokens, targets = subject.tokens[0], torch.arange(_TARGETS)
    graphs: dict[str, Any] = {}

    def with_trace() -> None:
        graphs["ours"] = trace(
            tokens, ours, targets=targets, max_feature_nodes=args.nodes, batch_size=256, update_interval=10**6, keep=1.0
        )

    def with_attribute(batch_size: int) -> None:
        graphs[f"circuit-tracer, {batch_size} at once"] = attribute(
            tokens,
            upstream,
            attribution_targets=targets,
            max_feature_nodes=args.nodes,
            batch_size=batch_size,
            update_interval=10**6,
        )

    sizes = {f"circuit-tracer, {size} at once": size for size in args.upstream_batches}
    runs = {"ours": with_trace, **{name: lambda size=size: with_attribute(size) for name, size in sizes.items()}}
    taken = {name: [one.wall for one in times] for name, times in alternate(runs, args.repeats, "cpu").items()}
    sparse = graphs["ours"]
    dense = sparse.to_graph(pair.cfg)
    for name in sizes:
        same = torch.equal(graphs[name].selected_features, dense.selected_features)
        apart = float((graphs[name].adjacency_matrix - dense.adjacency_matrix).abs().max()) if same else float("nan")
        if not apart <= 1e-5:
            raise SystemExit(f"bench_graph: the graphs must agree to 1e-5. They differ by {apart}.")
    best = min(sizes, key=lambda name: sum(taken[name]))
    return {
        "active_features": sparse.n_active,
        "l0": sparse.n_active / args.length / shape.n_layers,
        "nodes": args.nodes,
        "nodes_per_second": {name: args.nodes / min(times) for name, times in taken.items()},
        "best_of_circuit_tracer": best,
        "times_as_fast": median_ratio(taken[best], taken["ours"]),
    }


def measured_memory(n_tokens: int, run: str | None, l0: float, threads: int) -> dict[str, Any]:
    """A long prompt's graph on the built-in pair. Peak memory is this process's own, from its start."""
    torch.set_num_threads(threads)
    pair = load_pair("toy:base", "toy:target")
    pair.cfg.n_ctx = max(pair.cfg.n_ctx, n_tokens)
    if run is None:
        model = _with_random_adapters(pair, n_features=1024, l0=l0)
    else:
        model = replacement_model(pair, AdapterSet.load(Path(run) / ADAPTERS, pair=pair.pair))
    rows = [json.loads(line)["input_ids"] for line in toy.EVAL_TOKENS.read_text(encoding="utf-8").splitlines()]
    tokens = torch.tensor([token for row in rows for token in row][:n_tokens])
    started = time.perf_counter()
    graph = trace(tokens, model)
    traced = time.perf_counter() - started
    pruned = prune(graph)
    return {
        "n_tokens": n_tokens,
        "active_features": graph.n_active,
        "l0": graph.n_active / n_tokens / graph.n_layers,
        "edges": graph.n_edges,
        "features_after_pruning": int(pruned.node_mask[: graph.n_selected].sum()),
        "largest_gap": largest_gap(graph),
        "seconds_traced": traced,
        "seconds_pruned": time.perf_counter() - started - traced,
        "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _RSS_UNIT / 2**30,
        "dense_matrix_gib": 4 * graph.n_nodes**2 / 2**30,
    }


def _with_random_adapters(pair: Any, n_features: int, l0: float) -> AdapterReplacementModel:
    """Adapters of which about `l0` features are active per token and layer: the same bias everywhere, by bisection."""
    adapters = AdapterSet.fresh(pair.cfg.n_layers, pair.cfg.d_model, n_features, AdapterSetInfo(pair.pair))
    state = adapters.state()
    state["W_dec"].normal_(0, 0.01, generator=torch.Generator().manual_seed(0))
    tokens = torch.arange(256) % pair.cfg.d_vocab
    low, high = -10.0, 0.0
    model = None
    for _ in range(12):
        state["b_enc"].fill_((low + high) / 2)
        model = replacement_model(pair, AdapterSet.from_state(state, adapters.info))
        active = model.get_activations(tokens)[1].count_nonzero() / len(tokens) / pair.cfg.n_layers
        low, high = (low, (low + high) / 2) if active > l0 else ((low + high) / 2, high)
    assert model is not None
    return model


def _numbers(d_vocab: int) -> PreTrainedTokenizerFast:
    """A tokenizer whose tokens are numbers."""
    backend = Tokenizer(models.WordLevel({str(token): token for token in range(d_vocab)}, unk_token="0"))
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="0", name_or_path="numbers", add_bos_token=True)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--length", type=int, default=256, help="tokens of the prompt that is timed; 0: do not")
    parser.add_argument("--n-features", type=int, default=1024)
    parser.add_argument("--l0", type=float, default=30.0, help="active features per token and layer, there")
    parser.add_argument("--nodes", type=int, default=4096, help="features whose rows are computed")
    parser.add_argument("--upstream-batches", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--long", type=int, default=2000, help="tokens of the prompt whose memory counts; 0: none")
    parser.add_argument("--long-l0", type=float, default=4.4, help="active features per token and layer, there")
    parser.add_argument("--run", help="a run on the built-in pair whose adapters are taken there; default: random ones")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only-long", action="store_true", help=argparse.SUPPRESS)  # the process of its own
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(argv)
    if args.only_long:
        print(json.dumps(measured_memory(args.long, args.run, args.long_l0, args.threads)))
        return
    torch.set_num_threads(args.threads)
    warnings.filterwarnings("ignore", message="Full backward hook is firing")  # circuit-tracer's hooks
    result: dict[str, Any] = {
        "machine": platform.processor() or platform.machine(),
        "torch": torch.__version__,
        **{name: value for name, value in vars(args).items() if name not in ("json", "only_long")},
    }
    if args.length:
        speed = result["speed"] = measured_speed(args)
        print(f"{args.length} tokens, {speed['active_features']:,} active features (L0 {speed['l0']:.1f})")
        for name, nodes in speed["nodes_per_second"].items():
            print(f"{name:28} {nodes:10,.1f} nodes/s")
        print(f"ours is {speed['times_as_fast']:.2f} times as fast as {speed['best_of_circuit_tracer']}")
    if args.long:
        options = ["--long", str(args.long), "--long-l0", str(args.long_l0), "--threads", str(args.threads)]
        options += [] if args.run is None else ["--run", args.run]
        done = subprocess.run(
            [sys.executable, "-m", "scripts.bench_graph", "--only-long", *options],
            check=True,
            stdout=subprocess.PIPE,
            text=True,
        )
        memory = result["memory"] = json.loads(done.stdout.splitlines()[-1])
        print(
            f"{memory['n_tokens']:,} tokens, {memory['active_features']:,} features (L0 {memory['l0']:.1f}), "
            f"{memory['edges']:,} edges: {memory['peak_gib']:.2f} GiB at most, {memory['seconds_traced']:.0f} s traced,"
            f" {memory['seconds_pruned']:.0f} s pruned; a dense matrix alone takes {memory['dense_matrix_gib']:.2f} GiB"
        )
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
