"""Interventions from beginning to end: groups and controls, responses of every condition, figures, page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from tc_adapters_lens import toy
from tc_adapters_lens.cli.group import summary
from tc_adapters_lens.cli.intervention_kl import measure_kl
from tc_adapters_lens.cli.intervention_sampling import sample_conditions
from tc_adapters_lens.cli.output import write_json
from tc_adapters_lens.errors import ConfigError, DataError
from tc_adapters_lens.evaluation.answers import final_answer, same_answer
from tc_adapters_lens.evaluation.bootstrap import Bootstrap
from tc_adapters_lens.evaluation.degeneration import Degeneration
from tc_adapters_lens.evaluation.record import versions
from tc_adapters_lens.evaluation.responses import HESITATIONS, Figures, Judged, judge
from tc_adapters_lens.features.random_groups import random_like
from tc_adapters_lens.features.rules import BUILT_IN, built_in
from tc_adapters_lens.features.store import FeatureStore
from tc_adapters_lens.interventions.conditions import Condition, WithControls, plan
from tc_adapters_lens.models.adapter_set import AdapterSet
from tc_adapters_lens.models.checkpoints import Checkpoint
from tc_adapters_lens.models.feature_group import FeatureGroup
from tc_adapters_lens.models.pair_checks import pair_checks
from tc_adapters_lens.models.pair_info import PairInfo
from tc_adapters_lens.models.sampled_file import prompts_fingerprint, read_rows
from tc_adapters_lens.models.sampling import Sampling, fit
from tc_adapters_lens.training.prompts import Problem, load_problems

FORMAT, FORMAT_VERSION = "tc_adapters_lens.interventions", 1
RESULT_FILE, RESPONSES = "interventions.json", "responses"
PAGE_FILE, PICTURE_FILE = "index.html", "interventions.png"
LONGEST_SHOWN = 8000  # characters of a response on the page


@dataclass(frozen=True)
class Settings:
    """What to switch, in which models, on which problems.

    base, target, base_revision, target_revision: the pair, as `load_pair` takes it.
    adapters: directory or hub id.
    groups: files of groups, or names of built-in rules.
    store: directory of the adapters' feature store, for built-in rules and controls; None where there is none.
    problems, split, prompt_column, answer_column, chat_template, n: as in `load_problems`.
    sampling: of every response.
    draws: random controls of each group.
    scale, negate: factors.
    kl: whether to measure KL to the target on the target's own responses.
    bootstrap: of all intervals; its seed is also that of controls and of the choice of problems.
    batch_size: sequences in one forward pass of the KL.
    n_samples: problems whose responses the page shows.
    """

    base: str
    target: str
    adapters: str
    groups: list[str]
    problems: str
    store: Path | None = None
    base_revision: str | None = None
    target_revision: str | None = None
    split: str = "train"
    prompt_column: str | None = None
    answer_column: str | None = None
    chat_template: str | None = None
    n: int | None = None
    sampling: Sampling = field(default_factory=Sampling)
    draws: int = 3
    scale: list[float] = field(default_factory=list)
    negate: list[float] = field(default_factory=list)
    kl: bool = True
    bootstrap: Bootstrap = field(default_factory=Bootstrap)
    batch_size: int = 8
    n_samples: int = 12
    allow_other_pair: bool = False
    allow_tokenizer_mismatch: bool = False


def intervene(settings: Settings, out: Path, *, dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
    """Sample every condition's responses and measure them; what is there already is not sampled again.

    Args:
        out: directory, for responses/NAME.jsonl and interventions.json.
    Returns:
        What interventions.json holds.
    Raises:
        AdapterLensError: whatever is wrong with models, adapters, groups or problems; one line.
        KeyboardInterrupt: interrupted; says how far it came.
    """
    base = Checkpoint.open(settings.base, settings.base_revision)
    target = Checkpoint.open(settings.target, settings.target_revision)
    for check in pair_checks(base, target, settings.allow_tokenizer_mismatch):
        check.run()
    tokenizer = target.tokenizer
    if tokenizer is None:
        raise DataError(f"Responses are read as text. Got {target.name}, which has no tokenizer; save one beside it.")
    adapters = AdapterSet.from_pretrained(
        settings.adapters, pair=PairInfo.of(base, target), allow_other_pair=settings.allow_other_pair
    )
    groups, store = _groups(settings, adapters)
    conditions = plan(groups, settings.scale, settings.negate)
    problems, _ = load_problems(
        settings.problems,
        tokenizer,
        n=settings.n,
        seed=settings.bootstrap.seed,
        split=settings.split,
        column=settings.prompt_column,
        answer_column=settings.answer_column,
        chat_template=settings.chat_template,
    )
    settings.bootstrap.require(len(problems), "problems")
    prompts = [problem.tokens for problem in problems]
    sampling = fit(settings.sampling, prompts, target.config)
    files = {condition.name: out / RESPONSES / f"{condition.name}.jsonl" for condition in conditions}
    sample_conditions(conditions, base, target, adapters, prompts, sampling, files, dtype=dtype, device=device)

    parse = toy.parse_answer if settings.problems == "toy" else final_answer
    rule = Degeneration()
    judged: dict[str, list[Judged]] = {}
    for condition in tqdm(conditions, desc="reading responses", unit=" models", disable=None):
        rows = read_rows(files[condition.name])
        judged[condition.name] = [
            judge(row, problem.answer, tokenizer, parse, same_answer, rule=rule)
            for row, problem in zip(rows, problems, strict=True)
        ]
    kl: Mapping[str, np.ndarray] = {}
    if settings.kl:
        of_target = read_rows(files["target"])
        kl = measure_kl(settings, conditions, adapters, of_target, dtype=dtype, device=device)
    result = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "pair": adapters.info.pair.to_dict(),
        "adapters": settings.adapters,
        "adapters_fingerprint": adapters.fingerprint(),
        "versions": versions(),
        "groups": [_about_group(found, store, adapters.n_layers) for found in groups],
        "problems": {
            "source": settings.problems,
            "n": len(problems),
            "fingerprint": prompts_fingerprint(prompts),
            "n_with_answers": sum(problem.answer is not None for problem in problems),
        },
        "sampling": {
            name: getattr(sampling, name) for name in ("temperature", "top_p", "max_new_tokens", "seed", "batch_size")
        },
        "hesitation_words": list(HESITATIONS),
        "degeneration": rule.to_dict(),
        "replicates": settings.bootstrap.n_replicates,
        "conditions": _measure(conditions, judged, kl, settings.bootstrap),
        "samples": _samples(conditions, problems, judged, settings.n_samples),
    }
    write_json(out / RESULT_FILE, result)
    return result


def _groups(settings: Settings, adapters: AdapterSet) -> tuple[list[WithControls], FeatureStore | None]:
    """The groups asked for, each with its controls, and the store they were chosen in."""
    store = None if settings.store is None else FeatureStore.open(settings.store, adapters)
    groups = [_group(name, adapters, store) for name in settings.groups]
    if store is None and settings.draws:
        raise ConfigError(
            "Random controls are drawn by frequency, which a feature store knows. Got none; run `tc-adapters features` "
            "first, or give --draws 0."
        )
    found = []
    for group in groups:
        controls = (
            []
            if store is None
            else [random_like(store, group, settings.bootstrap.seed, draw) for draw in range(settings.draws)]
        )
        found.append(WithControls(group, controls))
    return found, store


def _group(name: str, adapters: AdapterSet, store: FeatureStore | None) -> FeatureGroup:
    if name not in BUILT_IN or Path(name).exists():
        if not Path(name).exists():
            raise ConfigError(
                f"--group must be the file of a group, as `tc-adapters group` writes it, or one of "
                f"{', '.join(BUILT_IN)}. Got {name}."
            )
        return FeatureGroup.load(name, adapters)
    if store is None:
        raise ConfigError(f"The rule {name} looks into a feature store. Got none; run `tc-adapters features` first.")
    return built_in(store, name)


def _about_group(found: WithControls, store: FeatureStore | None, n_layers: int) -> dict[str, Any]:
    """A group, and how near its controls are in frequency, where a store knows."""
    group, controls = found
    layers = group.by_layer()
    frequencies = [None if store is None else summary(store, one)["frequency"] for one in (group, *controls)]
    return {
        "name": group.name,
        "n_features": len(group),
        "per_layer": [len(layers.get(layer, ())) for layer in range(n_layers)],
        "frequency": frequencies[0],
        "control_frequencies": frequencies[1:],
        "rule": dict(group.rule),
        "features": [list(feature) for feature in group],
    }


def _measure(
    conditions: Sequence[Condition],
    judged: Mapping[str, Sequence[Judged]],
    kl: Mapping[str, np.ndarray],
    bootstrap: Bootstrap,
) -> list[dict[str, Any]]:
    """Every condition with its figures, and what they differ by from those of the condition it is held against."""
    figures = {
        name: Figures(responses, bootstrap, kl.get(name))
        for name, responses in tqdm(judged.items(), desc="measuring", unit=" models", disable=None)
    }
    found = []
    for condition in conditions:
        responses, against = judged[condition.name], condition.against
        found.append(
            {
                "name": condition.name,
                "label": condition.label,
                "kind": condition.kind,
                "group": None if condition.group is None else condition.group.name,
                "control_of": condition.control_of,
                "draw": condition.draw,
                "factor": condition.factor,
                "n_features": None if condition.group is None else len(condition.group),
                "against": against,
                "n_finished": sum(response.finished for response in responses),
                "n_degenerate": sum(response.truncated is not None for response in responses),
                "n_parsed": sum(response.parsed is not None for response in responses),
                "measured": figures[condition.name].measured(),
                "difference": None if against is None else figures[condition.name].difference(figures[against]),
            }
        )
    return found


def _samples(
    conditions: Sequence[Condition], problems: Sequence[Problem], judged: Mapping[str, Sequence[Judged]], n: int
) -> list[dict[str, Any]]:
    """The first problems with every condition's response, of controls the first draw's."""
    shown = [condition.name for condition in conditions if not condition.draw]
    return [
        {
            "problem": number,
            "question": problem.question,
            "answer": problem.answer,
            "responses": {name: judged[name][number].shortened(LONGEST_SHOWN).to_dict() for name in shown},
        }
        for number, problem in enumerate(problems[:n])
    ]
