"""SAELens' trainer, with the step of the joint objective in place of its one-activation step.

Kept from `SAETrainer`: the fit loop, learning-rate and sparsity schedules, checkpoint layout and thresholds, wandb
logging. Replaced: the step (`step`), the statistics (per layer, counted in unmasked tokens, never dense floats),
the trainer state (safetensors and JSON, no pickles), and checkpoints (written under a temporary name, then renamed).
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias, TypeVar

import torch
from sae_lens.config import SAETrainerConfig
from sae_lens.saes.sae import TrainStepOutput
from sae_lens.training import sae_trainer
from sae_lens.training.sae_trainer import SAETrainer
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.profiler import record_function
from tqdm.auto import tqdm
from typing_extensions import override

from tc_adapters_lens.core.statistics import is_dead, update_tokens_since_fired
from tc_adapters_lens.errors import AdapterSetError, DataError, StopTraining
from tc_adapters_lens.models.atomic import atomic_directory
from tc_adapters_lens.models.diff_transformer import HookedDiffTransformer
from tc_adapters_lens.training.config import ObjectiveConfig
from tc_adapters_lens.training.data import TokenBatch
from tc_adapters_lens.training.dense import JointDense, JointDenseConfig
from tc_adapters_lens.training.distributed import Processes
from tc_adapters_lens.training.joint import JointTranscoder, JointTranscoderConfig
from tc_adapters_lens.training.local_step import LocalTerms, local_step
from tc_adapters_lens.training.objective import ObjectiveTerms, draw_cutoff, weighted_sum
from tc_adapters_lens.training.step import training_step

STATE_TENSORS = "trainer_state.safetensors"
STATE_VALUES = "trainer_state.json"
MAX_GRAD_NORM = 1.0
_SHOWN = {"KL": "losses/kl", "NMSE": "losses/nmse", "local error": "losses/local_error"}
_ADAM_TENSORS = ("step", "exp_avg", "exp_avg_sq")

Trainable: TypeAlias = JointTranscoder | JointDense
TrainableConfig: TypeAlias = JointTranscoderConfig | JointDenseConfig


@dataclass
class AdapterTrainerConfig(SAETrainerConfig):
    """SAELens' trainer settings, with the exact number of steps (sequences differ in length).

    A sample is one unmasked token; `dead_feature_window` counts unmasked tokens. The first `n_local_steps` of the
    `n_steps` train every layer by itself.
    """

    n_steps: int = 0
    n_local_steps: int = 0
    seed: int = 42
    log_every: int = 10
    checkpoint_blocks: bool = False

    @property
    @override
    def total_training_steps(self) -> int:
        return self.n_steps


_Terms = TypeVar("_Terms", ObjectiveTerms, LocalTerms)


class _Gradients(NamedTuple):
    """What is told of a step's losses once its gradients are there."""

    counts: Tensor
    loss: Tensor
    losses: dict[str, Tensor]
    metrics: dict[str, float | Tensor]


