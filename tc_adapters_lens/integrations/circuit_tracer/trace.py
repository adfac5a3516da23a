"""`trace`: circuit-tracer's `attribute`, whose rows are cut to their largest entries as they are computed."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from circuit_tracer.attribution.targets import TargetSpec
from jaxtyping import Int
from torch import Tensor

from tc_adapters_lens.errors import GraphError
from tc_adapters_lens.integrations.circuit_tracer.context import FrozenContext
from tc_adapters_lens.integrations.circuit_tracer.influence import target_shares
from tc_adapters_lens.integrations.circuit_tracer.kept_rows import BYTES_PER_EDGE, Store, largest
from tc_adapters_lens.integrations.circuit_tracer.sparse_graph import SparseGraph
from tc_adapters_lens.integrations.circuit_tracer.targets import Explained, GraphTargets, explained

if TYPE_CHECKING:
    from circuit_tracer.replacement_model.replacement_model_transformerlens import TransformerLensReplacementModel

__all__ = ["trace"]

_GIB = 2**30
_MOST_AT_ONCE = 256  # rows of a batch, where nobody says how many
_BYTES_PER_ENTRY = 40  # of a batch's rows while they are cut


def trace(
    prompt: str | Tensor | Sequence[int],
    model: TransformerLensReplacementModel,
    *,
    targets: GraphTargets | Sequence[str] | Sequence[TargetSpec] | Tensor | None = None,
    max_n_logits: int = 10,
    desired_logit_prob: float = 0.95,
    batch_size: int | None = None,
    max_feature_nodes: int | None = None,
    influence_share: float = 1.0,
    keep: float = 0.999,
    update_interval: int = 4,
    memory_limit: int | None = None,
    info: Mapping[str, Any] | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> SparseGraph:
    """Compute a prompt's attribution graph.

    Rows are computed for the targets, then for features: all of them, or, where there is a cap, those with the most
    influence on the targets over the rows that are there already, some batches at a time. Only one batch's rows are in
    memory whole.

    Args:
        prompt: text or token ids; the model says which special tokens are added.
        model: a replacement model with `account_and_context`, as `replacement_model` makes it.
        targets: what is explained, at the last position; None: the most probable tokens.
        max_n_logits, desired_logit_prob: where `targets` is None: so many, fewer if those have that probability.
        batch_size: rows computed at once; None: as the memory allows, at most 256.
        max_feature_nodes: rows of so many features; None: of all.
        influence_share: stop once no more than 1 - this share of the targets' influence ends in features without a row.
        keep: each row keeps its largest entries, with this share of its absolute sum; rows that hardly matter may lose
            more than the rest, all together at most 1 - keep of the targets' influence.
        update_interval: batches after which features are ranked anew.
        memory_limit: bytes that the edges and their pruning may take; None: what is free.
        info: what the graph says about itself beside what is known here.
        progress: told after each batch how many rows are done and how many there are at most.
    Raises:
        GraphError: no feature is active, the prompt or a setting is out of range, a target is unusable, or more edges
            than the memory holds.
    """
    _check(max_feature_nodes, batch_size, update_interval, keep, influence_share)
    tokens = _tokens(prompt, model)
    account: Any
    ctx: Any
    account, ctx = model.account_and_context(tokens)  # type: ignore[operator]
    if not ctx.activation_matrix._nnz():
        raise GraphError(f"A graph needs active features. Got none in the prompt's {len(tokens)} tokens; take another.")
    chosen = explained(model, ctx.logits[0, -1].detach(), targets, max_n_logits, desired_logit_prob)
    n_rows = ctx.activation_matrix._nnz()
    at_once = min(batch_size or _fitting(ctx, model), max(n_rows, len(chosen.records)))
    with torch.enable_grad():
        model.run_forward_pass(tokens, at_once, ctx)
    n_features = min(max_feature_nodes or n_rows, n_rows)
    of_targets = target_shares(chosen.probabilities)
    tracing = _Tracing(ctx, at_once, keep, of_targets, n_features)
    total = n_features + len(chosen.records)
    for n_done in tracing.over_targets(chosen.vectors):
        progress(n_done, total)
    limit = _free_memory() if memory_limit is None else memory_limit
    if limit is not None:
        tracing.check_memory(n_features, limit)
    for n_done in tracing.over_features(n_features, influence_share, update_interval):
        progress(n_done, total)
        if limit is not None and tracing.store.n_edges * BYTES_PER_EDGE > limit:
            n_fit = n_done - len(chosen.records)
            raise GraphError(_too_many(tracing.store.n_edges, n_fit, limit, n_fit))
    about = {"keep": keep, "influence_share": influence_share, "max_feature_nodes": max_feature_nodes, **(info or {})}
    return _graph(tokens, model, ctx, chosen, account, tracing.store, about)


def _graph(
    tokens: Tensor,
    model: TransformerLensReplacementModel,
    ctx: Any,
    chosen: Explained,
    account: Any,
    store: Store,
    info: Mapping[str, Any],
) -> SparseGraph:
    ids, rows = store.joined()
    selected = ids[: len(ids) - len(chosen.records)]
    of_targets = account.target_terms(chosen.vectors, chosen.own)
    tokenizer: Any = model.tokenizer

    def of_rows(of_features: Tensor, targets: Tensor) -> Tensor:
        return torch.cat([of_features.detach().float().cpu()[selected], targets.detach().float().cpu()])

    return SparseGraph(
        tokens=tokens.cpu(),
        token_texts=tuple(tokenizer.decode([token]) for token in tokens.tolist()),
        prompt=tokenizer.decode(tokens.tolist()),
        n_layers=model.cfg.n_layers,
        active_features=ctx.activation_matrix.indices().T.contiguous().cpu(),
        activations=ctx.activation_matrix.values().detach().float().cpu(),
        selected=selected,
        targets=chosen.records,
        probabilities=chosen.probabilities,
        row_starts=rows.edges.starts,
        columns=rows.edges.sources,
        weights=rows.edges.weights,
        values=of_rows(account.preactivations, account.target_values(chosen.vectors, chosen.own)),
        terms={kind: of_rows(term, of_targets[kind]) for kind, term in account.feature_terms.items()},
        row_abs=rows.row_abs,
        dropped_sum=rows.dropped_sum,
        dropped_abs=rows.dropped_abs,
        vocab_size=int(tokenizer.vocab_size),
        scan=model.scan if isinstance(model.scan, str) else "",
        info=info,
    )


class _Tracing:
    """The rows' computation, batch by batch.

    Args:
        of_targets: the targets' own influence, 1 in all.
        n_features: how many features' rows there will be, at most.
    """

    def __init__(self, ctx: Any, batch_size: int, keep: float, of_targets: Tensor, n_features: int):
        self.ctx, self.batch_size, self.keep = ctx, batch_size, keep
        self.of_targets = of_targets
        self.n_rows = n_features + len(of_targets)
        self.layers, self.positions, _ = ctx.activation_matrix.indices()
        self.n_layers, self.n_pos, _ = ctx.activation_matrix.shape
        self.store = Store(self.layers.cpu(), self.n_layers, self.n_pos)
        self.n_done = 0

    def over_targets(self, vectors: Tensor) -> Iterator[int]:
        """Compute the targets' rows; gives how many rows are done."""
        for ids in torch.arange(len(vectors)).split(self.batch_size):
            rows = self.ctx.compute_batch(
                torch.full((len(ids),), self.n_layers), torch.full((len(ids),), self.n_pos - 1), vectors[ids]
            )
            self._add(ids + self.store.n_sources, rows, self.of_targets[ids])
            yield self.n_done

    def over_features(self, n_features: int, share: float, interval: int) -> Iterator[int]:
        """Compute features' rows; gives how many rows are done.

        All of them from the top layer down, so that a feature's influence is known before its row is; or else the most
        influential first, by what is known.
        """
        n_active, n_targets = len(self.layers), self.n_done
        if n_features == n_active and share == 1:
            layers = self.layers.cpu()
            if isinstance(self.ctx, FrozenContext):
                self.ctx.expect(self.layers, self.positions)
            for layer in reversed(range(self.n_layers)):
                for ids in (layers == layer).nonzero().squeeze(1).split(self.batch_size):
                    self._add(ids, self._rows_of(ids), self.store.handed_down[ids])
                    yield self.n_done
            return
        visited = torch.zeros(n_active, dtype=torch.bool)
        while (n_left := n_features - (self.n_done - n_targets)) > 0:
            influences = self.store.influences(self.of_targets)[:n_active]
            unvisited = influences.masked_fill(visited, -1)
            if share < 1 and unvisited.clamp(min=0).sum() <= 1 - share:
                return
            queue = unvisited.topk(min(interval * self.batch_size, n_left)).indices.sort().values
            visited[queue] = True
            if isinstance(self.ctx, FrozenContext):
                self.ctx.expect(self.layers[queue], self.positions[queue], n_left / len(queue))
            for ids in queue.split(self.batch_size):
                self._add(ids, self._rows_of(ids), influences[ids])
                yield self.n_done

    def check_memory(self, n_features: int, limit: int) -> None:
        """Refuses more rows than fit, by what a batch of features from all layers and positions keeps at least.

        Raises:
            GraphError: it says how many fit.
        """
        n_active = len(self.layers)
        most = self.store.n_edges + n_features * self.store.n_sources
        if most * BYTES_PER_EDGE <= limit:
            return
        sample = torch.linspace(0, n_active - 1, min(self.batch_size, n_active)).long().unique()
        kept = largest(self._rows_of(sample), self._keep(self.store.handed_down[sample]))
        per_row = len(kept.edges.sources) / len(sample)
        n_fit = int(max(0, limit / BYTES_PER_EDGE - self.store.n_edges) / max(per_row, 1e-9))
        if n_fit < n_features:
            raise GraphError(_too_many(round(n_features * per_row), n_features, limit, n_fit))

    def _rows_of(self, ids: Tensor) -> Tensor:
        here = ids.to(self.layers.device)
        return self.ctx.compute_batch(self.layers[here], self.positions[here], self.ctx.encoder_vecs[here])

    def _add(self, ids: Tensor, rows: Tensor, influence: Tensor) -> None:
        self.store.add(ids, largest(rows.detach(), self._keep(influence)), influence)
        self.n_done += len(ids)

    def _keep(self, influence: Tensor) -> Tensor:
        """What share of each row is kept."""
        if self.keep == 1:
            return torch.ones_like(influence)
        may_lose = (1 - self.keep) / self.n_rows
        return (1 - may_lose / influence.clamp(min=may_lose)).clamp(max=self.keep)


