"""Starting weights taken from the data: every feature begins as one token's part in the difference of the MLPs.

At every layer, for x and delta of as many tokens as there are features, drawn at random (x- and d-: their means):

    W_enc_i = (x_i - x-) / |x_i - x-| / sqrt(3)                  as long as the columns of a random start
    b_enc_i so that feature i is active on ACTIVE_TOKENS of those tokens
    W_dec_i = DECODER_SHARE (delta_i - d-) / f-                  f-: mean activation of an active feature
    b_dec   = d-

With it an adapter begins sparse (ACTIVE_TOKENS active features a token) and with directions that occur. From random
directions and zero biases half of all features begin active, and most of training goes into turning them off.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.hook_points import HookPoint

from tc_adapters_lens.errors import DataError
from tc_adapters_lens.models.diff_transformer import HookedDiffTransformer
from tc_adapters_lens.models.names import hook_io
from tc_adapters_lens.training.sequences import TokenSequences

__all__ = ["ACTIVE_TOKENS", "DECODER_SHARE", "data_start"]

ACTIVE_TOKENS = 4
DECODER_SHARE = 0.3
_TOKENS_SEEN = 4  # for every token that is drawn
_ENCODER_NORM = 3**-0.5


def data_start(
    model: HookedDiffTransformer, sequences: TokenSequences, n_features: int, seed: int, batch_size: int = 1
) -> dict[str, Float[Tensor, "n_layers ..."]]:
    """Starting weights as `AdapterSet.from_state` takes them, float32, on the CPU.

    Memory: x and delta of `n_features` tokens of every layer on the CPU, one layer's on the device.

    Args:
        model: the pair, with nothing attached.
        sequences: what training will see.
        n_features: features of each adapter.
        seed: of the draw; the same arguments give the same weights.
        batch_size: sequences in one pass.
    Raises:
        DataError: fewer tokens that count than features.
    """
    n_tokens = int(sequences.n_counted.sum())
    if n_tokens < n_features:
        raise DataError(
            "training.start: data needs as many tokens that count as features. "
            f"Got {n_tokens} (tokens) and {n_features} (features). Use fewer features, or start: random."
        )
    generator = np.random.Generator(np.random.PCG64([seed, n_features]))
    order = generator.permutation(len(sequences))
    seen = np.cumsum(sequences.n_counted[order])
    order = order[: int(np.searchsorted(seen, _TOKENS_SEEN * n_features)) + 1]
    n_seen = int(seen[len(order) - 1])
    drawn = generator.permutation(n_seen)[:n_features]

    layers = [[] for _ in range(model.cfg.n_layers)]
    for rows in _inputs_and_deltas(model, sequences, order, np.sort(drawn), batch_size):
        for collected, io in zip(layers, rows, strict=True):
            collected.append(io)
    states = [_layer_start(torch.cat(parts).to(model.cfg.device)) for parts in layers]
    return {name: torch.stack([state[name] for state in states]) for name in states[0]}


@torch.no_grad()
def _inputs_and_deltas(
    model: HookedDiffTransformer, sequences: TokenSequences, order: np.ndarray, drawn: np.ndarray, batch_size: int
) -> Iterator[list[Float[Tensor, "n_drawn two_d_model"]]]:
    """[x ; delta] of the drawn tokens, every layer's, some sequences at a time, on the CPU."""
    before = 0
    for start in range(0, len(order), batch_size):
        tokens, _, counted = sequences.batch(order[start : start + batch_size])
        positions = counted.numpy()
        here = drawn[(drawn >= before) & (drawn < before + len(positions))] - before
        before += len(positions)
        if not len(here):
            continue
        wanted = torch.from_numpy(positions[here]).to(model.cfg.device)
        rows: list[Tensor] = []

        def read(io: Tensor, hook: HookPoint, rows: list[Tensor] = rows, wanted: Tensor = wanted) -> None:
            rows.append(io.flatten(0, 1)[wanted].cpu())

        hooks: list[Any] = [(hook_io(layer), read) for layer in range(model.cfg.n_layers)]
        with model.mode("target"), model.hooks(fwd_hooks=hooks):
            model.run_layers(model.embed_tokens(tokens.to(model.cfg.device)))
        yield rows


def _layer_start(io: Float[Tensor, "n_features two_d_model"]) -> dict[str, Tensor]:
    x, delta = io.float().chunk(2, dim=-1)
    centred, mean_delta = x - x.mean(0), delta.mean(0)
    W_enc = _ENCODER_NORM * torch.nn.functional.normalize(centred, dim=-1).T
    pre = x @ W_enc
    active = min(ACTIVE_TOKENS, len(x) - 1)
    b_enc = -pre.kthvalue(len(x) - active, dim=0).values
    acts = torch.relu(pre + b_enc)
    mean_act = acts.sum() / acts.count_nonzero().clamp(min=1)
    W_dec = DECODER_SHARE * (delta - mean_delta) / mean_act.clamp(min=torch.finfo(acts.dtype).tiny)
    state = {"W_enc": W_enc, "b_enc": b_enc, "W_dec": W_dec, "b_dec": mean_delta}
    return {name: tensor.contiguous().cpu() for name, tensor in state.items()}
