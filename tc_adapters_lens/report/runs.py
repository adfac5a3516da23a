"""Reads the runs of a report and checks that they can stand beside each other."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from tc_adapters_lens.errors import ConfigError, RunError
from tc_adapters_lens.evaluation.estimate import Estimate
from tc_adapters_lens.evaluation.record import EVALUATION_FILE
from tc_adapters_lens.report.evaluation_file import read_evaluation
from tc_adapters_lens.report.groups import Ablation, Group, ablations, config_of, sparsity_groups
from tc_adapters_lens.report.meaning import Result, ResultKind, read_results

CONFIG, METRICS = "config.yaml", "metrics.jsonl"


@dataclass(frozen=True)
class Run:
    """One run as it lies on the disk.

    label: the directory's name, with as many parents as it takes to tell it from the other runs.
    evaluation: evaluation.json.
    recipe: text of config.yaml, or the recipe in evaluation.json; "" where there is neither.
    metrics: rows of metrics.jsonl, in order of tokens.
    results: what was judged and measured of its features.
    """

    path: Path
    label: str
    evaluation: dict[str, Any]
    recipe: str
    metrics: tuple[dict[str, Any], ...]
    results: tuple[Result, ...] = ()

    @property
    def config(self) -> dict[str, Any]:
        """Values of the training configuration; {} for imported adapters."""
        return config_of(self.evaluation)

    def estimate(self, model: str, figure: str) -> Estimate:
        """A figure of one of the evaluation's models."""
        return Estimate.of(self.evaluation["models"][model][figure])


@dataclass(frozen=True)
class Runs:
    """Evaluated runs of one pair on the same tokens, at least one."""

    by_label: dict[str, Run]

    @cached_property
    def evaluations(self) -> dict[str, dict[str, Any]]:
        """Label -> evaluation, in the order given."""
        return {label: run.evaluation for label, run in self.by_label.items()}

    @cached_property
    def groups(self) -> tuple[Group, ...]:
        """Runs that differ in their seed alone, from sparse to dense."""
        return sparsity_groups(self.evaluations)

    @cached_property
    def ordered(self) -> tuple[Run, ...]:
        """All runs from sparse to dense, seeds of one recipe beside each other."""
        return tuple(self.by_label[label] for group in self.groups for label in group.labels)

    @cached_property
    def ablations(self) -> tuple[Ablation, ...]:
        """What was measured with and without bridging."""
        return ablations(self.evaluations)

    def results(self, kind: ResultKind) -> tuple[Result, ...]:
        """All runs' results of a kind, from sparse to dense."""
        return tuple(result for run in self.ordered for result in run.results if result.kind == kind)

    @property
    def first(self) -> dict[str, Any]:
        """An evaluation, for what all of them share: pair, tokens, target."""
        return next(iter(self.evaluations.values()))


def read_runs(paths: Sequence[str | Path]) -> Runs:
    """The runs in these directories.

    Raises:
        ConfigError: none named, or one twice.
        RunError: not a run of adapters, not evaluated, unreadable, or of another pair or other tokens than the first;
            or a result of its features is of other adapters.
        JudgeError: a judge's result is not what its file's name says.
    """
    if not paths:
        raise ConfigError("At least one run must be named. Got none. Add its directory: `tc-adapters report RUN`.")
    places = [Path(path) for path in paths]
    real = [place.expanduser().resolve() for place in places]
    for place, times in Counter(real).items():
        if times > 1:
            raise ConfigError(f"Each run must be named once. Got {place} {times} times. Name it once.")
    runs = [_read(place.expanduser(), label) for place, label in zip(places, _labels(real), strict=True)]
    for run in runs[1:]:
        _check_same(runs[0], run)
    return Runs({run.label: run for run in runs})


def _read(path: Path, label: str) -> Run:
    if not path.is_dir():
        raise RunError(f"A run must be a directory. Got {path}. Name the --out of `tc-adapters train`.")
    recipe = _text(path / CONFIG) if (path / CONFIG).is_file() else ""
    if (trained := _trained(recipe)) != "adapters":
        raise RunError(
            f"A report is on runs that trained adapters. Got {path}, which trained {trained} densely. "
            "Leave it out: evaluations of adapters hold its figures."
        )
    if not (path / EVALUATION_FILE).is_file():
        if not recipe:
            fix = "Name the --out of `tc-adapters train`"
            raise RunError(f"{path} is not a run: it has no {CONFIG} and no {EVALUATION_FILE}. {fix}.")
        raise RunError(f"{path} is not evaluated yet. Run `tc-adapters evaluate --run {path}` first.")
    evaluation = read_evaluation(path / EVALUATION_FILE)
    if not recipe and config_of(evaluation):
        recipe = yaml.safe_dump(config_of(evaluation), sort_keys=False)
    return Run(path, label, evaluation, recipe, _read_metrics(path / METRICS), read_results(path, label, evaluation))


def _trained(recipe: str) -> str:
    """What a config.yaml says was trained; adapters where it does not say."""
    try:
        config = yaml.safe_load(recipe)
    except yaml.YAMLError:
        return "adapters"
    return str(config.get("trained", "adapters")) if isinstance(config, dict) else "adapters"


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as broken:
        raise RunError(f"{path} must be UTF-8 text ({broken}). Restore it, or train again.") from broken


def _read_metrics(path: Path) -> tuple[dict[str, Any], ...]:
    """Rows that have a number of tokens; a last line that was cut off is left out."""
    lines = _text(path).splitlines() if path.is_file() else []
    rows = []
    for i, line in enumerate(lines):
        try:
            row = json.loads(line)
        except json.JSONDecodeError as broken:
            if i == len(lines) - 1:
                break
            raise RunError(f"{path} must have one JSON object a line. Line {i + 1} is not: {broken}.") from broken
        if isinstance(row, dict) and _is_number(row.get("details/n_training_samples")):
            rows.append({key: value for key, value in row.items() if _is_number(value)})
    return tuple(sorted(rows, key=lambda row: row["details/n_training_samples"]))


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _labels(places: Sequence[Path]) -> list[str]:
    """The shortest ends of the paths that tell each from all others."""
    labels = []
    for place in places:
        for n in range(1, len(place.parts) + 1):
            end = place.parts[-n:]
            if sum(other.parts[-n:] == end for other in places) == 1:
                break
        labels.append("/".join(end).replace("//", "/"))
    return labels


def _check_same(first: Run, other: Run) -> None:
    one, two = first.evaluation, other.evaluation
    for role in ("base", "target"):
        prints = [evaluation["pair"][f"{role}_fingerprint"] for evaluation in (one, two)]
        if prints[0] != prints[1]:
            names = [evaluation["pair"][f"{role}_name"] for evaluation in (one, two)]
            raise RunError(
                f"The runs of a report must have one pair. Got the {role} {names[0]} ({prints[0]}) in {first.path} "
                f"and {names[1]} ({prints[1]}) in {other.path}. Make a report of each."
            )
    for what, key in (("positions", "positions"), ("tokens", "tokens_fingerprint"), ("number of tokens", "n_tokens")):
        if one[key] != two[key]:
            raise RunError(
                f"The runs of a report must be measured on the same {what}. Got {one[key]} in {first.path} and "
                f"{two[key]} in {other.path}. Evaluate one of them again on the other's tokens."
            )
    if one["n_layers"] != two["n_layers"]:
        raise RunError(
            f"The runs of a report must have as many layers. Got {one['n_layers']} in {first.path} and "
            f"{two['n_layers']} in {other.path}. Make a report of each."
        )
