"""What scripts/bench_train compares: one training step done in a naive way, the trainer's own, and its matmuls alone.

All of them work on one random pair with the same weights, adapters, tokens and cutoffs.

naive       Every term of the objective has its own full forward passes from the tokens, as in the authors' code: KL
            and NMSE a target and a replacement pass each, the bridges one each; all logits in float32; one autograd
            graph. 6 L layer forwards, 3.5 L backwards. With `shared`, KL and NMSE come from the same two passes.
ours        `AdapterTrainer.step`.
floor       Every matmul and attention kernel that has to run when nothing is computed twice, on buffers made before:
            no norms, activations, softmax, KL, or optimizer. For a cutoff k: L layers of the target, L of the
            replacement, L - k of each bridge. The replacement pass shares the first layer's attention with the
            target, a bridge shares that of layer k with the pass it leaves. Backwards give input gradients of frozen
            weights, and of adapters the weights' too; none go where no adapter lies below. Adapters are dense, or,
            with `active_only`, of an adapter only the encoder's matmul remains: all else could touch active features
            alone, and is left out.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.profiler import record_function
from torch.utils._pytree import tree_leaves
from transformer_lens.hook_points import HookPoint
from transformers import AutoModelForCausalLM, PreTrainedModel, Qwen2Config

from tc_adapters_lens.core.losses import kl_divergence
from tc_adapters_lens.core.statistics import update_tokens_since_fired
from tc_adapters_lens.models.diff_transformer import HookedDiffTransformer
from tc_adapters_lens.models.names import hook_delta, hook_in
from tc_adapters_lens.models.pair import load_pair
from tc_adapters_lens.training.config import ObjectiveConfig
from tc_adapters_lens.training.data import TokenBatch
from tc_adapters_lens.training.joint import JointTranscoder, JointTranscoderConfig, LayerWeights
from tc_adapters_lens.training.objective import ObjectiveTerms, draw_cutoff, weighted_sum
from tc_adapters_lens.training.trainer import MAX_GRAD_NORM, AdapterTrainer, AdapterTrainerConfig

PARTS = (
    "target pass",
    "replacement pass",
    "bridges",
    "unembedding and KL",
    "backward",
    "optimizer",
    "statistics",
)
L1_COEFFICIENT = 1e-3
LEARNING_RATE = 1e-12  # the optimizer works as ever, and no repetition changes the weights for the next
KL_CHUNK = 512  # positions that the floor unembeds at a time


@dataclass(frozen=True)
class Shape:
    """Sizes of a pair, its adapters and a batch.

    Args:
        l0: features that are active on a token, about.
    """

    d_model: int = 256
    n_layers: int = 8
    n_heads: int = 4
    n_kv_heads: int = 2
    d_mlp: int = 1024
    n_features: int = 1024
    d_vocab: int = 8192
    length: int = 512
    batch: int = 1
    dtype: str = "float32"
    device: str = "cpu"
    l0: float = 30.0
    seed: int = 0

    @property
    def n_tokens(self) -> int:
        return self.batch * self.length

    @property
    def torch_dtype(self) -> torch.dtype:
        return getattr(torch, self.dtype)


class Subject:
    """A random Qwen2-like pair, adapters and tokens.

    Attributes:
        shape: its sizes.
        base, target: as Hugging Face models, on the CPU; they share everything but the MLPs.
        model: the pair.
        adapters: all layers' parameters, float32, on the CPU.
        tokens: `[batch length]`.
    """

    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        torch.manual_seed(shape.seed)
        self.base, self.target = _random_pair(shape)
        self.model: HookedDiffTransformer = load_pair(
            self.base, self.target, dtype=shape.torch_dtype, device=shape.device
        ).requires_grad_(False)
        self.tokens = torch.randint(shape.d_vocab, (shape.batch, shape.length))
        adapters = _random_adapters(self.model, shape, self.tokens.to(shape.device))
        self.adapters = {name: stacked.cpu() for name, stacked in adapters.items()}

    @cached_property
    def cast_adapters(self) -> dict[str, Tensor]:
        """The adapters as the pair's other weights are: dtype and device."""
        return {n: stacked.to(self.shape.device, self.shape.torch_dtype) for n, stacked in self.adapters.items()}

    def joint_transcoder(self) -> JointTranscoder:
        """The adapters as the trainer holds them, a copy."""
        s = self.shape
        config = JointTranscoderConfig(d_in=s.d_model, d_sae=s.n_features, n_layers=s.n_layers, device=s.device)
        joint = JointTranscoder(config)
        joint.load_state_dict(self.adapters)
        return joint

    def layer_weights(self) -> list[LayerWeights]:
        """The adapters as one set of float32 leaves for each layer, a copy."""
        here = {name: stacked.to(self.shape.device) for name, stacked in self.adapters.items()}
        return [
            LayerWeights(*(here[name][layer].clone().requires_grad_() for name in LayerWeights._fields))
            for layer in range(self.shape.n_layers)
        ]


