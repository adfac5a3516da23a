"""A judge without a network: rules on the facts that a prompt is written from."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from tc_adapters_lens.judge.request import Reply, Request, Spend, Task
from tc_adapters_lens.judge.rules_classify import classify_by_rules, rules_digest
from tc_adapters_lens.judge.rules_detect import describe_by_rules, detect_by_rules

__all__ = ["RulesJudge"]

_ANSWERS: dict[Task, Callable[[Mapping[str, Any]], Mapping[str, Any]]] = {
    "classify": classify_by_rules,
    "describe": describe_by_rules,
    "detect": detect_by_rules,
}


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
        return Reply(json.dumps(_ANSWERS[request.task](request.facts), ensure_ascii=False))

    async def close(self) -> None:
        """There is nothing to give back."""
