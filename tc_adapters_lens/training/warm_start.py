"""Starting weights from adapters trained before: a whole set, or single layers from SAELens' own runner."""

from __future__ import annotations

from pathlib import Path

import torch
from sae_lens import SAE, Transcoder

from tc_adapters_lens.errors import AdapterSetError
from tc_adapters_lens.models.adapter_set import PARAMETERS, AdapterSet, is_adapter_set
from tc_adapters_lens.models.json_files import first_line


def load_warm_start(directory: str | Path, fresh: AdapterSet) -> AdapterSet:
    """The fresh adapters with those of a directory in their place.

    Args:
        directory: an adapter set, or `layer_N` folders as SAELens saves transcoders; layers that are absent
            stay fresh.
        fresh: the adapters to start from otherwise; gives shape and pair.
    Raises:
        AdapterSetError: no adapters there, or of another shape or pair.
    """
    directory = Path(directory).expanduser()
    if is_adapter_set(directory):
        layers = dict(AdapterSet.load(directory, pair=fresh.info.pair))
    else:
        layers = {layer: _read_layer(directory / f"layer_{layer}") for layer in fresh if _is_there(directory, layer)}
    if not layers:
        raise AdapterSetError(
            f"warm_start must be an adapter set or hold layer_N folders. Got {directory}, which holds neither."
        )
    state = fresh.state()
    for layer, adapter in layers.items():
        for name in PARAMETERS:
            ours, theirs = state[name], getattr(adapter, name).detach()
            if layer >= fresh.n_layers or ours[layer].shape != theirs.shape:
                raise AdapterSetError(
                    f"warm_start must have {fresh.n_layers} layers of {fresh.n_features} features, width "
                    f"{fresh.d_model}. Got {name} {list(theirs.shape)} in layer {layer} of {directory}."
                )
            ours[layer] = theirs.to(torch.float32)
    return AdapterSet.from_state(state, fresh.info)


def _is_there(directory: Path, layer: int) -> bool:
    return (directory / f"layer_{layer}").is_dir()


def _read_layer(folder: Path) -> Transcoder:
    try:
        adapter = SAE.load_from_disk(folder)
    except Exception as error:  # SAELens raises whatever its parts raise
        raise AdapterSetError(f"{folder} cannot be read as a SAELens transcoder: {first_line(error)}") from error
    if type(adapter) is not Transcoder:
        raise AdapterSetError(f"{folder} must hold a transcoder. Got {adapter.cfg.architecture()}.")
    return adapter
