"""`write_dashboards`: pages of features, an index to read and one for programs; goes on where it was stopped."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from plotly.offline import get_plotlyjs, get_plotlyjs_version

from tc_adapters_lens import assets
from tc_adapters_lens.errors import MissingExtraError, RunError
from tc_adapters_lens.features.promoted import promoted_tokens
from tc_adapters_lens.features.records import EXAMPLE_KINDS
from tc_adapters_lens.features.store import FeatureStore
from tc_adapters_lens.integrations.sae_dashboard.text import HeldOutText
from tc_adapters_lens.models.adapter_set import AdapterSet
from tc_adapters_lens.models.atomic import atomic_file, write_json
from tc_adapters_lens.models.diff_transformer import HookedDiffTransformer

if TYPE_CHECKING:
    from torch import Tensor

    from tc_adapters_lens.integrations.sae_dashboard.page import FeatureFacts, Script
    from tc_adapters_lens.integrations.sae_dashboard.runner import Drawn

__all__ = ["INDEX_FILE", "VERSION", "require_sae_dashboard", "write_dashboards"]

FORMAT, FORMAT_VERSION = "tc_adapters_lens.dashboards", 1
INDEX_FILE, INDEX_PAGE, LIBRARY = "index.json", "index.html", "lib"
VERSION = "0.8.0"
_N_PROMOTED = 8  # that the index names
_OURS = ("sae_dashboard", "eindex", "dataclasses_json", "marshmallow", "typing_inspect")

Batch = tuple[int, tuple[int, ...]]  # a layer and features of it


def require_sae_dashboard() -> None:
    """Raises MissingExtraError: sae-dashboard is not installed, in another version, or without what it needs."""
    try:
        found = importlib.metadata.version("sae-dashboard")
        import sae_dashboard.sae_vis_runner  # noqa: F401
    except importlib.metadata.PackageNotFoundError:
        found = "none"
    except ModuleNotFoundError as missing:
        if (missing.name or "").partition(".")[0] not in _OURS:
            raise
        found = f"it without {missing.name}"
    if found != VERSION:
        raise MissingExtraError(
            f'Dashboards need sae-dashboard {VERSION}. Got {found}. Run pip install "tc-adapters-lens[dashboard]" && '
            f'pip install --no-deps "sae-dashboard=={VERSION}"'
        )


def write_dashboards(
    model: HookedDiffTransformer,
    adapters: AdapterSet,
    features: Iterable[tuple[int, int]],
    text: HeldOutText,
    out: str | Path,
    *,
    store: FeatureStore | None = None,
    per_page: int = 8,
    batch_size: int = 8,
    progress: Callable[[Sequence[Batch]], Iterable[Batch]] = iter,
) -> dict[str, Any]:
    """Draw features' dashboards. A page that is there already is not drawn again.

    Args:
        model: the pair, with nothing attached.
        features: layers and features, each once.
        out: directory, new or one of dashboards of the same adapters.
        store: of these adapters, on this text: a page then takes sequences in which its features peak, and shows their
            frequency in the whole text.
        per_page: features of one page.
        batch_size: sequences in one forward pass.
        progress: wraps the list of pages that are to be drawn.
    Returns:
        What index.json holds.
    Raises:
        MissingExtraError: as `require_sae_dashboard`.
        RunError: `out` holds something else, or another run's dashboards.
        DataError: too little text.
        AdapterSetError: an adapter that does not fit the model, or a feature that writes nothing.
    """
    require_sae_dashboard()
    out = Path(out).expanduser()
    index = _open_index(out, model, adapters)
    scripts = _write_scripts(out)
    shared = [index["provenance"], text.fingerprint, store is not None, [script.src for script in scripts]]
    names = {batch: _page_name(batch, shared) for batch in _batches(features, per_page)}
    missing = [batch for batch, name in names.items() if name not in index["pages"] or not (out / name).is_file()]
    draw = _Drawer(model, adapters, text, store, batch_size, scripts)
    for batch in progress(missing):
        name = names[batch]
        html, described = draw.page(batch)
        with atomic_file(out / name, error=RunError) as file:
            file.write_text(html, encoding="utf-8")
        index["pages"][name] = described
        _write_index(out, index, names.values())
    _write_index(out, index, names.values())
    return index


class _Drawer:
    """Draws pages; holds what they share."""

    def __init__(
        self,
        model: HookedDiffTransformer,
        adapters: AdapterSet,
        text: HeldOutText,
        store: FeatureStore | None,
        batch_size: int,
        scripts: list[Script],
    ) -> None:
        self.model, self.adapters, self.text, self.store = model, adapters, text, store
        self.batch_size, self.scripts = batch_size, scripts
        self._readout: tuple[int, Tensor] | None = None

    def page(self, batch: Batch) -> tuple[str, dict[str, Any]]:
        """One page's HTML, and what the index says of it."""
        from tc_adapters_lens.integrations.sae_dashboard.page import render_page
        from tc_adapters_lens.integrations.sae_dashboard.runner import draw

        layer, features = batch
        rows = self.text.rows(_peaks(self.store, batch))
        W_U = self._readout_of(layer)
        drawn = draw(self.model, self.adapters, layer, features, rows, W_U, batch_size=self.batch_size)
        facts = {feature: self._facts(layer, feature, drawn) for feature in features}
        about = {
            "pair": self.model.pair,
            "n_sequences": len(rows),
            "length": rows.shape[1],
            "from_store": self.store is not None,
        }
        html = render_page(drawn, layer, facts, self.text.vocabulary.text, self.scripts, about)
        described = {
            "text": self.text.name,
            "n_sequences": len(rows),
            "length": rows.shape[1],
            "from_store": self.store is not None,
            "features": {f"{layer}.{feature}": fact.to_dict() for feature, fact in facts.items()},
        }
        return html, described

    def _readout_of(self, layer: int) -> Tensor:
        """Kept from page to page: a layer's own norm after the MLP is the only reason to make it again."""
        from tc_adapters_lens.integrations.sae_dashboard.runner import readout

        own = layer if hasattr(self.model.blocks[layer], "ln2_post") else -1
        if self._readout is None or self._readout[0] != own:
            self._readout = None  # before the next one is made: two would not fit everywhere
            self._readout = own, readout(self.model, layer, self.text.n_known)
        return self._readout[1]

    def _facts(self, layer: int, feature: int, drawn: Drawn) -> FeatureFacts:
        """Over the store's text where there is a store, else over the page's."""
        from tc_adapters_lens.integrations.sae_dashboard.page import FeatureFacts

        direction = self.adapters[layer].W_dec[feature][None]
        effects, _ = promoted_tokens(self.model, layer, direction, _N_PROMOTED, self.text.n_known)
        promoted = tuple(self.text.vocabulary.texts(effects.ids[0].tolist()))
        if self.store is not None:
            of_store = self.store[layer, feature]
            return FeatureFacts(of_store.frequency, of_store.max, promoted)
        stats, at = drawn.data.feature_stats, list(drawn.data.feature_data_dict).index(feature)
        return FeatureFacts(float(stats.frac_nonzero[at]), float(stats.max[at]), promoted)


