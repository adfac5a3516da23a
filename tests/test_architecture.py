"""Imports go down the layers of the package only, and importing the package costs nothing.

TYPE_CHECKING blocks count like any other import: a module whose annotations name a layer depends on it.
The package's own `__init__` is the one exception, being the public face of the layers below it.
"""

from __future__ import annotations

import ast
import importlib.metadata
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import tc_adapters_lens

PACKAGE = "tc_adapters_lens"
ROOT = Path(tc_adapters_lens.__file__).parent

# What the modules of a layer may import, besides their own layer. `PACKAGE` is the package's __init__.
BELOW = {"errors": set[str]()}
BELOW["toy"] = {"errors"}
BELOW["core"] = {"errors"}
BELOW["models"] = {"core", "toy", "errors"}
BELOW["assets"] = {"errors", "models"}
BELOW["templates"] = set[str]()
BELOW["training"] = BELOW["models"] | {"models"}
BELOW["evaluation"] = BELOW["features"] = BELOW["interventions"] = BELOW["training"]  # each for itself
BELOW["judge"] = BELOW["features"] | {"features", "evaluation"}
BELOW["integrations"] = BELOW["training"] | {
    "training",
    "judge",
    "evaluation",
    "features",
    "interventions",
    "assets",
    "templates",
}
BELOW[PACKAGE] = BELOW["integrations"] | {"integrations", "toy"}
BELOW["cli"] = BELOW[PACKAGE] | {PACKAGE, "report", "serve"}
BELOW["report"] = BELOW["serve"] = BELOW[PACKAGE] | {PACKAGE}

# Members of these never import each other: they are optional extras of their own.
APART = "integrations"


def modules() -> dict[str, Path]:
    """Dotted name -> file, for every module of the package."""
    named = {}
    for path in sorted(ROOT.rglob("*.py")):
        parts = [PACKAGE, *path.relative_to(ROOT).with_suffix("").parts]
        named[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return named


def layer(module: str) -> str:
    """The part after the package's name: "tc_adapters_lens.models.pair" -> "models"."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else PACKAGE


def imported(module: str, source: str, known: set[str], is_package: bool = False) -> Iterator[tuple[int, str]]:
    """Line and dotted name of every import, wherever it stands in the file.

    `from a.b import c` names the module a.b.c where there is one, else a.b.
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            origin = node.module or ""
            if node.level:
                package = module.split(".")[: None if is_package and node.level == 1 else -node.level + is_package]
                origin = ".".join([*package, *filter(None, [node.module])])
            for alias in node.names:
                full = f"{origin}.{alias.name}"
                yield node.lineno, full if full in known else origin


def violations(module: str, source: str, known: set[str], is_package: bool = False) -> list[str]:
    """A line per import that goes up, or into a module that is in no layer."""
    here, found = layer(module), []
    for line, name in imported(module, source, known, is_package):
        if name.split(".")[0] != PACKAGE:
            continue
        there = layer(name)
        apart = here == there == APART and name.split(".")[2:3] != module.split(".")[2:3]
        if apart or (there != here and there not in BELOW[here]):
            found.append(f"{module}:{line} imports {name}")
    return found


def test_every_module_is_in_a_layer():
    unplaced = [name for name in modules() if layer(name) not in BELOW]
    assert not unplaced, f"in no layer: {unplaced}. Layers: {sorted(BELOW)}"


@pytest.mark.parametrize("module", modules())
def test_imports_go_down(module):
    path = modules()[module]
    known = set(modules())
    assert not violations(module, path.read_text(encoding="utf-8"), known, path.name == "__init__.py")


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("core.losses", "from tc_adapters_lens.models.pair import load_pair"),
        ("core.losses", "from tc_adapters_lens import models"),
        ("core.losses", "from tc_adapters_lens import load_pair"),
        ("core.losses", "from ..models import pair"),
        ("core.losses", "from .. import load_pair"),
        ("models.pair", "def f():\n    import tc_adapters_lens.training.runner"),
        ("models.pair", "if TYPE_CHECKING:\n    from tc_adapters_lens.training.runner import train"),
        ("evaluation.faithfulness", "from tc_adapters_lens.training.data import TokenBatch"),
        ("evaluation.faithfulness", "from tc_adapters_lens.features.examples import find"),
        ("training.runner", "from tc_adapters_lens.cli.main import main"),
        ("toy.problems", "from tc_adapters_lens.core.losses import nmse"),
        ("integrations.dashboard", "from tc_adapters_lens.integrations.circuits import graph"),
        ("errors", "import tc_adapters_lens"),
    ],
)
def test_an_upward_import_is_seen(module, source):
    known = {*modules(), f"{PACKAGE}.models", f"{PACKAGE}.models.pair"}
    assert violations(f"{PACKAGE}.{module}", source, known)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        (
            "models.pair",
            "from tc_adapters_lens.core.losses import nmse\nfrom tc_adapters_lens.errors import PairError",
        ),
        ("models.pair", "from .names import hook_in\nfrom ..errors import PairError"),
        ("cli.main", "from tc_adapters_lens import __version__, errors"),
        ("core.losses", "import torch"),
    ],
)
def test_a_downward_import_is_not(module, source):
    assert not violations(f"{PACKAGE}.{module}", source, set(modules()))


