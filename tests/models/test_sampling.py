"""Sampling against a loop without cache and padding, and against the softmax of the model's own logits."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from transformers import GenerationConfig

from tc_adapters_lens.errors import CheckpointError, ConfigError, DataError
from tc_adapters_lens.models import sampling
from tc_adapters_lens.models.checkpoints import Checkpoint
from tc_adapters_lens.models.sampling import Sampling, _Draw, end_tokens, fit, load_target, sample
from tests.tiny import D_VOCAB, nudged, save, tiny_model, word_tokenizer

PROMPTS = [[1, 5, 9], [1, 7], [1, 20, 30, 40, 50, 60, 70, 80, 90, 10, 11], [33], [1, 4, 5, 6]]
END = 2
PROMPT = [1, 5, 9]


@pytest.fixture(scope="module")
def model():
    return tiny_model("qwen2")


def greedy(model, prompt, n, ends):
    """One argmax at a time, the whole sequence run anew for each."""
    tokens = list(prompt)
    while len(tokens) < len(prompt) + n:
        with torch.no_grad():
            tokens.append(int(model(torch.tensor([tokens])).logits[0, -1].argmax()))
        if tokens[-1] in ends:
            break
    return tokens


@pytest.mark.parametrize("family", ["qwen2", "gemma2", "neox"])
def test_greedy_equals_a_naive_loop(family, tmp_path):
    eager = nudged(tiny_model(family, tie_word_embeddings=False), 0.3, seed=3)  # varied responses
    loaded = load_target(Checkpoint.open(save(eager, tmp_path / family)), torch.float32, "cpu")
    third = greedy(eager, PROMPTS[0], 3, ())[-1]
    for ends in ([D_VOCAB - 1], [third, END]):
        expected = [greedy(eager, prompt, 20, ends) for prompt in PROMPTS]
        settings = Sampling(temperature=0, max_new_tokens=20, batch_size=4)
        found = list(sample(loaded, PROMPTS, settings, end_tokens=ends))
        assert [row.input_ids for row in found] == expected
        assert [row.prompt_length for row in found] == [len(prompt) for prompt in PROMPTS]
        assert [row.finished for row in found] == [tokens[-1] in ends for tokens in expected]
    assert found[0].finished
    assert len(found[0].input_ids) == len(PROMPTS[0]) + 3


def test_a_soft_cap_on_attention_is_computed(tmp_path):
    eager = tiny_model("gemma2", attn_logit_softcapping=0.5)
    loaded = load_target(Checkpoint.open(save(eager, tmp_path / "m")), torch.float32, "cpu")
    tokens = torch.tensor([PROMPTS[2]])
    with torch.no_grad():
        torch.testing.assert_close(loaded(tokens).logits, eager(tokens).logits)


def draws(model, n, **settings):
    """The next token of PROMPT, n times, as counts [d_vocab]."""
    chosen = Sampling(max_new_tokens=1, batch_size=500, **settings)
    rows = sample(model, [PROMPT] * n, chosen, end_tokens=[END])
    return torch.bincount(torch.tensor([row.input_ids[-1] for row in rows]), minlength=D_VOCAB).double()


def next_probabilities(model, temperature):
    with torch.no_grad():
        return (model(torch.tensor([PROMPT])).logits[0, -1].double() / temperature).softmax(-1)


def check_distribution(counts, probabilities):
    """Chi-square within 4 standard deviations of its mean, tokens expected less than 5 times as one."""
    expected = counts.sum() * probabilities
    often = expected >= 5
    rest = (counts[~often].sum(), expected[~often].sum())
    chi_square = ((counts - expected)[often] ** 2 / expected[often]).sum() + (rest[0] - rest[1]) ** 2 / max(rest[1], 1)
    freedom = int(often.sum())
    assert freedom > 3
    assert abs(chi_square - freedom) < 4 * math.sqrt(2 * freedom)


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_draws_follow_the_softmax(temperature, model):
    check_distribution(draws(model, 6000, temperature=temperature), next_probabilities(model, temperature))


@pytest.mark.parametrize("top_p", [0.3, 0.7])
def test_top_p_cuts_exactly_the_least_likely(top_p, model):
    probabilities = next_probabilities(model, 0.5)
    order = probabilities.argsort(descending=True)
    held, kept = 0.0, []
    for token in order.tolist():  # the fewest tokens that together have top_p
        if held >= top_p:
            break
        kept.append(token)
        held += float(probabilities[token])
    counts = draws(model, 6000, temperature=0.5, top_p=top_p)
    assert counts.nonzero().flatten().tolist() == sorted(kept)
    nucleus = torch.zeros(D_VOCAB, dtype=torch.float64)
    nucleus[kept] = probabilities[kept] / held
    check_distribution(counts, nucleus)


def test_nothing_of_the_checkpoints_own_settings_leaks(model):
    settings = Sampling(temperature=1, max_new_tokens=12, batch_size=5)
    plain = list(sample(model, PROMPTS, settings, end_tokens=[END]))
    own = model.generation_config
    model.generation_config = GenerationConfig(
        temperature=0.01,
        top_k=1,
        top_p=0.1,
        min_p=0.5,
        typical_p=0.1,
        repetition_penalty=9.0,
        no_repeat_ngram_size=1,
        suppress_tokens=list(range(40)),
        min_new_tokens=3,
        max_length=9,
        num_beams=2,
        forced_eos_token_id=3,
        eos_token_id=list(range(50, 97)),
    )
    try:
        assert list(sample(model, PROMPTS, settings, end_tokens=[END])) == plain
    finally:
        model.generation_config = own


def naive(model, prompt, number, settings, n):
    """One draw at a time in float64 with the prompt's own random numbers, the whole sequence run anew for each."""
    random = np.random.Generator(np.random.PCG64([settings.seed, number]))
    tokens = list(prompt)
    for _ in range(n):
        with torch.no_grad():
            values = model(torch.tensor([tokens])).logits[0, -1].double().numpy() / settings.temperature
        probabilities = np.exp(values - values.max())
        probabilities /= probabilities.sum()
        held, kept = 0.0, set()
        for token in np.argsort(-probabilities):
            if held < settings.top_p:
                kept.add(int(token))
                held += probabilities[token]
        aim, passed = random.random() * held, 0.0
        for token in sorted(kept):
            passed += probabilities[token]
            if passed > aim:
                break
        tokens.append(token)
        if token == END:
            break
    return tokens


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.7, 0.9), (1.3, 0.4)])
def test_draws_equal_a_naive_loop(temperature, top_p, model, monkeypatch):
    monkeypatch.setattr(sampling, "_BLOCK", 4)  # random numbers are made anew on the way
    settings = Sampling(temperature, top_p, 30, seed=5, batch_size=3)
    found = list(sample(model, PROMPTS, settings, end_tokens=[END]))
    assert [row.input_ids for row in found] == [
        naive(model, prompt, number, settings, 30) for number, prompt in enumerate(PROMPTS)
    ]


