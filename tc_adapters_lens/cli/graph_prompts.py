"""What graphs are of: prompts as token ids, from a text, a directory of texts, or positions in sampled responses."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tc_adapters_lens.cli.text import named_text
from tc_adapters_lens.errors import ConfigError, DataError
from tc_adapters_lens.models.diff_transformer import HookedDiffTransformer
from tc_adapters_lens.models.vocabulary import Vocabulary
from tc_adapters_lens.training.chat import ChatEncoder, Unusable
from tc_adapters_lens.training.config import DataConfig, read_chat_template
from tc_adapters_lens.training.labels import load_labelled

__all__ = ["GraphPrompt", "TextPrompts", "TokenPrompts", "parse_rows"]

_NAME_LENGTH = 40
_MOST_ROWS = 100_000


class GraphPrompt(NamedTuple):
    """A prompt, at whose last position the next token is explained.

    name: the beginning of the graph's name.
    source: where it is from, in JSON's words.
    """

    name: str
    tokens: list[int]
    source: dict[str, Any]


@dataclass(frozen=True)
class TextPrompts:
    """A text, or the .txt files of a directory without their last line break, each as it is or as a user's message.

    prompt, directory: one of them is given.
    chat: whether they are messages, that the target is to answer.
    chat_template: Jinja text or file; None: the tokenizer's.
    """

    prompt: str | None
    directory: str | None
    chat: bool
    chat_template: str | None

    def load(self, model: HookedDiffTransformer, encode: Callable[[str], list[int]]) -> list[GraphPrompt]:
        """
        Args:
            encode: a text's token ids.
        Raises:
            DataError: no text, or one that the chat template does not take.
        """
        made = []
        for name, text, source in self._texts():
            if not _is_unicode(text):
                raise DataError(f"A prompt must be text in UTF-8. Got other bytes in {source}.")
            if not text.strip():
                raise DataError(f"A prompt must be of at least a word. Got none in {source}.")
            tokens = self._message(model, text) if self.chat else encode(text)
            made.append(GraphPrompt(name, tokens, {"from": source, "chat": self.chat}))
        return made

    def _texts(self) -> Iterator[tuple[str, str, str]]:
        """Name, text and source of each."""
        if self.prompt is not None:
            yield _name(self.prompt), self.prompt, "--prompt"
            return
        assert self.directory is not None
        directory = Path(self.directory).expanduser()
        files = sorted(directory.glob("*.txt")) if directory.is_dir() else []
        if not files:
            raise DataError(f"--prompts must be a directory with .txt files, a prompt in each. Got {directory}.")
        for file in files:
            try:
                text = file.read_text(encoding="utf-8-sig")
            except (OSError, UnicodeDecodeError) as error:
                raise DataError(f"{file} must be text in UTF-8. Got: {' '.join(str(error).split())}.") from error
            yield _name(file.stem), text.removesuffix("\n"), file.name

    def _message(self, model: HookedDiffTransformer, text: str) -> list[int]:
        template = None if self.chat_template is None else read_chat_template(self.chat_template)
        assert model.tokenizer is not None
        (encoded,) = ChatEncoder(model.tokenizer, template, response_only=False).prompts(
            [[{"role": "user", "content": text}]]
        )
        if isinstance(encoded, Unusable):
            raise DataError(f"A message must fit the chat template. Got one that does not: {encoded.reason}.")
        return encoded


@dataclass(frozen=True)
class TokenPrompts:
    """Places in token sequences: of each, one.

    data: the sequences; path "toy": the built-in pair's.
    rows: which of them, None for all.
    before: ends before the first token that is this word, in any case, of what the assistant wrote (of anything, where
        nothing tells that); rows without it are left out.
    end: else after so many tokens; None: where the first response begins, or before the last token where nothing tells.
    n: at most so many graphs, the first.
    """

    data: DataConfig
    rows: tuple[int, ...] | None
    before: str | None
    end: int | None
    n: int | None

    def load(self, model: HookedDiffTransformer) -> list[GraphPrompt]:
        """
        Raises:
            DataError: nothing to read, no such row, or no row with the word.
        """
        found = load_labelled(named_text(self.data), model.tokenizer, model.cfg.d_vocab, model.cfg.n_ctx)
        offsets = found.sequences.offsets
        n_rows = len(offsets) - 1
        if self.rows is not None and max(self.rows) >= n_rows:
            raise DataError(f"--rows must be from 0 to {n_rows - 1}. Got {max(self.rows)}.")
        assert model.tokenizer is not None
        vocabulary = Vocabulary.of(model.tokenizer, model.cfg.d_vocab)
        made = []
        for row in range(n_rows) if self.rows is None else self.rows:
            own = slice(int(offsets[row]), int(offsets[row + 1]))
            tokens = found.sequences.tokens[own]
            end = self._end(tokens, None if found.written is None else found.written[own], vocabulary)
            if end is not None:
                source = {"from": self.data.path, "row": row, "end": end, "next": _next(tokens, end)}
                made.append(GraphPrompt(f"row{row}-at{end}", tokens[:end].tolist(), source))
            if len(made) == self.n:
                break
        if not made:
            rows = "any row" if self.rows is None else f"rows {', '.join(map(str, self.rows))}"
            wanted = f"the word {self.before!r} in a response" if self.before else f"{self.end or 1} tokens"
            raise DataError(f"A prompt must be found in {self.data.path}. Got none: {wanted} is not in {rows}.")
        return made

    def _end(self, tokens: np.ndarray, written: np.ndarray | None, vocabulary: Vocabulary) -> int | None:
        """How many tokens the prompt has; None where there is no such place."""
        if self.before is not None:
            wanted = self.before.strip().lower()
            places = np.arange(1, len(tokens)) if written is None else written.nonzero()[0]
            found = (at for at in places.tolist() if vocabulary.text(int(tokens[at])).strip().lower() == wanted)
            return next(found, None)
        if self.end is not None:
            return self.end if self.end <= len(tokens) else None
        if written is None:
            return len(tokens) - 1 or None
        return int(written.argmax()) if written.any() else len(tokens)


def parse_rows(text: str) -> tuple[int, ...]:
    """ "0,3-5" -> (0, 3, 4, 5).

    Raises:
        ConfigError: anything else.
    """
    rows: list[int] = []
    for part in text.split(","):
        found = re.fullmatch(r"\s*(\d+)(?:-(\d+))?\s*", part)
        if found is None or (found[2] is not None and int(found[2]) < int(found[1])):
            raise ConfigError(f"--rows must be numbers and ranges with commas, such as 0,3-5. Got '{text}'.")
        chosen = range(int(found[1]), int(found[2] or found[1]) + 1)
        if len(chosen) > _MOST_ROWS:
            raise ConfigError(f"--rows must be at most {_MOST_ROWS:,} rows. Got '{text}'.")
        rows += chosen
    return tuple(dict.fromkeys(rows))


def _name(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9]+", "-", text).strip("-")[:_NAME_LENGTH].strip("-").lower() or "prompt"


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _next(tokens: np.ndarray, end: int) -> int | None:
    return int(tokens[end]) if end < len(tokens) else None
