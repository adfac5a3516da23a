"""Statistics against counts done by hand."""

import pytest
import torch

from tc_adapters_lens.core import statistics
from tc_adapters_lens.core.statistics import (
    feature_counts,
    is_dead,
    update_tokens_since_fired,
)

ACTS = torch.tensor([[[1.0, 0.0], [2.0, 3.0]], [[0.5, 0.0], [9.0, 9.0]]])  # fires 1, 2, 1, 2 features
MASK = torch.tensor([[True, True], [True, False]])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_feature_counts(dtype: torch.dtype):
    counts = feature_counts(ACTS.to(dtype), MASK)
    assert counts.tolist() == [3, 1]
    assert counts.dtype == torch.int64
    assert feature_counts(ACTS.to(dtype)).tolist() == [4, 2]


def test_feature_counts_do_not_depend_on_chunks(monkeypatch: pytest.MonkeyPatch):
    acts = torch.randn(3, 17, 5)
    mask = torch.rand(3, 17) > 0.4
    whole = feature_counts(acts, mask)
    monkeypatch.setattr(statistics, "_COUNT_CHUNK", 20)
    assert torch.equal(feature_counts(acts, mask), whole)
    assert torch.equal(whole, (acts > 0)[mask].sum(0))


def test_tokens_since_fired():
    silent = torch.zeros(2, 3, dtype=torch.int64)  # two layers of three features
    silent = update_tokens_since_fired(silent, torch.tensor([[1, 0, 0], [0, 5, 0]]), 10)
    assert silent.tolist() == [[0, 10, 10], [10, 0, 10]]
    silent = update_tokens_since_fired(silent, torch.tensor([[0, 0, 2], [0, 0, 0]]), 7)
    assert silent.tolist() == [[7, 17, 0], [17, 7, 17]]
    assert silent.dtype == torch.int64
    assert is_dead(silent, 17).tolist() == [[False, True, False], [True, False, True]]
    assert not is_dead(silent, 18).any()
