"""What a run's directory holds for the page: stores, dashboards and graphs; nothing outside it is ever read."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from tc_adapters_lens.errors import FeatureStoreError, RunError
from tc_adapters_lens.features.store import FeatureStore
from tc_adapters_lens.features.store_files import STORE_FILE
from tc_adapters_lens.models.adapter_fingerprint import stored_fingerprint
from tc_adapters_lens.models.names import ADAPTERS, FEATURE_STORES, SET_FILE

FOLDERS = ("dashboards", "graphs")
KINDS = {
    ".html": "text/html",
    ".js": "text/javascript",
    ".css": "text/css",
    ".json": "application/json",
    ".png": "image/png",
    ".svg": "image/svg+xml",
}


def find_stores(path: str | Path) -> tuple[Path | None, dict[str, Path]]:
    """The run's directory and those of its stores by name; of a store itself, no run and that one.

    Raises:
        RunError: there is no such directory.
    """
    directory = Path(path).expanduser()
    if not directory.is_dir():
        raise RunError(f"RUN must be the directory of a run or of a feature store. Got {path}, which is none.")
    if (directory / STORE_FILE).is_file():
        return None, {directory.resolve().name: directory}
    found = [name for name in FEATURE_STORES.values() if (directory / name / STORE_FILE).is_file()]
    return directory.resolve(), {name: directory / name for name in found}


def make_features(run: str | Path) -> str:
    """The command that makes a run's features."""
    return f"tc-adapters features --run {run}"


def require_own_adapters(run: Path, stores: Iterable[FeatureStore]) -> None:
    """Adapters that were trained again, or replaced, are not those whose features are there.

    Raises:
        AdapterLensError: a store is of other adapters than the run's, or these cannot be read.
    """
    if not (run / ADAPTERS / SET_FILE).is_file():
        return
    fingerprint = stored_fingerprint(run / ADAPTERS)
    for store in stores:
        if store.info.adapters_fingerprint not in (None, fingerprint):
            raise FeatureStoreError(
                f"{store.directory} must be of the adapters in {run / ADAPTERS} ({fingerprint}). Got one of others "
                f"({store.info.adapters_fingerprint}); make it again: {make_features(run)}"
            )


def inside(root: Path, name: str) -> Path | None:
    """The file of that name in or below a directory; None where there is none, or where it leads out.

    Args:
        root: a directory without links in its own path.
        name: relative, with forward slashes, as an address has it once decoded.
    """
    parts = PurePosixPath(name).parts
    if "\0" in name or "\\" in name or ".." in parts or name.startswith("/") or not parts:
        return None
    try:
        found = root.joinpath(*parts).resolve()
        return found if found.is_relative_to(root) and found.is_file() else None
    except OSError:  # a name too long, a loop of links
        return None


def served_file(run: Path | None, name: str) -> Path | None:
    """A file of the run that the page may link to: of a known kind, in one of FOLDERS."""
    folder = PurePosixPath(name).parts[:1]
    if run is None or not folder or folder[0] not in FOLDERS or PurePosixPath(name).suffix not in KINDS:
        return None
    found = inside(run, name)
    return found if found is not None and found.suffix in KINDS else None


def dashboard(run: Path | None, layer: int, feature: int) -> str | None:
    """Where a feature's dashboard is: a file, relative to the run, `#` and the place in it; None if there is none."""
    index = served_file(run, "dashboards/index.json")
    if index is None:
        return None
    try:
        listed: Any = json.loads(index.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # it is being written, or is no index
        return None
    features = listed.get("features") if isinstance(listed, Mapping) else None
    named = features.get(f"{layer}.{feature}") if isinstance(features, Mapping) else None
    if not isinstance(named, str):
        return None
    file, _, fragment = named.partition("#")
    return f"dashboards/{file}#{fragment or feature}" if served_file(run, f"dashboards/{file}") else None
