"""Flat token storage and the order of training: exact, repeatable, known in advance."""

import itertools

import numpy as np
import pytest
import torch

from tc_adapters_lens.training.sequences import BatchPlan, TokenSequences, deal


def make_sequences(lengths: list[int], counted: list[int] | None = None) -> TokenSequences:
    """Sequence i holds the id i + 1, `lengths[i]` times; its last `counted[i]` positions count."""
    counted = lengths if counted is None else counted
    return TokenSequences.from_lists(
        [[index + 1] * length for index, length in enumerate(lengths)],
        [[False] * (n - c) + [True] * c for n, c in zip(lengths, counted, strict=True)],
    )


class TestTokenSequences:
    def test_items(self):
        sequences = TokenSequences.from_lists([[5, 6], [7, 8, 9]], [[True, False], np.array([False, True, True])])
        assert len(sequences) == 2
        assert sequences.lengths.tolist() == [2, 3]
        assert sequences.n_counted.tolist() == [1, 2]
        tokens, mask = sequences[1]
        assert (tokens.tolist(), mask.tolist()) == ([7, 8, 9], [False, True, True])
        assert sequences[-1][0].tolist() == [7, 8, 9]
        assert (tokens.dtype, mask.dtype) == (np.int32, np.bool_)
        assert np.shares_memory(tokens, sequences.tokens)
        with pytest.raises(IndexError):
            sequences[2]

    def test_empty(self):
        sequences = TokenSequences.from_lists([], [])
        assert len(sequences) == 0
        assert sequences.lengths.tolist() == sequences.n_counted.tolist() == []

    def test_batch_pads_on_the_right_and_padding_does_not_count(self):
        batch = make_sequences([3, 1, 2]).batch([2, 0])
        assert batch.tokens.tolist() == [[3, 3, 0], [1, 1, 1]]
        assert batch.mask.tolist() == [[True, True, False], [True, True, True]]
        assert (batch.tokens.dtype, batch.mask.dtype) == (torch.int64, torch.bool)

    def test_positions_are_those_of_the_flat_mask(self):
        batch = make_sequences([3, 1, 2], [2, 1, 0]).batch([1, 0, 2])
        assert batch.positions.tolist() == [0, 4, 5] == batch.mask.flatten().nonzero().flatten().tolist()
        assert batch.positions.dtype == torch.int64

    def test_counted_tokens_of_empty_sequences_too(self):
        sequences = make_sequences([0, 3, 0, 0, 2, 1, 0], [0, 2, 0, 0, 0, 1, 0])
        assert sequences.n_counted.tolist() == [0, 2, 0, 0, 0, 1, 0]

    def test_fingerprint(self):
        same, other = make_sequences([2, 3]), make_sequences([3, 2])
        assert make_sequences([2, 3]).fingerprint() == same.fingerprint()
        assert same.fingerprint() != other.fingerprint()
        assert same.fingerprint() != make_sequences([2, 3], [2, 1]).fingerprint()
        assert same.fingerprint().startswith("sha256:")


