"""Asking many things: order, what is kept, budgets, and ends that lose nothing."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from tc_adapters_lens.errors import JudgeError
from tc_adapters_lens.judge.asking import Asker
from tc_adapters_lens.judge.budget import Budget, BudgetSpent, about_tokens
from tc_adapters_lens.judge.replies import Replies
from tc_adapters_lens.judge.request import Form, Reply, Request
from tests.judge.endpoint_server import Endpoint, running, says, status
from tests.judge.questions import Number, asker_at, question, questions, values

ROOT = Path(__file__).parents[2]


class FakeJudge:
    """Replies in this process with what a function of the number and the time it is asked says."""

    identity = {"kind": "fake"}  # noqa: RUF012
    concurrency = 4

    def __init__(self, says: Callable[[int, int], str], pays: bool = True) -> None:
        self.says, self.pays = says, pays
        self.asked: list[int] = []
        self.n_closed = 0

    async def reply(self, request, key, spend):
        spend(100)
        number = request.facts["number"]
        self.asked.append(number)
        await asyncio.sleep(0.01 if number % 2 else 0)
        return Reply(self.says(number, self.asked.count(number)), 40, 10)

    async def close(self):
        self.n_closed += 1


def good(number: int, time: int) -> str:
    return json.dumps({"value": number})


def files(directory: Path) -> list[Path]:
    return sorted(directory.glob("*/*.json"))


def test_answers_stand_where_their_requests_stand(tmp_path):
    numbers = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3]
    judge = FakeJudge(good)
    asker = Asker(judge, replies=Replies(tmp_path))
    assert values(asker.ask([question(number) for number in numbers], "ask")) == numbers
    assert sorted(judge.asked) == [1, 2, 3, 4, 5, 6, 9]
    assert asker.usage.to_dict() == {
        "sent": 7,
        "kept": 0,
        "prompt_tokens": 280,
        "completion_tokens": 70,
        "unparsable": 0,
        "declined": 0,
    }
    assert asker.identity == {"kind": "fake"}
    assert judge.n_closed == 1
    assert asker.ask([], "ask") == []


def test_who_is_not_paid_is_asked_everything_and_keeps_nothing(tmp_path):
    """Such a judge sees facts that prompts need not show."""
    judge = FakeJudge(good, pays=False)
    same = [Request("classify", "", "the same", Number, {"number": number}) for number in range(3)]
    asker = Asker(judge, replies=Replies(tmp_path / "replies"))
    assert values(asker.ask(same, "ask")) == [0, 1, 2]
    assert not (tmp_path / "replies").exists()
    assert asker.cost(same).n_to_send == 0


def test_a_form_that_never_comes_is_none(tmp_path):
    """1 never has the form, 2 has it the third time."""
    judge = FakeJudge(lambda number, time: "no" if number == 1 or (number == 2 and time < 3) else good(number, time))
    asker = Asker(judge, replies=Replies(tmp_path))
    assert values(asker.ask(questions(4), "ask")) == [0, None, 2, 3]
    assert (asker.usage.unparsable, asker.usage.sent) == (1, 8)
    assert len(files(tmp_path)) == 8

    again = Asker(judge, replies=Replies(tmp_path))
    assert again.cost(questions(4)).n_to_send == 0
    assert values(again.ask(questions(4), "ask")) == [0, None, 2, 3]
    assert (again.usage.unparsable, again.usage.sent, again.usage.kept) == (1, 0, 8)

    more = Asker(judge, replies=Replies(tmp_path), tries=4)
    assert more.cost(questions(4)).n_to_send == 1
    more.ask(questions(4), "ask")
    assert more.usage.sent == 1


def test_what_makes_another_request(tmp_path):
    class Other(Form):
        value: int
        more: int = 0

    with running() as endpoint:
        asker_at(endpoint.url, tmp_path).ask(questions(1), "ask")

        def is_sent(request: Request, **options) -> bool:
            asker = asker_at(endpoint.url, tmp_path, **options)
            n_to_send = asker.cost([request]).n_to_send
            asker.ask([request], "ask")
            assert asker.usage.sent == n_to_send
            return bool(asker.usage.sent)

        one = question(0)
        assert not is_sent(one, concurrency=2, timeout=4, retries=1, prices={"input": 1, "output": 1})
        assert not is_sent(replace(one, facts={"other": 1}, task="describe"))
        assert is_sent(one, repeat=1)
        assert is_sent(one, model="another")
        assert is_sent(one, params={"seed": 1})
        assert is_sent(one, response_format="none")
        assert is_sent(replace(one, system="Other words."))
        assert is_sent(replace(one, user="the question 0"))
        assert is_sent(replace(one, form=Other))


def test_files_that_are_no_replies_are_asked_again(tmp_path, caplog):
    judge = FakeJudge(good)
    Asker(judge, replies=Replies(tmp_path)).ask(questions(6), "ask")
    kept = files(tmp_path)
    kept[0].write_bytes(kept[0].read_bytes()[:40])
    kept[1].write_text("")
    kept[2].write_bytes(b"\xff\xfe")
    kept[3].write_text(kept[3].read_text().replace('"format_version": 1', '"format_version": 2'))
    shutil.copy(kept[5], kept[4])
    again = Asker(judge, replies=Replies(tmp_path))
    assert values(again.ask(questions(6), "ask")) == list(range(6))
    assert (again.usage.sent, again.usage.kept) == (5, 1)
    assert len(caplog.messages) == 5
    assert sum("is of another request: asked again" in message for message in caplog.messages) == 1
    third = Asker(judge, replies=Replies(tmp_path))
    assert values(third.ask(questions(6), "ask")) == list(range(6))
    assert third.usage.kept == 6


def test_two_may_use_the_same_files(tmp_path):
    askers = [Asker(FakeJudge(good), replies=Replies(tmp_path)) for _ in range(2)]
    answers: list[list] = [[], []]

    def ask(which: int) -> None:
        answers[which] = values(askers[which].ask(questions(100), "ask"))

    threads = [threading.Thread(target=ask, args=(which,)) for which in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [list(range(100))] * 2
    assert len(files(tmp_path)) == len(list(tmp_path.rglob("*.*"))) == 100
    assert Asker(FakeJudge(good), replies=Replies(tmp_path)).cost(questions(100)).n_to_send == 0


def test_kept_replies_are_read_quickly(tmp_path):
    requests = questions(1000)
    replies, asker = Replies(tmp_path), Asker(FakeJudge(good), replies=Replies(tmp_path))
    for number, request in enumerate(requests):
        path = replies._path(asker.key(request, 0))
        path.parent.mkdir(exist_ok=True)
        counts = {"prompt_tokens": 1, "completion_tokens": 1}
        about = {"format": "tc_adapters_lens.judge_reply", "format_version": 1, "key": path.stem, "task": "classify"}
        path.write_text(json.dumps({**about, "text": good(number, 0), **counts}))
    began = time.monotonic()
    assert values(asker.ask(requests, "ask")) == list(range(1000))
    assert time.monotonic() - began < 3
    assert asker.usage.kept == 1000


def test_an_error_of_ours_keeps_its_traceback(tmp_path):
    judge = FakeJudge(lambda number, time: str(1 / (number - 2)))
    with pytest.raises(ZeroDivisionError):
        Asker(judge, replies=Replies(tmp_path)).ask(questions(50), "ask")
    assert len(judge.asked) < 10
    assert judge.n_closed == 1


def test_a_full_disk_ends_it(tmp_path):
    (tmp_path / "replies").write_text("a file")
    with pytest.raises(JudgeError, match=r"Writing .* failed: .*0 of 50 are answered and kept"):
        Asker(FakeJudge(good), replies=Replies(tmp_path / "replies")).ask(questions(50), "ask")


def test_a_budget_of_requests(tmp_path):
    """Question 2 fails once, so seven requests are six answers."""
    with running({2: [status(500)]}, delay=0.02) as endpoint:
        asker = asker_at(endpoint.url, tmp_path, budget=Budget(max_requests=7), concurrency=5)
        with pytest.raises(BudgetSpent) as caught:
            asker.ask(questions(20), "ask")
        assert len(endpoint.received) == asker.usage.sent == 7
        assert str(caught.value) == (
            "The budget of 7 requests is spent: 6 of 20 are answered and kept. "
            "The same command with a larger --max-requests goes on."
        )
        assert endpoint.n_billed == len(files(tmp_path)) == 6
        rest = asker_at(endpoint.url, tmp_path, budget=Budget(max_requests=14))
        assert values(rest.ask(questions(20), "ask")) == list(range(20))
        assert (rest.usage.sent, endpoint.n_billed) == (14, 20)
        with pytest.raises(BudgetSpent, match="The budget of 14 requests is spent: 20 of 21"):
            rest.ask(questions(21), "ask")


def test_a_budget_of_tokens_is_not_overshot(tmp_path):
    """A reply takes 50 tokens and could take 100 besides its prompt; twelve are wanted at a time."""
    with running(delay=0.05) as endpoint:
        options = {"params": {"max_tokens": 100}, "concurrency": 12}
        most = sum(asker_at(endpoint.url, tmp_path, **options).judge.estimate(question(10)))
        assert most == 100 + about_tokens("Reply in JSON.") + about_tokens("question 10") + about_tokens(
            json.dumps(Number.model_json_schema())
        )
        asker = asker_at(endpoint.url, tmp_path, budget=Budget(max_tokens=400), **options)
        with pytest.raises(
            BudgetSpent, match=r"of 400 tokens is spent but for 100, and a request may take 1\d\d: 6 of 12"
        ) as caught:
            asker.ask(questions(12), "ask")
        assert "larger --max-tokens goes on" in str(caught.value)
        assert endpoint.n_billed == 6
        assert asker.usage.prompt_tokens + asker.usage.completion_tokens == 300

        # Twelve at a time could take 1,800, and take 600.
        rest = asker_at(endpoint.url, tmp_path / "other", budget=Budget(max_tokens=800), **options)
        assert values(rest.ask(questions(12), "ask")) == list(range(12))


def test_the_cost_is_told_before(tmp_path):
    """3 of 5 questions are kept, one of those is no answer, and one is asked twice: three are to send."""
    options = {"params": {"max_tokens": 100}, "prices": {"input": 1000.0, "output": 2000.0}}
    with running({0: [says("no")]}) as endpoint:
        asker = asker_at(endpoint.url, tmp_path, **options)
        Asker(asker.judge, replies=Replies(tmp_path), tries=1).ask(questions(3), "ask")
        n_sent = len(endpoint.received)
        cost = asker_at(endpoint.url, tmp_path, **options).cost([*questions(5), question(4)])
        assert len(endpoint.received) == n_sent
        unlimited = asker_at(endpoint.url, tmp_path, prices=options["prices"]).cost(questions(5))
    prompt = about_tokens("Reply in JSON.") + 3 + about_tokens(json.dumps(Number.model_json_schema()))
    price = (3 * prompt * 1000 + 300 * 2000) / 1e6
    assert cost.to_dict() == {
        "n_requests": 6,
        "n_to_send": 3,
        "prompt_tokens": 3 * prompt,
        "completion_tokens": 300,
        "price": pytest.approx(price),
    }
    assert (unlimited.n_to_send, unlimited.completion_tokens, unlimited.price) == (5, None, None)
    plain = Asker(FakeJudge(good)).cost(questions(1))
    assert (plain.n_to_send, plain.prompt_tokens, plain.price) == (1, 4 + 3, None)


def test_nobody_waits_for_what_is_not_sent_any_more(tmp_path):
    """Question 0 is told to come back in 60 s; question 1, out meanwhile, meets a refusal."""

    def refuses(handler) -> None:
        time.sleep(0.3)
        status(404)(handler)

    with running({0: [status(503, headers={"Retry-After": "60"})], 1: [refuses]}) as endpoint:
        began = time.monotonic()
        with pytest.raises(JudgeError, match="HTTP 404"):
            asker_at(endpoint.url, tmp_path, concurrency=2).ask(questions(9), "ask")
        assert time.monotonic() - began < 3
        assert len(endpoint.received) == 2


@contextmanager
def asking(endpoint: Endpoint, directory: Path, n: int, concurrency: int) -> Iterator[subprocess.Popen[str]]:
    """A process that asks, which is under way."""
    command = [
        sys.executable,
        "-m",
        "tests.judge.asking_program",
        endpoint.url,
        str(directory),
        str(n),
        str(concurrency),
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True) as process:
        try:
            until(lambda: len(endpoint.received) >= concurrency + 2 or process.poll() is not None, 60)
            yield process
        finally:
            process.kill()


def until(true: Callable[[], bool], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_interrupted_it_keeps_what_is_out(tmp_path):
    with running(delay=0.2) as endpoint:
        with asking(endpoint, tmp_path, 40, 4) as process:
            process.send_signal(signal.SIGINT)
            error = process.communicate(timeout=20)[1]
        n_kept = len(files(tmp_path))
        assert process.returncode == 130
        assert f"Interrupted: {n_kept} of 40 are answered and kept. The same command goes on." in error
        assert "Waiting for what is out" in error
        assert "Traceback" not in error
        assert 6 <= n_kept == endpoint.n_billed == len(endpoint.received) < 40
        rest = asker_at(endpoint.url, tmp_path, concurrency=40)
        assert values(rest.ask(questions(40), "ask")) == list(range(40))
        assert (rest.usage.sent, endpoint.n_billed) == (40 - n_kept, 40)


def test_interrupted_twice_it_ends_at_once(tmp_path):
    slow = {number: [lambda handler: time.sleep(4)] for number in range(2, 40)}
    with running(slow) as endpoint:
        with asking(endpoint, tmp_path, 40, 4) as process:
            process.send_signal(signal.SIGINT)
            time.sleep(0.3)
            assert process.poll() is None
            began = time.monotonic()
            process.send_signal(signal.SIGINT)
            error = process.communicate(timeout=20)[1]
        assert time.monotonic() - began < 2
        assert process.returncode == 130
        assert "Interrupted: 2 of 40 are answered and kept." in error
        assert "Traceback" not in error


def test_killed_only_what_is_not_kept_is_sent_again(tmp_path):
    """What was billed and lost on its way is made up for by the endpoint, which knows the request's key."""
    with running(delay=0.02) as endpoint:
        with asking(endpoint, tmp_path, 300, 4) as process:
            until(lambda: len(endpoint.received) > 40, 20)
            process.kill()
        n_kept = len(files(tmp_path))
        assert 20 < n_kept < 300
        rest = asker_at(endpoint.url, tmp_path, concurrency=40)
        assert values(rest.ask(questions(300), "ask")) == list(range(300))
        assert (rest.usage.sent, rest.usage.kept) == (300 - n_kept, n_kept)
        assert endpoint.n_billed == 300


