"""One colour, dash and symbol per run and model, the same in every table and plot of a page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tc_adapters_lens.report.groups import Group

# Told apart under the common kinds of colour blindness together with dash and symbol, and in grey by lightness.
_RAMPS = (
    ((0x8F, 0xB8, 0xE8), (0x4C, 0x72, 0xB0), (0x16, 0x2E, 0x5C)),
    ((0x7F, 0xC9, 0xBD), (0x2A, 0x8C, 0x82), (0x0B, 0x45, 0x40)),
    ((0xC9, 0xB1, 0xE4), (0x81, 0x72, 0xB3), (0x3E, 0x2C, 0x6B)),
)
_NO_BRIDGING_RAMP = ((0xF2, 0xB1, 0x6B), (0xD9, 0x7A, 0x1C), (0x8A, 0x49, 0x0A))
_SYMBOLS = ("circle", "square", "diamond")
_SEED_DASHES = ("solid", "dot", "dashdot", "longdash")


@dataclass(frozen=True)
class Style:
    """colour: #rrggbb; dash and symbol: plotly's names."""

    colour: str
    dash: str = "solid"
    symbol: str = "circle"


REFERENCES = {
    "base": Style("#8c8c8c", "dash"),
    "reverse": Style("#937860", "dashdot"),
    "hybrid": Style("#c44e52", "dash"),
    "norm_refit": Style("#cc79a7", "dot"),
    "shuffled": Style("#b8a038", "dot", "x"),
    "no_bridging": Style("#d97a1c", "dash", "triangle-up"),
    "skyline": Style("#117733", "longdash"),
    "target": Style("#000000"),
}


def run_styles(groups: Sequence[Group]) -> dict[str, Style]:
    """Label -> style: a hue per family of recipes, darker with L0; seeds of one recipe differ in dash alone."""
    styles = {}
    for group in groups:
        relatives = [other for other in groups if _hue(other) == _hue(group)]
        ramp = _RAMPS[group.family % len(_RAMPS)] if group.bridged else _NO_BRIDGING_RAMP
        place = 0.5 if len(relatives) == 1 else relatives.index(group) / (len(relatives) - 1)
        symbol = _SYMBOLS[group.family % len(_SYMBOLS)] if group.bridged else "triangle-up"
        for i, label in enumerate(group.labels):
            dash = _SEED_DASHES[i % len(_SEED_DASHES)] if group.bridged else "dash"
            styles[label] = Style(_between(ramp, place), dash, symbol)
    return styles


def faint(colour: str, opacity: float) -> str:
    """The colour with an opacity, as CSS."""
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},{opacity:g})"


def _hue(group: Group) -> int | None:
    return group.family if group.bridged else None


def _between(ramp: Sequence[tuple[int, int, int]], place: float) -> str:
    """The ramp's colour at a place from 0 to 1."""
    scaled = place * (len(ramp) - 1)
    i = min(int(scaled), len(ramp) - 2)
    mixed = (round(a + (b - a) * (scaled - i)) for a, b in zip(ramp[i], ramp[i + 1], strict=True))
    return "#" + "".join(f"{channel:02x}" for channel in mixed)
