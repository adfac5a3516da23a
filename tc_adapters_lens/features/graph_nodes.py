"""Features that are nodes of an attribution graph, in circuit-tracer's JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from math import inf, isfinite, isqrt
from pathlib import Path
from typing import Any

from tc_adapters_lens.errors import ConfigError, FeatureGroupError
from tc_adapters_lens.features.choice import Choice, named
from tc_adapters_lens.features.store import FeatureStore

__all__ = ["cantor", "feature_nodes", "in_graph", "node_names", "unpair"]

_FEATURE_NODE = "cross layer transcoder"


def in_graph(store: FeatureStore, path: str | Path, top_nodes: int | None = None) -> Choice:
    """Features that are nodes of a graph.

    Args:
        path: circuit-tracer's JSON of the graph.
        top_nodes: only so many, the most influential; a feature at several positions counts once, by its most
            influential node. All if there are fewer.
    Raises:
        ConfigError: fewer than one.
        FeatureGroupError: not a graph, one without influences where they are needed, or of other adapters.
    """
    path = Path(path).expanduser()
    if top_nodes is not None and top_nodes < 1:
        raise ConfigError(f"A graph's top nodes must be at least 1. Got {top_nodes}.")
    nodes = _read(path)
    if not nodes:
        raise FeatureGroupError(f"A graph must have nodes that are features. Got none in {path}.")
    rule: dict[str, Any] = {"graph": path.name, "n_features_in_graph": len(nodes)}
    chosen = list(nodes)
    if top_nodes is not None:
        rule["top_nodes"] = top_nodes
        scores = {feature: score for feature, score in nodes.items() if score is not None}
        if len(scores) < len(nodes):
            raise FeatureGroupError(
                f"A graph's top nodes need every feature's influence. Got {path} with {len(nodes) - len(scores)} of "
                f"{len(nodes)} features without one. Leave the number out to take all of them."
            )
        chosen = sorted(scores, key=lambda feature: (scores[feature], feature))[:top_nodes]
    try:
        return Choice(store, rule, named(store, chosen).chosen)
    except FeatureGroupError as error:
        raise FeatureGroupError(f"{path} must be a graph of the store's adapters: {error}") from error


def feature_nodes(graph: Mapping[str, Any]) -> dict[tuple[int, int], float | None]:
    """(layer, feature) of a graph's nodes that are features, with their influence: the share of all influence that
    they and the nodes above them have, so the smallest is the most influential. The smallest of a feature's nodes; None
    if one has none.

    Raises:
        KeyError, TypeError, ValueError, AttributeError: not a graph.
    """
    found: dict[tuple[int, int], float | None] = {}
    for node in graph["nodes"]:
        if node.get("feature_type") == _FEATURE_NODE:
            feature, influence = unpair(node["feature"]), node.get("influence")
            influence = float(influence) if influence is not None and isfinite(influence) else None
            before = found.get(feature, influence)
            found[feature] = None if before is None or influence is None else min(before, influence)
    return found


def node_names(graph: Mapping[str, Any]) -> dict[tuple[int, int], str]:
    """(layer, feature) of a graph's nodes that are features -> name of the most influential of each feature's nodes.

    Raises:
        KeyError, TypeError, ValueError, AttributeError: not a graph.
    """
    names: dict[tuple[int, int], str] = {}
    found = [node for node in graph["nodes"] if node.get("feature_type") == _FEATURE_NODE]
    for node in sorted(found, key=lambda node: inf if node.get("influence") is None else node["influence"]):
        names.setdefault(unpair(node["feature"]), str(node["node_id"]))
    return names


def cantor(layer: int, feature: int) -> int:
    """One number for a layer and a feature, as circuit-tracer pairs them."""
    return (layer + feature) * (layer + feature + 1) // 2 + feature


def unpair(number: int) -> tuple[int, int]:
    """(layer, feature) of circuit-tracer's number for them.

    Raises:
        ValueError: the number is negative.
    """
    diagonal = (isqrt(8 * number + 1) - 1) // 2
    feature = number - diagonal * (diagonal + 1) // 2
    return diagonal - feature, feature


def _read(path: Path) -> dict[tuple[int, int], float | None]:
    try:
        return feature_nodes(json.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise FeatureGroupError(f"{path} cannot be read: {error.strerror}. Name the JSON file of a graph.") from error
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise FeatureGroupError(
            f"A graph must be a JSON file as circuit-tracer writes it, with nodes. Got {path}, which is not."
        ) from error
