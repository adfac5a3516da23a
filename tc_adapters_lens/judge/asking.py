"""Asking a judge many things."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from tc_adapters_lens.judge.request import Form, Judge, Request, parse

__all__ = ["Asker"]


class Asker:
    """Asks one judge."""

    def __init__(self, judge: Judge) -> None:
        self.judge = judge

    def ask(self, requests: Sequence[Request], what: str) -> list[Form | None]:
        """Every request's answer, in order; None where no reply had the form asked for."""

        async def ask() -> list[Form | None]:
            replies = [await self.judge.reply(request, "", lambda tokens: None) for request in requests]
            return [parse(reply.text, request.form) for reply, request in zip(replies, requests, strict=True)]

        return asyncio.run(ask())
