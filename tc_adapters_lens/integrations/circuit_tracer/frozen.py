"""A pair's replacement model at one prompt as a linear map: what an attribution graph is of.

Attention patterns, norm denominators and the MLPs' coefficients are those of one forward pass and stay so. What is left
is linear in the embeddings, in what the adapters write and in the biases, and so are its gradients: they are the same
wherever they are taken, and any number of nodes can be traced back at once without running the prompt again.

    forward     what given sources come to, at every MLP's input and behind the final norm
    gradients   from nodes (an encoder's direction at an MLP's input, or a direction behind the final norm) down to
                every MLP's output and the embeddings

Nodes are traced only through what can matter to them: positions up to their own, layers below their own, and in their
own layer's attention the one position where they read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens import HookedTransformer

from tc_adapters_lens.core.linear_layers import LinearAttention, LinearNorm
from tc_adapters_lens.core.relp import LinearMlp

__all__ = ["BIASES", "FrozenLayer", "FrozenModel", "is_recorded"]

BIASES = ("attention", "norm", "mlp")
"""Kinds of bias inside the model: b_V and b_O; a LayerNorm's b; those of the base's MLP."""

_RECORDED = ("attn.hook_pattern", "hook_scale")


def is_recorded(name: str) -> bool:
    """Whether `FrozenModel.of` needs the hook point of this name, besides the MLPs' inputs."""
    return name.endswith(_RECORDED) and ".q_norm." not in name and ".k_norm." not in name


@dataclass(frozen=True)
class FrozenLayer:
    """One layer. The post-norms are Gemma 2's; `parallel`: attention and MLP read the same stream (GPT-NeoX)."""

    ln1: LinearNorm
    attention: LinearAttention
    ln1_post: LinearNorm | None
    ln2: LinearNorm
    mlp: LinearMlp
    ln2_post: LinearNorm | None
    parallel: bool

    def attention_transposed(self, grad: Float[Tensor, "pos n d_model"]) -> Float[Tensor, "pos n d_model"]:
        """From the stream behind attention to the one before, the stream itself apart."""
        read = grad if self.ln1_post is None else self.ln1_post.transposed(grad)
        return self.ln1.transposed(self.attention.transposed(read))

    def mlp_transposed(self, out: Float[Tensor, "pos n d_model"]) -> Float[Tensor, "pos n d_model"]:
        """From the MLP's output to the stream it reads."""
        return self.ln2.transposed(self.mlp.transposed(out, len(out)))

    def reading(
        self, vectors: Float[Tensor, "n d_model"], positions: Int[Tensor, " n"], n_pos: int
    ) -> Float[Tensor, "pos n d_model"]:
        """From directions at the MLP's input, each at a position, to the stream before this layer."""
        at = self.ln2.transposed_at(vectors, positions)
        if self.parallel:
            grad = at.new_zeros(n_pos, *at.shape)
        else:
            read = at if self.ln1_post is None else self.ln1_post.transposed_at(at, positions)
            grad = self.ln1.transposed(self.attention.transposed_at(read, positions, n_pos)).contiguous()
        grad[positions, torch.arange(len(positions), device=positions.device)] += at
        return grad


