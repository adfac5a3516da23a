"""The package's exceptions: everything a user can cause and mend, each message one line.

AdapterLensError
  ConfigError        configuration keys, types, ranges (command line exit code 2)
  CheckpointError    a model's files are missing, truncated, NaN, unsupported, or not cached while offline
  PairError          base and target do not match
  DataError          dataset missing, empty or unusable; token ids out of range; sequence too short
  AdapterSetError    adapters missing tensors, of another pair, or corrupt
  FeatureStoreError  a feature store is incomplete, corrupt, or of other adapters
  FeatureGroupError  a feature group is empty, unreadable, or of other adapters
  GraphError         an attribution graph cannot be made, is too large, or its files are not one
  JudgeError         a judge cannot be asked, refuses, or its budget is spent; its results or prompts cannot be used
  RunError           a run's directory or its evaluation cannot be used
  AssetError         a browser script cannot be fetched
  MissingExtraError  an optional package is missing; the message has the pip line
  StopTraining       training was asked to stop, and can go on (command line exit code 130)
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = [
    "AdapterLensError",
    "AdapterSetError",
    "AssetError",
    "CheckpointError",
    "ConfigError",
    "DataError",
    "FeatureGroupError",
    "FeatureStoreError",
    "GraphError",
    "JudgeError",
    "MissingExtraError",
    "PairError",
    "RunError",
    "StopTraining",
    "did_you_mean",
]


class AdapterLensError(Exception):
    """Base of every error this package raises on purpose."""


class ConfigError(AdapterLensError, ValueError):
    """A configuration key, type or range is wrong."""


class CheckpointError(AdapterLensError, ValueError):
    """A model's directory, configuration or tensors cannot be used."""


class PairError(AdapterLensError, ValueError):
    """Base and target do not match."""


class DataError(AdapterLensError, ValueError):
    """A dataset or token sequence cannot be used."""


class AdapterSetError(AdapterLensError, ValueError):
    """An adapter set is incomplete, corrupt, or belongs to another pair."""


class FeatureStoreError(AdapterLensError, ValueError):
    """A feature store is incomplete, corrupt, or of other adapters."""


class FeatureGroupError(AdapterLensError, ValueError):
    """A feature group is empty, unreadable, or of other adapters."""


class GraphError(AdapterLensError, ValueError):
    """An attribution graph cannot be made, is too large, or its files are not one."""


class JudgeError(AdapterLensError, ValueError):
    """A judge cannot be asked, refuses, or its budget is spent; or its results or prompts cannot be used."""


class RunError(AdapterLensError, ValueError):
    """A run's directory or its evaluation cannot be used."""


class AssetError(AdapterLensError):
    """A browser script cannot be fetched."""


class MissingExtraError(AdapterLensError, ImportError):
    """An optional package is missing."""


class StopTraining(AdapterLensError):
    """Raised between two steps after a request to stop; everything is consistent and may be saved."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Returns " Did you mean 'x'?" for the nearest known word, or "" if none is near."""
    near = difflib.get_close_matches(word, list(known), n=1)
    return f" Did you mean '{near[0]}'?" if near else ""
