"""A judge without a network: rules on the facts that a prompt is written from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from tc_adapters_lens.judge.request import Reply, Request, Spend

__all__ = ["RulesJudge"]


class RulesJudge:
    """Answers by rules, the same every time, at no cost."""

    concurrency = 1
    pays = False

    @property
    def identity(self) -> Mapping[str, Any]:
        return {"kind": "rules"}

    async def reply(self, request: Request, key: str, spend: Spend) -> Reply:
        raise NotImplementedError(json.dumps(request.task))

    async def close(self) -> None:
        pass
