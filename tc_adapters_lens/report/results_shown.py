"""What all plots of judged and measured features share: who stands beside whom, colours, names that fit."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, replace

from tc_adapters_lens.report.meaning import Result, ResultKind, labels, short_judges
from tc_adapters_lens.report.plots import label
from tc_adapters_lens.report.runs import Runs
from tc_adapters_lens.report.styles import Style, run_styles

_NEURONS = {"target": Style("#4d525c"), "base": Style("#b3b8c2")}
_DASHES = ("solid", "dash", "dot", "dashdot")
_PATTERNS = {"solid": "", "dash": "/", "dot": ".", "dashdot": "x"}
_LINE, _LINES = 22, 3
# Told apart under the common kinds of colour blindness, neighbours by lightness too.
PALETTE = ("#88ccee", "#44aa99", "#cc6677", "#882255", "#ddcc77", "#bbbbbb", "#332288", "#117733", "#aa4499", "#999933")


@dataclass(frozen=True)
class Shown:
    """A result, its name on the page and its style."""

    result: Result
    label: str
    style: Style


def shown(runs: Runs, kind: ResultKind) -> list[Shown]:
    """All results of a kind: adapter features in their run's colour, neurons in grey; dashes tell further ones."""
    found = runs.results(kind)
    own, taken = run_styles(runs.groups), dict[str, int]()
    ones = []
    for result, name in zip(found, labels(found, len(runs.ordered) > 1), strict=True):
        style = _NEURONS.get(result.model, own[result.run])
        times = taken[style.colour] = taken.get(style.colour, -1) + 1
        ones.append(Shown(result, name, replace(style, dash=_DASHES[times % len(_DASHES)])))
    return ones


def comparable(ones: Sequence[Shown]) -> list[list[Shown]]:
    """Those of one judge, asked in the same way, together, in the order of the first of each."""
    sets: dict[tuple[str, ...], list[Shown]] = {}
    for one in ones:
        sets.setdefault(one.result.comparable, []).append(one)
    return list(sets.values())


def by_whom(sets: Sequence[Sequence[Shown]], of: Sequence[Shown]) -> str:
    """What a set's caption adds where there are several: judge, prompts and texts, as far as they differ."""
    firsts = [one[0].result for one in sets]
    told = [
        [f"judge {judge}" for judge in short_judges(firsts)],
        [f"prompts {result.prompts}" for result in firsts],
        [f"negatives: {result.values.get('negatives')}" for result in firsts],
    ]
    own = sets.index(of)
    return "".join(f", {words[own]}" for words in told if len(set(words)) > 1)


def apart(sets: Sequence[Sequence[Shown]]) -> str:
    """The sentence on several sets; "" where there is one."""
    return " What was asked of another judge or otherwise stands in a plot of its own." if len(sets) > 1 else ""


def pattern(style: Style) -> dict[str, str]:
    """plotly's pattern of bars, for the style's dash."""
    return {"shape": _PATTERNS.get(style.dash, "")}


def palette(names: Sequence[str]) -> dict[str, Style]:
    """A style per name; past the colours they come again with another dash."""
    n = len(PALETTE)
    return {name: Style(PALETTE[i % n], _DASHES[i // n % len(_DASHES)]) for i, name in enumerate(names)}


def wrapped(text: str) -> str:
    """A name as plotly's ticks show it, in a few short lines."""
    lines = textwrap.wrap(" ".join(text.split()), _LINE, max_lines=_LINES, placeholder=" …")
    return "<br>".join(map(label, lines))
