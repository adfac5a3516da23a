"""The tables of `tc-adapters doctor`, as lines of text."""

from __future__ import annotations

from collections.abc import Iterable

from tc_adapters_lens.models.weight_change import WeightChange
from tc_adapters_lens.training.memory import GIB, MemoryEstimate

_SHOWN_NAMES = 4


def change_lines(change: WeightChange) -> list[str]:
    """Relative weight change: kinds as columns, layers as rows, totals, and how much of it the MLPs hold."""
    kinds = change.kinds
    widths = [max(9, len(kind)) for kind in (*kinds, "total")]

    def line(first: str, cells: Iterable[str]) -> str:
        return f"  {first:>7}" + "".join(f"  {cell:>{width}}" for cell, width in zip(cells, widths, strict=True))

    def values(first: str, cells: Iterable[float | None]) -> str:
        return line(first, ("-" if cell is None else f"{cell:.2e}" for cell in cells))

    lines = [line("layer", [*kinds, "total"])]
    for layer in change.layers:
        cells = [*(change.relative(kind, layer) for kind in kinds), change.relative(None, layer)]
        lines.append(values("outside" if layer is None else str(layer), cells))
    lines.append(values("total", [*map(change.relative, kinds), change.relative()]))
    for title, names in (("other tensors", change.other), ("not in both models", change.not_compared)):
        if names:
            more = f" and {len(names) - _SHOWN_NAMES} more" if len(names) > _SHOWN_NAMES else ""
            lines.append(f"  {title}: {', '.join(names[:_SHOWN_NAMES])}{more}")
    share = change.mlp_share
    if share is None:
        return [*lines, "  no weights changed, or some are not finite"]
    return [*lines, f"  the MLPs hold {share:.1%} of the squared change: what adapters can explain"]


def memory_lines(estimate: MemoryEstimate) -> list[str]:
    """The estimate, part by part."""
    parts = [*estimate.parts.items(), ("total", estimate.total)]
    return [
        f"  with {estimate.batch} x {estimate.context:,} tokens a step, at most",
        *(f"  {what:<32} {n_bytes / GIB:>12,.3f} GiB" for what, n_bytes in parts),
    ]
