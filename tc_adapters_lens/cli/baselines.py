"""What adapters are held against: which baselines there are, and training those that have to be trained.

Trained ones go through the adapters' own trainer, on the run's own recipe, into RUN/baselines/; they resume as any
run does, and are there at once the second time.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tc_adapters_lens.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    from tc_adapters_lens.evaluation.variants import Variant
    from tc_adapters_lens.models.adapter_set import AdapterSet
    from tc_adapters_lens.models.diff_transformer import HookedDiffTransformer
    from tc_adapters_lens.training.config import TrainingConfig

BASELINES = {
    "base": "the model before fine-tuning",
    "reverse": "the base with the target's MLPs",
    "shuffled": "the adapters, each beside another layer's MLP",
    "norm_refit": "the hybrid with its norms trained",
    "skyline": "the hybrid with its MLPs trained densely, the best of several learning rates",
    "no_bridging": "adapters trained without bridging",
}
TRAINED = ("norm_refit", "skyline", "no_bridging")
LR_SHARES = (1 / 100, 1 / 30, 1 / 10)
NORM_REFIT_TOKENS = 1_000_000


def parse_baselines(words: str) -> list[str]:
    """Names separated by commas, `all` or `none`.

    Raises:
        ConfigError: an unknown name.
    """
    if words in ("all", "none"):
        return list(BASELINES) if words == "all" else []
    names = [name.strip().replace("-", "_") for name in words.split(",")]
    for name in names:
        if name not in BASELINES:
            raise ConfigError(
                f"--baselines must be all, none, or some of {', '.join(BASELINES)}. Got '{name}'."
                f"{did_you_mean(name, BASELINES)}"
            )
    return [name for name in BASELINES if name in names]


def parse_lrs(words: str | None) -> list[float] | None:
    """Learning rates separated by commas.

    Raises:
        ConfigError: not numbers above zero.
    """
    if words is None:
        return None
    try:
        lrs = [float(word) for word in words.split(",")]
    except ValueError:
        lrs = []
    if not lrs or min(lrs) <= 0:
        raise ConfigError(f"--skyline-lrs must be numbers above 0, separated by commas. Got '{words}'.")
    return lrs


def recipe_config(recipe: Mapping[str, Any], names: Sequence[str]) -> TrainingConfig:
    """The configuration that adapters were trained with, for training baselines in the same way.

    Raises:
        ConfigError: the adapters do not know it.
    """
    from tc_adapters_lens.training.config import TrainingConfig

    if not isinstance(recipe.get("config"), Mapping):
        raise ConfigError(
            f"--baselines {','.join(names)} are trained as the adapters were, so the adapters must say how. "
            "Got adapters without a recipe; leave these baselines out."
        )
    return TrainingConfig.from_dict(recipe["config"])


def train_norm_refit(config: TrainingConfig, out: Path, model: HookedDiffTransformer) -> Variant:
    """The hybrid with its norms trained on at most a million tokens, as the paper's, at the adapters' learning rate."""
    tokens = min(config.training.training_tokens or NORM_REFIT_TOKENS, NORM_REFIT_TOKENS)
    return _train_dense(_dense(config, "norms", config.training.lr, tokens), out, model)


def train_skylines(
    config: TrainingConfig, out: Path, model: HookedDiffTransformer, lrs: Sequence[float] | None
) -> dict[float, Variant]:
    """The hybrid with its MLPs trained densely, at several learning rates (by default shares of the adapters')."""
    lrs = lrs or [float(f"{config.training.lr * share:.2g}") for share in LR_SHARES]
    tokens = config.training.training_tokens
    return {lr: _train_dense(_dense(config, "mlps", lr, tokens), out / f"lr-{lr:g}", model) for lr in lrs}


def train_no_bridging(config: TrainingConfig, out: Path, model: HookedDiffTransformer) -> AdapterSet:
    """The same adapters without bridging, from their own beginning."""
    from tc_adapters_lens.models.adapter_set import AdapterSet
    from tc_adapters_lens.training.runner import train

    objective = dataclasses.replace(config.objective, bridging_weight=0.0)
    adapters = train(dataclasses.replace(config, objective=objective, warm_start=None), out, model)
    assert isinstance(adapters, AdapterSet)
    return adapters


def _dense(config: TrainingConfig, trained: str, lr: float, training_tokens: int | None) -> TrainingConfig:
    optim = dataclasses.replace(
        config.training,
        lr=lr,
        lr_end=min(config.training.lr_end, lr),
        training_tokens=training_tokens,
        start="random",
        local_share=0.0,
        shard_weights=False,
    )
    return dataclasses.replace(config, trained=trained, training=optim, warm_start=None)


def _train_dense(config: TrainingConfig, out: Path, model: HookedDiffTransformer) -> Variant:
    from tc_adapters_lens.models.dense_weights import DenseWeights
    from tc_adapters_lens.training.runner import train

    weights = train(config, out, model)
    assert isinstance(weights, DenseWeights)
    return partial(weights.applied, model)