def _random_pair(shape: Shape) -> tuple[PreTrainedModel, PreTrainedModel]:
    config = Qwen2Config(
        hidden_size=shape.d_model,
        intermediate_size=shape.d_mlp,
        num_hidden_layers=shape.n_layers,
        num_attention_heads=shape.n_heads,
        num_key_value_heads=shape.n_kv_heads,
        vocab_size=shape.d_vocab,
        max_position_embeddings=max(shape.length, 4096),
        initializer_range=shape.d_model**-0.5,
    )
    with torch.device(shape.device):  # a large model is made much faster there
        target = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa", dtype=shape.torch_dtype)
    target = target.eval().requires_grad_(False).cpu()
    config.architectures = target.config.architectures = [type(target).__name__]
    shared = {id(param): param for name, param in target.named_parameters() if ".mlp." not in name}
    base = copy.deepcopy(target, shared)
    for name, param in base.named_parameters():
        if ".mlp." in name:
            param.copy_(0.9 * param + 0.4 * param.flip(0))
    return base, target


@torch.no_grad()
def _random_adapters(model: HookedDiffTransformer, shape: Shape, tokens: Tensor) -> dict[str, Tensor]:
    """Random weights; every layer's encoder bias is such that about `l0` features are active on the target."""
    layers, d, n_features = shape.n_layers, shape.d_model, shape.n_features
    W_enc = torch.empty(layers, d, n_features).uniform_(-(d**-0.5), d**-0.5).to(shape.device)
    W_dec = torch.randn(layers, n_features, d).mul_(0.1 * d**-0.5).to(shape.device)
    b_enc = torch.zeros(layers, n_features, device=shape.device)
    n_active = round(shape.l0 * min(256, shape.length))

    def calibrate(x: Tensor, hook: HookPoint) -> None:
        layer = hook.layer()
        before = (x[0, :256].float() @ W_enc[layer]).flatten()
        b_enc[layer] = -before.kthvalue(max(1, before.numel() - n_active)).values

    with model.hooks(fwd_hooks=[(hook_in(layer), calibrate) for layer in range(layers)]):
        model.run_layers(model.embed_tokens(tokens[:1]))
    return {"W_enc": W_enc, "b_enc": b_enc, "W_dec": W_dec, "b_dec": torch.zeros(layers, d, device=shape.device)}


# ------------------------------------------------------------------------------------------------------ the steps


