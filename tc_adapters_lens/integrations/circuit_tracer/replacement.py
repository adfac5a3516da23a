"""A pair and its adapters as circuit-tracer's replacement model.

    model = load_pair(base, target)
    replacement = replacement_model(model, AdapterSet.load("runs/toy/adapters", pair=model.pair))
    graph = attribute(tokens, replacement)                  # circuit-tracer's own, as all else of it

Features are the adapters', errors what they leave of the difference, and the base's MLP is the transcoders' skip path:
gradients go through it by RelP (`core.relp`), so that its part in every edge is counted.

Which model is sampled, that is, whose forward pass is explained:

- `replacement`: base MLPs and adapters. There are no errors.
- `target`: the target. What the adapters miss of it is an error node in every layer at every position.

Position 0 is a position like any other here, and a prompt given as tokens is taken as it is; with `zero_first` both are
as circuit-tracer has them: features and errors of position 0 are left out, and a special token is put there.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, cast, get_args

import torch
from circuit_tracer.attribution.context_transformerlens import AttributionContext
from circuit_tracer.replacement_model.replacement_model_transformerlens import TransformerLensReplacementModel
from jaxtyping import Float, Int
from torch import Tensor, nn

from tc_adapters_lens.core.relp import Rule
from tc_adapters_lens.errors import ConfigError, DataError, GraphError
from tc_adapters_lens.integrations.circuit_tracer.account import Account
from tc_adapters_lens.integrations.circuit_tracer.context import FrozenContext
from tc_adapters_lens.integrations.circuit_tracer.frozen import FrozenModel, is_recorded
from tc_adapters_lens.integrations.circuit_tracer.transcoders import (
    FEATURE_INPUT,
    FEATURE_OUTPUT,
    AdapterTranscoder,
    AdapterTranscoders,
)
from tc_adapters_lens.models.adapter_set import AdapterSet
from tc_adapters_lens.models.diff_transformer import HookedDiffTransformer
from tc_adapters_lens.models.pair_info import check_same_pair

__all__ = ["LOCAL_FEATURES", "AdapterReplacementModel", "Route", "Sampled", "replacement_model"]

Sampled = Literal["replacement", "target"]
Route = Literal["frozen", "upstream"]

LOCAL_FEATURES = "./data/features"
"""The scan of graphs whose features circuit-tracer's page reads from where it is served."""


def replacement_model(
    model: HookedDiffTransformer,
    adapters: AdapterSet,
    *,
    sampled: Sampled = "replacement",
    rule: Rule = "relp",
    zero_first: bool = False,
    route: Route = "frozen",
    scan: str | None = LOCAL_FEATURES,
    allow_other_pair: bool = False,
) -> AdapterReplacementModel:
    """circuit-tracer's replacement model of a pair; weights are shared with it, not copied.

    Args:
        sampled: the model whose forward pass is explained.
        rule: how gradients go through gated MLPs.
        zero_first: leave features and errors of position 0 out, as circuit-tracer does.
        route: how edges are computed: from the frozen linear model, or by circuit-tracer's autograd. They are the same.
        scan: where circuit-tracer's page finds the features.
        allow_other_pair: accept adapters trained on other weights.
    Raises:
        AdapterSetError: the adapters do not fit the pair, or were trained on another.
        ConfigError: an unknown word, or `gate-detach` where MLPs have no gate.
    """
    model.check_fits(adapters)
    if not allow_other_pair:
        check_same_pair("Adapters", adapters.info.pair, model.pair)
    for name, value, known in (
        ("sampled", sampled, get_args(Sampled)),
        ("rule", rule, get_args(Rule)),
        ("route", route, get_args(Route)),
    ):
        if value not in known:
            raise ConfigError(f"{name} must be one of {', '.join(known)}. Got {value!r}.")
    if rule == "gate-detach" and not model.cfg.gated_mlp:
        raise ConfigError("rule gate-detach needs gated MLPs. Got a pair with plain ones; use relp.")
    cfg = copy.deepcopy(model.cfg)
    cfg.n_ctx = cast(Any, model.blocks[0]).attn.mask.shape[0]  # position buffers, which grow on demand
    if model.tokenizer is not None:
        cfg.tokenizer_name = model.tokenizer.name_or_path
    made = AdapterReplacementModel(cfg, model.tokenizer, move_to_device=False)
    made.cfg.n_ctx = model.cfg.n_ctx
    base, others = ".mlp.base.", ".mlp." if sampled == "replacement" else ".mlp.base."
    shared = {name: param.detach() for name, param in model.named_parameters()}
    weights = {name: param for name, param in shared.items() if others not in name}
    if sampled == "replacement":
        weights |= {name.replace(base, ".mlp."): param for name, param in shared.items() if base in name}
    made.load_state_dict({**dict(made.named_buffers()), **weights}, assign=True)
    made.move_model_modules_to_device()
    transcoders = AdapterTranscoders(model, adapters, rule, scan)
    if sampled == "replacement":
        for block, transcoder in zip(cast(Any, made.blocks), transcoders, strict=True):
            block.mlp = _AdaptedMlp(block.mlp, cast(AdapterTranscoder, transcoder))
    made._configure_replacement_model(transcoders)
    made.zero_positions = slice(0, int(zero_first))
    made.sampled, made.route = sampled, route
    return made.eval()


