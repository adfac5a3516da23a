"""Questions that `endpoint_server` answers, and who asks them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tc_adapters_lens.integrations.openai.judge import EndpointJudge
from tc_adapters_lens.judge.asking import Asker
from tc_adapters_lens.judge.budget import Budget
from tc_adapters_lens.judge.endpoint_config import endpoint_config
from tc_adapters_lens.judge.replies import Replies
from tc_adapters_lens.judge.request import Form, Request

KEY = "sk-proj-Zm9vYmFyYmF6cXV4-0123456789abcdef"


class Number(Form):
    value: int


def question(number: int) -> Request:
    return Request("classify", "Reply in JSON.", f"question {number}", Number, {"number": number})


def questions(n: int) -> list[Request]:
    return [question(number) for number in range(n)]


def values(answers: list[Any]) -> list[int | None]:
    return [answer and answer.value for answer in answers]


def judge_at(url: str, key: str | None = KEY, **options: Any) -> EndpointJudge:
    """A judge that does not wait long."""
    of_endpoint = {"model": "some-model", "base_url": url, "timeout": 5.0, "retries": 3, **options}
    return EndpointJudge(endpoint_config(None, of_endpoint, {}), key, backoff=0.01)


def asker_at(url: str, directory: Path, *, budget: Budget | None = None, repeat: int = 0, **options: Any) -> Asker:
    return Asker(judge_at(url, **options), replies=Replies(directory), budget=budget, repeat=repeat)