class Naive:
    """A step in which every term runs its own full forward passes.

    Args:
        eager: TransformerLens' own attention, which holds the pattern; otherwise the fused one.
        shared: KL and NMSE come from the same target and replacement pass.
    """

    def __init__(self, subject: Subject, eager: bool, shared: bool = False) -> None:
        self.subject, self.model, self.eager, self.shared = subject, subject.model, eager, shared
        self.layers = subject.layer_weights()
        self.objective = ObjectiveConfig.paper(L1_COEFFICIENT)
        self.adam = torch.optim.Adam([p for layer in self.layers for p in layer], lr=LEARNING_RATE)
        shape = subject.shape
        self.tokens_since_fired = torch.zeros(shape.n_layers, shape.n_features, dtype=torch.int64, device=shape.device)

    @property
    def own_tensors(self) -> list[Tensor]:
        """Parameters and the optimizer's state."""
        return [p for layer in self.layers for p in layer] + tree_leaves(list(self.adam.state.values()))

    def forget_gradients(self) -> None:
        self.adam.zero_grad()

    def step(self, tokens: Tensor, cutoff: int) -> dict[str, float | Tensor]:
        """One optimizer step; the terms of the loss."""
        n_layers = self.subject.shape.n_layers
        tokens = tokens.to(self.subject.shape.device)
        everything = range(n_layers)
        adapters = [
            LayerWeights(*(param.to(self.subject.shape.torch_dtype) for param in layer)) for layer in self.layers
        ]

        with torch.no_grad():
            target_resid, _ = self._run(tokens, range(0), adapters, "target pass")
            target_logits = self._unembed(target_resid[-1])
        resid, acts = self._run(tokens, everything, adapters, "replacement pass")
        with record_function("unembedding and KL"):
            kl = kl_divergence(target_logits, self._unembed(resid[-1])).mean()
        if not self.shared:
            with torch.no_grad():
                target_resid, _ = self._run(tokens, range(0), adapters, "target pass")
            resid, acts = self._run(tokens, everything, adapters, "replacement pass")
        with record_function("replacement pass"):
            pairs = [(r.float(), t.float()) for r, t in zip(resid, target_resid, strict=True)]
            errors = torch.stack([(r - t).pow(2).sum() / t.pow(2).sum() for r, t in pairs])
            norms = [w.W_dec.float().norm(dim=-1) for w in adapters]
            l1 = sum((f.float() * n).sum(-1).mean() for f, n in zip(acts, norms, strict=True))
        with record_function("statistics"), torch.no_grad():
            counts = torch.stack([(f > 0).sum((0, 1)) for f in acts])
            self.tokens_since_fired = update_tokens_since_fired(self.tokens_since_fired, counts, tokens.numel())

        halves = []
        for replaced in (range(cutoff), range(cutoff, n_layers)):
            if not replaced:
                halves.append(torch.zeros_like(kl))
                continue
            bridged, _ = self._run(tokens, replaced, adapters, "bridges")
            with record_function("unembedding and KL"):
                halves.append(kl_divergence(target_logits, self._unembed(bridged[-1])).mean())
        terms = ObjectiveTerms(kl, errors, halves[0], halves[1], torch.as_tensor(l1), counts)
        with record_function("backward"):
            weighted_sum(terms, self.objective, L1_COEFFICIENT).backward()
        with record_function("optimizer"):
            torch.nn.utils.clip_grad_norm_([p for layer in self.layers for p in layer], MAX_GRAD_NORM)
            self.adam.step()
            self.adam.zero_grad()
        return {
            "kl": kl.detach(),
            "nmse": errors.detach().mean(),
            "bridging_to_target": halves[0].detach(),
            "bridging_to_replacement": halves[1].detach(),
            "l1": terms.l1.detach(),
            "l0": counts.sum() / (tokens.numel() * n_layers),
        }

    def _run(
        self, tokens: Tensor, replaced: range, adapters: list[LayerWeights], part: str
    ) -> tuple[list[Tensor], list[Tensor]]:
        """The residual stream after every layer, and features, with some of the layers replaced."""
        acts: list[Tensor] = []
        hooks = adapter_hooks({layer: adapters[layer] for layer in replaced}, acts)
        if self.eager:
            hooks += [(f"blocks.{layer}.attn.hook_pattern", _look) for layer in range(self.subject.shape.n_layers)]
        with record_function(part), self.model.mode("base", replaced), self.model.hooks(fwd_hooks=hooks):
            return self.model.run_layers(self.model.embed_tokens(tokens)), acts

    def _unembed(self, resid: Tensor) -> Tensor:
        with record_function("unembedding and KL"):
            return self.model.unembed_resid(resid).float()


