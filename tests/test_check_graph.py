"""The check of graphs by ablations: its predictions against frozen models, its ablations against the pair's own."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import Tensor

from tc_adapters_lens.interventions.attached import scaled
from tc_adapters_lens.models.adapter_set import AdapterSet, AdapterSetInfo
from tc_adapters_lens.models.feature_group import FeatureGroup
from tc_adapters_lens.models.pair import load_pair
from tc_adapters_lens.training.config import TrainingConfig
from tests.tiny import D_VOCAB, N_LAYERS, save, tiny_pair, word_tokenizer

pytest.importorskip("circuit_tracer")

from scripts import check_graph, check_graph_figures
from tc_adapters_lens.evaluation.bootstrap import Bootstrap
from tc_adapters_lens.integrations.circuit_tracer import targets
from tc_adapters_lens.integrations.circuit_tracer.replacement import replacement_model
from tc_adapters_lens.integrations.circuit_tracer.trace import trace

pytestmark = pytest.mark.filterwarnings("ignore:Full backward hook is firing:UserWarning")

N_FEATURES, TOKEN = 20, 5
TOKENS = torch.randint(3, D_VOCAB, (9,), generator=torch.Generator().manual_seed(0))
FROZEN = ("hook_pattern", "hook_scale")


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> list[str]:
    root = tmp_path_factory.mktemp("pair")
    models = zip(("base", "target"), tiny_pair("qwen2"), strict=True)
    return [str(save(model, root / name, word_tokenizer())) for name, model in models]


@pytest.fixture(scope="module")
def pair(folders):
    return load_pair(*folders)


@pytest.fixture(scope="module")
def adapters(pair) -> AdapterSet:
    """Features of a size that switches later ones off."""
    fresh = AdapterSet.fresh(N_LAYERS, pair.cfg.d_model, N_FEATURES, AdapterSetInfo(pair.pair))
    generator = torch.Generator().manual_seed(0)
    state = {name: torch.randn(t.shape, generator=generator) * 0.3 for name, t in fresh.state().items()}
    return AdapterSet.from_state(state, fresh.info)


@pytest.fixture(scope="module", params=["relp", "gate-detach"])
def traced(request, pair, adapters):
    model = replacement_model(pair, adapters, rule=request.param)
    return model, trace(TOKENS, model, targets=targets.tokens(model, [TOKEN]), keep=1.0)


def demeaned(logits: Tensor) -> float:
    last = logits[0, -1].detach().double()
    return float(last[TOKEN] - last.mean())


class Frozen:
    """The replacement model with patterns, denominators and coefficients held, in which features follow their inputs;
    those that were off stay off."""

    def __init__(self, model, graph) -> None:
        self.model, self.held, inputs = model, {}, {}
        _, cache = model.run_with_cache(TOKENS[None])
        self.held = {name: value for name, value in cache.items() if name.endswith(FROZEN)}
        inputs = [cache[f"blocks.{layer}.mlp.hook_in"][0] for layer in range(N_LAYERS)]
        self.mlps = model.transcoders.linear_at(inputs)
        self.on = torch.zeros(N_LAYERS, len(TOKENS), N_FEATURES)
        self.on[tuple(graph.active_features.T)] = 1

    @torch.no_grad()
    def value(self, factors: Tensor) -> float:
        """The target's, with activations times factors `[n_layers pos n_features]`."""
        inputs = {}

        def remember(x: Tensor, hook) -> None:
            inputs[hook.layer()] = x

        def write(out: Tensor, hook) -> Tensor:
            layer = hook.layer()
            x, own, mlp = inputs[layer], self.model.transcoders[layer], self.mlps[layer]
            acts = (x @ own.W_enc.T + own.b_enc).relu() * self.on[layer] * factors[layer]
            return mlp.linear(x) + mlp.bias() + acts @ own.W_dec + own.b_dec

        hooks = [(name, lambda _, hook: self.held[hook.name]) for name in self.held]
        hooks += [(f"blocks.{layer}.mlp.hook_in", remember) for layer in range(N_LAYERS)]
        hooks += [(f"blocks.{layer}.mlp.hook_out", write) for layer in range(N_LAYERS)]
        return demeaned(self.model.run_with_hooks(TOKENS[None], fwd_hooks=hooks))


def test_total_effects_are_those_of_a_frozen_model_whose_features_follow(traced) -> None:
    model, graph = traced
    frozen, ones = Frozen(model, graph), torch.ones(N_LAYERS, len(TOKENS), N_FEATURES)
    before = frozen.value(ones)
    assert before == pytest.approx(demeaned(model(TOKENS[None])), abs=1e-4)
    nodes = torch.arange(0, graph.n_active, 3)
    expected = []
    for node in nodes.tolist():
        factors = ones.clone()
        factors[tuple(graph.active_features[node])] = 0
        expected.append(frozen.value(factors) - before)
    total = check_graph.total_effects(graph, nodes)
    np.testing.assert_allclose(total, expected, atol=2e-5)
    direct = check_graph.direct_effects(graph, nodes)
    assert (total - direct)[graph.active_features[nodes, 0] < N_LAYERS - 1].abs().max() > 0.01
    last = graph.active_features[nodes, 0] == N_LAYERS - 1
    np.testing.assert_allclose(total[last], direct[last], atol=1e-12)  # nothing follows it


