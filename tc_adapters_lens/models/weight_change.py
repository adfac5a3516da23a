"""How far fine-tuning moved each kind of weight in each layer, read tensor by tensor.

    relative change = |W_target - W_base|_F / |W_base|_F        over all tensors of a kind in a layer, biases too

Adapters explain what changed in the MLPs; this says how much of the whole change that is.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch

from tc_adapters_lens.models.checkpoints import Checkpoint

MLP, OTHER = "MLP", "other"
# The first pattern found in a HF tensor name gives its kind. All families of `models.families` are covered.
_KINDS = (
    ("norms", re.compile(r"norm")),
    ("attention", re.compile(r"\.(self_attn|attention)\.")),
    (MLP, re.compile(r"\.mlp\.")),
    ("embedding", re.compile(r"(^|\.)(embed_tokens|embed_in)\.")),
    ("unembedding", re.compile(r"(^|\.)(lm_head|embed_out)\.")),
)
KINDS = ("embedding", "attention", "norms", MLP, "unembedding", OTHER)
_LAYER = re.compile(r"\.layers\.(\d+)\.")
_BUFFER = re.compile(r"\.rotary_emb\.inv_freq$|\.attention\.(masked_)?bias$")
_EMBEDDINGS = ("model.embed_tokens.weight", "gpt_neox.embed_in.weight")
_UNEMBEDDINGS = ("lm_head.weight", "embed_out.weight")
_CHUNK_ELEMENTS = 2**24


@dataclass(frozen=True)
class WeightChange:
    """Squared norms of the change and of the base's weights.

    Attributes:
        squares: (kind, layer) -> (|W_target - W_base|^2, |W_base|^2); layer None is outside the layers.
        other: names of tensors of no known kind; they are counted as "other".
        not_compared: names of tensors that only one model has, or has in another shape.
    """

    squares: dict[tuple[str, int | None], tuple[float, float]]
    other: tuple[str, ...]
    not_compared: tuple[str, ...]

    def relative(self, kind: str | None = None, *layers: int | None) -> float | None:
        """Relative change of one kind (None: of all) in the given layers (none given: everywhere).

        Returns:
            Dimensionless; None where there are no such weights, the base's are all zero, or any is not finite.
        """
        found = [
            both
            for (its_kind, layer), both in self.squares.items()
            if kind in (None, its_kind) and (not layers or layer in layers)
        ]
        change, size = (sum(values) for values in zip(*found, strict=True)) if found else (0.0, 0.0)
        return math.sqrt(change / size) if size > 0 and math.isfinite(change / size) else None

    @property
    def mlp_share(self) -> float | None:
        """Part of the squared change that the MLPs hold, 0..1; None if nothing changed or not all is finite."""
        whole = sum(change for change, _ in self.squares.values())
        in_mlps = sum(change for (kind, _), (change, _) in self.squares.items() if kind == MLP)
        return in_mlps / whole if whole > 0 and math.isfinite(whole) else None

    @property
    def kinds(self) -> list[str]:
        """The kinds there are, in the order of `KINDS`."""
        present = {kind for kind, _ in self.squares}
        return [kind for kind in KINDS if kind in present]

    @property
    def layers(self) -> list[int | None]:
        """The layers there are, in order; None, if there, comes last."""
        present = {layer for _, layer in self.squares}
        return sorted(present, key=lambda layer: math.inf if layer is None else layer)

    def to_dict(self) -> dict[str, Any]:
        """Relative changes as plain values: per kind, per layer and kind, in total."""
        return {
            "total": self.relative(),
            "mlp_share_of_squared_change": self.mlp_share,
            "per_kind": {kind: self.relative(kind) for kind in self.kinds},
            "per_layer": [
                {
                    "layer": layer,
                    "total": self.relative(None, layer),
                    **{kind: self.relative(kind, layer) for kind in self.kinds},
                }
                for layer in self.layers
            ],
            "other_tensors": list(self.other),
            "not_compared": list(self.not_compared),
        }


def kind_of(name: str) -> str:
    """Which of `KINDS` a HF tensor name belongs to."""
    return next((kind for kind, pattern in _KINDS if pattern.search(name)), OTHER)


def weight_change(
    base: Checkpoint, target: Checkpoint, watch: Callable[[Iterable[str]], Iterable[str]] | None = None
) -> WeightChange:
    """Compares two checkpoints in float32, holding one tensor of each at a time.

    A tied unembedding is compared only if the other model has one of its own; it is then the embedding.

    Args:
        watch: passes tensor names through while they are read: a progress bar.
    """
    squares: dict[tuple[str, int | None], tuple[float, float]] = defaultdict(lambda: (0.0, 0.0))
    other, not_compared = [], []
    names = sorted({*base.tensor_names(), *target.tensor_names()})
    names = [name for name in names if not _BUFFER.search(name) and not _tied_in_both(name, base, target)]
    for name in names if watch is None else watch(names):
        places = [_place(name, checkpoint) for checkpoint in (base, target)]
        if places[0] is None or places[1] is None or base.shape(places[0]) != target.shape(places[1]):
            not_compared.append(name)
            continue
        before, after = base.tensor(places[0]).reshape(-1), target.tensor(places[1]).reshape(-1)
        change = size = 0.0
        for old, new in zip(before.split(_CHUNK_ELEMENTS), after.split(_CHUNK_ELEMENTS), strict=True):
            change += (new.float() - old.float()).square_().sum(dtype=torch.float64).item()
            size += old.float().square().sum(dtype=torch.float64).item()
        kind, layer = kind_of(name), _LAYER.search(name)
        key = (kind, int(layer[1]) if layer else None)
        squares[key] = (squares[key][0] + change, squares[key][1] + size)
        if kind == OTHER:
            other.append(name)
    return WeightChange(dict(squares), tuple(other), tuple(not_compared))


def _place(name: str, checkpoint: Checkpoint) -> str | None:
    """The tensor that plays this name's part in a checkpoint: its own, or the embedding for a tied unembedding."""
    if name in _UNEMBEDDINGS and checkpoint.config.tie_word_embeddings:
        return next((embedding for embedding in _EMBEDDINGS if checkpoint.has(embedding)), None)
    return name if checkpoint.has(name) else None


def _tied_in_both(name: str, base: Checkpoint, target: Checkpoint) -> bool:
    return name in _UNEMBEDDINGS and base.config.tie_word_embeddings and target.config.tie_word_embeddings
