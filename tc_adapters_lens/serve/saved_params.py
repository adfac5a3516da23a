"""What circuit-tracer's page saves in a graph's file: pins, groups of pins, and labels that a user wrote."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

MOST_BYTES = 2**20
DEFAULTS: Mapping[str, Any] = {"pinnedIds": [], "supernodes": [], "linkType": "both", "clickedId": "", "sg_pos": ""}
LABELS = "clerps"  # not in circuit-tracer's class, but its page reads and saves them: JSON of [number, label] pairs


def filled(saved: Any) -> dict[str, Any]:
    """A file's qParams, or what stands for them, with every one that the page cannot do without."""
    known = saved if isinstance(saved, Mapping) else {}
    return {**DEFAULTS, **{name: value for name, value in known.items() if value is not None}}


def saved_with(saved: Any, posted: Mapping[str, Any], nodes: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """A file's qParams with those that the page sends.

    The page sends what stands in its address: lists as text, and null for what was not touched since it was opened,
    which therefore stays. Names of nodes that the graph does not have are left out.

    Args:
        saved: the file's.
        posted: the page's.
        nodes: of the graph.
    Raises:
        ValueError, TypeError, AttributeError, KeyError: not what the page sends (pydantic's errors are ValueErrors).
        ModuleNotFoundError: circuit-tracer is not installed.
    """
    from circuit_tracer.frontend.graph_models import QParams

    there = {str(node["node_id"]) for node in nodes}
    kept = {name: value for name, value in filled(saved).items() if name in DEFAULTS}
    sent = {name: posted[name] for name in DEFAULTS if posted.get(name) is not None}
    if isinstance(sent.get("pinnedIds"), str):
        sent["pinnedIds"] = [name for name in sent["pinnedIds"].split(",") if name]
    if isinstance(sent.get("supernodes"), str):
        sent["supernodes"] = json.loads(sent["supernodes"] or "[]")
    params = QParams.model_validate({**kept, **sent}).model_dump()
    params["pinnedIds"] = [name for name in params["pinnedIds"] if name in there]
    groups = [[*group[:1], *(name for name in group[1:] if name in there)] for group in params["supernodes"]]
    params["supernodes"] = [group for group in groups if len(group) > 1]
    if params["clickedId"] not in there:  # a group, "null" or "undefined"
        params["clickedId"] = ""
    labels = {**_labels(filled(saved).get(LABELS)), **_labels(posted.get(LABELS))}
    if written := [[number, label] for number, label in labels.items() if label]:
        params[LABELS] = json.dumps(written)
    return params


def _labels(text: str | None) -> dict[str, str]:
    return {str(number): str(label) for number, label in json.loads(text or "[]")}
