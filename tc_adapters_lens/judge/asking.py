"""Asking a judge many things."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from tc_adapters_lens.judge.budget import Billed, Budget, Cost, Usage, about_tokens
from tc_adapters_lens.judge.questioning import Questioning
from tc_adapters_lens.judge.replies import Replies, request_key
from tc_adapters_lens.judge.request import Form, Judge, Request, parse

__all__ = ["Asker"]


class Asker:
    """Asks one judge, keeps what it replies, and counts what that takes.

    Args:
        judge: whom.
        replies: where replies that are paid for are kept, and looked up before anything is sent; None keeps none.
        budget: what may be used up; None for any amount.
        repeat: which asking of the same questions this is; what was replied to another one is not looked at.
        tries: how often a question is asked at most while replies do not have the form asked for.
    """

    def __init__(
        self,
        judge: Judge,
        *,
        replies: Replies | None = None,
        budget: Budget | None = None,
        repeat: int = 0,
        tries: int = 3,
    ) -> None:
        self.judge = judge
        self.replies = replies if judge.pays else None
        self.budget = Budget() if budget is None else budget
        self.repeat = repeat
        self.tries = tries
        self.usage = Usage()

    @property
    def identity(self) -> dict[str, Any]:
        """The judge's, for results."""
        return dict(self.judge.identity)

    def ask(self, requests: Sequence[Request], what: str) -> list[Form | None]:
        """Every request's answer, in order; None where no reply had the form asked for, or the judge declined.

        Every reply is kept as soon as it is there. Where asking ends early, what is out is waited for and kept.

        Args:
            what: is asked, for the progress bar.
        Raises:
            BudgetSpent: a JudgeError; something is left that may not be sent.
            JudgeError: the judge cannot or will not answer, or a reply cannot be written.
            KeyboardInterrupt: at Ctrl-C, once what was out is kept, or at the second one at once; says how far it came.
        """
        questioning = Questioning(self, requests, what)
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return asyncio.run(questioning.run())
        with ThreadPoolExecutor(1) as beside:  # a notebook has a loop of its own
            running = beside.submit(asyncio.run, questioning.run())
            try:
                return running.result()
            except KeyboardInterrupt:
                questioning.interrupt()
                return running.result()

    def cost(self, requests: Sequence[Request]) -> Cost:
        """What asking would take; nothing is sent."""
        missing: dict[str, Request] = {}
        for request in requests if self.judge.pays else ():
            if (key := self._first_missing(request)) is not None:
                missing[key] = request
        judge, prompts, limits = self.judge, 0, []
        for request in missing.values():
            prompt, limit = judge.estimate(request) if isinstance(judge, Billed) else (_about(request), None)
            prompts += prompt
            limits.append(limit)
        completions = None if None in limits else sum(limits)
        price = None if completions is None or not isinstance(judge, Billed) else judge.price(prompts, completions)
        return Cost(len(requests), len(missing), prompts, completions, price)

    def key(self, request: Request, n_try: int) -> str:
        """What its reply is kept under."""
        return request_key(self.judge.identity, request, self.repeat, n_try)

    def _first_missing(self, request: Request) -> str | None:
        """The key that is sent next for want of an answer; None where the kept replies are enough."""
        for n_try in range(self.tries):
            key = self.key(request, n_try)
            kept = None if self.replies is None else self.replies.get(key)
            if kept is None:
                return key
            if parse(kept.text, request.form) is not None:
                return None
        return None


def _about(request: Request) -> int:
    return about_tokens(request.system) + about_tokens(request.user)
