"""The models that are held against the target: states of one pair, each a context in which the pair is that model.

base          the model before fine-tuning
reverse       the base with the target's MLPs
hybrid        the target with the base's MLPs
shuffled      the hybrid with every adapter beside another layer's MLP: a floor for what adapters explain
replacement   the hybrid with adapters
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor
from transformer_lens import HookedTransformer

from tc_adapters_lens.evaluation.predictions import Prediction
from tc_adapters_lens.models.adapter_set import PARAMETERS, AdapterSet
from tc_adapters_lens.models.diff_transformer import HookedDiffTransformer
from tc_adapters_lens.models.parts import composed

Variant = Callable[[], AbstractContextManager[object]]
"""Makes a context inside which the pair is another model; on leaving it is what it was."""


def base_variant(model: HookedDiffTransformer, base: HookedTransformer) -> Variant:
    return partial(composed, model, base, ())


def reverse_variant(model: HookedDiffTransformer, base: HookedTransformer) -> Variant:
    return partial(composed, model, base, ("MLP",))


def shuffled_variant(model: HookedDiffTransformer, adapters: AdapterSet, order: list[int]) -> Variant:
    """The layers' adapters, that of layer `order[l]` beside layer l's MLP."""
    state = adapters.state()
    moved = AdapterSet.from_state({name: state[name][order] for name in PARAMETERS}, adapters.info)
    return partial(model.adapters, moved)


def shuffled_order(n_layers: int, seed: int) -> list[int]:
    """A permutation that leaves no layer its own adapter (of one layer: the only one).

    Returns:
        Per layer the layer whose adapter stands there.
    """
    generator = np.random.Generator(np.random.PCG64(seed))
    while True:
        order = generator.permutation(n_layers).tolist()
        if n_layers == 1 or all(layer != other for layer, other in enumerate(order)):
            return order


def predict(name: str, model: HookedDiffTransformer, variant: Variant, tokens: Int[Tensor, "batch pos"]) -> Prediction:
    """What the pair predicts in a variant's state."""
    with torch.no_grad(), variant():
        return Prediction(name, model.last_resid(model.embed_tokens(tokens)), model.unembedding())