def _batches(features: Iterable[tuple[int, int]], per_page: int) -> list[Batch]:
    """Features of one layer together, in the order in which a layer's first one comes."""
    found: list[Batch] = []
    ordered = list(dict.fromkeys(features))
    first = {layer: at for at, (layer, _) in reversed(list(enumerate(ordered)))}
    for layer, group in groupby(sorted(ordered, key=lambda key: first[key[0]]), key=lambda key: key[0]):
        of_layer = [feature for _, feature in group]
        found += [(layer, tuple(of_layer[at : at + per_page])) for at in range(0, len(of_layer), per_page)]
    return found


def _peaks(store: FeatureStore | None, batch: Batch) -> np.ndarray | None:
    """Flat positions of the features' examples: everyone's highest one first, then everyone's next."""
    if store is None:
        return None
    layer, features = batch
    return np.concatenate([store.peaks(kind, layer)[list(features)].T.ravel() for kind in EXAMPLE_KINDS])


def _page_name(batch: Batch, shared: list[Any]) -> str:
    """Of everything that the page depends on, so that one of this name need not be made again."""
    key = json.dumps([FORMAT_VERSION, VERSION, batch, *shared], sort_keys=True)
    return f"layer_{batch[0]}-{hashlib.sha256(key.encode()).hexdigest()[:12]}.html"


