"""Problems and responses: pure Python, no model."""

import itertools
import random
import re
import subprocess
import sys

import pytest

from tc_adapters_lens.toy.problems import (
    DOMAIN_WEIGHTS,
    HESITATIONS,
    LARGEST,
    generate,
    is_held_out,
    parse_answer,
)
from tc_adapters_lens.toy.responses import base_response, target_response


def take(n, seed=0, held_out=False, n_steps=(1, 6)):
    return list(itertools.islice(generate(seed, held_out, n_steps), n))


@pytest.mark.parametrize("respond", [base_response, target_response])
def test_a_rendered_response_ends_in_the_true_answer(respond):
    rng = random.Random(0)
    for problem in take(3000):
        assert parse_answer(respond(problem, rng)) == problem.answer


def test_the_true_answer_is_what_the_question_computes():
    """An independent check: run the code, evaluate the expressions."""
    for problem in take(3000):
        if problem.domain == "code":
            printed = []
            source = problem.question.partition("\n")[2]
            exec(source, {"print": printed.append})
            assert problem.answer == str(printed[0])
        if problem.kind == "expression":
            assert problem.answer == str(eval(re.sub("[A-Za-z?.]", "", problem.question)))


def test_every_step_is_true_and_small():
    for step in itertools.chain.from_iterable(p.steps for p in take(3000) if p.kind != "fact"):
        assert str(eval(step.expression)) == step.result
        assert all(0 <= int(number) <= LARGEST for number in re.findall(r"\d+", f"{step.expression} {step.result}"))


def test_domains_come_in_the_papers_proportions():
    problems = take(10_000)
    for domain, weight in DOMAIN_WEIGHTS.items():
        assert sum(p.domain == domain for p in problems) / 100 == pytest.approx(weight, abs=1.5)


def test_held_out_problems_are_disjoint_from_training():
    def key(problem):  # what is computed, however it is worded
        return problem.domain, problem.steps, problem.distractor

    train, held_out = take(20_000, seed=1), take(4000, seed=2, held_out=True)
    assert not any(map(is_held_out, train))
    assert all(map(is_held_out, held_out))
    assert {key(p) for p in train}.isdisjoint(key(p) for p in held_out)
    assert {p.question for p in train}.isdisjoint(p.question for p in held_out)


def test_one_seed_gives_one_stream():
    assert take(200, seed=7) == take(200, seed=7)
    assert take(200, seed=7) != take(200, seed=8)
    problem = take(1)[0]
    assert target_response(problem, random.Random(3)) == target_response(problem, random.Random(3))


def test_only_the_target_thinks_and_hesitates():
    rng = random.Random(0)
    hesitates = re.compile(rf"\b({'|'.join(HESITATIONS)})\b", re.IGNORECASE)
    problems = take(2000)
    bases = [base_response(p, rng) for p in problems]
    targets = [target_response(p, rng) for p in problems]
    assert not any("<think>" in text or hesitates.search(text) for text in bases)
    assert all(text.startswith("<think>\n") and text.count("</think>") == 1 for text in targets)
    used = {word.lower() for text in targets for word in hesitates.findall(text)}
    assert used == set(HESITATIONS)


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        ("The answer is 26.", "26"),
        ("<think>\nSo it is 9. The answer is 9.</think>It prints 12.", "12"),
        ("<think>\nThe answer is 9.", None),  # never stopped thinking
        ("<think>\nSo 9.</think>", None),
        ("The answer is 3. The answer is 4.", "4"),
        ("", None),
    ],
)
def test_parse_answer(response, answer):
    assert parse_answer(response) == answer


def test_importing_the_toy_needs_no_torch():
    code = "import sys, tc_adapters_lens.toy; assert not {'torch', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
