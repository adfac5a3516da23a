"""An attribution graph as a picture for print: tokens from left to right, layers from bottom to top."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Circle, FancyBboxPatch, Patch, PathPatch, Polygon, Rectangle
from matplotlib.path import Path as Curve

from tc_adapters_lens.errors import AdapterLensError
from tc_adapters_lens.models.atomic import atomic_file
from tc_adapters_lens.report.graph_layout import (
    LEFT,
    WIDTH,
    Box,
    Layout,
    free_place,
    lay_out,
    needs_width,
)
from tc_adapters_lens.report.graph_shown import Link, Node, Shown, choose
from tc_adapters_lens.report.picture_text import font, shorten, shown_label, shown_token, text_width

__all__ = ["draw_graph"]

_SUFFIXES = (".svg", ".png")
_DPI = 300
_POSITIVE, _NEGATIVE = "#2166ac", "#b2182b"
_INK, _GREY, _PALE = "#222222", "#6e6e6e", "#ececec"
_FILL = {"feature": "#f2b84b", "error": "#ffffff", "token": "#bdbdbd", "logit": "#ffffff"}
_SMALL, _LABEL, _TITLE = 6.0, 6.5, 9.0  # sizes of text, points
_LINE = 1.25  # height of a line of text, in its size
_TOKEN_ROOM = 56.0  # for a token's text
_LABEL_WIDTHS = 100.0, 64.0, 40.0  # the widest that a label may be; where that does not fit, the next
_HINTED = 1.03  # how much wider letters may be in a PNG
_CAPTION = 5.0  # its baseline
_KEY, _KEY_GAP = 16.0, 9.0  # widths in the legend: of a mark, and between entries
_KEY_LINE = 10.0  # height of its line
_WORDS = {
    "feature": "feature (larger: more influential)",
    "error": "adapter's error",
    "token": "token",
    "logit": "logit, with probability",
}
_SIGNS = {"positive": "positive", "negative": "negative"}


def draw_graph(graph: Mapping[str, Any], path: Path, *, max_features: int = 40, title: str | None = None) -> None:
    """Draw the most influential part of a graph, 7 inches wide unless more features need more; the same graph gives the
    same bytes.

    Only positions with something to show are drawn, a feature's label where there is room for it.

    Args:
        graph: circuit-tracer's JSON.
        path: an .svg or .png to write, whole or not at all. In an SVG, nodes have the ids "node:ID", links
            "link:SOURCE>TARGET", labels "label:ID".
        max_features: the most influential ones.
        title: a line above the picture.
    Raises:
        ConfigError: max_features is below 0.
        AdapterLensError: another suffix, not a graph, or the file cannot be written.
    """
    path = Path(path)
    kind = path.suffix.lower()
    if kind not in _SUFFIXES:
        raise AdapterLensError(f"A graph's picture must be an .svg or a .png. Got {path.name}. Name it so.")
    shown = choose(graph, max_features, lambda nodes: needs_width(nodes) <= WIDTH)
    rules = {"svg.hashsalt": "graph", "svg.fonttype": "path", "path.simplify": False}
    with style.context(["default", rules]):
        figure = _figure(shown, title)
        with atomic_file(path) as partial:
            figure.savefig(
                partial, format=kind[1:], dpi=_DPI, metadata={"Date": None} if kind == ".svg" else {"Software": None}
            )


def _figure(shown: Shown, title: str | None) -> Figure:
    texts = _token_texts(shown)
    foot = _CAPTION + _KEY_LINE * len(_legend(shown)) + 12
    layout = lay_out(shown, foot + _LINE * _SMALL, _logit_width)
    # Upright unless every text fits its column, which only the layout tells.
    upright = any(text_width(text, _SMALL) > layout.columns[at].width - 2 for at, text in texts.items())
    if upright:
        room = max(text_width(text, _SMALL) for text in texts.values())
        layout = lay_out(shown, foot + room, _logit_width)
    height = layout.top + (_TITLE * 1.8 if title else 4)
    figure = Figure(figsize=(layout.width / 72, height / 72), facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, layout.width), ylim=(0, height))
    axes.axis("off")
    if title:
        line = shorten(shown_label(title), _TITLE, layout.width - 20)
        _write(axes, layout.width / 2, height - 1.3 * _TITLE, line, _TITLE, ha="center", gid="title")
    _draw_rows(axes, layout, {node.layer for node in shown.of("logit")})
    _draw_tokens(axes, layout, texts, upright)
    for link in reversed(shown.links):
        _draw_link(axes, link, layout)
    for node in shown.nodes:
        _draw_node(axes, node, layout.boxes[node.id])
    _draw_labels(axes, shown, layout)
    _draw_foot(axes, shown, layout)
    return figure


def _token_texts(shown: Shown) -> dict[int, str]:
    """By position."""
    at = sorted({node.position for node in shown.nodes if 0 <= node.position < len(shown.tokens)})
    return {position: shorten(shown_token(shown.tokens[position]), _SMALL, _TOKEN_ROOM) for position in at}


def _draw_rows(axes: Axes, layout: Layout, logit_layers: Iterable[int]) -> None:
    numbers = [row.y for layer, row in layout.rows.items() if layer >= 0 and layer not in logit_layers]
    for layer, row in layout.rows.items():
        word = "token" if layer == -1 else "logit" if layer in logit_layers else str(layer)
        _write(axes, LEFT - 3, row.y - 0.36 * _SMALL, word, _SMALL, ha="right", color=_GREY)
        axes.add_line(Line2D((LEFT, layout.width - 4), (row.y, row.y), color=_PALE, linewidth=0.5, zorder=0))
    if numbers:
        _write(axes, 9, (numbers[0] + numbers[-1]) / 2, "layer", _SMALL, ha="center", rotation=90, color=_GREY)


def _draw_tokens(axes: Axes, layout: Layout, texts: Mapping[int, str], upright: bool) -> None:
    y = layout.bottom
    for position, text in texts.items():
        x, gid = layout.columns[position].x, f"token:{position}"
        if upright:
            _write(axes, x + 0.36 * _SMALL, y, text, _SMALL, ha="right", rotation=90, gid=gid)
        else:
            _write(axes, x, y - _SMALL, text, _SMALL, ha="center", gid=gid)
    for x in layout.gaps:
        _write(axes, x, y - 0.6 * _SMALL, "…", 0.75 * _SMALL, ha="center", color=_GREY, gid=f"gap:{x:.1f}")


def _draw_link(axes: Axes, link: Link, layout: Layout) -> None:
    source, end = layout.boxes[link.source], layout.boxes[link.end]
    x0, y0, x1, y1 = (source[0] + source[2]) / 2, source[3], (end[0] + end[2]) / 2, end[1]
    rise = y1 - y0
    # Links within a column pass by the nodes between.
    bend = min(0.12 * rise, 16.0) if abs(x1 - x0) < 6 and rise > 30 else 0.0
    curve = Curve(
        [(x0, y0), (x0 - bend, y0 + 0.5 * rise), (x1 - bend, y1 - 0.5 * rise), (x1, y1)],
        [Curve.MOVETO, Curve.CURVE4, Curve.CURVE4, Curve.CURVE4],
    )
    axes.add_patch(
        PathPatch(
            curve, fill=False, gid=_id("link", f"{link.source}>{link.end}"), zorder=1, **_line(link.weight, link.share)
        )
    )


def _line(weight: float, share: float) -> dict[str, Any]:
    """How a link's line looks: its sign as colour and dashes, its share as width and opacity."""
    width = 0.4 + 2.2 * share
    return {
        "edgecolor": _NEGATIVE if weight < 0 else _POSITIVE,
        "linestyle": (0, (3.2 / width, 1.8 / width)) if weight < 0 else "solid",  # matplotlib counts in widths
        "linewidth": width,
        "alpha": 0.35 + 0.5 * share**0.5,
    }


