"""What a run's features mean, as far as it was judged or measured: RUN/judge/*.json and RUN/overlap.json."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, get_args

from tc_adapters_lens.errors import RunError
from tc_adapters_lens.features.records import ModelKind
from tc_adapters_lens.judge.results import results
from tc_adapters_lens.models.json_files import read_result_of
from tc_adapters_lens.models.names import ADAPTERS, OVERLAP, OVERLAP_FORMAT, OVERLAP_VERSION, SCORE_KINDS, SET_FILE
from tc_adapters_lens.report.checks import (
    Check,
    WrongValue,
    fields,
    is_count,
    is_estimate,
    is_number,
    is_object,
    is_share,
    is_text,
    list_of,
    one_of,
    optional,
    record,
    values_of,
)
from tc_adapters_lens.report.shown_text import name as shown_name

OVERLAP_MODELS = ("target", "base")

_DIGEST = 12  # characters of a digest that are shown

ResultKind = Literal["classify", "detect", "overlap"]
_MODELS = {"replacement": "adapter features", "target": "target's neurons", "base": "base's neurons"}


@dataclass(frozen=True)
class Result:
    """One result file.

    run: label of its run.
    name: the file's name without `.json`.
    """

    kind: ResultKind
    run: str
    name: str
    values: dict[str, Any]

    @property
    def model(self) -> ModelKind:
        """Whose features it is about."""
        return "replacement" if self.kind == "overlap" else self.values["store"]["model"]

    @property
    def whose(self) -> str:
        """The same in words, with what tells the file from others of its kind and model."""
        own = self.name.removeprefix(f"{self.kind}-{self.model}").removeprefix("-")
        return _MODELS[self.model] + (f", {own}" if own and self.kind != "overlap" else "")

    @property
    def judge(self) -> str:
        """Who answered: everything its replies depend on, in words."""
        return (
            shown_name(", ".join(f"{key} {_word(value)}" for key, value in self.values["judge"].items())) or "not known"
        )

    @property
    def prompts(self) -> str:
        """By which prompts, in words."""
        named = self.values["prompts"].items()
        return shown_name(
            "; ".join(f"{task}: {prompts['name']} ({prompts['sha256'][:_DIGEST]})" for task, prompts in named)
        )

    @property
    def comparable(self) -> tuple[str, ...]:
        """What must be the same for two results' figures to be put side by side."""
        if self.kind == "overlap":
            return ()
        shas = (f"{task} {prompts['sha256']}" for task, prompts in sorted(self.values["prompts"].items()))
        return json.dumps(self.values["judge"], sort_keys=True), *shas, str(self.values.get("negatives", ""))

    def to_dict(self) -> dict[str, Any]:
        """The figures, for JSON; what was said of single features stays in the file."""
        return {key: value for key, value in self.values.items() if key != "features"}


def read_results(run: Path, label: str, evaluation: Mapping[str, Any]) -> tuple[Result, ...]:
    """All results of an evaluated run.

    Raises:
        JudgeError: a file of RUN/judge is not what its name says.
        RunError: a file cannot be read or drawn, or is of another pair or other adapters than the run's.
    """

    @cache
    def own_adapters() -> str | None:
        from tc_adapters_lens.models.adapter_fingerprint import stored_fingerprint  # torch, for runs that were judged

        return stored_fingerprint(run / ADAPTERS) if (run / ADAPTERS / SET_FILE).is_file() else None

    found: list[Result] = []
    for result, path, about in _files(run, label):
        again = f"Make it again: `tc-adapters {'' if result.kind == 'overlap' else 'judge '}{result.kind} --run {run}`"
        for role in ("base", "target"):
            own, other = (pair[f"{role}_fingerprint"] for pair in (evaluation["pair"], about["pair"]))
            if own != other:
                raise RunError(f"{path} must be of the run's pair, whose {role} is {own}. Got {other}. {again}.")
        print_ = about["adapters_fingerprint"]
        if print_ is not None and own_adapters() not in (None, print_):
            raise RunError(
                f"{path} must be of the adapters in {run / ADAPTERS} ({own_adapters()}). Got one of others "
                f"({print_}). {again}."
            )
        found.append(result)
    order = get_args(ModelKind)
    return tuple(sorted(found, key=lambda one: (order.index(one.model), one.name)))


def _files(run: Path, label: str) -> Iterator[tuple[Result, Path, Mapping[str, Any]]]:
    """Every result, its file, and where it says whose it is; its values are checked."""
    for kind, check in _JUDGED.items():
        for path, values in results(run, kind):
            _checked(path, values, check)
            yield Result(kind, label, path.stem, values), path, values["store"]
    path = run / OVERLAP
    if not path.is_file():
        return
    values = read_result_of("overlap", path, OVERLAP_FORMAT, OVERLAP_VERSION, RunError)
    _checked(path, values, _overlap)
    yield Result("overlap", label, path.stem, values), path, values


