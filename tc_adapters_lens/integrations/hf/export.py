"""A pair with adapters as a directory that transformers loads: weights, code, tokenizer, and how to use it."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch

from tc_adapters_lens.errors import AdapterSetError, CheckpointError
from tc_adapters_lens.integrations.hf import modeling_transcoder_adapters as modeling
from tc_adapters_lens.integrations.hf.model import adapter_model
from tc_adapters_lens.models.adapter_set import AdapterSet
from tc_adapters_lens.models.atomic import atomic_directory
from tc_adapters_lens.models.checkpoints import Checkpoint
from tc_adapters_lens.models.feature_group import FeatureGroup
from tc_adapters_lens.models.json_files import first_line
from tc_adapters_lens.models.pair_info import PairInfo, check_same_pair

_README = """\
# Transcoder adapters: {base} to {target}

{what}: the target's attention, norms and embeddings; the MLPs of {mlps}; and beside every
MLP an adapter, a sparse branch of {n_features} features. Written by tc_adapters_lens.
Fingerprint of the adapters: {fingerprint}.

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained({directory!r}, dtype="auto", trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained({directory!r})
```

`model.set_adapters_on(False)` leaves {off}.
{groups}
`trust_remote_code` runs `{module}`, which stands beside the weights and needs torch and
transformers alone.

With vLLM, through its transformers backend, which this was written for but has not been run with:

    vllm serve {quoted} --trust-remote-code --model-impl transformers

vLLM loads all weights in one number type{numbers}.
"""

_GROUPS = """
Groups of features ({names}) are in `config.json`; those named in `groups_off` there are kept at zero. At run time:

```python
model.set_groups_off([{first!r}])
```
"""


def export_hf(
    directory: str | Path,
    base: Checkpoint,
    target: Checkpoint,
    adapters: AdapterSet,
    *,
    mlps: Literal["base", "target"] = "base",
    groups: Sequence[FeatureGroup] = (),
    dtype: torch.dtype | None = None,
    allow_other_pair: bool = False,
) -> None:
    """Write what `adapter_model` makes, whole or not at all: configuration, weights, code, tokenizer, README.

    Args:
        directory: must not exist or be empty.
        mlps, groups: as for `adapter_model`; the groups' names stand in the configuration, none of them off.
        dtype: of the model's weights; None: the target's own. Adapters keep theirs.
        allow_other_pair: accept models other than those the adapters were trained on.
    Raises:
        CheckpointError, PairError, AdapterSetError, FeatureGroupError: as `adapter_model`; another pair; the target's
            generation configuration is not valid; the directory is taken, or the disk is full.
    """
    pair = PairInfo.of(base, target)
    if not allow_other_pair:
        check_same_pair("The adapters", adapters.info.pair, pair)
    with atomic_directory(directory, error=AdapterSetError) as partial:
        of_model: torch.dtype = dtype or getattr(target.config, "dtype", None) or torch.float32
        model = adapter_model(base, target, adapters, mlps=mlps, groups=groups, dtype=of_model)
        _check_generation(model, target)
        model.save_pretrained(partial)
        code = Path(modeling.__file__)
        shutil.copyfile(code, partial / code.name)
        if target.tokenizer is not None:
            target.tokenizer.save_pretrained(partial)
        readme = _readme(Path(directory).name, pair, adapters, mlps, groups, of_model)
        (partial / "README.md").write_text(readme, encoding="utf-8")


def _check_generation(model: modeling.AdapterModel, target: Checkpoint) -> None:
    try:
        if model.generation_config is not None:
            model.generation_config.validate(strict=True)
    except ValueError as error:
        raise CheckpointError(
            f"{target.name}: its generation_config.json must be one that transformers writes. Got: "
            f"{first_line(error)} Mend it there."
        ) from error


def _readme(
    name: str,
    pair: PairInfo,
    adapters: AdapterSet,
    mlps: Literal["base", "target"],
    groups: Sequence[FeatureGroup],
    dtype: torch.dtype,
) -> str:
    of_base = mlps == "base"
    names = [group.name for group in groups]
    mixed = adapters.dtype == torch.float32 != dtype
    return _README.format(
        base=pair.base_name,
        target=pair.target_name,
        what="The replacement model" if of_base else "The target with adapters added to its MLPs",
        mlps="the base" if of_base else "the target itself",
        n_features=f"{adapters.n_features:,}",
        fingerprint=adapters.fingerprint(),
        directory=name,
        off="the hybrid: the target with the base's MLPs alone" if of_base else "the target itself",
        groups=_GROUPS.format(names=", ".join(names), first=names[0]) if names else "",
        module=Path(modeling.__file__).name,
        quoted=shlex.quote(name),
        numbers="; transformers keeps the adapters of this model in float32" if mixed else "",
    )
