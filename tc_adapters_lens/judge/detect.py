"""Detection scores: how well a feature's description tells texts in which it is active from others.

A judge describes each feature from exemplars, then sorts ten other texts by that description alone, five of which have
the feature. The score is the share sorted right; 0.5 is chance.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from pydantic import AfterValidator, Field, create_model

from tc_adapters_lens.errors import JudgeError
from tc_adapters_lens.evaluation.bootstrap import MIN_SEQUENCES, Bootstrap, estimate, ratio
from tc_adapters_lens.evaluation.estimate import Estimate
from tc_adapters_lens.features.store import FeatureStore
from tc_adapters_lens.judge.asking import Asker
from tc_adapters_lens.judge.detection_texts import N_TEXTS, FeatureTexts, Negatives, Sorting, TextKind, texts_of_layer
from tc_adapters_lens.judge.prompt_files import Prompts
from tc_adapters_lens.judge.request import Form, Request
from tc_adapters_lens.judge.sample import LayerSample
from tc_adapters_lens.models.names import SCORE_KINDS

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Description", "Detection", "ScoreKind", "Sorted", "labels"]

ScoreKind = Literal["top", "sampled", "shuffled"]
PLACEHOLDER = 'Active on a word such as "wait", where a line of reasoning is about to be doubted or checked again.'
"""Stands for a description of usual length where none has been made."""


def _not_blank(text: str) -> str:
    if not text.strip():
        raise ValueError("blank")
    return text


class Description(Form):
    """What a feature is active on."""

    description: Annotated[str, AfterValidator(_not_blank)]


Sorted: type[Form] = create_model(
    "Sorted",
    __base__=Form,
    **{f"text_{number}": (bool, Field(alias=str(number))) for number in range(1, 2 * N_TEXTS + 1)},  # type: ignore
)
"""Whether the feature is active in each of the numbered texts."""


@dataclass(frozen=True, eq=False)
class Detection:
    """Features and their texts, ready to be judged.

    Args:
        samples: features of each layer.
        texts: theirs.
        n_features: of a layer, judged or not.
        kinds: which scores to find.
        seed: of what is drawn.
        describe, detect: what the judge is asked.
    """

    samples: tuple[LayerSample, ...]
    texts: tuple[FeatureTexts, ...]
    n_features: int
    kinds: tuple[ScoreKind, ...]
    seed: int
    describe: Prompts
    detect: Prompts

    @classmethod
    def of(
        cls,
        store: FeatureStore,
        samples: Sequence[LayerSample],
        kinds: Sequence[ScoreKind],
        seed: int,
        negatives: Negatives,
        describe: Prompts,
        detect: Prompts,
    ) -> Detection:
        """With the texts of the samples' features; `negatives` as in `texts_of_layer`."""
        kinds = tuple(kind for kind in SCORE_KINDS if kind in kinds)
        wanted: set[TextKind] = {_text_kind(kind) for kind in kinds}
        texts = [
            one
            for sample in samples
            for one in texts_of_layer(store, sample.layer, sample.features, wanted, seed, negatives)
        ]
        return cls(tuple(samples), tuple(texts), store.info.n_features, kinds, seed, describe, detect)

    def requests(self) -> tuple[list[Request], list[Request]]:
        """What would be asked: to describe, and to detect, with a description that only has the usual length."""
        described = self._described()
        asked = self._detecting({(one.layer, one.feature): PLACEHOLDER for one in described})
        return [self._describing(one) for one in described], [request for *_, request, _ in asked]

    def run(self, asker: Asker) -> dict[str, Any]:
        """Ask, and count.

        Returns:
            `left_out`, `layers`, `overall` and `features`, plain values, as results hold them.
        Raises:
            JudgeError: as `Asker.ask`, or no feature has texts enough.
        """
        described = self._described()
        left_out = Counter(why for one in self.texts for why in one.left_out)
        if not described:
            why, n = left_out.most_common(1)[0]
            raise JudgeError(f"At least one feature must have texts to be tested on. Got none of {n:,}: {why}.")
        answers = asker.ask([self._describing(one) for one in described], "describing")
        descriptions = {
            (one.layer, one.feature): answer.description
            for one, answer in zip(described, answers, strict=True)
            if isinstance(answer, Description)
        }
        asked = self._detecting(descriptions)
        unparsable = {(one.layer, one.feature) for one in described} - set(descriptions)
        scores: dict[ScoreKind, dict[tuple[int, int], float]] = {kind: {} for kind in self.kinds}
        answers = asker.ask([request for *_, request, _ in asked], "detecting")
        for (kind, key, _, active), answer in zip(asked, answers, strict=True):
            if answer is None:
                unparsable.add(key)
            else:
                said = answer.model_dump(by_alias=True)
                scores[kind][key] = sum(said[str(i)] == truth for i, truth in enumerate(active, 1)) / len(active)
        return self._result(descriptions, scores, unparsable, left_out)

    def _described(self) -> list[FeatureTexts]:
        return [one for one in self.texts if one.sortings]

    def _describing(self, one: FeatureTexts) -> Request:
        return self.describe.request(
            Description,
            {"examples": [shown.facts() for shown in one.exemplars]},
            examples=[shown.with_marks for shown in one.exemplars],
        )

    def _sorting(self, description: str, sorting: Sorting) -> Request:
        return self.detect.request(
            Sorted,
            {"description": description, "texts": [{"tokens": list(shown.tokens)} for shown in sorting.texts]},
            description=description,
            texts=[shown.plain for shown in sorting.texts],
        )

    def _detecting(
        self, descriptions: Mapping[tuple[int, int], str]
    ) -> list[tuple[ScoreKind, tuple[int, int], Request, tuple[bool, ...]]]:
        """What is asked of every feature that has a description: score, feature, request, and the truth."""
        others = self._others(descriptions) if "shuffled" in self.kinds else {}
        asked = []
        for kind in self.kinds:
            by = others if kind == "shuffled" else {key: key for key in descriptions}
            for one in self.texts:
                key, sorting = (one.layer, one.feature), one.sortings.get(_text_kind(kind))
                if sorting is not None and key in by:
                    asked.append((kind, key, self._sorting(descriptions[by[key]], sorting), sorting.active))
        return asked

    def _others(self, descriptions: Mapping[tuple[int, int], str]) -> dict[tuple[int, int], tuple[int, int]]:
        """Another feature of its layer for each that can be scored; nobody's own, and each once."""
        others = {}
        for sample in self.samples:
            keys = [
                (one.layer, one.feature)
                for one in self.texts
                if one.layer == sample.layer and "top" in one.sortings and (one.layer, one.feature) in descriptions
            ]
            order = np.random.default_rng([self.seed, sample.layer]).permutation(len(keys)).tolist()
            if len(keys) > 1:
                others |= {keys[mine]: keys[its] for mine, its in zip(order, [*order[1:], order[0]], strict=True)}
        return others

    def _number(self, key: tuple[int, int]) -> int:
        return key[0] * self.n_features + key[1]

    def _result(
        self,
        descriptions: Mapping[tuple[int, int], str],
        scores: Mapping[ScoreKind, Mapping[tuple[int, int], float]],
        unparsable: set[tuple[int, int]],
        left_out: Mapping[str, int],
    ) -> dict[str, Any]:
        bootstrap = Bootstrap(seed=self.seed)

        def counted(samples: Iterable[LayerSample]) -> dict[str, Any]:
            samples = list(samples)
            keys = [(sample.layer, feature) for sample in samples for feature in sample.features.tolist()]
            return {
                "n_eligible": sum(sample.n_eligible for sample in samples),
                "n_sampled": len(keys),
                "n_scored": sum(any(key in of_kind for of_kind in scores.values()) for key in keys),
                "n_unparsable": sum(key in unparsable for key in keys),
                "scores": {
                    kind: _mean({self._number(key): of_kind[key] for key in keys if key in of_kind}, bootstrap)
                    for kind, of_kind in scores.items()
                },
            }

        return {
            "left_out": dict(left_out),
            "layers": [{"layer": sample.layer, **counted([sample])} for sample in self.samples],
            "overall": counted(self.samples),
            "features": [
                {
                    "layer": one.layer,
                    "feature": one.feature,
                    "description": descriptions.get((one.layer, one.feature)),
                    "scores": {kind: of_kind.get((one.layer, one.feature)) for kind, of_kind in scores.items()},
                }
                for one in self.texts
            ],
        }


