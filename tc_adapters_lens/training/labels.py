"""Token sequences with what each position and each sequence is: region, template position, group of its row."""

from __future__ import annotations

import dataclasses
import logging
from typing import Any, NamedTuple

import datasets
import numpy as np
from jaxtyping import Bool, Int, UInt8
from transformers import PreTrainedTokenizerBase

from tc_adapters_lens.errors import ConfigError, DataError, did_you_mean
from tc_adapters_lens.models.names import CONTENT
from tc_adapters_lens.models.vocabulary import Vocabulary
from tc_adapters_lens.training.config import DataConfig, read_chat_template
from tc_adapters_lens.training.data import PROMPT_LENGTH, load_cached, load_sequences, open_rows
from tc_adapters_lens.training.positions import REGIONS, label_regions, label_template, template_ids
from tc_adapters_lens.training.report import DataReport
from tc_adapters_lens.training.sequences import TokenSequences

__all__ = ["LabelledText", "load_labelled"]

MOST_GROUPS = 64
NO_GROUP = "(none)"

logger = logging.getLogger(__name__)


class LabelledText(NamedTuple):
    """Sequences and their labels, flat as `sequences.tokens`.

    sequences: its mask says which positions count.
    report: how the dataset became sequences.
    region_names: prompt, think, answer; () for plain text and for ids without `prompt_length`.
    regions: number of each position's region; None where there are no names.
    template_names: content, and the template positions that occur.
    template: number of each position's template name.
    group_names: the values of the column asked for, sorted.
    groups: number of each sequence's value; None where no column is asked for.
    written: which positions the assistant wrote; None where there are no region names.
    """

    sequences: TokenSequences
    report: DataReport
    region_names: tuple[str, ...]
    regions: UInt8[np.ndarray, " n_tokens"] | None
    template_names: tuple[str, ...]
    template: UInt8[np.ndarray, " n_tokens"]
    group_names: tuple[str, ...]
    groups: Int[np.ndarray, " n_sequences"] | None
    written: Bool[np.ndarray, " n_tokens"] | None


def load_labelled(
    data: DataConfig,
    tokenizer: PreTrainedTokenizerBase | None,
    d_vocab: int,
    n_ctx: int,
    group_by: str | None = None,
) -> LabelledText:
    """The sequences that `load_sequences` gives, labelled.

    Args:
        data: what to read; `loss_on` says which positions count, not which are labelled.
        tokenizer: the target's; None, for rows of token ids: no regions, no template positions.
        d_vocab: the model's vocabulary.
        n_ctx: most positions the model takes.
        group_by: a column of the dataset.
    Raises:
        DataError: as `load_sequences`; there is no such column, or it has too many values.
        ConfigError: packed sequences, which are not rows, of what has regions or groups.
    """
    if data.packing and group_by is not None:
        raise _packed(f"grouped by {group_by}")
    column = None if group_by is None else _column(data, group_by)
    sequences, report = load_sequences(data, tokenizer, d_vocab, n_ctx)
    tokens, offsets = sequences.tokens, sequences.offsets
    region_names, regions, written = (), None, None
    template_names, template = (CONTENT,), np.zeros(len(tokens), dtype=np.uint8)
    if tokenizer is not None:
        vocabulary = Vocabulary.of(tokenizer, d_vocab)
        written = _written(data, tokenizer, d_vocab, sequences, report)
        if written is not None:
            region_names, regions = REGIONS, label_regions(tokens, offsets, written, tokenizer, vocabulary)
        chat_template = None if data.chat_template is None else read_chat_template(data.chat_template)
        ids = [token_id for token_id in template_ids(tokenizer, chat_template) if token_id < d_vocab]
        template_names, template = label_template(tokens, offsets, ids, vocabulary)
    group_names, groups = (), None
    if column is not None:
        group_names, groups = _groups(column, str(group_by), sequences)
    return LabelledText(
        sequences, report, region_names, regions, template_names, template, group_names, groups, written
    )


def _written(
    data: DataConfig, tokenizer: PreTrainedTokenizerBase, d_vocab: int, sequences: TokenSequences, report: DataReport
) -> Bool[np.ndarray, " n_tokens"] | None:
    """Which tokens the assistant wrote; None where nothing tells."""
    kind = report.format.partition(" ")[0]
    rows = open_rows(data).with_format(None) if kind == "tokens" else None
    if kind == "text" or (rows is not None and PROMPT_LENGTH not in rows.column_names):
        return None
    if data.packing or sequences.rows is None:
        raise _packed("labelled by region")
    if data.loss_on == "response":
        return sequences.mask
    if rows is not None:
        return _after_prompts(_values(rows, PROMPT_LENGTH, sequences.rows), sequences, sequences.rows)
    try:
        responses, _ = load_cached(
            dataclasses.replace(data, loss_on="response"), tokenizer, d_vocab, report.context_size
        )
    except DataError as error:
        logger.info("regions: none, what the assistant wrote cannot be told: %s", error)
        return None
    return _aligned(responses, sequences)


def _after_prompts(lengths: list[Any], sequences: TokenSequences, rows: np.ndarray) -> np.ndarray:
    written = np.ones(len(sequences.tokens), dtype=np.bool_)
    for row, length, start, stop in zip(rows, lengths, sequences.offsets[:-1], sequences.offsets[1:], strict=True):
        if not isinstance(length, int) or length < 0:
            raise DataError(f"{PROMPT_LENGTH} must be a count of tokens. Got {length!r} in row {row}; mend that row.")
        written[start : min(start + length, stop)] = False
    return written


def _aligned(responses: TokenSequences, sequences: TokenSequences) -> np.ndarray:
    """The mask of `responses` for the rows of `sequences`, of which some may have no response."""
    assert responses.rows is not None
    assert sequences.rows is not None
    found = {row: index for index, row in enumerate(responses.rows.tolist())}
    written = np.zeros(len(sequences.tokens), dtype=np.bool_)
    for row, start, stop in zip(sequences.rows.tolist(), sequences.offsets[:-1], sequences.offsets[1:], strict=True):
        if row in found:
            written[start:stop] = responses[found[row]][1]
    return written


def _column(data: DataConfig, name: str) -> datasets.Dataset:
    rows = open_rows(data).with_format(None)
    if name not in rows.column_names:
        got = ", ".join(rows.column_names)
        nearest = did_you_mean(name, rows.column_names)
        raise DataError(f"rows must have the column to group by. Got columns {got}, not '{name}'.{nearest}")
    return rows.select_columns([name])


def _groups(column: datasets.Dataset, name: str, sequences: TokenSequences) -> tuple[tuple[str, ...], np.ndarray]:
    assert sequences.rows is not None
    values = [NO_GROUP if value is None else str(value) for value in _values(column, name, sequences.rows)]
    names, groups = np.unique(np.asarray(values, dtype=object), return_inverse=True)
    if len(names) > MOST_GROUPS:
        raise DataError(
            f"a column to group by must have at most {MOST_GROUPS} values. Got {len(names)} in '{name}'; name another."
        )
    return tuple(names.tolist()), groups.astype(np.int64)


def _values(rows: datasets.Dataset, column: str, row_ids: np.ndarray) -> list[Any]:
    return list(rows.select_columns([column])[row_ids.tolist()][column])


def _packed(what: str) -> ConfigError:
    return ConfigError(f"data.packing must be off where sequences are {what}. Got packing: true; set it to false.")
