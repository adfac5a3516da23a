"""Faithfulness of adapters beside base, hybrid and target: a table for the terminal and a picture."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

from tc_adapters_lens.evaluation.faithfulness import Faithfulness
from tc_adapters_lens.evaluation.predictions import Agreement
from tc_adapters_lens.models.atomic import atomic_file

_COLUMNS = ("model", "top-1 error", "KL (nats)", "95% interval", "KL vs hybrid", "L0 / layer", "NMSE", "dead")
_COLOURS = {"base": "#8c8c8c", "hybrid": "#c44e52"}
_ADAPTERS = "#4c72b0"


def faithfulness_table(results: Mapping[str, Faithfulness]) -> str:
    """One row per model, from the worst KL to the target: what stands beside the adapters, and every adapter set.

    Args:
        results: name of an adapter set -> what was measured of it, on the same tokens.
    """
    one = next(iter(results.values()))
    hybrid_kl = one.models["hybrid"].kl.value

    def row(name: str, found: Agreement, *more: str) -> tuple[float, Sequence[str]]:
        kl = found.kl
        ratio = hybrid_kl / kl.value if kl.value else math.inf
        cells = (
            name.replace("_", " "),
            f"{found.top1_error.value:.2%}",
            f"{kl.value:.4f}",
            "" if kl.low is None else f"{kl.low:.4f} to {kl.high:.4f}",
            f"1/{ratio:.0f}" if ratio >= 1.5 else f"{1 / ratio:.1f}x",
        )
        return kl.value, (*cells, *(more or ("", "", "")))

    rows = [row(name, found) for name, found in one.models.items() if name != "replacement"]
    for name, r in results.items():
        more = f"{r.l0.value:.2f}", f"{r.nmse.value:.4f}", f"{r.dead.value:.0f} / {r.n_layers * r.n_features}"
        rows.append(row(name, r.models["replacement"], *more))
    cells = [_COLUMNS, *(cells for _, cells in sorted(rows, key=lambda row: -row[0]))]
    cells.append(("target", "0.00%", "0.0000", "", "", "", "0.0000", ""))
    widths = [max(len(row[i]) for row in cells) for i in range(len(_COLUMNS))]
    lines = [
        "  ".join(
            cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in cells
    ]
    return "\n".join(line.rstrip() for line in [lines[0], "-" * len(lines[0]), *lines[1:]])


def plot_faithfulness(results: Mapping[str, Faithfulness], path: str | Path, title: str) -> None:
    """Top-1 error and KL against L0, adapters as points, base and hybrid as lines; a PNG (or what the suffix says).

    Args:
        results: name of an adapter set -> what was measured of it, on the same tokens.
        path: picture to write.
        title: names the pair.
    """
    ordered = sorted(results.items(), key=lambda item: item[1].l0.value)
    l0s = [r.l0.value for _, r in ordered]
    beside = {name: found for name, found in ordered[0][1].models.items() if name in _COLOURS}
    figure, axes = plt.subplots(1, 2, figsize=(10, 4.2), layout="constrained")
    panels = (
        ("top-1 error against the target", lambda found: 100 * found.top1_error.value, "%", False),
        ("KL(target || model)", lambda found: found.kl.value, "nats", True),
    )
    for axis, (label, value, unit, logarithmic) in zip(axes, panels, strict=True):
        values = [value(r.models["replacement"]) for _, r in ordered]
        axis.plot(l0s, values, "o-", color=_ADAPTERS, label="adapters")
        for (name, _), l0, measured in zip(ordered, l0s, values, strict=True):
            axis.annotate(
                f"{name}\n{measured:.2g} {unit}", (l0, measured), textcoords="offset points", xytext=(8, 6), fontsize=8
            )
        for name, found in beside.items():
            named = f"{name}: {value(found):.3g} {unit}"
            axis.axhline(value(found), color=_COLOURS[name], linestyle="--", label=named)
        axis.set_xscale("log")
        axis.set_xlim(min(l0s) / 2, max(l0s) * 3)
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.xaxis.set_major_formatter(ScalarFormatter())
        axis.xaxis.set_minor_formatter(NullFormatter())
        if logarithmic:
            axis.set_yscale("log")
            axis.set_ylim(top=2 * max(*values, *map(value, beside.values())))
        else:
            axis.set_ylim(bottom=0)
        axis.set_xlabel("L0 (active features per token and layer)")
        axis.set_ylabel(f"{label} ({unit})")
        axis.grid(alpha=0.25, which="major")
        axis.legend(fontsize=8, loc="center right")
    figure.suptitle(title, fontsize=11)
    with atomic_file(path) as partial:
        figure.savefig(partial, dpi=150, format=Path(path).suffix.lstrip(".") or "png")
    plt.close(figure)
