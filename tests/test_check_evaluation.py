"""The independent check of an evaluation: its pieces against closed forms, and the evaluation against it."""

from __future__ import annotations

import copy
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from scripts import check_evaluation as check
from scripts.check_evaluation import ALL, MLP, NONE, PARTS, assemble
from tc_adapters_lens import toy
from tc_adapters_lens.cli.main import main
from tc_adapters_lens.models.adapter_set import AdapterSet, AdapterSetInfo
from tc_adapters_lens.models.checkpoints import Checkpoint
from tc_adapters_lens.models.pair_info import PairInfo
from tc_adapters_lens.training.config import TrainingConfig
from tc_adapters_lens.training.runner import train
from tc_adapters_lens.training.sequences import TokenSequences
from tests.tiny import D_MODEL, D_VOCAB, N_LAYERS, hybrid, save, tiny_model, tiny_pair, word_tokenizer

FAMILIES = ["qwen2", "qwen3", "gemma2", "neox"]
N_FEATURES = 20
IDS = torch.randint(0, D_VOCAB, (1, 15), generator=torch.Generator().manual_seed(0))


def random_state(n_layers: int = N_LAYERS, d_model: int = D_MODEL, scale: float = 0.2) -> dict[str, torch.Tensor]:
    """Stacked adapters; the first four features of a layer never fire."""
    generator = torch.Generator().manual_seed(1)
    shapes = {
        "W_enc": (d_model, N_FEATURES),
        "b_enc": (N_FEATURES,),
        "W_dec": (N_FEATURES, d_model),
        "b_dec": (d_model,),
    }
    state = {name: torch.randn(n_layers, *shape, generator=generator) * scale for name, shape in shapes.items()}
    state["b_enc"][:, :4] -= 100
    return state


def per_layer(state: dict[str, torch.Tensor]) -> list[dict[str, torch.Tensor]]:
    return [{name: tensor[layer].double() for name, tensor in state.items()} for layer in range(N_LAYERS)]


def sequences(n: int = 4) -> list[tuple[np.ndarray, np.ndarray]]:
    """Of lengths 8, 9, ..., of which all but the first three tokens count."""
    rng = np.random.default_rng(0)
    return [(rng.integers(0, D_VOCAB, 8 + i).astype(np.int32), np.arange(8 + i) >= 3) for i in range(n)]


def layout(**changes: object) -> dict:
    """What `measure` reads of an evaluation."""
    models = dict.fromkeys(("base", "reverse", "hybrid", "replacement", "shuffled"))
    read = {"n_layers": N_LAYERS, "models": models, "shuffle": [1, 2, 0], "partial_kl": True, "account": True}
    read["skyline_sweep"] = []
    return {**read, "partial_sequences": 3, "seed": 5, "frequency": {"edges": [0.0, 1e-6, 0.1, 1.0]}, **changes}


def measured(base, target, state, **changes: object) -> dict[str, float]:
    sets = {"replacement": per_layer(state)}
    return check.measure(base.double(), target.double(), sets, {}, sequences(), layout(**changes))[0]


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS, use_cache=False).logits


def test_it_uses_nothing_of_the_package():
    imports = [line for line in Path(check.__file__).read_text().splitlines() if line.startswith(("import ", "from "))]
    roots = {line.split()[1].split(".")[0] for line in imports} - set(sys.stdlib_module_names)
    assert roots == {"numpy", "torch", "safetensors", "transformers"}


