"""Parts of the target in the base, against Hugging Face models put together from two state dicts."""

from __future__ import annotations

import copy
from itertools import combinations

import pytest
import torch

from tc_adapters_lens.errors import PairError
from tc_adapters_lens.models.pair import load_base, load_pair
from tc_adapters_lens.models.parts import PARTS, check_parts_fit, composed
from tests.tiny import D_VOCAB, tiny_pair

TOKENS = torch.randint(0, D_VOCAB, (2, 12), generator=torch.Generator().manual_seed(0))
FAMILIES = ["qwen2", "qwen3", "gemma2", "neox", "neox_sequential"]


def part_of(name: str) -> str:
    """Which part a Hugging Face tensor belongs to."""
    if ".self_attn." in name or ".attention." in name:
        return "attention"
    if ".mlp." in name:
        return "MLP"
    if "norm" in name:
        return "norms"
    return "unembedding" if name.startswith(("lm_head", "embed_out")) else "embedding"


def put_together(base, target, from_target) -> torch.Tensor:
    """Logits of the Hugging Face base with these parts of the target; heads untied first."""
    model = copy.deepcopy(base)
    model.config.tie_word_embeddings = False
    head = model.get_output_embeddings()
    head.weight = torch.nn.Parameter(head.weight.detach().clone())
    theirs = {**target.state_dict()}
    own = model.state_dict()
    model.load_state_dict({n: theirs[n] if part_of(n) in from_target else own[n] for n in own})
    with torch.no_grad():
        return model(TOKENS).logits


@pytest.mark.parametrize("family", FAMILIES)
def test_every_combination_equals_plain_models(family: str) -> None:
    base, target = tiny_pair(family)
    model, whole_base = load_pair(base, target), load_base(base)
    subsets = [s for n in range(6) for s in combinations(PARTS, n)] if family == "qwen2" else [(), PARTS]
    subsets += [(part,) for part in PARTS] + [tuple(p for p in PARTS if p != part) for part in PARTS]
    for parts in subsets:
        with torch.no_grad(), composed(model, whole_base, parts):
            logits = model(TOKENS)
        torch.testing.assert_close(logits, put_together(base, target, parts), atol=3e-5, rtol=0, msg=str(parts))
    torch.testing.assert_close(model(TOKENS), target(TOKENS).logits, atol=3e-5, rtol=0)


def test_settings_go_with_the_attention() -> None:
    base, target = tiny_pair("qwen2")
    slower = copy.deepcopy(base)
    slower.config.rope_theta = 123.0
    slower.model.rotary_emb = type(slower.model.rotary_emb)(slower.config)
    with torch.no_grad():
        expected = slower(TOKENS).logits
        assert (expected - base(TOKENS).logits).abs().max() > 1e-3
        model, whole_base = load_pair(slower, target), load_base(slower)
        with composed(model, whole_base, ()):
            torch.testing.assert_close(model(TOKENS), expected, atol=3e-5, rtol=0)


def test_the_pair_is_itself_again_after_an_exception() -> None:
    base, target = tiny_pair("qwen2")
    model, whole_base = load_pair(base, target), load_base(base)
    modules, logits = list(model.modules()), model(TOKENS)
    with pytest.raises(ZeroDivisionError), composed(model, whole_base, ["norms"]):
        raise ZeroDivisionError
    assert all(one is other for one, other in zip(model.modules(), modules, strict=True))
    assert model.modes == ["target"] * 3
    assert torch.equal(model(TOKENS), logits)


def test_a_base_can_share_its_mlps_with_the_pair() -> None:
    base, target = tiny_pair("qwen2")
    model = load_pair(base, target)
    shared, own = load_base(base, pair=model), load_base(base)
    assert torch.equal(shared(TOKENS), own(TOKENS))
    for ours, theirs in zip(model.mlps, shared.blocks, strict=True):
        assert ours.base.W_in.data_ptr() == theirs.mlp.W_in.data_ptr()


def test_an_unknown_part_and_models_that_do_not_fit() -> None:
    base, target = tiny_pair("neox")
    model, whole_base = load_pair(base, target), load_base(base)
    with pytest.raises(ValueError, match="parts must be of embedding"), composed(model, whole_base, ["heads"]):
        pass
    check_parts_fit(model, whole_base)
    with pytest.raises(PairError, match=r"same parallel_attn_mlp.*Got False \(base\) and True \(target\)"):
        check_parts_fit(model, load_base(tiny_pair("neox_sequential")[0]))
