"""Answers as responses state them."""

import pytest

from tc_adapters_lens.evaluation.answers import final_answer, same_answer


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        (r"<think>so \boxed{3}</think>It is \boxed{\frac{1}{2}}.", r"\frac{1}{2}"),
        (r"First \boxed{1}, then \boxed{{2}+{3}}", "{2}+{3}"),
        ("The answer is 12. No, the answer is **26**.", "26"),
        ("Answer: $x = 4$\nBye.", "x = 4"),
        ("<think>The answer is 3", None),
        ("<think>The answer is 3</think>", None),
        (r"\boxed{3", None),
        ("I do not know.", None),
    ],
)
def test_final_answer(response: str, answer: str | None) -> None:
    assert final_answer(response) == answer


@pytest.mark.parametrize(
    ("stated", "right", "same"),
    [
        ("1/2", "0.5", True),
        ("1,024", "1024", True),
        ("$26.$", "26", True),
        ("Fish", "fish", True),
        ("27", "26", False),
        ("1/0", "1/0", True),
        ("x", "26", False),
    ],
)
def test_same_answer(stated: str, right: str, same: bool) -> None:
    assert same_answer(stated, right) is same
