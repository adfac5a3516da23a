"""Means of estimates, and how numbers are written on the page."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tc_adapters_lens.evaluation.estimate import Estimate


def mean(estimates: Sequence[Estimate]) -> Estimate:
    """Mean of the figures; its interval goes from the mean low to the mean high end.

    That interval is exact where all figures rise and fall together, and too wide otherwise.
    """
    n = len(estimates)
    ends = [estimate.interval for estimate in estimates]
    value = sum(estimate.value for estimate in estimates) / n
    known = [end for end in ends if end is not None]
    if len(known) < n:
        return Estimate(value)
    return Estimate(value, sum(low for low, _ in known) / n, sum(high for _, high in known) / n)


def number(value: float) -> str:
    """Three significant digits: 5.03, 0.0441, 1,234."""
    if value == 0:
        return "0"
    if abs(value) >= 999.5:
        return f"{value:,.0f}"
    if abs(value) < 1e-4:
        return f"{value:.2e}"
    return f"{value:#.3g}".rstrip(".")


def percent(share: float) -> str:
    """A share as a percentage with two decimals."""
    return f"{share:.2%}"


def count(value: float) -> str:
    """A whole number with separators; a mean of whole numbers is rounded."""
    return f"{value:,.0f}"


def plain(value: float) -> str:
    """A number as short as it can be, with at most three digits: 0.02, 5, 1000."""
    short = f"{float(f'{value:.3g}'):.12f}" if abs(value) < 1e6 else f"{value:.3g}"
    return short.rstrip("0").rstrip(".") if "." in short else short


def span(estimate: Estimate, write: Callable[[float], str] = number) -> str:
    """The interval as "low to high", or "" where there is none."""
    ends = estimate.interval
    return "" if ends is None else f"{write(ends[0])} to {write(ends[1])}"


def short_span(estimate: Estimate, write: Callable[[float], str] = number) -> str:
    """The same where room is scarce: a dash if no sign can be confused with it, no unit, nothing if it has no width."""
    ends = estimate.interval
    if ends is None or ends[0] == ends[1]:
        return ""
    low, high = (write(end).rstrip("%") for end in ends)
    return f"{low} to {high}" if ends[0] < 0 else f"{low}\N{EN DASH}{high}"


def with_span(estimate: Estimate, write: Callable[[float], str] = number) -> str:
    """Figure and interval in one line."""
    ends = span(estimate, write)
    return write(estimate.value) + (f" ({ends})" if ends else "")