@pytest.mark.parametrize("family", FAMILIES)
def test_models_are_assembled_from_the_right_weights(family):
    base, target = tiny_pair(family)
    torch.testing.assert_close(logits(assemble(base, target, ALL)), logits(target), rtol=0, atol=0)
    torch.testing.assert_close(logits(assemble(base, target, NONE)), logits(base), rtol=0, atol=0)
    torch.testing.assert_close(logits(assemble(base, target, ALL - MLP)), logits(hybrid(base, target)), rtol=0, atol=0)
    names = set(target.state_dict())
    of_attention = {name for name in names if ".self_attn." in name or ".attention." in name}
    expected = {
        "attention": of_attention,
        "MLP": {name for name in names if ".mlp." in name},
        "norms": {name for name in names if "norm" in name} - of_attention,
        "unembedding": {"embed_out.weight" if family == "neox" else "lm_head.weight"},
        "embedding": {"gpt_neox.embed_in.weight" if family == "neox" else "model.embed_tokens.weight"},
    }
    assert set().union(*expected.values()) == names
    for part in PARTS:
        mixed = assemble(base, target, {part}).state_dict()
        weights = {name: (target if name in expected[part] else base).state_dict()[name] for name in names}
        assert all(torch.equal(mixed[name], weights[name]) for name in names)


def test_rotary_angles_belong_to_the_attention():
    base = tiny_model("qwen2", rope_theta=100.0)
    target = tiny_model("qwen2", rope_theta=90_000.0)  # the same weights
    torch.testing.assert_close(logits(assemble(base, target, {"attention"})), logits(target), rtol=0, atol=0)
    torch.testing.assert_close(logits(assemble(base, target, ALL - {"attention"})), logits(base), rtol=0, atol=0)
    assert not torch.equal(logits(base), logits(target))


def test_a_tied_base_and_an_untied_target_exchange_one_end():
    base, target = tiny_model("qwen2", tie_word_embeddings=True), tiny_model("qwen2", seed=1)
    mixed = assemble(base, target, {"unembedding"})
    assert torch.equal(mixed.lm_head.weight, target.lm_head.weight)
    assert torch.equal(mixed.model.embed_tokens.weight, base.lm_head.weight)


@pytest.mark.parametrize("family", FAMILIES)
def test_adapters_that_add_nothing_leave_the_hybrid(family):
    base, target = tiny_pair(family)
    state = random_state()
    state["W_dec"].zero_()
    state["b_dec"].zero_()
    found = measured(base, target, state)
    for figure in ("kl", "top1_error", "cross_entropy", "sure.kl", "unsure.kl"):
        assert found[f"models.replacement.{figure}"] == pytest.approx(found[f"models.hybrid.{figure}"], nan_ok=True)
        assert found[f"models.shuffled.{figure}"] == pytest.approx(found[f"models.hybrid.{figure}"], nan_ok=True)
    assert found["models.replacement.loss_recovered"] == pytest.approx(0, abs=1e-12)
    assert found["account.adapters.recovered"] == pytest.approx(0, abs=1e-12)
    assert found["account.mlps_last.3.kl"] == found["account.without.MLP.kl"] == found["models.hybrid.kl"]
    assert found["account.alone.MLP.kl"] == found["models.reverse.kl"]
    for order in ("cumulative", "mlps_last"):
        recovered = [found[f"account.{order}.{step}.recovered"] for step in range(len(PARTS))]
        assert sum(recovered) == pytest.approx(found["models.base.kl"])
    assert found["l1"] == 0 < found["l0"]
    assert found["dead"] >= 4 * N_LAYERS

    probabilities, divergences = [], []
    for ids, counted in sequences():
        with torch.no_grad():
            both = [model(torch.tensor(ids[None]).long()).logits[0, counted].log_softmax(-1)
                    for model in (target, hybrid(base, target))]  # fmt: skip
        divergences.append(torch.nn.functional.kl_div(both[1], both[0], log_target=True, reduction="none").sum(-1))
        probabilities.append(both[0].exp().amax(-1))
    assert found["models.hybrid.kl"] == pytest.approx(torch.cat(divergences).mean().item(), rel=1e-6)
    assert found["target.sure_share"] == (torch.cat(probabilities) > 0.8).double().mean().item()
    three = np.random.Generator(np.random.PCG64(5)).choice(4, 3, replace=False)
    for k in (0, N_LAYERS):
        of_three = torch.cat([divergences[i] for i in three]).mean().item() if k else 0
        assert found[f"partial_kl.first.{k}"] == pytest.approx(of_three, rel=1e-6)
        assert found[f"partial_kl.last.{k}"] == found[f"partial_kl.first.{k}"]
    assert found["partial_kl.first.1"] == found["partial_kl.single.0"]