def _draw_node(axes: Axes, node: Node, box: Box) -> None:
    patch = _patch(node.kind, box)
    patch.set_gid(_id("node", node.id))
    axes.add_patch(patch)
    if node.kind == "logit":
        x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2 - 0.36 * _LABEL
        _write(axes, x, y, _logit_text(node), _LABEL, ha="center", zorder=5, gid=_id("label", node.id))


def _patch(kind: str, box: Box) -> Patch:
    left, bottom, right, top = box
    x, y, r = (left + right) / 2, (bottom + top) / 2, (right - left) / 2
    look: dict[str, Any] = {"facecolor": _FILL[kind], "edgecolor": _INK, "linewidth": 0.6, "zorder": 3}
    if kind == "feature":
        return Circle((x, y), r, **look)
    if kind == "error":
        return Polygon([(x - r, y), (x, y - r), (x + r, y), (x, y + r)], closed=True, **look)
    if kind == "token":
        return Rectangle((left, bottom), right - left, top - bottom, **look)
    rounded = "round,pad=0,rounding_size=3"
    return FancyBboxPatch((left, bottom), right - left, top - bottom, boxstyle=rounded, **look)


def _draw_labels(axes: Axes, shown: Shown, layout: Layout) -> None:
    """Labels of features, the most influential first, each where it covers no node and no other label."""
    taken = list(layout.boxes.values())
    area = (LEFT, layout.bottom, layout.width - 4, layout.top)
    height = _LINE * _LABEL
    for node in shown.of("feature"):
        text = shown_label(node.text)
        for limit in _LABEL_WIDTHS:
            short = shorten(text, _LABEL, limit)
            place = free_place(layout.boxes[node.id], (text_width(short, _LABEL) * _HINTED, height), taken, area)
            if place:
                break
        else:
            continue
        taken.append(place.box)
        back = {"facecolor": "white", "edgecolor": "none", "alpha": 0.7, "pad": 0.2}
        x, y = place.box[0], place.box[1] + 0.28 * _LABEL
        _write(axes, x, y, short, _LABEL, ha="left", zorder=5, gid=_id("label", node.id), bbox=back)
        if place.stem:
            taken.append(place.stem)
            x, ends = (place.stem[0] + place.stem[2]) / 2, (place.stem[1], place.stem[3])
            axes.add_line(Line2D((x, x), ends, color=_INK, linewidth=0.5, zorder=4))


