"""A pair's adapters: one stock SAELens transcoder per layer, and what is known of them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from sae_lens import Transcoder
from torch import Tensor

from tc_adapters_lens.errors import AdapterSetError
from tc_adapters_lens.models import hub, model_card
from tc_adapters_lens.models.adapter_files import (
    SET_FILE,
    AdapterSetInfo,
    is_adapter_set,
    read_adapters,
    read_description,
    write_adapters,
)
from tc_adapters_lens.models.adapter_fingerprint import fingerprint
from tc_adapters_lens.models.adapters import (
    adapter_shapes,
    check_adapter_config,
    describe,
    make_adapter,
)
from tc_adapters_lens.models.atomic import atomic_directory
from tc_adapters_lens.models.names import PARAMETERS
from tc_adapters_lens.models.pair_info import PairInfo, check_same_pair

__all__ = ["PARAMETERS", "AdapterSet", "AdapterSetInfo", "is_adapter_set"]


class AdapterSet(Mapping[int, Transcoder]):
    """Layer number -> that layer's adapter, for layers 0..n_layers-1, all of one shape and dtype.

    Args:
        adapters: one for each layer, in order.
        info: where they come from; may be replaced later,
            `adapters.info = dataclasses.replace(adapters.info, measured=...)`.
    Raises:
        AdapterSetError: no adapters, or architectures, shapes, dtypes or hooks that do not fit.
    """

    def __init__(self, adapters: Sequence[Transcoder], info: AdapterSetInfo):
        self._adapters = list(adapters)
        self.info = info
        if not self._adapters:
            raise AdapterSetError("An adapter set must have at least one layer. Got none.")
        first = describe(self._adapters[0])
        for layer, adapter in enumerate(self._adapters):
            check_adapter_config(f"Layer {layer}", layer, adapter.cfg.to_dict())
            if describe(adapter) != first:
                raise AdapterSetError(
                    "Adapters must have one shape and dtype. "
                    f"Got {first} in layer 0 and {describe(adapter)} in layer {layer}."
                )

    def __getitem__(self, layer: int) -> Transcoder:
        if not 0 <= layer < self.n_layers:
            raise KeyError(f"There are adapters for layers 0..{self.n_layers - 1}. Got {layer}.")
        return self._adapters[layer]

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.n_layers))

    def __len__(self) -> int:
        return self.n_layers

    def __repr__(self) -> str:
        pair = self.info.pair
        return (
            f"AdapterSet({self.n_layers} layers, {describe(self._adapters[0])}, "
            f"{pair.base_name!r} to {pair.target_name!r})"
        )

    @property
    def n_layers(self) -> int:
        return len(self._adapters)

    @property
    def n_features(self) -> int:
        return self._adapters[0].cfg.d_sae

    @property
    def d_model(self) -> int:
        return self._adapters[0].cfg.d_in

    @property
    def dtype(self) -> torch.dtype:
        return self._adapters[0].W_enc.dtype

    @property
    def device(self) -> torch.device:
        return self._adapters[0].W_enc.device

    def to(self, *, device: str | torch.device | None = None, dtype: torch.dtype | None = None) -> AdapterSet:
        """Moves or casts the adapters in place; returns this set."""
        for adapter in self._adapters:
            adapter.to(device=torch.device(device or self.device), dtype=dtype or adapter.W_enc.dtype)
        return self

    @classmethod
    def fresh(
        cls,
        n_layers: int,
        d_model: int,
        n_features: int,
        info: AdapterSetInfo,
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
    ) -> AdapterSet:
        """Untrained adapters, whose output is zero: the replacement model starts as the hybrid.

        W_enc is uniform in (-1/sqrt(d_model), 1/sqrt(d_model)), all else zero. Its values follow from the
        seed, whatever the device.

        Raises:
            AdapterSetError: a size below 1.
        Source: Hu et al. 2026 (arXiv 2602.20904) and the authors' code.
        """
        sizes = (n_layers, d_model, n_features)
        if min(sizes) < 1:
            raise AdapterSetError(f"n_layers, d_model and n_features must be at least 1. Got {sizes}.")
        generator = torch.Generator().manual_seed(seed)
        bound = 1 / math.sqrt(d_model)
        adapters = []
        for layer in range(n_layers):
            tensors = {name: torch.zeros(shape) for name, shape in adapter_shapes(d_model, n_features).items()}
            tensors["W_enc"].uniform_(-bound, bound, generator=generator)
            tensors = {name: tensor.to(device, dtype) for name, tensor in tensors.items()}
            adapters.append(make_adapter(layer, tensors, info.pair))
        return cls(adapters, info)

    @classmethod
    def from_state(cls, tensors: Mapping[str, Tensor], info: AdapterSetInfo) -> AdapterSet:
        """Adapters that share memory with stacked tensors: changing one changes the other.

        Args:
            tensors: W_enc [n_layers d_model n_features], b_enc [n_layers n_features],
                W_dec [n_layers n_features d_model], b_dec [n_layers d_model].
        Raises:
            AdapterSetError: tensors missing, unknown, or of shapes that do not fit.
        """
        got = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        shape = got.get("W_enc", ())
        wanted = {name: shape[:1] + s for name, s in adapter_shapes(*shape[1:]).items()} if len(shape) == 3 else {}
        if got != wanted:
            raise AdapterSetError(
                "Stacked adapters must be W_enc [n_layers d_model n_features], b_enc [n_layers n_features], "
                f"W_dec [n_layers n_features d_model], b_dec [n_layers d_model]. Got {got}."
            )
        adapters = [
            make_adapter(layer, {name: tensors[name].detach()[layer] for name in PARAMETERS}, info.pair)
            for layer in range(shape[0])
        ]
        return cls(adapters, info)

    def state(self) -> dict[str, Float[Tensor, "n_layers ..."]]:
        """Copies of all parameters, stacked over layers, as `from_state` takes them."""
        return {
            name: torch.stack([adapter.get_parameter(name).detach() for adapter in self._adapters])
            for name in PARAMETERS
        }

    def fingerprint(self) -> str:
        """xxh3 of every parameter's bits, layer after layer: adapters of the same weights have the same."""
        return fingerprint(adapter.get_parameter(name).detach() for adapter in self._adapters for name in PARAMETERS)

    def save(self, directory: str | Path) -> None:
        """Writes the set, whole or not at all. An adapter set that stands there is replaced.

        Raises:
            AdapterSetError: the directory holds something else, the disk is full or not writable, or `info`
                holds what JSON cannot.
        """
        with atomic_directory(directory, may_replace=is_adapter_set, error=AdapterSetError) as partial:
            write_adapters(partial, self._adapters, self.info)

    @classmethod
    def load(
        cls,
        directory: str | Path,
        *,
        device: str | torch.device = "cpu",
        dtype: torch.dtype | None = None,
        pair: PairInfo | None = None,
        allow_other_pair: bool = False,
    ) -> AdapterSet:
        """Reads a set that `save` wrote.

        Args:
            dtype: cast to it; None keeps what is stored.
            pair: the models the adapters are to be used with (`model.pair`); their weights are compared.
            allow_other_pair: accept adapters trained on other weights.
        Raises:
            AdapterSetError: not an adapter set, another version, layers missing, corrupt or not finite, or
                adapters trained on another pair.
        """
        directory = Path(directory).expanduser()
        info, sizes = read_description(directory)
        if pair is not None and not allow_other_pair:
            check_same_pair(f"Adapters in {directory}", info.pair, pair)
        return cls(read_adapters(directory, sizes, device, dtype), info)

    @classmethod
    def from_pretrained(cls, source: str | Path, revision: str | None = None, **options: Any) -> AdapterSet:
        """Loads a local directory or a hub repository.

        Args:
            source: directory or hub id.
            revision: branch, tag or commit of a hub repository.
            options: those of `load`.
        Raises:
            AdapterSetError: as `load`.
            CheckpointError: the hub repository is unknown, gated, or not cached while offline.
        """
        if isinstance(source, Path) or Path(source).expanduser().exists() or not hub.is_hub_id(source):
            if revision is not None:
                raise AdapterSetError(f"Only a hub repository has revisions. Got '{revision}' for {source}. Drop it.")
            return cls.load(source, **options)
        return cls.load(hub.download(source, revision, [SET_FILE, "layer_*/*"]), **options)

    def push_to_hub(self, repo_id: str, *, private: bool = False, commit_message: str = "Upload adapters") -> str:
        """Uploads the set and a small model card. Log in first: `huggingface-cli login`.

        Returns:
            Address of the commit.
        Raises:
            AdapterSetError: offline, not permitted, or the upload failed.
        """
        return hub.upload(
            repo_id,
            lambda directory: self._write_with_card(directory, repo_id),
            private=private,
            commit_message=commit_message,
        )

    def _write_with_card(self, directory: Path, repo_id: str) -> None:
        write_adapters(directory, self._adapters, self.info)
        card = model_card.render(repo_id, self.info, self.n_layers, self.d_model, self.n_features)
        (directory / "README.md").write_text(card, encoding="utf-8")