class AdapterTrainer(SAETrainer[Trainable, TrainableConfig]):
    """Trains all layers' adapters, or dense weights in their place, together on the joint objective.

    Args:
        cfg: schedules, windows, checkpoints.
        sae: the adapters, or the dense weights, of which nothing is counted or told that features have.
        model: the pair, with nothing attached and its weights frozen.
        objective: weights of the terms.
        data_provider: this process's share of each batch, starting at the step that training is at.
        n_tokens_in: unmasked tokens of a step, over all processes.
        on_metrics: called with each logged row.
        save_checkpoint_fn: SAELens' seam, called inside every checkpoint before it gets its final name.
        processes: those of the run, which all make the same steps; the main one saves checkpoints.
    """

    cfg: AdapterTrainerConfig

    def __init__(
        self,
        cfg: AdapterTrainerConfig,
        sae: Trainable,
        model: HookedDiffTransformer,
        objective: ObjectiveConfig,
        data_provider: Iterator[TokenBatch],
        n_tokens_in: Callable[[int], int],
        on_metrics: Callable[[dict[str, Any]], None] | None = None,
        save_checkpoint_fn: Any = None,
        processes: Processes | None = None,
    ) -> None:
        super().__init__(cfg, sae, data_provider, save_checkpoint_fn=save_checkpoint_fn)  # type: ignore[arg-type]
        # SAELens makes a plain Adam. The fused one takes one pass over the parameters, and no temporary of their size.
        self._fused_adam = torch.device(cfg.device).type in ("cpu", "cuda")
        self.optimizer.param_groups[0]["fused"] = self._fused_adam
        self.model = model
        self.objective = objective
        self.n_tokens_in = n_tokens_in
        self.on_metrics = on_metrics
        self.processes = processes or Processes()
        self._shall_stop = self.processes.stop_vote()
        self.n_optimizer_steps = 0
        self.stop_requested = False
        self.tokens_since_fired = torch.zeros(self._stats_shape, dtype=torch.int64, device=cfg.device)
        self._reset_running_sparsity_stats()
        self._clock = (time.monotonic(), 0)

    @property
    def _has_features(self) -> bool:
        return self.sae.cfg.d_sae > 0

    @property
    def _stats_shape(self) -> tuple[int, int]:
        return self.sae.cfg.n_layers, self.sae.cfg.d_sae

    @property
    @override
    def dead_neurons(self) -> torch.Tensor:
        """Features silent for `dead_feature_window` unmasked tokens, `[n_layers n_features]`."""
        return is_dead(self.tokens_since_fired, self.cfg.dead_feature_window)

    @override
    def fit(self) -> Trainable:
        """SAELens' loop; its progress bar is the main process's, and ends with it in any case."""
        make, bars = sae_trainer.tqdm, []

        def make_bar(**settings: Any) -> tqdm:  # type: ignore[type-arg]
            bars.append(make(**settings, disable=not self.processes.is_main))
            return bars[-1]

        sae_trainer.tqdm = make_bar  # type: ignore[assignment]
        try:
            return super().fit()
        finally:
            sae_trainer.tqdm = make
            for bar in bars:
                bar.close()

    @override
    def step(self, batch: TokenBatch) -> TrainStepOutput:  # type: ignore[override]
        """One optimizer step on a batch of sequences, of which every process has its share.

        Raises:
            StopTraining: `stop_requested` was set, on any process; raised by all in the same step, before anything
                changes.
        """
        if self._shall_stop(self.stop_requested):
            raise StopTraining
        n_tokens = self.n_tokens_in(self.n_optimizer_steps)
        tokens, mask, positions = (part.to(self.cfg.device, non_blocking=True) for part in batch)
        if self.n_optimizer_steps < self.cfg.n_local_steps:
            counts, loss, losses, metrics = self._local_step(tokens, mask, positions)
        else:
            counts, loss, losses, metrics = self._joint_step(tokens, mask, positions)
        with record_function("optimizer"):
            torch.nn.utils.clip_grad_norm_(self.sae.parameters(), MAX_GRAD_NORM)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=False)
        self.lr_scheduler.step()
        for scheduler in self.coefficient_schedulers.values():
            scheduler.step()

        self.n_training_samples += n_tokens
        self.n_optimizer_steps += 1
        self.n_frac_active_samples += n_tokens
        with record_function("statistics"):
            self.act_freq_scores += counts
            self.tokens_since_fired = update_tokens_since_fired(self.tokens_since_fired, counts, n_tokens)
        if self._has_features:
            metrics = {"l0": counts.sum() / (n_tokens * self.sae.cfg.n_layers), **metrics}
        output = TrainStepOutput(
            sae_in=tokens,
            sae_out=tokens,
            feature_acts=counts,
            hidden_pre=counts,
            loss=loss,
            losses=losses,
            metrics={**metrics},
        )
        if self.n_optimizer_steps % self.cfg.log_every == 0 or self.n_optimizer_steps == self.cfg.n_steps:
            self._log_row(output)
        return output

    def _local_step(self, tokens: Tensor, mask: Tensor, positions: Tensor) -> _Gradients:
        assert isinstance(self.sae, JointTranscoder)  # the configuration has no local phase with dense weights
        weights, l1_coefficient = self.sae.layer_weights(self.model.cfg.dtype), self.get_coefficients()["l1"]
        share = local_step(self.model, weights, tokens, mask, positions, l1_coefficient, self._sum_over_processes)
        terms = self._of_whole_batch(share)
        losses = {"local_error": terms.error.mean(), "l1": terms.l1}
        return _Gradients(terms.counts, terms.loss(l1_coefficient), losses, {})

    def _joint_step(self, tokens: Tensor, mask: Tensor, positions: Tensor) -> _Gradients:
        if self.n_optimizer_steps == self.cfg.n_local_steps:
            self.optimizer.state.clear()  # moments of the local phase's gradients are of another loss
        cutoff = draw_cutoff(self.cfg.seed, self.n_optimizer_steps, self.sae.cfg.n_layers)
        weights, l1_coefficient = self.sae.layer_weights(self.model.cfg.dtype), self.get_coefficients().get("l1", 0.0)
        share = training_step(
            self.model,
            weights,
            tokens,
            mask,
            positions,
            cutoff,
            self.objective,
            l1_coefficient,
            self._sum_over_processes,
            checkpoint_blocks=self.cfg.checkpoint_blocks,
        )
        terms = self._of_whole_batch(share)
        losses = {
            "kl": terms.kl,
            "nmse": terms.nmse.mean(),
            "bridging_to_target": terms.bridging_to_target,
            "bridging_to_replacement": terms.bridging_to_replacement,
        }
        if self._has_features:
            losses["l1"] = terms.l1
        loss = weighted_sum(terms, self.objective, l1_coefficient)
        return _Gradients(terms.counts, loss, losses, {"cutoff": cutoff})

    @property
    def _sum_over_processes(self) -> Callable[[Tensor], Tensor] | None:
        return self.processes.summed if self.processes.n > 1 else None

    def _of_whole_batch(self, share: _Terms) -> _Terms:
        """Sums over processes: of the gradients, in place, and of the terms, of which the last are counts."""
        if self.processes.n == 1:
            return share
        *parts, counts = share
        values = torch.cat([part.reshape(-1) for part in parts])
        grads = [param.grad for param in self.sae.parameters() if param.grad is not None]
        self.processes.sum_(*grads, values, counts)
        summed = values.split([part.numel() for part in parts])
        terms = {name: new.view(old.shape) for name, new, old in zip(share._fields, summed, parts, strict=False)}
        return share._replace(**terms, counts=counts)

    def _log_row(self, output: TrainStepOutput) -> None:
        row = self.build_train_step_log_dict(output, self.n_training_samples)
        if not math.isfinite(row["losses/overall_loss"]):
            raise DataError(
                f"The loss must stay finite. Got {row['losses/overall_loss']} at step {self.n_optimizer_steps}. "
                "Lower training.lr, or use dtype float32."
            )
        started, tokens_then = self._clock
        elapsed = max(time.monotonic() - started, 1e-9)
        row["details/tokens_per_second"] = (self.n_training_samples - tokens_then) / elapsed
        self._clock = (time.monotonic(), self.n_training_samples)
        self.last_row = row
        if self.on_metrics is not None:
            self.on_metrics({"step": self.n_optimizer_steps, **row})

    @override
    @torch.no_grad()
    def build_train_step_log_dict(self, output: TrainStepOutput, n_training_samples: int) -> dict[str, Any]:
        """SAELens' log keys for the joint objective; the only place a step's numbers leave the device."""
        row: dict[str, Any] = {"losses/overall_loss": output.loss.item()}
        row |= {f"losses/{name}": float(value) for name, value in output.losses.items()}
        row |= {f"metrics/{name}": float(value) for name, value in output.metrics.items()}  # type: ignore[arg-type]
        if self._has_features:
            row |= {
                "sparsity/mean_tokens_since_fired": self.tokens_since_fired.float().mean().item(),
                "sparsity/dead_features": int(self.dead_neurons.sum()),
            }
        row |= {
            "details/current_learning_rate": self.optimizer.param_groups[0]["lr"],
            "details/n_training_samples": n_training_samples,
        }
        for name, scheduler in self.coefficient_schedulers.items():
            row[f"details/{name}_coefficient"] = scheduler.value
        return row

    @override
    @torch.no_grad()
    def _reset_running_sparsity_stats(self) -> None:
        self.act_freq_scores = torch.zeros(self._stats_shape, dtype=torch.int64, device=self.cfg.device)
        self.n_frac_active_samples = 0

    @override
    def full_sparsity_window_log(self) -> dict[str, Any]:
        """As in SAELens; a run stopped right after a window was reset, or without features, has nothing to log."""
        return super().full_sparsity_window_log() if self.n_frac_active_samples and self._has_features else {}

    @override
    def set_final_sae_metadata(self) -> None:
        if self._has_features:
            super().set_final_sae_metadata()

    @override
    def _update_pbar(self, step_output: TrainStepOutput, pbar: tqdm, update_interval: int = 100) -> None:  # type: ignore[type-arg]
        pbar.unit, pbar.unit_scale = " tokens", True
        pbar.update(self.n_training_samples - pbar.n)
        row = getattr(self, "last_row", None)
        if row is not None and self.n_optimizer_steps % self.cfg.log_every == 0:
            pbar.set_description(f"step {self.n_optimizer_steps}/{self.cfg.n_steps}", refresh=False)
            shown = {name: f"{row[key]:.4f}" for name, key in _SHOWN.items() if key in row}
            if self._has_features:
                shown |= {"L0": f"{row['metrics/l0']:.2f}", "dead": row["sparsity/dead_features"]}
            pbar.set_postfix(shown)

    @override
    def save_checkpoint(
        self,
        checkpoint_name: str,
        base_path: Path | str | None = None,
        wandb_aliases: list[str] | None = None,
    ) -> None:
        base = Path(base_path or self.cfg.checkpoint_path or ".")
        if not self.processes.is_main or (base / checkpoint_name).exists():
            return
        base.mkdir(parents=True, exist_ok=True)
        with atomic_directory(base / checkpoint_name, error=AdapterSetError) as unfinished:
            super().save_checkpoint(unfinished.name, unfinished.parent, wandb_aliases)

    @override
    def save_trainer_state(self, checkpoint_path: Path) -> None:
        """Everything a resumed run needs to be bit-identical: Adam's moments, schedules, statistics, counters."""
        adam = self.optimizer.state
        tensors = {
            f"adam.{name}.{key}": adam[param][key]
            for name, param in self.sae.named_parameters()
            for key in _ADAM_TENSORS
            if param in adam
        }
        tensors |= {
            "act_freq_scores": self.act_freq_scores,
            "tokens_since_fired": self.tokens_since_fired,
        }
        save_file(tensors, checkpoint_path / STATE_TENSORS)
        values = {
            "n_training_samples": self.n_training_samples,
            "n_training_steps": self.n_optimizer_steps,
            "n_frac_active_samples": self.n_frac_active_samples,
            "lr": [group["lr"] for group in self.optimizer.param_groups],
            "lr_scheduler": self.lr_scheduler.state_dict(),
            "coefficient_schedulers": {n: s.state_dict() for n, s in self.coefficient_schedulers.items()},
        }
        (checkpoint_path / STATE_VALUES).write_text(json.dumps(values, indent=1))

    @override
    def load_trainer_state(self, checkpoint_path: Path | str) -> None:
        """Continue from a checkpoint, weights included.

        Raises:
            AdapterSetError: the checkpoint is damaged or of another shape.
        """
        checkpoint_path = Path(checkpoint_path)
        try:
            self.sae.load_weights_from_checkpoint(checkpoint_path)
            tensors = load_file(checkpoint_path / STATE_TENSORS, device=str(self.cfg.device))
            values = json.loads((checkpoint_path / STATE_VALUES).read_text())
            for name, param in self.sae.named_parameters():
                self.optimizer.state[param] = {
                    key: tensors[f"adam.{name}.{key}"].to(
                        "cpu" if key == "step" and not self._fused_adam else self.cfg.device
                    )
                    for key in _ADAM_TENSORS
                }
            self.act_freq_scores = tensors["act_freq_scores"]
            self.tokens_since_fired = tensors["tokens_since_fired"]
            for group, lr in zip(self.optimizer.param_groups, values["lr"], strict=True):
                group["lr"] = lr
            self.lr_scheduler.load_state_dict(values["lr_scheduler"])
            for name, state in values["coefficient_schedulers"].items():
                self.coefficient_schedulers[name].load_state_dict(state)
            self.n_training_samples = values["n_training_samples"]
            self.n_training_steps = self.n_optimizer_steps = values["n_training_steps"]
            self.n_frac_active_samples = values["n_frac_active_samples"]
        except (OSError, KeyError, ValueError, RuntimeError, SafetensorError) as error:
            raise AdapterSetError(
                f"Checkpoint {checkpoint_path} must hold a complete trainer state. Got {str(error).splitlines()[0]}. "
                "Delete it to resume from the one before."
            ) from error
        passed = self.n_training_samples
        self.checkpoint_thresholds = [n for n in self.checkpoint_thresholds if n >= passed]
        self._clock = (time.monotonic(), self.n_training_samples)
