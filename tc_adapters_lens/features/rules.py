"""Rules that choose features from a store: by what they promote, by where their examples are, and the built-in ones.

    store = FeatureStore.open("runs/toy/features")
    chosen = promotes(store, ["wait", "hmm"]) & where(store, "domain:math >= 0.8")
    chosen.group("doubt in mathematics").save("runs/toy/groups/doubt.json")

A rule also chooses features that are never active in the store's text, where it holds of them; every share is unknown
of these. `where(store, "n_active > 0")` leaves them out.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Int

from tc_adapters_lens.errors import ConfigError, did_you_mean
from tc_adapters_lens.features.choice import Choice
from tc_adapters_lens.features.store import FeatureStore
from tc_adapters_lens.models.feature_group import FeatureGroup
from tc_adapters_lens.models.names import CONTENT
from tc_adapters_lens.models.vocabulary import Vocabulary
from tc_adapters_lens.toy import HESITATIONS

__all__ = [
    "BUILT_IN",
    "N_PROMOTED",
    "TEMPLATE_SHARE",
    "at_template",
    "built_in",
    "built_in_choice",
    "opening_positions",
    "promotes",
]

N_PROMOTED = 10
TEMPLATE_SHARE = 0.8

_THINK = "<think>"
_AFTER = re.compile(r"\+\d+$")  # a position named by the template token some places before it
_END = re.compile(r"^</|end.?of|im_end|eot|eos", re.IGNORECASE)


def promotes(store: FeatureStore, words: Sequence[str], top: int = N_PROMOTED) -> Choice:
    """Features with one of the words among their most promoted tokens.

    Args:
        words: each one token, which may have white space around it and any case.
        top: how many promoted tokens are looked at.
    Raises:
        ConfigError: no words, one that no token is, or more tokens than the store keeps.
    """
    n_kept = store.column("promoted").shape[1]
    if not 1 <= top <= n_kept:
        raise ConfigError(f"The most promoted tokens must be 1 to {n_kept}, which a store keeps. Got {top}.")
    if not words or not all(map(str.strip, words)):
        raise ConfigError(f"Promoted words must be given. Got {', '.join(map(repr, words)) or 'none'}.")
    tokens = _tokens_of(store.vocabulary, words)
    if unknown := [word for word, ids in tokens.items() if not ids]:
        raise ConfigError(_not_tokens(store.vocabulary, unknown))
    return _promote(store, tokens, top)


def at_template(store: FeatureStore, positions: Sequence[str] | None = None, share: float = TEMPLATE_SHARE) -> Choice:
    """Features with at least a share of their highest examples at one and the same position of the chat template.

    Args:
        positions: which positions, as the store names them; None: any, the content between them left out.
        share: of a feature's highest examples, above 0, at most 1.
    Raises:
        ConfigError: no such position, no chat template in the store's text, or a share that is none.
    """
    known = [name for name in store.info.template if name != CONTENT]
    if not known:
        raise ConfigError(
            f"Template positions need chats. Got none in the text of {store.directory}. "
            "Make the store again from chats, or from rows with `prompt_length`."
        )
    if not 0 < share <= 1:
        raise ConfigError(f"A share of examples must be above 0 and at most 1. Got {share}.")
    for name in positions or ():
        if name not in known:
            raise ConfigError(
                f"A template position must be one of {', '.join(known)}. Got {name}.{did_you_mean(name, known)}"
            )
    names = known if positions is None else list(dict.fromkeys(positions))
    codes = np.array([store.info.template.index(name) for name in names])
    chosen = [_peak_at(store, layer, codes, share) for layer in range(store.info.n_layers)]
    return Choice(store, {"template": names, "share": share}, np.concatenate(chosen))


def built_in(store: FeatureStore, name: str) -> FeatureGroup:
    """A group by one of the BUILT_IN rules, called as the rule is.

    Words of it that are not one token of the model are left out, which the group's rule says.

    Raises:
        ConfigError: no such rule; the store's text has no chat template; no word of the rule is one token.
        FeatureGroupError: no feature is of it.
    """
    return built_in_choice(store, name).group(name)


def built_in_choice(store: FeatureStore, name: str) -> Choice:
    """The same, to be combined further."""
    if name not in BUILT_IN:
        raise ConfigError(f"A rule must be one of {', '.join(BUILT_IN)}. Got {name}.{did_you_mean(name, BUILT_IN)}")
    choice = BUILT_IN[name](store)
    return Choice(store, {"built_in": name, **choice.rule}, choice.chosen)


def _hesitation_output(store: FeatureStore) -> Choice:
    tokens = _tokens_of(store.vocabulary, HESITATIONS)
    known = {word: ids for word, ids in tokens.items() if ids}
    if not known:
        raise ConfigError(_not_tokens(store.vocabulary, HESITATIONS))
    choice = _promote(store, known, N_PROMOTED)
    if len(known) < len(tokens):
        choice.rule["not_tokens"] = [word for word in tokens if word not in known]
    return choice


def opening_positions(names: Sequence[str]) -> list[str]:
    """Of template positions those that open a chat: template tokens but such as end something, and what follows
    <think> (in DeepSeek's template a newline, then the first token of thinking)."""
    return [
        name
        for name in names
        if name.startswith(_THINK) or not (name == CONTENT or _AFTER.search(name) or _END.search(name))
    ]


def _opening(store: FeatureStore) -> Choice:
    return at_template(store, opening_positions(store.info.template) or None)


BUILT_IN: dict[str, Callable[[FeatureStore], Choice]] = {
    "hesitation-output": _hesitation_output,
    "template": _opening,
    "hesitation": lambda store: _hesitation_output(store) | _opening(store),
}
"""hesitation-output: one of HESITATIONS among the 10 most promoted tokens. template: 80% of the highest examples
at one of the positions that open a chat: begin-of-sentence, user, assistant, <think>, the newline after it, the first
token of thinking. hesitation: either.

Source: Hu et al. 2026, section 6 (arXiv 2602.20904)."""


def _promote(store: FeatureStore, tokens: dict[str, list[int]], top: int) -> Choice:
    wanted = np.zeros(len(store.vocabulary), dtype=bool)
    wanted[[token for ids in tokens.values() for token in ids]] = True
    chosen = np.asarray(wanted[store.column("promoted")[:, :top]].any(axis=1))
    return Choice(store, {"promotes": list(tokens), "top": top}, chosen)


def _peak_at(store: FeatureStore, layer: int, codes: Int[np.ndarray, " n"], share: float) -> np.ndarray:
    """Bool [n_features]: whether a share of the highest examples is at one of the template positions."""
    assert store.position_template is not None
    positions = store.peaks("top", layer)
    there = positions >= 0
    at = np.where(there, store.position_template[positions], -1)
    counts = (at[:, :, None] == codes).sum(axis=1)
    return (counts / np.maximum(there.sum(axis=1), 1)[:, None] >= share).any(axis=1)


def _tokens_of(vocabulary: Vocabulary, words: Sequence[str]) -> dict[str, list[int]]:
    """Word -> ids whose text is that word, but for white space around it and case."""
    tokens: dict[str, list[int]] = {word.strip().casefold(): [] for word in words}
    for token in range(vocabulary.n_known):
        text = vocabulary.bytes(token).decode("utf-8", errors="replace").strip().casefold()
        if text in tokens:
            tokens[text].append(token)
    return {word.strip(): tokens[word.strip().casefold()] for word in words}


def _not_tokens(vocabulary: Vocabulary, words: Sequence[str]) -> str:
    known = {vocabulary.bytes(token) for token in range(vocabulary.n_known)} - {b""}
    split = "; ".join(
        f"'{word}', whose longest pieces are {_pieces(known, word)}, after a space {_pieces(known, f' {word}')}"
        for word in words
    )
    return (
        "Promoted words must each be one token, whatever its case and white space around it. "
        f"Got {split}. Name one of the pieces, or another word."
    )


def _pieces(known: set[bytes], text: str) -> str:
    """Always the longest known piece from the left, which is near what a tokenizer does."""
    data, pieces = text.encode(), []
    longest = max(map(len, known), default=1)
    while data:
        lengths = range(min(longest, len(data)), 0, -1)
        length = next((length for length in lengths if data[:length] in known), 1)
        pieces.append(f"'{data[:length].decode('utf-8', errors='backslashreplace')}'")
        data = data[length:]
    return " ".join(pieces)
