"""A judge without a network: rules on the facts that a prompt is written from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from tc_adapters_lens.judge.request import Reply, Request, Spend, Task
from tc_adapters_lens.judge.rules_classify import classify_by_rules, rules_digest

__all__ = ["RulesJudge"]

_REPLIES: dict[Task, Callable[[Mapping[str, Any]], str]] = {"classify": classify_by_rules}


class RulesJudge:
    """Answers by rules, the same every time, at no cost."""

    concurrency = 1
    pays = False

    @property
    def identity(self) -> Mapping[str, Any]:
        return {"kind": "rules", "sha256": rules_digest()}

    async def reply(self, request: Request, key: str, spend: Spend) -> Reply:
        """The answer as JSON.

        Raises:
            JudgeError: there are no rules for what is asked.
        """
        return Reply(_REPLIES[request.task](request.facts))

    async def close(self) -> None:
        """There is nothing to give back."""
