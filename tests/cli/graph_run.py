"""A run to make graphs of: a pair whose words are hostile, and adapters."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch

from tc_adapters_lens.models.adapter_set import AdapterSet, AdapterSetInfo
from tc_adapters_lens.models.checkpoints import Checkpoint
from tc_adapters_lens.models.pair_info import PairInfo
from tests.tiny import D_MODEL, N_LAYERS, save, tiny_pair, word_tokenizer

N_FEATURES = 12
WORDS = (
    "<script>alert(1)</script>",
    "../../etc/passwd",
    "\u202egpj.exe",
    "&lt;b&gt;",
    "{{7*7}}",
    "$x^2$",
    "日本語",
    "\x1b[2J",
)
PROMPT = "w1 w9 w8 w7 w5"
CHAT = (
    "{% for m in messages %}{% if m['role'] == 'user' %}w90 {{ m['content'] }} {% else %}w91 {{ m['content'] }} w2 "
    "{% endif %}{% endfor %}{% if add_generation_prompt %}w91 {% endif %}"
)


def make_run(root: Path) -> Path:
    """`root/run`, and its pair in `root/base` and `root/target`."""
    tokenizer = word_tokenizer()
    changed = json.loads(tokenizer.backend_tokenizer.to_str())
    vocabulary = changed["model"]["vocab"]
    for place, word in enumerate(WORDS):
        vocabulary[word] = vocabulary.pop(f"w{40 + place}")
    tokenizer._tokenizer = type(tokenizer.backend_tokenizer).from_str(json.dumps(changed))
    for name, model in zip(("base", "target"), tiny_pair("qwen2"), strict=True):
        save(model, root / name, tokenizer)
    base, target = (Checkpoint.open(str(root / name)) for name in ("base", "target"))
    info = AdapterSetInfo(PairInfo.of(base, target))
    fresh = AdapterSet.fresh(N_LAYERS, D_MODEL, N_FEATURES, info)
    generator = torch.Generator().manual_seed(0)
    state = {name: torch.randn(t.shape, generator=generator) * 0.1 for name, t in fresh.state().items()}
    AdapterSet.from_state(state, info).save(root / "run" / "adapters")
    config = {"base": str(root / "base"), "target": str(root / "target"), "data": {"path": "toy"}}
    (root / "run" / "config.yaml").write_text(json.dumps({**config, "adapters": {"n_features": N_FEATURES}}))
    return root / "run"


def without_tokenizer(run: Path, root: Path) -> list[str]:
    """Options that name the same pair and adapters, where neither model has a tokenizer."""
    options = []
    for name in ("base", "target"):
        shutil.copytree(run.parent / name, root / name, ignore=shutil.ignore_patterns("*token*"))
        options += [f"--{name}", str(root / name)]
    return [*options, "--adapters", str(run / "adapters")]