def _too_many(n_edges: int, n_features: int, limit: int, n_fit: int) -> str:
    needed = n_edges * BYTES_PER_EDGE / _GIB
    return (
        f"The graph's edges must fit into {limit / _GIB:,.2f} GiB. Got about {n_edges:,} of {n_features:,} features, "
        f"which take {needed:,.2f} GiB; about {n_fit:,} features fit: lower max_feature_nodes (--max-features) or keep."
    )


def _check(
    max_feature_nodes: int | None, batch_size: int | None, update_interval: int, keep: float, influence_share: float
) -> None:
    counts = {"max_feature_nodes": max_feature_nodes, "batch_size": batch_size, "update_interval": update_interval}
    for name, count in counts.items():
        if count is not None and count < 1:
            raise GraphError(f"{name} must be at least 1. Got {count}.")
    for name, share in (("keep", keep), ("influence_share", influence_share)):
        if not 0 < share <= 1:
            raise GraphError(f"{name} must be over 0 and at most 1. Got {share}.")


def _tokens(prompt: str | Tensor | Sequence[int], model: TransformerLensReplacementModel) -> Int[Tensor, "n_pos"]:
    n_ctx, d_vocab = model.cfg.n_ctx, model.cfg.d_vocab
    tokens = torch.zeros(0) if isinstance(prompt, str) else torch.as_tensor(prompt, dtype=torch.int64).flatten()
    if isinstance(prompt, str) and prompt:
        tokens = model.ensure_tokenized(prompt)
    elif len(tokens) > 1:  # upstream fails at fewer
        tokens = model.ensure_tokenized(tokens)
    if not 2 <= len(tokens) <= n_ctx:
        raise GraphError(f"A prompt must be of 2 to {n_ctx:,} tokens, the model's context. Got {len(tokens):,}.")
    if ((tokens < 0) | (tokens >= d_vocab)).any():
        raise GraphError(f"A prompt's token ids must be from 0 to {d_vocab - 1}. Got {tokens.min()} to {tokens.max()}.")
    return tokens.to(model.cfg.device)


def _fitting(ctx: Any, model: TransformerLensReplacementModel) -> int:
    """Rows that can be computed at once in a quarter of the free memory."""
    device = torch.device(model.cfg.device or "cpu")
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else _free_memory()
    n_layers, n_pos, _ = ctx.activation_matrix.shape
    row = (ctx.activation_matrix._nnz() + (n_layers + 1) * n_pos) * _BYTES_PER_ENTRY
    return _MOST_AT_ONCE if free is None else max(1, min(_MOST_AT_ONCE, free // 4 // row))


def _free_memory() -> int | None:
    """Bytes of main memory that can be had, None where the system does not tell."""
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:
            kib = next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
        return kib * 1024
    except (OSError, StopIteration, ValueError):
        pass
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None
