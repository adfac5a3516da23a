"""Where the names of points stand in a plot so that they cover each other and the points as little as can be."""

from __future__ import annotations

from collections.abc import Sequence

Box = tuple[float, float, float, float]  # left, bottom, right, top

# (horizontal, vertical), the most wanted first: -1 left of or below the point, 0 centred on it, 1 right of or above it.
PLACES = ((1, 1), (1, -1), (-1, 1), (-1, -1), (1, 0), (-1, 0), (0, 1), (0, -1))
_POINT = 6.0
_OUTSIDE = 4.0  # how much worse it is to leave the plot than to cover something


def label_places(
    points: Sequence[tuple[float, float]],
    widths: Sequence[float],
    height: float,
    area: tuple[float, float],
    others: Sequence[tuple[float, float]] = (),
) -> list[tuple[int, int]]:
    """One of PLACES for each point's name, chosen one after another.

    Args:
        points: (x, y) in pixels, y upwards. widths: of their names, in pixels.
        height: of a line of text, in pixels.
        area: width and height of the plot, in pixels.
        others: points without a name.
    """
    taken: list[Box] = [_around(x, y) for x, y in (*points, *others)]
    chosen: list[tuple[int, int]] = []
    for (x, y), width in zip(points, widths, strict=True):
        boxes = [_text_box(x, y, place, width, height) for place in PLACES]
        costs = [sum(_overlap(box, other) for other in taken) + _OUTSIDE * _outside(box, area) for box in boxes]
        best = costs.index(min(costs))
        taken.append(boxes[best])
        chosen.append(PLACES[best])
    return chosen


def _around(x: float, y: float) -> Box:
    return x - _POINT, y - _POINT, x + _POINT, y + _POINT


def _text_box(x: float, y: float, place: tuple[int, int], width: float, height: float) -> Box:
    left = x - width / 2 if place[0] == 0 else x + _POINT if place[0] > 0 else x - _POINT - width
    bottom = y - height / 2 if place[1] == 0 else y + _POINT / 2 if place[1] > 0 else y - _POINT / 2 - height
    return left, bottom, left + width, bottom + height


def _overlap(a: Box, b: Box) -> float:
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    return width * height if width > 0 and height > 0 else 0.0


def _outside(box: Box, area: tuple[float, float]) -> float:
    inside = _overlap(box, (0.0, 0.0, *area))
    return (box[2] - box[0]) * (box[3] - box[1]) - inside