def _write_scripts(out: Path) -> list[Script]:
    """d3 and plotly beside the pages, once; d3 from the CDN where it is not fetched."""
    from tc_adapters_lens.integrations.sae_dashboard.page import Script

    d3, found = assets.ASSETS["d3"], assets.find("d3")
    plotly = f"{LIBRARY}/plotly-{get_plotlyjs_version()}.js"
    wanted: dict[str, Callable[[], bytes]] = {plotly: lambda: get_plotlyjs().encode()}
    if found is not None:
        wanted[f"{LIBRARY}/{d3.file.name}"] = found.read_bytes
    for name, read in wanted.items():
        if not (out / name).is_file():
            with atomic_file(out / name, error=RunError) as file:
                file.write_bytes(read())
    first = Script(d3.cdn, d3.integrity) if found is None else Script(f"{LIBRARY}/{d3.file.name}")
    return [first, Script(plotly)]


def _open_index(out: Path, model: HookedDiffTransformer, adapters: AdapterSet) -> dict[str, Any]:
    """The index that is there, or a new one, which says from now on whose dashboards these are.

    Raises:
        RunError: something else is there.
    """
    path = out / INDEX_FILE
    provenance = {"pair": model.pair.to_dict(), "adapters_fingerprint": adapters.fingerprint()}
    new = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "features": {},
        "pages": {},
        "provenance": provenance,
    }
    if not path.exists():
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise RunError(f"{out} holds something else. Name a new directory with --out.")
        with atomic_file(path, error=RunError) as file:
            write_json(file, new)
        return new
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
        written = {key: index[key] for key in ("format", "format_version")}
        theirs = index["provenance"]["adapters_fingerprint"]
        if not all(isinstance(index[key], dict) for key in ("features", "pages")):
            raise TypeError
    except (OSError, ValueError, KeyError, TypeError) as broken:
        raise RunError(f"{path} cannot be read. Name a new directory with --out, or remove it.") from broken
    if written != {key: new[key] for key in written}:
        raise RunError(f"{path} is of another version of the package. Name a new directory with --out, or remove it.")
    if theirs != provenance["adapters_fingerprint"]:
        raise RunError(
            f"{out} holds dashboards of other adapters ({theirs}, not {provenance['adapters_fingerprint']}). "
            "Name a new directory with --out, or remove it."
        )
    return index


def _write_index(out: Path, index: dict[str, Any], latest: Iterable[str]) -> None:
    """Both indexes; a feature that is on several pages is looked up on the one drawn last."""
    from tc_adapters_lens.integrations.sae_dashboard.page import render

    index["pages"] = {name: page for name, page in index["pages"].items() if (out / name).is_file()}
    last = {*latest}
    ordered = sorted(index["pages"], key=lambda name: name in last)  # stable
    where = {key: name for name in ordered for key in index["pages"][name]["features"]}
    by_number = sorted(where, key=lambda key: tuple(map(int, key.split("."))))
    index["features"] = {key: where[key] for key in by_number}
    rows = [
        {"key": key, "href": f"{where[key]}#{key.partition('.')[2]}", **index["pages"][where[key]]["features"][key]}
        for key in by_number
    ]
    with atomic_file(out / INDEX_FILE, error=RunError) as file:
        write_json(file, index)
    with atomic_file(out / INDEX_PAGE, error=RunError) as file:
        page = render("index.html", index=index, rows=rows, pages=[index["pages"][name] for name in ordered])
        file.write_text(page, encoding="utf-8")
