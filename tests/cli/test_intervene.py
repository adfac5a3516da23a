"""`intervene`: its figures against plain code on the responses and on Hugging Face logits; going on; wrong use."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from tc_adapters_lens import AdapterSet, FeatureGroup, toy
from tc_adapters_lens.cli import intervention_sampling
from tc_adapters_lens.cli.main import main
from tc_adapters_lens.integrations.hf.model import adapter_model
from tc_adapters_lens.interventions.operations import biases, keep, negate, remove, scale
from tc_adapters_lens.models.adapter_set import AdapterSetInfo
from tc_adapters_lens.models.checkpoints import Checkpoint
from tc_adapters_lens.models.pair_info import PairInfo
from tc_adapters_lens.models.sampling import Sampling, end_tokens, sample
from tests.features.builder import synthetic_store

N_FEATURES, N_PROBLEMS = 40, 12
OPTIONS = {
    "--problems": "toy",
    "--n": str(N_PROBLEMS),
    "--draws": "2",
    "--scale": "0.5",
    "--negate": "2",
    "--max-new-tokens": "70",
    "--batch-size": "7",
    "--bootstrap": "100",
    "--samples": "3",
    "--device": "cpu",
}


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """Adapters that write a little at random, a feature store of theirs, and a group."""
    root = tmp_path_factory.mktemp("intervene")
    base, target = Checkpoint.open("toy:base"), Checkpoint.open("toy:target")
    fresh = AdapterSet.fresh(4, 128, N_FEATURES, AdapterSetInfo(PairInfo.of(base, target)))
    generator = torch.Generator().manual_seed(0)
    state = {n: torch.randn(t.shape, generator=generator) * 0.03 for n, t in fresh.state().items()}
    state["W_enc"] *= 3
    adapters = AdapterSet.from_state(state, fresh.info)
    adapters.save(root / "adapters")
    synthetic_store(root / "features", 4, N_FEATURES, words=(" wait",), adapters_fingerprint=adapters.fingerprint())
    group = FeatureGroup("Chosen ones", tuple((layer, f) for layer in range(4) for f in range(0, N_FEATURES, 4)))
    group.save(root / "group.json")
    return root


def argv(place: Path, out: Path, **changes: str | None) -> list[str]:
    named = {"base": "toy:base", "target": "toy:target", "adapters": str(place / "adapters")}
    named |= {"features": str(place / "features"), "group": str(place / "group.json"), "out": str(out)}
    options = {**{f"--{name}": value for name, value in named.items()}, **OPTIONS, **changes}
    return ["intervene", *(word for name, value in options.items() if value is not None for word in (name, value))]


@pytest.fixture(scope="module")
def made(place, tmp_path_factory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("made")
    assert main(argv(place, out)) == 0
    return out, json.loads((out / "interventions.json").read_text())


def rows(out: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "responses" / f"{name}.jsonl").read_text().splitlines()]


def test_every_condition_is_there(made) -> None:
    out, result = made
    assert [c["name"] for c in result["conditions"]] == [
        *("base", "hybrid", "biases", "replacement", "target"),
        *(f"{kind}-chosen-ones{draw}" for kind in ("remove", "keep") for draw in ("", "-random-0", "-random-1")),
        *(
            f"{kind}-chosen-ones{draw}{f}"
            for kind, f in (("scale", "-0.5"), ("negate", "-2"))
            for draw in ("", "-random-0")
        ),
    ]
    assert {path.stem for path in (out / "responses").glob("*.jsonl")} == {c["name"] for c in result["conditions"]}
    assert (out / "index.html").is_file()
    assert (out / "interventions.png").read_bytes().startswith(b"\x89PNG")
    (group,) = result["groups"]
    assert (group["n_features"], group["per_layer"], len(group["control_frequencies"])) == (40, [10] * 4, 2)


def test_figures_are_what_plain_code_finds_in_the_responses(made) -> None:
    out, result = made
    tokenizer = Checkpoint.open("toy:target").tokenizer
    problems = [json.loads(line) for line in toy.PROBLEMS.read_text().splitlines()]
    right = {problem["question"]: problem["answer"] for problem in problems}
    n_right = 0
    for condition in result["conditions"]:
        texts, lengths = [], []
        for row in rows(out, condition["name"]):
            own = row["input_ids"][row["prompt_length"] :]
            question = tokenizer.decode(row["input_ids"][2 : row["prompt_length"] - 1])
            texts.append((question, tokenizer.decode(own)))
            lengths.append(len(own))
        hesitations = sum(len(re.findall(r"\b(wait|hmm|but|alternatively)\b", text.lower())) for _, text in texts)
        by_squashed = {"".join(question.split()): answer for question, answer in right.items()}
        correct = [toy.parse_answer(text) == by_squashed["".join(question.split())] for question, text in texts]
        n_right += sum(correct)
        measured = condition["measured"]
        assert measured["response_length"]["value"] == pytest.approx(np.mean(lengths))
        assert measured["hesitation_per_1000"]["value"] == pytest.approx(1000 * hesitations / sum(lengths))
        assert measured["accuracy"]["value"] == pytest.approx(np.mean(correct))
        assert condition["n_finished"] == sum(row["finished"] for row in rows(out, condition["name"]))
    assert n_right > 10
    by_name = {c["name"]: c for c in result["conditions"]}
    assert by_name["target"]["measured"]["hesitation_per_1000"]["value"] > 5
    for condition in result["conditions"]:
        if condition["against"]:
            against = by_name[condition["against"]]["measured"]
            difference = condition["measured"]["response_length"]["value"] - against["response_length"]["value"]
            assert condition["difference"]["response_length"]["value"] == pytest.approx(difference)


@pytest.fixture(scope="module")
def models(place) -> dict[str, PreTrainedModel]:
    """Conditions as models that are made one by one."""
    base, target = Checkpoint.open("toy:base"), Checkpoint.open("toy:target")
    adapters, group = AdapterSet.load(place / "adapters"), FeatureGroup.load(place / "group.json")
    return {
        "base": AutoModelForCausalLM.from_pretrained(toy.BASE, dtype=torch.float32).eval(),
        "target": AutoModelForCausalLM.from_pretrained(toy.TARGET, dtype=torch.float32).eval(),
        "hybrid": adapter_model(base, target, None),
        "replacement": adapter_model(base, target, adapters),
        "biases": adapter_model(base, target, biases(adapters)),
        "remove-chosen-ones": adapter_model(base, target, remove(adapters, group)),
        "keep-chosen-ones": adapter_model(base, target, keep(adapters, group)),
        "scale-chosen-ones-0.5": adapter_model(base, target, scale(adapters, group, 0.5)),
        "negate-chosen-ones-2": adapter_model(base, target, negate(adapters, group, 2), mlps="target"),
    }


def test_responses_are_those_of_each_model_by_itself(made, models) -> None:
    out, _ = made
    prompts = [row["input_ids"][: row["prompt_length"]] for row in rows(out, "target")]
    settings = Sampling(0.7, 1.0, 70, seed=42, batch_size=7)
    ends = end_tokens(Checkpoint.open("toy:target"))
    found = {}
    for name, model in models.items():
        found[name] = [row._asdict() for row in sample(model, prompts, settings, end_tokens=ends)]
        assert rows(out, name) == found[name], name
    assert len({json.dumps(responses) for responses in found.values()}) == len(found)


def test_kl_is_that_of_hugging_face_models_on_the_targets_responses(made, models) -> None:
    out, result = made
    found = {condition["name"]: condition["measured"]["kl"]["value"] for condition in result["conditions"]}
    assert found["target"] == 0
    for name, model in models.items():
        total = n = 0.0
        for row in rows(out, "target"):
            tokens = torch.tensor([row["input_ids"]])
            with torch.no_grad():
                log_p, log_q = (m(tokens).logits[0].double().log_softmax(-1) for m in (models["target"], model))
            kl = (log_p.exp() * (log_p - log_q)).sum(-1)[row["prompt_length"] :]
            total, n = total + float(kl.sum()), n + len(kl)
        assert found[name] == pytest.approx(total / n, rel=1e-4, abs=1e-6), name
    assert len({round(value, 6) for value in found.values()}) == len(found)


def test_prompts_have_the_same_draws_in_every_model(made, place, tmp_path) -> None:
    """Nothing removed changes nothing: a group that is never active leaves responses as they were."""
    out, _ = made
    state = AdapterSet.load(place / "adapters").state()
    state["b_enc"][1, 7] = -1e6
    dead = AdapterSet.from_state(state, AdapterSet.load(place / "adapters").info)
    dead.save(tmp_path / "adapters")
    FeatureGroup("dead", ((1, 7),)).save(tmp_path / "dead.json")
    changes = {"--adapters": str(tmp_path / "adapters"), "--group": str(tmp_path / "dead.json"), "--features": None}
    changes |= {"--draws": "0", "--scale": "none", "--negate": "none", "--no-kl": None, "--batch-size": "12"}
    assert main([*argv(place, tmp_path / "out", **changes), "--no-kl"]) == 0
    result = json.loads((tmp_path / "out" / "interventions.json").read_text())
    assert rows(tmp_path / "out", "remove-dead") == rows(tmp_path / "out", "replacement")
    assert rows(tmp_path / "out", "target") == rows(out, "target")  # in other batches
    removed = next(c for c in result["conditions"] if c["name"] == "remove-dead")
    assert removed["difference"]["response_length"] == {"value": 0, "low": 0, "high": 0}
    assert removed["measured"]["kl"] is None
    assert result["groups"][0]["frequency"] is None


def test_it_goes_on_where_it_was_stopped(made, place, tmp_path, monkeypatch, capsys) -> None:
    out, result = made
    inner, n_rows = intervention_sampling.sample, []

    def interrupted(*args, **options):
        for row in inner(*args, **options):
            n_rows.append(row)
            if len(n_rows) == 30:  # in the third model
                raise KeyboardInterrupt
            yield row

    with monkeypatch.context() as patched:
        patched.setattr(intervention_sampling, "sample", interrupted)
        assert main(argv(place, tmp_path / "out")) == 130
    assert re.search(r"Stopped with \d+ of 180 responses in .*responses; the same", capsys.readouterr().err)
    assert not (tmp_path / "out" / "interventions.json").exists()
    assert main(argv(place, tmp_path / "out")) == 0
    for condition in result["conditions"]:
        name = f"responses/{condition['name']}.jsonl"
        assert (tmp_path / "out" / name).read_bytes() == (out / name).read_bytes()
    again = json.loads((tmp_path / "out" / "interventions.json").read_text())
    assert again == result
    monkeypatch.setattr(intervention_sampling, "load_target", None)  # nothing is left to sample
    assert main(argv(place, tmp_path / "out")) == 0
    assert main(argv(place, tmp_path / "out", **{"--temperature": "0.5"})) == 1
    assert "was begun with temperature 0.7. Got 0.5" in capsys.readouterr().err
    state = AdapterSet.load(place / "adapters").state()
    other = AdapterSet.from_state(
        {n: 2 * tensor for n, tensor in state.items()}, AdapterSet.load(place / "adapters").info
    )
    other.save(tmp_path / "other")
    changes = {"--adapters": str(tmp_path / "other"), "--features": None, "--draws": "0"}
    assert main(argv(place, tmp_path / "out", **changes)) == 1
    assert "was begun with target_fingerprint" in capsys.readouterr().err


def test_a_model_whose_responses_all_degenerate_is_said(place, tmp_path, capsys) -> None:
    """A bias that drowns all else makes the replacement model say one token for ever."""
    adapters = AdapterSet.load(place / "adapters")
    state = adapters.state()
    target = Checkpoint.open("toy:target")
    tokenizer: Any = target.tokenizer
    state["b_dec"][3] = 1e4 * target.tensor("lm_head.weight")[tokenizer.convert_tokens_to_ids("but")].float()
    AdapterSet.from_state(state, adapters.info).save(tmp_path / "adapters")
    changes = {"--adapters": str(tmp_path / "adapters"), "--features": None, "--draws": "0", "--scale": "none"}
    changes |= {"--negate": "none", "--max-new-tokens": "205", "--temperature": "0", "--batch-size": "12"}
    assert main([*argv(place, tmp_path / "out", **changes), "--no-kl"]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"All 12 responses of .*replacement model.* degenerate", printed)
    result = json.loads((tmp_path / "out" / "interventions.json").read_text())
    replacement = next(c for c in result["conditions"] if c["name"] == "replacement")
    assert replacement["n_degenerate"] == N_PROBLEMS
    assert replacement["measured"]["degeneration_rate"]["value"] == 1
    assert replacement["measured"]["response_length"]["value"] == 0


@pytest.mark.parametrize(
    ("changes", "code", "message"),
    [
        ({"--group": None}, 2, "--group must be given"),
        ({"--group": "hesitaton"}, 2, "one of hesitation-output, template, hesitation. Got hesitaton"),
        ({"--group": "template", "--features": None, "--draws": "0"}, 2, "looks into a feature store. Got none"),
        ({"--features": None}, 2, "Random controls are drawn by frequency"),
        ({"--scale": "a"}, 2, "--scale must be numbers with commas"),
        ({"--negate": "1,1"}, 2, "--negate must name each factor once. Got 1, 1"),
        ({"--draws": "-1"}, 2, "--draws must be at least 0. Got -1"),
        ({"--n": "5"}, 1, "at least 10 problems"),
        ({"--n": "401"}, 1, "must not exceed the prompts there are. Got 401 and 400"),
        ({"--problems": "nowhere.jsonl"}, 1, "nowhere.jsonl"),
        ({"--answer-column": "anser"}, 1, "must have a column anser.*Did you mean 'answer'"),
        ({"--base": "toy:target"}, 1, "identical|must be of"),
        ({"--max-new-tokens": "5000"}, 1, "must fit into the context of 512"),
    ],
)
def test_wrong_use_is_one_line(place, tmp_path, capsys, changes, code, message) -> None:
    assert main(argv(place, tmp_path / "out", **changes)) == code
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert re.search(message, error), error
    assert not (tmp_path / "out").exists()


def test_groups_that_do_not_fit_are_refused(place, tmp_path, capsys) -> None:
    (tmp_path / "empty.json").write_text('{"features": []}')
    FeatureGroup("far", ((4, 0),)).save(tmp_path / "far.json")
    FeatureGroup("other", ((0, 0),), {}, "xxh3:1").save(tmp_path / "other.json")
    for name, message in (
        ("empty", "at least one feature"),
        ("far", "Got 4.0"),
        ("other", "must be of these adapters"),
    ):
        assert main(argv(place, tmp_path / "out", **{"--group": str(tmp_path / f"{name}.json")})) == 1
        assert message in capsys.readouterr().err