def test_all_names_the_public_names():
    tree = ast.parse((ROOT / "__init__.py").read_text(encoding="utf-8"))
    (block,) = (node for node in tree.body if isinstance(node, ast.If))  # if TYPE_CHECKING:
    declared = {alias.name for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert set(tc_adapters_lens.__all__) == declared | {"__version__"} == set(dir(tc_adapters_lens))
    assert tc_adapters_lens.__all__ == sorted(tc_adapters_lens.__all__)


def test_public_names_come_from_where_they_are_declared():
    tree = ast.parse((ROOT / "__init__.py").read_text(encoding="utf-8"))
    for node in (node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)):
        if (node.module or "").startswith(PACKAGE):
            home = __import__(str(node.module), fromlist=["*"])
            for alias in node.names:
                assert getattr(tc_adapters_lens, alias.name) is getattr(home, alias.name)
    with pytest.raises(AttributeError, match="no attribute 'load_pairs'"):
        tc_adapters_lens.load_pairs  # noqa: B018


@pytest.mark.parametrize(
    "module", [PACKAGE, f"{PACKAGE}.errors", f"{PACKAGE}.assets", f"{PACKAGE}.toy", f"{PACKAGE}.cli.main"]
)
def test_importing_brings_in_nothing_heavy(module):
    heavy = {"torch", "wandb", "datasets", "circuit_tracer", "transformers", "transformer_lens", "sae_lens"}
    program = f"import sys, {module}; print(*sorted({heavy!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert not done.stdout.split()


def test_wandb_is_imported_in_one_place():
    known = set(modules())
    importers = {
        name
        for name, path in modules().items()
        for _, target in imported(name, path.read_text(encoding="utf-8"), known, path.name == "__init__.py")
        if target.split(".")[0] == "wandb"
    }
    assert len(importers) <= 1, importers


def test_every_third_party_import_is_a_declared_dependency():
    """Extras are imported in `integrations` and `serve` only."""
    declared = {
        re.split(r"[\[<>=~! ;]", line)[0].lower().replace("-", "_"): "extra ==" in line
        for line in importlib.metadata.requires("tc-adapters-lens") or []
    }
    module_of = {"jinja2": "jinja2", "pyyaml": "yaml", "lm_eval": "lm_eval"}
    extras = {module_of.get(name, name) for name, is_extra in declared.items() if is_extra}
    extras.add("sae_dashboard")  # its metadata cannot be met beside the core's, so no extra can name it
    core = {module_of.get(name, name) for name, is_extra in declared.items() if not is_extra}
    known = set(modules())
    undeclared = []
    for name, path in modules().items():
        allowed = {PACKAGE, *sys.stdlib_module_names, *core, *(extras if layer(name) in (APART, "serve") else ())}
        source = path.read_text(encoding="utf-8")
        for line, target in imported(name, source, known, path.name == "__init__.py"):
            if target.split(".")[0] not in allowed:
                undeclared.append(f"{name}:{line} imports {target}")
    assert not undeclared
