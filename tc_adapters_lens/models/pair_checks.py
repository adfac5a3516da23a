"""What must hold before two models are a pair; each failure is one line with both values and the fix."""

from __future__ import annotations

from collections.abc import Callable

import torch
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from tc_adapters_lens.errors import PairError
from tc_adapters_lens.models.checkpoints import Checkpoint
from tc_adapters_lens.models.families import architecture_of, family_of

_MUST_AGREE: dict[str, Callable[[PretrainedConfig], object]] = {
    "architecture": architecture_of,
    "number of layers": lambda c: c.num_hidden_layers,
    "residual width (hidden_size)": lambda c: c.hidden_size,
    "MLP width (intermediate_size)": lambda c: c.intermediate_size,
    "number of attention heads": lambda c: c.num_attention_heads,
    "number of key/value heads": lambda c: getattr(c, "num_key_value_heads", c.num_attention_heads),
    "head width (head_dim)": lambda c: getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads,
    "activation": lambda c: getattr(c, "hidden_activation", None) or c.hidden_act,
    "norm epsilon": lambda c: getattr(c, "rms_norm_eps", None) or getattr(c, "layer_norm_eps", None),
    "vocabulary size": lambda c: c.vocab_size,
}

_SHOWN_TOKENS = 3


def check_configs(base: PretrainedConfig, target: PretrainedConfig) -> None:
    """Both models have the same shape and the same kind of layers.

    Raises:
        PairError: the first setting that differs, with both values.
        CheckpointError: the architecture is not supported.
    """
    for what, read in _MUST_AGREE.items():
        of_base, of_target = read(base), read(target)
        if of_base != of_target:
            raise PairError(
                f"base and target must have the same {what}. Got {of_base} (base) and {of_target} (target). "
                "Name the model that the target was fine-tuned from."
            )
    family_of(target)


def tokenizer_differences(
    base: PreTrainedTokenizerBase, target: PreTrainedTokenizerBase
) -> list[tuple[int, str | None, str | None]]:
    """Token ids whose text differs: `(id, base's text, target's text)`, None where a tokenizer lacks the id."""
    in_base = {index: token for token, index in base.get_vocab().items()}
    in_target = {index: token for token, index in target.get_vocab().items()}
    return [
        (index, in_base.get(index), in_target.get(index))
        for index in sorted(in_base.keys() | in_target.keys())
        if in_base.get(index) != in_target.get(index)
    ]


def check_tokenizers(
    base: PreTrainedTokenizerBase | None, target: PreTrainedTokenizerBase | None, allow_mismatch: bool
) -> None:
    """Both tokenizers give every id the same text. A model without a tokenizer is not checked.

    Raises:
        PairError: they disagree and this was not allowed; the first tokens are named.
    """
    if base is None or target is None or allow_mismatch:
        return
    differences = tokenizer_differences(base, target)
    if differences:
        shown = "; ".join(f"id {i}: {b!r} (base), {t!r} (target)" for i, b, t in differences[:_SHOWN_TOKENS])
        more = len(differences) - _SHOWN_TOKENS
        raise PairError(
            f"base and target must use the same tokens. Got {shown}{f'; and {more} more' if more > 0 else ''}. "
            "If this is meant, set allow_tokenizer_mismatch (the target's tokenizer is then used)."
        )


def check_mlps_differ(base: Checkpoint, target: Checkpoint) -> None:
    """At least one MLP weight differs, otherwise there is nothing to learn.

    Raises:
        PairError: every MLP tensor of the two models is identical.
    """
    family, n_layers = family_of(target.config), target.config.num_hidden_layers
    for layer in range(n_layers):
        for name in family.mlp_names(layer).values():
            ours, theirs = base.tensor(name), target.tensor(name)
            if not torch.equal(ours, theirs.to(ours.dtype)):
                return
    raise PairError(
        f"base and target must have different MLPs. Got {n_layers} identical layers in {base.name} (base) and "
        f"{target.name} (target): there is nothing to learn. Name the model before and the one after fine-tuning."
    )