def test_in_a_notebook_which_has_a_loop_of_its_own(tmp_path):
    async def cell() -> list[int | None]:
        return values(Asker(FakeJudge(good), replies=Replies(tmp_path)).ask(questions(5), "ask"))

    assert asyncio.run(cell()) == [0, 1, 2, 3, 4]


def test_ctrl_c_in_a_notebook_ends_what_runs_beside_it(tmp_path, monkeypatch):
    """The thread that waits for the answers gets the signal, not the one that asks."""
    judge = FakeJudge(good)

    class Pool(ThreadPoolExecutor):
        def submit(self, *arguments):
            running = super().submit(*arguments)
            results = iter([interrupted, running.result])
            return SimpleNamespace(result=lambda: next(results)())

    def interrupted():
        while len(judge.asked) < 8:
            time.sleep(0.002)
        raise KeyboardInterrupt

    monkeypatch.setattr("tc_adapters_lens.judge.asking.ThreadPoolExecutor", Pool)

    async def cell() -> None:
        Asker(judge, replies=Replies(tmp_path)).ask(questions(500), "ask")

    with pytest.raises(KeyboardInterrupt, match=r"Interrupted: \d+ of 500 are answered and kept."):
        asyncio.run(cell())
    assert 8 <= len(judge.asked) < 100
    assert len(files(tmp_path)) == len(judge.asked)
