"""One feature as JSON: everything its page shows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

import numpy as np

from tc_adapters_lens.features.records import Example, Feature, TokenEffect
from tc_adapters_lens.features.store import FeatureStore
from tc_adapters_lens.serve.table import finite

MOST_CONTEXT = 4096


def feature_json(store: FeatureStore, feature: Feature) -> dict[str, Any]:
    """A feature's figures, promoted tokens and examples; all of its text is plain text, none of it markup."""
    return {
        "layer": feature.layer,
        "feature": feature.feature,
        "n_active": feature.n_active,
        "frequency": feature.frequency,
        "mean": finite(feature.mean),
        "max": finite(feature.max),
        "histogram": {
            "counts": np.asarray(feature.histogram).tolist(),
            "edges": [float(edge) for edge in store.info.histogram_edges],
        },
        "regions": shares(feature.regions),
        "groups": shares(feature.groups),
        "template": shares(feature.template),
        "group_by": store.info.group_by,
        "promoted": [effect_json(effect) for effect in feature.promoted],
        "inhibited": [effect_json(effect) for effect in feature.inhibited],
        "top": [example_json(store, example) for example in feature.top],
        "sampled": [example_json(store, example) for example in feature.sampled],
        "labels": {name: plain(value) for name, value in feature.labels.items() if plain(value) is not None},
    }


def example_json(store: FeatureStore, example: Example) -> dict[str, Any]:
    """An example with each token's own text; `peak` is the peak's index in it."""
    return {
        "sequence": example.sequence,
        "position": example.position,
        "start": example.start,
        "peak": example.position - example.start,
        "length": sequence_length(store, example.sequence),
        "activation": float(example.activation),
        "group": example.group,
        "region": example.region,
        "template": None if example.template in store.info.template[:1] else example.template,  # the first is content
        "texts": store.vocabulary.texts(np.asarray(example.tokens).tolist()),
        "activations": [round(value, 5) for value in np.asarray(example.activations, dtype=float).tolist()],
    }


def context_json(store: FeatureStore, sequence: int, start: int, stop: int) -> dict[str, Any]:
    """Texts of the tokens at positions [start, stop) of a sequence, as many of them as there are."""
    first, last = int(store.offsets[sequence]), int(store.offsets[sequence + 1])
    start, stop = min(start, last - first), min(stop, last - first, start + MOST_CONTEXT)
    tokens = np.asarray(store.tokens[first + start : first + stop]).tolist()
    return {"sequence": sequence, "start": start, "texts": store.vocabulary.texts(tokens)}


def sequence_length(store: FeatureStore, sequence: int) -> int:
    """Tokens of a sequence."""
    return int(store.offsets[sequence + 1]) - int(store.offsets[sequence])


def shares(by_name: Mapping[str, float]) -> list[list[Any]]:
    """[name, share] pairs in the store's order; none of a feature that was never active."""
    return [[name, finite(float(share))] for name, share in by_name.items()]


def effect_json(effect: TokenEffect) -> dict[str, Any]:
    return {"token": int(effect.token), "text": effect.text, "effect": finite(float(effect.effect))}


def plain(value: Any) -> Any:
    """A label's value as JSON has it; None where there is none."""
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, (bool, int, str)):
        return value
    return finite(value) if isinstance(value, float) else str(value)


def file_address(name: str) -> str:
    """The address of a file of the run; a fragment behind `#` stays one."""
    file, mark, fragment = name.partition("#")
    return f"/run/{quote(file)}{mark}{quote(fragment)}"
