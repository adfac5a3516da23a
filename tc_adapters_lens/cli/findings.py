"""Checks, each printed as it is made, none stopping the others."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple

from tc_adapters_lens.errors import AdapterLensError

if TYPE_CHECKING:
    from tc_adapters_lens.models.pair_checks import PairCheck

Status = Literal["passed", "failed", "skipped", "note"]


class Finding(NamedTuple):
    """One check.

    status: passed, failed, skipped (another check failed), or note (nothing to fail).
    """

    check: str
    status: Status
    detail: str


class Findings:
    """All checks so far, each printed as it is made."""

    _MARKS: ClassVar[dict[Status, str]] = {
        "passed": "ok    ",
        "failed": "FAILED",
        "skipped": "-     ",
        "note": "      ",
    }

    def __init__(self) -> None:
        self.all: list[Finding] = []
        self.errors: list[AdapterLensError] = []

    def add(self, check: str, status: Status, detail: str = "") -> None:
        self.all.append(Finding(check, status, detail))
        line = f"{check}: {detail}" if detail else check
        print(f"  {self._MARKS[status]}  {' '.join(line.split())}", flush=True)

    def fail(self, check: str, error: AdapterLensError) -> None:
        self.errors.append(error)
        self.add(check, "failed", str(error))

    def run(self, checks: Iterable[PairCheck]) -> None:
        """Runs checks whose needs are met."""
        missed: set[str] = set()
        for check in checks:
            needs = [need for need in check.needs if need in missed]
            if needs:
                missed.add(check.name)
                self.add(check.name, "skipped", f"not checked, for it needs: {needs[0]}")
                continue
            try:
                self.add(check.name, "passed", check.run())
            except AdapterLensError as error:
                missed.add(check.name)
                self.fail(check.name, error)
