"""One training run, from a configuration to adapters or dense weights on disk, on SAELens' training runner.

    runs/NAME/
        config.yaml         the configuration, every value
        data.json           what became of the data: rows used, dropped and why, tokens
        metrics.jsonl       one row per logged step, SAELens' keys
        checkpoints/N/      SAELens' layout; N is the number of tokens seen
        adapters/           the result: one stock SAELens transcoder per layer
        weights/            the result in its place with `trained: mlps` or `norms`: dense weights

Started again with the same configuration, a run continues from its newest checkpoint and ends in the same bits as
one that was never interrupted: data order and cutoffs are functions of the seed and the step, all else is stored.

Several processes (`distributed`) make one run of the same configuration: all of them read, the main one writes.
"""

from __future__ import annotations

import json
import logging
import secrets
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import wandb
from sae_lens import LanguageModelSAERunnerConfig, LanguageModelSAETrainingRunner, LoggingConfig
from sae_lens.constants import RUNNER_CFG_FILENAME
from typing_extensions import override

from tc_adapters_lens.errors import AdapterSetError, ConfigError, DataError, StopTraining
from tc_adapters_lens.models.adapter_set import AdapterSet, AdapterSetInfo, is_adapter_set
from tc_adapters_lens.models.atomic import atomic_file, writing
from tc_adapters_lens.models.dense_weights import DenseWeights, is_dense_weights
from tc_adapters_lens.models.diff_transformer import HookedDiffTransformer
from tc_adapters_lens.models.names import ADAPTERS
from tc_adapters_lens.models.pair import load_pair
from tc_adapters_lens.training.config import TrainingConfig
from tc_adapters_lens.training.data import BatchPlan, TokenSequences, load_sequences
from tc_adapters_lens.training.data_start import data_start
from tc_adapters_lens.training.dense import JointDense
from tc_adapters_lens.training.distributed import Processes, ProcessLostError, join
from tc_adapters_lens.training.joint import JointTranscoder, JointTranscoderConfig
from tc_adapters_lens.training.prefetch import Prefetch
from tc_adapters_lens.training.sharding import shard_frozen_weights
from tc_adapters_lens.training.trainer import (
    AdapterTrainer,
    AdapterTrainerConfig,
    Trainable,
    TrainableConfig,
)
from tc_adapters_lens.training.warm_start import load_warm_start

logger = logging.getLogger(__name__)

CONFIG_FILE, DATA_FILE, METRICS_FILE = "config.yaml", "data.json", "metrics.jsonl"
CHECKPOINTS, WEIGHTS = "checkpoints", "weights"
_WARM_UP_SHARE = 0.05
_MAY_CHANGE = ("training.shard_weights", "training.activation_checkpointing")  # on resuming: they change no result
_MEASURED_KEYS = {"kl": "losses/kl", "nmse": "losses/nmse", "l0": "metrics/l0"}


