"""The built-in pair with features planted in it, from the feature pass to classes and detection scores.

A planted feature fires at every occurrence of one token and nowhere else, and promotes one token: what a judge should
say of it is known beforehand. Its encoder is found by logistic regression on the MLP's input in layer 0, which
adapters cannot change.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from tc_adapters_lens import AdapterSet, FeatureStore, load_pair, toy
from tc_adapters_lens.cli.main import main
from tc_adapters_lens.models.adapter_set import AdapterSetInfo

N_SEQUENCES = 120


class Plant(NamedTuple):
    """fires at, promotes: tokens. label: the class that a judge should give."""

    fires_at: str
    promotes: str
    label: str


PLANTS = (
    Plant(".", " Wait", "reasoning output"),
    Plant("?", " But", "reasoning output"),
    Plant(" Wait", " the", "reasoning input"),
    Plant(" Hmm", " the", "reasoning input"),
    Plant(" 9", " 10", "domain"),
    Plant(" 4", " 5", "domain"),
    Plant(" +", " 3", "domain"),
    Plant(" are", " the", "general language"),
    Plant(" more", " the", "general language"),
    Plant("The", " the", "general language"),
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the planted adapters' features, as `features` finds them."""
    directory = tmp_path_factory.mktemp("planted")
    text = directory / "text.jsonl"
    lines = toy.EVAL_TOKENS.read_text(encoding="utf-8").splitlines()[:N_SEQUENCES]
    text.write_text("\n".join(lines) + "\n", encoding="utf-8")
    _plant([json.loads(line)["input_ids"] for line in lines]).save(directory / "adapters")
    arguments = ["--base", "toy:base", "--target", "toy:target", "--adapters", str(directory / "adapters")]
    out = ["--tokens", str(text), "--out", str(directory / "features"), "--batch-size", "32"]
    assert main(["features", *arguments, *out, "--before", "10", "--after", "5"]) == 0
    return directory


def _plant(sequences: list[list[int]]) -> AdapterSet:
    pair = load_pair("toy:base", "toy:target")
    assert pair.tokenizer is not None
    inputs = []
    with torch.no_grad():
        for ids in sequences:
            name = "blocks.0.mlp.hook_in"
            _, cache = pair.run_with_cache(torch.tensor([ids]), names_filter=name, stop_at_layer=1)
            inputs.append(cache[name][0].double())
    x, tokens = torch.cat(inputs), torch.tensor([token for ids in sequences for token in ids])
    adapters = AdapterSet.fresh(pair.cfg.n_layers, pair.cfg.d_model, len(PLANTS), AdapterSetInfo(pair.pair))
    with torch.no_grad():
        for layer, adapter in adapters.items():
            adapter.b_enc.fill_(-1e6)  # silent but in layer 0
            for index, plant in enumerate(PLANTS):
                fires_at, promotes = (_token(pair.tokenizer, text) for text in (plant.fires_at, plant.promotes))
                adapter.W_dec[index] = 1e-4 * pair.W_U[:, promotes] / pair.ln_final.w
                if layer == 0:
                    direction, bias = _separate(x, tokens == fires_at)
                    adapter.W_enc[:, index], adapter.b_enc[index] = direction, bias
    return adapters


def _separate(x: torch.Tensor, there: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights and bias of a unit that is above zero at some inputs and not at the others, by logistic regression."""
    weights = torch.zeros(x.shape[1] + 1, dtype=x.dtype, requires_grad=True)
    balance = torch.where(there, 0.5 / there.sum(), 0.5 / (~there).sum())
    optimizer = torch.optim.LBFGS([weights], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        scores = (x @ weights[:-1] + weights[-1]) * torch.where(there, 1, -1)
        value = (balance * torch.nn.functional.softplus(-scores)).sum() + 1e-7 * weights.square().sum()
        value.backward()
        return value

    with torch.enable_grad():
        optimizer.step(loss)  # type: ignore[arg-type]
    scores = x @ weights[:-1].detach()
    lowest, highest = scores[there].min(), scores[~there].max()
    assert lowest > highest, "this token cannot be told from others"
    return weights[:-1].detach().float(), -(lowest + highest).float() / 2


def _token(tokenizer: Any, text: str) -> int:
    (token,) = tokenizer.encode(text, add_special_tokens=False)
    return token


def _result(run: Path, name: str) -> dict[str, Any]:
    return json.loads((run / "judge" / name).read_text(encoding="utf-8"))


def test_planted_features_fire_at_their_tokens_and_nowhere_else(run: Path):
    store = FeatureStore.open(run / "features")
    for index, plant in enumerate(PLANTS):
        feature = store[0, index]
        occurrences = sum(text == plant.fires_at for text in store.vocabulary.texts(store.tokens.tolist()))
        assert feature.n_active == occurrences > 10
        assert plant.promotes in {effect.text for effect in feature.promoted[:3]}
        assert {example.tokens[example.position - example.start] for example in feature.sampled} == {
            feature.top[0].tokens[feature.top[0].position - feature.top[0].start]
        }


def test_the_judge_gives_planted_features_their_classes(run: Path):
    assert main(["judge", "classify", "--run", str(run), "--judge", "rules"]) == 0
    found = {row["feature"]: row["class"] for row in _result(run, "classify-replacement.json")["features"]}
    assert found == {index: plant.label for index, plant in enumerate(PLANTS)}
    store = FeatureStore.open(run / "features")
    assert [store[0, index].labels["class"] for index in range(len(PLANTS))] == [plant.label for plant in PLANTS]


@pytest.mark.parametrize("negatives", ["random", "similar"])
def test_descriptions_of_planted_features_detect_them_and_shuffled_ones_do_not(run: Path, negatives: str):
    arguments = ["--run", str(run), "--judge", "rules", "--min-frequency", "0", "--negatives", negatives]
    assert main(["judge", "detect", *arguments]) == 0
    overall = _result(run, "detect-replacement.json")["overall"]
    assert overall["n_scored"] >= 8
    for kind in ("top", "sampled"):
        assert overall["scores"][kind]["mean"]["value"] > 0.97
    assert abs(overall["scores"]["shuffled"]["mean"]["value"] - 0.5) < 0.12
