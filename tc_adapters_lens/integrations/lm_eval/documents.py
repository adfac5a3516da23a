"""Rows of benchmark datasets as the tasks' documents: the same columns whatever the dataset calls them."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping
from typing import Any

from datasets import Dataset

from tc_adapters_lens.errors import DataError

__all__ = ["gpqa", "gpqa_examples", "maths"]

_PROBLEM = ("problem", "question")
_GPQA = ("Question", "Correct Answer", "Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3")
_LETTERS = "ABCD"


def maths(rows: Dataset) -> Dataset:
    """Columns `problem` or `question`, and `answer` (text or number) to `problem` and `answer`, both text.

    Raises:
        DataError: a column is missing.
    """
    column = next((name for name in _PROBLEM if name in rows.column_names), None)
    if column is None or "answer" not in rows.column_names:
        raise DataError(
            f"maths problems need the columns problem (or question) and answer. Got {', '.join(rows.column_names)}."
        )
    return Dataset.from_list([{"problem": row[column], "answer": _number_text(row["answer"])} for row in _rows(rows)])


def gpqa(rows: Dataset) -> Dataset:
    """GPQA's columns to `question`, `choices` in an order drawn from the question's own text, and `answer`, a letter.

    Raises:
        DataError: a column is missing.
    """
    if missing := [name for name in _GPQA if name not in rows.column_names]:
        raise DataError(
            f"GPQA's columns are {', '.join(_GPQA)}. Got {', '.join(rows.column_names)}; '{missing[0]}' is missing."
        )
    return Dataset.from_list([_gpqa_document(row) for row in _rows(rows)])


def _rows(rows: Dataset) -> list[Mapping[str, Any]]:
    return [dict(row) for row in rows]  # pyright: ignore[reportArgumentType, reportCallIssue]


def _gpqa_document(row: Mapping[str, Any]) -> dict[str, Any]:
    question, *choices = (str(row[name]).strip() for name in _GPQA)
    order = list(range(len(choices)))
    random.Random(question).shuffle(order)  # a text seeds the same draws in every process
    return {
        "question": question,
        "choices": [choices[place] for place in order],
        "answer": _LETTERS[order.index(0)],
    }


def _number_text(answer: Any) -> str:
    """27.0 -> "27": whole numbers are stored as floats in some datasets."""
    text = str(answer).strip()
    return text.partition(".")[0] if re.fullmatch(r"-?\d+\.0+", text) else text


def gpqa_examples() -> list[dict[str, Any]]:
    """Four worked questions, written for this package, that a base model is shown first."""
    return [
        {
            "question": "A ball is thrown straight up at 19.6 m/s. With g = 9.8 m/s^2 and no air resistance, how long "
            "does it take to come back to the hand?",
            "choices": ["2.0 s", "4.0 s", "9.8 s", "19.6 s"],
            "answer": "B",
            "solution": "It rises until its speed is zero: 19.6 / 9.8 = 2.0 s. Coming down takes as long, "
            r"so 2.0 + 2.0 = 4.0 s. The answer is \boxed{B}.",
        },
        {
            "question": "How many stereoisomers does 2,3-dichlorobutane have?",
            "choices": ["1", "2", "4", "3"],
            "answer": "D",
            "solution": "It has two stereocentres with the same four groups each. (R,R) and (S,S) are a pair of "
            r"enantiomers, (R,S) is meso and the same as (S,R). That makes 3. The answer is \boxed{D}.",
        },
        {
            "question": "Both parents carry one copy of a recessive allele of an autosomal gene. They have two "
            "children. What is the probability that neither child is homozygous for the allele?",
            "choices": ["9/16", "1/4", "3/4", "1/16"],
            "answer": "A",
            "solution": "One child is homozygous with probability 1/4, so it is not with 3/4. The children are "
            r"independent: 3/4 * 3/4 = 9/16. The answer is \boxed{A}.",
        },
        {
            "question": "A particle in a one-dimensional infinite well of width L is in its ground state. By what "
            "factor does its energy change when the width is doubled and it stays in the ground state?",
            "choices": ["1/2", "2", "1/4", "4"],
            "answer": "C",
            "solution": "The energy is n^2 h^2 / (8 m L^2), which goes as 1 / L^2. Doubling L multiplies it by 1/4. "
            r"The answer is \boxed{C}.",
        },
    ]
