"""What judges are asked, as data: YAML files of a system and a user prompt, and of classes to choose from.

    classes:                     # `classify` only
      - name: domain
        description: Mathematics, science or code.
      - name: reasoning output
        group: reasoning            # shares are also given for all classes of a group
        description: ...
    system: |
      ...
    user: |
      {% for text in examples %}{{ loop.index }}: {{ text | tojson }}
      {% endfor %}

Both prompts are Jinja templates; what they may name is in VARIABLES. `tojson` writes a text as a JSON string, from
which nothing in it breaks out. The files in `prompts` beside this one are used by default.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import yaml
from jinja2 import StrictUndefined, TemplateError
from jinja2.meta import find_undeclared_variables
from jinja2.sandbox import ImmutableSandboxedEnvironment

from tc_adapters_lens.errors import JudgeError, did_you_mean
from tc_adapters_lens.judge.request import Form, Request, Task

__all__ = ["VARIABLES", "FeatureClass", "Prompts", "load_prompts"]

VARIABLES: dict[Task, tuple[str, ...]] = {
    "classify": ("classes", "examples", "peaks", "promoted", "inhibited"),
    "describe": ("examples", "promoted", "inhibited"),
    "detect": ("description", "texts"),
}
"""What each task's templates may name. examples, texts: pieces of text, in `examples` with << >> around tokens where
the feature is strongly active. peaks: each example's token of its activation. promoted, inhibited: tokens. classes:
each with `name`, `group`, `description`."""

_DIRECTORY = Path(__file__).parent / "prompts"
_JINJA = ImmutableSandboxedEnvironment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
_JINJA.filters["tojson"] = functools.partial(json.dumps, ensure_ascii=False)  # Jinja's own hides < and > from readers


@dataclass(frozen=True)
class FeatureClass:
    """A class that a feature may have.

    group: what it is counted under as well; its own name where it has none.
    """

    name: str
    description: str
    group: str

    def to_dict(self) -> dict[str, str]:
        """Plain values, for results."""
        return asdict(self)


@dataclass(frozen=True)
class Prompts:
    """A task's prompts.

    name: the file's name, without its directory.
    digest: SHA-256 of the file.
    classes: to choose from; empty where the task is not to choose.
    """

    task: Task
    name: str
    digest: str
    system: str
    user: str
    classes: tuple[FeatureClass, ...] = ()

    def request(self, form: type[Form], facts: Mapping[str, Any], **values: Any) -> Request:
        """The prompts with `values` in place of their variables; `classes` need not be given.

        Raises:
            JudgeError: a template that does not work with these values.
        """
        known = {**values, "classes": self.classes} if self.classes else values
        try:
            system, user = (template.render(known).strip() for template in self._templates)
        except (TemplateError, TypeError, ValueError, ArithmeticError, LookupError) as error:
            raise JudgeError(f"Prompts must be templates that work. {self.name} does not: {error}.") from error
        return Request(self.task, system, user, form, facts)

    @functools.cached_property
    def _templates(self) -> tuple[Any, Any]:
        return _JINJA.from_string(self.system), _JINJA.from_string(self.user)

    def to_dict(self) -> dict[str, str]:
        """Which prompts these are, for results."""
        return {"name": self.name, "sha256": self.digest}


def load_prompts(task: Task, file: str | Path | None = None) -> Prompts:
    """A task's prompts, from a YAML file; by default those that come with the package.

    Raises:
        JudgeError: the file is not what it must be.
    """
    path = _DIRECTORY / f"{task}.yaml" if file is None else Path(file).expanduser()
    try:
        data = path.read_bytes()
        values = yaml.safe_load(data)
    except OSError as error:
        raise JudgeError(f"Prompts must be a YAML file. {path} cannot be read: {error.strerror}.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise JudgeError(f"Prompts must be a YAML file. {path} is not: {' '.join(str(error).split())}.") from error
    keys = {"system", "user", *(["classes"] if task == "classify" else [])}
    if not isinstance(values, dict) or set(values) != keys:
        got = ", ".join(map(str, values)) if isinstance(values, dict) else type(values).__name__
        raise JudgeError(f"{path} must have the keys {', '.join(sorted(keys))}. Got {got}.")
    for key in ("system", "user"):
        if not isinstance(values[key], str):
            raise JudgeError(f"{path} must have a text as {key}. Got {values[key]!r}.")
        _check_template(path, key, values[key], task)
    return Prompts(
        task=task,
        name=path.name,
        digest=hashlib.sha256(data).hexdigest(),
        system=values["system"],
        user=values["user"],
        classes=_classes(path, values["classes"]) if "classes" in keys else (),
    )


def _check_template(path: Path, key: str, text: str, task: Task) -> None:
    try:
        named = find_undeclared_variables(_JINJA.parse(text))
    except TemplateError as error:
        raise JudgeError(f"{path} must have a Jinja template as {key}. Got one that is none: {error}.") from error
    if unknown := sorted(named - set(VARIABLES[task])):
        known = VARIABLES[task]
        raise JudgeError(
            f"The {key} of {path} may name {', '.join(known)}. Got {unknown[0]}.{did_you_mean(unknown[0], known)}"
        )


def _classes(path: Path, values: Any) -> tuple[FeatureClass, ...]:
    rule = f"{path} must have two classes or more, each with name and description and at most a group, all texts"
    if not isinstance(values, list) or len(values) < 2:
        raise JudgeError(f"{rule}. Got {values!r}.")
    classes = []
    for value in values:
        required = {"name", "description"}
        if (
            not isinstance(value, dict)
            or not required <= set(value) <= {*required, "group"}
            or not all(isinstance(part, str) and part.strip() for part in value.values())
        ):
            raise JudgeError(f"{rule}. Got {value!r}.")
        texts = cast("dict[str, str]", value)
        classes.append(FeatureClass(texts["name"], texts["description"], texts.get("group", texts["name"])))
    names = [one.name for one in classes]
    if twice := [name for name in names if names.count(name) > 1]:
        raise JudgeError(f"{path} must name a class once. Got '{twice[0]}' twice.")
    return tuple(classes)
