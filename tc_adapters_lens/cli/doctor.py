"""`tc-adapters doctor`: is everything there, do the models fit together, will the training fit in memory.

Nothing is loaded: configurations and tensors are read from files, one tensor at a time. Everything that can be
checked is checked and shown before the command fails.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from jsonargparse import Namespace

from tc_adapters_lens import assets
from tc_adapters_lens.cli import options
from tc_adapters_lens.cli.findings import Findings
from tc_adapters_lens.cli.output import write_json
from tc_adapters_lens.cli.parser import Parser
from tc_adapters_lens.errors import AdapterLensError, CheckpointError, ConfigError

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from tc_adapters_lens.cli.environment import Environment
    from tc_adapters_lens.models.checkpoints import Checkpoint
    from tc_adapters_lens.models.weight_change import WeightChange
    from tc_adapters_lens.training.config import TrainingConfig
    from tc_adapters_lens.training.memory import MemoryEstimate

SUMMARY = "check the installation, a pair of models and a training configuration before spending hours on them"
EXAMPLE = """\
examples:
  tc-adapters doctor
  tc-adapters doctor --base Qwen/Qwen2.5-Math-1.5B --target deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B
  tc-adapters doctor --config configs/r1-distill-qwen-7b.yaml

Models named here are downloaded as for training. Those that only the configuration names are checked if they are
on this machine already."""


def add_arguments(parser: Parser) -> None:
    options.add_pair(parser, required=False)
    parser.add_argument("--config", type=str | None, metavar="FILE", help="training configuration to check")
    parser.add_argument(
        "--allow-tokenizer-mismatch",
        action="store_true",
        help="do not fail where the two tokenizers disagree; a configuration can say so too",
    )
    options.add_json(parser)


def run(args: Namespace) -> dict[str, Any]:
    if (args.base is None) != (args.target is None):
        raise ConfigError("--base and --target must be given together, or neither. Got one. Add the other.")
    findings = Findings()
    environment = _check_environment(findings)
    config = _check_config(args.config, findings) if args.config else None
    pair = _pair_of(args, config)
    change = memory = None
    if pair is not None:
        base, target = _open(pair, findings)
        if base is not None or target is not None:
            change = _check_pair(base, target, pair.allow_tokenizer_mismatch, findings)
        if config is not None:
            memory = _check_memory(config, [target, base], pair, findings)
    result = {
        "ok": not findings.errors,
        "checks": [finding._asdict() for finding in findings.all],
        "environment": environment.to_dict(),
        "config": None if config is None else config.to_dict(),
        "weight_change": None if change is None else change.to_dict(),
        "memory": None if memory is None else memory.to_dict(),
    }
    if findings.errors:
        _fail(findings.errors, result, args.json)
    print(f"\n{sum(finding.status == 'passed' for finding in findings.all)} checks passed, none failed")
    return result


class Pair(NamedTuple):
    """Which models to check.

    fetch: download what is missing; otherwise what is missing is only noted.
    """

    base: str
    target: str
    base_revision: str | None
    target_revision: str | None
    allow_tokenizer_mismatch: bool
    fetch: bool


def _pair_of(args: Namespace, config: TrainingConfig | None) -> Pair | None:
    allowed = args.allow_tokenizer_mismatch or (config is not None and config.allow_tokenizer_mismatch)
    if args.base is not None:
        return Pair(args.base, args.target, args.base_revision, args.target_revision, allowed, True)
    if config is None:
        return None
    return Pair(
        config.base,
        config.target,
        args.base_revision or config.base_revision,
        args.target_revision or config.target_revision,
        allowed,
        False,
    )


def _check_environment(findings: Findings) -> Environment:
    from tc_adapters_lens.cli.environment import DISTRIBUTION, SHOWN, environment

    found = environment()
    print("installation")
    for package in found.packages:
        what = f"{package.name} {package.version or 'is not installed'}"
        wanted = f"wanted: {package.wanted}" if package.wanted else ""
        if package.satisfied:
            if package.name in (*SHOWN, "python"):
                findings.add(what, "passed", wanted)
        elif package.extra is None:
            fix = f'pip install "{package.name}{package.wanted}"'
            fix = "Use another Python." if package.name == "python" else fix
            got = package.version or "none"
            findings.fail(
                package.name,
                AdapterLensError(f"{package.name} must be {package.wanted or 'installed'}. Got {got}. {fix}"),
            )
        else:
            findings.add(what, "note", f"{wanted}. Only needed for: {package.extra}. {found.install[package.extra]}")
    if all(package.wanted is None for package in found.packages):
        findings.add(f"{DISTRIBUTION} is not installed, so the ranges it needs are not known", "note")
    if found.missing_scripts:
        names = ", ".join(found.missing_scripts)
        findings.add(
            f"scripts not here: {names}", "note", f"pages will link them on a CDN. {assets.COMMAND} fetches them"
        )
    else:
        findings.add("browser scripts of pages are here", "passed")
    for device in found.devices:
        findings.add(device, "note")
    return found


def _check_config(path: str, findings: Findings) -> TrainingConfig | None:
    from tc_adapters_lens.training.config import load_config

    print(f"\nconfiguration {path}")
    try:
        config = load_config(path)
    except ConfigError as error:
        findings.fail("every key and value is valid", error)
        return None
    findings.add("every key and value is valid", "passed")
    return config


def _open(pair: Pair, findings: Findings) -> tuple[Checkpoint | None, Checkpoint | None]:
    """Both checkpoints; None for one that cannot be opened, which is a failure unless it is only not here."""
    from tc_adapters_lens.models.checkpoints import Checkpoint

    print(f"\npair {pair.base} -> {pair.target}")
    opened: list[Checkpoint | None] = []
    for role, name, revision in (
        ("base", pair.base, pair.base_revision),
        ("target", pair.target, pair.target_revision),
    ):
        try:
            if pair.fetch or not _is_remote(name):
                opened.append(Checkpoint.open(name, revision))
            else:
                with _offline():
                    opened.append(Checkpoint.open(name, revision))
        except CheckpointError as error:
            opened.append(None)
            if pair.fetch or not _is_remote(name):
                findings.fail(f"{role} can be read", error)
            else:
                absent = f"{name} is not on this machine. Name --base and --target to fetch and check them."
                findings.add(f"{role} is not checked", "note", str(error) if _cached(name, revision) else absent)
            continue
        found = opened[-1]
        assert found is not None
        at = f" at {found.revision}" if found.revision else ""
        findings.add(f"{role} can be read", "passed", f"{found.name}{at}, {len(found.tensor_names())} tensors")
    base, target = opened
    return base, target


def _is_remote(name: str) -> bool:
    """Whether a name can only mean a model on the hub."""
    from tc_adapters_lens.models.hub import is_hub_id

    return is_hub_id(name) and not Path(name).expanduser().exists()


@contextmanager
def _offline() -> Iterator[None]:
    """Only what the hub's cache holds, inside the block."""
    before = os.environ.get("HF_HUB_OFFLINE")
    os.environ["HF_HUB_OFFLINE"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["HF_HUB_OFFLINE"]
        else:
            os.environ["HF_HUB_OFFLINE"] = before


def _check_pair(
    base: Checkpoint | None, target: Checkpoint | None, allow_tokenizer_mismatch: bool, findings: Findings
) -> WeightChange | None:
    """All checks of the pair, or of the one model there is; the weight change where there are both."""
    from tc_adapters_lens.models.pair_checks import check_configs, checkpoint_checks, pair_checks
    from tc_adapters_lens.models.weight_change import weight_change
    from tc_adapters_lens.report.doctor import change_lines

    if base is None or target is None:
        present = base or target
        assert present is not None
        role = "base" if target is None else "target"
        findings.run(checkpoint_checks(role, present, _progress, only_mlps=target is None))
        return None
    findings.run(pair_checks(base, target, allow_tokenizer_mismatch, _progress))
    try:
        check_configs(base.config, target.config)
    except AdapterLensError:
        return None
    change = weight_change(base, target, _progress)
    print("\nrelative weight change |W_target - W_base| / |W_base|")
    print("\n".join(change_lines(change)))
    return change


def _progress(names: Iterable[str]) -> Iterable[str]:
    from tqdm.auto import tqdm

    return tqdm(list(names), desc="reading tensors", unit="tensor", leave=False, disable=None)


def _check_memory(
    config: TrainingConfig, checkpoints: list[Checkpoint | None], pair: Pair, findings: Findings
) -> MemoryEstimate | None:
    """The estimate, from either model's configuration; they have the same shape."""
    from tc_adapters_lens.report.doctor import memory_lines
    from tc_adapters_lens.training.memory import estimate_memory

    print("\nmemory for training")
    model = next((found.config for found in checkpoints if found is not None), None) or _cached_config(pair)
    if model is None:
        findings.add("not estimated", "note", f"the config.json of {pair.target} is not on this machine")
        return None
    limit, context = model.max_position_embeddings, config.data.context_size
    if context is not None and context > limit:
        findings.fail(
            "data.context_size fits the model",
            ConfigError(
                f"data.context_size must not exceed what the model takes. Got {context} and {limit}. Lower it."
            ),
        )
        return None
    try:
        estimate = estimate_memory(config, model)
    except (CheckpointError, ConfigError) as error:
        findings.add("not estimated", "skipped", str(error))
        return None
    print("\n".join(memory_lines(estimate)))
    findings.add("here", "note", _fits(estimate.total, config.device))
    return estimate


def _fits(n_bytes: int, device: str) -> str:
    """Whether that much is there on the device that a configuration names."""
    import torch

    from tc_adapters_lens.cli.environment import GIB, host_memory

    index = int(device.partition(":")[2] or 0)
    if (device == "auto" and torch.cuda.is_available()) or device.startswith("cuda"):
        if index >= torch.cuda.device_count():
            return f"{device} is not on this machine"
        device, available = f"cuda:{index}", torch.cuda.mem_get_info(index)[1]
    else:
        device, available = "main memory", host_memory()
    if available is None:
        return f"the size of {device} is not known"
    verdict = "enough" if n_bytes < available else "NOT enough: lower data.context_size or training.batch_size_prompts"
    return f"{device} has {available / GIB:,.1f} GiB, {verdict}"


def _cached_config(pair: Pair) -> PretrainedConfig | None:
    """The config.json of either model from the hub's cache, which may hold that without the weights."""
    from transformers import AutoConfig

    for name, revision in ((pair.target, pair.target_revision), (pair.base, pair.base_revision)):
        directory = _cached(name, revision)
        if directory is not None:
            return AutoConfig.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    return None


def _cached(name: str, revision: str | None) -> Path | None:
    """The directory of a hub model's config.json in the cache, None if it is not there."""
    import huggingface_hub

    found = _is_remote(name) and huggingface_hub.try_to_load_from_cache(name, "config.json", revision=revision)
    return Path(found).parent if isinstance(found, str) else None


def _fail(errors: list[AdapterLensError], result: dict[str, Any], json: str | None) -> None:
    """Raises what failed; wrong use (ConfigError) if nothing else did. The result is written all the same."""
    if json is not None:
        write_json(json, result)
    first = next((error for error in errors if not isinstance(error, ConfigError)), errors[0])
    if len(errors) == 1:
        raise first
    raise type(first)(f"{len(errors)} checks failed, among them: {first}")
