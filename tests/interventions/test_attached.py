"""Features changed at run time: against changed adapter sets, plain Hugging Face models and loops over positions."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tc_adapters_lens.errors import AdapterSetError, FeatureGroupError
from tc_adapters_lens.integrations.hf.model import adapter_model
from tc_adapters_lens.interventions.attached import added, clamped, scaled
from tc_adapters_lens.interventions.operations import negate, remove, scale
from tc_adapters_lens.models.adapter_set import AdapterSet
from tc_adapters_lens.models.checkpoints import Checkpoint
from tc_adapters_lens.models.feature_group import FeatureGroup
from tc_adapters_lens.models.names import hook_acts
from tests.interventions.conftest import GROUP, TOKENS
from tests.tiny import tiny_pair


def run(model, *, tokens: Tensor = TOKENS) -> Tensor:
    with torch.no_grad():
        return model(tokens)


def acts(model, layer: int, tokens: Tensor = TOKENS) -> Tensor:
    with torch.no_grad():
        return model.run_with_cache(tokens, names_filter=hook_acts(layer))[1][hook_acts(layer)]


def test_scaling_equals_the_scaled_set_and_ends_with_the_block(model, adapters) -> None:
    with model.adapters(removed := remove(adapters, GROUP)):
        without = run(model)
    with model.adapters(scale(adapters, GROUP, 3.0)):
        tripled = run(model)
    with model.adapters(adapters):
        whole = run(model)
        with scaled(model, GROUP):
            torch.testing.assert_close(run(model), without, atol=1e-12, rtol=0)
        with scaled(model, GROUP, 3.0):
            torch.testing.assert_close(run(model), tripled, atol=1e-12, rtol=0)
        with pytest.raises(RuntimeError, match="inside"), scaled(model, GROUP, 3.0, positions=[2]):
            raise RuntimeError("inside")
        assert torch.equal(run(model), whole)
        assert not any(block._forward_pre_hooks for block in model.blocks)
    assert removed.n_features == adapters.n_features


def test_layers_and_positions(model, adapters) -> None:
    with model.adapters(adapters):
        plain = acts(model, 2)
        with scaled(model, GROUP, 0.0, layers=[2], positions=slice(5, 9)):
            changed = acts(model, 2)
            first = acts(model, 0)
        own = [0, 7, 23]
        expected = plain.clone()
        expected[:, 5:9, own] = 0
        assert torch.equal(changed, expected)
        assert (plain[:, 5:9, own] > 0).any()
        assert torch.equal(first, acts(model, 0))


@pytest.mark.parametrize("positions", [[2, 17], slice(3, None, 4), None])
def test_clamping(model, adapters, positions) -> None:
    values = {(2, 7): 4.0, (2, 1): 0.0, (1, 3): 2.5}
    with model.adapters(adapters):
        with clamped(model, {(1, 3): 2.5}, positions=positions):
            second = acts(model, 2)  # what layer 2 sees once layer 1 is clamped
        with clamped(model, values, positions=positions):
            found = acts(model, 2), acts(model, 1)
    at = {None: slice(None)}.get(positions) if positions is None else positions
    expected = second.clone()
    expected[:, at, 7], expected[:, at, 1] = 4.0, 0.0
    torch.testing.assert_close(found[0], expected)
    assert (found[1][:, at, 3] == 2.5).all()


@pytest.mark.parametrize("positions", [slice(12, None), [3, 14], slice(0, 20, 3)])
def test_positions_count_from_the_start_with_a_kv_cache_too(model, adapters, positions) -> None:
    """Tokens generated one at a time are those a full pass over all of them would choose."""
    prompt = TOKENS[:1, :10]
    with model.adapters(adapters), scaled(model, GROUP, -4.0, positions=positions), torch.no_grad():
        generated = model.generate(prompt, max_new_tokens=8, do_sample=False, stop_at_eos=False, verbose=False)
        full = run(model, tokens=generated)
    assert generated.shape == (1, 18)
    assert torch.equal(full[0, 9:-1].argmax(-1), generated[0, 10:])
    with model.adapters(adapters), torch.no_grad():
        plain = run(model, tokens=generated)
        with scaled(model, GROUP, -4.0):
            everywhere = run(model, tokens=generated)
    assert (full - plain).abs().max() > 1e-3
    assert (full - everywhere).abs().max() > 1e-3


def test_negative_positions_are_a_programming_error(model, adapters) -> None:
    with model.adapters(adapters):
        for positions in ([-1], slice(-3, None)):
            with scaled(model, GROUP, positions=positions), pytest.raises(ValueError, match="count from the first"):
                run(model)


def test_added_to_the_target_equals_a_hugging_face_model(adapters, model) -> None:
    negated = negate(adapters, GROUP, 0.8)
    base, target = tiny_pair("qwen2")
    plain = adapter_model(Checkpoint.open(base), Checkpoint.open(target), negated, mlps="target", dtype=torch.float64)
    untouched = run(model)
    with added(model, negated):
        found = run(model)
    with torch.no_grad():
        torch.testing.assert_close(found, plain(TOKENS).logits, atol=1e-5, rtol=0)  # norms there are float32
    assert (found - untouched).abs().max() > 1e-3
    assert torch.equal(run(model), untouched)


def test_added_to_the_hybrid_is_the_replacement_model(adapters, model) -> None:
    with model.adapters(adapters):
        expected = run(model)
    with model.mode("base"), added(model, adapters):
        torch.testing.assert_close(run(model), expected, atol=1e-12, rtol=0)


def test_what_is_wrong_is_said(model, adapters) -> None:
    two = {name: tensor[:2] for name, tensor in adapters.state().items()}
    fewer = AdapterSet.from_state(two, adapters.info)
    with pytest.raises(AdapterSetError, match="same layers and width"), added(model, fewer):
        pass
    with pytest.raises(FeatureGroupError, match="Got none attached in layer 0"), scaled(model, GROUP):
        pass
    with model.adapters(adapters):
        far = FeatureGroup("far", ((1, 24),))
        with pytest.raises(FeatureGroupError, match=r"Layer 1 has features 0 to 23\. Got 24"), scaled(model, far):
            pass
        with pytest.raises(AdapterSetError, match="Got some attached in layer 0"), added(model, adapters):
            pass