def labels(features: Iterable[Mapping[str, Any]], name: str | None) -> pd.DataFrame:
    """A result's features as columns to join to their store: description, and scores by texts of its own.

    Args:
        features: of the result.
        name: of the result; ends the columns' names.
    """
    import pandas as pd

    features = list(features)
    ending = f"_{name}" if name else ""
    kinds = [kind for kind in features[0]["scores"] if kind != "shuffled"]
    columns: dict[str, Any] = {key: [one[key] for one in features] for key in ("layer", "feature")}
    columns[f"description{ending}"] = [one["description"] for one in features]
    for kind in kinds:
        columns[f"score_{kind}{ending}"] = np.array([one["scores"][kind] for one in features], dtype=float)
    return pd.DataFrame(columns)


def _text_kind(kind: ScoreKind) -> TextKind:
    return "top" if kind == "shuffled" else kind


def _mean(scores: Mapping[int, float], bootstrap: Bootstrap) -> dict[str, Any]:
    """How many scores there are, and their mean; its interval where there are enough.

    Args:
        scores: by a number of their own, which is what draws of the bootstrap follow.
    """
    values = np.array(list(scores.values()))
    if len(values) < MIN_SEQUENCES:
        mean = Estimate(float(values.mean())) if len(values) else None
    else:
        weights = bootstrap.weights(scores)
        mean = estimate(ratio(weights @ values, weights.sum(1)))
    return {"n": len(values), "mean": None if mean is None else mean.to_dict()}
