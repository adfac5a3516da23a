"""Descriptions and detection by rules, from the facts that prompts are written from.

A description names tokens, as JSON strings: `active on: " wait", " Wait"`. A text is said to have the feature where one
of its tokens is among them.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

__all__ = ["describe_by_rules", "detect_by_rules"]

MOST_TOKENS = 5
ENOUGH = 0.8
"""Tokens are named until this share of the exemplars has one of them marked."""

_STRING = re.compile(r'"(?:[^"\\]|\\.)*"')


def describe_by_rules(facts: Mapping[str, Any]) -> dict[str, str]:
    """The tokens that most exemplars have marked, each counted among exemplars that have none of those before it.

    Args:
        facts: `examples`, each with `tokens` and `marked`.
    """
    left = [
        dict.fromkeys(token for token, marked in zip(example["tokens"], example["marked"], strict=True) if marked)
        for example in facts["examples"]
    ]
    spared = (1 - ENOUGH) * len(left)
    named: list[str] = []
    while len(left) > spared and len(named) < MOST_TOKENS:
        counts = Counter(token for tokens in left for token in tokens)
        if not counts:
            break
        named.append(counts.most_common(1)[0][0])
        left = [tokens for tokens in left if named[-1] not in tokens]
    words = ", ".join(json.dumps(token, ensure_ascii=False) for token in named)
    return {"description": f"active on: {words}"}


def detect_by_rules(facts: Mapping[str, Any]) -> dict[str, bool]:
    """Texts that have a token which the description names in quotes.

    Args:
        facts: `description`, and `texts`, each with `tokens`.
    """
    named = {_unquoted(word) for word in _STRING.findall(facts["description"])}
    return {str(number): not named.isdisjoint(text["tokens"]) for number, text in enumerate(facts["texts"], start=1)}


def _unquoted(word: str) -> str:
    try:
        return json.loads(word, strict=False)
    except ValueError:
        return word[1:-1]
