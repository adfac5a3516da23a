"""The shipped files: tokenizer, chat template, weights, sequences; and the target is the better model."""

import itertools
import json
import random

import datasets
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tc_adapters_lens import toy
from tc_adapters_lens.toy.problems import HESITATIONS, generate
from tc_adapters_lens.toy.responses import base_response, target_response

# ruff: noqa: RUF001  - the full-width bars are DeepSeek's own
BOS, EOS = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"
USER, ASSISTANT = "<｜User｜>", "<｜Assistant｜>"
MESSAGES = [
    {"role": "user", "content": "What is 2 + 3?"},
    {"role": "assistant", "content": "<think>\nSo 2 + 3 = 5.</think>The answer is 5."},
]


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(toy.TARGET)


@pytest.fixture(scope="module")
def evaluation():
    return [json.loads(line) for line in toy.EVAL_TOKENS.read_text(encoding="utf-8").splitlines()]


def test_both_models_have_the_same_tokenizer():
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (toy.BASE / name).read_bytes() == (toy.TARGET / name).read_bytes()


def test_corpus_text_round_trips_without_unknown_tokens(tokenizer):
    rng = random.Random(5)
    for problem in itertools.islice(generate(5, held_out=True, n_steps=(1, 6)), 1000):
        for text in (problem.question, base_response(problem, rng), target_response(problem, rng)):
            ids = tokenizer(text).input_ids
            assert tokenizer.unk_token_id not in ids
            assert tokenizer.decode(ids) == text


@pytest.mark.parametrize("word", HESITATIONS)
def test_a_hesitation_word_is_one_token(tokenizer, word):
    for form in (word, " " + word, word.capitalize(), " " + word.capitalize()):
        ids = tokenizer(form).input_ids
        assert len(ids) == 1
        assert ids[0] != tokenizer.unk_token_id


def test_chat_template_forms(tokenizer):
    prompt = tokenizer.apply_chat_template(MESSAGES[:1], add_generation_prompt=True, tokenize=False)
    assert prompt == f"{BOS}{USER}What is 2 + 3?{ASSISTANT}"
    whole = tokenizer.apply_chat_template(MESSAGES, tokenize=False)
    assert whole == f"{prompt}<think>\nSo 2 + 3 = 5.</think>The answer is 5.{EOS}"


def test_chat_template_marks_the_assistants_tokens(tokenizer):
    encoded = tokenizer.apply_chat_template(MESSAGES, return_dict=True, return_assistant_tokens_mask=True)
    marked = [i for i, m in zip(encoded["input_ids"], encoded["assistant_masks"], strict=True) if m]
    assert tokenizer.decode(marked) == MESSAGES[1]["content"] + EOS


def test_roles_and_think_tags_are_single_tokens(tokenizer):
    for text in (BOS, EOS, USER, ASSISTANT, "<think>", "</think>"):
        assert tokenizer.convert_ids_to_tokens(tokenizer(text).input_ids) == [text]
    assert (tokenizer.bos_token, tokenizer.eos_token) == (BOS, EOS)
    assert tokenizer.pad_token not in (None, EOS)
    assert len(tokenizer) <= 1500


def test_the_toy_is_small():
    folder = toy.DATA.parent
    shipped = (path for path in folder.rglob("*") if path.is_file() and path.parent.name != "__pycache__")
    assert sum(path.stat().st_size for path in shipped) < 8_000_000


def test_weights_are_finite_and_the_pair_is_alike_in_shape_only():
    base, target = (AutoModelForCausalLM.from_pretrained(path) for path in (toy.BASE, toy.TARGET))
    assert base.config.model_type == target.config.model_type == "qwen2"
    assert target.config.num_key_value_heads < target.config.num_attention_heads
    assert 1e6 <= target.num_parameters() <= 2e6
    for (name, before), (same, after) in zip(base.named_parameters(), target.named_parameters(), strict=True):
        assert (name, before.shape) == (same, after.shape)
        assert torch.isfinite(before).all()
        assert torch.isfinite(after).all()
        assert not torch.equal(before, after), f"{name} was not fine-tuned"


def test_evaluation_sequences(tokenizer, evaluation):
    assert len(evaluation) >= 300
    assistant = tokenizer.convert_tokens_to_ids(ASSISTANT)
    for row in evaluation:
        assert len(row["input_ids"]) <= 256
        assert all(0 <= i < len(tokenizer) for i in row["input_ids"])
        assert row["input_ids"][0] == tokenizer.bos_token_id
        assert row["input_ids"][row["prompt_length"] - 1] == assistant
        assert tokenizer.unk_token_id not in row["input_ids"]


def test_training_sequences(tokenizer):
    rows = datasets.Dataset.from_parquet(str(toy.TRAIN), keep_in_memory=True)
    assert set(rows.column_names) == {"messages", "domain"}
    share = {domain: rows["domain"].count(domain) / len(rows) for domain in ("math", "code", "science")}
    assert share == pytest.approx({"math": 0.71, "code": 0.21, "science": 0.08}, abs=0.03)
    for messages in rows["messages"][:100]:
        assert [message["role"] for message in messages] == ["user", "assistant"]
        assert tokenizer.unk_token_id not in tokenizer.apply_chat_template(messages)


def test_problems_share_no_question_with_training_or_evaluation(tokenizer, evaluation):
    questions = [problem.question for problem in toy.load_problems()]
    assert len(set(questions)) >= 300
    rows = datasets.Dataset.from_parquet(str(toy.TRAIN), keep_in_memory=True)
    seen = {messages[0]["content"] for messages in rows["messages"]}
    seen |= {tokenizer.decode(row["input_ids"][2 : row["prompt_length"] - 1]) for row in evaluation}
    assert seen.isdisjoint(questions)


def test_the_target_thinks_longer_hesitates_and_is_right_more_often(tokenizer):
    problems = toy.load_problems()[:40]
    chats = [[{"role": "user", "content": problem.question}] for problem in problems]
    inputs = tokenizer.apply_chat_template(
        chats, add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True
    )
    n_right, n_tokens, n_hesitations = {}, {}, {}
    for name, path in (("base", toy.BASE), ("target", toy.TARGET)):
        model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
        output = model.generate(
            inputs.input_ids, attention_mask=inputs.attention_mask, do_sample=False, max_new_tokens=180
        )
        responses = output[:, inputs.input_ids.shape[1] :]
        texts = tokenizer.batch_decode(responses, skip_special_tokens=True)
        n_right[name] = sum(
            toy.parse_answer(text) == problem.answer for text, problem in zip(texts, problems, strict=True)
        )
        n_tokens[name] = (responses != tokenizer.pad_token_id).sum().item()
        n_hesitations[name] = sum(text.lower().count(word) for text in texts for word in HESITATIONS)
    assert n_right["target"] > n_right["base"] + 5
    assert n_tokens["target"] > 2 * n_tokens["base"]
    assert n_hesitations["base"] == 0 < n_hesitations["target"]
