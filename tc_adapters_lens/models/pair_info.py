"""Which two models a pair is: names, revisions and fingerprints of their weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

from tc_adapters_lens.errors import AdapterSetError

if TYPE_CHECKING:
    from tc_adapters_lens.models.checkpoints import Checkpoint


@dataclass(frozen=True)
class PairInfo:
    """Identity of a base and a target model.

    base_name, target_name: hub id or path as given, or "in memory".
    base_revision, target_revision: commit on the hub, None for a directory or a model in memory.
    base_fingerprint, target_fingerprint: `Checkpoint.fingerprint()` of each.
    """

    base_name: str
    target_name: str
    base_revision: str | None
    target_revision: str | None
    base_fingerprint: str
    target_fingerprint: str

    @classmethod
    def of(cls, base: Checkpoint, target: Checkpoint) -> PairInfo:
        """The identity of two opened checkpoints."""
        prints = base.fingerprint(), target.fingerprint()
        return cls(base.name, target.name, base.revision, target.revision, *prints)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> PairInfo:
        """Raises AdapterSetError: keys missing or unknown, or a value not text (revisions may be None)."""
        names = {field.name for field in fields(cls)}
        if set(values) != names:
            raise AdapterSetError(f"A pair must have the keys {sorted(names)}. Got {sorted(values)}.")
        for name, value in values.items():
            if not (isinstance(value, str) or (value is None and name.endswith("revision"))):
                raise AdapterSetError(f"A pair's {name} must be text. Got {value!r}.")
        return cls(**values)


def check_same_pair(
    what: str, trained_on: PairInfo, given: PairInfo, fix: str = "Use that pair, or say allow_other_pair."
) -> None:
    """Compares weights, not names.

    Args:
        what: what was trained, as the error's subject.
        fix: what the user can do about it.
    Raises:
        AdapterSetError: the first model that differs, with both names and fingerprints.
    """
    for role in ("base", "target"):
        names = [getattr(pair, f"{role}_name") for pair in (trained_on, given)]
        prints = [getattr(pair, f"{role}_fingerprint") for pair in (trained_on, given)]
        if prints[0] != prints[1]:
            raise AdapterSetError(
                f"{what} were trained on another pair: {role} {names[0]} ({_short(prints[0])}). "
                f"Got {role} {names[1]} ({_short(prints[1])}). {fix}"
            )


def _short(fingerprint: str) -> str:
    return fingerprint[: len("sha256:") + 12]
