"""The rule of a feature group in words."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tc_adapters_lens.report.shown_text import name

_ALGEBRA = {"or": " or ", "and": " and ", "minus": " but not "}


def rule_words(rule: Mapping[str, Any]) -> str:
    """A rule as a reader would say it; what has no words is compact JSON. "" where there is no rule."""
    said = []
    rest = dict(rule)
    if isinstance(built_in := rest.pop("built_in", None), str):
        said.append(f"the rule {name(built_in)}")
    for needed, optional, words in _WORDS:
        if all(_is_said(rest.get(key)) for key in needed):
            taken = {key: rest.pop(key) for key in (*needed, *optional) if key in rest}
            said.append(words(taken))
    for word, between in _ALGEBRA.items():
        members = rest.get(word)
        if isinstance(members, list) and members and all(isinstance(member, Mapping) for member in members):
            said.append(between.join(map(_member, rest.pop(word))))
    said += [f"{name(key.replace('_', ' '))} {_value(value)}" for key, value in rest.items()]
    return "; ".join(said)


def _is_said(value: object) -> bool:
    """Whether it is a text, a number or a list of them."""
    return isinstance(value, str | int | float) or (
        isinstance(value, list) and all(isinstance(one, str | int | float) for one in value)
    )


def _promotes(rule: Mapping[str, Any]) -> str:
    said = f"one of {_value(rule['promotes'])} among the {_value(rule['top'])} most promoted tokens"
    return said + (f" ({_value(rule['not_tokens'])}: not one token)" if "not_tokens" in rule else "")


def _template(rule: Mapping[str, Any]) -> str:
    share = f"{rule['share']:.0%}" if isinstance(rule["share"], float | int) else _value(rule["share"])
    return f"at least {share} of the highest examples at one template position ({_value(rule['template'])})"


def _graph(rule: Mapping[str, Any]) -> str:
    which = f"the {_value(rule['top_nodes'])} most influential features" if "top_nodes" in rule else "the features"
    return f"{which} of the attribution graph {_value(rule['graph'])}"


# Keys that must be there, keys that may, and what they say together.
_WORDS: Sequence[tuple[Sequence[str], Sequence[str], Callable[[Mapping[str, Any]], str]]] = (
    (("promotes", "top"), ("not_tokens",), _promotes),
    (("template", "share"), (), _template),
    (("graph",), ("top_nodes", "n_features_in_graph"), _graph),
    (("where",), (), lambda rule: _value(rule["where"])),
    (("named",), (), lambda _: "named one by one"),
    (("given",), (), lambda rule: f"read from {_value(rule['given'])}"),
)


def _member(rule: Mapping[str, Any]) -> str:
    """A rule, or a group by its name and rule, inside another one."""
    if {*rule} == {"name", "rule"} and isinstance(rule["rule"], Mapping):
        words = rule_words(rule["rule"])
        return f"{name(str(rule['name']))} ({words})" if words else name(str(rule["name"]))
    words = rule_words(rule)
    return f"({words})" if "; " in words or {*rule} & {*_ALGEBRA} else words


def _value(value: object) -> str:
    if isinstance(value, str):
        return name(value)
    if isinstance(value, list) and value and _is_said(value):
        return ", ".join(map(_value, value))
    return name(json.dumps(value, ensure_ascii=False))
