"""What is known of features: of a whole store, of one layer's as arrays, and of one feature to read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Float16, Float32, Int32, Int64, UInt8

from tc_adapters_lens.errors import FeatureStoreError

__all__ = [
    "EXAMPLE_KINDS",
    "HISTOGRAM_EDGES",
    "Example",
    "Feature",
    "KeptExamples",
    "LayerFeatures",
    "ModelKind",
    "StoreInfo",
    "TokenEffect",
    "TokenEffects",
]

ModelKind = Literal["replacement", "target", "base"]
"""Whose units a store is about: adapter features of the replacement model, or MLP neurons of target or base."""

EXAMPLE_KINDS = ("top", "sampled")
"""Examples of highest activation, and examples drawn uniformly."""

HISTOGRAM_EDGES = (*(2.0**octave * half for octave in range(-16, 16) for half in (1.0, 1.5)), 2.0**16)
"""Edges of activation histograms, two bins an octave; the first and last bin also hold what lies beyond them."""


@dataclass(frozen=True)
class StoreInfo:
    """What a feature store holds and how it was made.

    model: whose units.
    hook: where they are read, with `{layer}` for the layer.
    n_layers, n_features: layers, and units of a layer.
    k: examples kept of each kind.
    before, after: an example's tokens before and after its position, and those of windows drawn at random.
    n_windows: windows drawn at random from the text.
    n_sequences, n_tokens, n_counted: the text: sequences, tokens, and positions that counted.
    regions, region_tokens: names of a text's regions, and positions that counted in each; empty for plain text.
    group_by, groups, group_tokens: the dataset's column, its values, and positions that counted of each.
    template, template_tokens: names of positions relative to the chat template, and positions that counted at each.
    pair: base and target, as `PairInfo.to_dict` has them.
    adapters, adapters_fingerprint: name and `AdapterSet.fingerprint` of the adapters; None for neurons.
    provenance: text, seed, versions: anything JSON can hold.
    histogram_edges: n_bins + 1 activations, ascending.
    """

    model: ModelKind
    hook: str
    n_layers: int
    n_features: int
    k: int
    before: int
    after: int
    n_windows: int
    n_sequences: int
    n_tokens: int
    n_counted: int
    regions: tuple[str, ...]
    region_tokens: tuple[int, ...]
    group_by: str | None
    groups: tuple[str, ...]
    group_tokens: tuple[int, ...]
    template: tuple[str, ...]
    template_tokens: tuple[int, ...]
    pair: dict[str, Any]
    adapters: str | None
    adapters_fingerprint: str | None
    provenance: dict[str, Any] = field(default_factory=dict)
    histogram_edges: tuple[float, ...] = HISTOGRAM_EDGES

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> StoreInfo:
        """Raises FeatureStoreError: keys missing or unknown."""
        names = {field.name for field in fields(cls)}
        if set(values) != names:
            wrong = sorted(set(values) ^ names)
            raise FeatureStoreError(f"A store's description must have the keys {sorted(names)}. It differs in {wrong}.")
        lists = {name: tuple(value) for name, value in values.items() if isinstance(value, list)}
        return cls(**{**values, **lists})


class TokenEffects(NamedTuple):
    """What directions do to the logits of some tokens.

    ids: token ids, strongest first.
    effects: logit per unit of activation, minus its mean over the vocabulary.
    """

    ids: Int32[np.ndarray, "n_features n_tokens"]
    effects: Float32[np.ndarray, "n_features n_tokens"]


class KeptExamples(NamedTuple):
    """One kind of examples of one layer's features.

    positions: flat positions, in the order to be shown; -1 where there are fewer than k.
    activations: at these positions; 0 where there is none.
    starts: where each example's entries below start, and their number at the end; examples flattened.
    offsets: which of the window's `before + 1 + after` tokens has an activation above zero.
    values: that activation.
    """

    positions: Int64[np.ndarray, "n_features k"]
    activations: Float32[np.ndarray, "n_features k"]
    starts: Int64[np.ndarray, " n_features_times_k_plus_1"]
    offsets: UInt8[np.ndarray, " n_entries"]
    values: Float32[np.ndarray, " n_entries"]


@dataclass(frozen=True)
class LayerFeatures:
    """One layer's features, as a store is written from and read back into.

    n_active: at how many positions each feature is active (above zero), of those that count.
    mean: its mean activation over these, `maximum` the highest; 0 for a feature that is never active.
    histogram: of its activations over these.
    regions, groups, template: how many of these lie in each.
    promoted, inhibited: tokens whose logits its direction raises and lowers most.
    top, sampled: examples of highest activation; examples drawn uniformly from these.
    window_maxima: highest activation anywhere in each of the windows drawn at random; 0 where it is not active.
    """

    n_active: Int64[np.ndarray, " n_features"]
    mean: Float32[np.ndarray, " n_features"]
    maximum: Float32[np.ndarray, " n_features"]
    histogram: Int64[np.ndarray, "n_features n_bins"]
    regions: Int64[np.ndarray, "n_features n_regions"]
    groups: Int64[np.ndarray, "n_features n_groups"]
    template: Int64[np.ndarray, "n_features n_template"]
    promoted: TokenEffects
    inhibited: TokenEffects
    top: KeptExamples
    sampled: KeptExamples
    window_maxima: Float16[np.ndarray, "n_features n_windows"]


class TokenEffect(NamedTuple):
    """One promoted or inhibited token: id, text, and demeaned logit per unit of activation."""

    token: int
    text: str
    effect: float


@dataclass(frozen=True)
class Example:
    """A position where a feature is active, with its surroundings.

    sequence, position: where; the position counts from the sequence's first token.
    activation: there.
    start: position of the first of `tokens`; the example's own token is `tokens[position - start]`.
    tokens: token ids of the surroundings.
    activations: the feature's at each of them, 0 where it is not above zero (neurons go below).
    group: value of the store's `group_by` for the sequence; None without it.
    region, template: name of the position's region and template position; None where the text has none.
    """

    sequence: int
    position: int
    activation: float
    start: int
    tokens: Int32[np.ndarray, " window"]
    activations: Float32[np.ndarray, " window"]
    group: str | None = None
    region: str | None = None
    template: str | None = None


@dataclass(frozen=True)
class Feature:
    """One feature, to read.

    n_active, frequency: positions where it is active, and their share of all that count.
    mean, max: of its activation where active.
    histogram: positions per bin of the store's `histogram_edges`.
    regions, groups, template: shares of its active positions; empty if there are none.
    promoted, inhibited: 20 tokens each, strongest first.
    top: examples of highest activation, highest first.
    sampled: examples drawn uniformly from all active positions, in the order of the text.
    labels: what was added to the store later, such as a class or a description.
    """

    layer: int
    feature: int
    n_active: int
    frequency: float
    mean: float
    max: float
    histogram: Int64[np.ndarray, " n_bins"]
    regions: dict[str, float]
    groups: dict[str, float]
    template: dict[str, float]
    promoted: list[TokenEffect]
    inhibited: list[TokenEffect]
    top: list[Example]
    sampled: list[Example]
    labels: dict[str, Any]
