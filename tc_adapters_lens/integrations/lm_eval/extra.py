"""Whether lm-eval is here."""

from __future__ import annotations

import importlib.metadata
import importlib.util

from tc_adapters_lens.errors import MissingExtraError

__all__ = ["require_lm_eval"]

_NEEDED = {  # module -> distribution
    "lm_eval": "lm-eval",
    "accelerate": "accelerate",
    "aiohttp": "aiohttp",
    "antlr4": "antlr4-python3-runtime",
    "math_verify": "math-verify",
    "requests": "requests",
    "tenacity": "tenacity",
}


def require_lm_eval() -> str:
    """The version of lm-eval.

    Raises:
        MissingExtraError: it, or what it needs for these benchmarks, is not installed.
    """
    missing = [name for module, name in _NEEDED.items() if importlib.util.find_spec(module) is None]
    if missing:
        raise MissingExtraError(
            f'Benchmarks need lm-eval. Missing: {", ".join(missing)}. Run pip install "tc-adapters-lens[evals]"'
        )
    return importlib.metadata.version("lm-eval")
