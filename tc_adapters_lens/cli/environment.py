"""What is installed beside what the package's own metadata asks for, and what this machine computes on."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from tc_adapters_lens import assets

DISTRIBUTION = "tc-adapters-lens"
# Always shown; any other package that the core needs is shown if it is missing or outside its range.
SHOWN = (
    "torch",
    "transformer-lens",
    "sae-lens",
    "transformers",
    "datasets",
    "wandb",
    "circuit-tracer",
    "sae-dashboard",
    "starlette",
    "openai",
    "lm-eval",
)
# sae-dashboard's own metadata cannot be met beside the core's, so no extra can name it.
DASHBOARD = Requirement('sae-dashboard==0.8.0 ; extra == "dashboard"')
NOT_FEATURES = ("dev", "all")
GIB = 2**30


@dataclass(frozen=True)
class Package:
    """One package and what is wanted of it.

    name: as pip knows it.
    version: installed version, None if it is not.
    wanted: the range, "" for any; None if the package's own metadata is not there to tell.
    extra: the extra that brings it, None for the core.
    satisfied: installed and within the range, or no range is known.
    """

    name: str
    version: str | None
    wanted: str | None
    extra: str | None
    satisfied: bool


@dataclass(frozen=True)
class Environment:
    """Everything `tc-adapters doctor` says about the installation.

    packages: core and extras, those of `SHOWN` first.
    install: extra -> the line that installs it, for extras of which something is missing.
    devices: what there is to compute on, one line each.
    missing_scripts: browser scripts that are not fetched; pages link them on a CDN.
    """

    packages: list[Package]
    install: dict[str, str]
    devices: list[str]
    missing_scripts: list[str]

    @property
    def broken(self) -> list[Package]:
        """What the core needs and does not have."""
        return [package for package in self.packages if package.extra is None and not package.satisfied]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def environment() -> Environment:
    """Looks at this Python's installed packages and at the machine."""
    try:
        metadata = importlib.metadata.metadata(DISTRIBUTION)
        requirements = importlib.metadata.requires(DISTRIBUTION)
        python = metadata["Requires-Python"] or ""
    except importlib.metadata.PackageNotFoundError:  # run from a source tree
        requirements, python = None, ""
    packages = compare_packages(requirements, installed_version)
    version = platform.python_version()
    satisfied = SpecifierSet(python).contains(version, prereleases=True)
    return Environment(
        [Package("python", version, _ordered(SpecifierSet(python)) or None, None, satisfied), *packages],
        install_lines(packages),
        devices(),
        [name for name in assets.ASSETS if assets.find(name) is None],
    )


def installed_version(name: str) -> str | None:
    """Version of an installed distribution, None if there is none."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def compare_packages(requirements: Iterable[str] | None, version_of: Callable[[str], str | None]) -> list[Package]:
    """Each requirement beside what is installed.

    Args:
        requirements: as `importlib.metadata.requires` gives them; None: not known, only versions are told.
        version_of: distribution name -> installed version or None.
    Returns:
        Those of `SHOWN`, in that order, then others: core packages that are not satisfied, extras' all.
    """
    if requirements is None:
        return [Package(name, version_of(name), None, None, True) for name in SHOWN]
    packages = []
    for requirement in [*map(Requirement, requirements), DASHBOARD]:
        extra = _extra_of(requirement)
        here = requirement.marker is None or requirement.marker.evaluate({"extra": extra or ""})
        if extra in NOT_FEATURES or not here:
            continue
        version = version_of(requirement.name)
        satisfied = version is not None and requirement.specifier.contains(version, prereleases=True)
        packages.append(Package(requirement.name, version, _ordered(requirement.specifier), extra, satisfied))
    shown = sorted((p for p in packages if p.name in SHOWN), key=lambda p: SHOWN.index(p.name))
    return shown + [p for p in packages if p.name not in SHOWN and (p.extra is not None or not p.satisfied)]


def install_lines(packages: Iterable[Package]) -> dict[str, str]:
    """Extra -> the line that installs what is missing of it, or too old or too new."""
    lines: dict[str, list[str]] = {}
    for package in packages:
        if package.extra is not None and not package.satisfied:
            lines.setdefault(package.extra, []).append(package.name)
    return {
        extra: f'pip install "{DISTRIBUTION}[{extra}]"'
        + (f' && pip install --no-deps "{DASHBOARD.name}{DASHBOARD.specifier}"' if DASHBOARD.name in names else "")
        for extra, names in lines.items()
    }


def devices() -> list[str]:
    """The processor and every accelerator that torch sees, with their memory."""
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = host_memory()
    described = [f"cpu: {cores} cores" + (f", {memory / GIB:.1f} GiB of memory" if memory else "")]
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        described.append(
            f"cuda:{index}: {torch.cuda.get_device_name(index)}, {free / GIB:.1f} of {total / GIB:.1f} GiB free"
        )
    if torch.backends.mps.is_available():
        described.append("mps: shares the memory of the cpu")
    return described


def host_memory() -> int | None:
    """Bytes of main memory, None where the system does not tell."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None


def _ordered(specifiers: SpecifierSet) -> str:
    """The range, its lower end first: ">=3.0,<4"."""
    return ",".join(sorted(map(str, specifiers), reverse=True))


def _extra_of(requirement: Requirement) -> str | None:
    """The extra that a requirement belongs to, None for the core."""
    named = re.search(r"""extra == ["'](.+?)["']""", str(requirement.marker or ""))
    return named[1] if named else None
