"""What each position of a chat is: part of the prompt, of the thinking or of the answer; near which template token.

Everything works on flat arrays: position `offsets[s] + p` is position p of sequence s. No sequence is empty.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jinja2
import numpy as np
from jaxtyping import Bool, Int, UInt8
from transformers import PreTrainedTokenizerBase

from tc_adapters_lens.models.names import CONTENT
from tc_adapters_lens.models.vocabulary import Vocabulary

__all__ = ["REGIONS", "label_regions", "label_template", "template_ids"]

REGIONS = ("prompt", "think", "answer")

_OPEN, _CLOSE = "<think>", "</think>"
_PROMPT, _THINK, _ANSWER = range(3)
_NAMED = 3  # positions with a name of their own from a template token on: itself and two more
_CHATS = (
    [{"role": "user", "content": "a"}],
    [{"role": "user", "content": "a"}, {"role": "assistant", "content": "a"}, {"role": "user", "content": "a"}],
    [{"role": "system", "content": "a"}, {"role": "user", "content": "a"}, {"role": "assistant", "content": "a"}],
)


def label_regions(
    tokens: Int[np.ndarray, " n_tokens"],
    offsets: Int[np.ndarray, " n_sequences_plus_1"],
    written: Bool[np.ndarray, " n_tokens"],
    tokenizer: PreTrainedTokenizerBase,
    vocabulary: Vocabulary,
) -> UInt8[np.ndarray, " n_tokens"]:
    """Which of `REGIONS` each position is in.

    Thinking goes from <think> to </think>, both included: within a response, within a prompt, or from the end of a
    prompt (many models' generation prompt) into the response. A response with </think> alone thinks from its first
    token; one with <think> alone thinks to its end.

    Args:
        tokens, offsets: the sequences.
        written: True where the assistant wrote the token.
        tokenizer: whose ids they are; a marker that is none of its tokens is looked for in the text.
        vocabulary: the tokenizer's.
    """
    regions = np.where(written, np.uint8(_ANSWER), np.uint8(_PROMPT))
    markers = _find_markers(tokens, offsets, tokenizer, vocabulary)
    changes = np.flatnonzero(written[1:] != written[:-1]) + 1
    starts = np.union1d(offsets[:-1], changes)  # of runs that one side wrote
    first_of_sequence = np.isin(starts, offsets[:-1])
    bounds = np.searchsorted([marker.first for marker in markers], [*starts, len(tokens)]).tolist()
    opened: _Marker | None = None  # by the end of the prompt
    for run, (start, stop) in enumerate(zip(starts.tolist(), [*starts[1:].tolist(), len(tokens)], strict=True)):
        inside = markers[bounds[run] : bounds[run + 1]]
        if first_of_sequence[run]:
            opened = None
        if inside or opened:
            spans, opened = _spans(start, stop, bool(written[start]), inside, opened)
            for first, end in spans:
                regions[first:end] = _THINK
        if opened and vocabulary.join(tokens[opened.last + 1 : stop]).strip():
            opened = None  # something follows in the prompt: a word of it, not where the response begins
    return regions


def label_template(
    tokens: Int[np.ndarray, " n_tokens"],
    offsets: Int[np.ndarray, " n_sequences_plus_1"],
    ids: list[int],
    vocabulary: Vocabulary,
) -> tuple[tuple[str, ...], UInt8[np.ndarray, " n_tokens"]]:
    """Names of template positions that occur, and the number of each position's name.

    A template token has its own text as name, the two positions after it "TEXT+1" and "TEXT+2"; of two names the
    nearer token's holds. All else is `CONTENT`, number 0.

    Args:
        tokens, offsets: the sequences.
        ids: the template tokens, at most 84.
        vocabulary: has their texts.
    """
    assert len(ids) * _NAMED <= 255
    rank = np.zeros(len(vocabulary), dtype=np.uint8)
    rank[ids] = np.arange(1, len(ids) + 1)
    own = rank[tokens]
    labels = np.zeros(len(tokens), dtype=np.uint8)
    for distance in reversed(range(_NAMED)):
        before = np.zeros_like(own)
        before[distance:] = own[: len(own) - distance]
        for skipped in range(distance):  # these have their neighbour in another sequence
            at = offsets[:-1] + skipped
            before[at[at < offsets[1:]]] = 0
        np.copyto(labels, _NAMED * before - (_NAMED - 1) + distance, where=before > 0)
    texts = [vocabulary.text(token_id).strip() for token_id in ids]
    names = [CONTENT, *(f"{text}+{distance}" if distance else text for text in texts for distance in range(_NAMED))]
    occurs = np.bincount(labels, minlength=len(names)) > 0
    occurs[0] = True
    renumbered = (occurs.cumsum() - 1).astype(np.uint8)
    return tuple(name for name, kept in zip(names, occurs, strict=True) if kept), renumbered[labels]


def template_ids(tokenizer: Any, chat_template: str | None) -> list[int]:
    """Added tokens that the chat template writes, in its order; begin and end of sequence; the think markers.

    Args:
        tokenizer: the target's.
        chat_template: Jinja text; None: the tokenizer's own, if it has one.
    """
    found: list[Any] = [tokenizer.bos_token_id]
    for chat in _CHATS:
        for generation_prompt in (False, True):
            try:
                found += tokenizer.apply_chat_template(
                    chat, chat_template=chat_template, add_generation_prompt=generation_prompt
                )
            except (jinja2.TemplateError, ValueError, TypeError):  # no template, or it wants other chats
                continue
    found += [tokenizer.eos_token_id, _one_token(tokenizer, _OPEN), _one_token(tokenizer, _CLOSE)]
    always = (found[0], *found[-3:])
    added = set(tokenizer.added_tokens_decoder) - set(tokenizer.encode("a", add_special_tokens=False))
    return [one for one in dict.fromkeys(found) if one is not None and (one in always or one in added)]


class _Marker(NamedTuple):
    first: int  # its tokens' flat positions
    last: int
    closes: bool


def _spans(
    start: int, stop: int, written: bool, inside: list[_Marker], opened: _Marker | None
) -> tuple[list[tuple[int, int]], _Marker | None]:
    """Where one run thinks, and the marker at which a prompt leaves off thinking."""
    spans = []
    begun = opened is not None
    for marker in inside:
        if not marker.closes:
            opened = opened or marker
        elif opened is not None:
            spans.append((opened.first, marker.last + 1))
            opened = None
        elif written and not begun:
            spans.append((start, marker.last + 1))
        begun = True
    if opened is None:
        return spans, None
    if written:
        return [*spans, (opened.first, stop)], None
    return spans, inside[-1] if inside else None


def _find_markers(
    tokens: np.ndarray, offsets: np.ndarray, tokenizer: PreTrainedTokenizerBase, vocabulary: Vocabulary
) -> list[_Marker]:
    """All think markers in order."""
    ids = [_one_token(tokenizer, _OPEN), _one_token(tokenizer, _CLOSE)]
    if None not in ids:
        at = np.flatnonzero((tokens == ids[0]) | (tokens == ids[1]))
        return [_Marker(p, p, token == ids[1]) for p, token in zip(at.tolist(), tokens[at].tolist(), strict=True)]
    markers = []
    ends_of = np.diff(vocabulary.offsets)
    for start, stop in zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True):
        sequence = tokens[start:stop]
        text = vocabulary.join(sequence)
        found = [(at, word) for word in (_OPEN, _CLOSE) for at in _occurrences(text, word.encode())]
        if found:
            ends = ends_of[sequence].cumsum()
            for at, word in sorted(found):
                first, last = np.searchsorted(ends, [at, at + len(word) - 1], side="right").tolist()
                markers.append(_Marker(start + first, start + last, word == _CLOSE))
    return markers


def _occurrences(text: bytes, word: bytes) -> list[int]:
    found, at = [], text.find(word)
    while at >= 0:
        found.append(at)
        at = text.find(word, at + 1)
    return found


def _one_token(tokenizer: Any, marker: str) -> int | None:
    token_id = tokenizer.convert_tokens_to_ids(marker)
    known = isinstance(token_id, int) and tokenizer.convert_ids_to_tokens(token_id) == marker
    return token_id if known else None
