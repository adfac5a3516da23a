"""What to sample responses to: prompts as token ids, from chats, plain questions or token sequences."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
from transformers import PreTrainedTokenizerBase

from tc_adapters_lens import toy
from tc_adapters_lens.errors import DataError, did_you_mean
from tc_adapters_lens.training.chat import ChatEncoder, Unusable
from tc_adapters_lens.training.config import DataConfig, read_chat_template
from tc_adapters_lens.training.data import CHAT_COLUMNS, PROMPT_LENGTH
from tc_adapters_lens.training.rows import open_rows

logger = logging.getLogger(__name__)

TOKENS = "input_ids"
QUESTION_COLUMNS = ("prompt", "question")
ANSWER_COLUMNS = ("answer", "solution", "expected_answer")
_ROWS_AT_ONCE = 512
_USER = ("user", "human")

Encoder = Callable[[Sequence[Any], Sequence[Any]], "list[list[int] | Unusable]"]


@dataclass(frozen=True)
class PromptReport:
    """Where prompts came from.

    source, split: as given.
    column: the one they were read from.
    n_rows: rows there are.
    n_prompts: prompts taken.
    dropped: reason -> rows that could not be used.
    """

    source: str
    split: str
    column: str
    n_rows: int
    n_prompts: int
    dropped: Mapping[str, int]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def load_prompts(
    source: str,
    tokenizer: PreTrainedTokenizerBase | None,
    *,
    n: int | None = None,
    seed: int = 42,
    split: str = "train",
    column: str | None = None,
    chat_template: str | None = None,
) -> tuple[list[list[int]], PromptReport]:
    """Prompts as token ids. Rows that cannot be used are left out and counted.

    A row of token ids with `prompt_length` gives its prompt; a chat gives all up to its last user turn, with the
    generation prompt; plain text is one user turn.

    Args:
        source: anything that training data may be, or "toy" for the built-in held-out problems.
        tokenizer: the target's; may be None for token ids.
        n: take that many, drawn at random; None: all, in order.
        seed: of that draw.
        split: of a dataset with several.
        column: where chats or text are; None: input_ids with prompt_length, messages, conversations, prompt, question.
        chat_template: Jinja text or file; None: the tokenizer's.
    Raises:
        DataError: nothing to read, no usable column or row, fewer than `n` of them, no tokenizer or chat template.
        ConfigError: no such chat template file.
    """
    rows = _open(source, split)
    column = _find_column(rows.column_names, column)
    prompts, report = _take(rows, source, split, column, tokenizer, n, seed, chat_template)
    return list(prompts.values()), report


class Problem(NamedTuple):
    """A prompt with what is known of it.

    tokens: the prompt, generation prompt included.
    question: as text.
    answer: the right one; None where the rows have none.
    """

    tokens: list[int]
    question: str
    answer: str | None


def load_problems(
    source: str,
    tokenizer: PreTrainedTokenizerBase,
    *,
    n: int | None = None,
    seed: int = 42,
    split: str = "train",
    column: str | None = None,
    answer_column: str | None = None,
    chat_template: str | None = None,
) -> tuple[list[Problem], PromptReport]:
    """Prompts with their questions and right answers. Arguments and errors as in `load_prompts`.

    Args:
        answer_column: where the right answers are; None: answer, solution or expected_answer, if there is one.
    """
    rows = _open(source, split)
    names = rows.column_names
    column = _find_column(names, column)
    if answer_column is not None and answer_column not in names:
        raise DataError(
            f"rows must have a column {answer_column}. Got {', '.join(names)}.{did_you_mean(answer_column, names)}"
        )
    answers = answer_column or next((name for name in ANSWER_COLUMNS if name in names and name != column), None)
    prompts, report = _take(rows, source, split, column, tokenizer, n, seed, chat_template)
    problems = []
    for row, prompt in prompts.items():
        found = rows[row]
        answer = None if answers is None else found[answers]
        problems.append(
            Problem(prompt, _question(found[column], prompt, tokenizer), None if answer is None else str(answer))
        )
    return problems, report


def _open(source: str, split: str) -> Any:
    return open_rows(DataConfig(path=str(toy.PROBLEMS) if source == "toy" else source, split=split)).with_format(None)


def _take(
    rows: Any,
    source: str,
    split: str,
    column: str,
    tokenizer: PreTrainedTokenizerBase | None,
    n: int | None,
    seed: int,
    chat_template: str | None,
) -> tuple[dict[int, list[int]], PromptReport]:
    """Row -> its prompt, in the order drawn, and what became of the rows."""
    if n is not None and n > len(rows):
        raise DataError(f"n must not exceed the prompts there are. Got {n:,} and {len(rows):,} rows in {source}.")
    read = rows.select_columns([name for name in (column, PROMPT_LENGTH) if name in rows.column_names])
    encode = _encode_ids if column == TOKENS else _chat_encoder(tokenizer, chat_template)
    order = np.arange(len(rows))
    if n is not None:
        order = np.random.Generator(np.random.PCG64(seed)).permutation(len(rows))
    prompts: dict[int, list[int]] = {}
    dropped: Counter[str] = Counter()
    for start in range(0, len(order), _ROWS_AT_ONCE):
        numbers = order[start : start + _ROWS_AT_ONCE].tolist()
        batch = read[numbers]
        for number, prompt in zip(numbers, encode(batch[column], batch.get(PROMPT_LENGTH, batch[column])), strict=True):
            if n is not None and len(prompts) == n:
                break
            if isinstance(prompt, Unusable):
                dropped[prompt.reason] += 1
            else:
                prompts[number] = prompt
    report = PromptReport(source, split, column, len(rows), len(prompts), dict(dropped))
    _require_enough(report, n)
    return prompts, report


def _question(value: Any, prompt: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> str:
    """What was asked: the text itself, a chat's last user turn, or the decoded prompt."""
    if isinstance(value, str):
        return value
    if isinstance(value, list) and value and isinstance(value[-1], Mapping):
        turns = [
            turn.get("content", turn.get("value")) for turn in value if turn.get("role", turn.get("from")) in _USER
        ]
        if turns:
            return str(turns[-1])
    return tokenizer.decode(list(prompt))


