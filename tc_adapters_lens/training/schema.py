"""From plain mappings (YAML, the command line) to frozen dataclasses, with errors that name the key.

A configuration is a tree of frozen dataclasses that inherit `Section`. Types and ranges are checked whenever
one is made, so Python callers and YAML files get the same messages. The checks are written here because
jsonargparse, which reads the YAML and can parse the command line from the same dataclasses, words its errors
over several lines and does not name the nearest key.
"""

from __future__ import annotations

import dataclasses
import math
import types
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from jsonargparse import get_loader

from tc_adapters_lens.errors import ConfigError, did_you_mean

__all__ = ["Section", "build", "key_names", "nest", "parse_yaml"]

SectionT = TypeVar("SectionT", bound="Section")


@dataclasses.dataclass(frozen=True)
class Section:
    """Base of every part of a configuration: checks its fields' types, then its own `check`."""

    section: ClassVar[str] = ""  # dotted place in the whole configuration, for messages
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}  # the first gives values where none is named

    def __post_init__(self) -> None:
        for name, hint in _hints(type(self)).items():
            value = getattr(self, name)
            if float in _options(hint) and isinstance(value, int) and not isinstance(value, bool):
                value = float(value)
                object.__setattr__(self, name, value)
            if not _conforms(value, hint):
                self.fail(name, f"must be {_describe(hint)}")
        self.check()

    def check(self) -> None:
        """Raises ConfigError where a value is out of range; overridden by each section."""

    @classmethod
    def input_keys(cls) -> tuple[str, ...]:
        """Keys that users may write besides the fields."""
        return ("preset",) if cls.presets else ()

    @classmethod
    def prepare(cls, values: Mapping[str, Any]) -> Mapping[str, Any]:
        """Turns what users may write into fields: `preset: NAME` into the values that are not written out.

        Raises:
            ConfigError: there is no such preset.
        """
        if not cls.presets:
            return values
        preset = values.get("preset", next(iter(cls.presets)))
        if not isinstance(preset, str) or preset not in cls.presets:
            names, hint = ", ".join(cls.presets), did_you_mean(str(preset), cls.presets)
            raise ConfigError(f"{cls.key('preset')} must be one of {names}. Got {preset!r}.{hint}")
        return {**cls.presets[preset], **values}

    @classmethod
    def key(cls, name: str) -> str:
        return f"{cls.section}.{name}" if cls.section else name

    def fail(self, name: str, rule: str) -> None:
        raise ConfigError(f"{self.key(name)} {rule}. Got {getattr(self, name)!r}.")

    def require_at_least(self, least: float, *names: str) -> None:
        for name in names:
            value = getattr(self, name)
            if value is not None and not (value >= least and math.isfinite(value)):
                self.fail(name, f"must be at least {least}")

    def require_above(self, bound: float, *names: str) -> None:
        for name in names:
            value = getattr(self, name)
            if value is not None and not (value > bound and math.isfinite(value)):
                self.fail(name, f"must be above {bound}")

    def require_text(self, *names: str) -> None:
        for name in names:
            value = getattr(self, name)
            if value is not None and not value.strip():
                self.fail(name, "must not be empty")


def build(cls: type[SectionT], values: Any, root: type[Section] | None = None) -> SectionT:
    """Makes a section, and those inside it, from nested mappings.

    Text for a field that cannot be text ("8e-4", "none") is read as YAML.

    Args:
        cls: the section to make.
        values: mapping of field names to values.
        root: whole configuration, whose keys are offered for a key that is in the wrong place.
    Raises:
        ConfigError: an unknown or missing key, a wrong type or range; one line.
    """
    root = root or cls
    if not isinstance(values, Mapping):
        raise ConfigError(f"{cls.section or 'a configuration'} must be a mapping of keys to values. Got {values!r}.")
    hints = _hints(cls)
    for name in values:
        if name not in hints and name not in cls.input_keys():
            raise ConfigError(f"unknown key '{cls.key(str(name))}'.{_nearest(str(name), cls, root)}")
    arguments = {name: _read(value, hints[name], root) for name, value in cls.prepare(values).items() if name in hints}
    for field in dataclasses.fields(cls):
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and field.name not in arguments:
            raise ConfigError(f"missing key '{cls.key(field.name)}': it has no default.")
    return cls(**arguments)


def key_names(cls: type[Section]) -> Iterator[str]:
    """Every key a user may write, dotted: `seed`, `training.lr`, ..."""
    yield from map(cls.key, cls.input_keys())
    for name, hint in _hints(cls).items():
        if _is_section(hint):
            yield from key_names(hint)
        else:
            yield cls.key(name)


def nest(dotted: Mapping[str, Any], into: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of `into` with values set by dotted keys; a mapping is merged into the one there is."""
    nested = dict(into)
    for key, value in dotted.items():
        head, _, rest = key.partition(".")
        inner = {rest: value} if rest else value
        existing = nested.get(head)
        if isinstance(inner, Mapping):
            nested[head] = nest(inner, existing if isinstance(existing, Mapping) else {})
        else:
            nested[head] = inner
    return nested


def parse_yaml(text: str, source: str) -> Any:
    """YAML 1.2-like, in which 8e-4 is a number.

    Raises:
        ConfigError: not YAML; names the line.
    """
    try:
        return get_loader("yaml")(text)
    except Exception as error:  # the loader's own error classes are not public
        problem = getattr(error, "problem", None) or str(error).partition("\n")[0]
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise ConfigError(f"{source} is not valid YAML{line}: {problem}.") from error


def _read(value: Any, hint: Any, root: type[Section]) -> Any:
    if _is_section(hint) and not isinstance(value, hint):
        return build(hint, value, root)
    if isinstance(value, str) and not _conforms(value, hint):
        try:
            parsed = parse_yaml(value, "value")
        except ConfigError:
            return value
        return value if isinstance(parsed, (dict, list)) else parsed
    return value


def _nearest(name: str, cls: type[Section], root: type[Section]) -> str:
    own = [key.rpartition(".")[2] for key in key_names(cls)] if cls is not root else list(_hints(cls))
    nearest = did_you_mean(name, own)
    if not nearest:
        places = {key.rpartition(".")[2]: key for key in key_names(root)}
        nearest = f" Did you mean '{places[name]}'?" if name in places else ""
    return nearest or f" Known keys here: {', '.join(sorted({*own, *cls.input_keys()}))}."


def _hints(cls: type[Section]) -> dict[str, Any]:
    hints = get_type_hints(cls)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}


def _is_section(hint: Any) -> bool:
    return isinstance(hint, type) and issubclass(hint, Section)


def _options(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def _conforms(value: Any, hint: Any) -> bool:
    for option in _options(hint):
        if get_origin(option) is Literal:
            if isinstance(value, str) and value in get_args(option):
                return True
        elif isinstance(value, option) and not (isinstance(value, bool) and option is not bool):
            return True
    return False


def _describe(hint: Any) -> str:
    words = {
        int: "a whole number",
        float: "a number",
        str: "text",
        bool: "true or false",
        types.NoneType: "null",
    }
    described = []
    for option in _options(hint):
        if get_origin(option) is Literal:
            described += [repr(choice) for choice in get_args(option)]
        else:
            described.append(words.get(option, getattr(option, "__name__", str(option))))
    return " or ".join(described)
