"""Where the nodes of an attribution graph stand in a picture. All lengths are points, from the lower left corner."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import isfinite, sqrt

from tc_adapters_lens.report.graph_shown import Node, Shown

__all__ = ["WIDTH", "Box", "Column", "LabelPlace", "Layout", "Row", "free_place", "lay_out", "needs_width"]

Box = tuple[float, float, float, float]  # left, bottom, right, top

WIDTH = 504.0  # 7 inches
LEFT, RIGHT = 34.0, 10.0
_STEP = 8.8  # between nodes side by side; a token's text stands upright in it
_GAP, _LEAST_GAP = 6.0, 2.3  # where tokens are left out
_TALLEST = 430.0  # all rows of a graph, if they can be that low
_LOWEST, _HIGHEST = 14.0, 40.0  # a layer
_TOKEN_ROW, _LOGIT_ROW, _APART = 11.0, 13.0, 0.35  # the outer rows, and their distance to the layers in layers
_EMPTY, _MOST_EMPTY = 0.2, 4  # a layer without nodes, in rows; how many of them are seen
_RADIUS = {"error": 3.7, "token": 3.2}
_FEATURE_RADII = 2.3, 4.2
_BY = 2.5  # between a node and a text beside it
_AWAY = 3.0, 11.5  # between a node and a text above or below it
_OVERHANG = 3.0  # of a text that begins or ends above its node
_BESIDE = 4  # nodes of one layer and position, in a picture that has yet to be filled
LOGIT_HEIGHT, _LOGIT_GAP = 10.5, 3.0


@dataclass(frozen=True)
class Column:
    """The middle of a prompt's position, and the width it has."""

    x: float
    width: float


@dataclass(frozen=True)
class Row:
    """The middle of a layer, and the height it has."""

    y: float
    height: float


@dataclass(frozen=True)
class Layout:
    """boxes: of nodes, by id. columns: by position. rows: by layer. gaps: middles of the stretches left out.
    width, bottom, top: of the area with nodes; bottom is where the area for token texts ends."""

    boxes: Mapping[str, Box]
    columns: Mapping[int, Column]
    rows: Mapping[int, Row]
    gaps: tuple[float, ...]
    width: float
    bottom: float
    top: float


@dataclass(frozen=True)
class LabelPlace:
    """box: of the text. stem: of the line from the node to a text above or below it."""

    box: Box
    stem: Box | None


def needs_width(nodes: Iterable[Node]) -> float:
    """The width of a picture with these nodes, at least."""
    counts: dict[tuple[int, int], int] = defaultdict(int)
    for node in nodes:
        if node.kind != "logit":
            counts[node.layer, node.position] += 1
        else:
            counts[node.layer, node.position] = 1
    return _content(_widths(counts, _BESIDE))


