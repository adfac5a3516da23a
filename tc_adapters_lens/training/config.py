"""The configuration of a training run: what configs/*.yaml hold, and what the command line overrides."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import yaml

from tc_adapters_lens.errors import ConfigError, did_you_mean
from tc_adapters_lens.training.schema import Section, build, key_names, nest, parse_yaml

__all__ = [
    "AdapterConfig",
    "DataConfig",
    "LoggerConfig",
    "ObjectiveConfig",
    "OptimConfig",
    "TrainingConfig",
    "load_config",
    "read_chat_template",
]


@dataclass(frozen=True)
class AdapterConfig(Section):
    """The adapters, one per layer.

    Args:
        n_features: features of each adapter.
    """

    section: ClassVar[str] = "adapters"

    n_features: int = 8192

    def check(self) -> None:
        self.require_at_least(1, "n_features")


@dataclass(frozen=True)
class ObjectiveConfig(Section):
    """Weights of the loss terms.

    In YAML and on the command line, `preset: paper` (every weight 1) or `preset: authors` (the authors' own
    config) gives the weights that are not written out.

    Args:
        l1_coefficient: weight of the decoder-norm-weighted L1; higher is sparser.
        kl_weight: weight of KL(target || replacement model).
        nmse_weight: weight of the residual streams' normalised squared error.
        bridging_weight: weight of EACH of the two bridging KLs.
        l1_warm_up_steps: steps over which the L1 weight rises from 0 to `l1_coefficient`.
        nmse_counts_embedding: divide the NMSE by n_layers + 1, as the authors' code does, not by n_layers.
    """

    section: ClassVar[str] = "objective"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "paper": {
            "kl_weight": 1.0,
            "nmse_weight": 1.0,
            "bridging_weight": 1.0,
            "nmse_counts_embedding": False,
        },
        "authors": {
            "kl_weight": 1.0,
            "nmse_weight": 1.0,
            "bridging_weight": 2.0,
            "nmse_counts_embedding": True,
        },
    }

    l1_coefficient: float = 1e-3
    kl_weight: float = 1.0
    nmse_weight: float = 1.0
    bridging_weight: float = 1.0
    l1_warm_up_steps: int = 0
    nmse_counts_embedding: bool = False

    @classmethod
    def paper(cls, l1_coefficient: float) -> ObjectiveConfig:
        """The paper's objective: output KL, NMSE and both halves of bridging weigh 1."""
        return cls(l1_coefficient=l1_coefficient, **cls.presets["paper"])

    @classmethod
    def authors(cls, l1_coefficient: float) -> ObjectiveConfig:
        """The authors' published config: each half of bridging weighs 2, NMSE counts the embedding."""
        return cls(l1_coefficient=l1_coefficient, **cls.presets["authors"])

    def check(self) -> None:
        self.require_at_least(0, "l1_coefficient", "kl_weight", "nmse_weight", "bridging_weight", "l1_warm_up_steps")
        if self.kl_weight == self.nmse_weight == self.bridging_weight == 0:
            raise ConfigError(
                "objective.kl_weight, nmse_weight or bridging_weight must be above 0. Got 0 for all three."
            )


@dataclass(frozen=True)
class DataConfig(Section):
    """Where the training sequences come from and how they are cut.

    Args:
        path: hub id, local file or directory (jsonl, parquet, `save_to_disk`), or "toy" for the shipped ones.
        name: the hub dataset's configuration.
        split: which split.
        revision: the hub dataset's revision.
        format: what a row holds; auto takes token ids, then chat, then text, by the columns there are.
        text_column: column of plain text.
        chat_column: column of messages; null: `messages` (role, content) or `conversations` (from, value).
        tokens_column: column of token ids.
        chat_template: Jinja text, or a file (looked for beside the config file too); null: the tokenizer's.
        loss_on: all: every token counts; response: only what the assistant wrote.
        context_size: most tokens in a sequence; by default what the model can take.
        packing: join documents into sequences of exactly `context_size`, which attend across documents.
        too_long: cut documents longer than `context_size`, or drop them. A packed document is never cut.
        max_sequences: use this many sequences, of rows drawn at random.
        subset_seed: seed of that draw.
    """

    section: ClassVar[str] = "data"

    path: str
    name: str | None = None
    split: str = "train"
    revision: str | None = None
    format: Literal["auto", "text", "chat", "tokens"] = "auto"
    text_column: str = "text"
    chat_column: str | None = None
    tokens_column: str = "input_ids"
    chat_template: str | None = None
    loss_on: Literal["all", "response"] = "all"
    context_size: int | None = None
    packing: bool = False
    too_long: Literal["truncate", "drop"] = "truncate"
    max_sequences: int | None = None
    subset_seed: int = 42

    def check(self) -> None:
        self.require_text("path", "split", "text_column", "chat_column", "tokens_column", "chat_template")
        self.require_at_least(2, "context_size")
        self.require_at_least(1, "max_sequences")
        self.require_at_least(0, "subset_seed")


