"""Relative weight change, against the arithmetic beside the data."""

from __future__ import annotations

import math

import pytest
import torch

from tc_adapters_lens.models.checkpoints import Checkpoint
from tc_adapters_lens.models.weight_change import KINDS, kind_of, weight_change
from tests.tiny import FAMILY_CONFIGS, N_LAYERS, nudged, save, tiny_model, tiny_pair


def relative(before: list[torch.Tensor], after: list[torch.Tensor]) -> float:
    change = sum((b - a).detach().double().square().sum() for b, a in zip(before, after, strict=True))
    return math.sqrt(change / sum(a.detach().double().square().sum() for a in before))


@pytest.mark.parametrize("family", FAMILY_CONFIGS)
def test_every_tensor_of_every_family_has_a_kind(family):
    names = Checkpoint.open(tiny_model(family)).tensor_names()
    kinds = {kind_of(name) for name in names}
    assert "other" not in kinds
    assert {"embedding", "attention", "norms", "MLP"} <= kinds <= set(KINDS)
    assert all(kind_of(name) == "MLP" for name in names if ".mlp." in name)


@pytest.mark.parametrize("family", ["qwen3", "neox"])
def test_changes_are_those_of_the_formula(family):
    base, target = tiny_pair(family)
    change = weight_change(Checkpoint.open(base), Checkpoint.open(target))
    before, after = base.state_dict(), target.state_dict()
    for layer in range(N_LAYERS):
        for kind, part in (("MLP", ".mlp."), ("attention", ".self_attn." if family == "qwen3" else ".attention.")):
            names = [n for n in before if f"layers.{layer}." in n and part in n and "norm" not in n]
            assert change.relative(kind, layer) == pytest.approx(
                relative([before[n] for n in names], [after[n] for n in names]), rel=1e-5
            )
    every = list(before)
    whole = relative([before[n] for n in every], [after[n] for n in every])
    assert change.relative() == pytest.approx(whole, rel=1e-5)
    assert change.layers == [0, 1, 2, None]
    assert change.relative("unembedding", 0) is None
    assert not change.other
    assert not change.not_compared


def test_only_what_changed_is_counted():
    base = tiny_model("qwen2")
    target = nudged(base, 0.05, seed=1, only="layers.1.mlp")
    change = weight_change(Checkpoint.open(base), Checkpoint.open(target))
    assert change.mlp_share == 1.0
    assert change.relative("MLP", 0) == change.relative("attention") == 0.0
    assert change.relative("MLP", 1) > 0
    assert weight_change(Checkpoint.open(base), Checkpoint.open(base)).mlp_share is None


def test_half_of_the_change_in_the_mlps():
    base = tiny_model("llama")
    target = nudged(base, 0, seed=0)
    with torch.no_grad():
        target.model.layers[0].mlp.up_proj.weight[0, 0] += 3.0
        target.model.embed_tokens.weight[0, 0] += 4.0
    change = weight_change(Checkpoint.open(base), Checkpoint.open(target))
    assert change.mlp_share == pytest.approx(9 / 25, rel=1e-5)  # 3^2 / (3^2 + 4^2)


def test_stored_precision_does_not_matter(tmp_path):
    base, target = (model.bfloat16() for model in tiny_pair("mistral"))
    of_files = weight_change(
        Checkpoint.open(save(base, tmp_path / "base")), Checkpoint.open(save(target.float(), tmp_path / "target"))
    )
    assert of_files == weight_change(Checkpoint.open(base), Checkpoint.open(target))


def test_a_tied_unembedding_is_the_embedding():
    tied, untied = tiny_model("qwen2", tie_word_embeddings=True), tiny_model("qwen2", seed=1)
    tied.tie_weights()
    change = weight_change(Checkpoint.open(tied), Checkpoint.open(untied))
    expected = relative([tied.model.embed_tokens.weight], [untied.lm_head.weight])
    assert change.relative("unembedding") == pytest.approx(expected, rel=1e-5)
    assert not change.not_compared
    both = weight_change(Checkpoint.open(tied), Checkpoint.open(nudged(tied, 0.1, seed=1)))
    assert "unembedding" not in both.kinds


def test_unknown_and_unmatched_tensors_are_named():
    class Given:
        """A checkpoint made of a few tensors."""

        config = tiny_model("qwen2").config

        def __init__(self, **tensors):
            self.tensors = tensors

        def tensor_names(self):
            return sorted(self.tensors)

        def has(self, name):
            return name in self.tensors

        def tensor(self, name):
            return self.tensors[name]

        def shape(self, name):
            return tuple(self.tensors[name].shape)

    one = torch.ones(2)
    change = weight_change(
        Given(gate=one, only_here=one, resized=one),  # type: ignore[arg-type]
        Given(gate=2 * one, resized=torch.ones(3)),  # type: ignore[arg-type]
    )
    assert change.other == ("gate",)
    assert change.not_compared == ("only_here", "resized")
    assert change.relative("other") == 1.0  # |2 - 1| / |1|


def test_weights_that_are_not_finite_give_none():
    base, target = tiny_pair("qwen2")
    with torch.no_grad():
        target.model.layers[0].mlp.up_proj.weight[0, 0] = float("nan")
    change = weight_change(Checkpoint.open(base), Checkpoint.open(target))
    assert change.relative("MLP", 0) is change.mlp_share is None
    assert change.relative("MLP", 1) is not None