class AdapterTrainingRunner(LanguageModelSAETrainingRunner):
    """SAELens' runner for all layers' adapters of a pair, or the dense weights they are compared with.

    Args:
        config: the run.
        out: its directory; made if absent, continued if it holds the same run.
        model: the pair, already loaded; otherwise loaded as the configuration says. `shard_weights` shards it in place.
        sequences: tokenised training sequences, already loaded; otherwise loaded as the configuration says.
        processes: those of the run; by default those that a launcher has started.
    Raises:
        ConfigError: `out` holds a run with another configuration, or the configuration does not go with so many
            processes.
        AdapterLensError: whatever is wrong with the models, the data or the warm start.
    """

    sae: Trainable
    model: HookedDiffTransformer

    def __init__(
        self,
        config: TrainingConfig,
        out: str | Path,
        model: HookedDiffTransformer | None = None,
        sequences: TokenSequences | None = None,
        processes: Processes | None = None,
    ) -> None:
        self.config, self.out = config, Path(out)
        self.processes = processes or join()
        self._check_processes()
        if self.processes.is_main:
            self._check_directory()
        self.model = model or load_run_pair(config, self.processes)
        if config.training.shard_weights:
            shard_frozen_weights(self.model, self.processes.device(config.device), self.processes.n)
        if self.model.acts_to_saes:
            attached = ", ".join(self.model.acts_to_saes)
            raise ConfigError(f"The pair must have nothing attached for training. Got SAEs at {attached}.")
        report: dict[str, Any] = {}
        if sequences is None:
            with self.processes.main_first():
                sequences, loaded = load_sequences(
                    config.data, self.model.tokenizer, self.model.cfg.d_vocab, self.model.cfg.n_ctx
                )
            report = loaded.to_dict()
        optim, rank, n = config.training, self.processes.rank, self.processes.n
        self.plan = BatchPlan(sequences, optim.batch_size_prompts, optim.training_tokens, config.seed, rank, n)
        self.sae = self._make_adapters() if config.trained == "adapters" else JointDense.of(self.model, config.trained)
        fingerprints = self._fingerprints()
        self.processes.require_same({**_flat(self.config.to_dict()), **fingerprints})
        if self.processes.is_main:
            self._claim_directory(fingerprints, report)
        self.cfg = self._saelens_config()
        logger.info(
            "%d steps of %d sequences, %d tokens",
            self.plan.n_steps,
            optim.batch_size_prompts,
            self.plan.n_tokens,
        )

    def _check_processes(self) -> None:
        optim, n = self.config.training, self.processes.n
        if optim.batch_size_prompts < n:
            raise ConfigError(
                "training.batch_size_prompts must be at least the number of processes, which share each batch. "
                f"Got {optim.batch_size_prompts} (batch_size_prompts) and {n} (processes). Raise it, or start fewer."
            )
        if optim.shard_weights and n == 1:
            raise ConfigError(
                "training.shard_weights needs several processes. Got true and 1 process. "
                "Start them with torchrun, or set it to false."
            )

    def _check_directory(self) -> None:
        """The directory is new, empty, or holds this very run."""
        path = self.out / CONFIG_FILE
        if path.exists():
            before = _flat(TrainingConfig.from_yaml(path.read_text(encoding="utf-8")).to_dict())
            now = _flat(self.config.to_dict())
            changed = {k: (before[k], v) for k, v in now.items() if before[k] != v and k not in _MAY_CHANGE}
            if changed:
                key, (old, new) = next(iter(changed.items()))
                raise ConfigError(
                    f"{self.out} holds a run with another configuration: {key} is {old!r} there. Got {new!r}. "
                    "Name another --out, or delete the directory."
                )
        elif self.out.exists() and (not self.out.is_dir() or any(self.out.iterdir())):
            raise ConfigError(f"{self.out} is not a run and not empty. Name another --out.")

    def _fingerprints(self) -> dict[str, str]:
        return {
            f"data ({self.config.data.path})": self.plan.sequences.fingerprint(),
            f"base ({self.config.base})": self.model.pair.base_fingerprint,
            f"target ({self.config.target})": self.model.pair.target_fingerprint,
        }

    def _claim_directory(self, now: dict[str, str], report: dict[str, Any]) -> None:
        """Once everything is loaded: write config.yaml and data.json, or check that a resumed run still sees the
        models and the data it began with."""
        if not (self.out / CONFIG_FILE).exists():
            with atomic_file(self.out / CONFIG_FILE, error=ConfigError) as file:
                file.write_text(self.config.to_yaml(), encoding="utf-8")
        path = self.out / DATA_FILE
        if not path.exists():
            with atomic_file(path, error=DataError) as file:
                file.write_text(json.dumps({"fingerprints": now, **report}, indent=2) + "\n")
            return
        try:
            before = json.loads(path.read_text(encoding="utf-8"))["fingerprints"]
        except (OSError, ValueError, KeyError) as error:
            raise DataError(
                f"{path} must say what the run began with, and cannot be read. Name another --out."
            ) from error
        for what, fingerprint in now.items():
            if before.get(what) != fingerprint:
                raise DataError(
                    f"A run must be resumed on the same {what}. Got {fingerprint[:19]}, begun with "
                    f"{str(before.get(what))[:19]}. Restore it, or name another --out."
                )

    def _make_adapters(self) -> JointTranscoder:
        cfg, model = self.config, self.model.cfg
        info = AdapterSetInfo(self.model.pair)
        fresh = AdapterSet.fresh(model.n_layers, model.d_model, cfg.adapters.n_features, info, seed=cfg.seed)
        if cfg.warm_start is not None:
            fresh = load_warm_start(cfg.warm_start, fresh)
        elif cfg.training.start == "data":
            batch_size = cfg.training.batch_size_prompts
            state = data_start(self.model, self.plan.sequences, fresh.n_features, cfg.seed, batch_size)
            if not self.processes.is_main:  # every process begins with the main one's bits
                state = {name: torch.zeros_like(tensor) for name, tensor in state.items()}
            self.processes.sum_(*state.values())
            fresh = AdapterSet.from_state(state, info)
        joint = JointTranscoder(
            JointTranscoderConfig(
                d_in=model.d_model,
                d_sae=cfg.adapters.n_features,
                n_layers=model.n_layers,
                l1_coefficient=cfg.objective.l1_coefficient,
                l1_warm_up_steps=cfg.objective.l1_warm_up_steps,
                device=str(model.device),
            )
        )
        joint.load_adapters(fresh)
        return joint

    def _saelens_config(self) -> LanguageModelSAERunnerConfig[TrainableConfig]:
        """The same run in SAELens' words: what wandb and runner_cfg.json hold."""
        optim, log = self.config.training, self.config.logger
        n_steps, warm_up, decay = self.plan.n_steps, optim.lr_warm_up_steps, optim.lr_decay_steps
        warm_up = round(_WARM_UP_SHARE * n_steps) if warm_up is None else warm_up
        cfg = LanguageModelSAERunnerConfig(
            sae=self.sae.cfg,
            model_name=self.config.target,
            model_class_name=type(self.model).__name__,
            hook_name="blocks.{layer}.mlp.hook_delta" if self.config.trained == "adapters" else "blocks.{layer}",
            dataset_path=self.config.data.path,
            context_size=int(self.plan.sequences.lengths.max()),
            training_tokens=self.plan.n_tokens,
            store_batch_size_prompts=optim.batch_size_prompts,
            train_batch_size_tokens=max(1, self.plan.n_tokens // n_steps),
            lr=optim.lr,
            lr_scheduler_name=optim.lr_scheduler_name,
            lr_warm_up_steps=warm_up,
            lr_end=optim.lr_end,
            lr_decay_steps=max(n_steps - warm_up, 0) if decay is None else decay,
            adam_beta1=optim.adam_beta1,
            adam_beta2=optim.adam_beta2,
            dead_feature_window=optim.dead_feature_window,
            feature_sampling_window=optim.feature_sampling_window,
            n_checkpoints=optim.n_checkpoints,
            device=str(self.model.cfg.device),
            dtype="float32",
            seed=self.config.seed,
            checkpoint_path=None,
            output_path=str(self._result),
            verbose=False,
            logger=LoggingConfig(
                log_to_wandb=log.log_to_wandb and self.processes.is_main,
                log_weights_to_wandb=False,
                wandb_project=log.wandb_project,
                wandb_entity=log.wandb_entity,
                wandb_id=self._wandb_id() if log.log_to_wandb and self.processes.is_main else None,
                run_name=log.run_name or self.out.name,
                wandb_log_frequency=log.wandb_log_frequency,
            ),
        )
        cfg.checkpoint_path = str(self.out / CHECKPOINTS)
        return cfg

    def _wandb_id(self) -> str:
        """One wandb run per directory, so that a resumed run goes on in the same curves."""
        path = self.out / "wandb_id"
        if not path.exists():
            path.write_text(secrets.token_hex(4))
        return path.read_text()

    @property
    def _result(self) -> Path:
        return self.out / (ADAPTERS if self.config.trained == "adapters" else WEIGHTS)

    @override
    def run(self) -> AdapterSet | DenseWeights:
        """Train, or finish a run that was interrupted, and save the adapters or dense weights.

        Returns:
            What was trained, on the CPU; that of the directory if the run was complete already.
        Raises:
            StopTraining: stopped by SIGTERM or Ctrl-C; a checkpoint was saved.
            AdapterSetError: the newest checkpoint cannot be read.
        """
        processes = self.processes
        dense = self.config.trained != "adapters"
        kind, is_complete = (DenseWeights, is_dense_weights) if dense else (AdapterSet, is_adapter_set)
        if processes.from_main(is_complete(self._result)):
            logger.info("%s is complete already", self.out)
            return kind.load(self._result, pair=self.model.pair)
        if self.cfg.logger.log_to_wandb:
            wandb.init(
                project=self.cfg.logger.wandb_project,
                entity=self.cfg.logger.wandb_entity,
                config=self.config.to_dict(),
                name=self.cfg.logger.run_name,
                id=self.cfg.logger.wandb_id,
                resume="allow",
                dir=self.out,
            )
        try:
            trainer = self._make_trainer()
            checkpoint = processes.from_main(newest_checkpoint(self.out))
            if checkpoint is not None:
                trainer.load_trainer_state(checkpoint)
                logger.info("resuming from %s, step %d", checkpoint, trainer.n_optimizer_steps)
            if processes.is_main:
                _cut_metrics(self.out / METRICS_FILE, trainer.n_optimizer_steps)
            batches = self.plan.batches(trainer.n_optimizer_steps)
            with Prefetch(batches, self.model.cfg.device) as prefetched, _frozen(self.model):
                trainer.data_provider = prefetched  # type: ignore[assignment]
                self.run_trainer_with_interruption_handling(trainer)
            return self._save_result()
        finally:
            if self.cfg.logger.log_to_wandb:
                wandb.finish()

    def _make_trainer(self) -> AdapterTrainer:
        stock = self.cfg.to_sae_trainer_config()
        return AdapterTrainer(
            cfg=AdapterTrainerConfig(
                **vars(stock),
                n_steps=self.plan.n_steps,
                n_local_steps=int(self.config.training.local_share * self.plan.n_steps),
                seed=self.config.seed,
                log_every=self.config.logger.wandb_log_frequency,
                checkpoint_blocks=self.config.training.activation_checkpointing,
            ),
            sae=self.sae,
            model=self.model,
            objective=self.config.objective,
            data_provider=iter(()),
            n_tokens_in=self.plan.n_tokens_in,
            on_metrics=self._write_metrics if self.processes.is_main else None,
            save_checkpoint_fn=self.save_checkpoint,
            processes=self.processes,
        )

    def _write_metrics(self, row: dict[str, Any]) -> None:
        path = self.out / METRICS_FILE
        with writing(path, AdapterSetError), path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    @override
    def run_trainer_with_interruption_handling(self, trainer: AdapterTrainer) -> Trainable:  # type: ignore[override]
        """SIGTERM and Ctrl-C finish the step under way, save a checkpoint and stop; a second one stops at once.

        Of several processes any may get the signal, and all stop after the same step. There a second one is not heard:
        Ctrl-C reaches a process from the terminal and again from the launcher, which kills what does not end in time.
        """
        previous = {}

        def request_stop(signum: int, frame: object) -> None:
            trainer.stop_requested = True
            if self.processes.n == 1:
                for number, handler in previous.items():
                    signal.signal(number, handler)

        try:
            for number in (signal.SIGINT, signal.SIGTERM):
                previous[number] = signal.signal(number, request_stop)
        except ValueError:  # not in the main thread: no signals arrive here
            pass
        try:
            with self.processes.watched():
                return trainer.fit()
        except ProcessLostError:
            previous.clear()  # the launcher is about to end this process too: it has a line to say first
            raise
        except StopTraining:
            trainer.save_checkpoint(str(trainer.n_training_samples))
            self.processes.barrier()
            raise StopTraining(
                f"Stopped at step {trainer.n_optimizer_steps} of {self.plan.n_steps}; checkpoint saved in "
                f"{self.out / CHECKPOINTS}. Start the same command again to go on."
            ) from None
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    @override
    def save_checkpoint(self, checkpoint_path: Path | None) -> None:
        """SAELens' seam: the runner's part of a checkpoint."""
        if checkpoint_path is not None:
            (checkpoint_path / RUNNER_CFG_FILENAME).write_text(json.dumps(self.cfg.to_dict()))

    def _save_result(self) -> AdapterSet | DenseWeights:
        recipe = {
            "config": self.config.to_dict(),
            "n_steps": self.plan.n_steps,
            "n_tokens": self.plan.n_tokens,
        }
        is_main = self.processes.is_main
        measured = self.processes.from_main(_last_metrics(self.out / METRICS_FILE) if is_main else {})
        info = AdapterSetInfo(self.model.pair, recipe=recipe, measured={"on": "training batches", **measured})
        if isinstance(self.sae, JointDense):
            result = self.sae.weights(info)
        else:
            state = {name: param.detach().cpu() for name, param in self.sae.named_parameters()}
            result = AdapterSet.from_state(state, info)
        if is_main:
            result.save(self._result)
        self.processes.barrier()
        return result


def load_run_pair(config: TrainingConfig, processes: Processes | None = None) -> HookedDiffTransformer:
    """The pair that a configuration names, on this process's device; on the CPU if it is still to be sharded."""
    device = (processes or join()).device(config.device)
    return load_pair(
        config.base,
        config.target,
        base_revision=config.base_revision,
        target_revision=config.target_revision,
        dtype=getattr(torch, config.dtype),
        device="cpu" if config.training.shard_weights else device,
        allow_tokenizer_mismatch=config.allow_tokenizer_mismatch,
    )


def newest_checkpoint(out: Path) -> Path | None:
    """The checkpoint of a run that saw the most tokens; unfinished ones have no final name and do not count."""
    found = [path for path in (out / CHECKPOINTS).glob("*") if path.name.isdigit()]
    return max(found, key=lambda path: int(path.name), default=None)


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested keys, dotted."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


def _cut_metrics(path: Path, step: int) -> None:
    """Drop rows after a step: those a resumed run will write again, and a row that was cut off."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            if json.loads(line)["step"] > step:
                break
        except (json.JSONDecodeError, KeyError):
            break
        kept.append(line + "\n")
    with atomic_file(path, error=AdapterSetError) as file:
        file.write_text("".join(kept), encoding="utf-8")


def _last_metrics(path: Path, n_rows: int = 20) -> dict[str, float]:
    """KL, NMSE and, where there are features, L0, averaged over the last logged rows of the joint objective."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()[-n_rows:]]
    rows = [row for row in rows if _MEASURED_KEYS["kl"] in row]
    return {name: sum(row[key] for row in rows) / len(rows) for name, key in _MEASURED_KEYS.items() if key in rows[-1]}


@contextmanager
def _frozen(model: HookedDiffTransformer) -> Iterator[None]:
    """The pair's own weights get no gradients inside the block."""
    before = {param: param.requires_grad for param in model.parameters()}
    model.requires_grad_(False)
    try:
        yield
    finally:
        for param, requires_grad in before.items():
            param.requires_grad_(requires_grad)


def train(
    config: TrainingConfig,
    out: str | Path,
    model: HookedDiffTransformer | None = None,
    sequences: TokenSequences | None = None,
) -> AdapterSet | DenseWeights:
    """Train what the configuration's `trained` says for a pair, or finish a run that was interrupted.

    Arguments and errors as the runner's.

    Returns:
        Adapters, or with `trained: mlps` or `norms` dense weights.
    """
    return AdapterTrainingRunner(config, out, model, sequences).run()
