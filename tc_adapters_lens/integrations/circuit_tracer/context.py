"""Rows of the graph's matrix from the frozen linear model: circuit-tracer's context, without autograd.

circuit-tracer runs the prompt `batch_size` times over in one graph of autograd and goes back through all of it for
every batch. Here the forward pass is kept once, and every node goes back through its own positions and layers alone.
Edges are the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from circuit_tracer.attribution.context_transformerlens import AttributionContext
from circuit_tracer.replacement_model.replacement_model_transformerlens import TransformerLensReplacementModel
from jaxtyping import Float, Int
from torch import Tensor

from tc_adapters_lens.integrations.circuit_tracer.frozen import FrozenModel

__all__ = ["FrozenContext"]

_POSITIONS_PER_BLOCK = 32
_NUMBERS_AT_ONCE = {"cpu": 2**22, "cuda": 2**28}  # of one intermediate result of a batch
_WORTH_IT = 0.75  # of d_model nodes at all positions: what multiplying out costs
_MATRIX_NUMBERS = {"cpu": 2**28, "cuda": 2**30}  # of MLPs multiplied out, at most


class _Decoders(NamedTuple):
    """The active features' decoder rows at some consecutive positions, as many at each as the fullest one has.

    start, stop: those positions.
    columns: each row's place in the matrix, `[pos most]`; where a position has fewer, the place behind the last.
    vectors: activation times decoder row, `[pos most d_model]`.
    """

    start: int
    stop: int
    columns: Int[Tensor, "pos most"]
    vectors: Float[Tensor, "pos most d_model"]


class FrozenContext(AttributionContext):
    """As upstream's context, of which it takes everything, with rows from `frozen`."""

    def __init__(self, context: AttributionContext, frozen: FrozenModel) -> None:
        super().__init__(
            activation_matrix=context.activation_matrix,
            error_vectors=context.error_vectors,
            token_vectors=context.token_vectors,
            decoder_vecs=context.decoder_vecs,
            encoder_vecs=context.encoder_vecs,
            encoder_to_decoder_map=context.encoder_to_decoder_map,
            decoder_locations=context.decoder_locations,
            logits=context.logits[:, -1:].clone(),
        )
        self.frozen = frozen
        self._has_errors = bool(self.error_vectors.any())
        self._uses = [0] * self.n_layers  # of each layer's MLP: nodes that went through it, times positions
        layers, positions = self.decoder_locations
        self._decoders = [
            self._blocks(torch.nonzero(layers == layer).squeeze(1), positions) for layer in range(self.n_layers)
        ]

    @contextmanager
    def install_hooks(self, model: TransformerLensReplacementModel) -> Iterator[None]:
        """None are needed."""
        yield

    def compute_batch(
        self,
        layers: Int[Tensor, " n"],
        positions: Int[Tensor, " n"],
        inject_values: Float[Tensor, "n d_model"],
        retain_graph: bool = True,
    ) -> Float[Tensor, "n row_size"]:
        """Upstream's `compute_batch`; a batch of any size is cut into pieces that fit in memory.

        Args:
            layers: where each node reads: the MLP's input, or for n_layers behind the final norm.
            positions: of the nodes.
            inject_values: direction in which each reads.
            retain_graph: upstream's; there is no graph to free here.
        """
        device = inject_values.device
        layers, positions = layers.to(device), positions.to(device)
        rows = inject_values.new_zeros(len(layers), self._row_size)
        for nodes in self._pieces(layers, positions):
            rows[nodes] = self._rows(layers[nodes], positions[nodes], inject_values[nodes])
        return rows

    def expect(self, layers: Int[Tensor, " n"], positions: Int[Tensor, " n"], times: float = 1.0) -> None:
        """Prepare for nodes to be traced.

        Args:
            times: how many of the kind there will be for each of these.
        """
        for layer in range(self.n_layers):
            above = layers > layer
            self._multiply_out(layer, times * float(positions[above].sum() + above.sum()))

    def _multiply_out(self, layer: int, uses: float) -> None:
        """Multiply a layer's MLP out where so many uses are worth it and there is room.

        Args:
            uses: nodes that go through it, times their positions.
        """
        n_pos, d_model = self.token_vectors.shape
        matrices = self.frozen.mlp_matrices
        limit = _MATRIX_NUMBERS["cuda" if self.token_vectors.is_cuda else "cpu"]
        fits = (len(matrices) + 1) * n_pos * d_model**2 <= limit
        if layer not in matrices and uses > _WORTH_IT * n_pos * d_model and fits:
            self.frozen.make_mlp_matrix(layer)

    def _pieces(self, layers: Tensor, positions: Tensor) -> Iterator[Int[Tensor, " n"]]:
        """Nodes that go together: of similar positions, in falling order of layers."""
        order = torch.argsort(positions, descending=True, stable=True)
        limit = _NUMBERS_AT_ONCE["cuda" if positions.is_cuda else "cpu"]
        d_mlp, d_model = self.frozen.layers[0].mlp.weights.W_out.shape
        width = d_model if len(self.frozen.mlp_matrices) == self.n_layers - 1 else max(d_mlp, d_model)
        start = 0
        while start < len(order):
            stop = start + max(1, limit // (width * (int(positions[order[start]]) + 1)))
            piece = order[start:stop]
            yield piece[torch.argsort(layers[piece], descending=True, stable=True)]
            start = stop

    def _rows(self, layers: Tensor, positions: Tensor, vectors: Tensor) -> Float[Tensor, "n row_size"]:
        columns = vectors.new_zeros(self._row_size + 1, len(layers))  # one more, for what has no place
        n_active, n_pos = self.activation_matrix._nnz(), len(self.token_vectors)
        for layer, grad in self.frozen.gradients(layers, positions, vectors):
            reached, above = grad.shape[:2]
            if layer < 0:
                first = n_active + self.n_layers * n_pos
                columns[first : first + reached] = _dot(grad, self.token_vectors)
                continue
            self._uses[layer] += reached * above
            self._multiply_out(layer, self._uses[layer])
            for block in self._decoders[layer]:
                if block.start >= reached:
                    break
                own = grad[block.start : block.stop]
                edges = torch.bmm(block.vectors[: len(own)], own.transpose(1, 2))
                columns[:, :above].index_copy_(0, block.columns[: len(own)].flatten(), edges.flatten(0, 1))
            if self._has_errors:
                first = n_active + layer * n_pos
                columns[first : first + reached, :above] = _dot(grad, self.error_vectors[layer])
        return columns[:-1].T

    def _blocks(self, features: Int[Tensor, " n"], positions: Int[Tensor, " n_active"]) -> list[_Decoders]:
        """One layer's decoder rows.

        Args:
            features: its active features' indices, in order of position.
        """
        blocks = []
        if not len(features):
            return blocks
        at = positions[features]
        counts = torch.bincount(at, minlength=len(self.token_vectors))
        place = torch.arange(len(features), device=at.device) - (counts.cumsum(0) - counts)[at]
        for start in range(0, len(counts), _POSITIONS_PER_BLOCK):
            stop = min(start + _POSITIONS_PER_BLOCK, len(counts))
            most = int(counts[start:stop].max())
            if not most:
                continue
            inside = (at >= start) & (at < stop)
            rows, where = features[inside], (at[inside] - start, place[inside])
            columns = torch.full((stop - start, most), self._row_size, device=at.device)
            columns[where] = self.encoder_to_decoder_map[rows]
            vectors = self.decoder_vecs.new_zeros(stop - start, most, self.decoder_vecs.shape[1])
            vectors[where] = self.decoder_vecs[rows]
            blocks.append(_Decoders(start, stop, columns, vectors))
        return blocks


def _dot(grad: Float[Tensor, "pos n d_model"], vectors: Float[Tensor, "all_pos d_model"]) -> Float[Tensor, "pos n"]:
    return torch.bmm(grad, vectors[: len(grad), :, None]).squeeze(-1)