def test_frozen_ablations_are_edges(traced) -> None:
    model, graph = traced
    nodes = check_graph.direct_effects(graph, torch.arange(graph.n_active)).abs().argsort(descending=True)[:6]
    assert check_graph.frozen_gap(model, graph, nodes, TOKEN) < check_graph.TOLERANCE
    assert check_graph.frozen_gap(model, graph, nodes, TOKEN + 1) > 0.1


def test_each_feature_is_ablated_alone(pair, adapters, traced) -> None:
    _, graph = traced
    off = torch.cat([torch.tensor([[-1, 0, 0]]), graph.active_features])
    values = check_graph.target_values(pair, adapters, TOKENS, off, TOKEN)
    assert len(off) > check_graph.ROWS_AT_ONCE
    with torch.no_grad(), pair.adapters(adapters):
        assert float(values[0]) == pytest.approx(demeaned(pair(TOKENS[None])), abs=1e-5)
        for node in (1, 40, len(off) - 1):
            layer, position, feature = off[node].tolist()
            with scaled(pair, FeatureGroup("one", ((layer, feature),)), 0.0, positions=[position]):
                assert float(values[node]) == pytest.approx(demeaned(pair(TOKENS[None])), abs=1e-5)
    assert len(values) == len(off)
    held = check_graph.target_values(pair, adapters, TOKENS, off, TOKEN, check_graph.HELD)
    assert float(held[0]) == pytest.approx(float(values[0]), abs=1e-5)
    last = graph.active_features[:, 0] == N_LAYERS - 1  # no MLP comes after: with norms held there are edges alone
    nodes = last.nonzero().squeeze(1)
    np.testing.assert_allclose((held[1:] - held[0])[last], check_graph.direct_effects(graph, nodes), atol=1e-5)
    assert (held - values)[1:][last].abs().max() > 1e-3
    assert (values[1:] - values[0]).abs().max() > 0.01


def test_agreement_is_of_all_prompts_together() -> None:
    rng = np.random.default_rng(0)
    x = [rng.standard_normal(size).round(1) for size in (5, 9, 4, 7)]  # rounded: there are ties
    y = [part + 2 * rng.standard_normal(len(part)) for part in x]
    bootstrap = Bootstrap(100, 1)
    found = check_graph_figures.agreement(x, y, bootstrap)

    def expected(times: np.ndarray) -> list[float]:
        """By repeating each prompt so many times."""
        ranked = [check_graph_figures.ranks(np.concatenate(parts)) for parts in (x, y)]
        owner = np.repeat(np.arange(4), [5, 9, 4, 7])
        taken = np.concatenate([np.flatnonzero(owner == i) for i in range(4) for _ in range(int(times[i]))])
        all_x, all_y, rank_x, rank_y = (part[taken] for part in (np.concatenate(x), np.concatenate(y), *ranked))
        slope = np.polyfit(all_x, all_y, 1)[0]
        return [np.corrcoef(all_x, all_y)[0, 1], np.corrcoef(rank_x, rank_y)[0, 1], slope]

    rows = np.array([expected(times) for times in bootstrap.weights(range(4)) if times.any()])
    for of, column in zip(("pearson", "spearman", "slope"), rows.T, strict=True):
        low, high = np.quantile(column[1:], [0.025, 0.975]) + column[0] - column[1:].mean()
        assert list(found[of].values()) == pytest.approx([column[0], low, high])
    assert check_graph_figures.ranks(np.array([2.0, 0, 2, 5])).tolist() == [2.5, 1, 2.5, 4]
    same = check_graph_figures.agreement(x, x, bootstrap)
    assert same["pearson"]["high"] == 1.0 == same["spearman"]["high"]
    assert check_graph_figures.agreement(x, [0 * part for part in x], bootstrap)["pearson"] is None


def test_a_run_is_checked(tmp_path, folders, adapters, capsys) -> None:
    adapters.save(tmp_path / "adapters")
    data = {"base": folders[0], "target": folders[1], "data": {"path": "tokens.jsonl"}}
    (tmp_path / "config.yaml").write_text(TrainingConfig.from_dict(data).to_yaml())
    rows = [{"input_ids": [int(t) for t in TOKENS.roll(i)], "prompt_length": 2} for i in range(10)]
    tokens = tmp_path / "tokens.jsonl"
    tokens.write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = [str(tmp_path), "--tokens", str(tokens), "--end", "6", "--top", "4", "--rules", "relp", "gate-detach"]
    out, picture = tmp_path / "a.json", tmp_path / "a.png"
    assert check_graph.main([*given, "--n", "10", "--json", str(out), "--picture", str(picture)]) == 0
    assert picture.read_bytes().startswith(b"\x89PNG")
    found = json.loads(out.read_text())
    assert found["n_prompts"] == 10
    assert found["prompts"][1]["next"] == rows[1]["input_ids"][6]
    assert found["features"]["top"]["n"] >= found["features"]["random"]["n"] >= 40
    top, all_of = (found["rules"]["relp"]["total"][group]["pearson"] for group in ("top", "all"))
    assert found["rules"]["relp"]["total"]["all, held"]["pearson"]["value"] > 0.9
    assert 0.5 < all_of["low"] < all_of["value"] < all_of["high"]
    assert f"{top['value']:.3f} ({top['low']:.3f}, {top['high']:.3f})" in capsys.readouterr().out
    assert found["rules"]["relp"]["total"]["shuffled"]["pearson"]["value"] < all_of["low"]
    assert check_graph.main([*given, "--n", "1", "--target-token", "w7"]) == 0
    assert "(" not in capsys.readouterr().out  # one prompt has no intervals
