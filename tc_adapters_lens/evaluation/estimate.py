"""A figure and its 95% interval, as evaluations hold it and reports read it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Estimate:
    """A figure and its 95% interval.

    value: computed from all sequences once.
    low, high: ends of the interval; None where intervals were left out.
    """

    value: float
    low: float | None = None
    high: float | None = None

    @classmethod
    def of(cls, found: Mapping[str, Any]) -> Estimate:
        """From an evaluation's {"value", "low", "high"}."""
        return cls(found["value"], found["low"], found["high"])

    @property
    def interval(self) -> tuple[float, float] | None:
        """(low, high), if there is one."""
        return None if self.low is None or self.high is None else (self.low, self.high)

    def times(self, factor: float) -> Estimate:
        """Figure and interval multiplied by a positive number."""
        ends = self.interval
        return Estimate(self.value * factor, *((end * factor for end in ends) if ends else ()))

    def to_dict(self) -> dict[str, float | None]:
        """Plain values, for JSON."""
        return {"value": self.value, "low": self.low, "high": self.high}