class TestBatchPlan:
    def test_one_epoch_visits_every_sequence_once(self):
        plan = BatchPlan(make_sequences([2] * 10), batch_size=4)
        steps = [plan.indices(step).tolist() for step in range(plan.n_steps)]
        assert [len(step) for step in steps] == [4, 4, 2]
        assert sorted(itertools.chain(*steps)) == list(range(10))
        assert (plan.n_steps, len(plan), plan.n_tokens, plan.n_epochs) == (3, 3, 20, 1)

    def test_every_epoch_has_another_order(self):
        plan = BatchPlan(make_sequences([1] * 20), batch_size=20, training_tokens=60)
        orders = [plan.indices(step).tolist() for step in range(3)]
        assert all(sorted(order) == list(range(20)) for order in orders)
        assert orders[0] != orders[1] != orders[2] != orders[0]

    def test_is_a_function_of_the_seed(self):
        sequences = make_sequences([1] * 20)
        first, again, other = (BatchPlan(sequences, 20, seed=seed).indices(0).tolist() for seed in (1, 1, 2))
        assert first == again != other

    def test_order_is_what_the_docstring_says(self):
        expected = np.random.Generator(np.random.PCG64([7, 1])).permutation(5)
        plan = BatchPlan(make_sequences([1] * 5), batch_size=5, training_tokens=10, seed=7)
        assert plan.indices(1).tolist() == expected.tolist()

    @pytest.mark.parametrize("training_tokens", [None, 1, 17, 55, 56, 57, 110, 200, 1000])
    @pytest.mark.parametrize("batch_size", [1, 3, 100])
    def test_totals_are_those_of_the_batches(self, training_tokens: int | None, batch_size: int):
        sequences = make_sequences(list(range(2, 12)), counted=[1, *range(2, 11)])  # 55 counted tokens
        plan = BatchPlan(sequences, batch_size, training_tokens, seed=3)
        per_step = [int(batch.mask.sum()) for batch in plan.batches()]
        assert len(per_step) == plan.n_steps
        assert sum(per_step) == plan.n_tokens
        wanted = 55 if training_tokens is None else training_tokens
        assert sum(per_step[:-1]) < wanted <= sum(per_step)
        assert [plan.n_tokens_in(s) for s in range(plan.n_steps)] == per_step

    def test_random_access_equals_iteration_from_any_step(self):
        plan = BatchPlan(make_sequences([1, 2, 3, 4, 5]), batch_size=2, training_tokens=40)
        whole = list(plan.batches())
        for start in range(plan.n_steps):
            for resumed, batch in zip(plan.batches(start), whole[start:], strict=True):
                assert torch.equal(resumed.tokens, batch.tokens)
                assert torch.equal(resumed.mask, batch.mask)
        assert torch.equal(plan.batch(4).tokens, whole[4].tokens)
        assert torch.equal(plan.batch(0).tokens, whole[0].tokens)

    def test_outside_the_plan(self):
        plan = BatchPlan(make_sequences([1, 2]), batch_size=1)
        for step in (-1, 2):
            with pytest.raises(IndexError, match=rf"steps 0 to 1\. Got {step}"):
                plan.batch(step)
        assert list(plan.batches(2)) == []


class TestDeal:
    def test_by_hand(self):
        # 10 alone is 10; 3 then 2 padded to 3 then 1 padded to 3 is 9
        assert deal(np.array([1, 10, 2, 3]), 2) == [[1], [0, 2, 3]]
        assert deal(np.array([4, 4, 4, 4]), 2) == [[0, 2], [1, 3]]
        assert deal(np.array([5, 7]), 1) == [[0, 1]]
        assert deal(np.array([5]), 3) == [[0], [], []]

    def test_everything_is_dealt_once_and_nobody_is_left_out(self):
        generator = np.random.default_rng(0)
        for n_sequences, n_shares in itertools.product(range(1, 12), range(1, 6)):
            shares = deal(generator.integers(1, 50, n_sequences), n_shares)
            assert sorted(itertools.chain(*shares)) == list(range(n_sequences))
            assert sum(map(bool, shares)) == min(n_sequences, n_shares)

    def test_padded_shares_are_of_similar_size(self):
        generator = np.random.default_rng(0)
        for _ in range(20):
            lengths = generator.integers(1, 100, 32)
            padded = [len(share) * max(lengths[share]) for share in deal(lengths, 4)]
            assert max(padded) - min(padded) <= 2 * lengths.max()

    def test_processes_share_the_steps_of_one_plan(self):
        sequences = make_sequences([3, 1, 4, 1, 5, 9, 2, 6, 5], [1, 1, 2, 1, 3, 4, 2, 5, 3])
        whole = BatchPlan(sequences, 4, training_tokens=60)
        shares = [BatchPlan(sequences, 4, training_tokens=60, rank=rank, n_processes=3) for rank in range(3)]
        empty = 0
        for step in range(whole.n_steps):
            batches = [plan.batch(step) for plan in shares]
            assert sum(int(batch.mask.sum()) for batch in batches) == whole.n_tokens_in(step)
            assert int(whole.batch(step).mask.sum()) == whole.n_tokens_in(step)
            dealt = sorted(row for batch in batches for row in batch.tokens.max(-1).values.tolist() if row)
            assert dealt == sorted((whole.indices(step) + 1).tolist())
            empty += sum(not batch.mask.any() for batch in batches)
        assert empty > 0
