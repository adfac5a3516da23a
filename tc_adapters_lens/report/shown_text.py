"""Text from models and files as a reader can look at it: what would be invisible, or would turn the line, is named."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from itertools import groupby

_NAMES = {"\n": "↵", "\r": "CR", "\t": "⇥", "\u00a0": "⍽"}
_INVISIBLE = frozenset({"Cc", "Cf", "Co", "Cs", "Zl", "Zp"})  # controls, marks of direction, unassigned, line ends
_BLANK = frozenset("\u00a0\u115f\u1160\u3164\u2800")


def is_invisible(character: str) -> bool:
    """Whether a character is not seen where it stands; a blank is not one of them."""
    return character in _BLANK or unicodedata.category(character) in _INVISIBLE


def visible(character: str) -> str:
    """What stands for an invisible character: ↵ for a line end, U+200B for most others."""
    return _NAMES.get(character) or f"U+{ord(character):04X}"


def parts(text: str) -> Iterator[tuple[str, bool]]:
    """A text in pieces: (text as it is, False) and (an invisible character, True), one by one."""
    for invisible, characters in groupby(text, is_invisible):
        if invisible:
            yield from ((character, True) for character in characters)
        else:
            yield "".join(characters), False


def name(text: str) -> str:
    """A name in one line, its invisible characters as marks."""
    return "".join(visible(part) if invisible else part for part, invisible in parts(" ".join(text.split())))
