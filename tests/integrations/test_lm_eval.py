"""Benchmark tasks: what is asked, how answers are read, how repeats are counted."""

from __future__ import annotations

import json
import math

import datasets
import pytest

from tc_adapters_lens import toy
from tc_adapters_lens.errors import ConfigError, DataError
from tc_adapters_lens.evaluation.answers import final_part, opened_thinking
from tc_adapters_lens.integrations.lm_eval.answers import boxed, letter, same_value
from tc_adapters_lens.integrations.lm_eval.documents import gpqa_examples
from tc_adapters_lens.integrations.lm_eval.harness import NAMES, Changes, check_names, evaluate, load_task
from tests.integrations.lm_eval_fakes import Told

BOXED = "Please reason step by step, and put your final answer within \\boxed{}."
MATHS = [
    {"question": "1 + 1?", "answer": 2.0},
    {"question": "Half of one?", "answer": "\\frac{1}{2}"},
    {"question": "10 - 3?", "answer": 7},
]
GPQA = [
    {
        "Question": f"Which is {n}?",
        "Correct Answer": f"{n}",
        "Incorrect Answer 1": "no",
        "Incorrect Answer 2": "nor this",
        "Incorrect Answer 3": " neither ",
    }
    for n in range(24)
]


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch, tmp_path):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def written(path, rows) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def run(name, say, changes, limit=None):
    told = Told(say)
    benchmark, found, samples = evaluate(told, name, changes, limit=limit, seed=1, n_tokens=lambda text: len(text))
    return told, benchmark, found, samples


@pytest.mark.parametrize(
    ("prompt", "opened"),
    [("Q<think>\n", "<think>\n"), ("Q<think>", "<think>"), ("<think>\n</think>Q", ""), ("Q", ""), ("", "")],
)
def test_a_prompt_may_end_with_a_think_block(prompt, opened):
    assert opened_thinking(prompt) == opened


@pytest.mark.parametrize(
    ("response", "said"),
    [
        ("4", "4"),
        ("<think>3</think>4", "4"),
        ("3</think>4", "4"),
        ("<think>a</think>b<think>c</think>d", "d"),
        ("<think>\\boxed{3}", None),
    ],
)
def test_only_what_is_said_after_thinking_counts(response, said):
    assert final_part(response) == said


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("\\boxed{1} no, \\boxed{\\frac{1}{2}}.", "\\frac{1}{2}"),
        ("so $\\boxed{ 5 }$", "5"),
        ("\\boxed{5", None),
        ("\\fbox{5}", None),
        ("5", None),
    ],
)
def test_boxed_answers(text, answer):
    assert boxed(text) == answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("\\boxed{B}", "B"),
        ("\\boxed{\\text{(C)}}", "C"),
        ("\\boxed{D) 4 s}", "D"),
        ("the answer is (A). No, the answer is **B**.", "B"),
        ("\\boxed{Apples}", None),
        ("The answer is \\boxed{7}", None),
        ("The answer is Because", None),
    ],
)
def test_letters(text, answer):
    assert letter(text) == answer


@pytest.mark.parametrize(
    ("answer", "true", "same"),
    [
        ("0.5", "\\frac{1}{2}", True),
        ("\\dfrac12", "\\frac{1}{2}", True),
        ("(3, 4)", "(3,4)", True),
        ("\\sqrt{12}", "2\\sqrt{3}", True),
        ("1+x", "x+1", True),
        ("10", "11", False),
        ("", "2", False),
        ("\\frac{", "2", False),
        ("2" + "+0" * 300, "2", False),
    ],
)
def test_values_in_latex(answer, true, same):
    assert same_value(answer, true) is same


def test_repeats_are_averaged_and_problems_make_the_error(tmp_path):
    def say(prompt, repeat):
        number = next(n for n, row in enumerate(MATHS) if row["question"] in prompt)
        right = ["2", "\\frac12", "7"][number]
        n_right = [4, 2, 0][number]
        if number == 2 and repeat == 3:
            return "<think>\\boxed{7}"
        return f"<think>\\boxed{{0}}</think>\\boxed{{{right if repeat < n_right else '99'}}}"

    data = written(tmp_path / "maths.jsonl", MATHS)
    told, benchmark, found, samples = run("amc23", say, Changes(repeats=4, data=data))
    assert told.prompts[0] == f"U:1 + 1?\n\n{BOXED}"
    assert told.options[0] == {
        "until": [],
        "do_sample": True,
        "temperature": 0.7,
        "top_p": 1.0,
        "max_gen_toks": 32768,
    }
    assert len(told.prompts) == 12 == benchmark.n_responses
    assert (benchmark.n_problems, benchmark.repeats) == (3, 4)
    assert benchmark.accuracy == pytest.approx((1 + 0.5 + 0) / 3)
    assert benchmark.accuracy_stderr == pytest.approx(0.5 / math.sqrt(3))  # standard deviation of 1, 0.5, 0
    assert (benchmark.n_unclosed, benchmark.n_answered) == (1, 11)
    lengths = [[len(text) for text in sample["resps"][0]] for sample in samples]
    assert benchmark.response_length == pytest.approx(sum(map(sum, lengths)) / 12)
    assert found["results"]["amc23"]["response_length,all"] == benchmark.response_length
    assert [sample["target"] for sample in samples] == ["2", "\\frac{1}{2}", "7"]


