"""Text from models and files in a picture: measured, shortened, and of characters that its font has."""

from __future__ import annotations

import unicodedata
from functools import lru_cache

from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.textpath import text_to_path

from tc_adapters_lens.report.shown_text import is_invisible, name, visible

__all__ = ["font", "shorten", "shown_label", "shown_token", "text_width"]

_FAMILY = "DejaVu Sans"  # matplotlib brings it
_NO_GLYPH = "□"
_LONGEST = 300  # characters that are looked at


def font(size: float, bold: bool = False) -> FontProperties:
    """The pictures' font. size: in points."""
    return FontProperties(family=[_FAMILY], size=size, weight="bold" if bold else "normal")


def shown_label(text: str) -> str:
    """A text in one line; a character that the font lacks is a box."""
    return _drawable(name(text[:_LONGEST]))


def shown_token(text: str) -> str:
    """A token, its spaces visible."""
    marks = (visible(character) if is_invisible(character) else character for character in text[:_LONGEST])
    return _drawable("".join("␣" if mark.isspace() else mark for mark in marks))


@lru_cache(maxsize=4096)
def text_width(text: str, size: float, bold: bool = False) -> float:
    """Width in points of a text that has been made drawable."""
    if not text:
        return 0.0
    return float(text_to_path.get_text_width_height_descent(text, font(size, bold), False)[0])


def shorten(text: str, size: float, width: float) -> str:
    """As much of a text as the width in points allows, with an ellipsis where something was left out."""
    if text_width(text, size) <= width:
        return text
    low, high = 0, len(text) - 1  # characters that fit, and that may
    while low < high:
        middle = (low + high + 1) // 2
        if text_width(text[:middle].rstrip() + "…", size) <= width:
            low = middle
        else:
            high = middle - 1
    return text[:low].rstrip() + "…"


def _drawable(text: str) -> str:
    return "".join(map(_drawn_as, text))


@lru_cache(maxsize=4096)
def _drawn_as(character: str) -> str:
    """A character, one that means the same, such as | for the wide bar of chat templates, or a box."""
    glyphs = _characters()
    plain = unicodedata.normalize("NFKC", character)
    known = (form for form in (character, plain) if glyphs.issuperset(map(ord, form)))
    return next(known, _NO_GLYPH)


@lru_cache(maxsize=1)
def _characters() -> frozenset[int]:
    return frozenset(get_font(findfont(font(10))).get_charmap())
