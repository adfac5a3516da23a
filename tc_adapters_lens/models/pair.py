"""Loading a pair: two checkpoints become one `HookedDiffTransformer`.

Memory: the target once and the base's MLPs. The base is read tensor by tensor, never as a model.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from transformer_lens import HookedTransformer
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from tc_adapters_lens.models.checkpoints import Checkpoint, Source
from tc_adapters_lens.models.diff_transformer import HookedDiffTransformer
from tc_adapters_lens.models.families import family_of, hooked_config
from tc_adapters_lens.models.fused_attention import fused_attention
from tc_adapters_lens.models.pair_checks import checkpoint_checks, pair_checks
from tc_adapters_lens.models.pair_info import PairInfo


def load_pair(
    base: Source,
    target: Source,
    *,
    base_revision: str | None = None,
    target_revision: str | None = None,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    allow_tokenizer_mismatch: bool = False,
) -> HookedDiffTransformer:
    """Load a base model and its fine-tuned target as one hooked model.

    Args:
        base, target: hub id, local directory, loaded HF model, or (loaded HF model, tokenizer). Weights of a
            loaded model are shared, not copied, where dtype and device already fit.
        base_revision, target_revision: branch, tag or commit of a hub model.
        dtype, device: of every weight.
        allow_tokenizer_mismatch: accept tokenizers that disagree; the target's is used.
    Returns:
        The pair; with nothing attached it computes the target.
    Raises:
        CheckpointError: a model cannot be found or read, is of an unsupported kind, or holds NaN.
        PairError: the two do not fit together, or their MLPs are identical.
    """
    base_files = Checkpoint.open(base, base_revision)
    target_files = Checkpoint.open(target, target_revision)
    return load_opened_pair(
        base_files,
        target_files,
        dtype=dtype,
        device=device,
        allow_tokenizer_mismatch=allow_tokenizer_mismatch,
    )


def load_opened_pair(
    base: Checkpoint,
    target: Checkpoint,
    *,
    dtype: torch.dtype,
    device: str | torch.device,
    allow_tokenizer_mismatch: bool,
) -> HookedDiffTransformer:
    """`load_pair` on checkpoints that are already open. Arguments and errors as there."""
    for check in pair_checks(base, target, allow_tokenizer_mismatch):
        check.run()

    family, n_layers = family_of(target.config), target.config.num_hidden_layers
    model = HookedDiffTransformer(
        hooked_config(target.config, dtype, str(device)),
        _own_tokenizer(target.tokenizer),
        n_ctx=target.config.max_position_embeddings,
        pair=PairInfo.of(base, target),
    )
    weights = family.convert(hf_model(target, dtype), model.cfg)
    for layer in range(n_layers):
        for param, name in family.mlp_names(layer).items():
            tensor = base.tensor(name)
            weights[f"blocks.{layer}.mlp.base.{param}"] = tensor.T if tensor.ndim == 2 else tensor
    _assign(model, weights)
    return model


def load_base(
    base: Source,
    *,
    base_revision: str | None = None,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    pair: HookedDiffTransformer | None = None,
) -> HookedTransformer:
    """The whole base model, for measuring it beside a pair. Arguments and errors as in `load_pair`.

    Args:
        pair: the base's own pair: its base MLPs are shared, so that they are in memory once.
    """
    checkpoint = Checkpoint.open(base, base_revision)
    for check in checkpoint_checks("base", checkpoint):
        check.run()
    model = HookedTransformer(
        hooked_config(checkpoint.config, dtype, str(device)),
        _own_tokenizer(checkpoint.tokenizer),
        move_to_device=False,
    )
    for layer, block in enumerate(model.blocks):  # type: ignore[arg-type]
        block.attn = fused_attention(model.cfg, layer)
    model.cfg.n_ctx = checkpoint.config.max_position_embeddings
    model.setup()
    weights = family_of(checkpoint.config).convert(hf_model(checkpoint, dtype), model.cfg)
    if pair is not None:
        shared = {name: tensor for name, tensor in pair.state_dict().items() if ".mlp.base." in name}
        weights |= {name.replace(".mlp.base.", ".mlp."): tensor for name, tensor in shared.items()}
    _assign(model, weights)
    return model


def hf_model(checkpoint: Checkpoint, dtype: torch.dtype) -> PreTrainedModel:
    """The model as an HF module; one that was given in memory as it is."""
    if checkpoint.model is not None:
        return checkpoint.model
    assert checkpoint.directory is not None
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        return AutoModelForCausalLM.from_pretrained(checkpoint.directory, dtype=dtype, local_files_only=True)
    finally:
        transformers_logging.set_verbosity(verbosity)


def _assign(model: HookedTransformer, weights: dict[str, Any]) -> None:
    """Put the weights in without a second copy. Only position buffers, and the zero biases of a base MLP that
    has none, keep their initial value."""
    kept = {name for name, _ in model.named_buffers()}
    kept |= {f"blocks.{i}.mlp.base.{bias}" for i in range(model.cfg.n_layers) for bias in ("b_in", "b_out")}
    state = {name: tensor for name, tensor in model.state_dict().items() if name in kept}
    state |= {name: tensor.detach().to(model.cfg.device, model.cfg.dtype) for name, tensor in weights.items()}
    model.load_state_dict(state, strict=True, assign=True)
    model.move_model_modules_to_device()
    model.eval()


def _own_tokenizer(tokenizer: PreTrainedTokenizerBase | None) -> PreTrainedTokenizerBase | None:
    """A copy for TransformerLens, which changes padding and special tokens of the one it is given.

    TransformerLens also reloads tokenizers from where they came from to make them add a BOS; one that came
    from nowhere is marked as already doing so, and TransformerLens then adds the BOS itself.
    """
    if tokenizer is None:
        return None
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.init_kwargs.setdefault("name_or_path", tokenizer.name_or_path)
    if not tokenizer.name_or_path:
        tokenizer.init_kwargs["add_bos_token"] = True
    return tokenizer
