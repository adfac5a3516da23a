"""A causal LM's configuration, tokenizer and tensors, read lazily from files, the hub or a loaded model."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoConfig, AutoTokenizer, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from tc_adapters_lens import toy
from tc_adapters_lens.errors import CheckpointError, did_you_mean
from tc_adapters_lens.models.hub import download_model, is_hub_id
from tc_adapters_lens.models.json_files import first_line, read_json
from tc_adapters_lens.models.tensor_files import TensorFiles

Source = str | Path | PreTrainedModel | tuple[PreTrainedModel, PreTrainedTokenizerBase | None]

IN_MEMORY = "in memory"
_BUILT_IN = {"toy:base": toy.BASE, "toy:target": toy.TARGET}
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "vocab.txt")
_UNEMBEDDINGS = ("lm_head.weight", "embed_out.weight")
_STORED_BUFFERS = (".rotary_emb.inv_freq", ".attention.bias", ".attention.masked_bias")
_FINGERPRINT_ELEMENTS = 4096
_CHUNK_ELEMENTS = 2**24


class Checkpoint:
    """A Hugging Face causal LM, opened but not loaded.

    Attributes:
        name: the id or path as given, or "in memory".
        revision: commit of a hub model, None otherwise.
        config: its Hugging Face configuration.
        directory: its local directory (for `from_pretrained`), None when in memory.
        model: the loaded model, None unless in memory.
    """

    def __init__(
        self,
        name: str,
        config: PretrainedConfig,
        tensors: TensorFiles | _ModelTensors,
        *,
        revision: str | None = None,
        directory: Path | None = None,
        model: PreTrainedModel | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
    ):
        self.name, self.revision, self.config = name, revision, config
        self.directory, self.model = directory, model
        self._tensors = tensors
        self._given_tokenizer = tokenizer

    @classmethod
    def open(
        cls, source: Source, revision: str | None = None, *, only: Callable[[str], bool] | None = None
    ) -> Checkpoint:
        """Opens a model without loading it; code that comes with a model is never run.

        Args:
            source: hub id, local directory, loaded model, (loaded model, tokenizer), or toy:base, toy:target.
            revision: branch, tag or commit of a hub model.
            only: see only tensors whose name passes; other shards are neither downloaded nor needed.
        Raises:
            CheckpointError: not found, not cached while offline, gated, without config.json or safetensors,
                with missing, truncated or corrupt files, or of a kind transformers does not know.
        """
        if isinstance(source, PreTrainedModel):
            source = (source, None)
        if isinstance(source, tuple):
            return cls._from_memory(*source)
        if not isinstance(source, (str, Path)):
            raise CheckpointError(
                "A model must be a hub id, a directory, a loaded model or (model, tokenizer). "
                f"Got {type(source).__name__}."
            )
        directory, commit = locate(source, revision, only)
        return cls(
            str(source),
            _read_config(directory),
            TensorFiles(directory, only),
            revision=commit,
            directory=directory,
        )

    @classmethod
    def _from_memory(cls, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None) -> Checkpoint:
        if not isinstance(model, PreTrainedModel):
            raise CheckpointError(f"A loaded model must be a transformers PreTrainedModel. Got {type(model).__name__}.")
        return cls(IN_MEMORY, model.config, _ModelTensors(model), model=model, tokenizer=tokenizer)

    def __repr__(self) -> str:
        return f"Checkpoint({self.name!r}, revision={self.revision!r})"

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase | None:
        """Its tokenizer, loaded when first asked for; None if it has none.

        Raises:
            CheckpointError: there are tokenizer files, but they cannot be loaded.
        """
        if self.directory is None or not any((self.directory / file).is_file() for file in _TOKENIZER_FILES):
            return self._given_tokenizer
        try:
            return AutoTokenizer.from_pretrained(self.directory, trust_remote_code=False, local_files_only=True)
        except Exception as error:  # the tokenizers library raises bare Exception
            raise CheckpointError(f"{self.name}: its tokenizer cannot be loaded: {first_line(error)}") from error

    def tensor_names(self) -> list[str]:
        """Names of the stored tensors, sorted; a tied unembedding is usually not among them."""
        return self._tensors.names()

    def has(self, name: str) -> bool:
        return name in self._tensors

    def shape(self, name: str) -> tuple[int, ...]:
        return self._tensors.shape(name)

    def tensor(self, name: str) -> Tensor:
        """One tensor as stored, on the CPU. It may share memory with the file or model: do not write to it.

        Raises:
            CheckpointError: there is no such tensor.
        """
        return self._tensors.tensor(name)

    def fingerprint(self, names: Iterable[str] | None = None) -> str:
        """Hash of the weights: the same for one file or shards, float32 or bfloat16 storage of equal values.

            sha256 over (name, shape, at most 4096 evenly spaced elements as bfloat16), names sorted

        Args:
            names: tensors to count; by default all weights but a tied unembedding, a copy of the embedding.
        Returns:
            "sha256:" and 64 hexadecimal digits.
        """
        digest = hashlib.sha256()
        for name in sorted(self._weight_names() if names is None else set(names)):
            elements = self.tensor(name).reshape(-1)
            size = elements.numel()
            n = min(size, _FINGERPRINT_ELEMENTS)
            sample = elements[torch.arange(n) * size // max(n, 1)].to(torch.bfloat16)
            digest.update(f"{name} {list(self.shape(name))}\n".encode())
            digest.update(sample.view(torch.int16).numpy().astype("<i2").tobytes())
        return f"sha256:{digest.hexdigest()}"

    def _weight_names(self) -> Iterator[str]:
        tied = bool(getattr(self.config, "tie_word_embeddings", False))
        for name in self.tensor_names():
            if not (name.endswith(_STORED_BUFFERS) or (tied and name in _UNEMBEDDINGS)):
                yield name

    def check_finite(self, names: Iterable[str]) -> None:
        """Reads the named tensors, a piece at a time.

        Raises:
            CheckpointError: the first tensor that holds NaN or infinite values, and how many.
        """
        for name in names:
            nan = inf = 0
            for piece in self.tensor(name).reshape(-1).split(_CHUNK_ELEMENTS):
                if piece.is_floating_point() and piece.element_size() == 1:  # float8 knows no isfinite
                    piece = piece.float()
                if not torch.isfinite(piece).all():
                    nan += int(piece.isnan().sum())
                    inf += int(piece.isinf().sum())
            if nan or inf:
                raise CheckpointError(
                    f"{self.name}: tensor '{name}' must be finite. Got {nan} NaN and {inf} infinite of "
                    f"{self.tensor(name).numel()} values. Use another checkpoint."
                )


def locate(
    source: str | Path, revision: str | None, only: Callable[[str], bool] | None = None
) -> tuple[Path, str | None]:
    """The directory of a model and, for a hub model (downloaded if need be), its commit.

    Raises:
        CheckpointError: as in `Checkpoint.open`, for what concerns the place.
    """
    directory = _BUILT_IN.get(str(source)) or Path(source).expanduser()
    if directory.exists():
        if not directory.is_dir():
            raise CheckpointError(f"{source} is a file. Name the model's directory: {directory.parent}.")
        if revision is not None:
            raise CheckpointError(f"{source} is a local directory, so revision '{revision}' has no meaning. Drop it.")
        return directory, None
    if isinstance(source, Path) or not is_hub_id(source):
        raise CheckpointError(f"{source} does not exist. Name a local model directory or a hub id (owner/name).")
    directory = download_model(source, revision, only)
    return directory, directory.name


def _read_config(directory: Path) -> PretrainedConfig:
    path = directory / "config.json"
    if not path.is_file():
        found = ", ".join(sorted(entry.name for entry in directory.iterdir())[:4]) or "nothing"
        raise CheckpointError(
            f"{directory} is not a model directory: it has no config.json (it holds {found}). "
            "Name a directory written by model.save_pretrained."
        )
    read_json(path)
    try:
        return AutoConfig.from_pretrained(directory, trust_remote_code=False, local_files_only=True)
    except Exception as error:  # configuration classes raise whatever they like
        raise CheckpointError(f"{path} cannot be used by transformers: {first_line(error)}") from error


class _ModelTensors:
    """A loaded model's tensors, named as `save_pretrained` stores them: a tied unembedding is left out."""

    def __init__(self, model: PreTrainedModel):
        tied = getattr(model.config, "tie_word_embeddings", False) and model.get_output_embeddings() is not None
        hidden = set(_UNEMBEDDINGS) if tied else set()
        self._tensors = {n: t.detach() for n, t in model.state_dict().items() if n not in hidden}
        unloaded = next((name for name, tensor in self._tensors.items() if tensor.is_meta), None)
        if unloaded:
            raise CheckpointError(
                f"The model in memory must hold its weights. Got tensor '{unloaded}' on the meta device. "
                "Load the model without offloading."
            )

    def names(self) -> list[str]:
        return sorted(self._tensors)

    def __contains__(self, name: object) -> bool:
        return name in self._tensors

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._find(name).shape)

    def tensor(self, name: str) -> Tensor:
        return self._find(name).cpu()

    def _find(self, name: str) -> Tensor:
        if name not in self._tensors:
            raise CheckpointError(f"The model in memory has no tensor '{name}'.{did_you_mean(name, self._tensors)}")
        return self._tensors[name]