@dataclass(frozen=True)
class OptimConfig(Section):
    """Optimisation, with SAELens' names. Adam (eps 1e-8, no weight decay), gradient norm clipped at 1.

    In YAML and on the command line, `preset: paper` or `preset: fast` gives the values that are not written out.
    `fast` (start: data, local_share: 0.5, a learning rate that falls linearly) reaches the same faithfulness in far
    less time; it was measured on the built-in pair only (README). `training_tokens`, `lr` and `batch_size_prompts` are
    no part of a preset, because they belong to the pair.

    Args:
        training_tokens: stop after the step that reaches this many unmasked tokens; null: one epoch.
        batch_size_prompts: sequences per step, over all processes of the run.
        lr: peak learning rate.
        lr_scheduler_name: after the warm-up.
        lr_warm_up_steps: steps of linear warm-up; null: 5% of all steps.
        lr_end: learning rate at the end of the cosine.
        lr_decay_steps: steps of linear decay to 0 at the end; null: all steps after the warm-up.
        start: random: the paper's, encoders uniform, the rest zero, so that training begins at the hybrid; data: every
            feature begins as one token's part in delta (training/data_start.py).
        local_share: share of the steps, at the beginning, in which every layer's adapter is trained by itself to
            predict delta from the target's own activations (training/local_step.py). Adam's moments start anew
            after it.
        adam_beta1: decay of Adam's first moment.
        adam_beta2: decay of Adam's second moment.
        dead_feature_window: a feature is dead when silent for this many unmasked tokens.
        feature_sampling_window: steps over which feature frequencies are counted.
        n_checkpoints: checkpoints along the way; with 0 one is written only when the run is stopped.
        activation_checkpointing: compute each layer again in its backward pass rather than keep its activations: the
            same bits, in less memory and more time.
        shard_weights: spread the pair's layers over the processes of the run (FSDP2); not all on each.
    """

    section: ClassVar[str] = "training"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "paper": {
            "lr_scheduler_name": "cosineannealing",
            "lr_decay_steps": 0,
            "start": "random",
            "local_share": 0.0,
        },
        "fast": {
            "lr_scheduler_name": "constant",
            "lr_decay_steps": None,
            "start": "data",
            "local_share": 0.5,
        },
    }

    training_tokens: int | None = None
    batch_size_prompts: int = 1
    lr: float = 8e-4
    lr_scheduler_name: Literal["constant", "cosineannealing"] = "cosineannealing"
    lr_warm_up_steps: int | None = None
    lr_end: float = 0.0
    lr_decay_steps: int | None = 0
    start: Literal["random", "data"] = "random"
    local_share: float = 0.0
    adam_beta1: float = 0.9
    adam_beta2: float = 0.999
    dead_feature_window: int = 10_000_000
    feature_sampling_window: int = 1000
    n_checkpoints: int = 0
    activation_checkpointing: bool = False
    shard_weights: bool = False

    def check(self) -> None:
        self.require_above(0, "lr")
        self.require_at_least(
            1, "training_tokens", "batch_size_prompts", "dead_feature_window", "feature_sampling_window"
        )
        self.require_at_least(0, "lr_warm_up_steps", "lr_end", "lr_decay_steps", "n_checkpoints")
        if self.lr_decay_steps is None and self.lr_scheduler_name != "constant":
            raise ConfigError(
                "training.lr_decay_steps: null needs training.lr_scheduler_name: constant, which leaves every step "
                f"after the warm-up to the decay. Got {self.lr_scheduler_name}."
            )
        if not 0 <= self.local_share < 1:
            self.fail("local_share", "must be at least 0 and below 1")
        if self.lr_end > self.lr:
            raise ConfigError(
                f"training.lr_end must not exceed training.lr. Got {self.lr_end} (lr_end) and {self.lr} (lr)."
            )
        for name in ("adam_beta1", "adam_beta2"):
            if not 0 <= getattr(self, name) < 1:
                self.fail(name, "must be at least 0 and below 1")


