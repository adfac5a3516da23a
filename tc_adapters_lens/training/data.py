"""Datasets to token sequences: encode, check, cut or pack, and say in a report what was done to which
rows.

Rows are plain text, chats or token ids. A row that cannot be used is dropped, counted and named by reason;
ids outside the model's vocabulary stop everything, because then all of the ids are in doubt.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import datasets
import numpy as np
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from tc_adapters_lens.errors import ConfigError, DataError, did_you_mean
from tc_adapters_lens.models.json_files import first_line
from tc_adapters_lens.training.chat import ChatEncoder, Encoded, Unusable
from tc_adapters_lens.training.config import DataConfig, read_chat_template
from tc_adapters_lens.training.data_cache import load_or_make
from tc_adapters_lens.training.data_key import sequences_key
from tc_adapters_lens.training.report import DataReport, RowCounts
from tc_adapters_lens.training.rows import local_content, open_rows
from tc_adapters_lens.training.sequences import BatchPlan, TokenBatch, TokenSequences

__all__ = ["BatchPlan", "DataReport", "TokenBatch", "TokenSequences", "load_cached", "load_sequences", "open_rows"]

Rows: TypeAlias = "datasets.Dataset | Sequence[Mapping[str, Any]]"
Encoder: TypeAlias = Callable[[list[dict[str, Any]], Sequence[int]], list["Encoded | Unusable"]]

logger = logging.getLogger(__name__)

CHAT_COLUMNS = ("messages", "conversations")
PROMPT_LENGTH = "prompt_length"  # of a row of token ids: how many of them are not the response
_ROWS_AT_ONCE = 512


def load_sequences(
    data: DataConfig,
    tokenizer: PreTrainedTokenizerBase | None,
    d_vocab: int,
    n_ctx: int,
    rows: Rows | None = None,
) -> tuple[TokenSequences, DataReport]:
    """Everything a run trains on and a report, whose lines are logged.

    What was tokenised before comes from the cache (see `data_cache`), unless the rows are given.

    Args:
        data: what to read and how to cut it.
        tokenizer: the target's; may be None for rows of token ids.
        d_vocab: the model's vocabulary; ids must be below it.
        n_ctx: most positions the model takes.
        rows: a dataset, or a list of rows, to use in place of `data.path`.
    Raises:
        DataError: nothing to read, no such column, ids out of range, a template that loses text, nothing
            usable.
        ConfigError: `data.context_size` exceeds `n_ctx`, or there is no such chat template file.
    """
    limit = n_ctx if data.context_size is None else data.context_size
    if limit > n_ctx:
        raise ConfigError(f"data.context_size must not exceed what the model takes. Got {limit} and {n_ctx} (n_ctx).")
    if rows is None:
        sequences, report = load_cached(data, tokenizer, d_vocab, limit)
    else:
        sequences, report = _tokenise(data, tokenizer, d_vocab, limit, rows, "the given rows")
    for line in report.lines():
        logger.info(line)
    return sequences, report


def load_cached(
    data: DataConfig, tokenizer: PreTrainedTokenizerBase | None, d_vocab: int, limit: int
) -> tuple[TokenSequences, DataReport]:
    """As `load_sequences` with sequences of at most `limit` tokens, nothing logged of them.

    Raises:
        DataError: as `load_sequences`.
    """
    if data.chat_template is not None:
        data = dataclasses.replace(data, chat_template=read_chat_template(data.chat_template))
    content = local_content(data)
    if content is None:
        rows = open_rows(data)
        identity = f"hub {rows._fingerprint}"  # datasets makes it from the revision
    else:
        rows, identity = None, f"content {content.digest}"

    def make() -> tuple[TokenSequences, DataReport]:
        opened = open_rows(data, content) if rows is None else rows
        return _tokenise(data, tokenizer, d_vocab, limit, opened, data.path)

    def objection(report: DataReport) -> str:
        template = data.chat_template or str(getattr(tokenizer, "chat_template", None))
        if report.format.startswith("chat") and "strftime_now" in template:
            return "the chat template writes the date"
        return "the rows changed while they were read" if content is not None and content.changed() else ""

    try:
        key = sequences_key(data, identity, tokenizer, d_vocab, limit)
    except Exception as error:  # tokenizers that cannot be saved raise what they like
        logger.info("tokenised data: not cached, the tokenizer cannot be saved: %s", first_line(error))
        return make()
    return load_or_make(key, make, objection)


def _tokenise(
    data: DataConfig,
    tokenizer: PreTrainedTokenizerBase | None,
    d_vocab: int,
    limit: int,
    rows: Rows,
    source: str,
) -> tuple[TokenSequences, DataReport]:
    if isinstance(rows, datasets.Dataset):
        rows = rows.with_format(None)
    if len(rows) == 0:
        raise DataError(f"a dataset must have rows. Got none in {source}, split {data.split}.")
    kind, column = _find_column(data, _column_names(rows))
    encode, chat = _row_encoder(data, kind, column, tokenizer, _column_names(rows))
    counts = RowCounts(
        d_vocab,
        max_length=None if data.packing and data.too_long == "truncate" else limit,
        too_long=data.too_long,
        most_documents=None if data.packing else data.max_sequences,
        most_tokens=data.max_sequences * limit if data.packing and data.max_sequences else None,
    )
    _encode_rows(rows, data, column, encode, counts)

    notes = [] if chat is None else chat.notes()
    sequences = TokenSequences.from_lists(counts.tokens, counts.masks, counts.row_ids)
    if data.packing:
        sequences, n_left_out = _pack(sequences, limit, data.max_sequences)
        if n_left_out:
            notes.append(f"packing: {n_left_out:,} packed sequences in which nothing counts are left out")
    report = counts.report(sequences, data, source, f"{kind} (column {column})", limit, notes)
    if len(sequences) == 0:
        reasons = "; ".join([report.dropped_line(), *notes])
        raise DataError(f"a dataset must have a usable row. Got none in {source}: {reasons}.")
    return sequences, report


def _find_column(data: DataConfig, columns: Sequence[str]) -> tuple[str, str]:
    """What the rows hold and the column that holds it."""
    chat_columns = CHAT_COLUMNS if data.chat_column is None else (data.chat_column,)
    candidates = {"tokens": (data.tokens_column,), "chat": chat_columns, "text": (data.text_column,)}
    kinds = list(candidates) if data.format == "auto" else [data.format]
    for kind in kinds:
        for column in candidates[kind]:
            if column in columns:
                return kind, column
    looked = " or ".join(column for kind in kinds for column in candidates[kind])
    keys = " or ".join(f"data.{kind}_column" for kind in kinds)
    nearest = did_you_mean(candidates[kinds[0]][0], columns)
    got = ", ".join(columns)
    raise DataError(f"rows must have a column {looked}. Got columns {got}; set {keys}.{nearest}")


def _encode_rows(rows: Rows, data: DataConfig, column: str, encode: Encoder, counts: RowCounts) -> None:
    with tqdm(total=len(rows), desc="tokenising", unit=" rows", disable=None, delay=2) as progress:
        for row_ids in _row_order(len(rows), data):
            batch = _read(rows, [column, PROMPT_LENGTH], row_ids)
            for row_id, encoded in zip(row_ids, encode(batch, row_ids), strict=True):
                if not counts.full:
                    counts.add(row_id, encoded)
            progress.update(len(row_ids))
            if counts.full:
                return


def _row_encoder(
    data: DataConfig,
    kind: str,
    column: str,
    tokenizer: PreTrainedTokenizerBase | None,
    columns: Sequence[str],
) -> tuple[Encoder, ChatEncoder | None]:
    """What turns batches of rows into token ids, and for chats the object that keeps notes."""
    response_only = data.loss_on == "response"
    if kind == "tokens":
        if response_only and PROMPT_LENGTH not in columns:
            raise DataError(
                f"loss_on: response on rows of token ids needs a column {PROMPT_LENGTH}. "
                f"Got columns {', '.join(columns)}; add it, or use loss_on: all."
            )
        return lambda rows, _: [_encode_ids(row, column, response_only) for row in rows], None
    if tokenizer is None:
        raise DataError("text and chats need a tokenizer. Got none; give the model one, or use token ids.")
    if kind == "chat":
        template = None if data.chat_template is None else read_chat_template(data.chat_template)
        chat = ChatEncoder(tokenizer, template, response_only)
        return lambda rows, row_ids: chat([row[column] for row in rows], row_ids), chat
    if response_only:
        raise DataError("loss_on: response needs chats or token ids. Got plain text; use loss_on: all.")
    return lambda rows, _: _encode_texts([row[column] for row in rows], tokenizer), None


def _encode_texts(texts: list[Any], tokenizer: PreTrainedTokenizerBase) -> list[Encoded | Unusable]:
    usable = [text for text in texts if isinstance(text, str) and text.strip()]
    out: Any = tokenizer(usable, return_attention_mask=False, verbose=False) if usable else {"input_ids": []}
    encoded = iter(out["input_ids"])
    results: list[Encoded | Unusable] = []
    for text in texts:
        if not isinstance(text, str):
            results.append(Unusable("the text is not text"))
        elif not text.strip():
            results.append(Unusable("the text is empty"))
        else:
            tokens = np.asarray(next(encoded), dtype=np.int64)
            if len(tokens) > 1 and tokens[0] == tokens[1] == tokenizer.bos_token_id:
                tokens = tokens[1:]  # the text began with the token that the tokenizer puts there
            results.append(Encoded(tokens, np.ones(len(tokens), dtype=np.bool_)))
    return results


def _encode_ids(row: Mapping[str, Any], column: str, response_only: bool) -> Encoded | Unusable:
    value = row[column]
    if value is None or len(value) == 0:
        return Unusable("no token ids")
    tokens = np.asarray(value)
    if tokens.ndim != 1 or tokens.dtype.kind not in "iu":
        return Unusable("the token ids are not a list of whole numbers")
    mask = np.ones(len(tokens), dtype=np.bool_)
    if response_only:
        prompt_length = row[PROMPT_LENGTH]
        if not isinstance(prompt_length, int) or prompt_length < 0:
            return Unusable(f"{PROMPT_LENGTH} is not a count")
        mask[:prompt_length] = False
    return Encoded(tokens, mask)


def _pack(sequences: TokenSequences, length: int, most: int | None) -> tuple[TokenSequences, int]:
    """All documents one after another, cut every `length` tokens, and how many pieces nothing counts in."""
    n_tokens = len(sequences.tokens)
    pieces = [slice(start, start + length) for start in range(0, n_tokens, length) if start < n_tokens - 1]
    kept = [piece for piece in pieces if sequences.mask[piece].any()]
    chosen = kept[:most]
    packed = TokenSequences.from_lists(
        (sequences.tokens[piece] for piece in chosen), (sequences.mask[piece] for piece in chosen)
    )
    return packed, len(pieces) - len(kept)


def _row_order(n_rows: int, data: DataConfig) -> Iterator[list[int]]:
    """Row numbers, some at a time: as they come, or drawn at random where not all are wanted."""
    if data.max_sequences is None:
        order = np.arange(n_rows)
    else:
        order = np.random.Generator(np.random.PCG64(data.subset_seed)).permutation(n_rows)
    for start in range(0, n_rows, _ROWS_AT_ONCE):
        yield order[start : start + _ROWS_AT_ONCE].tolist()


def _column_names(rows: Rows) -> list[str]:
    if isinstance(rows, datasets.Dataset):
        return rows.column_names
    return list(dict.fromkeys(key for row in rows for key in row))


def _read(rows: Rows, columns: Sequence[str], row_ids: Sequence[int]) -> list[dict[str, Any]]:
    """The given rows, of each only the given columns that there are; a missing value is None."""
    if not isinstance(rows, datasets.Dataset):
        return [{column: rows[row_id].get(column) for column in columns} for row_id in row_ids]
    present = [column for column in columns if column in rows.column_names]
    batch = rows.select_columns(present)[list(row_ids)]
    values = zip(*(batch[column] for column in present), strict=True)
    return [dict(zip(present, row, strict=True)) for row in values]
