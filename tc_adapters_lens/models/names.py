"""Names of the hook points a pair adds at every layer, and of what adapters are made of."""

from __future__ import annotations

PARAMETERS = ("W_enc", "b_enc", "W_dec", "b_dec")
SET_FILE = "adapter_set.json"


def hook_in(layer: int) -> str:
    """The MLP's input, after the second norm: `[batch pos d_model]`."""
    return f"blocks.{layer}.mlp.hook_in"


def hook_delta(layer: int) -> str:
    """MLP_target(x) - MLP_base(x): `[batch pos d_model]`."""
    return f"blocks.{layer}.mlp.hook_delta"


def hook_io(layer: int) -> str:
    """`[x ; delta]`, `[batch pos 2*d_model]`; computed only while something is hooked there."""
    return f"blocks.{layer}.mlp.hook_io"
