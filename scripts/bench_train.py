"""Time, memory and growth of a training step, beside a naive step and beside its matmuls alone.

    bash scripts/bench_train                                     # d 256, 8 layers, 1,024 features, 512 tokens
    bash scripts/bench_train --length 2048 --hf                  # and against Hugging Face's SDPA model
    bash scripts/bench_train --grow --plot growth.png --json bench.json
    bash scripts/bench_train --shape qwen2.5-1.5b --device cuda --dtype bfloat16 --length 8192 --only ours floor

`scripts/bench_steps.py` says what is compared. Repetitions of all contenders alternate and ratios are taken within
a repetition, so that a busy machine disturbs all of them alike.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from scripts.bench_measure import (
    IDLE,
    OTHER,
    Watch,
    alternate,
    median_ratio,
    n_bytes,
    refusal,
    saved_bytes,
    shares,
    watched_step,
)
from scripts.bench_steps import PARTS, BesideHF, Contender, Floor, Naive, Ours, Shape, Subject

CONTENDERS: dict[str, Callable[[Subject], Contender]] = {
    "naive, eager attention": lambda subject: Naive(subject, eager=True),
    "naive, fused attention": lambda subject: Naive(subject, eager=False),
    "naive, passes shared": lambda subject: Naive(subject, eager=False, shared=True),
    "ours": Ours,
    "floor": Floor,
    "floor, active features": lambda subject: Floor(subject, active_only=True),
}
CHECKPOINTING = "ours, checkpointing"
GROWTH = {
    "length": (512, 1024, 2048, 4096),
    "n_features": (1024, 2048, 4096, 8192, 16384),
    "d_vocab": (8192, 32768, 151936),
}
SHAPES = {
    "qwen2.5-1.5b": {"d_model": 1536, "n_layers": 28, "n_heads": 12, "n_kv_heads": 2, "d_mlp": 8960},
    "qwen2.5-7b": {"d_model": 3584, "n_layers": 28, "n_heads": 28, "n_kv_heads": 4, "d_mlp": 18944},
}
# Dense TFLOP/s by the makers' data sheets: bfloat16, float32 without tensor cores.
PEAK_TFLOPS = {"H200": (989, 67), "H100 PCIe": (756, 51), "H100": (989, 67), "A100": (312, 19.5), "L40S": (362, 91.6)}
MIB = 2**20
GROWING = (("ms/step", "ms", 1.0), ("step MiB at most", "peak_step_bytes", MIB))  # what, its key, its unit


# ------------------------------------------------------------------------------------------------------- measuring


def quick_cutoffs(n_layers: int) -> dict[int, float]:
    """Cutoffs with weights whose mean is that over 0..n_layers, if time is linear between the first and the last.

    At 0 and n_layers there are no bridges, so these two stand apart.
    """
    weights = dict.fromkeys((0, n_layers), 1.0)
    for cutoff in (1, n_layers - 1):
        if 0 < cutoff < n_layers:
            weights[cutoff] = weights.get(cutoff, 0.0) + (n_layers - 1) / 2
    return {cutoff: weight / (n_layers + 1) for cutoff, weight in sorted(weights.items())}


def read_cutoffs(text: str, n_layers: int) -> dict[int, float]:
    """Cutoff -> weight, from `quick`, `all` or numbers."""
    if text == "quick":
        return quick_cutoffs(n_layers)
    try:
        cutoffs = range(n_layers + 1) if text == "all" else [int(part) for part in text.split(",")]
    except ValueError:
        cutoffs = [-1]
    if not all(0 <= cutoff <= n_layers for cutoff in cutoffs):
        raise SystemExit(f"--cutoffs must be quick, all, or numbers from 0 to {n_layers}. Got {text}.")
    return dict.fromkeys(cutoffs, 1 / len(cutoffs))


def measure(
    subject: Subject, names: Sequence[str], cutoffs: Mapping[int, float], repeats: int, profiled: bool
) -> dict[str, dict[str, Any]]:
    """All that is known of every contender; of one that does not fit, why (`skipped`)."""
    shape = subject.shape
    make = {**CONTENDERS, CHECKPOINTING: lambda subject: Ours(subject, checkpoint_blocks=True)}
    contenders = {name: make[name](subject) for name in names}
    results: dict[str, dict[str, Any]] = {}
    worst = min(1, shape.n_layers)
    for name in names:
        contenders[name].step(subject.tokens[:, :64], 0)  # makes the optimizer's state
        if reason := refusal(contenders[name], subject.tokens, worst):
            results[name] = {"skipped": reason}
            del contenders[name]
            continue
        _, peak = watched_step(contenders[name], subject.tokens, worst)
        own = n_bytes([*subject.model.parameters(), *subject.model.buffers(), *contenders[name].own_tensors])
        results[name] = {"peak_step_bytes": peak, "peak_all_bytes": own + peak}

    runs = {
        f"{name}|{cutoff}": lambda contender=contender, cutoff=cutoff: contender.step(subject.tokens, cutoff)
        for cutoff in cutoffs
        for name, contender in contenders.items()
    }
    seconds = alternate(runs, repeats, shape.device)
    for name, contender in contenders.items():
        taken = {cutoff: seconds[f"{name}|{cutoff}"] for cutoff in cutoffs}
        for which, key in (("wall", "ms_of_repeats"), ("processor", "processor_ms_of_repeats")):
            results[name][key] = [
                1e3 * sum(weight * getattr(taken[c][i], which) for c, weight in cutoffs.items()) for i in range(repeats)
            ]
        results[name]["ms"] = statistics.median(results[name]["ms_of_repeats"])
        results[name]["processor_ms"] = statistics.median(results[name]["processor_ms_of_repeats"])
        results[name]["ms_of_cutoffs"] = {
            c: 1e3 * statistics.median(took.wall for took in times) for c, times in taken.items()
        }
        results[name]["tokens_per_second"] = shape.n_tokens / results[name]["ms"] * 1e3
        if profiled and not isinstance(contender, Floor):
            results[name]["shares"] = shares(contender, subject.tokens, shape.n_layers // 2)
    if profiled:
        _add_flops(results, contenders, subject, cutoffs)
        _add_losses(results, contenders, subject, worst)
    return results


def _add_flops(
    results: dict[str, dict[str, Any]],
    contenders: Mapping[str, Contender],
    subject: Subject,
    cutoffs: Mapping[int, float],
) -> None:
    """Operations of the matmuls and attention kernels that a step runs; attention, being causal, counted by half."""
    for name, contender in contenders.items():
        flop = 0.0
        for cutoff, weight in cutoffs.items():
            with Watch() as watch:
                contender.step(subject.tokens, cutoff)
            flop += weight * (watch.matmul_flops + watch.attention_flops / 2)
        results[name]["flop"] = flop
        results[name]["flop_per_second"] = flop / results[name]["ms"] * 1e3


def _add_losses(
    results: dict[str, dict[str, Any]], contenders: Mapping[str, Contender], subject: Subject, cutoff: int
) -> None:
    for name, contender in contenders.items():
        if losses := contender.step(subject.tokens, cutoff):
            results[name]["losses"] = {term: float(value) for term, value in losses.items()}


def ratios(results: Mapping[str, dict[str, Any]], other: str) -> dict[str, float]:
    """Ours over another contender: time, processor time, memory; empty if one of them was skipped."""
    ours, others = results.get("ours", {}), results.get(other, {})
    if "ms" not in ours or "ms" not in others:
        return {}
    found = {
        "time": median_ratio(ours["ms_of_repeats"], others["ms_of_repeats"]),
        "processor time": median_ratio(ours["processor_ms_of_repeats"], others["processor_ms_of_repeats"]),
    }
    if not other.startswith("floor"):
        found["step memory"] = ours["peak_step_bytes"] / others["peak_step_bytes"]
        found["all memory"] = ours["peak_all_bytes"] / others["peak_all_bytes"]
    return found


def compare_with_hf(subject: Subject, repeats: int) -> dict[str, dict[str, float]]:
    """What was measured -> ours, hf, their ratio, and the ratio of processor time."""
    both = BesideHF(subject)
    results: dict[str, dict[str, float]] = {}
    for what, runs in (("forward, ms", both.forward), ("forward and backward, ms", both.train)):
        alternate(runs, 1, subject.shape.device)
        seconds = alternate(runs, repeats, subject.shape.device)
        wall = {who: [took.wall for took in seconds[who]] for who in runs}
        processor = {who: [took.processor for took in seconds[who]] for who in runs}
        results[what] = {who: 1e3 * statistics.median(times) for who, times in wall.items()}
        results[what]["ratio"] = median_ratio(wall["ours"], wall["hf"])
        results[what]["processor time"] = median_ratio(processor["ours"], processor["hf"])
    kept = {who: saved_bytes(run, both.known) / MIB for who, run in both.keep.items()}
    results["kept for backward, MiB"] = {**kept, "ratio": kept["ours"] / kept["hf"]}
    return results


# -------------------------------------------------------------------------------------------------------- printing


def machine(device: str) -> dict[str, Any]:
    name = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), name)
    except OSError:
        pass
    return {
        "cpu": name,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": os.getloadavg()[0],
        "device": torch.cuda.get_device_name() if device.startswith("cuda") else "cpu",
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def peak_flop_per_second(shape: Shape, device_name: str) -> float | None:
    rates = next((rates for card, rates in PEAK_TFLOPS.items() if card in device_name), None)
    return None if rates is None else rates[shape.dtype == "float32"] * 1e12


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
    for row in (header, *rows):
        first, *rest = (f"{cell:>{width}}" for cell, width in zip(row, widths, strict=True))
        print("  " + "  ".join([f"{row[0]:<{len(first)}}", *rest]))
    print(flush=True)


def print_step(results: Mapping[str, dict[str, Any]], shape: Shape, peak: float | None) -> None:
    """The tables of one shape.

    Args:
        peak: operations per second that the device can do at most, where known.
    """
    for name, result in results.items():
        if "skipped" in result:
            print(f"  {name}: skipped, {result['skipped']}")
    rows = [
        [
            name,
            f"{result['ms']:,.1f}",
            f"{result['processor_ms']:,.1f}",
            f"{result['tokens_per_second']:,.0f}",
            *(["", ""] if name.startswith("floor") else _memory(result)),
            f"{result['flop'] / 1e9:,.1f}",
            f"{result['flop_per_second'] / 1e9:,.1f}",
            *([f"{result['mfu']:.1%}"] if "mfu" in result else []),
        ]
        for name, result in results.items()
        if "ms" in result
    ]
    header = ["", "ms/step", "processor ms", "tokens/s", "step MiB", "all MiB", "matmul GFLOP", "GFLOP/s"]
    table([*header, *["MFU"] * (peak is not None)], rows)
    columns = ("time", "processor time", "step memory", "all memory")
    compared = {other: ratios(results, other) for other in results if other != "ours"}
    rows = [
        [f"ours / {other}", *(f"{found[c]:.3f}" if c in found else "" for c in columns)]
        for other, found in compared.items()
        if found
    ]
    table(["", *columns], rows)

    shown = {name: result["shares"] for name, result in results.items() if result.get("shares")}
    parts = [part for part in (*PARTS, OTHER, IDLE) if any(part in share for share in shown.values())]
    rows = [[part, *(f"{share.get(part, 0):.1%}" for share in shown.values())] for part in parts]
    print(f"  share of time, at cutoff {shape.n_layers // 2}")
    table(["", *shown], rows)

    losses = {name: result["losses"] for name, result in results.items() if "losses" in result}
    terms = list(next(iter(losses.values()), {}))
    print("  losses of the same batch and weights, at cutoff 1")
    table(["", *losses], [[term, *(f"{loss[term]:.6g}" for loss in losses.values())] for term in terms])


def _memory(result: dict[str, Any]) -> list[str]:
    return [f"{result[key] / MIB:,.0f}" for key in ("peak_step_bytes", "peak_all_bytes")]


def grow(shape: Shape, names: Sequence[str], repeats: int) -> dict[str, Any]:
    """ms/step and peak bytes over lengths, features and vocabularies, the others as given; printed on the way."""
    cutoff = shape.n_layers // 2
    growth: dict[str, Any] = {}
    for axis, sizes in GROWTH.items():
        growth[axis] = {}
        for size in sizes:
            subject = Subject(dataclasses.replace(shape, **{axis: size}))
            results = measure(subject, names, {cutoff: 1.0}, repeats, profiled=False)
            growth[axis][size] = results
            for name, result in results.items():
                if "skipped" in result:
                    print(f"  {axis} {size:,}: {name} skipped, {result['skipped']}")
            del subject
        for what, key, unit in GROWING:
            shown = [name for name in names if key == "ms" or not name.startswith("floor")]
            rows = [[name, *(_cell(growth[axis][size][name], key, unit) for size in sizes)] for name in shown]
            table([f"{axis}: {what}", *(f"{size:,}" for size in sizes)], rows)
    return growth


def _cell(result: dict[str, Any], key: str, unit: float) -> str:
    return "skipped" if "skipped" in result else f"{result[key] / unit:,.0f}"


def plot(growth: Mapping[str, Any], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(2, len(growth), figsize=(12, 7), sharex="col", squeeze=False, layout="constrained")
    for column, (axis, cells) in enumerate(growth.items()):
        for row, (label, key, unit) in enumerate(
            (("ms/step", "ms", 1.0), ("step MiB at most", "peak_step_bytes", MIB))
        ):
            panel = panels[row][column]
            for name in next(iter(cells.values())):
                points = [(size, c[name][key] / unit) for size, c in cells.items() if key in c[name]]
                if points and not (name.startswith("floor") and row):
                    panel.plot(*zip(*points, strict=True), marker="o", label=name)
            panel.set(xscale="log", yscale="log", xlabel=axis if row else "", ylabel="" if column else label)
            panel.grid(alpha=0.3)
    panels[0][0].legend(fontsize="small")
    figure.savefig(path, dpi=120)
    plt.close(figure)


# ---------------------------------------------------------------------------------------------------- command line


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="bench_train", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    p.add_argument("--shape", choices=SHAPES, help="width, layers, heads, MLP, vocabulary and features of a model")
    p.add_argument("--d-model", type=int, default=256, help="width of the residual stream (256)")
    p.add_argument("--layers", type=int, default=8, help="layers (8)")
    p.add_argument("--heads", type=int, help="query heads (d_model / 64)")
    p.add_argument("--kv-heads", type=int, help="key/value heads (half the query heads)")
    p.add_argument("--d-mlp", type=int, help="width of the gated MLPs (4 d_model)")
    p.add_argument("--features", type=int, help="features per layer (1,024; 8,192 with --shape)")
    p.add_argument("--vocab", type=int, help="vocabulary (8,192; 151,936 with --shape)")
    p.add_argument("--length", type=int, default=512, help="tokens per sequence (512)")
    p.add_argument("--batch", type=int, default=1, help="sequences per step (1)")
    p.add_argument("--l0", type=float, default=30.0, help="active features per token and layer, about (30)")
    p.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of the pair (float32)")
    p.add_argument("--device", default="cpu", help="cpu or cuda (cpu)")
    p.add_argument("--threads", type=int, help="of torch on the CPU")
    p.add_argument("--cutoffs", default="quick", help="quick (0, 1, L-1, L, weighted as all), all, or numbers: 0,4,8")
    p.add_argument("--repeats", type=int, default=5, help="timed repetitions (5)")
    p.add_argument("--checkpointing", action="store_true", help="also our step with activation checkpointing")
    p.add_argument("--only", nargs="+", help=f"contenders, by part of their name: {'; '.join(CONTENDERS)}")
    p.add_argument("--grow", action="store_true", help="also over lengths, features and vocabularies")
    p.add_argument("--hf", action="store_true", help="also against Hugging Face's SDPA model with the same adapters")
    p.add_argument("--json", type=Path, metavar="OUT", help="write everything here")
    p.add_argument("--plot", type=Path, metavar="OUT", help="a picture of --grow")
    return p


def read_shape(args: argparse.Namespace) -> Shape:
    """Sizes that follow from others where not given.

    Raises:
        SystemExit: sizes that do not fit together.
    """
    sizes = dict(SHAPES[args.shape]) if args.shape else {"d_model": args.d_model, "n_layers": args.layers}
    sizes.setdefault("n_heads", args.heads or max(1, sizes["d_model"] // 64))
    sizes.setdefault("n_kv_heads", args.kv_heads or max(1, sizes["n_heads"] // 2))
    sizes.setdefault("d_mlp", args.d_mlp or 4 * sizes["d_model"])
    shape = Shape(
        **sizes,
        n_features=args.features or (8192 if args.shape else 1024),
        d_vocab=args.vocab or (151936 if args.shape else 8192),
        length=args.length,
        batch=args.batch,
        dtype=args.dtype,
        device=args.device,
        l0=args.l0,
    )
    if shape.d_model % (2 * shape.n_heads) or shape.n_heads % shape.n_kv_heads:
        raise SystemExit(
            "--d-model must be an even multiple of --heads, and --heads a multiple of --kv-heads. "
            f"Got {shape.d_model}, {shape.n_heads} and {shape.n_kv_heads}."
        )
    return shape


def read_names(only: Sequence[str] | None) -> list[str]:
    """The contenders that any of the given texts is part of; all without."""
    names = [name for name in CONTENDERS if any(part in name for part in only or [""])]
    if not names:
        raise SystemExit(f"--only must name any of {'; '.join(CONTENDERS)}. Got {' '.join(only or [])}.")
    return names


def save(report: Mapping[str, Any], path: Path | None) -> None:
    if path is not None:
        path.write_text(json.dumps(report, indent=1))


def main(argv: Sequence[str] | None = None) -> None:
    args = parser().parse_args(argv)
    shape, names = read_shape(args), read_names(args.only) + [CHECKPOINTING] * args.checkpointing
    cutoffs = read_cutoffs(args.cutoffs, shape.n_layers)
    if shape.device != "cpu" and not (shape.device.startswith("cuda") and torch.cuda.is_available()):
        raise SystemExit(f"--device must be cpu, or cuda where torch sees a CUDA device. Got {shape.device}.")
    if args.plot and not args.grow:
        raise SystemExit("--plot is a picture of --grow. Got --plot alone; add --grow.")
    if args.threads:
        torch.set_num_threads(args.threads)

    here = machine(shape.device)
    report: dict[str, Any] = {"machine": here, "shape": dataclasses.asdict(shape), "cutoffs": cutoffs}
    print(f"  {here['device']}; {here['cpu']}, {here['cores']} cores, {here['threads']} threads", end="")
    print(f", load {here['load']:.1f}; torch {here['torch']}")
    print(f"  {json.dumps(report['shape'])[1:-1]}".replace('"', ""))
    print(f"  mean over cutoffs {', '.join(map(str, cutoffs))} ({args.cutoffs}), memory at 1, the most\n")
    subject = Subject(shape)
    report["step"] = measure(subject, names, cutoffs, args.repeats, profiled=True)
    peak = peak_flop_per_second(shape, here["device"])
    if peak is not None and "flop" in report["step"].get("floor", {}):
        for result in report["step"].values():
            if "ms" in result:
                result["mfu"] = report["step"]["floor"]["flop"] / result["ms"] * 1e3 / peak
    print_step(report["step"], shape, peak)
    report["ratios"] = {other: ratios(report["step"], other) for other in names if other != "ours"}
    if args.hf:
        report["hf"] = compare_with_hf(subject, args.repeats)
        print("  replacement model / Hugging Face with SDPA, the same adapters")
        columns = ("ours", "hf", "ratio", "processor time")
        rows = [
            [what, *(f"{values[c]:,.3f}" if c in values else "" for c in columns)]
            for what, values in report["hf"].items()
        ]
        table(["", "ours", "HF SDPA", "ratio", "of processor time"], rows)
    del subject
    save(report, args.json)
    if args.grow:
        report["growth"] = grow(shape, names, max(1, args.repeats // 2))
        save(report, args.json)
        if args.plot:
            plot(report["growth"], args.plot)


if __name__ == "__main__":
    main()
