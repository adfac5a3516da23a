"""What must hold before two models are a pair; each failure is one line with both values and the fix.

`load_pair` runs the checks one after the other and stops at the first that fails; `tc-adapters doctor` runs all
that can still be run. Tensors are streamed: no model is loaded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from tc_adapters_lens.errors import CheckpointError, PairError
from tc_adapters_lens.models.checkpoints import Checkpoint
from tc_adapters_lens.models.families import architecture_of, family_of, hooked_config, weight_shapes

_MUST_AGREE: dict[str, Callable[[PretrainedConfig], object]] = {
    "number of layers": lambda c: c.num_hidden_layers,
    "residual width (hidden_size)": lambda c: c.hidden_size,
    "MLP width (intermediate_size)": lambda c: c.intermediate_size,
    "number of attention heads": lambda c: c.num_attention_heads,
    "number of key/value heads": lambda c: getattr(c, "num_key_value_heads", c.num_attention_heads),
    "head width (head_dim)": lambda c: getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads,
    "activation": lambda c: getattr(c, "hidden_activation", None) or c.hidden_act,
    "MLP biases (mlp_bias)": lambda c: getattr(c, "mlp_bias", False),
    "norm epsilon": lambda c: getattr(c, "rms_norm_eps", None) or getattr(c, "layer_norm_eps", None),
    "vocabulary size": lambda c: c.vocab_size,
}

_SHOWN_TOKENS = 3

Watch = Callable[[Iterable[str]], Iterable[str]]
"""Passes tensor names through while they are read: a progress bar."""


def _unwatched(names: Iterable[str]) -> Iterable[str]:
    return names


class PairCheck(NamedTuple):
    """One thing that must hold.

    name: what, as a statement.
    run: returns what was found (may be ""); raises PairError or CheckpointError where it does not hold.
    needs: names of the checks without which this one makes no sense.
    """

    name: str
    run: Callable[[], str]
    needs: tuple[str, ...] = ()


def pair_checks(
    base: Checkpoint, target: Checkpoint, allow_tokenizer_mismatch: bool, watch: Watch = _unwatched
) -> list[PairCheck]:
    """Every check of a pair, the cheap ones first. Of the base only the MLPs are used, so only they are checked."""

    def tokenizers() -> str:
        return check_tokenizers(base.tokenizer, target.tokenizer, allow_tokenizer_mismatch)

    shape = config_checks(base.config, target.config)
    _, base_complete, base_finite = checkpoint_checks("base", base, watch, only_mlps=True)
    _, target_complete, target_finite = checkpoint_checks("target", target, watch)
    comparable = tuple(check.name for check in (*shape, base_complete, target_complete))
    return [
        *shape,
        PairCheck("the tokenizers agree", tokenizers),
        base_complete,
        target_complete,
        base_finite,
        target_finite,
        PairCheck("the MLPs differ", lambda: check_mlps_differ(base, target), comparable),
    ]


def config_checks(base: PretrainedConfig, target: PretrainedConfig) -> list[PairCheck]:
    """Both models have the same shape and the same kind of layers, and that kind is supported."""

    def agree(what: str, read: Callable[[PretrainedConfig], object]) -> Callable[[], str]:
        def run() -> str:
            of_base, of_target = read(base), read(target)
            if of_base != of_target:
                raise PairError(
                    f"base and target must have the same {what}. Got {of_base} (base) and {of_target} (target). "
                    "Name the model that the target was fine-tuned from."
                )
            return str(of_target)

        return run

    supported = [_supported("base", base, only_mlps=True), _supported("target", target)]
    needs = tuple(check.name for check in supported)
    return [
        PairCheck("same architecture", agree("architecture", architecture_of)),
        *supported,
        *(PairCheck(f"same {what}", agree(what, read), needs) for what, read in _MUST_AGREE.items()),
    ]


def checkpoint_checks(
    role: str, checkpoint: Checkpoint, watch: Watch = _unwatched, only_mlps: bool = False
) -> list[PairCheck]:
    """What must hold of one model by itself: a supported kind, every weight there, every weight finite."""
    part = "MLP weight" if only_mlps else "weight"

    def finite() -> str:
        names = mlp_tensor_names(checkpoint.config) if only_mlps else checkpoint.tensor_names()
        checkpoint.check_finite(watch(names))
        return f"{len(names)} tensors"

    supported = _supported(role, checkpoint.config, only_mlps)
    complete = PairCheck(f"{role} holds every {part}", lambda: check_complete(checkpoint, only_mlps), (supported.name,))
    needs = (supported.name, complete.name)
    return [supported, complete, PairCheck(f"every {part} of {role} is finite", finite, needs)]


def _supported(role: str, config: PretrainedConfig, only_mlps: bool = False) -> PairCheck:
    def run() -> str:
        if only_mlps:  # its attention may be of any kind
            family_of(config)
        else:
            hooked_config(config, torch.float32, "cpu")
        return architecture_of(config)

    return PairCheck(f"{role} is of a supported kind", run)


def check_configs(base: PretrainedConfig, target: PretrainedConfig) -> None:
    """`config_checks`, stopping at the first that fails.

    Raises:
        PairError: the first setting that differs, with both values.
        CheckpointError: the architecture, or a setting of it, is not supported.
    """
    for check in config_checks(base, target):
        check.run()


def mlp_tensor_names(config: PretrainedConfig) -> list[str]:
    """HF names of every layer's MLP tensors."""
    family = family_of(config)
    return [name for layer in range(config.num_hidden_layers) for name in family.mlp_names(layer).values()]