def _checked(path: Path, values: dict[str, Any], check: Callable[[dict[str, Any]], None]) -> None:
    try:
        check(values)
    except WrongValue as wrong:
        raise RunError(f"{path}: {wrong}. Make it again.") from wrong


_PAIR = record(base_fingerprint=is_text, target_fingerprint=is_text)
_STORE = record(
    model=one_of(*get_args(ModelKind)), pair=_PAIR, n_layers=is_count, adapters_fingerprint=optional(is_text)
)
_PROMPTS = record(name=is_text, sha256=is_text)


def _judged(values: dict[str, Any], *tasks: str) -> None:
    fields(
        values,
        "",
        {
            "store": _STORE,
            "judge": is_object,
            "prompts": record(**dict.fromkeys(tasks, _PROMPTS)),
            **dict.fromkeys(("repeat", "seed", "per_layer", "min_frequency"), is_number),
        },
    )


def _classify(values: dict[str, Any]) -> None:
    _judged(values, "classify")
    fields(values, "", {"n_examples": is_count, "classes": list_of(record(name=is_text, group=is_text))})
    counted = record(n=is_count, share=optional(is_estimate))
    measured = {
        **dict.fromkeys(("n_eligible", "n_sampled", "n_unparsable"), is_count),
        "classes": record(**{one["name"]: counted for one in values["classes"]}),
        "groups": values_of(counted),
    }
    fields(values, "", {"layers": list_of(record(layer=is_count, **measured)), "overall": record(**measured)})


def _detect(values: dict[str, Any]) -> None:
    _judged(values, "describe", "detect")
    measured = {
        **dict.fromkeys(("n_eligible", "n_sampled", "n_scored", "n_unparsable"), is_count),
        "scores": values_of(record(n=is_count, mean=optional(is_estimate)), SCORE_KINDS),
    }
    one = record(layer=is_count, feature=is_count, scores=values_of(optional(is_share), SCORE_KINDS))
    fields(
        values,
        "",
        {
            **dict.fromkeys(("n_exemplars", "n_texts"), is_count),
            "negatives": is_text,
            "left_out": values_of(is_count),
            "layers": list_of(record(layer=is_count, **measured)),
            "overall": record(**measured),
            "features": list_of(one),
        },
    )


def _overlap(values: dict[str, Any]) -> None:
    fields(
        values,
        "",
        {
            "pair": _PAIR,
            "adapters_fingerprint": optional(is_text),
            **dict.fromkeys(("tokens", "tokens_fingerprint", "positions"), is_text),
            **dict.fromkeys(("n_sequences", "n_positions", "n_layers", "n_features", "min_active"), is_count),
            "edges": list_of(is_number),
        },
    )
    edges, n_layers = values["edges"], values["n_layers"]
    if len(edges) < 2 or any(after <= before for before, after in pairwise(edges)):
        raise WrongValue("edges must be two or more, and increase")
    measured: dict[str, Check] = {
        "n_features": is_count,
        "mean": optional(is_estimate),
        "median": optional(is_number),
        "histogram": list_of(is_count, len(edges) - 1),
    }
    model = record(layers=list_of(record(layer=is_count, **measured), n_layers), overall=record(**measured))
    chance = record(overall=optional(is_number), layers=list_of(optional(is_number), n_layers))
    fields(values, "", {"models": values_of(model, OVERLAP_MODELS), "chance": chance})


_JUDGED: dict[Literal["classify", "detect"], Callable[[dict[str, Any]], None]] = {
    "classify": _classify,
    "detect": _detect,
}


def labels(found: Sequence[Result], several_runs: bool) -> list[str]:
    """Names by which results of one kind are told apart, and their judges where these differ."""
    judges = short_judges(found)
    several = len(set(judges)) > 1
    return [
        ", ".join(filter(None, (one.whose, one.run if several_runs else "", f"judge {judge}" if several else "")))
        for one, judge in zip(found, judges, strict=True)
    ]


def short_judges(found: Sequence[Result]) -> list[str]:
    """Every result's judge by its model's name, or in full where that does not tell them apart; "" of overlap."""
    judged = [one for one in found if one.kind != "overlap"]
    named = {
        one.judge: shown_name(str(one.values["judge"].get("model", one.values["judge"].get("kind", ""))))
        for one in judged
    }
    short = all(named.values()) and len(set(named.values())) == len(named)
    return ["" if one.kind == "overlap" else named[one.judge] if short else one.judge for one in found]


def _word(value: Any) -> str:
    """A digest by its first figures, other texts as they are."""
    if not isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    return value[:_DIGEST] if re.fullmatch(r"[0-9a-f]{32,}", value) else value