def lay_out(shown: Shown, bottom: float, logit_width: Callable[[Node], float]) -> Layout:
    """Columns for positions, rows for layers; nodes of one layer and position stand side by side.

    Args:
        bottom: height left free below the lowest row.
        logit_width: width of the box a logit needs.
    """
    cells: dict[tuple[int, int], list[Node]] = defaultdict(list)
    for node in shown.nodes:
        cells[node.layer, node.position].append(node)
    logits = shown.of("logit")
    counts = {at: 1 if nodes[0].kind == "logit" else len(nodes) for at, nodes in cells.items()}
    beside = max(counts.values(), default=1)
    while beside > 1 and _content(_widths(counts, beside)) > WIDTH:
        beside -= 1
    columns, gaps, width = _columns(_widths(counts, beside), len(shown.tokens))
    lines = _logit_lines(logits, logit_width, width - LEFT - RIGHT)
    n_lines: dict[int, int] = defaultdict(int)
    for (layer, _), count in counts.items():
        n_lines[layer] = max(n_lines[layer], -(-count // beside))
    tall = {layer: (n - 1) * _STEP for layer, n in n_lines.items()}
    if logits:
        tall[logits[0].layer] = (len(lines) - 1) * (LOGIT_HEIGHT + 2)
    rows, top = _rows(tall, bottom, logits[0].layer if logits else None)
    radii = _radii(shown.of("feature"))
    boxes: dict[str, Box] = {}
    for (layer, position), nodes in cells.items():
        if nodes[0].kind != "logit":
            boxes |= _cell(nodes, columns[position].x, rows[layer].y, beside, radii)
    if logits:
        boxes |= _logits(lines, logit_width, columns[logits[0].position].x, rows[logits[0].layer].y, width)
    return Layout(boxes, columns, rows, gaps, width, bottom, top)


def free_place(box: Box, size: tuple[float, float], taken: Sequence[Box], area: Box) -> LabelPlace | None:
    """A place for a text of this width and height beside, above or below a node, within the area and free of what is
    taken, if there is one."""
    width, height = size
    left, bottom, right, top = box
    x, y = (left + right) / 2, (bottom + top) / 2
    starts: list[tuple[float, float, Box | None]] = [
        (right + _BY, y - height / 2, None),
        (left - _BY - width, y - height / 2, None),
    ]
    for away in _AWAY:
        for start in (x - width / 2, x - _OVERHANG, x + _OVERHANG - width):
            starts.append((start, top + away, (x - 0.5, top, x + 0.5, top + away)))
            starts.append((start, bottom - away - height, (x - 0.5, bottom - away, x + 0.5, bottom)))
    for x0, y0, stem in starts:
        place = (x0, y0, x0 + width, y0 + height)
        wanted = [(x0 - 1, y0, x0 + width + 1, y0 + height), *([stem] if stem else [])]
        if _is_within(place, area) and not any(_meet(one, other) for one in wanted for other in taken):
            return LabelPlace(place, stem)
    return None


def _meet(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _is_within(box: Box, area: Box) -> bool:
    return box[0] >= area[0] and box[1] >= area[1] and box[2] <= area[2] and box[3] <= area[3]


def _widths(counts: Mapping[tuple[int, int], int], beside: int) -> dict[int, float]:
    """Position -> the width it needs."""
    widths: dict[int, float] = {}
    for (_, position), count in counts.items():
        widths[position] = max(widths.get(position, _STEP), min(count, beside) * _STEP)
    return dict(sorted(widths.items()))


def _content(widths: Mapping[int, float], gap: float = _GAP) -> float:
    n_gaps = sum(after - before > 1 for before, after in pairwise(widths))
    return LEFT + RIGHT + sum(widths.values()) + gap * (n_gaps + 2)


def _columns(widths: Mapping[int, float], n_tokens: int) -> tuple[dict[int, Column], tuple[float, ...], float]:
    """Columns by position, the middles of the gaps between them, and the picture's width."""
    gap = _GAP if _content(widths) <= WIDTH else _LEAST_GAP
    needed = _content(widths, gap)
    width = max(WIDTH, needed)
    spare = (width - needed) / max(len(widths), 1)
    columns: dict[int, Column] = {}
    gaps: list[float] = []
    x, before = LEFT, -1
    for position, own in widths.items():
        if position - before > 1:
            gaps.append(x + gap / 2)
            x += gap
        columns[position] = Column(x + (own + spare) / 2, own + spare)
        x, before = x + own + spare, position
    if widths and before < n_tokens - 1:
        gaps.append(x + gap / 2)
    return columns, tuple(gaps), width


def _rows(tall: Mapping[int, float], bottom: float, top: int | None) -> tuple[dict[int, Row], float]:
    """Rows by layer, and where the highest ends.

    Args:
        tall: what a row needs beyond the height of one line of nodes.
        top: the logits' layer.
    """
    layers = sorted(tall)
    outer = {-1: _TOKEN_ROW} | ({} if top is None else {top: _LOGIT_ROW})
    space = {after: _EMPTY * min(after - before - 1, _MOST_EMPTY) for before, after in pairwise(layers)}
    for before, after in pairwise(layers):
        space[after] += _APART * ((before in outer) + (after in outer))
    parts = sum(layer not in outer for layer in layers) + sum(space.values())
    unit = min(max((_TALLEST - sum(tall.values())) / max(parts, 1), _LOWEST), _HIGHEST)
    rows: dict[int, Row] = {}
    y = bottom
    for layer in layers:
        y += unit * space.get(layer, 0)
        height = outer.get(layer, unit) + tall[layer]
        rows[layer] = Row(y + height / 2, height)
        y += height
    return rows, y


def _radii(features: Sequence[Node]) -> dict[str, float]:
    """Id -> radius: the area falls with the influence of the feature and those above it, from most to least."""
    known = [node.influence for node in features if isfinite(node.influence)]
    low, high = min(known, default=0.0), max(known, default=0.0)
    smallest, largest = _FEATURE_RADII
    radii = {}
    for node in features:
        place = (high - node.influence) / (high - low) if high > low and isfinite(node.influence) else 0.0
        radii[node.id] = sqrt(smallest**2 + (largest**2 - smallest**2) * place)
    return radii


def _cell(nodes: Sequence[Node], x: float, y: float, beside: int, radii: Mapping[str, float]) -> dict[str, Box]:
    """Boxes of the nodes of one layer and position, `beside` to a line."""
    lines = [nodes[start : start + beside] for start in range(0, len(nodes), beside)]
    boxes = {}
    for i, line in enumerate(lines):
        middle = y + ((len(lines) - 1) / 2 - i) * _STEP
        for j, node in enumerate(line):
            at, r = x + (j - (len(line) - 1) / 2) * _STEP, radii.get(node.id, _RADIUS.get(node.kind, 0.0))
            boxes[node.id] = (at - r, middle - r, at + r, middle + r)
    return boxes


def _logit_lines(logits: Sequence[Node], width: Callable[[Node], float], room: float) -> list[list[Node]]:
    """Logits in lines that fit."""
    lines: list[list[Node]] = []
    used = 0.0
    for node in logits:
        used += width(node) + _LOGIT_GAP
        if not lines or used > room:
            lines.append([])
            used = width(node)
        lines[-1].append(node)
    return lines


def _logits(
    lines: Sequence[Sequence[Node]], width: Callable[[Node], float], x: float, y: float, whole: float
) -> dict[str, Box]:
    """Boxes of logits, each line centred on the column as far as the picture allows."""
    boxes = {}
    for i, line in enumerate(lines):
        total = sum(width(node) for node in line) + _LOGIT_GAP * (len(line) - 1)
        left = max(min(x - total / 2, whole - RIGHT / 2 - total), LEFT)
        middle = y + ((len(lines) - 1) / 2 - i) * (LOGIT_HEIGHT + 2)
        for node in line:
            boxes[node.id] = (left, middle - LOGIT_HEIGHT / 2, left + width(node), middle + LOGIT_HEIGHT / 2)
            left += width(node) + _LOGIT_GAP
    return boxes
