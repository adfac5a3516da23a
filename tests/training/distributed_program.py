"""What test_distributed.py has torchrun start: several runs in one group of processes.

    python -m torch.distributed.run --nproc-per-node 2 distributed_program.py DIRECTORY

DIRECTORY holds config.yaml; every process leaves the weights that it ends with in DIRECTORY/NAME.RANK.safetensors.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from tc_adapters_lens.errors import ConfigError
from tc_adapters_lens.models.dense_weights import DenseWeights
from tc_adapters_lens.models.pair import load_pair
from tc_adapters_lens.training.config import TrainingConfig
from tc_adapters_lens.training.distributed import join, leave
from tc_adapters_lens.training.runner import AdapterTrainingRunner


def stored_bytes(module: torch.nn.Module) -> int:
    """Of all parameters' storage in this process."""
    local = (getattr(param, "_local_tensor", param) for param in module.parameters())
    return sum({tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in local}.values())


def main(directory: Path) -> None:
    config = TrainingConfig.from_yaml((directory / "config.yaml").read_text())
    processes = join()
    seen: dict[str, object] = {}

    def run(name: str, config: TrainingConfig = config, model=None) -> AdapterTrainingRunner:
        runner = AdapterTrainingRunner(config, directory / name, model)
        result = runner.run()
        tensors = dict(result.tensors) if isinstance(result, DenseWeights) else result.state()
        save_file(tensors, directory / f"{name}.{processes.rank}.safetensors")
        return runner

    runner = run("two")
    shares = [runner.plan.batch(step) for step in range(runner.plan.n_steps)]
    seen["positions"] = [int(share.mask.sum()) for share in shares]
    seen["whole"] = stored_bytes(runner.model.blocks)

    run("resumed")
    run("float64", model=load_pair(config.base, config.target, dtype=torch.float64))

    local_first = dataclasses.replace(config.training, start="data", local_share=0.5)
    run("local_first", dataclasses.replace(config, training=local_first), runner.model)

    run("mlps", dataclasses.replace(config, trained="mlps"), runner.model)

    optim = dataclasses.replace(config.training, shard_weights=True)
    runner = run("sharded", dataclasses.replace(config, training=optim))
    seen["sharded"] = stored_bytes(runner.model.blocks)
    optim = dataclasses.replace(optim, activation_checkpointing=True)
    run("recomputed", dataclasses.replace(config, training=optim), runner.model)

    other = dataclasses.replace(config, seed=processes.rank)
    try:
        AdapterTrainingRunner(other, directory / "other", runner.model)
    except ConfigError as error:
        seen["other"] = str(error)
    (directory / f"seen.{processes.rank}.json").write_text(json.dumps(seen))
    leave()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
