"""A share of a count, with its 95% interval."""

from __future__ import annotations

import math

from tc_adapters_lens.evaluation.estimate import Estimate

_Z = 1.959963984540054  # of a normal distribution's 97.5%


def share(k: int, n: int) -> Estimate | None:
    """k of n, as a share; None of nothing.

    Source: Wilson 1927, whose interval keeps its width where the share is 0 or 1.
    """
    if n == 0:
        return None
    p, z2 = k / n, _Z**2
    centre = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = _Z * math.sqrt(p * (1 - p) / n + z2 / (4 * n**2)) / (1 + z2 / n)
    return Estimate(p, max(0.0, min(centre - half, p)), min(1.0, max(centre + half, p)))