def test_draws_follow_from_seed_prompt_and_step(model):
    prompts = PROMPTS * 3

    def rows(start=0, **changes):
        settings = Sampling(**{"temperature": 1.0, "max_new_tokens": 8, "batch_size": 4, **changes})
        return list(sample(model, prompts, settings, end_tokens=[END], start=start))

    state = torch.random.get_rng_state()
    whole = rows()
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.rand(3)
    assert rows() == whole
    assert [rows(start) for start in (3, 4, 14, 15)] == [whole[3:], whole[4:], whole[14:], []]
    for batch_size in (1, 5, 15):
        assert rows(batch_size=batch_size) == whole
    assert [row.input_ids for row in rows(max_new_tokens=3)] == [
        row.input_ids[: row.prompt_length + 3] for row in whole
    ]
    assert rows(seed=1) != whole
    assert whole[:5] != whole[5:10]  # the same prompts in other places


def test_a_token_without_probability_is_never_drawn():
    """At both ends of what a random number can be."""
    draw = _Draw(0, range(3), torch.device("cpu"))
    scores = torch.tensor([[-torch.inf, 0.0, -torch.inf, 1.0, -torch.inf]]).repeat(3, 1)
    draw(scores, scores)
    draw.n_steps = 1
    draw.uniform[1] = torch.tensor([0.0, 1 - 2**-53, 1.0])  # the last is past any
    assert draw(scores, scores).argmax(-1).tolist() == [1, 3, 3]


