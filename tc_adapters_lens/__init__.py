"""Transcoder adapters: sparse features that explain what fine-tuning changed in a language model's MLPs.

    from tc_adapters_lens import AdapterSet, load_pair

    model = load_pair(base, target)                  # one hooked model; computes the target
    with model.adapters(AdapterSet.from_pretrained(adapters)):
        logits, cache = model.run_with_cache(tokens)

Names are imported when first used, so that importing the package costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tc_adapters_lens.errors import (
        AdapterLensError,
        AdapterSetError,
        CheckpointError,
        ConfigError,
        DataError,
        FeatureGroupError,
        FeatureStoreError,
        MissingExtraError,
        PairError,
    )
    from tc_adapters_lens.features.store import FeatureStore
    from tc_adapters_lens.models.adapter_set import AdapterSet, AdapterSetInfo
    from tc_adapters_lens.models.checkpoints import Checkpoint
    from tc_adapters_lens.models.diff_transformer import HookedDiffTransformer
    from tc_adapters_lens.models.feature_group import FeatureGroup
    from tc_adapters_lens.models.pair import load_pair
    from tc_adapters_lens.models.pair_info import PairInfo

__version__ = "0.1.0"

__all__ = [
    "AdapterLensError",
    "AdapterSet",
    "AdapterSetError",
    "AdapterSetInfo",
    "Checkpoint",
    "CheckpointError",
    "ConfigError",
    "DataError",
    "FeatureGroup",
    "FeatureGroupError",
    "FeatureStore",
    "FeatureStoreError",
    "HookedDiffTransformer",
    "MissingExtraError",
    "PairError",
    "PairInfo",
    "__version__",
    "load_pair",
]

_HOME = {
    "AdapterSet": "models.adapter_set",
    "AdapterSetInfo": "models.adapter_set",
    "Checkpoint": "models.checkpoints",
    "FeatureGroup": "models.feature_group",
    "FeatureStore": "features.store",
    "HookedDiffTransformer": "models.diff_transformer",
    "PairInfo": "models.pair_info",
    "load_pair": "models.pair",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME.get(name, 'errors')}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