@dataclass(frozen=True)
class LoggerConfig(Section):
    """Weights & Biases; metrics.jsonl is written whatever is chosen here.

    Args:
        log_to_wandb: also log to wandb (WANDB_MODE=offline needs no account).
        wandb_project: project.
        wandb_entity: user or team.
        run_name: name of the run; by default made from the configuration.
        wandb_log_frequency: steps between two logged rows.
    """

    section: ClassVar[str] = "logger"

    log_to_wandb: bool = False
    wandb_project: str = "tc-adapters"
    wandb_entity: str | None = None
    run_name: str | None = None
    wandb_log_frequency: int = 10

    def check(self) -> None:
        self.require_text("wandb_project", "wandb_entity", "run_name")
        self.require_at_least(1, "wandb_log_frequency")


@dataclass(frozen=True)
class TrainingConfig(Section):
    """One training run.

    Args:
        base: model before fine-tuning: hub id, local directory, or "toy:base".
        target: model after fine-tuning: hub id, local directory, or "toy:target".
        data: training sequences.
        base_revision: the base's hub revision.
        target_revision: the target's hub revision.
        dtype: precision of the models; adapters keep float32 master weights.
        device: auto, cpu, cuda, cuda:N or mps.
        seed: seed of adapters, data order and cutoffs.
        allow_tokenizer_mismatch: train although the two tokenizers disagree; the target's is used.
        warm_start: directory of adapters to start from.
        trained: adapters; or, to compare them with, weights of the hybrid itself on the same objective: mlps: all its
            MLPs (the skyline); norms: the norms inside its layers, without the final one. These start at the hybrid,
            so they go with no warm_start, training.start: data, training.local_share or training.shard_weights;
            adapters.n_features and the L1 and feature settings are ignored.
        adapters: size of the adapters.
        objective: weights of the loss terms.
        training: optimisation.
        logger: Weights & Biases.
    """

    base: str
    target: str
    data: DataConfig
    base_revision: str | None = None
    target_revision: str | None = None
    dtype: Literal["float32", "bfloat16"] = "float32"
    device: str = "auto"
    seed: int = 42
    allow_tokenizer_mismatch: bool = False
    warm_start: str | None = None
    trained: Literal["adapters", "mlps", "norms"] = "adapters"
    adapters: AdapterConfig = field(default_factory=AdapterConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    training: OptimConfig = field(default_factory=OptimConfig)
    logger: LoggerConfig = field(default_factory=LoggerConfig)

    def check(self) -> None:
        self.require_text("base", "target", "base_revision", "target_revision", "warm_start")
        self.require_at_least(0, "seed")
        optim = self.training
        if self.warm_start is not None and (optim.start != "random" or optim.local_share > 0):
            raise ConfigError(
                "warm_start takes the place of a start from data and of a local phase. Got training.start "
                f"{optim.start} and local_share {optim.local_share:g}; set training.start: random and "
                "training.local_share: 0."
            )
        if self.trained != "adapters":
            self._check_dense()
        if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", self.device):
            self.fail("device", "must be auto, cpu, cuda, cuda:N or mps")

    def _check_dense(self) -> None:
        """What is for adapters alone is not asked of dense weights."""
        optim = self.training
        allowed = {
            "warm_start": (self.warm_start, None),
            "training.start": (optim.start, "random"),
            "training.local_share": (optim.local_share, 0.0),
            "training.shard_weights": (optim.shard_weights, False),
        }
        for key, (value, only) in allowed.items():
            if value != only:
                raise ConfigError(
                    f"trained: {self.trained} needs {key}: {json.dumps(only)}; anything else is for adapters. "
                    f"Got {json.dumps(value)}. Change it, or set trained: adapters."
                )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TrainingConfig:
        """From nested mappings.

        Raises:
            ConfigError: an unknown or missing key, a wrong type or range; one line.
        """
        return build(cls, values)

    @classmethod
    def from_yaml(cls, text: str) -> TrainingConfig:
        """What `to_yaml` wrote. Errors as in `from_dict`."""
        return cls.from_dict(parse_yaml(text, "the configuration"))

    def to_dict(self) -> dict[str, Any]:
        """Nested mappings of plain values; `from_dict` gives an equal configuration back."""
        return dataclasses.asdict(self)

    def to_yaml(self) -> str:
        """What config.yaml of a run holds: every value, defaults too."""
        return yaml.safe_dump(self.to_dict(), sort_keys=False, allow_unicode=True)


def load_config(
    path: str | Path, overrides: Mapping[str, Any] | Iterable[str] = (), encoding: str = "utf-8"
) -> TrainingConfig:
    """Reads a YAML file, with values of some keys replaced.

    A chat template named by file is read, so that the result depends on no other file.

    Args:
        path: the YAML file, or the name of a recipe that comes with the package: toy, r1-distill-qwen-7b, ...
        overrides: `{"training.lr": 1e-3}`, the same nested, or `["training.lr=1e-3"]`; the last one wins.
    Raises:
        ConfigError: no such file, not YAML, an unknown or missing key, a wrong type or range; one line.
    """
    path = find_config(path)
    try:
        text = path.read_text(encoding=encoding)
    except (OSError, UnicodeDecodeError) as error:
        reason = "there is no such file" if isinstance(error, FileNotFoundError) else str(error)
        raise ConfigError(f"cannot read the config {path}: {reason}.") from error
    values = parse_yaml(text, str(path))
    if not isinstance(values, Mapping):
        raise ConfigError(f"{path} must hold a mapping of keys to values. Got {type(values).__name__}.")
    dotted = overrides if isinstance(overrides, Mapping) else _parse_overrides(overrides)
    config = TrainingConfig.from_dict(nest(dotted, values))
    template = config.data.chat_template
    if template is None:
        return config
    data = dataclasses.replace(config.data, chat_template=read_chat_template(template, path.parent))
    return dataclasses.replace(config, data=data)


def find_config(path: str | Path) -> Path:
    """The file itself, or that of a recipe of this name that comes with the package."""
    path = Path(path).expanduser()
    here = Path(__file__).resolve()
    if not path.is_file() and len(path.parts) == 1:
        for directory in (here.parents[1] / "configs", here.parents[2] / "configs"):  # installed, checkout
            if (recipe := directory / f"{path.name.removesuffix('.yaml')}.yaml").is_file():
                return recipe
    return path


def read_chat_template(template: str, directory: Path | None = None) -> str:
    """The Jinja text itself: `template`, or what the file it names holds.

    Args:
        template: Jinja text (anything with a brace) or a file's path.
        directory: where a relative path is looked for before the working directory.
    Raises:
        ConfigError: neither Jinja text nor a readable file.
    """
    if "{" in template:
        return template
    candidates = [Path(template)] if directory is None else [directory / template, Path(template)]
    for candidate in candidates:
        if candidate.is_file():
            return candidate.read_text(encoding="utf-8")
    looked = " and ".join(str(candidate) for candidate in candidates)
    raise ConfigError(f"data.chat_template must be Jinja text or a file. Got {template!r}; no file at {looked}.")


def _parse_overrides(overrides: Iterable[str]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals or not key:
            nearest = did_you_mean(key, key_names(TrainingConfig))
            raise ConfigError(f"an override must read key=value, as training.lr=1e-3. Got {override!r}.{nearest}")
        values = nest({key: parse_yaml(value, key)}, values)
    return values
