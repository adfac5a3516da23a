"""Rows that tell how features were judged: by whom, with which prompts, how they were drawn."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tc_adapters_lens.evaluation.estimate import Estimate
from tc_adapters_lens.report.numbers import number, plain, short_span
from tc_adapters_lens.report.results_shown import Shown

Rows = list[tuple[str, list[tuple[str, str]]]]


def judging_rows(ones: Sequence[Shown], unparsable: str) -> Rows:
    """For a table with a column per result.

    Args:
        unparsable: what is said of features whose replies could not be read.
    """
    rows: Rows = []
    found = [one.result for one in ones]
    overall = [result.values["overall"] for result in found]
    rows.append(("features drawn", [(f"{part['n_sampled']:,}", f"of {part['n_eligible']:,}") for part in overall]))
    rows.append((f"unparsable, {unparsable}", [(f"{part['n_unparsable']:,}", "") for part in overall]))
    drawn = []
    for result in found:
        values = result.values
        floor = values["min_frequency"]
        least = f"{plain(100 * floor)}% of the positions" if floor else "one position"
        drawn.append((f"{values['per_layer']:,} a layer at most, seed {values['seed']}", f"active at {least} or more"))
    rows.append(("how drawn", drawn))
    rows.append(("judge", [(result.judge, _repeat(result.values["repeat"])) for result in found]))
    rows.append(("prompts", [(result.prompts, "") for result in found]))
    return rows


def under(estimate: Estimate, n: int, write: Callable[[float], str] = number) -> str:
    """What stands under a figure: its interval, and of how many features it is."""
    return ", ".join(filter(None, (short_span(estimate, write), f"n\N{NO-BREAK SPACE}=\N{NO-BREAK SPACE}{n:,}")))


def _repeat(repeat: int) -> str:
    return f"asked again, repeat {repeat}" if repeat else ""
