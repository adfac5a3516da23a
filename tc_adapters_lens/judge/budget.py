"""What asking costs: before, as an estimate; meanwhile, within a budget; afterwards, as counted."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Protocol, runtime_checkable

from tc_adapters_lens.errors import JudgeError
from tc_adapters_lens.judge.request import Request

__all__ = ["Billed", "Budget", "BudgetFull", "BudgetSpent", "Cost", "Usage", "about_tokens"]

_BYTES_PER_TOKEN = 4


def about_tokens(text: str) -> int:
    """About how many tokens a text is, by its bytes."""
    return -(-len(text.encode(errors="replace")) // _BYTES_PER_TOKEN)


@runtime_checkable
class Billed(Protocol):
    """A judge that knows about what a request will cost."""

    def estimate(self, request: Request) -> tuple[int, int | None]:
        """Tokens of the prompt, about; tokens of the reply, at most, None where nothing limits it."""
        ...

    def price(self, prompt_tokens: int, completion_tokens: int) -> float | None:
        """What so many tokens cost; None where prices are not known."""
        ...


@dataclass(frozen=True)
class Cost:
    """What is still to be paid for a number of requests, each asked once and answered as it should be.

    n_requests: all of them.
    n_to_send: those that no kept reply answers; equal ones once.
    prompt_tokens: of these, about.
    completion_tokens: of these, at most; None where nothing limits them.
    price: of both; None where prices or the replies' limit are not given.
    """

    n_requests: int
    n_to_send: int
    prompt_tokens: int
    completion_tokens: int | None
    price: float | None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass
class Usage:
    """What was used up so far.

    sent: requests that went out, repeated ones too.
    kept: replies that were on disk already.
    prompt_tokens, completion_tokens: of replies that came, as the endpoint counts them.
    unparsable: requests, equal ones once, to which no reply had the form asked for.
    """

    sent: int = 0
    kept: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    unparsable: int = 0

    def to_dict(self) -> dict[str, int]:
        return asdict(self)


class BudgetSpent(JudgeError):
    """No further request may be sent.

    option: what would allow more.
    """

    def __init__(self, message: str, option: str) -> None:
        super().__init__(message)
        self.option = option


class BudgetFull(BudgetSpent):
    """No further request may be sent until one that is out ends and turns out cheaper than it might have been."""


class Budget:
    """How much may be used up, by everything one command asks.

    Tokens are set aside while a request is out, as many as it may cost, so that many at a time stay within the budget;
    once it ends what it did cost counts.

    Args:
        max_requests: sent, repeated ones too; None for any number.
        max_tokens: of prompts and replies; None for any number.
    """

    def __init__(self, max_requests: int | None = None, max_tokens: int | None = None) -> None:
        self.max_requests, self.max_tokens = max_requests, max_tokens
        self.n_requests = self.n_tokens = 0
        self._out: dict[object, int] = {}

    def take(self, holder: object, tokens: int) -> None:
        """Count one sending and set its tokens aside, instead of those set aside for its holder before.

        Raises:
            BudgetSpent: it may not be sent.
            BudgetFull: it may not be sent now.
        """
        if self.max_requests is not None and self.n_requests >= self.max_requests:
            raise BudgetSpent(f"The budget of {self.max_requests:,} requests is spent", "--max-requests")
        others = [set_aside for other, set_aside in self._out.items() if other is not holder]
        if self.max_tokens is not None and self.n_tokens + sum(others) + tokens > self.max_tokens:
            left = max(self.max_tokens - self.n_tokens, 0)
            raise (BudgetFull if others else BudgetSpent)(
                f"The budget of {self.max_tokens:,} tokens is spent but for {left:,}, "
                f"and a request may take {tokens:,}",
                "--max-tokens",
            )
        self.n_requests += 1
        self._out[holder] = tokens

    def settle(self, holder: object, tokens: int) -> bool:
        """A request has ended: count what it cost, and set nothing aside for its holder any more.

        Returns:
            Whether anything had been, so that there may be room now.
        """
        self.n_tokens += tokens
        return self._out.pop(holder, None) is not None
