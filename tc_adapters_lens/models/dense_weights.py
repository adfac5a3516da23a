"""Dense weights trained in place of a pair's own: what adapters are compared with.

    mlps     every MLP of the hybrid, which are the base's (the skyline)
    norms    every norm inside the layers of the hybrid, which are the target's (RMSNorm refit)

On disk:

    dense_weights.json      kind, names and shapes, pair, recipe, what was measured
    weights.safetensors     tensors under the names of `HookedDiffTransformer.state_dict()`
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast, get_args

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformer_lens.components import LayerNorm, RMSNorm

from tc_adapters_lens.errors import AdapterSetError, CheckpointError
from tc_adapters_lens.models.adapter_files import AdapterSetInfo, read_information
from tc_adapters_lens.models.atomic import atomic_directory, write_json
from tc_adapters_lens.models.diff_transformer import HookedDiffTransformer
from tc_adapters_lens.models.families import FAMILIES
from tc_adapters_lens.models.json_files import first_line
from tc_adapters_lens.models.pair_info import PairInfo, check_same_pair
from tc_adapters_lens.models.tensor_files import open_safetensors, shapes_in

DESCRIPTION_FILE, WEIGHTS_FILE = "dense_weights.json", "weights.safetensors"
FORMAT = "tc_adapters_lens.dense_weights"
FORMAT_VERSION = 1

Kind = Literal["mlps", "norms"]


@dataclass(frozen=True)
class DenseWeights:
    """Weights for the hybrid of a pair, in place of its own.

    Attributes:
        kind: which of its weights.
        tensors: all of that kind, named and shaped as in the model's state dict: `blocks.0.mlp.base.W_in`
            [d_model d_mlp], `blocks.0.ln1.w` [d_model], ...
        info: where they come from and what they do.
    """

    kind: Kind
    tensors: Mapping[str, Tensor]
    info: AdapterSetInfo

    @property
    def n_layers(self) -> int:
        return len({name.split(".")[1] for name in self.tensors})

    @contextmanager
    def applied(self, model: HookedDiffTransformer) -> Iterator[HookedDiffTransformer]:
        """The hybrid with these weights inside the block, in the model's dtype and on its device; afterwards the
        model's own weights and modes as before.

        Raises:
            AdapterSetError: the model is another pair, or has other weights of this kind.
        """
        check_same_pair("Dense weights", self.info.pair, model.pair, "Use that pair.")
        own = {
            f"blocks.{layer}.{name}": block.get_parameter(name)
            for layer, block in enumerate(model.blocks)
            for name in dense_names(model, self.kind)
        }
        wanted = {name: tuple(param.shape) for name, param in own.items()}
        _check_shapes("Dense weights", _shapes(self.tensors), wanted)
        # empty_like keeps the order in memory, which the model's products are fastest with
        ours = {name: torch.empty_like(own[name].data).copy_(tensor) for name, tensor in self.tensors.items()}
        before = {name: param.data for name, param in own.items()}
        try:
            for name, param in own.items():
                param.data = ours[name]
            with model.mode("base"):
                yield model
        finally:
            for name, param in own.items():
                param.data = before[name]

    def save(self, directory: str | Path) -> None:
        """Writes the weights, whole or not at all, bit for bit. Dense weights that stand there are replaced.

        Raises:
            AdapterSetError: the directory holds something else, the disk is full or not writable, or `info` holds
                what JSON cannot.
        """
        description = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "kind": self.kind,
            "shapes": _shapes(self.tensors),
            "pair": self.info.pair.to_dict(),
            "recipe": self.info.recipe,
            "measured": self.info.measured,
        }
        with atomic_directory(directory, may_replace=is_dense_weights, error=AdapterSetError) as partial:
            tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self.tensors.items()}
            save_file(tensors, partial / WEIGHTS_FILE)
            try:
                write_json(partial / DESCRIPTION_FILE, description)
            except (TypeError, ValueError) as error:
                raise AdapterSetError(
                    f"Dense weights' recipe and measured must be JSON: {first_line(error)}. Nothing was written."
                ) from error

    @classmethod
    def load(
        cls,
        directory: str | Path,
        *,
        device: str | torch.device = "cpu",
        dtype: torch.dtype | None = None,
        pair: PairInfo | None = None,
    ) -> DenseWeights:
        """Reads what `save` wrote.

        Args:
            dtype: cast to it; None keeps what is stored.
            pair: the models the weights are to be used with (`model.pair`); compared by fingerprint.
        Raises:
            AdapterSetError: no dense weights, another version, tensors missing, corrupt or not finite, or weights
                trained on another pair.
        """
        directory = Path(directory).expanduser()
        if not is_dense_weights(directory):
            what = f"it has no {DESCRIPTION_FILE}" if directory.is_dir() else "there is no such directory"
            raise AdapterSetError(f"{directory} holds no dense weights: {what}. Name a directory written by save().")
        path = directory / DESCRIPTION_FILE
        info, description = read_information(path, FORMAT, FORMAT_VERSION)
        kind, shapes = description.get("kind"), description.get("shapes")
        if kind not in get_args(Kind):
            raise AdapterSetError(f"{path}: kind must be one of {', '.join(get_args(Kind))}. Got {kind!r}.")
        if not isinstance(shapes, dict) or not all(isinstance(shape, list) for shape in shapes.values()):
            raise AdapterSetError(f"{path}: shapes must name every tensor's shape. Got {shapes!r}.")
        if pair is not None:
            check_same_pair(f"Dense weights in {directory}", info.pair, pair, "Use that pair.")
        try:
            handle = open_safetensors(directory / WEIGHTS_FILE)
        except CheckpointError as error:
            raise AdapterSetError(str(error)) from error
        wanted = {name: tuple(shape) for name, shape in shapes.items()}
        _check_shapes(str(directory / WEIGHTS_FILE), shapes_in(handle), wanted)
        tensors: dict[str, Tensor] = {}
        for name in wanted:
            stored = handle.get_tensor(name)
            n_bad = stored.numel() - int(torch.isfinite(stored).sum())
            if n_bad:
                raise AdapterSetError(f"{directory}: {name} must be finite. Got {n_bad} NaN or infinite values.")
            tensors[name] = stored.to(device, dtype or stored.dtype)
        return cls(cast(Kind, kind), tensors, info)


def is_dense_weights(directory: Path) -> bool:
    """Whether a directory holds dense weights' description; no more is read."""
    return (directory / DESCRIPTION_FILE).is_file()