def test_adapters_that_are_the_difference_give_the_target():
    base = tiny_model("neox")
    target = copy.deepcopy(base)
    state = {name: torch.zeros_like(tensor) for name, tensor in random_state().items()}
    state["b_dec"] = torch.randn(N_LAYERS, D_MODEL, generator=torch.Generator().manual_seed(2))
    for layer, shift in zip(target.gpt_neox.layers, state["b_dec"], strict=True):
        layer.mlp.dense_4h_to_h.bias.data += shift
    found = measured(base, target, state)
    assert found["models.hybrid.kl"] > 0.01
    assert [found[f"models.replacement.{figure}"] for figure in ("kl", "top1_error")] == pytest.approx([0, 0], abs=1e-9)
    assert found["models.replacement.loss_recovered"] == pytest.approx(1)
    assert found["models.reverse.kl"] == pytest.approx(0, abs=1e-9)
    assert found["nmse"] == pytest.approx(0, abs=1e-9)
    assert found["partial_kl.first.2"] == pytest.approx(0, abs=1e-9)
    assert found["account.alone.attention.recovered"] == pytest.approx(0, abs=1e-9)
    assert found["account.mlps_last.4.recovered"] == pytest.approx(found["models.base.kl"])
    assert (found["l0"], found["dead"]) == (0, N_LAYERS * N_FEATURES)


def test_features_are_counted():
    fired = np.array([[0, 1, 10, 100], [50, 50, 49, 0]])  # of 100 tokens
    found = check.feature_figures(fired, 100, [0.0, 1e-6, 0.1, 0.5, 1.0])
    assert found["frequency"]["per_layer"] == [[1, 1, 1, 1], [1, 0, 1, 2]]
    assert (found["dead"], found["dead_per_layer"]) == (2, [1, 1])


def test_intervals_of_a_mean_are_those_of_the_normal_law():
    base, target = tiny_pair("qwen2")
    rng = np.random.default_rng(1)
    many = [(rng.integers(0, D_VOCAB, 9), np.arange(9) >= 1) for _ in range(64)]
    sets = {"replacement": per_layer(random_state())}
    few = layout(models=dict.fromkeys(("hybrid", "replacement")), partial_kl=None, account=None)
    found, intervals, _ = check.measure(base.double(), target.double(), sets, {}, many, few)
    hybrid_model = assemble(base, target, ALL - MLP)
    each = [check.sequence_sums(target, {("parts", ALL - MLP): hybrid_model}, *one)[0] for one in many]
    means = np.array([sums[("parts", ALL - MLP), "kl"] / sums["n"] for sums in each])
    low, high = intervals["models.hybrid.kl"]
    assert found["models.hybrid.kl"] == pytest.approx(means.mean())
    assert high - low == pytest.approx(2 * 1.96 * means.std() / 8, rel=0.1)
    assert (high + low) / 2 == pytest.approx(means.mean(), abs=0.05 * (high - low))


def test_sequences_are_those_of_the_evaluation(tmp_path):
    rows = [{"input_ids": [1, 2, 3, 4, 5], "prompt_length": 2}, {"input_ids": [7], "prompt_length": 0}]
    rows += [{"input_ids": [1, 2, 3], "prompt_length": 3}]
    path = tmp_path / "tokens.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    ((ids, counted),) = check.read_sequences(path, "response", 4, None, 42)
    assert (ids.tolist(), counted.tolist()) == ([1, 2, 3, 4], [False, False, True, True])
    everything = check.read_sequences(path, "all", 4, None, 42)
    assert [(len(ids), counted.all()) for ids, counted in everything] == [(4, True), (3, True)]
    theirs = TokenSequences.from_lists(*zip(*everything, strict=True))
    assert check.fingerprint(everything) == theirs.fingerprint()


def estimate(value: float) -> dict[str, float | None]:
    return {"value": value, "low": value - 0.1, "high": value + 0.1}


