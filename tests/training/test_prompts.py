"""Prompts from every kind of rows, as the target's chat template begins a response."""

from __future__ import annotations

import json

import pytest

from tc_adapters_lens import toy
from tc_adapters_lens.errors import ConfigError, DataError
from tc_adapters_lens.models.checkpoints import Checkpoint
from tc_adapters_lens.training.prompts import load_prompts
from tests.tiny import word_tokenizer

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %} {{ {'user': 'w30', 'assistant': 'w31', 'system': 'w32'}[m.role] }}"
    " {{ m.content }}{% endfor %}{% if add_generation_prompt %} w31{% endif %}"
)


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


@pytest.fixture
def tokenizer():
    tokenizer = word_tokenizer()
    tokenizer.chat_template = TEMPLATE
    return tokenizer


@pytest.fixture
def file(tmp_path):
    def write(*rows):
        path = tmp_path / "prompts.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(path)

    return write


def test_chats_up_to_the_last_user_turn(file, tokenizer):
    source = file(
        {"messages": [user("w5"), assistant("w6")]},
        {"messages": [{"role": "system", "content": "w3"}, user("w5"), assistant("w6"), user("w7"), assistant("w8")]},
        {"messages": [assistant("w6")]},
        {"messages": [user("w9")]},
    )
    prompts, report = load_prompts(source, tokenizer)
    assert prompts == [[1, 30, 5, 31], [1, 32, 3, 30, 5, 31, 6, 30, 7, 31], [1, 30, 9, 31]]
    assert report.to_dict() == {
        "source": source,
        "split": "train",
        "column": "messages",
        "n_rows": 4,
        "n_prompts": 3,
        "dropped": {"no user turn": 1},
    }


@pytest.mark.parametrize(
    ("row", "column"),
    [
        ({"conversations": [{"from": "human", "value": "w5"}, {"from": "gpt", "value": "w6"}]}, None),
        ({"prompt": "w5", "answer": "w6"}, None),
        ({"question": "w5"}, None),
        ({"prompt": [user("w5")]}, None),
        ({"problem": "w5", "prompt": "w8"}, "problem"),
        ({"input_ids": [1, 30, 5, 31, 8, 9], "prompt_length": 4}, None),
    ],
)
def test_every_kind_of_row(row, column, file, tokenizer):
    assert load_prompts(file(row), tokenizer, column=column)[0] == [[1, 30, 5, 31]]


def test_a_template_of_ones_own(file, tokenizer, tmp_path):
    own = tmp_path / "own.jinja"
    own.write_text("w40 {{ messages[0].content }}")
    assert load_prompts(file({"prompt": "w5"}), tokenizer, chat_template=str(own))[0] == [[40, 5]]
    with pytest.raises(ConfigError, match=r"none\.jinja"):
        load_prompts(file({"prompt": "w5"}), tokenizer, chat_template="none.jinja")
    with pytest.raises(DataError, match="valid Jinja"):
        load_prompts(file({"prompt": "w5"}), tokenizer, chat_template="{% if")


def test_some_drawn_at_random(file, tokenizer):
    source = file(*({"prompt": f"w{number}"} for number in range(30, 70)))
    every, _ = load_prompts(source, tokenizer)
    assert [prompt[2] for prompt in every] == list(range(30, 70))
    few, few_report = load_prompts(source, tokenizer, n=5)
    more, _ = load_prompts(source, tokenizer, n=30)
    assert few == more[:5]
    assert len({tuple(prompt) for prompt in more}) == 30
    assert [prompt[2] for prompt in few] != [30, 31, 32, 33, 34]
    assert load_prompts(source, tokenizer, n=5, seed=1)[0] != few
    assert (few_report.n_rows, few_report.n_prompts) == (40, 5)


def test_the_built_in_problems():
    tokenizer = Checkpoint.open("toy:target").tokenizer
    prompts, report = load_prompts("toy", tokenizer)
    assert tokenizer is not None
    questions = [problem.question for problem in toy.load_problems()]
    assert len(prompts) == report.n_prompts == len(questions)
    chat = [{"role": "user", "content": questions[0]}]
    assert prompts[0] == tokenizer.apply_chat_template(chat, add_generation_prompt=True)


@pytest.mark.parametrize(
    ("rows", "arguments", "says"),
    [
        ([{"quesion": "w5"}], {}, "Got columns quesion; name one with --prompt-column. Did you mean 'quesion'?"),
        ([{"problem": "w5"}], {"column": "problm"}, "a column problm. Got problem. Did you mean 'problem'?"),
        ([{"input_ids": [1, 2]}], {}, "or input_ids with prompt_length. Got columns input_ids"),
        ([{"prompt": "w5"}], {"n": 2}, "Got 2 and 1 rows"),
        ([{"prompt": "w5"}, {"prompt": " "}], {"n": 2}, "Got 2 and 1 usable of 2 rows"),
        ([{"prompt": " "}], {}, "Got none in"),
        ([{"input_ids": [1, 2], "prompt_length": 3}], {}, "prompt_length is not a count of its tokens (1)"),
        ([{"input_ids": [1, 2], "prompt_length": 0}], {}, "prompt_length is not a count of its tokens (1)"),
        ([{"input_ids": [0.5, 2], "prompt_length": 1}], {}, "not a list of whole numbers (1)"),
        ([{"prompt": "w5"}], {"split": "test"}, "split test"),
    ],
)
def test_rows_that_cannot_be_used(rows, arguments, says, file, tokenizer):
    with pytest.raises(DataError) as error:
        load_prompts(file(*rows), tokenizer, **arguments)
    assert says in str(error.value)


def test_a_target_without_tokenizer_or_template(file):
    source = file({"prompt": "w5"})
    with pytest.raises(DataError, match="need a tokenizer"):
        load_prompts(source, None)
    with pytest.raises(DataError, match="give --chat-template FILE"):
        load_prompts(source, word_tokenizer())
    assert load_prompts(file({"input_ids": [4, 5], "prompt_length": 1}), None)[0] == [[4]]