def check_complete(checkpoint: Checkpoint, only_mlps: bool = False) -> str:
    """Every weight (or every MLP weight) that the configuration asks for is stored, in its shape.

    Returns:
        How many tensors were found.
    Raises:
        CheckpointError: a tensor is missing or has another shape.
    """
    if checkpoint.model is not None:
        return "in memory"
    expected = weight_shapes(checkpoint.config)
    if only_mlps:
        expected = {name: expected[name] for name in mlp_tensor_names(checkpoint.config)}
    missing = sorted(name for name in expected if not checkpoint.has(name))
    if missing:
        raise CheckpointError(
            f"{checkpoint.name} must hold every weight of {architecture_of(checkpoint.config)}. Got {len(missing)} of "
            f"{len(expected)} missing, the first of them '{missing[0]}'. Use a complete checkpoint."
        )
    for name, shape in expected.items():
        if checkpoint.shape(name) != shape:
            raise CheckpointError(
                f"{checkpoint.name}: tensor '{name}' must have the shape that config.json gives it, {list(shape)}. "
                f"Got {list(checkpoint.shape(name))}. Use the config.json that the weights were saved with."
            )
    return f"{len(expected)} tensors"


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
) -> str:
    """Both tokenizers give every id the same text. A model without a tokenizer is not checked.

    Returns:
        What was compared.
    Raises:
        PairError: they disagree and this was not allowed; the first tokens are named.
    """
    if base is None or target is None:
        without = [role for role, tokenizer in (("base", base), ("target", target)) if tokenizer is None]
        return f"not compared: {' and '.join(without)} without a tokenizer"
    differences = tokenizer_differences(base, target)
    if not differences:
        return f"{len(target)} tokens"
    shown = "; ".join(f"id {i}: {b!r} (base), {t!r} (target)" for i, b, t in differences[:_SHOWN_TOKENS])
    more = len(differences) - _SHOWN_TOKENS
    shown += f"; and {more} more" if more > 0 else ""
    if allow_mismatch:
        return f"they do not, which is allowed: {shown}"
    raise PairError(
        f"base and target must use the same tokens. Got {shown}. "
        "If this is meant, set allow_tokenizer_mismatch (the target's tokenizer is then used)."
    )


def check_mlps_differ(base: Checkpoint, target: Checkpoint) -> str:
    """At least one MLP weight differs, otherwise there is nothing to learn.

    Returns:
        The first tensor that differs.
    Raises:
        PairError: every MLP tensor of the two models is identical.
    """
    for name in mlp_tensor_names(target.config):
        ours, theirs = base.tensor(name), target.tensor(name)
        if not torch.equal(ours, theirs.to(ours.dtype)):
            return f"first in {name}"
    raise PairError(
        f"base and target must have different MLPs. Got {target.config.num_hidden_layers} identical layers in "
        f"{base.name} (base) and {target.name} (target): there is nothing to learn. Name the model before and the "
        "one after fine-tuning."
    )
