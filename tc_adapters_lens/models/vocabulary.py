"""Each token id's own bytes, so that the bytes of ids one after another are the text's UTF-8.

A byte-level token may hold half a character, which `tokenizer.decode` shows as U+FFFD for good. Bytes lose nothing.
They are what the tokenizer's own decoder (`decoder` of its tokenizer.json) makes of a single token:

    ByteLevel                             the bytes its letters stand for
    Replace, Metaspace, ByteFallback      blanks for "▁", the byte for <0x0A>
    WordPiece, BPEDecoder, none           words, with the blank that the decoder puts between two of them

What a decoder does to a whole text is left out: Strip after Fuse and Metaspace drop a leading blank, the word decoders
put blanks between words only. There, `join` has the blank that `decode` drops: one in front, or with BPEDecoder behind.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Int, UInt8
from transformers import PreTrainedTokenizerBase
from transformers.convert_slow_tokenizer import bytes_to_unicode

from tc_adapters_lens.errors import CheckpointError

__all__ = ["Vocabulary"]

Bytes: TypeAlias = bytes  # where a method has that name
Rule: TypeAlias = Callable[[str], "str | bytes"]

_SENTENCEPIECE = [{"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"}]
_OTHER = "\uffff"  # no byte, so a token with it spells none
_BYTE_OF = dict.fromkeys(range(256), _OTHER) | {ord(letter): chr(byte) for byte, letter in bytes_to_unicode().items()}
_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_BROKEN = re.compile("[\udc80-\udcff]+")  # bytes that are no UTF-8, as surrogateescape marks them
_CLEANED = (  # tokenizers' WordPiece decoder, in its order
    (" .", "."),
    (" ?", "?"),
    (" !", "!"),
    (" ,", ","),
    (" ' ", "'"),
    (" n't", "n't"),
    (" 'm", "'m"),
    (" do not", " don't"),
    (" 's", "'s"),
    (" 've", "'ve"),
    (" 're", "'re"),
)


class Vocabulary:
    """The bytes of every id.

    Args:
        data: all ids' bytes, one after another.
        offsets: where each id's bytes start, and the total at the end.
    """

    def __init__(self, data: UInt8[np.ndarray, " n_bytes"], offsets: Int[np.ndarray, " d_vocab_plus_1"]) -> None:
        assert offsets[0] == 0
        assert offsets[-1] == len(data)
        self.data = data.astype(np.uint8, copy=False)
        self.offsets = offsets.astype(np.int64, copy=False)
        self._content = self.data.tobytes()
        self._bounds: list[int] = self.offsets.tolist()

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, d_vocab: int) -> Vocabulary:
        """A tokenizer's vocabulary, as long as the model's; ids that the tokenizer does not know have no bytes.

        Args:
            tokenizer: fast, or slow with SentencePiece's or GPT-2's spelling of tokens.
            d_vocab: the model's vocabulary.
        Raises:
            CheckpointError: the tokenizer's decoder does not turn tokens to text one by one.
        """
        pieces = [b""] * d_vocab
        for token_id, piece in _pieces(tokenizer):
            if token_id < d_vocab:
                pieces[token_id] = piece
        offsets = np.cumsum([0, *map(len, pieces)], dtype=np.int64)
        return cls(np.frombuffer(b"".join(pieces), dtype=np.uint8), offsets)

    def __len__(self) -> int:
        return len(self._bounds) - 1

    @property
    def n_known(self) -> int:
        """One more than the last id that has bytes."""
        return int(np.searchsorted(self.offsets, self.offsets[-1])) if len(self.data) else 0

    def bytes(self, token_id: int) -> Bytes:
        """One id's bytes.

        Raises:
            IndexError: there is no such id.
        """
        if not 0 <= token_id < len(self):
            raise IndexError(f"a token id must be from 0 to {len(self) - 1}. Got {token_id}.")
        return self._content[self._bounds[token_id] : self._bounds[token_id + 1]]

    def text(self, token_id: int) -> str:
        """One id's text: bytes that are no UTF-8 on their own as ⟨e2 80⟩, an id without bytes as ⟨id 123⟩."""
        piece = self.bytes(token_id)
        if not piece:
            return f"⟨id {token_id}⟩"
        text = piece.decode("utf-8", errors="surrogateescape")
        return text if text.isascii() else _BROKEN.sub(_hexadecimal, text)

    def texts(self, token_ids: Iterable[int]) -> list[str]:
        """Each id's text."""
        return [self.text(token_id) for token_id in _as_list(token_ids)]

    def join(self, token_ids: Iterable[int]) -> Bytes:
        """The bytes of the text that the ids spell.

        Raises:
            IndexError: there is no such id.
        """
        ids = np.asarray(token_ids if isinstance(token_ids, np.ndarray) else list(token_ids), dtype=np.int64)
        if len(ids) and not 0 <= ids.min() <= ids.max() < len(self):
            raise IndexError(f"token ids must be from 0 to {len(self) - 1}. Got {ids.min()} to {ids.max()}.")
        starts, lengths = self.offsets[ids], self.offsets[ids + 1] - self.offsets[ids]
        ends = lengths.cumsum()
        where = np.repeat(starts - (ends - lengths), lengths) + np.arange(lengths.sum())
        return self.data[where].tobytes()


