"""Classes by rule: which class a feature has by the kinds of tokens that it fires on and promotes.

The rules are data, in the YAML file beside this one, which says what they mean.
"""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tc_adapters_lens.errors import JudgeError, did_you_mean

__all__ = ["classify_by_rules", "rules_digest"]

_FILE = Path(__file__).with_suffix(".yaml")
_BEFORE, _AFTER = 6, 6  # tokens around a token in which a phrase is looked for


@dataclass(frozen=True)
class _Kind:
    """What tokens are: of words, matching a pattern, or standing in a phrase. Everything in lower case."""

    name: str
    words: frozenset[str]
    pattern: re.Pattern[str] | None
    phrases: tuple[re.Pattern[str], ...]

    def fits(self, word: str) -> bool:
        return word in self.words or (self.pattern is not None and self.pattern.fullmatch(word) is not None)

    def stands_in(self, text: str, start: int, stop: int) -> bool:
        """Whether one of the phrases has a character in [start, stop) of the text."""
        found = (match for phrase in self.phrases for match in phrase.finditer(text))
        return any(match.start() < stop and match.end() > start for match in found)


@dataclass(frozen=True)
class _Rules:
    kinds: tuple[_Kind, ...]
    rules: tuple[Mapping[str, Any], ...]
    digest: str

    @property
    def classes(self) -> set[str]:
        return {rule["class"] for rule in self.rules}


def classify_by_rules(facts: Mapping[str, Any]) -> dict[str, str]:
    """Reason and class of a feature.

    Args:
        facts: `classes`: names to choose from; `examples`: each with `tokens` and `marked`; `promoted`: tokens.
    Raises:
        JudgeError: other classes than those there are rules for.
    """
    rules = _read()
    if wrong := sorted(set(facts["classes"]) ^ rules.classes):
        known = ", ".join(sorted(rules.classes))
        raise JudgeError(
            f"The judge `rules` sorts into {known}, all of them and no others. "
            f"{'Got' if wrong[0] in facts['classes'] else 'The prompts lack'} '{wrong[0]}'."
            f"{did_you_mean(wrong[0], rules.classes)} Ask a language model, or use the built-in prompts."
        )
    kinds = {
        "marked": [_kinds_in(rules.kinds, example) for example in facts["examples"]],
        "promoted": [[_kind(rules.kinds, token) for token in facts["promoted"]]],
    }
    for rule in rules.rules:
        if "of" not in rule:
            return {"reason": "No kind of token stands out.", "class": rule["class"]}
        share = _share(rule["kind"], [found[: rule.get("first")] for found in kinds[rule["of"]]])
        if share >= rule["least"]:
            reason = f"Of the {rule['of']} tokens {share:.0%} are of the kind {rule['kind']}."
            return {"reason": reason, "class": rule["class"]}
    raise AssertionError("the last rule always holds")


def rules_digest() -> str:
    """SHA-256 of the rules."""
    return _read().digest


@functools.cache
def _read() -> _Rules:
    data = _FILE.read_bytes()
    values = yaml.safe_load(data)
    kinds = tuple(
        _Kind(
            name=name,
            words=frozenset(_flat(kind.get("words", []))),
            pattern=re.compile(kind["pattern"]) if "pattern" in kind else None,
            phrases=tuple(re.compile(rf"(?<!\w)(?:{phrase})(?!\w)") for phrase in kind.get("phrases", [])),
        )
        for name, kind in values["kinds"].items()
    )
    return _Rules(kinds, tuple(values["rules"]), hashlib.sha256(data).hexdigest())


def _flat(words: Sequence[Any]) -> list[str]:
    return [str(word).lower() for entry in words for word in (entry if isinstance(entry, list) else [entry])]


def _share(kind: str, found: Sequence[Sequence[str | None]]) -> float:
    """How much of the tokens is of a kind, the mean over what they were found in; 0 of nothing."""
    shares = [kinds.count(kind) / len(kinds) for kinds in found if kinds]
    return sum(shares) / len(shares) if shares else 0.0


def _kinds_in(kinds: Sequence[_Kind], example: Mapping[str, Any]) -> list[str | None]:
    """Of an example's marked tokens."""
    tokens, found = example["tokens"], []
    for index, marked in enumerate(example["marked"]):
        if marked:
            before = "".join(tokens[max(0, index - _BEFORE) : index]).lower()
            after = "".join(tokens[index + 1 : index + 1 + _AFTER]).lower()
            found.append(_kind(kinds, tokens[index], before, after))
    return found


def _kind(kinds: Sequence[_Kind], token: str, before: str = "", after: str = "") -> str | None:
    """A token's kind.

    Args:
        before, after: the text around it, in lower case; nothing where it stands alone.
    """
    token = token.lower()
    word = token.strip()
    start = len(before) + len(token) - len(token.lstrip())
    for kind in kinds:
        in_text = word and kind.stands_in(before + token + after, start, start + len(word))
        if in_text or kind.fits(word):
            return kind.name
    return None