@pytest.mark.parametrize("temperature", [0, 1.0])
def test_logits_that_are_not_numbers(temperature, model):
    broken = tiny_model("qwen2")
    with torch.no_grad():
        broken.get_input_embeddings().weight[33] = math.nan  # the fourth prompt's only token
    broken.config._attn_implementation = "eager"
    settings = Sampling(temperature, max_new_tokens=4, batch_size=2)
    rows = sample(broken, PROMPTS, settings, end_tokens=[END])
    with pytest.raises(CheckpointError, match=r"Got NaN or infinite logits in prompt 3 after 0 new tokens"):
        list(rows)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"temperature": -0.1}, "temperature must be 0 (greedy) or at least 0.0001. Got -0.1."),
        ({"temperature": math.nan}, "Got nan"),
        ({"temperature": math.inf}, "Got inf"),
        ({"top_p": 0.0}, "top_p must be above 0 and at most 1. Got 0.0."),
        ({"top_p": 1.01}, "Got 1.01"),
        ({"top_p": math.nan}, "Got nan"),
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1. Got 0."),
        ({"batch_size": 0}, "batch_size must be at least 1. Got 0."),
        ({"seed": -1}, "seed must be at least 0. Got -1."),
    ],
)
def test_settings_out_of_range(change, says):
    with pytest.raises(ConfigError) as error:
        Sampling(**change)
    assert says in str(error.value)


@pytest.mark.parametrize(
    ("prompts", "most", "says"),
    [
        ([], 5, "there must be a prompt"),
        ([[1], []], 5, "Got none in prompt 1"),
        ([[1], [3, D_VOCAB]], 5, f"below the vocabulary of {D_VOCAB}. Got {D_VOCAB} in prompt 1"),
        ([[-1]], 5, "Got -1 in prompt 0"),
        ([[1], [1] * 1000], 25, "Got 1000 tokens in prompt 1, which leaves 24, and max_new_tokens 25"),
        ([[1] * 1024], None, "which leaves 0, and max_new_tokens 1"),
    ],
)
def test_prompts_that_do_not_fit(prompts, most, says, model):
    with pytest.raises(DataError) as error:
        sample(model, prompts, Sampling(max_new_tokens=most), end_tokens=[END])
    assert says in str(error.value)


def test_room_for_responses(model):
    assert fit(Sampling(), [[1] * 1000, [1]], model.config).max_new_tokens == 1024 - 1000
    assert fit(Sampling(max_new_tokens=24), [[1] * 1000], model.config).max_new_tokens == 24
    long = tiny_model("qwen2", max_position_embeddings=9000)
    assert fit(Sampling(), [[1]], long.config).max_new_tokens == 2048


def test_end_tokens_come_from_the_generation_configuration_then_the_tokenizer(tmp_path):
    def ends(name, eos, tokenizer=None, **config):
        model = tiny_model("qwen2", **config)
        model.generation_config.eos_token_id = eos
        return end_tokens(Checkpoint.open(save(model, tmp_path / name, tokenizer)))

    assert ends("several", [9, 3, 9], word_tokenizer()) == [3, 9]
    assert ends("one", 5, word_tokenizer()) == [5]
    assert ends("tokenizer", None, word_tokenizer(eos_token="w7")) == [7]
    with pytest.raises(CheckpointError, match="an end token must be known"):
        ends("none", None)
    with pytest.raises(CheckpointError, match=f"Got {D_VOCAB}"):
        ends("outside", D_VOCAB)
    (tmp_path / "one" / "generation_config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"generation_config\.json"):
        end_tokens(Checkpoint.open(tmp_path / "one"))
    (tmp_path / "one" / "generation_config.json").unlink()
    assert end_tokens(Checkpoint.open(tmp_path / "one")) == [2]
    in_memory = tiny_model("qwen2")
    in_memory.generation_config.eos_token_id = 11
    assert end_tokens(Checkpoint.open((in_memory, None))) == [11]
