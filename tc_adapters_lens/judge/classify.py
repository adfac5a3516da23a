"""Features sorted into classes by a judge, and how many of each class there are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd
from pydantic import create_model

from tc_adapters_lens.errors import ConfigError
from tc_adapters_lens.evaluation.shares import share
from tc_adapters_lens.features.store import FeatureStore
from tc_adapters_lens.features.store_files import LABELS
from tc_adapters_lens.judge.asking import Asker
from tc_adapters_lens.judge.prompt_files import FeatureClass, Prompts
from tc_adapters_lens.judge.request import Form, Request
from tc_adapters_lens.judge.sample import LayerSample
from tc_adapters_lens.judge.texts import show_example, token_texts

__all__ = [
    "N_TOKENS",
    "ClassLabels",
    "Classified",
    "answer_form",
    "class_requests",
    "classify",
    "groups_of",
    "shares",
]

N_TOKENS = 10
"""Promoted and inhibited tokens that a judge is shown, of each."""


@dataclass(frozen=True)
class Classified:
    """A feature with what the judge said: its class and why; both None where no reply had the form asked for."""

    layer: int
    feature: int
    name: str | None
    reason: str | None

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for results."""
        return {"layer": self.layer, "feature": self.feature, "class": self.name, "reason": self.reason}


@dataclass(frozen=True)
class ClassLabels:
    """Where classes are kept in a store: a table of labels, with one column for them."""

    table: str
    column: str

    @classmethod
    def named(cls, name: str | None) -> ClassLabels:
        """`classes` and `class`, or those of a result that has a name."""
        return cls("classes", "class") if name is None else cls(f"classes_{name}", f"class_{name}")

    def require_free(self, store: FeatureStore) -> None:
        """Whether they can be written; older ones of that table are replaced.

        Raises:
            ConfigError: other labels have such a column.
        """
        if self.column in store.column_names and not (store.directory / LABELS / f"{self.table}.parquet").is_file():
            raise ConfigError(
                f"The store must have no column {self.column} of other labels. Got one in {store.directory}; "
                "keep these classes beside it with another --name."
            )

    def write(self, store: FeatureStore, classified: Sequence[Classified]) -> None:
        """Join classes to the store's table; features without one get none."""
        rows = [(one.layer, one.feature, one.name) for one in classified if one.name is not None]
        store.add_labels(self.table, pd.DataFrame(rows, columns=["layer", "feature", self.column]))


def answer_form(classes: Sequence[FeatureClass]) -> type[Form]:
    """A reason, then one of the classes: a model that writes in this order thinks before it chooses."""
    choice = Literal[tuple(one.name for one in classes)]  # pyright: ignore[reportInvalidTypeForm]
    fields: dict[str, Any] = {"reason": (str, ...), "class": (choice, ...)}
    return create_model("FeatureClass", __base__=Form, **fields)


def class_requests(
    store: FeatureStore, samples: Sequence[LayerSample], prompts: Prompts, n_examples: int
) -> list[Request]:
    """One request per feature, in the order of the samples.

    Args:
        samples: which features.
        prompts: of the task `classify`.
        n_examples: how many of its highest examples are shown, at most.
    Raises:
        JudgeError: the prompts' templates do not work.
    """
    form = answer_form(prompts.classes)
    return [_request(store, layer, feature, prompts, n_examples, form) for layer, feature in _keys(samples)]


def classify(asker: Asker, requests: Sequence[Request], samples: Sequence[LayerSample]) -> list[Classified]:
    """What the judge says to `class_requests` of these samples.

    Raises:
        JudgeError: it cannot be asked, or its budget is spent.
    """
    answers = asker.ask(requests, "features classified")
    return [
        Classified(layer, feature, None, None)
        if answer is None
        else Classified(layer, feature, getattr(answer, "class"), getattr(answer, "reason"))  # noqa: B009
        for (layer, feature), answer in zip(_keys(samples), answers, strict=True)
    ]


def shares(
    classes: Sequence[FeatureClass], samples: Sequence[LayerSample], classified: Sequence[Classified]
) -> dict[str, Any]:
    """Counts of classes and groups per layer and overall, with 95% intervals of their shares.

    Shares are of the features that have a class; those without are counted beside them.
    """
    layers = []
    for sample in samples:
        own = [one for one in classified if one.layer == sample.layer]
        layers.append({"layer": sample.layer, "n_eligible": sample.n_eligible, **_counts(classes, own)})
    eligible = {"n_eligible": sum(sample.n_eligible for sample in samples)}
    return {"layers": layers, "overall": {**eligible, **_counts(classes, classified)}}


def groups_of(classes: Sequence[FeatureClass]) -> dict[str, list[str]]:
    """Groups with the names of their classes; not those that are one class under its own name."""
    groups: dict[str, list[str]] = {}
    for one in classes:
        groups.setdefault(one.group, []).append(one.name)
    return {group: names for group, names in groups.items() if names != [group]}


def _keys(samples: Sequence[LayerSample]) -> Iterator[tuple[int, int]]:
    return ((sample.layer, feature) for sample in samples for feature in sample.features.tolist())


def _request(
    store: FeatureStore, layer: int, feature: int, prompts: Prompts, n_examples: int, form: type[Form]
) -> Request:
    found = store[layer, feature]
    examples = found.top[:n_examples]
    shown = [show_example(store, example) for example in examples]
    peaks = [example.position - example.start for example in examples]
    promoted, inhibited = (token_texts(effects, N_TOKENS) for effects in (found.promoted, found.inhibited))
    facts = {
        "classes": [one.name for one in prompts.classes],
        "examples": [{**one.facts(), "peak": peak} for one, peak in zip(shown, peaks, strict=True)],
        "promoted": promoted,
        "inhibited": inhibited,
    }
    return prompts.request(
        form,
        facts,
        examples=[one.with_marks for one in shown],
        peaks=[one.tokens[peak] for one, peak in zip(shown, peaks, strict=True)],
        promoted=promoted,
        inhibited=inhibited,
    )


def _counts(classes: Sequence[FeatureClass], classified: Sequence[Classified]) -> dict[str, Any]:
    by_class = Counter(one.name for one in classified if one.name is not None)

    def counted(among: list[str]) -> dict[str, Any]:
        n = sum(by_class[name] for name in among)
        found = share(n, by_class.total())
        return {"n": n, "share": None if found is None else found.to_dict()}

    return {
        "n_sampled": len(classified),
        "n_unparsable": len(classified) - by_class.total(),
        "classes": {one.name: counted([one.name]) for one in classes},
        "groups": {group: counted(among) for group, among in groups_of(classes).items()},
    }
