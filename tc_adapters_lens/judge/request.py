"""What a judge is asked, and what it answers.

A judge reads a prompt and writes text that must be JSON of a given form. The same facts that the prompt was written
from come with it, for judges that are rules rather than models.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from pydantic import BaseModel, ConfigDict, ValidationError

__all__ = ["Declined", "Form", "Judge", "Reply", "Request", "Spend", "Task", "parse"]

Task = Literal["classify", "describe", "detect"]


class Declined(Exception):
    """Raised by a judge that will never answer this one request, and may answer others."""


class Form(BaseModel):
    """Base of the forms that replies must have: no key more, no key less, no value bent to fit."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


@dataclass(frozen=True)
class Request:
    """One question to a judge.

    task: what is asked for.
    system, user: the prompt's two parts.
    form: what the reply must be, as JSON.
    facts: what the prompt was written from: plain values, as JSON has them.
    """

    task: Task
    system: str
    user: str
    form: type[Form]
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Reply:
    """What a judge wrote.

    text: all of it.
    prompt_tokens, completion_tokens: what it cost, as the endpoint counts; 0 where nothing was paid.
    """

    text: str
    prompt_tokens: int = 0
    completion_tokens: int = 0


class Spend(Protocol):
    """Asked before every request that goes out, repeated ones too."""

    def __call__(self, tokens: int) -> None:
        """
        Args:
            tokens: the most that this request may cost.
        Raises:
            BudgetSpent: it may not be sent.
        """
        ...


class Judge(Protocol):
    """Whoever answers requests.

    identity: what its replies depend on besides the request: plain values, no secrets.
    concurrency: how many requests it takes at a time.
    pays: whether replies cost anything, so that they are worth keeping.
    """

    @property
    def identity(self) -> Mapping[str, Any]: ...
    @property
    def concurrency(self) -> int: ...
    @property
    def pays(self) -> bool: ...

    async def reply(self, request: Request, key: str, spend: Spend) -> Reply:
        """Answer.

        Args:
            key: of this request; the same whenever it is sent again for want of a reply.
            spend: called before each time it is sent.
        Raises:
            Declined: it does not answer this one.
            JudgeError: it cannot or will not answer, now or later.
            BudgetSpent: from `spend`.
        """
        ...

    async def close(self) -> None:
        """Give back connections; it can be asked again afterwards."""
        ...


def parse(text: str, form: type[Form]) -> Form | None:
    """The reply as its form; None where it is not one.

    What models put around their answer is taken off: a block of thoughts before it, and a code fence. All that is left
    must be one JSON value of the form; nothing is searched for and nothing is made up.
    """
    text = re.sub(r"\A\s*<think>.*?</think>", "", text, flags=re.DOTALL).strip()
    if fenced := re.fullmatch(r"```(?:json)?[ \t]*\n(.*)\n?```", text, re.DOTALL):
        text = fenced[1]
    try:
        return form.model_validate_json(text)
    except ValidationError:
        return None
