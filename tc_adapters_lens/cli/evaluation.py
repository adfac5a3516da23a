"""An evaluation from beginning to end: models, text, baselines, measurements."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from tc_adapters_lens.cli import baselines
from tc_adapters_lens.cli.of_run import load_named_pair
from tc_adapters_lens.cli.output import write_json
from tc_adapters_lens.cli.text import named_text, require_fitting
from tc_adapters_lens.errors import DataError
from tc_adapters_lens.evaluation.account import account_variants
from tc_adapters_lens.evaluation.bootstrap import Bootstrap
from tc_adapters_lens.evaluation.faithfulness import Faithfulness, measure_faithfulness
from tc_adapters_lens.evaluation.partial import PartialKL, measure_partial
from tc_adapters_lens.evaluation.record import EVALUATION_FILE, Evaluation, MeasuredOn, Swept
from tc_adapters_lens.evaluation.variants import (
    Variant,
    base_variant,
    reverse_variant,
    shuffled_order,
    shuffled_variant,
)
from tc_adapters_lens.models.adapter_set import AdapterSet
from tc_adapters_lens.models.diff_transformer import HookedDiffTransformer
from tc_adapters_lens.models.pair import load_base
from tc_adapters_lens.models.parts import check_parts_fit
from tc_adapters_lens.models.progress import Progress
from tc_adapters_lens.models.sampled_file import read_sampled
from tc_adapters_lens.training.config import DataConfig
from tc_adapters_lens.training.data import load_sequences
from tc_adapters_lens.training.report import DataReport
from tc_adapters_lens.training.sequences import TokenSequences

BASELINES = "baselines"
_NEED_BASE = ("base", "reverse")


@dataclass(frozen=True)
class Settings:
    """What to evaluate, on what, beside what.

    base, target, base_revision, target_revision: the pair, as `load_pair` takes it.
    adapters: directory or hub id.
    data: the text; path "toy" is the built-in pair's evaluation sequences.
    baselines: of `baselines.BASELINES`.
    account: also swap the target's parts into the base.
    skyline_lrs: learning rates of the skyline; None: shares of the adapters'.
    partial, partial_sequences: whether to replace layers partly, and on how many sequences (None: all).
    bootstrap: of all intervals; its seed is also that of the shuffling and of the choice of sequences.
    batch_size: sequences in one forward pass.
    allow_other_pair, allow_tokenizer_mismatch: as `AdapterSet.load`, `load_pair`.
    """

    base: str
    target: str
    adapters: str
    data: DataConfig
    base_revision: str | None = None
    target_revision: str | None = None
    baselines: list[str] | tuple[str, ...] = ("base",)
    account: bool = False
    skyline_lrs: list[float] | None = None
    partial: bool = True
    partial_sequences: int | None = None
    bootstrap: Bootstrap = field(default_factory=Bootstrap)
    batch_size: int = 8
    allow_other_pair: bool = False
    allow_tokenizer_mismatch: bool = False


def evaluate(
    settings: Settings,
    run: Path | None,
    *,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    model: HookedDiffTransformer | None = None,
) -> Evaluation:
    """Measure adapters; train the baselines that have to be trained and are not there yet.

    A run gets the result as its evaluation.json.

    Args:
        settings: what to evaluate.
        run: the run's directory, for the result, trained baselines and going on after a kill; None: none of these.
        model: the pair, already loaded.
    Raises:
        AdapterLensError: whatever is wrong with models, adapters, text or baselines; one line.
    """
    model = model or load_named_pair(settings, dtype, device)
    adapters = AdapterSet.from_pretrained(
        settings.adapters, device=device, pair=model.pair, allow_other_pair=settings.allow_other_pair
    )
    sequences, report, sampling = load_text(settings.data, model)
    settings.bootstrap.require(len(sequences))
    base = None
    if settings.account or any(name in settings.baselines for name in _NEED_BASE):
        place = {"base_revision": settings.base_revision, "dtype": dtype, "device": device}
        base = load_base(settings.base, pair=model, **place)
        check_parts_fit(model, base)

    variants: dict[str, Variant] = {}
    skylines: dict[float, Variant] = {}
    no_bridging = order = None
    config = None
    if trained := [name for name in settings.baselines if name in baselines.TRAINED]:
        assert run is not None, "the command line has seen to it"
        config = baselines.recipe_config(adapters.info.recipe, trained)
    for name in settings.baselines:
        if name == "base" and base is not None:
            variants[name] = base_variant(model, base)
        elif name == "reverse" and base is not None:
            variants[name] = reverse_variant(model, base)
        elif name == "shuffled":
            order = shuffled_order(adapters.n_layers, settings.bootstrap.seed)
            variants[name] = shuffled_variant(model, adapters, order)
        elif config is not None and run is not None:
            print(f"\nbaseline {name}: {baselines.BASELINES[name]}")
            out = run / BASELINES / name
            if name == "norm_refit":
                variants[name] = baselines.train_norm_refit(config, out, model)
            elif name == "skyline":
                skylines = baselines.train_skylines(config, out, model, settings.skyline_lrs)
                variants |= {_skyline(lr): variant for lr, variant in skylines.items()}
            elif name == "no_bridging":
                no_bridging = baselines.train_no_bridging(config, out, model).to(device=device)

    measure = _Measurer(settings, model, sequences, run)
    swapped = account_variants(model, base) if settings.account and base is not None else None
    found = measure.faithfulness("adapters", adapters, variants, swapped)
    partial_kl = measure.partial("adapters", adapters)
    ablation = None
    if no_bridging is not None:
        ablation = measure.faithfulness("no_bridging", no_bridging), measure.partial("no_bridging", no_bridging)

    sweep = [Swept(lr, found.models[_skyline(lr)].kl, found.models[_skyline(lr)].top1_error) for lr in skylines]
    models = {name: agreement for name, agreement in found.models.items() if not name.startswith(_skyline(""))}
    if ablation is not None:
        models["no_bridging"] = ablation[0].models["replacement"]
    if sweep:
        best = min(sweep, key=lambda swept: swept.kl.value)
        models["skyline"] = found.models[_skyline(best.lr)]
    evaluation = Evaluation(
        faithfulness=replace(found, models=models),
        partial=partial_kl,
        measured_on=MeasuredOn(
            positions=settings.data.loss_on,
            tokens=settings.data.path,
            tokens_fingerprint=sequences.fingerprint(),
            data=report.to_dict(),
            sampling=sampling,
        ),
        pair=model.pair,
        adapters=settings.adapters,
        recipe=adapters.info.recipe,
        shuffle=order,
        skyline_sweep=sweep,
        no_bridging=ablation,
    )
    if run is not None:
        write_json(run / EVALUATION_FILE, evaluation.to_dict())
    return evaluation


def load_text(
    data: DataConfig, model: HookedDiffTransformer
) -> tuple[TokenSequences, DataReport, dict[str, Any] | None]:
    """The sequences to measure on, what became of the rows, and how they were sampled if `generate` did it.

    Raises:
        DataError: no such text, nothing usable in it, sequences longer than the context, or sampled from another model.
    """
    data = named_text(data)
    sampling = read_sampled(data.path)
    if sampling is not None and sampling["settings"]["target_fingerprint"] != model.pair.target_fingerprint:
        raise DataError(
            f"The text must be sampled from the target, {model.pair.target_name}. Got {data.path}, which was sampled "
            f"from {sampling['target']['name']}. Sample from this target: `tc-adapters generate`."
        )
    sequences, report = load_sequences(data, model.tokenizer, model.cfg.d_vocab, model.cfg.n_ctx)
    require_fitting(data, report, model)
    return sequences, report, sampling


def batches(
    sequences: TokenSequences, batch_size: int, what: str = "evaluating", chosen: np.ndarray | None = None
) -> Iterator[tuple[Tensor, Tensor]]:
    """Tokens and mask of the sequences (of the chosen ones), those of similar length together, with a progress bar."""
    chosen = np.arange(len(sequences)) if chosen is None else chosen
    order = chosen[sequences.lengths[chosen].argsort(kind="stable")[::-1]]
    for start in tqdm(range(0, len(order), batch_size), desc=what, unit=" batches", disable=None):
        batch = sequences.batch(order[start : start + batch_size])
        yield batch.tokens, batch.mask


class _Measurer:
    """Measures adapter sets on the same text, going on where a killed evaluation was."""

    def __init__(
        self, settings: Settings, model: HookedDiffTransformer, sequences: TokenSequences, run: Path | None
    ) -> None:
        self.settings, self.model, self.sequences, self.run = settings, model, sequences, run

    def faithfulness(
        self,
        name: str,
        adapters: AdapterSet,
        variants: Mapping[str, Variant] | None = None,
        swapped: Mapping[str, Variant] | None = None,
    ) -> Faithfulness:
        progress = self._progress(name, adapters, [*(variants or {}), *(swapped or {})])
        every = batches(self.sequences, self.settings.batch_size, f"measuring {name}")
        return measure_faithfulness(self.model, adapters, every, self.settings.bootstrap, variants, swapped, progress)

    def partial(self, name: str, adapters: AdapterSet) -> PartialKL | None:
        if not self.settings.partial:
            return None
        chosen, most = None, self.settings.partial_sequences
        if most is not None and most < len(self.sequences):
            self.settings.bootstrap.require(most)
            generator = np.random.Generator(np.random.PCG64(self.settings.bootstrap.seed))
            chosen = generator.choice(len(self.sequences), most, replace=False)
        some = batches(self.sequences, self.settings.batch_size, f"replacing layers, {name}", chosen)
        progress = self._progress(f"{name}-partial", adapters, [most])
        return measure_partial(self.model, adapters, some, self.settings.bootstrap, progress)

    def _progress(self, name: str, adapters: AdapterSet, what: list[Any]) -> Progress:
        if self.run is None:
            return Progress()
        key = {
            "pair": self.model.pair.to_dict(),
            "dtype": str(self.model.cfg.dtype),
            "adapters": adapters.fingerprint(),
            "tokens": self.sequences.fingerprint(),
            "batch_size": self.settings.batch_size,
            "bootstrap": [self.settings.bootstrap.n_replicates, self.settings.bootstrap.seed],
            "what": what,
        }
        return Progress(self.run / f".evaluation-{name}.partial.safetensors", json.dumps(key, sort_keys=True))


def _skyline(lr: float | str) -> str:
    return f"skyline lr {lr}"
