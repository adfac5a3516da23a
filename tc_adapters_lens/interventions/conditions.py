"""The models an intervention is made of: what is switched in which, and what each is held against.

reference   base, hybrid, biases (the hybrid with the adapters' b_dec alone), replacement, target
remove      the replacement model without a group                      against the replacement model
keep        the hybrid with a group alone (and b_dec)                  against biases
scale       the replacement model, the group times a factor            against the replacement model
negate      the target, with the negated group times a factor added    against the target

Every one of the last four is also made with the group's random controls.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from tc_adapters_lens.errors import ConfigError
from tc_adapters_lens.interventions.operations import biases, keep, negate, remove, scale
from tc_adapters_lens.models.adapter_set import AdapterSet
from tc_adapters_lens.models.feature_group import FeatureGroup

__all__ = ["Condition", "WithControls", "plan"]

Kind = Literal["reference", "remove", "keep", "scale", "negate"]
Mlps = Literal["base", "target"]


class WithControls(NamedTuple):
    """A group, and random groups like it."""

    group: FeatureGroup
    controls: Sequence[FeatureGroup] = ()


@dataclass(frozen=True)
class Condition:
    """One model.

    name: also of its file of responses.
    label: for people.
    kind: as above.
    group: whose features are switched; None for a reference.
    control_of, draw: of a random control, the group it is like and which draw it is.
    factor: of scale and negate.
    against: name of the condition it is held against.
    """

    name: str
    label: str
    kind: Kind = "reference"
    group: FeatureGroup | None = None
    control_of: str | None = None
    draw: int | None = None
    factor: float | None = None
    against: str | None = None

    @property
    def mlps(self) -> Mlps | None:
        """Whose MLPs adapters are added to; None for the base model, which has attention of its own too."""
        if self.name == "base":
            return None
        return "target" if self.name == "target" or self.kind == "negate" else "base"

    def adapters(self, trained: AdapterSet) -> AdapterSet | None:
        """What is added to these MLPs; None: nothing."""
        if self.name == "replacement":
            return trained
        if self.name == "biases":
            return biases(trained)
        if self.group is None:
            return None
        if self.kind == "remove":
            return remove(trained, self.group)
        if self.kind == "keep":
            return keep(trained, self.group)
        assert self.factor is not None
        return (scale if self.kind == "scale" else negate)(trained, self.group, self.factor)


REFERENCES = (
    Condition("base", "base"),
    Condition("hybrid", "hybrid"),
    Condition("biases", "hybrid with biases alone"),
    Condition("replacement", "replacement model"),
    Condition("target", "target"),
)


def plan(
    groups: Sequence[WithControls], scale_factors: Sequence[float] = (), negate_factors: Sequence[float] = ()
) -> list[Condition]:
    """All conditions: references, then per group what is done to it and, after each, to its controls.

    Controls of scaled and negated groups are the first draw alone.

    Raises:
        ConfigError: no group, two groups whose names make the same file name, or the same factor twice.
    """
    if not groups:
        raise ConfigError("An intervention needs a group. Got none; name one with --group.")
    for name, factors in (("--scale", scale_factors), ("--negate", negate_factors)):
        if len(set(factors)) < len(factors):
            raise ConfigError(f"{name} must name each factor once. Got {', '.join(f'{f:g}' for f in factors)}.")
    slugs = [_slug(with_controls.group.name) for with_controls in groups]
    if len(set(slugs)) < len(slugs):
        raise ConfigError(
            f"Groups must have names that differ in letters or digits. Got {', '.join(g.group.name for g in groups)}."
        )
    found = list(REFERENCES)
    for slug, (group, controls) in zip(slugs, groups, strict=True):
        doses = [("scale", factor, "replacement") for factor in scale_factors]
        doses += [("negate", factor, "target") for factor in negate_factors]
        for kind, factor, against, n_controls in [
            ("remove", None, "replacement", len(controls)),
            ("keep", None, "biases", len(controls)),
            *((*dose, 1) for dose in doses),
        ]:
            ending = "" if factor is None else f"-{factor:g}"
            found.append(
                Condition(
                    f"{kind}-{slug}{ending}", _label(kind, group.name, factor), kind, group, None, None, factor, against
                )
            )
            for draw, control in enumerate(controls[:n_controls]):
                found.append(
                    Condition(
                        f"{kind}-{slug}-random-{draw}{ending}",
                        _label(kind, f"random {draw}", factor),
                        kind,
                        control,
                        group.name,
                        draw,
                        factor,
                        against,
                    )
                )
    return found


def _label(kind: str, group: str, factor: float | None) -> str:
    times = "" if factor is None else f"{factor:g} x {group}"
    return {"remove": f"without {group}", "keep": f"only {group}", "scale": times, "negate": f"target - {times}"}[kind]


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "group"
