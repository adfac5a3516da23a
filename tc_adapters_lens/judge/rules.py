"""A judge without a network: rules on the facts that a prompt is written from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from tc_adapters_lens.judge.request import Reply, Request, Spend
from tc_adapters_lens.judge.rules_detect import describe_by_rules, detect_by_rules

__all__ = ["RulesJudge"]


class RulesJudge:
    """Answers by rules, the same every time, at no cost."""

    concurrency = 1
    pays = False

    @property
    def identity(self) -> Mapping[str, Any]:
        return {"kind": "rules"}

    async def reply(self, request: Request, key: str, spend: Spend) -> Reply:
        if request.task == "describe":
            return Reply(describe_by_rules(request.facts))
        if request.task == "detect":
            return Reply(detect_by_rules(request.facts))
        raise NotImplementedError(json.dumps(request.task))

    async def close(self) -> None:
        pass
