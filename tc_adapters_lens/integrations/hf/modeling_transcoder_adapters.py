"""Transcoder adapters: a sparse branch beside every MLP of a Hugging Face causal language model.

    mlp(x) = MLP(x) + decoder(relu(encoder(x)))

    model = AutoModelForCausalLM.from_pretrained(directory, trust_remote_code=True)
    model.set_groups_off(["hesitation"])   # features of the config's groups that are kept at zero
    model.set_adapters_on(False)           # the branch is not computed at all

All else is the stock class of the family. This file needs torch and transformers alone: it is copied beside weights.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.models.gemma2.configuration_gemma2 import Gemma2Config
from transformers.models.gemma2.modeling_gemma2 import Gemma2ForCausalLM, Gemma2MLP, Gemma2Model
from transformers.models.gpt_neox.configuration_gpt_neox import GPTNeoXConfig
from transformers.models.gpt_neox.modeling_gpt_neox import GPTNeoXForCausalLM, GPTNeoXMLP, GPTNeoXModel
from transformers.models.llama.configuration_llama import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaForCausalLM, LlamaMLP, LlamaModel
from transformers.models.mistral.configuration_mistral import MistralConfig
from transformers.models.mistral.modeling_mistral import MistralForCausalLM, MistralMLP, MistralModel
from transformers.models.qwen2.configuration_qwen2 import Qwen2Config
from transformers.models.qwen2.modeling_qwen2 import Qwen2ForCausalLM, Qwen2MLP, Qwen2Model
from transformers.models.qwen3.configuration_qwen3 import Qwen3Config
from transformers.models.qwen3.modeling_qwen3 import Qwen3ForCausalLM, Qwen3MLP, Qwen3Model


class AdapterConfig(PretrainedConfig):
    """What a family's configuration has besides its own settings.

    Args:
        adapter_features: features of every layer; 0: there is no branch.
        adapters_on: whether the branch is computed.
        adapters_in_float32: keep adapters in float32 where the rest is loaded in bfloat16 or float16.
        groups: name -> (layer, feature) pairs.
        groups_off: names of the groups whose features are kept at zero.
    Raises:
        ValueError: a group names a feature that is not there, or one that is off is not among the groups.
    """

    def __init__(
        self,
        adapter_features: int = 0,
        adapters_on: bool = True,
        adapters_in_float32: bool = False,
        groups: Mapping[str, Sequence[Sequence[int]]] | None = None,
        groups_off: Iterable[str] = (),
        **settings: Any,
    ):
        super().__init__(**settings)
        self.adapter_features = adapter_features
        self.adapters_on = adapters_on
        self.adapters_in_float32 = adapters_in_float32
        self.groups = {name: [list(pair) for pair in pairs] for name, pairs in (groups or {}).items()}
        self.groups_off = list(groups_off)
        for name, pairs in self.groups.items():
            for layer, feature in pairs:
                if not (0 <= layer < self.num_hidden_layers and 0 <= feature < adapter_features):
                    raise ValueError(
                        f"Groups must name features of {self.num_hidden_layers} layers of {adapter_features}. "
                        f"Got layer {layer}, feature {feature} in group '{name}'; take it out of config.json."
                    )
        self.features_of(self.groups_off)

    def features_of(self, names: Iterable[str]) -> dict[int, list[int]]:
        """Layer -> features of these groups together, ascending.

        Raises:
            ValueError: no group has that name.
        """
        layers: dict[int, set[int]] = {}
        for name in names:
            if name not in self.groups:
                known = ", ".join(sorted(self.groups)) or "none"
                raise ValueError(f"A group must be one of the configuration's ({known}). Got '{name}'.")
            for layer, feature in self.groups[name]:
                layers.setdefault(layer, set()).add(feature)
        return {layer: sorted(features) for layer, features in layers.items()}


class Adapter(nn.Module):
    """A layer's sparse branch; computes in its own number type.

    Attributes:
        off: features kept at zero, [n_features].
    """

    off: torch.Tensor

    def __init__(self, d_model: int, n_features: int):
        super().__init__()
        self.encoder = nn.Linear(d_model, n_features)
        self.decoder = nn.Linear(n_features, d_model)
        self.register_buffer("off", torch.zeros(n_features, dtype=torch.bool), persistent=False)
        self.any_off = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[... d_model] -> [... d_model]."""
        features = self.encoder(x.to(self.encoder.weight.dtype)).relu()
        if self.any_off:
            features = features.masked_fill(self.off, 0)
        return self.decoder(features)

    def switch_off(self, features: Sequence[int]) -> None:
        """Keep these features at zero, and no others."""
        self.off.fill_(False)
        self.off[list(features)] = True
        self.any_off = len(features) > 0


class AdapterMLP(nn.Module):
    """Mixin over a family's MLP: the branch beside it."""

    def __init__(self, config: Any):
        super().__init__(config)
        self.adapter_config = config
        self.adapter = Adapter(config.hidden_size, config.adapter_features) if config.adapter_features else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        output = super().forward(x)  # pyright: ignore[reportAttributeAccessIssue]
        if self.adapter is None or not self.adapter_config.adapters_on:
            return output
        return output + self.adapter(x).to(output.dtype)


