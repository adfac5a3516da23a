"""KL of every condition of an intervention to the target, on the responses that the target wrote."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from tqdm.auto import tqdm
from transformer_lens import HookedTransformer

from tc_adapters_lens.cli.of_run import load_named_pair
from tc_adapters_lens.evaluation.predictions import Positions, compare_predictions
from tc_adapters_lens.evaluation.variants import Variant, base_variant, predict
from tc_adapters_lens.interventions.attached import added
from tc_adapters_lens.interventions.conditions import Condition
from tc_adapters_lens.models.adapter_set import AdapterSet
from tc_adapters_lens.models.diff_transformer import HookedDiffTransformer
from tc_adapters_lens.models.pair import load_base
from tc_adapters_lens.models.sampling import Sampled
from tc_adapters_lens.training.sequences import TokenSequences

if TYPE_CHECKING:
    from tc_adapters_lens.cli.intervention import Settings

TARGET = "target"
_AT_ONCE = 4  # conditions whose adapters are in memory together, for one pass of the target


@torch.no_grad()
def measure_kl(
    settings: Settings,
    conditions: Sequence[Condition],
    adapters: AdapterSet,
    responses: Sequence[Sampled],
    *,
    dtype: torch.dtype,
    device: torch.device,
) -> dict[str, np.ndarray]:
    """Summed KL(target || condition) over the response tokens of every problem, and how many these are.

    Args:
        adapters: the trained ones.
        responses: the target's, one per problem.
    Returns:
        Condition's name -> `[n_problems 2]`, float64: nats, positions. A problem without a response token has zeros.
    """
    model = load_named_pair(settings, dtype, device)
    base = None
    if any(condition.name == "base" for condition in conditions):
        base = load_base(settings.base, base_revision=settings.base_revision, pair=model, dtype=dtype, device=device)
    trained = adapters.to(device=device)
    sequences = _sequences(responses)
    order = sequences.lengths.argsort(kind="stable")[::-1]
    chunks = [order[start : start + settings.batch_size] for start in range(0, len(order), settings.batch_size)]
    found = {condition.name: np.zeros((len(responses), 2)) for condition in conditions}
    others = [condition for condition in conditions if condition.name != TARGET]
    together = [others[start : start + _AT_ONCE] for start in range(0, len(others), _AT_ONCE)]
    as_target = partial(model.mode, "target")
    with tqdm(total=len(together) * len(chunks), desc="measuring KL", unit=" batches", disable=None) as bar:
        for some in together:
            variants = {condition.name: _variant(condition, model, trained, base) for condition in some}
            for chunk in chunks:
                batch = sequences.batch(chunk)
                tokens = batch.tokens.to(device)
                sums = compare_predictions(
                    predict(TARGET, model, as_target, tokens),
                    (predict(name, model, variant, tokens) for name, variant in variants.items()),
                    Positions(tokens, batch.mask.to(device)),
                )
                n_positions = sums[TARGET][:, 0]
                for name, summed in sums.items():
                    kl = torch.zeros_like(n_positions) if name == TARGET else summed[:, 0]
                    found[name][chunk] = torch.stack([kl, n_positions], 1).cpu().numpy()
                bar.update()
    return found


def _sequences(responses: Sequence[Sampled]) -> TokenSequences:
    """Prompts with their responses, whose tokens are what counts."""
    lengths = [len(response.input_ids) for response in responses]
    mask = [np.arange(n) >= response.prompt_length for n, response in zip(lengths, responses, strict=True)]
    tokens = np.concatenate([np.asarray(response.input_ids, np.int32) for response in responses])
    return TokenSequences(tokens, np.concatenate(mask), np.cumsum([0, *lengths]))


def _variant(
    condition: Condition, model: HookedDiffTransformer, trained: AdapterSet, base: HookedTransformer | None
) -> Variant:
    """The pair as a condition's model."""
    if condition.name == "base":
        assert base is not None
        return base_variant(model, base)
    adapters = condition.adapters(trained)
    if adapters is None:
        return partial(model.mode, "base")
    return partial(added, model, adapters) if condition.mlps == "target" else partial(model.adapters, adapters)
