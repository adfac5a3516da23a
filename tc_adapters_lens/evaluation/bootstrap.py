"""Streaming sums with 95% intervals: a Poisson bootstrap over sequences, in memory that does not grow with tokens.

Every replicate weighs each sequence by its own Poisson(1) draw, a function of the seed and the sequence's number alone.
What is added up per sequence is added up once as it is (row 0) and once per replicate; a figure is then computed from
every row in the same way, and its interval is where 95% of the replicates' figures lie.

Positions within a sequence depend on each other, so sequences are what is resampled.
Source: Hanley and MacGibbon 2006, "Creating non-parametric bootstrap samples using Poisson frequencies".
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from tc_adapters_lens.errors import ConfigError, DataError
from tc_adapters_lens.evaluation.estimate import Estimate

MIN_SEQUENCES = 10
_LOW, _HIGH = 0.025, 0.975
_N_SEQUENCES = "n_sequences"


@dataclass(frozen=True)
class Bootstrap:
    """How intervals are made.

    Args:
        n_replicates: resamples of the sequences; 0 leaves intervals out.
        seed: of the draws.
    Raises:
        ConfigError: between 1 and 99 replicates, too few for a 95% interval, or a negative number.
    """

    n_replicates: int = 1000
    seed: int = 42

    def __post_init__(self) -> None:
        if self.n_replicates != 0 and self.n_replicates < 100:
            raise ConfigError(
                f"A 95% interval needs at least 100 bootstrap replicates. Got {self.n_replicates}; "
                "give more, or 0 to leave intervals out."
            )

    def require(self, n: int, what: str = "sequences") -> None:
        """Whether there are sequences, or whatever else is resampled, enough.

        Raises:
            DataError: none, or too few for intervals.
        """
        if n == 0:
            raise DataError(f"There must be {what} to measure on. Got none.")
        if self.n_replicates and n < MIN_SEQUENCES:
            raise DataError(
                f"Intervals need at least {MIN_SEQUENCES} {what}, which are what is resampled. Got {n}. "
                "Give more, or set the bootstrap's replicates to 0 to leave intervals out."
            )

    def weights(self, sequences: Iterable[int]) -> Float[np.ndarray, "n_rows n_sequences"]:
        """Row 0 is all ones; every other row is a replicate's Poisson(1) draws for these sequences."""
        columns = [
            np.append(1.0, np.random.Generator(np.random.PCG64([self.seed, sequence])).poisson(1.0, self.n_replicates))
            for sequence in sequences
        ]
        return np.stack(columns, axis=1)


class Sums:
    """Sums over sequences, each with its replicates: name -> `[1 + n_replicates, *shape]`, float64.

    Args:
        bootstrap: how many replicates, and their seed.
        device: where sums are kept.
    """

    def __init__(self, bootstrap: Bootstrap, device: str | torch.device) -> None:
        self.bootstrap = bootstrap
        self.device = device
        self.n_sequences = 0
        self.tensors: dict[str, Tensor] = {}

    def add(
        self, values: Mapping[str, Float[Tensor, "n_sequences ..."]], fewer: Mapping[str, int] | None = None
    ) -> None:
        """Adds one batch: what each of its sequences has of each quantity. Sequences are numbered as they come.

        Args:
            values: name -> one entry per sequence, the same sequences for all.
            fewer: name -> replicates to keep of it, where all would take too much memory.
        """
        n = len(next(iter(values.values())))
        weights = self.bootstrap.weights(range(self.n_sequences, self.n_sequences + n))
        rows = torch.from_numpy(weights).to(self.device)
        for name, value in values.items():
            kept = rows if fewer is None or name not in fewer else rows[: 1 + fewer[name]]
            added = (kept @ value.double().reshape(n, -1)).view(-1, *value.shape[1:])
            self.tensors[name] = added if name not in self.tensors else self.tensors[name] + added
        self.n_sequences += n

    def state(self) -> dict[str, Tensor]:
        """All there is, by name."""
        return {**self.tensors, _N_SEQUENCES: torch.tensor(self.n_sequences)}

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Become what other sums were."""
        self.tensors = {name: tensor.to(self.device) for name, tensor in tensors.items()}
        self.n_sequences = int(self.tensors.pop(_N_SEQUENCES))

    def __getitem__(self, name: str) -> Float[np.ndarray, "n_rows ..."]:
        """All rows of a quantity."""
        return self.tensors[name].cpu().numpy()


def ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """Row by row; NaN where the denominator is zero.

    Args:
        numerator: `[n_rows, *shape]`.
        denominator: `[n_rows, *shape]`, or `[n_rows]` for all of a row.
    """
    denominator = denominator.reshape(denominator.shape + (1,) * (numerator.ndim - denominator.ndim))
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(denominator == 0, np.nan, numerator / denominator)


def estimate(rows: Float[np.ndarray, " n_rows"]) -> Estimate | None:
    """The figure of row 0 and the interval of the others; None where the figure is not finite.

    The replicates' percentiles are shifted so that their mean is the figure: for means that is next to nothing, while
    counts of rare features, of which every resample loses some, keep an interval around them.
    """
    value = float(rows[0])
    if not math.isfinite(value):
        return None
    replicates = rows[1:][np.isfinite(rows[1:])]
    if len(replicates) == 0:
        return Estimate(value)
    low, high = np.quantile(replicates, [_LOW, _HIGH]) + (value - replicates.mean())
    if replicates.min() >= 0:  # what cannot be below zero is not said to be
        low = max(low, 0.0)
    return Estimate(value, float(min(low, value)), float(max(high, value)))


def estimates(rows: Float[np.ndarray, "n_rows n"]) -> list[Estimate | None]:
    """One per column."""
    return [estimate(column) for column in rows.T]


def finite(rows: Float[np.ndarray, " n_rows"]) -> Estimate:
    """`estimate` of a mean over positions of which there are some: only broken predictions make it none.

    Raises:
        DataError: they are broken.
    """
    found = estimate(rows)
    if found is None:
        raise DataError(
            "Every model's predictions must be finite. Got NaN or infinity. Use float32, and see `tc-adapters doctor`."
        )
    return found