def _look(pattern: Tensor, hook: HookPoint) -> None:
    """A hook that only looks is enough for a layer to use TransformerLens' own attention."""


def adapter_hooks(adapters: dict[int, LayerWeights], acts: list[Tensor]) -> list[Any]:
    """Hooks that put adapters beside the MLPs of layers in mode `base`; `acts` collects their features."""
    inputs: list[Tensor] = []

    def read(x: Tensor, hook: HookPoint) -> None:
        inputs.append(x)

    def write(delta: Tensor, hook: HookPoint) -> Tensor:
        W_enc, b_enc, W_dec, b_dec = adapters[hook.layer()]
        acts.append(torch.relu(inputs.pop() @ W_enc + b_enc))
        return acts[-1] @ W_dec + b_dec

    return [pair for layer in adapters for pair in ((hook_in(layer), read), (hook_delta(layer), write))]


class Ours:
    """The trainer's own step.

    Args:
        checkpoint_blocks: with activation checkpointing.
    """

    def __init__(self, subject: Subject, checkpoint_blocks: bool = False) -> None:
        self.subject = subject
        config = AdapterTrainerConfig(
            total_training_samples=10**12,
            train_batch_size_samples=subject.shape.n_tokens,
            lr=LEARNING_RATE,
            lr_end=LEARNING_RATE,
            device=subject.shape.device,
            n_steps=10**9,
            log_every=10**9,
            checkpoint_blocks=checkpoint_blocks,
        )
        sae = subject.joint_transcoder()
        sae.cfg.l1_coefficient = L1_COEFFICIENT
        objective = ObjectiveConfig.paper(L1_COEFFICIENT)
        self.trainer = AdapterTrainer(config, sae, subject.model, objective, iter(()), lambda step: self._n_tokens)

    @property
    def own_tensors(self) -> list[Tensor]:
        """Parameters and the optimizer's state."""
        return [*self.trainer.sae.parameters(), *tree_leaves(list(self.trainer.optimizer.state.values()))]

    def forget_gradients(self) -> None:
        self.trainer.optimizer.zero_grad()

    def step(self, tokens: Tensor, cutoff: int) -> dict[str, float | Tensor]:
        """One optimizer step; the terms of the loss."""
        self.trainer.n_optimizer_steps = self._steps[cutoff]
        self._n_tokens = tokens.numel()
        counted = torch.ones_like(tokens, dtype=torch.bool)
        output = self.trainer.step(TokenBatch(tokens, counted, torch.arange(tokens.numel(), device=tokens.device)))
        return {**output.losses, "l0": cast(Tensor, output.metrics["l0"])}

    @cached_property
    def _steps(self) -> dict[int, int]:
        """A step at which each cutoff is drawn."""
        n_layers, steps = self.subject.shape.n_layers, dict[int, int]()
        for step in itertools.count():
            steps.setdefault(draw_cutoff(self.trainer.cfg.seed, step, n_layers), step)
            if len(steps) == n_layers + 1:
                return steps
        raise AssertionError


class _Matmuls(NamedTuple):
    """Weights of one layer, each `[in out]`, with a gated MLP's two inputs apart."""

    qkv: list[Tensor]
    out: Tensor
    target_mlp: list[Tensor]
    base_mlp: list[Tensor]
    W_enc: Tensor
    W_dec: Tensor


