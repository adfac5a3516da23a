"""Whether circuit-tracer is here."""

from __future__ import annotations

import importlib.util

from tc_adapters_lens.errors import MissingExtraError

__all__ = ["require_circuit_tracer"]


def require_circuit_tracer() -> None:
    """
    Raises:
        MissingExtraError: it is not installed.
    """
    if importlib.util.find_spec("circuit_tracer") is None:
        raise MissingExtraError(
            "Attribution graphs need circuit-tracer, which is not installed: "
            'pip install "tc-adapters-lens[attribution]"'
        )