def test_choices_are_shuffled_the_same_every_time(tmp_path):
    data = written(tmp_path / "gpqa.jsonl", GPQA)
    task = load_task("gpqa_diamond", Changes(data=data))
    again = load_task("gpqa_diamond", Changes(data=data))
    rows = list(task.eval_docs)
    assert rows == list(again.eval_docs)
    for row, given in zip(rows, GPQA, strict=True):
        assert sorted(row["choices"]) == sorted([given["Correct Answer"], "no", "nor this", "neither"])
        assert row["choices"]["ABCD".index(row["answer"])] == given["Correct Answer"]
    assert {row["answer"] for row in rows} == set("ABCD")
    told, benchmark, _, _ = run("gpqa_diamond", lambda *_: "\\boxed{A}", Changes(data=data), limit=10)
    assert benchmark.n_responses == 30
    assert benchmark.accuracy == pytest.approx(sum(row["answer"] == "A" for row in rows[:10]) / 10)
    assert f"\n\nB) {rows[0]['choices'][1]}" not in told.prompts[0]
    assert f"\nB) {rows[0]['choices'][1]}\nC) " in told.prompts[0]


@pytest.mark.parametrize(
    ("name", "rows", "n_examples"),
    [("math500_base", MATHS, 4), ("aime25_base", MATHS, 4), ("gpqa_diamond_base", GPQA, 4)],
)
def test_a_base_model_is_shown_worked_problems(tmp_path, name, rows, n_examples):
    data = written(tmp_path / "rows.jsonl", rows)
    told, benchmark, _, _ = run(name, lambda *_: "so \\boxed{2}. I hope it is correct.\n\n", Changes(data=data))
    prompt = told.prompts[0]
    assert "U:" not in prompt
    assert prompt.count("Problem:") == prompt.count("Solution:") == n_examples + 1
    assert prompt.count("\\boxed{") == n_examples
    assert prompt.endswith("\n\nSolution:")
    assert told.options[0]["until"] == ["Problem:"]
    assert told.options[0]["do_sample"] is False
    if rows is MATHS:
        assert benchmark.accuracy == pytest.approx(1 / 3)


def test_the_worked_examples_of_gpqa_answer_themselves():
    for example in gpqa_examples():
        assert letter(example["solution"]) == example["answer"]
        assert len(set(example["choices"])) == 4


def test_toy_answers_are_read_as_the_toy_pair_reads_them():
    problems = toy.load_problems()[:4]
    said = ["<think>a</think>The answer is {}.", "The answer is {}.", "<think>The answer is {}.", "{}"]

    def say(prompt, _):
        number = next(n for n, problem in enumerate(problems) if prompt == f"U:{problem.question}")
        return said[number].format(problems[number].answer)

    told, benchmark, _, _ = run("toy", say, Changes(temperature=0), limit=4)
    assert benchmark.accuracy == 2 / 4
    assert (benchmark.n_answered, benchmark.n_unclosed, benchmark.repeats) == (2, 1, 1)
    assert told.options[0]["do_sample"] is False
    assert told.options[0]["max_gen_toks"] == 256


def test_repeats_of_the_likeliest_tokens_are_refused_or_one():
    with pytest.raises(ConfigError, match=r"At temperature 0 every repeat is the same. Got --repeats 3; leave it out"):
        load_task("toy", Changes(temperature=0, repeats=3))


def test_responses_must_fit_the_context():
    with pytest.raises(ConfigError, match=r"context of 100000 tokens .* Got 100000 new tokens in toy; set a lower"):
        run("toy", lambda *_: "", Changes(max_new_tokens=100_000))


def test_unknown_tasks():
    check_names(NAMES)
    with pytest.raises(ConfigError, match=r"Got 'math50'. Did you mean 'math500'?"):
        check_names(["toy", "math50"])
    with pytest.raises(ConfigError, match=r"each task once. Got toy,toy."):
        check_names(["toy", "toy"])


def test_a_dataset_that_is_not_here(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(
        DataError, match=r"problems of amc23 must be in the cache .* Got: .* Name a file .*: --data FILE$"
    ):
        load_task("amc23", Changes())
    with pytest.raises(DataError, match=r"amc23: maths problems need the columns problem .* Got q, answer."):
        load_task("amc23", Changes(data=written(tmp_path / "a.jsonl", [{"q": "1", "answer": "2"}])))
    with pytest.raises(DataError, match=r"gpqa_diamond: GPQA's columns are .* 'Question' is missing"):
        load_task("gpqa_diamond", Changes(data=written(tmp_path / "b.jsonl", MATHS)))
    with pytest.raises(DataError, match=r"--data must be a file that ends in .json, .* Got .*c.txt"):
        load_task("amc23", Changes(data=written(tmp_path / "c.txt", MATHS)))