def _draw_foot(axes: Axes, shown: Shown, layout: Layout) -> None:
    """Legend and caption."""
    lines = _legend(shown)
    for i, line in enumerate(lines):
        x, y = LEFT, _CAPTION + _KEY_LINE * (len(lines) - i) + 2
        for key, words in line:
            if key in _SIGNS:
                curve = Curve([(x, y), (x + _KEY - 3, y)])
                axes.add_patch(PathPatch(curve, fill=False, **_line(-1.0 if key == "negative" else 1.0, 0.4)))
            else:
                half = 5.0 if key == "logit" else 3.4
                axes.add_patch(_patch(key, (x + _KEY / 2 - half, y - 3.4, x + _KEY / 2 + half, y + 3.4)))
            _write(axes, x + _KEY, y - 0.36 * _SMALL, words, _SMALL)
            x += _KEY + text_width(words, _SMALL) + _KEY_GAP
    caption = shorten(_caption(shown), _SMALL, layout.width - LEFT - 4)
    _write(axes, LEFT, _CAPTION, caption, _SMALL, color=_GREY, gid="caption")


def _legend(shown: Shown) -> list[list[tuple[str, str]]]:
    """Lines of (kind or sign, words), of what there is."""
    there = {node.kind for node in shown.nodes} | {
        "negative" if link.weight < 0 else "positive" for link in shown.links
    }
    entries = [(key, words) for key, words in {**_WORDS, **_SIGNS}.items() if key in there]
    if shown.links:
        entries[-1] = entries[-1][0], f"{entries[-1][1]} (wider: larger share of inputs)"
    if sum(_KEY + text_width(words, _SMALL) + _KEY_GAP for _, words in entries) <= WIDTH - LEFT:
        return [entries] if entries else []
    return [[entry for entry in entries if (entry[0] in _SIGNS) == of_links] for of_links in (False, True)]


def _caption(shown: Shown) -> str:
    tokens = {node.position for node in shown.nodes}
    counts = [(len(shown.of(kind)), shown.n_nodes[kind], kind) for kind in ("feature", "error", "logit")]
    counts += [(len(shown.links), shown.n_links, "edge"), (len(tokens), len(shown.tokens), "token")]
    parts = [f"{n:,} of {of:,} {kind}{'' if of == 1 else 's'}" for n, of, kind in counts if of or kind == "feature"]
    return f"Shown: {', '.join(parts)}."


def _logit_text(node: Node) -> str:
    text = shorten(shown_token(node.text), _LABEL, 60)
    return text if node.is_direction else f"{text} {node.probability:.2f}"


def _logit_width(node: Node) -> float:
    return text_width(_logit_text(node), _LABEL) + 6


def _id(kind: str, of: str) -> str:
    """An SVG's id; characters that XML cannot hold are replaced."""
    return f"{kind}:" + "".join(character if character.isprintable() else "�" for character in of)


def _write(axes: Axes, x: float, y: float, text: str, size: float, **look: Any) -> None:
    """A text whose baseline begins, ends or is centred at a point."""
    if text:
        look = {"color": _INK, "zorder": 2, "va": "baseline", "rotation_mode": "anchor", **look}
        axes.text(x, y, text, fontproperties=font(size), parse_math=False, **look)
