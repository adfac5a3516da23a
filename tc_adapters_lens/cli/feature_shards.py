"""Parts of a feature pass, done by other processes or machines: `OUT.shards/I-of-N.safetensors` until merged."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import NamedTuple

from safetensors.torch import load_file, save_file

from tc_adapters_lens.errors import CheckpointError, ConfigError, FeatureStoreError
from tc_adapters_lens.features.collect import Collector
from tc_adapters_lens.models.atomic import atomic_file
from tc_adapters_lens.models.tensor_files import open_safetensors


class Shard(NamedTuple):
    """One of n parts of a text, whose batches are taken in turns: index of 0..n-1."""

    index: int
    n: int

    def __str__(self) -> str:
        return f"{self.index}-of-{self.n}"

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Raises ConfigError: not I/N with 0 <= I < N."""
        found = re.fullmatch(r"(\d+)/(\d+)", text)
        shard = cls(*map(int, found.groups())) if found else None
        if shard is None or shard.index >= shard.n:
            raise ConfigError(f"--shard must be I/N, I from 0 to N - 1. Got {text!r}.")
        return shard


def _shards(out: Path) -> Path:
    return out.with_name(f"{out.name}.shards")


def save_shard(out: Path, shard: Shard, key: str, collector: Collector) -> None:
    """Keep what a part of the text has given.

    Args:
        out: the store to be.
        key: says of what it is; only parts of the same key are merged.
    """
    tensors = {name: tensor.contiguous() for name, tensor in collector.state().items()}
    with atomic_file(_shards(out) / f"{shard}.safetensors", error=FeatureStoreError) as partial:
        save_file(tensors, partial, {"key": key})


def load_shard(out: Path, shard: Shard, key: str, collector: Collector) -> None:
    """Fill a collector with what was kept.

    Raises:
        FeatureStoreError: the part is not there, truncated, or of other models, text or options.
    """
    path = _shards(out) / f"{shard}.safetensors"
    if not path.is_file():
        there = sorted(file.name for file in _shards(out).glob("*.safetensors"))
        raise FeatureStoreError(
            f"All {shard.n} shards must be there to be merged. Got {', '.join(there) or 'none'} in {_shards(out)}; "
            f"run --shard {shard.index}/{shard.n}."
        )
    try:
        about = open_safetensors(path).metadata() or {}
    except CheckpointError as error:
        raise FeatureStoreError(f"{error} Or run --shard {shard.index}/{shard.n} again.") from error
    if about.get("key") != key:
        raise FeatureStoreError(
            f"A shard must be of the same models, text and options as what is merged. Got another in {path}; run "
            f"--shard {shard.index}/{shard.n} again."
        )
    collector.load_state(load_file(path))


def remove_shards(out: Path) -> None:
    """Shards that are in the store by now."""
    shutil.rmtree(_shards(out), ignore_errors=True)
