"""evaluation.json: everything that was measured of a run, with what it was measured on and by."""

from __future__ import annotations

import importlib.metadata
import platform
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from tc_adapters_lens.evaluation.estimate import Estimate
from tc_adapters_lens.models.pair_info import PairInfo

if TYPE_CHECKING:  # whoever reads evaluations needs no torch
    from tc_adapters_lens.evaluation.faithfulness import Faithfulness
    from tc_adapters_lens.evaluation.partial import PartialKL

EVALUATION_FILE = "evaluation.json"
FORMAT = "tc_adapters_lens.evaluation"
FORMAT_VERSION = 1

_PACKAGES = ("tc-adapters-lens", "torch", "transformers", "transformer-lens", "sae-lens")


@dataclass(frozen=True)
class MeasuredOn:
    """What an evaluation was made of.

    positions: which positions count: all, or response.
    tokens: the text, as it was named.
    tokens_fingerprint: sha256 of token ids, masks and boundaries.
    data: what became of the rows.
    sampling: how the text was sampled from the target, where it was.
    """

    positions: str
    tokens: str
    tokens_fingerprint: str
    data: dict[str, Any]
    sampling: dict[str, Any] | None = None


@dataclass(frozen=True)
class Swept:
    """One learning rate of the skyline."""

    lr: float
    kl: Estimate
    top1_error: Estimate


@dataclass(frozen=True)
class Evaluation:
    """One run's evaluation.

    faithfulness, partial: of its adapters; partial None where it was left out.
    measured_on: the text.
    pair, adapters, recipe: which adapters, of which models, trained how.
    shuffle: per layer the layer whose adapter stands there in the model "shuffled"; None without it.
    skyline_sweep: every learning rate tried for the skyline, of which the one of least KL is the model "skyline".
    no_bridging: of adapters trained without bridging, with their partial replacement; None without them.
    """

    faithfulness: Faithfulness
    partial: PartialKL | None
    measured_on: MeasuredOn
    pair: PairInfo
    adapters: str
    recipe: dict[str, Any]
    shuffle: list[int] | None = None
    skyline_sweep: list[Swept] = field(default_factory=list)
    no_bridging: tuple[Faithfulness, PartialKL | None] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as evaluation.json holds them."""
        return {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            **asdict(self.measured_on),
            "pair": self.pair.to_dict(),
            "adapters": self.adapters,
            "recipe": self.recipe,
            "versions": versions(),
            **asdict(self.faithfulness),
            **_partial(self.partial),
            "shuffle": self.shuffle,
            "skyline_sweep": [asdict(swept) for swept in self.skyline_sweep],
            "no_bridging": None if self.no_bridging is None else _internal(*self.no_bridging),
        }


def versions() -> dict[str, str]:
    """What a result was made with."""
    packages = {name.replace("-", "_"): importlib.metadata.version(name) for name in _PACKAGES}
    return {**packages, "python": platform.python_version()}


def _internal(found: Faithfulness, partial: PartialKL | None) -> dict[str, Any]:
    every = asdict(found)
    kept = ("l0", "l0_per_layer", "nmse", "nmse_per_layer", "dead")
    return {**{name: every[name] for name in kept}, **_partial(partial)}


def _partial(partial: PartialKL | None) -> dict[str, Any]:
    if partial is None:
        return {"partial_kl": None, "partial_sequences": 0}
    curves = asdict(partial)
    return {"partial_sequences": curves.pop("n_sequences"), "partial_kl": curves}