def _as_list(token_ids: Iterable[int]) -> list[int]:
    return token_ids.tolist() if isinstance(token_ids, np.ndarray) else list(token_ids)


def _hexadecimal(broken: re.Match[str]) -> str:
    return f"⟨{broken[0].encode('utf-8', errors='surrogateescape').hex(' ')}⟩"


def _pieces(tokenizer: PreTrainedTokenizerBase) -> Iterable[tuple[int, bytes]]:
    """Ids with their bytes."""
    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return _slow_pieces(tokenizer)
    decoder = json.loads(backend.to_str())["decoder"]
    rule, blank = _rule_of(decoder)
    own = backend.get_vocab(with_added_tokens=False)
    found = {token_id: _utf8(rule(token)) for token, token_id in own.items()}
    for token_id, added in backend.get_added_tokens_decoder().items():
        if own.get(added.content) != token_id:  # matched in the text before it is spelled in tokens
            found[token_id] = _utf8(blank + added.content)
    return found.items()


def _slow_pieces(tokenizer: Any) -> Iterable[tuple[int, bytes]]:
    steps = [{"type": "ByteLevel"}] if hasattr(tokenizer, "byte_decoder") else _SENTENCEPIECE
    rule, _ = _rule_of({"type": "Sequence", "decoders": steps})
    for token_id, token in enumerate(tokenizer.convert_ids_to_tokens(range(len(tokenizer)))):
        if token is not None:
            yield token_id, _utf8(token if token_id in tokenizer.added_tokens_decoder else rule(token))


def _rule_of(decoder: dict[str, Any] | None) -> tuple[Rule, str]:
    """What a decoder makes of one token in the midst of others, and what it puts before an added one."""
    if decoder is None:
        return (lambda token: f" {token}"), " "
    steps = _flat(decoder)
    kinds = [step["type"] for step in steps]
    fused = next((index for index, kind in enumerate(kinds) if kind in ("Fuse", "ByteLevel")), len(kinds))
    rules = [rule for step in steps[: fused + 1] if (rule := _step(step)) is not None]
    if len(rules) < min(fused + 1, len(kinds)) or any(kind not in ("Fuse", "Strip") for kind in kinds[fused + 1 :]):
        raise CheckpointError(
            "A tokenizer's decoder must turn tokens to text one by one, as ByteLevel, WordPiece, BPEDecoder, Metaspace "
            f"and SentencePiece's do. Got {', '.join(kinds)}. Use the model's original tokenizer.json."
        )
    return _one_after_another(rules), " " if "WordPiece" in kinds else ""


def _one_after_another(rules: list[Rule]) -> Rule:
    def rule(token: str) -> str | bytes:
        for step in rules:
            piece = step(token)
            if isinstance(piece, bytes):
                return piece
            token = piece
        return token

    return rule


def _flat(decoder: dict[str, Any]) -> list[dict[str, Any]]:
    if decoder["type"] != "Sequence":
        return [decoder]
    return [step for inner in decoder["decoders"] for step in _flat(inner)]


def _step(step: dict[str, Any]) -> Rule | None:
    """One step of a decoder; None where it needs more than one token to see."""
    match step:
        case {"type": "Fuse"}:
            return lambda token: token
        case {"type": "ByteLevel"}:
            return _byte_level
        case {"type": "ByteFallback"}:
            return _byte_fallback
        case {"type": "Replace", "pattern": {"String": pattern}, "content": content}:
            return lambda token: token.replace(pattern, content)
        case {"type": "Metaspace", "replacement": replacement}:
            return lambda token: token.replace(replacement, " ")
        case {"type": "Strip", "content": content, "start": start, "stop": stop}:
            return lambda token: _strip(token, content, start, stop)
        case {"type": "BPEDecoder", "suffix": suffix}:
            return lambda token: token.replace(suffix, " ")
        case {"type": "WordPiece", "prefix": prefix, "cleanup": cleanup}:
            return lambda token: _word_piece(token, prefix, cleanup)
    return None


def _byte_level(token: str) -> bytes:
    try:
        return token.translate(_BYTE_OF).encode("latin-1")
    except UnicodeEncodeError:
        return _utf8(token)


def _byte_fallback(token: str) -> str | bytes:
    found = _BYTE_TOKEN.fullmatch(token)
    return token if found is None else bytes([int(found[1], 16)])


def _strip(token: str, content: str, start: int, stop: int) -> str:
    for _ in range(start):
        token = token.removeprefix(content)
    for _ in range(stop):
        token = token.removesuffix(content)
    return token


def _word_piece(token: str, prefix: str, cleanup: bool) -> str:
    text = token.removeprefix(prefix) if token.startswith(prefix) else f" {token}"
    for found, cleaned in _CLEANED if cleanup else ():
        text = text.replace(found, cleaned)
    return text


def _utf8(piece: str | bytes) -> bytes:
    return piece if isinstance(piece, bytes) else piece.encode("utf-8", errors="surrogatepass")
