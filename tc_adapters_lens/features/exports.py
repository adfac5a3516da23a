"""A feature store in other tools' layouts.

    circuit-tracer   OUT/features/CANTOR(layer, feature).json: its page shows them for a graph whose scan is
                     "./data/features", served from OUT
    neuronpedia      OUT/layer_N/batch-M.json, as sae-dashboard's Neuronpedia converter writes
    csv, parquet     OUT: the table, labels joined, promoted tokens as text

Both JSON layouts want histograms of equal bins from zero to the largest activation. The store's bins are finer near
zero; a bin's positions are spread evenly over it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from jaxtyping import Float
from tqdm.auto import tqdm

from tc_adapters_lens.errors import FeatureStoreError
from tc_adapters_lens.features.graph_nodes import cantor
from tc_adapters_lens.features.records import Example, Feature, TokenEffect
from tc_adapters_lens.features.store import FeatureStore
from tc_adapters_lens.models.atomic import atomic_directory, atomic_file, write_json
from tc_adapters_lens.models.vocabulary import Vocabulary

__all__ = ["ExportFormat", "circuit_tracer_feature", "export_features"]

ExportFormat: TypeAlias = Literal["circuit-tracer", "neuronpedia", "csv", "parquet"]

_BINS = 50
_FEATURES_PER_FILE = 128  # as sae-dashboard
_EXPORT_FILE = "export.json"  # tells an export, which may be replaced, from anything else


def export_features(
    store: FeatureStore, out: str | Path, layout: ExportFormat, layers: Sequence[int] | None = None
) -> int:
    """Write features for another tool; an earlier export is replaced.

    Args:
        store: their store.
        out: a directory, for csv and parquet a file.
        layout: whose.
        layers: which; all by default.
    Returns:
        How many features were written; Neuronpedia gets none that was never active.
    Raises:
        FeatureStoreError: no such layer, something else stands at `out`, or it cannot be written to.
    """
    n_layers = store.info.n_layers
    chosen = range(n_layers) if layers is None else sorted(set(layers))
    if unknown := [layer for layer in chosen if not 0 <= layer < n_layers]:
        raise FeatureStoreError(f"Layers must be from 0 to {n_layers - 1}. Got {unknown[0]}.")
    if layout in ("csv", "parquet"):
        return _write_table(store, Path(out), layout, chosen)
    write = _write_circuit_tracer if layout == "circuit-tracer" else _write_neuronpedia
    directory = Path(out) / "features" if layout == "circuit-tracer" else Path(out)
    with atomic_directory(directory, may_replace=_is_export, error=FeatureStoreError) as partial:
        n_written = write(store, partial, chosen)
        info = store.info
        what = {"model": info.model, "pair": info.pair, "adapters_fingerprint": info.adapters_fingerprint}
        write_json(partial / _EXPORT_FILE, {"format": layout, **what, "layers": list(chosen)})
    return n_written


def circuit_tracer_feature(store: FeatureStore, layer: int, feature: int) -> dict[str, Any]:
    """One feature as its file in the circuit-tracer layout has it.

    Raises:
        KeyError: the store has no such feature.
    """
    return _circuit_tracer(store, store[layer, feature], _Texts(store, _escaped))


def _is_export(directory: Path) -> bool:
    return (directory / _EXPORT_FILE).is_file()


def _write_circuit_tracer(store: FeatureStore, directory: Path, layers: Iterable[int]) -> int:
    texts = _Texts(store, _escaped)
    n_written = 0
    for feature in _features(store, layers):
        path = directory / f"{cantor(feature.layer, feature.feature)}.json"
        path.write_text(json.dumps(_circuit_tracer(store, feature, texts)), encoding="utf-8")
        n_written += 1
    return n_written


def _write_neuronpedia(store: FeatureStore, directory: Path, layers: Iterable[int]) -> int:
    texts = _Texts(store, Vocabulary.text)
    info, n_written = store.info, 0
    for layer in layers:
        folder = directory / f"layer_{layer}"
        folder.mkdir()
        active = (feature for feature in _features(store, [layer]) if feature.n_active)
        batches = iter(lambda features=active: list(islice(features, _FEATURES_PER_FILE)), [])
        for number, batch in enumerate(batches):
            values = {
                "model_id": str(info.pair["target_name"]),
                "layer": layer,
                "sae_set": info.model if info.adapters is None else Path(info.adapters).name,
                "sae_id_suffix": None,
                "features": [_neuronpedia(store, feature, texts) for feature in batch],
            }
            (folder / f"batch-{number}.json").write_text(json.dumps(values), encoding="utf-8")
            n_written += len(batch)
    return n_written


def _write_table(store: FeatureStore, path: Path, layout: str, layers: Iterable[int]) -> int:
    frame = store.frame()
    frame = frame[frame["layer"].isin(list(layers))]
    texts = _Texts(store, Vocabulary.text)
    for column in ("promoted", "inhibited"):
        words = [[texts[token] for token in tokens] for tokens in frame[column]]
        # a cell that begins with a bracket is no formula to any spreadsheet
        frame = frame.assign(**{column: [json.dumps(row) for row in words] if layout == "csv" else words})
    with atomic_file(path, error=FeatureStoreError) as partial:
        if layout == "csv":
            frame.to_csv(partial, index=False, lineterminator="\n")
        else:
            frame.to_parquet(partial, index=False)
    return len(frame)


def _features(store: FeatureStore, layers: Iterable[int]) -> Iterator[Feature]:
    keys = [(layer, feature) for layer in layers for feature in range(store.info.n_features)]
    for key in tqdm(keys, desc="exporting", unit=" features", disable=None, delay=2):
        yield store[key]


class _Texts(dict[int, str]):
    """Tokens' texts, each spelled when it is first asked for."""

    def __init__(self, store: FeatureStore, spell: Callable[[Vocabulary, int], str]):
        super().__init__()
        self._vocabulary, self._spell = store.vocabulary, spell

    def __missing__(self, token: int) -> str:
        self[token] = text = self._spell(self._vocabulary, token)
        return text


