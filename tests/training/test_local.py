"""One layer's adapter by SAELens' own, unchanged training runner, and what it is good for afterwards."""

from __future__ import annotations

import pytest
import torch
from datasets import Dataset
from sae_lens import (
    SAE,
    LanguageModelSAERunnerConfig,
    LanguageModelSAETrainingRunner,
    LoggingConfig,
    Transcoder,
)
from sae_lens.saes.sae import TrainStepInput

from tc_adapters_lens.models.adapter_set import AdapterSet, AdapterSetInfo
from tc_adapters_lens.models.diff_transformer import HookedDiffTransformer
from tc_adapters_lens.models.names import hook_delta, hook_in, hook_io
from tc_adapters_lens.models.pair import load_pair
from tc_adapters_lens.training.local import LocalTranscoder, LocalTranscoderConfig
from tc_adapters_lens.training.warm_start import load_warm_start
from tests.tiny import D_MODEL, D_VOCAB, N_LAYERS, tiny_pair, word_tokenizer

LAYER, N_FEATURES = 1, 64


def test_loss_by_hand() -> None:
    """x = (1, 2), delta = (3, 0); feature 0 reads x0 + x1 = 3, feature 1 reads -x0 and is silent."""
    cfg = LocalTranscoderConfig(d_in=4, d_sae=2, layer=0, l1_coefficient=0.1)
    adapter = LocalTranscoder(cfg)
    with torch.no_grad():
        adapter.W_enc.copy_(torch.tensor([[1.0, -1.0], [1.0, 0.0]]))
        adapter.W_dec.copy_(torch.tensor([[0.0, 2.0], [5.0, 5.0]]))
    output = adapter.training_forward_pass(
        TrainStepInput(torch.tensor([[1.0, 2.0, 3.0, 0.0]]), {"l1": 0.1}, None, 0, False)
    )
    assert output.feature_acts.tolist() == [[3.0, 0.0]]
    assert output.sae_out.tolist() == [[0.0, 6.0]]
    assert output.losses["mse_loss"] == 45.0  # (0 - 3)^2 + (6 - 0)^2
    assert output.losses["l1_loss"].item() == pytest.approx(0.6)  # 0.1 * 3 * |(0, 2)|
    assert output.loss.item() == pytest.approx(45.6)


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[HookedDiffTransformer, str]:
    base, target = tiny_pair()
    model = load_pair((base, word_tokenizer()), (target, word_tokenizer()))
    tokens = torch.randint(3, D_VOCAB, (300, 32), generator=torch.Generator().manual_seed(0))
    out = tmp_path_factory.mktemp("local")
    cfg = LanguageModelSAERunnerConfig(
        sae=LocalTranscoderConfig(d_in=2 * D_MODEL, d_sae=N_FEATURES, layer=LAYER, l1_coefficient=1e-4),
        hook_name=hook_io(LAYER),
        dataset_path="",
        is_dataset_tokenized=True,
        streaming=False,
        context_size=32,
        prepend_bos=False,
        training_tokens=25_600,
        train_batch_size_tokens=256,
        store_batch_size_prompts=8,
        n_batches_in_buffer=32,
        lr=1e-2,
        checkpoint_path=None,
        output_path=str(out / f"layer_{LAYER}"),
        logger=LoggingConfig(log_to_wandb=False),
        verbose=False,
    )
    dataset = Dataset.from_dict({"tokens": tokens.tolist()})
    LanguageModelSAETrainingRunner(cfg, override_dataset=dataset, override_model=model).run()
    return model, str(out)


@pytest.mark.filterwarnings("ignore")
def test_stock_runner_learns_delta(trained) -> None:
    model, out = trained
    adapter = SAE.load_from_disk(f"{out}/layer_{LAYER}")
    assert type(adapter) is Transcoder
    assert (adapter.cfg.metadata.hook_name, adapter.cfg.metadata.hook_name_out) == (
        hook_in(LAYER),
        hook_delta(LAYER),
    )
    held_out = torch.randint(3, D_VOCAB, (8, 32), generator=torch.Generator().manual_seed(9))
    with torch.no_grad():
        _, cache = model.run_with_cache(held_out)
        x, delta = cache[hook_in(LAYER)], cache[hook_delta(LAYER)]
        error = (adapter(x) - delta).square().sum() / delta.square().sum()
    assert error < 0.5
    with model.mode("target"):
        _, cache = model.run_with_cache_with_saes(held_out, saes=[adapter])
    assert f"{hook_delta(LAYER)}.hook_sae_acts_post" in cache


def test_result_warm_starts_the_joint_run(trained) -> None:
    model, out = trained
    fresh = AdapterSet.fresh(N_LAYERS, D_MODEL, N_FEATURES, AdapterSetInfo(model.pair))
    warm = load_warm_start(out, fresh)
    adapter = SAE.load_from_disk(f"{out}/layer_{LAYER}")
    assert torch.equal(warm[LAYER].W_enc, adapter.W_enc)
    assert torch.equal(warm[LAYER].W_dec, adapter.W_dec)
    assert torch.equal(warm[0].W_enc, fresh[0].W_enc)
    assert not warm[0].W_dec.any()
