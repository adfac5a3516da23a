"""Faithfulness of adapters beside base, hybrid and target: a table for the terminal and a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

from tc_adapters_lens.evaluation.faithfulness import Faithfulness
from tc_adapters_lens.models.atomic import atomic_file

_COLUMNS = ("model", "top-1 error", "KL (nats)", "KL vs hybrid", "L0 / layer", "NMSE", "dead")
_BASE, _HYBRID, _ADAPTERS = "#8c8c8c", "#c44e52", "#4c72b0"


def faithfulness_table(results: Mapping[str, Faithfulness]) -> str:
    """One row per model: base, hybrid, every adapter set from sparse to dense, target.

    Args:
        results: name of an adapter set -> what was measured of it, on the same tokens.
    """
    one = next(iter(results.values()))
    rows: list[Sequence[str]] = [_COLUMNS]
    if one.base is not None:
        rows.append(("base", f"{one.base.top1_error:.2%}", f"{one.base.kl:.4f}", "", "", "", ""))
    rows.append(("hybrid", f"{one.hybrid.top1_error:.2%}", f"{one.hybrid.kl:.4f}", "1x", "", "", ""))
    for name, r in sorted(results.items(), key=lambda item: item[1].l0):
        ratio = one.hybrid.kl / r.kl if r.kl else float("inf")
        rows.append(
            (
                name,
                f"{r.top1_error:.2%}",
                f"{r.kl:.4f}",
                f"1/{ratio:.0f}" if ratio >= 1 else f"{1 / ratio:.1f}x",
                f"{r.l0:.2f}",
                f"{r.nmse:.4f}",
                f"{r.dead_features} / {r.n_features}",
            )
        )
    rows.append(("target", "0.00%", "0.0000", "", "", "0.0000", ""))
    widths = [max(len(row[i]) for row in rows) for i in range(len(_COLUMNS))]
    lines = [
        "  ".join(
            cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def plot_faithfulness(results: Mapping[str, Faithfulness], path: str | Path, title: str) -> None:
    """Top-1 error and KL against L0, adapters as points, base and hybrid as lines; a PNG (or what the suffix says).

    Args:
        results: name of an adapter set -> what was measured of it, on the same tokens.
        path: picture to write.
        title: names the pair.
    """
    ordered = sorted(results.items(), key=lambda item: item[1].l0)
    one = ordered[0][1]
    figure, axes = plt.subplots(1, 2, figsize=(10, 4.2), layout="constrained")
    panels = (
        ("top-1 error against the target", lambda r: 100 * r.top1_error, "%", False),
        ("KL(target || model)", lambda r: r.kl, "nats", True),
    )
    for axis, (label, value, unit, logarithmic) in zip(axes, panels, strict=True):
        axis.plot(
            [r.l0 for _, r in ordered],
            [value(r) for _, r in ordered],
            "o-",
            color=_ADAPTERS,
            label="adapters",
        )
        for name, r in ordered:
            axis.annotate(
                f"{name}\n{value(r):.2g} {unit}",
                (r.l0, value(r)),
                textcoords="offset points",
                xytext=(8, 6),
                fontsize=8,
            )
        for name, reference, colour in (("base", one.base, _BASE), ("hybrid", one.hybrid, _HYBRID)):
            if reference is not None:
                axis.axhline(
                    value(reference),
                    color=colour,
                    linestyle="--",
                    label=f"{name}: {value(reference):.3g} {unit}",
                )
        axis.set_xscale("log")
        l0s = [r.l0 for _, r in ordered]
        axis.set_xlim(min(l0s) / 2, max(l0s) * 3)
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.xaxis.set_major_formatter(ScalarFormatter())
        axis.xaxis.set_minor_formatter(NullFormatter())
        if logarithmic:
            axis.set_yscale("log")
            axis.set_ylim(top=2 * max(value(r) for r in (one, one.hybrid, one.base) if r is not None))
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