_LINE_BREAKS = str.maketrans({"\n": "⏎", "\t": "→", "\r": "↵"})


def _escaped(vocabulary: Vocabulary, token: int) -> str:
    r"""As circuit-tracer's page wants them: halves of characters, which it joins, as \xe2\x80; what would break an
    example's line as circuit_tracer.frontend.utils.process_token writes it."""
    text = vocabulary.bytes(token).decode("utf-8", errors="backslashreplace") or vocabulary.text(token)
    return text.translate(_LINE_BREAKS)


def _circuit_tracer(store: FeatureStore, feature: Feature, texts: Mapping[int, str]) -> dict[str, Any]:
    """As circuit_tracer.frontend.feature_models.Model."""
    return {
        "transcoder_id": f"layer_{feature.layer}",
        "index": feature.feature,
        "examples_quantiles": [
            {"quantile_name": name, "examples": [_circuit_tracer_example(example, texts) for example in examples]}
            for name, examples in (("Highest activations", feature.top), ("Sampled uniformly", feature.sampled))
        ],
        "top_logits": _named(feature.promoted, texts),
        "bottom_logits": _named(feature.inhibited, texts),
        "act_min": 0.0,
        "act_max": _short(feature.max),
        "quantile_values": _percentiles(store, feature),
        "histogram": _even_bins(store, feature),
        "activation_frequency": feature.frequency,
    }


def _circuit_tracer_example(example: Example, texts: Mapping[int, str]) -> dict[str, Any]:
    return {
        "tokens_acts_list": [_short(value) for value in example.activations.tolist()],
        "train_token_ind": example.position - example.start,
        "is_repeated_datapoint": False,
        "tokens": [texts[token] for token in example.tokens.tolist()],
    }


def _neuronpedia(store: FeatureStore, feature: Feature, texts: Mapping[int, str]) -> dict[str, Any]:
    """As sae_dashboard.neuronpedia.neuronpedia_dashboard.NeuronpediaDashboardFeature. What it has of correlations with
    neurons and of all logits is not in a store, so these lists are empty."""
    info, largest = store.info, _short(feature.max)
    width = feature.max / _BINS
    groups = (((-1.0, largest, -1.0), feature.top), ((0.0, largest, feature.frequency), feature.sampled))
    return {
        "feature_index": feature.feature,
        "neuron_alignment_indices": [],
        "neuron_alignment_values": [],
        "neuron_alignment_l1": [],
        "correlated_neurons_indices": [],
        "correlated_neurons_l1": [],
        "correlated_neurons_pearson": [],
        "correlated_features_indices": [],
        "correlated_features_l1": [],
        "correlated_features_pearson": [],
        "neg_str": _named(feature.inhibited, texts),
        "neg_values": [_short(token.effect) for token in feature.inhibited],
        "pos_str": _named(feature.promoted, texts),
        "pos_values": [_short(token.effect) for token in feature.promoted],
        "frac_nonzero": feature.frequency,
        "freq_hist_data_bar_values": [_short((bin + 0.5) * width) for bin in range(_BINS)],
        "freq_hist_data_bar_heights": _even_bins(store, feature),
        "logits_hist_data_bar_heights": [],
        "logits_hist_data_bar_values": [],
        "n_prompts_total": info.n_sequences,
        "n_tokens_in_prompt": round(info.n_tokens / info.n_sequences),
        "dataset": str(info.provenance.get("source", "")),
        "decoder_weights_dist": [],
        "activations": [_activation(example, bounds, texts) for bounds, examples in groups for example in examples],
        "vector": [],
    }


def _activation(example: Example, bounds: tuple[float, float, float], texts: Mapping[int, str]) -> dict[str, Any]:
    return {
        "bin_min": bounds[0],
        "bin_max": bounds[1],
        "bin_contains": bounds[2],
        "tokens": [texts[token] for token in example.tokens.tolist()],
        "values": [_short(value) for value in example.activations.tolist()],
        "qualifying_token_index": example.position - example.start,
    }


def _named(effects: list[TokenEffect], texts: Mapping[int, str]) -> list[str]:
    return [texts[effect.token] for effect in effects]


def _short(value: float) -> float:
    """Five digits: a file per feature is mostly numbers."""
    return float(f"{value:.5g}") if value else 0.0


def _cumulative(
    store: FeatureStore, feature: Feature
) -> tuple[Float[np.ndarray, " n_edges"], Float[np.ndarray, " n_edges"]]:
    """Activations, and at how many positions the feature is active below each."""
    edges = np.array(store.info.histogram_edges)
    edges[0], edges[-1] = 0.0, max(edges[-1], feature.max)
    return np.minimum(edges, feature.max), np.concatenate([[0.0], feature.histogram.cumsum()])


def _even_bins(store: FeatureStore, feature: Feature) -> list[float]:
    """Positions in each of equal bins from zero to the largest activation."""
    edges, below = _cumulative(store, feature)
    counts = np.diff(np.interp(np.linspace(0.0, feature.max, _BINS + 1), edges, below)) if feature.n_active else ()
    return [_short(count) for count in counts]


def _percentiles(store: FeatureStore, feature: Feature) -> list[float]:
    """The 1st to 100th percentile of the activations."""
    edges, below = _cumulative(store, feature)
    wanted = np.linspace(0.0, below[-1], 101)[1:]
    return [_short(value) for value in np.interp(wanted, below, edges)] if feature.n_active else []