def _require_enough(report: PromptReport, n: int | None) -> None:
    reasons = "; ".join(f"{reason} ({count:,})" for reason, count in report.dropped.items())
    if report.n_prompts == 0:
        raise DataError(f"there must be a usable prompt. Got none in {report.source}: {reasons or 'no rows'}.")
    if n is not None and report.n_prompts < n:
        raise DataError(
            f"n must not exceed the prompts there are. Got {n:,} and {report.n_prompts:,} usable of "
            f"{report.n_rows:,} rows in {report.source}: {reasons}."
        )
    if reasons:
        logger.info("prompts: %s rows left out: %s", f"{sum(report.dropped.values()):,}", reasons)


def _find_column(columns: Sequence[str], asked: str | None) -> str:
    if asked is not None:
        if asked in columns:
            return asked
        raise DataError(f"rows must have a column {asked}. Got {', '.join(columns)}.{did_you_mean(asked, columns)}")
    if TOKENS in columns and PROMPT_LENGTH in columns:
        return TOKENS
    candidates = (*CHAT_COLUMNS, *QUESTION_COLUMNS)
    for column in candidates:
        if column in columns:
            return column
    nearest = next((hint for name in candidates if (hint := did_you_mean(name, columns))), "")
    raise DataError(
        f"prompts must be in a column {', '.join(candidates)}, or {TOKENS} with {PROMPT_LENGTH}. "
        f"Got columns {', '.join(columns)}; name one with --prompt-column.{nearest}"
    )


def _encode_ids(token_lists: Sequence[Any], lengths: Sequence[Any]) -> list[list[int] | Unusable]:
    return [_prompt_part(tokens, length) for tokens, length in zip(token_lists, lengths, strict=True)]


def _prompt_part(tokens: Any, length: Any) -> list[int] | Unusable:
    if not isinstance(tokens, list) or not all(isinstance(token, int) for token in tokens):
        return Unusable("the token ids are not a list of whole numbers")
    if not isinstance(length, int) or not 1 <= length <= len(tokens):
        return Unusable(f"{PROMPT_LENGTH} is not a count of its tokens")
    return tokens[:length]


def _chat_encoder(tokenizer: PreTrainedTokenizerBase | None, template: str | None) -> Encoder:
    if tokenizer is None:
        raise DataError("text and chats need a tokenizer. Got a target without one; use rows of token ids.")
    text = None if template is None else read_chat_template(template)
    try:
        encoder = ChatEncoder(tokenizer, text, response_only=False)
    except DataError as error:
        raise DataError(
            "text and chats need a chat template. Got a target whose tokenizer has none; give --chat-template FILE, "
            "or rows of token ids."
        ) from error
    return lambda values, _: encoder.prompts([_as_chat(value) for value in values])


def _as_chat(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    return [{"role": "user", "content": value}] if value.strip() else []
