"""Changed adapter sets beside hooks that change the activations of unchanged ones."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from sae_lens import SAE
from torch import Tensor

from tc_adapters_lens.errors import AdapterSetError, FeatureGroupError
from tc_adapters_lens.interventions.operations import biases, keep, negate, remove, scale
from tc_adapters_lens.models.adapter_set import AdapterSet
from tc_adapters_lens.models.diff_transformer import HookedDiffTransformer
from tc_adapters_lens.models.feature_group import FeatureGroup
from tests.interventions.conftest import GROUP, N_FEATURES, TOKENS


def hooked(model: HookedDiffTransformer, adapters: AdapterSet, change: Callable[[int, Tensor], Tensor]) -> Tensor:
    """Logits of the replacement model with each layer's activations changed by hand."""
    hooks = [
        (f"blocks.{layer}.mlp.hook_delta.hook_sae_acts_post", lambda acts, hook, layer=layer: change(layer, acts))
        for layer in range(model.cfg.n_layers)
    ]
    with torch.no_grad(), model.adapters(adapters):
        return model.run_with_hooks(TOKENS, fwd_hooks=hooks)


def logits(model: HookedDiffTransformer, adapters: AdapterSet) -> Tensor:
    with torch.no_grad(), model.adapters(adapters):
        return model(TOKENS)


def times(inside: float, outside: float) -> Callable[[int, Tensor], Tensor]:
    def change(layer: int, acts: Tensor) -> Tensor:
        factors = torch.tensor([inside if (layer, i) in GROUP.features else outside for i in range(N_FEATURES)])
        return acts * factors.to(acts)

    return change


@pytest.mark.parametrize(
    ("operation", "inside", "outside"),
    [(remove, 0, 1), (keep, 1, 0), (lambda a, g: scale(a, g, 2.5), 2.5, 1), (lambda a, g: scale(a, g, -0.5), -0.5, 1)],
)
def test_operations_equal_hooks_on_the_activations(model, adapters, operation, inside, outside) -> None:
    expected = hooked(model, adapters, times(inside, outside))
    found = logits(model, operation(adapters, GROUP))
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)
    assert (found - logits(model, adapters)).abs().max() > 1e-3


def test_biases_are_no_feature_but_not_the_hybrid(model, adapters) -> None:
    found = logits(model, biases(adapters))
    torch.testing.assert_close(found, hooked(model, adapters, times(0, 0)), atol=1e-12, rtol=0)
    with torch.no_grad(), model.mode("base"):
        assert (found - model(TOKENS)).abs().max() > 1e-3  # b_dec is still there


def test_removed_and_kept_parts_sum_up(adapters) -> None:
    """What a layer writes is what the rest writes and what the group writes, b_dec counted once."""
    x = torch.randn(7, adapters.d_model, dtype=torch.float64)
    for layer in adapters:
        whole, rest, part, opposite = (
            a[layer](x) for a in (adapters, remove(adapters, GROUP), keep(adapters, GROUP), negate(adapters, GROUP, 1))
        )
        torch.testing.assert_close(rest + part - adapters[layer].b_dec, whole, atol=1e-13, rtol=0)
        torch.testing.assert_close(whole + opposite, rest, atol=1e-13, rtol=0)


def test_negating_writes_the_opposite_without_bias(adapters) -> None:
    x = torch.randn(7, adapters.d_model, dtype=torch.float64)
    for layer in adapters:
        adapter = adapters[layer]
        own = [feature for group_layer, feature in GROUP if group_layer == layer]
        active = (x @ adapter.W_enc + adapter.b_enc).relu()[:, own]
        torch.testing.assert_close(negate(adapters, GROUP, 0.7)[layer](x), -0.7 * active @ adapter.W_dec[own])


def test_the_set_operated_on_stays_and_the_new_one_says_what_was_done(adapters) -> None:
    before = adapters.fingerprint()
    changed = scale(remove(adapters, GROUP), FeatureGroup("one", ((1, 3),), {"max": 2}), 2.0)
    assert adapters.fingerprint() == before
    assert changed.info.recipe == {
        "config": {"seed": 1},
        "interventions": [
            {"remove": {"name": "some", "n_features": 5, "rule": {"by": "hand"}}},
            {"scale": {"name": "one", "n_features": 1, "rule": {"max": 2}}, "factor": 2.0},
        ],
    }
    assert changed.info.measured == {}
    assert "interventions" not in adapters.info.recipe


def test_plain_files_that_saelens_loads(tmp_path: Path, adapters) -> None:
    removed = remove(adapters, GROUP)
    removed.save(tmp_path / "removed")
    loaded = AdapterSet.load(tmp_path / "removed")
    assert loaded.fingerprint() == removed.fingerprint()
    assert loaded.info == removed.info
    alone = SAE.load_from_disk(tmp_path / "removed" / "layer_2", dtype="float64")
    x = torch.randn(5, adapters.d_model, dtype=torch.float64)
    acts = alone.encode(x)
    assert (acts[:, [0, 7, 23]] == 0).all()
    torch.testing.assert_close(alone.decode(acts), removed[2](x))


def test_groups_of_other_adapters_are_refused(adapters) -> None:
    with pytest.raises(FeatureGroupError, match=r"from 0\.0 to 2\.23.*Got 3\.0 in group 'far'"):
        remove(adapters, FeatureGroup("far", ((3, 0),)))
    with pytest.raises(FeatureGroupError, match=r"from 0\.0 to 2\.23.*Got 1\.24"):
        keep(adapters, FeatureGroup("far", ((1, 24),)))
    with pytest.raises(FeatureGroupError, match="must be of these adapters"):
        keep(adapters, FeatureGroup("other", ((0, 0),), {}, "xxh3:0"))
    keep(adapters, FeatureGroup("own", ((0, 0),), {}, adapters.fingerprint()))


@pytest.mark.parametrize("factor", [math.nan, math.inf])
def test_factors_are_numbers(adapters, factor: float) -> None:
    with pytest.raises(AdapterSetError, match="finite number"):
        scale(adapters, GROUP, factor)
