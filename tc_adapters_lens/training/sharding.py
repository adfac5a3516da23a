"""Frozen weights spread over processes (FSDP2), for a pair that does not fit on one card beside its adapters.

Each process keeps 1/n of every block; a block's weights are gathered when it runs, forward or backward, and let go
after it. Embedding, unembedding and final norm stay whole everywhere: the unembedding runs once per chunk of
positions, of which processes have different numbers, and a gather needs all of them.

FSDP2 takes contiguous parameters only. TransformerLens' weights are permuted views of the checkpoint's tensors, which
its products are fastest with. So a parametrization stores each one in the order of its memory and shows it permuted as
before: nothing is copied, and the layout stays.
"""

from __future__ import annotations

import torch
from jaxtyping import Shaped
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.nn.utils import parametrize

from tc_adapters_lens.models.diff_transformer import HookedDiffTransformer


def shard_frozen_weights(model: HookedDiffTransformer, device: str, n_processes: int) -> None:
    """Freeze a pair and spread its blocks over all processes, in place; to be called by all of them. Once is enough.

    Afterwards all processes must run the same blocks in the same order, through `run_layers` or the whole model.

    Args:
        model: the pair, on the CPU: only this process's share, and one block at a time, go to its device.
        device: where this process computes.
        n_processes: how many share the weights.
    """
    if isinstance(model, FSDPModule):
        return
    model.requires_grad_(False)
    mesh = init_device_mesh(torch.device(device).type, (n_processes,))
    for block in model.blocks:
        for module in list(block.modules()):
            _store_in_memory_order(module)
        fully_shard(block, mesh=mesh, reshard_after_forward=True)  # type: ignore[arg-type]
    whole = {param for part in (model.embed, model.unembed, model.ln_final) for param in part.parameters()}
    model.to(device, print_details=False)
    # The root: holds no weights of its own, and lets the next block's gather overlap with this one's work.
    fully_shard(model, mesh=mesh, ignored_params=whole)
    register_fsdp_forward_method(model, "run_layers")


def _store_in_memory_order(module: nn.Module) -> None:
    for name, param in list(module.named_parameters(recurse=False)):
        if not param.is_contiguous():
            order = sorted(range(param.ndim), key=param.stride, reverse=True)
            parametrize.register_parametrization(module, name, _Permuted(order), unsafe=True)


class _Permuted(nn.Module):
    """Shows a tensor that is stored with its dimensions in another order."""

    def __init__(self, order: list[int]) -> None:
        super().__init__()
        self.order = order
        self.inverse = sorted(range(len(order)), key=order.__getitem__)

    def forward(self, stored: Shaped[Tensor, "*stored"]) -> Shaped[Tensor, "*shown"]:
        return stored.permute(self.inverse)

    def right_inverse(self, shown: Shaped[Tensor, "*shown"]) -> Shaped[Tensor, "*stored"]:
        return shown.permute(self.order).contiguous()