@pytest.mark.parametrize(
    ("theirs", "n_failed", "said"),
    [
        ({"nmse": estimate(0.5), "l0_per_layer": [estimate(2.0)]}, 0, "2 figures, 0 differ"),
        ({"nmse": estimate(0.5001), "l0_per_layer": [estimate(2.0)]}, 1, "DIFFERS"),
        ({"nmse": None, "l0_per_layer": [estimate(2.0)]}, 1, "nan"),
        ({"nmse": estimate(0.5), "l0_per_layer": [estimate(2.0), estimate(1.0)]}, 1, "l0_per_layer.1"),
        (
            {"nmse": estimate(0.5), "l0_per_layer": [estimate(2.0)], "skyline_sweep": [{"kl": estimate(1)}]},
            0,
            "not che",
        ),
    ],
)
def test_a_figure_that_is_other_missing_or_unknown_is_reported(theirs, n_failed, said, capsys):
    assert check.compare(theirs, {"nmse": 0.5, "l0_per_layer.0": 2.0}, 1e-4, {}) == n_failed
    assert said in capsys.readouterr().out


def test_ties_are_counted_and_excuse_no_more_than_themselves(capsys):
    log_p = np.log([[0.4, 0.4, 0.2], [0.5, 0.3, 0.2], [0.400001, 0.399999, 0.2]])
    assert check.ties(log_p).tolist() == [True, False, True]
    path, theirs = "models.base.top1_error", {"models": {"base": {"top1_error": estimate(0.51)}}}
    assert check.compare(theirs, {path: 0.5}, 1e-4, {path: 0.009}) == 1
    assert check.compare(theirs, {path: 0.5}, 1e-4, {path: 0.01}) == 0
    assert "ties: up to 2.0e-02" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("ours", "n_failed"), [((0.4, 0.6), 0), ((0.39, 0.61), 0), ((0.38, 0.62), 1), ((0.44, 0.64), 1)]
)
def test_an_interval_of_other_width_or_place_is_reported(ours, n_failed, capsys):
    theirs = {"replicates": 10, "nmse": estimate(0.5), "l1": estimate(1.0)}
    assert check.compare_intervals(theirs, {"nmse": ours}) == n_failed
    assert "not checked: those of 1 figures" in capsys.readouterr().out


class Case:
    """A pair and adapters on disk, evaluated by `tc-adapters evaluate`; `check` runs the script on the result."""

    def __init__(self, root: Path, base: str, target: str, state: dict[str, torch.Tensor]) -> None:
        self.file = root / "evaluation.json"
        self.models = ["--base", base, "--target", target]
        files = [Checkpoint.open(directory) for directory in (base, target)]
        info = PairInfo(*(one.name for one in files), None, None, *(one.fingerprint() for one in files))
        AdapterSet.from_state(state, AdapterSetInfo(info)).save(root / "adapters")

    def evaluate(self, tokens: Path, *options: str, sequences: tuple[str, ...] = ()) -> None:
        self.tokens = ["--tokens", str(tokens), *sequences]
        options += "--adapters", str(self.file.parent / "adapters"), "--json", str(self.file), "--device", "cpu"
        assert main(["evaluate", *self.models, *self.tokens, *options]) == 0

    def check(self) -> int:
        return check.main([str(self.file), *self.models, *self.tokens])


EVERYTHING = ("--baselines", "base,reverse,shuffled", "--account")


def tiny_case(family: str, root: Path) -> Case:
    pair = zip(("base", "target"), tiny_pair(family), strict=True)
    return Case(root, *(str(save(model, root / name, word_tokenizer())) for name, model in pair), random_state())


def tiny_tokens(root: Path) -> Path:
    """24 sequences of 8 to 27 tokens, of which the first 0 to 5 are the prompt."""
    rng = np.random.default_rng(3)
    drawn = [(rng.integers(3, D_VOCAB, 8 + rng.integers(20)).tolist(), int(rng.integers(6))) for _ in range(24)]
    rows = [json.dumps({"input_ids": ids, "prompt_length": length}) for ids, length in drawn]
    (root / "tokens.jsonl").write_text("\n".join(rows))
    return root / "tokens.jsonl"


