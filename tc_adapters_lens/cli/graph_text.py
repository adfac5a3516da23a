"""A graph's summary, to be read in a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["graph_text"]

_SHOWN = 10  # features, and paths
_PLACES = 4  # of a feature


def graph_text(slug: str, summary: Mapping[str, Any]) -> str:
    """A summary as `summary.json` has it, as lines of text under the graph's name."""
    shares, size = summary["shares"], summary["size"]
    biases = sum(shares["terms"].values())
    tokens = shares["tokens_through_features"] + shares["tokens_direct"]
    lines = [
        (
            f"{slug}: {summary['n_tokens']:,} tokens, {size['active_features']:,} active features, "
            f"{size['edges']:,} edges"
        ),
        "",
        "explained                probability     logit   features     tokens     errors     biases",
    ]
    for target in summary["targets"]:
        probability = f"{target['probability']:.1%}" if target["kind"] == "token" else ""
        lines.append(
            f"{_shown(target['label']):24} {probability:>11} {target['value']:+9.2f}  "
            f"{target['features']:+9.2f}  {target['tokens']:+9.2f}  {target['errors']:+9.2f}  "
            f"{sum(target['terms'].values()):+9.2f}"
        )
    lines += [
        "",
        (
            f"influence ends in tokens {tokens:.1%} ({shares['tokens_through_features']:.1%} through a feature), "
            f"biases {biases:.1%}, errors {shares['errors']:.1%}, features not traced {shares['without_rows']:.1%}, "
            f"small edges {shares['dropped']:.2%}"
        ),
        f"edges and biases add up to every node's value within {summary['largest_gap']:.0e} of what enters it",
        "",
        "feature   influence  promotes, and where it is a node",
    ]
    for feature in summary["features"][:_SHOWN]:
        places = ", ".join(f"{_shown(node['token'])}@{node['position']}" for node in feature["nodes"][:_PLACES])
        more = f" and {len(feature['nodes']) - _PLACES} more" if len(feature["nodes"]) > _PLACES else ""
        name = f"{feature['layer']}.{feature['feature']}"
        lines.append(f"{name:9} {feature['influence']:9.1%}  {_shown(feature['label'])}: {places}{more}")
    if summary["paths"]:
        lines += ["", f"share   strongest paths through features to {_shown(summary['targets'][0]['label'])}"]
    for path in summary["paths"][:_SHOWN]:
        sign = "" if path["sign"] > 0 else "  (against it)"
        lines.append(f"{path['weight']:6.2%}  {' > '.join(map(_node_shown, path['nodes']))}{sign}")
    return "\n".join([*lines, ""])


def _node_shown(node: Mapping[str, Any]) -> str:
    if node["kind"] == "feature":
        return f"{node['layer']}.{node['index']}@{node['position']} ({_shown(node['text'])})"
    return _shown(node["text"]) + (f"@{node['position']}" if node["kind"] == "token" else "")


def _shown(text: str) -> str:
    return repr(text) if text != text.strip() or not text.isprintable() else text
