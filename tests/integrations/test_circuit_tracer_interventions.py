"""Interventions from a graph through circuit-tracer's own replacement model, against the pair's context managers."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from tc_adapters_lens.errors import FeatureGroupError
from tc_adapters_lens.integrations.circuit_tracer.interventions import interventions_of
from tc_adapters_lens.interventions.attached import scaled
from tc_adapters_lens.models.adapter_set import AdapterSet, AdapterSetInfo
from tc_adapters_lens.models.diff_transformer import HookedDiffTransformer
from tc_adapters_lens.models.feature_group import FeatureGroup
from tc_adapters_lens.models.pair import load_pair
from tests.tiny import D_VOCAB, tiny_pair, word_tokenizer

pytest.importorskip("circuit_tracer")
pytestmark = pytest.mark.filterwarnings("ignore:Full backward hook is firing:UserWarning")

TOKENS = torch.randint(3, D_VOCAB, (12,), generator=torch.Generator().manual_seed(0))
TOKENS[0] = 1  # the tokenizer's BOS; without one circuit-tracer adds it
GROUP = FeatureGroup("some", tuple((layer, feature) for layer in range(3) for feature in range(0, 20, 3)))


class WithAdapter(nn.Module):
    """The base's MLP and an adapter's output: the replacement model's MLP, without hook points of the adapter."""

    def __init__(self, mlp: nn.Module, adapter: nn.Module):
        super().__init__()
        self.mlp = mlp
        self.write = lambda x: (x @ adapter.W_enc + adapter.b_enc).relu() @ adapter.W_dec + adapter.b_dec

    def forward(self, x: Tensor) -> Tensor:
        return self.mlp(x) + self.write(x)


@pytest.fixture(scope="module")
def pair() -> HookedDiffTransformer:
    base, target = tiny_pair("qwen2")
    return load_pair((base, word_tokenizer()), (target, word_tokenizer()))


@pytest.fixture(scope="module")
def adapters(pair: HookedDiffTransformer) -> AdapterSet:
    fresh = AdapterSet.fresh(pair.cfg.n_layers, pair.cfg.d_model, 20, AdapterSetInfo(pair.pair))
    generator = torch.Generator().manual_seed(0)
    state = {n: torch.randn(t.shape, generator=generator) * 0.1 for n, t in fresh.state().items()}
    return AdapterSet.from_state(state, fresh.info)


@pytest.fixture(scope="module")
def upstream(pair: HookedDiffTransformer, adapters: AdapterSet) -> object:
    """circuit-tracer's replacement model, whose own MLPs are those of the pair's replacement model."""
    from circuit_tracer.replacement_model.replacement_model_transformerlens import TransformerLensReplacementModel
    from circuit_tracer.transcoder.single_layer_transcoder import SingleLayerTranscoder, TranscoderSet

    transcoders = {}
    for layer, adapter in adapters.items():
        transcoder = SingleLayerTranscoder(
            adapters.d_model,
            adapters.n_features,
            nn.functional.relu,
            layer,
            device=torch.device("cpu"),
            dtype=torch.float32,
        )
        transcoder.W_enc.data = adapter.W_enc.data.T.contiguous()
        for name in ("b_enc", "W_dec", "b_dec"):
            getattr(transcoder, name).data = getattr(adapter, name).data
        transcoders[layer] = transcoder
    cfg = copy.deepcopy(pair.cfg)
    cfg.n_ctx = pair.blocks[0].attn.mask.shape[0]  # the pair's buffers grow on demand
    model = TransformerLensReplacementModel(cfg, pair.tokenizer, move_to_device=False)
    weights = {name: tensor for name, tensor in pair.state_dict().items() if ".mlp." not in name}
    base = {n.replace(".mlp.base.", ".mlp."): t for n, t in pair.state_dict().items() if ".mlp.base." in n}
    model.load_state_dict({**weights, **base})
    for layer, adapter in adapters.items():
        model.blocks[layer].mlp = WithAdapter(model.blocks[layer].mlp, adapter)
    model._configure_replacement_model(TranscoderSet(transcoders, "mlp.hook_in", "mlp.hook_out", scan="tiny"))
    return model.eval()


@pytest.fixture(scope="module")
def graph(upstream):
    from circuit_tracer import attribute

    return attribute(TOKENS, upstream, max_n_logits=2, batch_size=16)


@pytest.mark.parametrize(("factor", "positions"), [(0.0, None), (2.5, None), (0.0, [3, 4, 11]), (-1.0, range(5, 9))])
def test_circuit_tracer_computes_what_the_pair_does(pair, adapters, upstream, graph, factor, positions) -> None:
    interventions = interventions_of(graph, GROUP, factor, positions=positions)
    values = dict(zip(map(tuple, graph.active_features.tolist()), graph.activation_values.tolist(), strict=True))
    assert all(value == factor * values[layer, at, feature] for layer, at, feature, value in interventions)
    with torch.no_grad(), pair.adapters(adapters):
        plain = pair(TOKENS[None])
        torch.testing.assert_close(upstream(TOKENS[None]), plain, atol=1e-5, rtol=0)
        for layer in range(3):  # one layer at a time: what comes after it is recomputed in both
            own = [found for found in interventions if found[0] == layer]
            at = range(1, 12) if positions is None else positions
            with scaled(pair, GROUP, factor, layers=[layer], positions=at):
                expected = pair(TOKENS[None])
            logits, _ = upstream.feature_intervention(graph.input_tokens, own, freeze_attention=False)
            torch.testing.assert_close(logits, expected, atol=1e-5, rtol=0)
            assert (logits - plain).abs().max() > 1e-3


def test_a_group_that_is_not_active_is_said(graph) -> None:
    with pytest.raises(FeatureGroupError, match=r"Got none of 'none' \(1 features\) among its \d+ active ones\."):
        interventions_of(graph, FeatureGroup("none", ((9, 9),)))
    with pytest.raises(FeatureGroupError, match=r"active ones at positions \[0\]"):
        interventions_of(graph, GROUP, positions=[0])
