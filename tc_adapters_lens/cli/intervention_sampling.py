"""Responses of every condition of an intervention, each into a file of its own that goes on where it was stopped."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from tc_adapters_lens.integrations.hf.model import adapter_model, set_adapters
from tc_adapters_lens.integrations.hf.modeling_transcoder_adapters import AdapterModel
from tc_adapters_lens.interventions.conditions import Condition
from tc_adapters_lens.models.adapter_set import AdapterSet
from tc_adapters_lens.models.checkpoints import Checkpoint
from tc_adapters_lens.models.sampled_file import prompts_fingerprint, write_sampled
from tc_adapters_lens.models.sampling import Sampled, Sampling, end_tokens, load_target, sample


def sample_conditions(
    conditions: Sequence[Condition],
    base: Checkpoint,
    target: Checkpoint,
    adapters: AdapterSet,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    files: Mapping[str, Path],
    *,
    dtype: torch.dtype,
    device: torch.device,
) -> None:
    """Sample a response to every prompt from every condition. Each prompt has its own draws, the same in all of them.

    Args:
        adapters: the trained ones.
        prompts: token ids.
        files: a condition's name -> its file of responses; what is whole there is kept.
    Raises:
        DataError: a file was begun with other settings, or cannot be written.
        KeyboardInterrupt: interrupted; says how many responses are there.
    """
    models = _Models(base, target, adapters, dtype, device)
    ends = end_tokens(target)
    shared = {
        "prompts_fingerprint": prompts_fingerprint(prompts),
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "max_new_tokens": sampling.max_new_tokens,
        "end_tokens": ends,
        "seed": sampling.seed,
        "batch_size": sampling.batch_size,
        "dtype": str(dtype).removeprefix("torch."),
        "device": device.type,
    }
    order = sorted(conditions, key=lambda condition: models.ORDER.index(models.key(condition)))
    with tqdm(total=len(order) * len(prompts), desc="sampling", unit=" responses", disable=None) as bar:

        def rows(condition: Condition, start: int) -> Iterator[Sampled]:
            bar.update(start)
            for row in sample(models.of(condition), prompts, sampling, end_tokens=ends, start=start):
                yield row
                bar.update()

        for number, condition in enumerate(order):
            bar.set_postfix_str(f"{condition.label}, {number + 1} of {len(order)}")
            try:
                write_sampled(
                    files[condition.name],
                    prompts,
                    {"target_fingerprint": models.fingerprint(condition), **shared},
                    {"target": {"name": condition.label, "revision": None}},
                    lambda start, condition=condition: rows(condition, start),
                )
            except KeyboardInterrupt:
                raise KeyboardInterrupt(
                    f"Stopped with {bar.n:,} of {bar.total:,} responses in {files[condition.name].parent}; the same "
                    "command goes on."
                ) from None
            bar.update((number + 1) * len(prompts) - bar.n)  # those of a file that was whole


class _Models:
    """Conditions as Hugging Face models, one in memory at a time: those with the same MLPs share one."""

    ORDER = ("base", "target", "base MLPs", "target MLPs")

    def __init__(
        self, base: Checkpoint, target: Checkpoint, trained: AdapterSet, dtype: torch.dtype, device: torch.device
    ) -> None:
        self._checkpoints = {"base": base, "target": target}
        self._fingerprints = {name: checkpoint.fingerprint() for name, checkpoint in self._checkpoints.items()}
        self._trained = trained
        self._place = {"dtype": dtype, "device": device}
        self._held: tuple[str, PreTrainedModel] | None = None

    def key(self, condition: Condition) -> str:
        """Which model in memory a condition needs."""
        return condition.name if condition.name in self._checkpoints else f"{condition.mlps} MLPs"

    def of(self, condition: Condition) -> PreTrainedModel:
        """A condition's model; it is changed by the next call."""
        key = self.key(condition)
        if self._held is None or self._held[0] != key:
            self._held = None  # its memory, before the next one takes as much
            self._held = (key, self._load(condition))
        model = self._held[1]
        if isinstance(model, AdapterModel):
            set_adapters(model, condition.adapters(self._trained) or self._nothing())
        return model

    def _load(self, condition: Condition) -> PreTrainedModel:
        if condition.name in self._checkpoints:
            return load_target(self._checkpoints[condition.name], **self._place)
        assert condition.mlps is not None
        return adapter_model(**self._checkpoints, adapters=self._trained, mlps=condition.mlps, **self._place)

    def fingerprint(self, condition: Condition) -> str:
        """What the condition's weights are: of target and base as everywhere, else of both and the adapters."""
        if condition.name in self._fingerprints:
            return self._fingerprints[condition.name]
        adapters = condition.adapters(self._trained)
        parts = [condition.mlps, *self._fingerprints.values(), None if adapters is None else adapters.fingerprint()]
        return f"sha256:{hashlib.sha256(json.dumps(parts).encode()).hexdigest()}"

    def _nothing(self) -> AdapterSet:
        """Adapters that write nothing."""
        trained = self._trained
        return AdapterSet.fresh(
            trained.n_layers, trained.d_model, trained.n_features, trained.info, dtype=trained.dtype
        )
