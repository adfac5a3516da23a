"""The page of an adapter set on the hub."""

from __future__ import annotations

import json

from tc_adapters_lens.models.adapter_files import AdapterSetInfo
from tc_adapters_lens.models.hub import is_hub_id

_PAGE = """---
library_name: saelens
tags:
- transcoder-adapters
- model-diffing
- interpretability
{base_model}---

# Transcoder adapters: {base_name} to {target_name}

One sparse adapter (a SAELens transcoder) beside every MLP of the base model. Added to the base's MLP output,
with the target's attention, norms and embeddings, they stand in for what fine-tuning changed in the MLPs.

| | |
|---|---|
| base | {base_name} ({base_fingerprint}) |
| target | {target_name} ({target_fingerprint}) |
| layers, width, features per layer | {n_layers}, {d_model}, {n_features} |
{measured}
```python
from tc_adapters_lens import AdapterSet

adapters = AdapterSet.from_pretrained("{repo_id}")
```

A single layer loads with SAELens alone: `SAE.load_from_disk("layer_0")`. Method: arXiv 2602.20904.
{recipe}"""


def render(repo_id: str, info: AdapterSetInfo, n_layers: int, d_model: int, n_features: int) -> str:
    """The model card, Markdown with the hub's YAML header."""
    numbers = {key: value for key, value in info.measured.items() if isinstance(value, (int, float, str))}
    measured = "".join(
        f"| {key} | {format(value, '.4g') if isinstance(value, float) else value} |\n" for key, value in numbers.items()
    )
    recipe = f"\n## Recipe\n\n```json\n{json.dumps(info.recipe, indent=2)}\n```\n" if info.recipe else ""
    on_hub = is_hub_id(info.pair.target_name) and "/" in info.pair.target_name
    return _PAGE.format(
        repo_id=repo_id,
        base_model=f"base_model: {info.pair.target_name}\n" if on_hub else "",
        n_layers=n_layers,
        d_model=d_model,
        n_features=n_features,
        measured=measured,
        recipe=recipe,
        **{key: value for key, value in info.pair.to_dict().items() if not key.endswith("revision")},
    )
