"""Features changed while the pair runs: context managers over SAELens' and TransformerLens' own hooks.

    with model.adapters(adapters), scaled(model, group, 0.0):                  # off, everywhere
        model.generate(prompt)
    with model.adapters(adapters), clamped(model, {(2, 548): 3.0}, positions=[17]):
        logits = model(tokens)
    with added(model, negate(adapters, group, 0.5)):                           # on the target itself
        model.generate(prompt)

Positions count from the first token given to the model, BOS and padding included, with a KV cache too.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from sae_lens import Transcoder
from torch import Tensor
from transformer_lens.hook_points import HookPoint

from tc_adapters_lens.errors import AdapterSetError, FeatureGroupError
from tc_adapters_lens.models.adapter_set import AdapterSet
from tc_adapters_lens.models.diff_transformer import HookedDiffTransformer
from tc_adapters_lens.models.feature_group import FeatureGroup
from tc_adapters_lens.models.names import hook_acts, hook_delta, hook_in

__all__ = ["added", "clamped", "scaled"]

Positions = slice | Collection[int] | None
"""Where activations are changed: a slice of positions, a collection of them, or None for all."""


@contextmanager
def scaled(
    model: HookedDiffTransformer,
    group: FeatureGroup,
    factor: float = 0.0,
    *,
    layers: Collection[int] | None = None,
    positions: Positions = None,
) -> Iterator[HookedDiffTransformer]:
    """Inside, activations of a group's features are multiplied by a factor; 0 switches them off.

    Args:
        model: with adapters attached (`model.adapters`, or SAELens' `add_sae`) in every layer that is changed.
        group: which features.
        layers: change these layers' features only; None: all of the group.
        positions: change them there only.
    Raises:
        FeatureGroupError: a layer of the group has no adapter attached, or the adapter no such feature.
    """
    chosen = {layer: features for layer, features in group.by_layer().items() if layers is None or layer in layers}

    def change(features: list[int]) -> Callable[[Tensor], Tensor]:
        return lambda acts: acts.index_copy(-1, (at := _index(features, acts)), acts.index_select(-1, at) * factor)

    with _changing(model, {layer: change(features) for layer, features in chosen.items()}, chosen, positions):
        yield model


@contextmanager
def clamped(
    model: HookedDiffTransformer,
    values: Mapping[tuple[int, int], float],
    *,
    positions: Positions = None,
) -> Iterator[HookedDiffTransformer]:
    """Inside, features have the activation given, whatever the input.

    Args:
        model: as in `scaled`.
        values: (layer, feature) -> activation.
        positions: there only.
    Raises: as `scaled`.
    """
    chosen: dict[int, list[int]] = {}
    for layer, feature in values:
        chosen.setdefault(layer, []).append(feature)

    def change(layer: int) -> Callable[[Tensor], Tensor]:
        own = [values[layer, feature] for feature in chosen[layer]]
        return lambda acts: acts.index_copy(
            -1, _index(chosen[layer], acts), acts.new_tensor(own).expand(*acts.shape[:-1], -1)
        )

    with _changing(model, {layer: change(layer) for layer in chosen}, chosen, positions):
        yield model


@contextmanager
def added(model: HookedDiffTransformer, adapters: AdapterSet) -> Iterator[HookedDiffTransformer]:
    """Inside, what adapters write is added to every MLP's output as the model is: to the target, or in `mode("base")`
    to the hybrid.

    Args:
        model: without adapters attached.
        adapters: what to add, such as `negate(adapters, group)`.
    Raises:
        AdapterSetError: adapters are attached already, or these do not fit the pair.
    """
    model.check_fits(adapters)
    if attached := [layer for layer in range(model.cfg.n_layers) if hook_in(layer) in model.acts_to_saes]:
        raise AdapterSetError(
            f"Adapters are added to a pair that has none attached. Got some attached in layer {attached[0]}; leave "
            "`model.adapters` first."
        )
    inputs: dict[int, Tensor] = {}

    def hooks(layer: int, adapter: Transcoder) -> list[tuple[str, Callable[..., Tensor | None]]]:
        def remember(x: Tensor, hook: HookPoint) -> None:
            inputs[layer] = x

        def add(delta: Tensor, hook: HookPoint) -> Tensor:
            return delta + adapter(inputs.pop(layer).to(adapter.W_enc.dtype)).to(delta.dtype)

        return [(hook_in(layer), remember), (hook_delta(layer), add)]

    every = [pair for layer, adapter in adapters.items() for pair in hooks(layer, adapter)]
    with model.hooks(fwd_hooks=every):  # type: ignore[arg-type]
        yield model


@contextmanager
def _changing(
    model: HookedDiffTransformer,
    changes: Mapping[int, Callable[[Tensor], Tensor]],
    features: Mapping[int, list[int]],
    positions: Positions,
) -> Iterator[None]:
    """Activations of each layer put through its change, where positions say so."""
    for layer, chosen in features.items():
        attached = model.acts_to_saes.get(hook_in(layer))
        if attached is None:
            raise FeatureGroupError(
                f"Features are changed in attached adapters. Got none attached in layer {layer}; go into "
                "`model.adapters(adapters)` first."
            )
        if max(chosen) >= attached.cfg.d_sae:
            raise FeatureGroupError(
                f"Layer {layer} has features 0 to {attached.cfg.d_sae - 1}. Got {max(chosen)}; use a group of these "
                "adapters."
            )

    offsets: dict[int, int] = {}

    def hook_of(layer: int) -> Callable[..., Tensor]:
        def hook(acts: Tensor, hook: HookPoint) -> Tensor:
            changed = changes[layer](acts)
            if positions is None:
                return changed
            here = _selected(positions, offsets[layer], acts.shape[1]).to(acts.device)
            return torch.where(here.unsqueeze(-1), changed, acts)

        return hook

    def remember_offset(layer: int) -> Callable[..., None]:
        def before(block: torch.nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
            cache = kwargs.get("past_kv_cache_entry")
            offsets[layer] = 0 if cache is None else cache.past_keys.shape[1]

        return before

    with ExitStack() as stack:
        for layer in changes if positions is not None else ():
            handle = model.blocks[layer].register_forward_pre_hook(remember_offset(layer), with_kwargs=True)
            stack.callback(handle.remove)
        stack.enter_context(model.hooks(fwd_hooks=[(hook_acts(layer), hook_of(layer)) for layer in changes]))
        yield


def _selected(positions: slice | Collection[int], start: int, n: int) -> Tensor:
    """Of positions start..start+n-1, which are chosen: `[n]`, bool."""
    named = [positions.start, positions.stop] if isinstance(positions, slice) else positions
    if any(position is not None and position < 0 for position in named):
        raise ValueError(f"Positions count from the first token. Got {positions}; the last is not known beforehand.")
    chosen = range(start + n)[positions] if isinstance(positions, slice) else positions
    return torch.tensor([position in chosen for position in range(start, start + n)])


def _index(features: list[int], acts: Tensor) -> Tensor:
    return torch.tensor(features, device=acts.device)
