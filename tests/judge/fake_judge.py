"""A judge whose replies a test writes."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from tc_adapters_lens.judge.request import Reply, Request, Spend


class FakeJudge:
    """Replies with what a function makes of the facts: plain values as JSON, texts as they are.

    requests: all that it was asked, in order.
    """

    concurrency = 1
    pays = False

    def __init__(self, answer: Callable[[Mapping[str, Any]], dict[str, Any] | str], name: str = "fake") -> None:
        self.answer = answer
        self.name = name
        self.requests: list[Request] = []

    @property
    def identity(self) -> Mapping[str, Any]:
        return {"kind": self.name}

    async def reply(self, request: Request, key: str, spend: Spend) -> Reply:
        self.requests.append(request)
        answer = self.answer(request.facts)
        return Reply(answer if isinstance(answer, str) else json.dumps(answer))

    async def close(self) -> None:
        pass