@dataclass
class FrozenModel:
    """See the module. Positions are those of the prompt, `n_pos` of them.

    mlp_matrices: layer -> its MLP and the norm before it, read backwards, a matrix per position; of those that
        `make_mlp_matrix` has made.
    """

    layers: Sequence[FrozenLayer]
    ln_final: LinearNorm
    mlp_matrices: dict[int, Float[Tensor, "pos d_model d_model"]] = field(default_factory=dict)

    @classmethod
    def of(cls, model: HookedTransformer, mlps: Sequence[LinearMlp], recorded: Mapping[str, Tensor]) -> FrozenModel:
        """
        Args:
            model: whose weights are taken, shared and not copied.
            mlps: every layer's MLP at the recorded input.
            recorded: hook point -> value `[1 ...]`, of all that `is_recorded` names.
        """

        def norm(name: str, module: Any) -> LinearNorm:
            scale = recorded[f"{name}.hook_scale"][0].to(module.w.dtype)
            return LinearNorm(scale, module.w.detach(), module.b.detach() if hasattr(module, "b") else None)

        def post_norm(name: str, block: Any, norm_name: str) -> LinearNorm | None:
            return norm(f"{name}.{norm_name}", getattr(block, norm_name)) if hasattr(block, norm_name) else None

        layers = []
        for layer, mlp in enumerate(mlps):
            name, block = f"blocks.{layer}", cast(Any, model.blocks[layer])
            attn = block.attn
            grouped = hasattr(attn, "_W_V")
            attention = LinearAttention(
                recorded[f"{name}.attn.hook_pattern"][0],
                (attn._W_V if grouped else attn.W_V).detach(),
                (attn._b_V if grouped else attn.b_V).detach(),
                attn.W_O.detach(),
                attn.b_O.detach(),
            )
            layers.append(
                FrozenLayer(
                    ln1=norm(f"{name}.ln1", block.ln1),
                    attention=attention,
                    ln1_post=post_norm(name, block, "ln1_post"),
                    ln2=norm(f"{name}.ln2", block.ln2),
                    mlp=mlp,
                    ln2_post=post_norm(name, block, "ln2_post"),
                    parallel=model.cfg.parallel_attn_mlp,
                )
            )
        return cls(layers, norm("ln_final", model.ln_final))

    @property
    def n_pos(self) -> int:
        return len(self.ln_final.scale)

    def forward(
        self,
        embedded: Float[Tensor, "n pos d_model"],
        written: Sequence[Float[Tensor, "n pos d_model"]],
        biases: Mapping[str, Float[Tensor, " n"]],
    ) -> Iterator[Float[Tensor, "n pos d_model"]]:
        """What n sets of sources come to, side by side.

        Args:
            embedded: at the embeddings.
            written: at each layer's MLP output, before any post-norm.
            biases: of each of `BIASES`, how much of it each set has.
        Returns:
            The contribution to each MLP's input, in order, and then to what the final norm gives.
        """

        def part(kind: str, bias: Tensor | None) -> Tensor | float:
            return 0.0 if bias is None else biases[kind].view(-1, 1, 1) * bias

        def through(norm: LinearNorm | None, x: Tensor) -> Tensor:
            return x if norm is None else norm.linear(x) + part("norm", norm.b)

        resid = embedded
        for layer, adds in zip(self.layers, written, strict=True):
            attended = layer.attention.linear(through(layer.ln1, resid)) + part("attention", layer.attention.bias())
            attended = through(layer.ln1_post, attended)
            x = through(layer.ln2, resid if layer.parallel else resid + attended)
            yield x
            out = layer.mlp.linear(x) + part("mlp", layer.mlp.bias()) + adds
            resid = resid + attended + through(layer.ln2_post, out)
        yield through(self.ln_final, resid)

    def make_mlp_matrix(self, layer: int) -> None:
        """Multiply a layer's MLP out at every position, for nodes that are traced from now on.

        It costs less than tracing d_model nodes through it, and makes every further node cheaper by the factor
        3 d_mlp / d_model (a plain MLP: 2 d_mlp / d_model).
        """
        mlp, ln2 = self.layers[layer].mlp, self.layers[layer].ln2
        matrix = torch.stack([mlp.matrix_transposed(pos) for pos in range(self.n_pos)])
        self.mlp_matrices[layer] = ln2.transposed(matrix)

    def gradients(
        self, layers: Int[Tensor, " n"], positions: Int[Tensor, " n"], vectors: Float[Tensor, "n d_model"]
    ) -> Iterator[tuple[int, Float[Tensor, "pos n_above d_model"]]]:
        """Every node's gradients, from the top layer down.

        Args:
            layers: at whose MLP's input each node reads, in falling order; n_layers reads behind the final norm.
            positions: where.
            vectors: in which direction.
        Yields:
            (layer, the gradients at its MLP's output of the nodes above that layer, which are the first so many), then
            (-1, all nodes' gradients at the embeddings). Positions end after the last of any node.
        """
        n_pos = int(positions.max()) + 1
        counts = torch.bincount(layers, minlength=len(self.layers) + 1).tolist()
        done = counts[-1]
        grad = vectors.new_zeros(n_pos, done, vectors.shape[1])
        top = positions[:done]
        grad[top, torch.arange(done, device=top.device)] = self.ln_final.transposed_at(vectors[:done], top)
        for index in reversed(range(len(self.layers))):
            layer = self.layers[index]
            if done:
                out = grad if layer.ln2_post is None else layer.ln2_post.transposed(grad)
                yield index, out
                matrix = self.mlp_matrices.get(index)
                read = layer.mlp_transposed(out) if matrix is None else torch.bmm(out, matrix[:n_pos])
                middle = grad if layer.parallel else grad + read
                attended = layer.attention_transposed(middle)
                grad = attended.add_(middle).add_(read) if layer.parallel else attended.add_(middle)
            if counts[index]:
                own = slice(done, done + counts[index])
                read = layer.reading(vectors[own], positions[own], n_pos)
                grad = torch.cat([grad, read], dim=1) if done else read
                done += counts[index]
        yield -1, grad