class _AdaptedMlp(nn.Module):
    """The base's MLP plus its adapter."""

    def __init__(self, mlp: nn.Module, transcoder: AdapterTranscoder) -> None:
        super().__init__()
        self.mlp = mlp
        self.written = transcoder.written

    def forward(self, x: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_model"]:
        return self.mlp(x) + self.written(x)


class AdapterReplacementModel(TransformerLensReplacementModel):
    """See the module; `replacement_model` makes one.

    Attributes:
        sampled: the model whose forward pass is explained.
        route: how edges are computed.
    """

    sampled: Sampled
    route: Route
    transcoders: AdapterTranscoders

    def ensure_tokenized(self, prompt: str | Tensor | list[int]) -> Int[Tensor, " pos"]:
        """A text as the tokenizer has it, its own special tokens included; tokens as they are."""
        if self.zero_positions.stop:
            return super().ensure_tokenized(prompt)
        if isinstance(prompt, str):
            if self.tokenizer is None:
                raise DataError("A prompt given as text needs a tokenizer. Got a pair without one; give token ids.")
            prompt = cast(list[int], self.tokenizer(prompt).input_ids)
        return torch.as_tensor(prompt, dtype=torch.long).flatten().to(self.cfg.device)

    @torch.no_grad()
    def setup_attribution(self, inputs: str | Tensor) -> AttributionContext:
        """Upstream's, from one forward pass: active features, errors, and what rows are computed from."""
        return self._set_up(self.ensure_tokenized(inputs))[0]

    def run_forward_pass(self, input_ids: Tensor, batch_size: int, ctx: AttributionContext) -> None:
        """Upstream's, where the context still needs one."""
        if not isinstance(ctx, FrozenContext):
            super().run_forward_pass(input_ids, batch_size, ctx)

    def get_offload_targets_phase0(self) -> list:
        """None, here and below: weights are shared with the pair, so nothing is freed where they are moved away."""
        return []

    get_offload_targets_phase1 = get_offload_targets_phase2 = get_offload_targets_phase0

    @torch.no_grad()
    def account(self, tokens: Int[Tensor, " pos"]) -> Account:
        """What the nodes of a prompt's graph have besides their edges, in the order of `setup_attribution`."""
        return self.account_and_context(tokens)[0]

    @torch.no_grad()
    def account_and_context(self, tokens: Int[Tensor, " pos"]) -> tuple[Account, AttributionContext]:
        """`account` and `setup_attribution` from one forward pass."""
        context, frozen, recorded = self._set_up(self.ensure_tokenized(tokens))
        inputs, outputs = _per_layer(recorded, FEATURE_INPUT), _per_layer(recorded, FEATURE_OUTPUT)
        first = self.zero_positions
        left_out = [torch.zeros_like(x) for x in inputs]
        for out, x, written, transcoder in zip(left_out, inputs, outputs, self.transcoders, strict=True):
            out[first] = written[first] - transcoder.compute_skip(x[first]) - transcoder.b_dec
        output = recorded["unembed.hook_pre"][0, -1]
        return Account.of(context, frozen, self.transcoders, inputs, left_out, output), context

    def setup_intervention_with_freeze(
        self, inputs: str | Tensor, constrained_layers: range | None = None
    ) -> tuple[Tensor, list[tuple[str, Callable]]]:
        """Upstream's; in constrained layers the base's MLP stays the linear map that edges are made of."""
        activations, hooks = super().setup_intervention_with_freeze(inputs, constrained_layers)
        if not constrained_layers:
            return activations, hooks
        recorded = self._record(self.ensure_tokenized(inputs), lambda name: name.endswith(FEATURE_INPUT))
        linear = self.transcoders.linear_at(_per_layer(recorded, FEATURE_INPUT))

        def held(value: Tensor, hook, inner: Callable, layer: int) -> Tensor | None:
            with self.transcoders.hold(layer, linear[layer]):
                return inner(value, hook=hook)

        return activations, [
            (name, partial(held, inner=inner, layer=int(name.split(".")[1])) if name.endswith(FEATURE_INPUT) else inner)
            for name, inner in hooks
        ]

    def feature_intervention(self, inputs: str | Tensor, *args, **options) -> tuple[Tensor, Tensor | None]:
        """Upstream's, with a text tokenized as for a graph."""
        return super().feature_intervention(self.ensure_tokenized(inputs), *args, **options)

    def __del__(self) -> None:
        if not sys.is_finalizing():  # what upstream's clean-up uses may be gone
            super().__del__()

    def _set_up(self, tokens: Int[Tensor, " pos"]) -> tuple[AttributionContext, FrozenModel, dict[str, Tensor]]:
        if len(tokens) < 2:
            raise GraphError(f"A graph needs a prompt of at least 2 tokens. Got {len(tokens)}.")
        context: list[AttributionContext] = []
        recorded = self._record(
            tokens,
            lambda name: is_recorded(name) or name.endswith((FEATURE_INPUT, FEATURE_OUTPUT, "unembed.hook_pre")),
            lambda: context.append(super(AdapterReplacementModel, self).setup_attribution(tokens)),
        )
        if self.sampled == "replacement":
            context[0].error_vectors.zero_()  # rounding alone
        mlps = self.transcoders.linear_at(_per_layer(recorded, FEATURE_INPUT))
        frozen = FrozenModel.of(self, mlps, recorded)
        if self.route == "frozen":
            context[0] = FrozenContext(context[0], frozen)
        return context[0], frozen, recorded

    @torch.no_grad()
    def _record(
        self, tokens: Int[Tensor, " pos"], wanted: Callable[[str], bool], run: Callable[[], object] | None = None
    ) -> dict[str, Tensor]:
        """Values of hook points in one forward pass."""
        values: dict[str, Tensor] = {}

        def keep(value: Tensor, hook) -> None:
            values[cast(str, hook.name)] = value.detach()

        with self.hooks(fwd_hooks=[(wanted, keep)]):
            self(tokens[None]) if run is None else run()
        return values


def _per_layer(recorded: dict[str, Tensor], hook: str) -> list[Float[Tensor, "pos d_model"]]:
    """The values of a layer's hook point, in order of layers."""
    named = {int(name.split(".")[1]): value[0] for name, value in recorded.items() if name.endswith(hook)}
    return [named[layer] for layer in range(len(named))]