@pytest.mark.parametrize(("family", "positions"), [("qwen2", "response"), ("gemma2", "response"), ("neox", "all")])
def test_an_evaluation_of_a_tiny_pair_agrees_on_every_figure(family, positions, tmp_path, capsys):
    case = tiny_case(family, tmp_path)
    case.evaluate(tiny_tokens(tmp_path), *EVERYTHING, "--positions", positions, "--partial-sequences", "16")
    capsys.readouterr()
    assert case.check() == 0
    printed = capsys.readouterr().out
    assert "\n154 figures, 0 differ" in printed
    assert "not checked" not in printed.split("intervals compared")[0]


def test_an_evaluation_of_the_built_in_pair_agrees_on_every_figure(tmp_path, capsys):
    case = Case(tmp_path, str(toy.BASE), str(toy.TARGET), random_state(4, 128, 0.05))
    case.evaluate(toy.EVAL_TOKENS, *EVERYTHING, "--seed", "7", sequences=("--max-sequences", "12"))
    capsys.readouterr()
    assert case.check() == 0
    assert "\n175 figures, 0 differ" in capsys.readouterr().out


_SLOW = [pytest.param(family, marks=pytest.mark.slow) for family in ("qwen3", "gemma2", "neox")]


@pytest.mark.parametrize("family", ["qwen2", *_SLOW])
def test_trained_baselines_agree_too(family, tmp_path, capsys):
    models = [
        str(save(m, tmp_path / n, word_tokenizer())) for n, m in zip(("base", "target"), tiny_pair(family), strict=True)
    ]
    tokens, run = str(tiny_tokens(tmp_path)), str(tmp_path / "run")
    config = {
        "base": models[0],
        "target": models[1],
        "device": "cpu",
        "data": {"path": tokens},
        "adapters": {"n_features": 8},
        "training": {"batch_size_prompts": 4, "training_tokens": 300, "lr": 1e-2},
    }
    train(TrainingConfig.from_dict(config), run)
    options = ["--tokens", tokens, "--device", "cpu", "--baselines", "all"]
    assert main(["evaluate", "--run", run, *options, "--skyline-lrs", "1e-3,3e-3"]) == 0
    capsys.readouterr()
    assert check.main([run, "--tokens", tokens]) == 0
    printed = capsys.readouterr().out
    assert "not checked" not in printed.split("intervals compared")[0]
    found = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert len({found["models"][name]["kl"]["value"] for name in ("hybrid", "norm_refit", "skyline")}) == 3
    shutil.rmtree(tmp_path / "run" / "baselines")
    assert check.main([run, "--tokens", tokens]) == 0
    assert "there are no weights in RUN/baselines" in capsys.readouterr().out


def test_altered_figures_intervals_and_texts_are_found(tmp_path, capsys):
    case = tiny_case("qwen2", tmp_path)
    case.evaluate(tiny_tokens(tmp_path), "--baselines", "none", "--partial-sequences", "10")
    assert case.check() == 0
    true = json.loads(case.file.read_text())
    capsys.readouterr()

    def says(found: dict) -> str:
        case.file.write_text(json.dumps(found))
        assert case.check() == 1
        return capsys.readouterr().out

    altered = copy.deepcopy(true)
    altered["nmse_per_layer"][1]["value"] *= 1.0002
    altered["models"]["hybrid"]["kl"]["high"] *= 1.2
    said = says(altered)
    assert [line.split()[0] for line in said.splitlines() if "DIFFERS" in line] == [
        "nmse_per_layer.1",
        "models.hybrid.kl:",
    ]
    assert "tokens_fingerprint" in says(true | {"tokens_fingerprint": "sha256:0"})
    case.file.write_text(json.dumps(true | {"replicates": 0}))
    assert case.check() == 0
    assert "intervals: not checked, the evaluation has none" in capsys.readouterr().out