class Floor:
    """The matmuls and attention kernels of an ideal step; nothing else, and no result is used.

    Args:
        active_only: of the adapters only the encoder's matmul.
    """

    own_tensors: tuple[Tensor, ...] = ()

    def __init__(self, subject: Subject, active_only: bool = False) -> None:
        self.subject, self.active_only = subject, active_only
        s, model = subject.shape, subject.model
        adapters = subject.cast_adapters
        blocks: Any = model.blocks
        self.layers = [
            _Matmuls(
                [w.permute(1, 0, 2).flatten(1) for w in (block.attn.W_Q, block.attn._W_K, block.attn._W_V)],
                block.attn.W_O.flatten(0, 1),
                [block.mlp.W_gate, block.mlp.W_in, block.mlp.W_out],
                [block.mlp.base.W_gate, block.mlp.base.W_in, block.mlp.base.W_out],
                W_enc,
                W_dec,
            )
            for block, W_enc, W_dec in zip(blocks, adapters["W_enc"], adapters["W_dec"], strict=True)
        ]
        self.W_U = cast(Tensor, model.unembed.W_U)
        self._inputs: dict[tuple[int, ...], Tensor] = {}
        self._outputs: dict[tuple[int, ...], Tensor] = {}
        d_head = s.d_model // s.n_heads
        self._heads = [
            self._new(s.batch, s.length, n, d_head).requires_grad_() for n in (s.n_heads, s.n_kv_heads, s.n_kv_heads)
        ]
        self._z = self._attend()
        self._grad_z = torch.randn_like(self._z)

    def forget_gradients(self) -> None:
        pass

    def step(self, tokens: Tensor, cutoff: int) -> dict[str, float | Tensor]:
        """The work of one step; what the tokens are does not matter."""
        n_layers = self.subject.shape.n_layers
        bridges = range(cutoff, n_layers) if 0 < cutoff < n_layers else range(0)
        with torch.no_grad():
            for layer in range(n_layers):
                self._layer(layer, replaced=False, attention=True)
            for layer in range(n_layers):
                self._layer(layer, replaced=True, attention=layer > 0)
            for replaced in (False, True):
                for layer in bridges:
                    self._layer(layer, replaced, attention=layer > cutoff)
            self._unembed(1 + 2 * bool(bridges))
        for layer in reversed(range(n_layers)):
            self._layer_backward(layer, replaced=True, below=layer > 0, attention=layer > 0)
        for layer in reversed(bridges):
            self._layer_backward(layer, replaced=False, below=True, attention=layer > cutoff)
        for layer in reversed(bridges):
            self._layer_backward(layer, replaced=True, below=layer > cutoff, attention=layer > cutoff)
        return {}

    def _layer(self, layer: int, replaced: bool, attention: bool) -> None:
        weights = self.layers[layer]
        if attention:
            for weight in weights.qkv:
                self._mm(weight)
            self._attend()
            self._mm(weights.out)
        for weight in weights.base_mlp if replaced else weights.target_mlp:
            self._mm(weight)
        if replaced:
            self._mm(weights.W_enc)
        if replaced and not self.active_only:
            self._mm(weights.W_dec)

    def _layer_backward(self, layer: int, replaced: bool, below: bool, attention: bool) -> None:
        """Gradients of one layer.

        Args:
            below: the MLP's input needs a gradient.
            attention: attention is in this graph, and its input needs one.
        """
        weights = self.layers[layer]
        with torch.no_grad():
            if replaced and not self.active_only:
                self._mm(weights.W_dec.T)
                self._weight_gradient(weights.W_dec)
                self._weight_gradient(weights.W_enc)
                if below:
                    self._mm(weights.W_enc.T)
            for weight in (weights.base_mlp if replaced else weights.target_mlp) if below else ():
                self._mm(weight.T)
            for weight in (*weights.qkv, weights.out) if attention else ():
                self._mm(weight.T)
        if attention:
            torch.autograd.grad(self._z, self._heads, self._grad_z, retain_graph=True)

    def _unembed(self, n_streams: int) -> None:
        """The target's logits, and every other stream's with their gradient, a block of positions at a time."""
        n_tokens = self.subject.shape.n_tokens
        for start in range(0, n_tokens, KL_CHUNK):
            rows = min(KL_CHUNK, n_tokens - start)
            self._mm(self.W_U, rows)
            for _ in range(n_streams):
                self._mm(self.W_U, rows)
                self._mm(self.W_U.T, rows)

    def _attend(self) -> Tensor:
        q, k, v = (x.transpose(1, 2) for x in self._heads)
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=q.size(1) != k.size(1))

    def _mm(self, weight: Tensor, rows: int | None = None) -> None:
        rows = rows or self.subject.shape.n_tokens
        torch.mm(self._input(rows, weight.size(0)), weight, out=self._output(rows, weight.size(1)))

    def _weight_gradient(self, weight: Tensor) -> None:
        d_in, d_out = weight.shape
        n_tokens = self.subject.shape.n_tokens
        torch.mm(self._input(n_tokens, d_in).T, self._input(n_tokens, d_out), out=self._output(d_in, d_out))

    def _input(self, *size: int) -> Tensor:
        if size not in self._inputs:
            self._inputs[size] = self._new(*size)
        return self._inputs[size]

    def _output(self, *size: int) -> Tensor:
        if size not in self._outputs:
            self._outputs[size] = self._new(*size)
        return self._outputs[size]

    def _new(self, *size: int) -> Tensor:
        return torch.randn(size, dtype=self.subject.shape.torch_dtype, device=self.subject.shape.device)


