"""Interventions by circuit-tracer on the package's replacement model: all, some or nothing frozen."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.integrations.attribution_case import FAMILIES, N_FEATURES, ROUTES, SAMPLED, TOKENS, Case, near, some
from tests.integrations.naive_graph import Held, Trace
from tests.tiny import N_LAYERS

pytest.importorskip("circuit_tracer")
pytestmark = pytest.mark.filterwarnings("ignore:Full backward hook is firing:UserWarning")


@pytest.fixture(scope="module", params=FAMILIES)
def case(request: pytest.FixtureRequest) -> Case:
    return Case(request.param)


@pytest.mark.parametrize("sampled", SAMPLED)
def test_frozen_interventions_are_edges_times_the_relative_change(case: Case, sampled: str) -> None:
    for rule in case.rules:
        trace = case.trace(sampled, rule)
        active, into, out = case.edges(sampled, rule)
        model = case.model(torch.float32, sampled=sampled, rule=rule)
        for at in some(active):
            for factor in (0.0, -2.0):
                value = factor * trace.acts[at].item()
                logits, pre = model.feature_intervention(
                    TOKENS,
                    [(*at, value)],
                    constrained_layers=range(N_LAYERS),
                    apply_activation_function=False,
                )
                slow = trace.frozen({at: value})
                near(logits[0], slow.logits, 1e-4)
                near(pre.flatten(1), slow.pre.flatten(1), 1e-4)
                # The same by edges.
                edges = into.features[(slice(None), *at)]
                change = (pre.double() - trace.pre)[tuple(active.T)]
                torch.testing.assert_close(change, (factor - 1) * edges, atol=1e-5, rtol=1e-4)
                change = (slow.demeaned - trace.demeaned)[-1]
                near(change, (factor - 1) * out.features[(slice(None), *at)], 1e-9)


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("sampled", SAMPLED)
def test_nothing_frozen_everything_after_a_feature_is_recomputed(case: Case, sampled: str, route: str) -> None:
    trace = case.trace(sampled, "relp")
    model = case.model(torch.float32, sampled=sampled, route=route)
    torch.testing.assert_close(model(TOKENS[None])[0].double(), trace.logits, atol=1e-5, rtol=0)
    found = some(case.edges(sampled, "relp")[0])
    changes = [{at: 0.0} for at in found] + [dict.fromkeys(found, 1.5), {(0, 3, f): 0.0 for f in range(N_FEATURES)}]
    for change in changes:
        asked = [(*at, value) for at, value in change.items()]
        logits, acts = model.feature_intervention(TOKENS, asked, freeze_attention=False)
        slow = trace.graph.run(TOKENS, change)
        torch.testing.assert_close(logits[0].double(), slow.logits, atol=1e-5, rtol=0)
        torch.testing.assert_close(acts.double(), slow.pre.clamp(min=0), atol=1e-5, rtol=0)
        assert (logits[0] - trace.logits).abs().max() > 1e-4


def test_changes_of_several_features_add_up_where_all_is_frozen(case: Case) -> None:
    trace = case.trace("target", "relp")
    found = some(case.edges("target", "relp")[0])
    inactive = tuple((trace.acts[0] == 0).nonzero()[0].tolist())
    changes = {**dict.fromkeys(found, 1.5), (0, *inactive): 0.8}
    model = case.model(torch.float64, sampled="target")
    asked = [(*at, value) for at, value in changes.items()]
    logits, pre = model.feature_intervention(
        TOKENS, asked, constrained_layers=range(N_LAYERS), apply_activation_function=False
    )
    slow = trace.frozen(changes)
    near(logits[0], slow.logits, 1e-9)
    near(pre.flatten(1), slow.pre.flatten(1), 1e-9)
    alone = [trace.frozen({at: value}).pre - trace.pre for at, value in changes.items()]
    near((slow.pre - trace.pre).flatten(), sum(alone).flatten(), 1e-9)


def held(trace: Trace, layers: range, changes: dict[tuple[int, int, int], float]) -> dict[str, Tensor]:
    """Attention patterns of all layers, and of some layers the MLP's coefficients and all that the adapter writes."""
    frozen = trace.frozen(changes).held.values
    parts = ("of_gate", "of_up", "ratio", "acts")
    names = [f"{layer}.pattern" for layer in range(N_LAYERS)]
    names += [f"{layer}.{part}" for layer in layers for part in parts]
    names += [f"{part}/{layer}" for layer in layers for part in ("features", "errors")]
    return {name: frozen[name] for name in names if name in frozen}


@pytest.mark.parametrize("frozen_layers", [range(0), range(1), range(2)])
@pytest.mark.parametrize("sampled", SAMPLED)
def test_attention_or_some_layers_are_frozen(case: Case, sampled: str, frozen_layers: range) -> None:
    trace = case.trace(sampled, "relp")
    changes = {some(case.edges(sampled, "relp")[0])[0]: 2.0}
    model = case.model(torch.float64, sampled=sampled)
    logits, pre = model.feature_intervention(
        TOKENS,
        [(*at, value) for at, value in changes.items()],
        constrained_layers=frozen_layers or None,
        apply_activation_function=False,
    )
    values = held(trace, frozen_layers, changes)
    slow = trace.graph.pass_over(TOKENS, Held(values), {} if frozen_layers else changes)
    near(pre.flatten(1), slow.pre.flatten(1), 1e-9)
    near(logits[0], slow.logits, 1e-9)
