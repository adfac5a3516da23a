"""One series of requests on its way to a judge: many at a time, kept as they come, and ended without loss."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from tqdm.auto import tqdm

from tc_adapters_lens.errors import JudgeError
from tc_adapters_lens.judge.budget import BudgetFull, BudgetSpent
from tc_adapters_lens.judge.request import Declined, Form, Reply, Request, parse

if TYPE_CHECKING:
    from tc_adapters_lens.judge.asking import Asker

__all__ = ["Questioning", "Waits"]

logger = logging.getLogger(__name__)


@runtime_checkable
class Waits(Protocol):
    """A judge that waits before it sends again."""

    def stop_waiting(self) -> None:
        """Nothing more shall be sent: whoever waits asks for its `spend` now, and is refused. Until `close`."""
        ...


class _EndedEarly(Exception):
    """Raised where something would be sent after the end."""


@dataclass(eq=False)
class _Question:
    """Equal requests: one of them, and where all of them stand."""

    request: Request
    places: list[int] = field(default_factory=list)


class Questioning:
    """Asks each of the requests once, up to the judge's concurrency at a time.

    It ends early at Ctrl-C, at a JudgeError and when the budget is spent. Then nothing more is sent, and what is out
    already is waited for, so that it is kept and counted.
    """

    def __init__(self, asker: Asker, requests: Sequence[Request], what: str) -> None:
        self._asker = asker
        self._judge = asker.judge
        self._usage = asker.usage
        self._what = what
        self._answers: list[Form | None] = [None] * len(requests)
        self._questions = self._distinct(requests)
        self._n_answered = 0
        self._n_out = 0
        self._ended = False
        self._error: JudgeError | None = None
        self._n_interrupts = 0
        self._settled = asyncio.Event()
        self._interrupt: Callable[[], None] = lambda: None

    def _distinct(self, requests: Sequence[Request]) -> list[_Question]:
        """Judges that are not paid see facts that no key holds, so that none of their requests are equal."""
        questions: dict[str | int, _Question] = {}
        for place, request in enumerate(requests):
            key = self._asker.key(request, 0) if self._judge.pays else place
            questions.setdefault(key, _Question(request)).places.append(place)
        return list(questions.values())

    async def run(self) -> list[Form | None]:
        """The answers; errors as in `Asker.ask`."""
        to_ask = iter(self._questions)
        n_workers = min(self._judge.concurrency, len(self._questions))
        with tqdm(total=len(self._answers), desc=self._what, disable=None) as bar, self._interrupts():
            workers = [asyncio.create_task(self._work(to_ask, bar)) for _ in range(n_workers)]
            try:
                await asyncio.gather(*workers)
            except asyncio.CancelledError:
                if self._n_interrupts < 2:
                    raise
            finally:
                for worker in workers:
                    worker.cancel()
                await asyncio.gather(*workers, return_exceptions=True)
                await self._judge.close()
        if self._n_interrupts:
            raise KeyboardInterrupt(f"Interrupted: {self._how_far()}")
        if isinstance(self._error, BudgetSpent):
            option = self._error.option
            raise BudgetSpent(f"{self._error}: {self._how_far(f' with a larger {option}')}", option)
        if self._error is not None:
            raise JudgeError(f"{self._error} {self._how_far()}") from self._error.__cause__
        return self._answers

    async def _work(self, to_ask: Iterator[_Question], bar: tqdm) -> None:
        for question in to_ask:
            await asyncio.sleep(0)  # where all is kept nothing else lets Ctrl-C through
            if self._ended:
                return
            try:
                answer = await self._answer(question.request)
            except _EndedEarly:
                return
            except JudgeError as error:
                self._error = self._error or error
                self._end()
                return
            for place in question.places:
                self._answers[place] = answer
            self._n_answered += len(question.places)
            bar.set_postfix(self._figures(), refresh=False)
            bar.update(len(question.places))

    async def _answer(self, request: Request) -> Form | None:
        for n_try in range(self._asker.tries):
            try:
                reply = await self._reply(request, self._asker.key(request, n_try))
            except Declined:
                self._usage.declined += 1
                return None
            answer = parse(reply.text, request.form)
            if answer is not None:
                return answer
        self._usage.unparsable += 1
        return None

    async def _reply(self, request: Request, key: str) -> Reply:
        replies = self._asker.replies
        if replies is not None and (kept := replies.get(key)) is not None:
            self._usage.kept += 1
            return kept
        if self._ended:
            raise _EndedEarly
        reply = await self._sent(request, key)
        self._usage.prompt_tokens += reply.prompt_tokens
        self._usage.completion_tokens += reply.completion_tokens
        if replies is not None:
            await asyncio.to_thread(replies.keep, key, request, reply)
        return reply

    async def _sent(self, request: Request, key: str) -> Reply:
        """The judge's reply, within the budget."""
        budget, holder = self._asker.budget, object()

        def spend(tokens: int) -> None:
            if self._ended:
                raise _EndedEarly
            budget.take(holder, tokens)
            self._usage.sent += 1

        while True:
            settled, cost = self._settled, 0
            self._n_out += 1
            try:
                reply = await self._judge.reply(request, key, spend)
                cost = reply.prompt_tokens + reply.completion_tokens
                return reply
            except BudgetFull:
                pass
            finally:
                self._n_out -= 1
                if budget.settle(holder, cost):
                    self._settled.set()
                    self._settled = asyncio.Event()
            await settled.wait()

    def interrupt(self) -> None:
        """What Ctrl-C does, from any thread."""
        self._interrupt()

    def _end(self) -> None:
        """Nothing more is sent."""
        self._ended = True
        self._settled.set()
        if isinstance(self._judge, Waits):
            self._judge.stop_waiting()

    def _figures(self) -> dict[str, str]:
        usage = self._usage
        tokens = usage.prompt_tokens + usage.completion_tokens
        return {"kept": f"{usage.kept:,}", "unparsable": f"{usage.unparsable:,}", "tokens": f"{tokens:,}"}

    def _how_far(self, how: str = "") -> str:
        answered = f"{self._n_answered:,} of {len(self._answers):,} are answered"
        if self._asker.replies is None:
            return f"{answered}, and nothing is kept."
        return f"{answered} and kept. The same command{how} goes on."

    @contextlib.contextmanager
    def _interrupts(self) -> Iterator[None]:
        """Ctrl-C ends early, the second one at once; in the main thread, which alone gets signals."""
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None

        def interrupt() -> None:
            self._n_interrupts += 1
            loop.call_soon_threadsafe(self._interrupted if self._n_interrupts == 1 else task.cancel)

        self._interrupt = interrupt
        in_main = threading.current_thread() is threading.main_thread()
        if not in_main or signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
            yield
            return
        previous = signal.signal(signal.SIGINT, lambda number, frame: interrupt())
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, previous)

    def _interrupted(self) -> None:
        self._end()
        if self._n_out:
            logger.warning("Waiting for what is out (%d at most). Ctrl-C again ends it at once.", self._n_out)
