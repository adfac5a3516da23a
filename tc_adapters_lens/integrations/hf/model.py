"""A pair's models as one stock Hugging Face model with adapters beside its MLPs."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import PretrainedConfig
from transformers.modeling_utils import init_empty_weights, no_init_weights

from tc_adapters_lens.errors import AdapterSetError, FeatureGroupError
from tc_adapters_lens.integrations.hf import modeling_transcoder_adapters as modeling
from tc_adapters_lens.models.adapter_set import AdapterSet
from tc_adapters_lens.models.checkpoints import Checkpoint
from tc_adapters_lens.models.families import architecture_of
from tc_adapters_lens.models.feature_group import FeatureGroup
from tc_adapters_lens.models.pair import hf_model
from tc_adapters_lens.models.pair_checks import checkpoint_checks, mlp_tensor_names, pair_checks

# parameter -> the branch's tensor, and whether torch's Linear holds it transposed
_TENSOR_OF = {
    "W_enc": ("encoder.weight", True),
    "b_enc": ("encoder.bias", False),
    "W_dec": ("decoder.weight", True),
    "b_dec": ("decoder.bias", False),
}
_DROPPED = ("model_type", "architectures", "auto_map", "_name_or_path", "transformers_version")


def adapter_model(
    base: Checkpoint,
    target: Checkpoint,
    adapters: AdapterSet | None,
    *,
    mlps: Literal["base", "target"] = "base",
    groups: Sequence[FeatureGroup] = (),
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
) -> modeling.AdapterModel:
    """The target with other MLPs and adapters beside them, in evaluation mode.

    Memory: the target once and the base's MLPs. Weights of a model in memory are shared where dtype and device fit;
    adapters are copied and keep their own dtype.

    Args:
        base: read only with `mlps` "base".
        adapters: with MLPs of the base the replacement model, of the target the target with them added; None: nothing
            is added, which is the hybrid or the target.
        mlps: whose MLPs.
        groups: features that `set_groups_off` of the model turns off by name; on at first.
        dtype, device: of all other weights.
    Returns:
        A causal language model with fused attention, or eager where attention scores are capped.
    Raises:
        CheckpointError, PairError: as `load_pair`, whose tokenizers are not compared.
        AdapterSetError: other layers or another width than the models'.
        FeatureGroupError: two groups of one name, or a group of other adapters.
    """
    checks = pair_checks(base, target, True) if mlps == "base" else checkpoint_checks("target", target)
    for check in checks:
        check.run()
    config = _config(target.config, adapters, groups, dtype)
    source = hf_model(target, dtype)
    with no_init_weights(), init_empty_weights(include_buffers=False):
        model: modeling.AdapterModel = getattr(modeling, _classes(target.config)["AutoModelForCausalLM"])(config)
    weights = dict(source.state_dict())
    if mlps == "base":
        weights |= {name: base.tensor(name) for name in mlp_tensor_names(target.config)}
    weights = {name: tensor.detach().to(device, dtype) for name, tensor in weights.items()}
    if adapters is not None:
        layers = f"{model.base_model_prefix}.layers"
        for layer, tensors in _branches(adapters).items():
            weights |= {f"{layers}.{layer}.mlp.adapter.{name}": t.to(device) for name, t in tensors.items()}
    model.load_state_dict(weights, strict=True, assign=True)
    model.tie_weights()
    model.generation_config = copy.deepcopy(source.generation_config)
    return model.to(device).eval()  # pyright: ignore[reportArgumentType]


@torch.no_grad()
def set_adapters(model: modeling.AdapterModel, adapters: AdapterSet) -> None:
    """Put other adapters into the branches that a model has, in place and in the branches' dtype.

    Raises:
        AdapterSetError: the model has no branches, or ones of other layers, width or number of features.
    """
    config = model.config
    wanted = (config.num_hidden_layers, config.hidden_size, config.adapter_features)
    got = (adapters.n_layers, adapters.d_model, adapters.n_features)
    if got != wanted:
        raise AdapterSetError(
            f"Adapters must have the layers, width and features of the model's branches, {wanted}. Got {got}; "
            "make another adapter_model of them."
        )
    for layer, tensors in _branches(adapters).items():
        branch = model.branches()[layer]
        for name, tensor in tensors.items():
            branch.get_parameter(name).copy_(tensor)


def _branches(adapters: AdapterSet) -> dict[int, dict[str, Tensor]]:
    """Layer -> copies of its adapter's parameters, named and laid out as the branch has them."""
    return {
        layer: {
            name: (tensor.T if transposed else tensor).detach().clone(memory_format=torch.contiguous_format)
            for parameter, (name, transposed) in _TENSOR_OF.items()
            for tensor in [adapter.get_parameter(parameter)]
        }
        for layer, adapter in adapters.items()
    }


def _config(
    target: PretrainedConfig, adapters: AdapterSet | None, groups: Sequence[FeatureGroup], dtype: torch.dtype
) -> PretrainedConfig:
    """The target's configuration with the branches' settings, and where its classes are."""
    if adapters is not None:
        ours, theirs = (adapters.n_layers, adapters.d_model), (target.num_hidden_layers, target.hidden_size)
        if ours != theirs:
            raise AdapterSetError(
                f"Adapters and models must have the same layers and width. Got {ours} (adapters) and {theirs} (models)."
            )
    elif groups:
        raise FeatureGroupError(f"Groups are of adapters. Got '{groups[0].name}' without any; leave it out.")
    names = [group.name for group in groups]
    if twice := {name for name in names if names.count(name) > 1}:
        raise FeatureGroupError(f"Groups must have different names. Got '{min(twice)}' twice; rename one.")
    for group in groups:
        group.require_in(adapters)  # pyright: ignore[reportArgumentType]
    classes = _classes(target)
    settings: dict[str, Any] = {name: value for name, value in target.to_dict().items() if name not in _DROPPED}
    config = getattr(modeling, classes["AutoConfig"])(
        **settings,
        adapter_features=0 if adapters is None else adapters.n_features,
        adapters_in_float32=adapters is not None and adapters.dtype == torch.float32,
        groups={group.name: [list(feature) for feature in group] for group in groups},
        architectures=[classes["AutoModelForCausalLM"]],
    )
    module = modeling.__name__.rpartition(".")[2]
    config.auto_map = {auto: f"{module}.{name}" for auto, name in classes.items()}
    config.dtype = dtype
    return config


def _classes(target: PretrainedConfig) -> dict[str, str]:
    """Name of transformers' automatic class -> that of the one it stands for."""
    family = architecture_of(target).removesuffix("ForCausalLM")
    kinds = {"AutoConfig": "Config", "AutoModel": "Model", "AutoModelForCausalLM": "ForCausalLM"}
    return {auto: f"{family}TranscoderAdapters{kind}" for auto, kind in kinds.items()}