class AdapterModel(PreTrainedModel):
    """Mixin over a family's models: their MLPs get the branch."""

    mlp_class: type[AdapterMLP]

    def __init__(self, config: Any, *inputs: Any, **options: Any):
        super().__init__(config, *inputs, **options)
        for layer in self.base_model.layers:  # pyright: ignore[reportGeneralTypeIssues]
            layer.mlp = self.mlp_class(config)
        if config.adapter_features and config.adapters_in_float32:
            self._keep_in_fp32_modules_strict = {"adapter"}
        self.set_groups_off(config.groups_off)
        self.post_init()

    def branches(self) -> list[Adapter]:
        """Every layer's branch, in order; none where there are no features."""
        mlps: list[Any] = [layer.mlp for layer in self.base_model.layers]  # pyright: ignore[reportGeneralTypeIssues]
        return [mlp.adapter for mlp in mlps if mlp.adapter is not None]

    def set_adapters_on(self, on: bool) -> None:
        """Whether the branches are computed. The configuration says so too, and is saved."""
        self.config.adapters_on = on

    def set_groups_off(self, names: Iterable[str]) -> None:
        """Keep the features of these groups at zero, and no others. The configuration says so too, and is saved.

        Raises:
            ValueError: no group has that name.
        """
        names = list(names)
        features = self.config.features_of(names)
        self.config.groups_off = names
        for layer, branch in enumerate(self.branches()):
            branch.switch_off(features.get(layer, []))


class Qwen2TranscoderAdaptersConfig(AdapterConfig, Qwen2Config):
    model_type = "qwen2_transcoder_adapters"


class Qwen2TranscoderAdaptersMLP(AdapterMLP, Qwen2MLP):
    pass


class Qwen2TranscoderAdaptersModel(AdapterModel, Qwen2Model):
    config_class = Qwen2TranscoderAdaptersConfig
    mlp_class = Qwen2TranscoderAdaptersMLP


class Qwen2TranscoderAdaptersForCausalLM(AdapterModel, Qwen2ForCausalLM):
    config_class = Qwen2TranscoderAdaptersConfig
    mlp_class = Qwen2TranscoderAdaptersMLP


class Qwen3TranscoderAdaptersConfig(AdapterConfig, Qwen3Config):
    model_type = "qwen3_transcoder_adapters"


class Qwen3TranscoderAdaptersMLP(AdapterMLP, Qwen3MLP):
    pass


class Qwen3TranscoderAdaptersModel(AdapterModel, Qwen3Model):
    config_class = Qwen3TranscoderAdaptersConfig
    mlp_class = Qwen3TranscoderAdaptersMLP


class Qwen3TranscoderAdaptersForCausalLM(AdapterModel, Qwen3ForCausalLM):
    config_class = Qwen3TranscoderAdaptersConfig
    mlp_class = Qwen3TranscoderAdaptersMLP


class LlamaTranscoderAdaptersConfig(AdapterConfig, LlamaConfig):
    model_type = "llama_transcoder_adapters"


class LlamaTranscoderAdaptersMLP(AdapterMLP, LlamaMLP):
    pass


class LlamaTranscoderAdaptersModel(AdapterModel, LlamaModel):
    config_class = LlamaTranscoderAdaptersConfig
    mlp_class = LlamaTranscoderAdaptersMLP


class LlamaTranscoderAdaptersForCausalLM(AdapterModel, LlamaForCausalLM):
    config_class = LlamaTranscoderAdaptersConfig
    mlp_class = LlamaTranscoderAdaptersMLP


class MistralTranscoderAdaptersConfig(AdapterConfig, MistralConfig):
    model_type = "mistral_transcoder_adapters"


class MistralTranscoderAdaptersMLP(AdapterMLP, MistralMLP):
    pass


class MistralTranscoderAdaptersModel(AdapterModel, MistralModel):
    config_class = MistralTranscoderAdaptersConfig
    mlp_class = MistralTranscoderAdaptersMLP


class MistralTranscoderAdaptersForCausalLM(AdapterModel, MistralForCausalLM):
    config_class = MistralTranscoderAdaptersConfig
    mlp_class = MistralTranscoderAdaptersMLP


class Gemma2TranscoderAdaptersConfig(AdapterConfig, Gemma2Config):
    model_type = "gemma2_transcoder_adapters"


class Gemma2TranscoderAdaptersMLP(AdapterMLP, Gemma2MLP):
    pass


class Gemma2AdapterModel(AdapterModel):
    def get_correct_attn_implementation(self, requested_attention: str | None, is_init_check: bool = False) -> str:
        """Eager where nothing is asked for and scores are capped: torch's fused attention leaves the cap out."""
        if requested_attention is None and self.config.attn_logit_softcapping:
            requested_attention = "eager"
        return super().get_correct_attn_implementation(requested_attention, is_init_check)


class Gemma2TranscoderAdaptersModel(Gemma2AdapterModel, Gemma2Model):
    config_class = Gemma2TranscoderAdaptersConfig
    mlp_class = Gemma2TranscoderAdaptersMLP


class Gemma2TranscoderAdaptersForCausalLM(Gemma2AdapterModel, Gemma2ForCausalLM):
    config_class = Gemma2TranscoderAdaptersConfig
    mlp_class = Gemma2TranscoderAdaptersMLP


class GPTNeoXTranscoderAdaptersConfig(AdapterConfig, GPTNeoXConfig):
    model_type = "gpt_neox_transcoder_adapters"


class GPTNeoXTranscoderAdaptersMLP(AdapterMLP, GPTNeoXMLP):
    pass


class GPTNeoXTranscoderAdaptersModel(AdapterModel, GPTNeoXModel):
    config_class = GPTNeoXTranscoderAdaptersConfig
    mlp_class = GPTNeoXTranscoderAdaptersMLP


class GPTNeoXTranscoderAdaptersForCausalLM(AdapterModel, GPTNeoXForCausalLM):
    config_class = GPTNeoXTranscoderAdaptersConfig
    mlp_class = GPTNeoXTranscoderAdaptersMLP
