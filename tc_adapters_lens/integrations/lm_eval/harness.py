"""Tasks and runs of lm-eval: this package's task files, changed as the user says, through lm-eval's own evaluator."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from tc_adapters_lens import toy
from tc_adapters_lens.errors import ConfigError, DataError, did_you_mean
from tc_adapters_lens.evaluation.answers import opened_thinking

if TYPE_CHECKING:
    from lm_eval.api.model import LM
    from lm_eval.api.task import Task

__all__ = ["TASKS", "Benchmark", "Changes", "check_names", "evaluate", "load_task", "takes_chat_template"]

TASKS = Path(__file__).parent / "tasks"
NAMES = tuple(sorted(path.stem for path in TASKS.glob("*.yaml")))
_FILES = {".json": "json", ".jsonl": "json", ".parquet": "parquet", ".csv": "csv"}


@dataclass(frozen=True)
class Changes:
    """What of a task's file the user sets; None leaves it.

    temperature: 0 takes the likeliest token every time.
    data: file of problems (json, jsonl, parquet, csv), or a dataset with the splits of the task's own.
    """

    temperature: float | None = None
    max_new_tokens: int | None = None
    repeats: int | None = None
    data: str | None = None


@dataclass(frozen=True)
class Benchmark:
    """One task's result.

    accuracy: mean over problems and repeats, with its standard error over problems (None for a single problem).
    response_length: mean over responses, in tokens of their text, with its standard error over problems.
    n_answered, n_unclosed: responses that state an answer, and whose think block never ends.
    """

    task: str
    n_problems: int
    repeats: int
    accuracy: float
    accuracy_stderr: float | None
    response_length: float
    response_length_stderr: float | None
    n_responses: int
    n_answered: int
    n_unclosed: int


def check_names(names: Sequence[str]) -> None:
    """Raises ConfigError: an unknown task, or one named twice."""
    for name in names:
        if name not in NAMES:
            raise ConfigError(f"--tasks must be of {', '.join(NAMES)}. Got '{name}'.{did_you_mean(name, NAMES)}")
    if len(set(names)) < len(names):
        raise ConfigError(f"--tasks must name each task once. Got {','.join(names)}.")


def takes_chat_template(name: str) -> bool:
    """Tasks for a base model show worked problems as plain text in its place."""
    return not name.endswith("_base")


def load_task(name: str, changes: Changes) -> Task:
    """A task of this package with its problems.

    Raises:
        ConfigError: repeats of what is the same every time.
        DataError: its dataset is not here and cannot be fetched, or has other columns.
    """
    from datasets.exceptions import DatasetsError
    from lm_eval.tasks import TaskManager
    from lm_eval.tasks._yaml_loader import load_yaml

    data = str(toy.PROBLEMS) if changes.data is None and name == "toy" else changes.data
    config = load_yaml(TASKS / f"{name}.yaml") | ({} if data is None else _dataset(data))
    try:
        loaded = TaskManager(include_defaults=False).load([config])
    except DataError as error:
        raise DataError(f"{name}: {error}") from error
    except (DatasetsError, OSError, ValueError, KeyError) as error:
        why = " ".join(str(error).split()).rstrip(".")
        raise DataError(
            f"The problems of {name} must be in the cache of datasets, fetched from the hub, or in a file. Got: {why}. "
            f"Name a file of them: --data FILE"
        ) from error
    (task,) = loaded["tasks"].values()
    _change(task, changes)
    return task


def _dataset(data: str) -> dict[str, Any]:
    path = Path(data).expanduser()
    if not path.is_file():
        return {"dataset_path": str(path) if path.exists() else data, "dataset_name": None}
    if path.suffix not in _FILES:
        raise DataError(f"--data must be a file that ends in {', '.join(_FILES)}, or a dataset. Got {data}.")
    files = {"data_files": {"test": str(path.resolve())}}
    return {"dataset_path": _FILES[path.suffix], "dataset_name": None, "dataset_kwargs": files, "test_split": "test"}


def _change(task: Task, changes: Changes) -> None:
    drawn: dict[str, Any] = {}
    if changes.max_new_tokens is not None:
        drawn["max_gen_toks"] = changes.max_new_tokens
    if changes.temperature is not None:
        drawn |= {"temperature": changes.temperature, "do_sample": changes.temperature > 0}
    task.set_config("generation_kwargs", drawn, update=True)
    greedy = task.config.generation_kwargs["temperature"] == 0
    if greedy and (changes.repeats or 1) > 1:
        raise ConfigError(
            f"At temperature 0 every repeat is the same. Got --repeats {changes.repeats}; leave it out, or set "
            "--temperature."
        )
    if greedy or changes.repeats is not None:
        task.set_config("repeats", 1 if greedy else changes.repeats)


def evaluate(
    lm: LM, name: str, changes: Changes, *, limit: int | None, seed: int, n_tokens: Callable[[str], int]
) -> tuple[Benchmark, dict[str, Any], list[dict[str, Any]]]:
    """Run one task.

    Args:
        lm: of lm-eval.
        name: of the task.
        limit: the first so many problems; None: all.
        seed: of every draw of a model in this process.
        n_tokens: length of a response's text.
    Returns:
        The result in short; lm-eval's own, with response_length beside its metrics; every problem with its responses
        as lm-eval logs them. Both can be written as JSON.
    Raises:
        ConfigError: responses longer than the model's context.
        DataError: as `load_task`.
        RunError: the server stopped answering.
    """
    from lm_eval import evaluator
    from lm_eval.tasks import TaskManager
    from lm_eval.utils import handle_non_serializable

    task = load_task(name, changes)
    longest, context = task.config.generation_kwargs["max_gen_toks"], getattr(lm, "max_length", math.inf)
    if longest >= context:
        raise ConfigError(
            f"Responses must fit into the model's context of {context} tokens with their prompt. Got {longest} new "
            f"tokens in {name}; set a lower --max-new-tokens."
        )
    run: Any = evaluator.simple_evaluate  # its decorator hides its type
    # it asks git for the commit of whatever directory the user is in
    with patch.object(evaluator, "get_git_commit_hash", lambda: None):
        found = run(
            lm,
            tasks=[task],
            task_manager=TaskManager(include_defaults=False),  # else it reads the thousands of tasks there are
            limit=limit,
            log_samples=True,
            apply_chat_template=takes_chat_template(name),
            random_seed=seed,
            numpy_random_seed=seed,
            torch_random_seed=seed,
            fewshot_random_seed=seed,
        )
    found = json.loads(json.dumps(found, default=handle_non_serializable))
    (samples,) = found.pop("samples").values()
    metrics = found["results"][name]
    lengths = [_lengths(sample, n_tokens) for sample in samples]
    per_problem = [statistics.fmean(of_problem) for of_problem in lengths]
    metrics["response_length,all"] = statistics.fmean(per_problem)
    metrics["response_length_stderr,all"] = _stderr(per_problem)
    n_responses = sum(map(len, lengths))
    benchmark = Benchmark(
        task=name,
        n_problems=len(samples),
        repeats=task.config.repeats,
        accuracy=metrics["accuracy,all"],
        accuracy_stderr=_number(metrics["accuracy_stderr,all"]),
        response_length=metrics["response_length,all"],
        response_length_stderr=_number(metrics["response_length_stderr,all"]),
        n_responses=n_responses,
        n_answered=round(metrics["answered,all"] * n_responses),
        n_unclosed=round(metrics["unclosed,all"] * n_responses),
    )
    return benchmark, found, samples


def _lengths(sample: Mapping[str, Any], n_tokens: Callable[[str], int]) -> list[int]:
    (prompt, _), (responses,) = *sample["arguments"], sample["resps"]
    opened = opened_thinking(prompt)
    return [n_tokens(response[len(opened) :]) for response in responses]


def _stderr(values: Sequence[float]) -> float | str:
    """lm-eval's word where there is none."""
    return statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else "N/A"


def _number(value: float | str) -> float | None:
    return None if isinstance(value, str) else value
