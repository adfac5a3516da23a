"""Names that several layers of the package share: hook points of a pair, parts of adapters, places in a run."""

from __future__ import annotations

PARAMETERS = ("W_enc", "b_enc", "W_dec", "b_dec")
SET_FILE = "adapter_set.json"

ADAPTERS = "adapters"
"""Where a run keeps its adapters."""

FEATURE_STORES = {"replacement": "features", "target": "features-target", "base": "features-base"}
"""Where a run keeps features, by whose units they are."""

GROUPS = "groups"
"""Where a run keeps feature groups."""

GRAPHS = "graphs"
"""Where a run keeps attribution graphs."""

JUDGE = "judge"
"""Where a run keeps what a judge said of its features, and the judge's replies."""

OVERLAP = "overlap.json"
"""Where a run keeps how far its features fire on the hidden states of target and base."""

OVERLAP_FORMAT, OVERLAP_VERSION = "tc_adapters_lens.activation_overlap", 1

SCORE_KINDS = ("top", "sampled", "shuffled")
"""Detection scores: on held-out examples of highest activation; on uniform ones; on the first again, by another
feature's description."""

CONTENT = "content"
"""The template position of what is near no token of the chat template."""


def hook_in(layer: int) -> str:
    """The MLP's input, after the second norm: `[batch pos d_model]`."""
    return f"blocks.{layer}.mlp.hook_in"


def hook_delta(layer: int) -> str:
    """MLP_target(x) - MLP_base(x): `[batch pos d_model]`."""
    return f"blocks.{layer}.mlp.hook_delta"


def hook_acts(layer: int) -> str:
    """An attached adapter's features: `[batch pos n_features]`."""
    return f"{hook_delta(layer)}.hook_sae_acts_post"


def hook_io(layer: int) -> str:
    """`[x ; delta]`, `[batch pos 2*d_model]`; computed only while something is hooked there."""
    return f"blocks.{layer}.mlp.hook_io"