def dense_names(model: HookedDiffTransformer, kind: Kind) -> list[str]:
    """Names within a block, the same in every one, of the parameters of a kind.

    mlps: those of the base's MLP that the family has: not the biases that TransformerLens adds as zeros.
    norms: weights, and biases where there are any, of all norms: before attention and MLP, after them (Gemma 2), of
    queries and keys (Qwen 3). The final norm is outside the blocks.
    """
    if kind == "mlps":
        return [f"mlp.base.{param}" for param in FAMILIES[str(model.cfg.original_architecture)].mlp]
    return [
        f"{module_name}.{param_name}"
        for module_name, module in model.blocks[0].named_modules()
        if isinstance(module, (RMSNorm, LayerNorm))
        for param_name, _ in module.named_parameters()
    ]


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def _check_shapes(what: str, got: Mapping[str, tuple[int, ...]], wanted: Mapping[str, tuple[int, ...]]) -> None:
    """Raises AdapterSetError: the first tensor that is missing, unknown or of another shape."""
    for name in sorted({*got, *wanted}):
        if got.get(name) != wanted.get(name):
            rule = f"have {name} {list(wanted[name])}" if name in wanted else f"not have {name}"
            found = f"{list(got[name])}" if name in got else "none"
            raise AdapterSetError(f"{what} must {rule}. Got {found}. Copy the weights again, or train them anew.")
