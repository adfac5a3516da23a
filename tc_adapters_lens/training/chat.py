"""Chats to token ids, with the tokens that the assistant wrote marked.

What the assistant said must reach the model whole. Templates of reasoning models often drop the think block
from earlier messages (DeepSeek's drops everything up to </think> from every one), which is right when
generating the next turn and wrong here: such a template is refused unless the user names it.

Responses are found in one of two ways, never guessed:
    - the template marks them with {% generation %};
    - the chat up to a response, rendered with its generation prompt, is a prefix of the chat with the
      response; what comes after it, end-of-turn token included, is the response.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, NamedTuple, TypeAlias

import jinja2
import numpy as np
from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from tc_adapters_lens.errors import DataError

__all__ = ["ChatEncoder", "Encoded", "Unusable"]

Message: TypeAlias = dict[str, Any]

EXPLICIT = "set data.chat_template to a Jinja template or .jinja file"
_ROLES = {
    "human": "user",
    "gpt": "assistant",
}  # conversations of from/value, as ShareGPT and OpenThoughts write them
_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")


class Encoded(NamedTuple):
    """One document: token ids, and True where one counts."""

    tokens: np.ndarray
    mask: np.ndarray


class Unusable(NamedTuple):
    """Why a row cannot be used, in words that group rows."""

    reason: str


class ChatEncoder:
    """Encodes batches of chats.

    Args:
        tokenizer: the target's.
        chat_template: Jinja text; None: the tokenizer's own.
        response_only: count the assistant's tokens only, not every token.
    Raises:
        DataError: there is no template; responses are asked for and the tokenizer cannot locate text.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, chat_template: str | None, response_only: bool) -> None:
        self.tokenizer = tokenizer
        self.explicit = chat_template is not None
        try:
            self.template: str = tokenizer.get_chat_template(chat_template)
        except ValueError as error:
            raise DataError(f"chat data needs a chat template. Got a tokenizer without one; {EXPLICIT}.") from error
        self.special_tokens: dict[str, Any] = tokenizer.special_tokens_map  # made anew whenever asked for
        self.response_only = response_only
        self.marks_responses = _GENERATION.search(self.template) is not None
        self.n_incomplete = 0  # chats whose explicit template drops part of a response
        self.refusal = ""  # the template's own words, of the first chat it refused
        if response_only and not tokenizer.is_fast:
            raise DataError(
                "loss_on: response needs a fast tokenizer, which knows where its tokens are in the text. "
                f"Got {type(tokenizer).__name__}; use loss_on: all, or save the tokenizer as tokenizer.json."
            )

    def __call__(self, chats: Sequence[Any], row_ids: Sequence[int]) -> list[Encoded | Unusable]:
        """Encodes chats, each a list of {role, content} or {from, value}.

        Raises:
            DataError: the template drops part of what the assistant said, or its responses cannot be located.
        """
        rows = [self._render_row(chat, row_id) for chat, row_id in zip(chats, row_ids, strict=True)]
        rendered = [row for row in rows if isinstance(row, _Rendered)]
        encoded = iter(self._tokenize(rendered) if rendered else [])
        return [next(encoded) if isinstance(row, _Rendered) else row for row in rows]

    def prompts(self, chats: Sequence[Any]) -> list[list[int] | Unusable]:
        """Token ids of each chat up to its last user turn, with the generation prompt: what a response follows.

        Raises:
            DataError: the template is not valid Jinja.
        """
        rendered = [self._render_prompt(chat) for chat in chats]
        texts = [text for text in rendered if isinstance(text, str)]
        out: Any = {"input_ids": []}
        if texts:  # the template has written the special tokens
            out = self.tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)
        encoded = iter(out["input_ids"])
        return [next(encoded) if isinstance(text, str) else text for text in rendered]

    def notes(self) -> list[str]:
        """What to tell about the chats encoded so far, a line each."""
        notes = []
        if self.n_incomplete:
            notes.append(f"chat template: it drops part of what the assistant said in {self.n_incomplete:,} rows")
        if self.refusal:
            notes.append(f"chat template: first refusal: {self.refusal}")
        return notes

    def _render_row(self, chat: Any, row_id: int) -> _Rendered | Unusable:
        messages = _read_messages(chat)
        if isinstance(messages, Unusable):
            return messages
        rendered = self._render_or_refuse(messages)
        if isinstance(rendered, Unusable):
            return rendered
        text, spans = rendered
        self._require_whole(messages, text, row_id)
        if self.response_only and not self.marks_responses:
            if messages[0]["role"] == "assistant":
                return Unusable("the assistant speaks first")
            spans = self._response_spans(messages, text, row_id)
        return _Rendered(text, spans)

    def _render_prompt(self, chat: Any) -> str | Unusable:
        messages = _read_messages(chat)
        if isinstance(messages, Unusable):
            return messages
        turns = [number for number, message in enumerate(messages) if message["role"] == "user"]
        if not turns:
            return Unusable("no user turn")
        rendered = self._render_or_refuse(messages[: turns[-1] + 1], add_generation_prompt=True)
        return rendered if isinstance(rendered, Unusable) else rendered[0]

    def _render_or_refuse(
        self, messages: list[Message], add_generation_prompt: bool = False
    ) -> tuple[str, list[tuple[int, int]]] | Unusable:
        try:
            return self._render(messages, add_generation_prompt)
        except jinja2.TemplateSyntaxError as error:
            raise DataError(
                f"the chat template must be valid Jinja. Got an error in line {error.lineno}: {error.message}"
            ) from error
        except (jinja2.TemplateError, TypeError) as error:
            self.refusal = self.refusal or str(error).partition("\n")[0]
            return Unusable("refused by the chat template")

    def _render(
        self, messages: list[Message], add_generation_prompt: bool = False
    ) -> tuple[str, list[tuple[int, int]]]:
        """The chat as text, and where in it {% generation %} blocks are."""
        # apply_chat_template would map the blocks to tokens too, but where a block begins or ends with a
        # character that belongs to no token (white space, in word-level tokenizers) it drops the rest or
        # runs to the end.
        texts, spans = render_jinja_template(
            [messages],
            chat_template=self.template,
            return_assistant_tokens_mask=self.marks_responses,
            add_generation_prompt=add_generation_prompt,
            **self.special_tokens,
        )
        return texts[0], [(int(start), int(end)) for start, end in spans[0]] if spans else []

    def _require_whole(self, messages: list[Message], text: str, row_id: int) -> None:
        squashed = _squash(text)
        if all(_squash(m["content"]) in squashed for m in messages if m["role"] == "assistant"):
            return
        if not self.explicit:
            raise DataError(
                "the tokenizer's chat template must keep all that the assistant said. Got one that drops part"
                f" of row {row_id} (reasoning templates drop all up to </think>); {EXPLICIT} that keeps it, "
                "or to this one."
            )
        self.n_incomplete += 1

    def _response_spans(self, messages: list[Message], text: str, row_id: int) -> list[tuple[int, int]]:
        """Where in the text each assistant message is, by rendering the chat up to it."""
        spans = []
        for index, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            try:
                before, _ = self._render(messages[:index])
                prompted, _ = self._render(messages[:index], add_generation_prompt=True)
                through, _ = self._render(messages[: index + 1])
            except jinja2.TemplateError:
                before = prompted = through = ""
            if before == prompted or not (through.startswith(prompted) and text.startswith(through)):
                raise DataError(
                    "loss_on: response needs a chat template that marks responses with {% generation %}, or "
                    f"whose generation prompt begins them. Got neither in row {row_id}; {EXPLICIT} with "
                    "{% generation %}...{% endgeneration %} around them, or use loss_on: all."
                )
            spans.append((len(prompted), len(through)))
        return spans

    def _tokenize(self, rows: list[_Rendered]) -> Iterator[Encoded]:
        out: Any = self.tokenizer(
            [row.text for row in rows],
            add_special_tokens=False,  # the template has written them
            return_offsets_mapping=self.response_only,
            return_attention_mask=False,
            verbose=False,
        )
        for index, row in enumerate(rows):
            tokens = np.asarray(out["input_ids"][index], dtype=np.int64)
            mask = np.full(len(tokens), not self.response_only)
            if self.response_only:
                offsets = chain.from_iterable(out["offset_mapping"][index])
                starts, ends = np.fromiter(offsets, dtype=np.int64, count=2 * len(tokens)).reshape(-1, 2).T
                for start, end in row.spans:
                    mask |= (starts < end) & (ends > start) & (starts < ends)
            yield Encoded(tokens, mask)


class _Rendered(NamedTuple):
    text: str
    spans: list[tuple[int, int]]


def _read_messages(chat: Any) -> list[Message] | Unusable:
    if not isinstance(chat, (list, tuple)) or not chat:
        return Unusable("no messages")
    messages = []
    for entry in chat:
        if not isinstance(entry, Mapping):
            return Unusable("a message is not a mapping of role and content")
        role = entry.get("role") or entry.get("from")
        content = entry.get("content") if entry.get("content") is not None else entry.get("value")
        if not isinstance(role, str) or not isinstance(content, str):
            return Unusable("a message has no role or no text")
        others = {key: value for key, value in entry.items() if value is not None and key not in ("from", "value")}
        messages.append({**others, "role": _ROLES.get(role, role), "content": content})
    if all(not message["content"].strip() for message in messages):
        return Unusable("every message is empty")
    return messages


def _squash(text: str) -> str:
    """Text without white space, which templates trim and add."""
    return "".join(text.split())