Contender = Naive | Ours | Floor


# ----------------------------------------------------------------------------------------------- Hugging Face's model


class MLPWithAdapter(nn.Module):
    """base MLP(x) + adapter(x)."""

    def __init__(self, base: nn.Module, weights: LayerWeights) -> None:
        super().__init__()
        self.base, self.weights = base, weights

    def forward(self, x: Tensor) -> Tensor:
        W_enc, b_enc, W_dec, b_dec = self.weights
        return self.base(x) + torch.relu(x @ W_enc + b_enc) @ W_dec + b_dec


Runs = dict[str, Callable[[], object]]


class BesideHF:
    """The replacement model and a plain Hugging Face model with SDPA, which share adapters: `ours` and `hf`.

    Attributes:
        forward: runs that give logits, without gradients.
        train: forward and backward on the output KL, gradients of all adapters.
        keep: forward runs of all layers that keep what a backward pass needs; they return the last norm's output.
        known: tensors that are there before any run.
    """

    def __init__(self, subject: Subject) -> None:
        shape, model = subject.shape, subject.model
        tokens = subject.tokens.to(shape.device)
        adapters = [
            LayerWeights(*(p.detach().to(shape.torch_dtype).requires_grad_() for p in layer))
            for layer in subject.layer_weights()
        ]
        leaves = [param for layer in adapters for param in layer]
        hf: Any = copy.deepcopy(subject.target, {id(p): p for p in subject.target.parameters()})
        for layer, weights in enumerate(adapters):
            base_mlp = subject.base.get_submodule(f"model.layers.{layer}.mlp")
            hf.model.layers[layer].mlp = MLPWithAdapter(base_mlp, weights)
        hf.to(shape.device)

        def ours_resid() -> Tensor:
            hooks = adapter_hooks(dict(enumerate(adapters)), [])
            with model.mode("base"), model.hooks(fwd_hooks=hooks):
                return model.run_layers(model.embed_tokens(tokens))[-1]

        logits: dict[str, Callable[[], Tensor]] = {
            "ours": lambda: model.unembed_resid(ours_resid()),
            "hf": lambda: hf(tokens, use_cache=False).logits,
        }
        with torch.no_grad():
            target_logits = model(tokens)

        def train(who: str) -> None:
            torch.autograd.grad(kl_divergence(target_logits, logits[who]()).mean(), leaves)

        self.forward: dict[str, Callable[[], Tensor]] = {who: torch.no_grad()(run) for who, run in logits.items()}
        self.train: Runs = {who: partial(train, who) for who in logits}
        self.keep: dict[str, Callable[[], Tensor]] = {
            "ours": lambda: cast(Callable[[Tensor], Tensor], model.ln_final)(ours_resid()),
            "hf": lambda: hf.model(tokens, use_cache=False).last_hidden_state,
        }
        self.known = [*model.parameters(), *model.buffers(), *hf.parameters(), *hf.buffers(), *leaves]
