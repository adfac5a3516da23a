"""Features switched off, kept alone, scaled or negated: in adapter sets, and while the pair runs.

without = remove(adapters, group)                        # another AdapterSet, to save, attach, export
with model.adapters(adapters), scaled(model, group):     # off while the pair runs
    model.generate(prompt)
"""

from tc_adapters_lens.interventions.attached import added, clamped, scaled
from tc_adapters_lens.interventions.operations import biases, keep, negate, remove, scale

__all__ = ["added", "biases", "clamped", "keep", "negate", "remove", "scale", "scaled"]
