"""A language model behind an OpenAI-compatible endpoint, asked until it replies."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import json
import logging
import random
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tc_adapters_lens.errors import JudgeError, MissingExtraError
from tc_adapters_lens.integrations.openai.outcomes import Completion, Failure, failure_of_status, read_completion
from tc_adapters_lens.integrations.openai.secrets import scrub
from tc_adapters_lens.judge.budget import about_tokens
from tc_adapters_lens.judge.endpoint_config import EndpointConfig
from tc_adapters_lens.judge.replies import schema_of
from tc_adapters_lens.judge.request import Reply, Request, Spend

if TYPE_CHECKING:
    import openai

__all__ = ["EndpointJudge", "require_openai"]

_LONGEST_BACKOFF = 60.0
_LONGEST_WAIT = 600.0
"""Seconds. An endpoint that asks to wait longer is given up on for now."""
_UNLIMITED_REPLY = 1024
"""Tokens set aside for a reply that nothing limits."""

logger = logging.getLogger(__name__)


def require_openai() -> None:
    """Raises MissingExtraError: the openai client is not installed."""
    if importlib.util.find_spec("openai") is None:
        raise MissingExtraError(
            'Asking an endpoint needs openai, which is not installed. Run pip install "tc-adapters-lens[judge]"'
        )


class EndpointJudge:
    """Asks over HTTP, and sends again whatever may go well another time.

    When the endpoint says that it has had too much, nobody sends until its time is over. That counts as a failure of a
    request only where nobody got a reply since the failure before, so that a low rate limit is slow but no error.

    Args:
        config: the endpoint.
        key: sent as its bearer token; None where it needs none.
        backoff: seconds to wait after a first failure, about; doubled after each one more.
    """

    pays = True

    def __init__(self, config: EndpointConfig, key: str | None, *, backoff: float = 1.0) -> None:
        self._config = config
        self._key = key
        self._backoff = backoff
        self._n_replies = 0
        self._tokens_per_estimated = 1.0
        self._said: set[str] = set()
        self._client: openai.AsyncOpenAI | None = None
        self._closed_until = 0.0
        self._ended = asyncio.Event()

    @property
    def identity(self) -> Mapping[str, Any]:
        return self._config.identity

    @property
    def concurrency(self) -> int:
        return self._config.concurrency

    def estimate(self, request: Request) -> tuple[int, int | None]:
        """See `Billed`. Follows what the endpoint has counted so far."""
        estimated = _estimated_prompt(request) * self._tokens_per_estimated
        return round(estimated), self._config.most_completion_tokens

    def price(self, prompt_tokens: int, completion_tokens: int) -> float | None:
        """See `Billed`."""
        prices = self._config.prices
        return None if prices is None else (prompt_tokens * prices.input + completion_tokens * prices.output) / 1e6

    async def reply(self, request: Request, key: str, spend: Spend) -> Reply:
        """See `Judge`."""
        n_retries, n_replies = 0, self._n_replies
        while True:
            await self._opening()
            prompt, completion = self.estimate(request)
            spend(prompt + (completion or _UNLIMITED_REPLY))
            outcome = await self._send(request, key)
            if isinstance(outcome, Completion):
                return self._reply(request, outcome)
            words = scrub(outcome.words, self._key)
            if outcome.final:
                raise JudgeError(self._refusal(words))
            n_retries += not (outcome.limited and self._n_replies > n_replies)
            n_replies = self._n_replies
            if n_retries > self._config.retries:
                raise JudgeError(
                    f"{self._config.base_url} did not reply in {n_retries} attempts. The last failure was: {words}."
                )
            self._say(words)
            await self._wait(outcome, n_retries, words)

    def stop_waiting(self) -> None:
        """See `Waits`."""
        self._ended.set()

    async def close(self) -> None:
        """See `Judge`."""
        client, self._client = self._client, None
        self._ended = asyncio.Event()
        self._closed_until = 0.0
        if client is not None:
            await client.close()

    async def _send(self, request: Request, key: str) -> Completion | Failure:
        """Never raises for what the endpoint does, so that no exception of the client, with its headers, gets out."""
        import openai

        try:
            sending = self._connected().chat.completions.with_raw_response.create(
                model=self._config.model,
                messages=_messages(request),
                extra_headers={"Idempotency-Key": key},
                extra_body={**self._response_format(request), **self._config.params},
            )
            # the client's own timeout is of each read, which a reply that comes byte by byte never exceeds
            response = await asyncio.wait_for(sending, self._config.timeout)
            return read_completion(response.http_response.text)
        except (asyncio.TimeoutError, openai.APITimeoutError):
            return Failure(f"no reply within {self._config.timeout:g} s")
        except openai.APIStatusError as error:
            return failure_of_status(error.status_code, error.response.headers, error.response.text)
        except openai.APIError as error:
            cause = error.__cause__ or error
            return Failure(f"{type(cause).__name__}: {' '.join(str(cause).split())}")

    def _connected(self) -> openai.AsyncOpenAI:
        if self._client is None:
            import openai

            self._client = openai.AsyncOpenAI(
                api_key=self._key or "none",
                base_url=self._config.base_url,
                max_retries=0,
                timeout=self._config.timeout,
            )
        return self._client

    def _response_format(self, request: Request) -> dict[str, Any]:
        kind = self._config.response_format
        if kind == "none":
            return {}
        if kind == "json_object":
            return {"response_format": {"type": kind}}
        schema = {"name": request.form.__name__, "schema": schema_of(request.form), "strict": True}
        return {"response_format": {"type": kind, "json_schema": schema}}

    def _reply(self, request: Request, completion: Completion) -> Reply:
        self._n_replies += 1
        if completion.cut:
            self._say("a reply ended at its limit of tokens; if many do, raise max_tokens in the judge's params")
        estimated = _estimated_prompt(request)
        counted = completion.prompt_tokens
        if counted:
            self._tokens_per_estimated += (counted / estimated - self._tokens_per_estimated) / min(self._n_replies, 50)
        return Reply(
            text=completion.text,
            prompt_tokens=estimated if counted is None else counted,
            completion_tokens=(
                about_tokens(completion.text) if completion.completion_tokens is None else completion.completion_tokens
            ),
        )

    async def _wait(self, failure: Failure, n_retries: int, words: str) -> None:
        """Until it may be sent again, as far as this one request goes; everybody's waiting is in `_opening`."""
        seconds = min(self._backoff * 2 ** max(n_retries - 1, 0), _LONGEST_BACKOFF) * random.uniform(0.75, 1.25)
        seconds = failure.wait or seconds
        if seconds > _LONGEST_WAIT:
            raise JudgeError(f"{self._config.base_url} asks to wait for {seconds:,.0f} s: {words}.")
        if failure.limited:
            self._closed_until = max(self._closed_until, asyncio.get_running_loop().time() + seconds)
        else:
            await self._pause(seconds)

    async def _opening(self) -> None:
        """Returns once the endpoint takes requests again, or nothing more shall be sent."""
        loop = asyncio.get_running_loop()
        while not self._ended.is_set() and (left := self._closed_until - loop.time()) > 0:
            await self._pause(left * random.uniform(1, 1.1))

    async def _pause(self, seconds: float) -> None:
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._ended.wait(), seconds)

    def _refusal(self, words: str) -> str:
        config = self._config
        place = f"{config.base_url} does not answer for {config.model}"
        if words.startswith(("HTTP 401", "HTTP 403")):
            return f"{place}: {words}. {config.api_key_env} must hold a key that is good there."
        if words.startswith("HTTP 404"):
            return f"{place}: {words}. base_url must end where /chat/completions follows, and the model must be there."
        about_format = words.startswith(("HTTP 400", "HTTP 422")) and any(
            name in words.lower() for name in ("response_format", "response format", "json_schema")
        )
        if about_format and config.response_format != "none":
            other = "json_object" if config.response_format == "json_schema" else "none"
            return f"{place}: {words}. Set `response_format: {other}` in the judge's YAML file, given as --judge."
        return f"{place}: {words}."

    def _say(self, words: str) -> None:
        """Log something once: of many requests at a time many fail alike."""
        if words not in self._said:
            self._said.add(words)
            logger.warning("%s: %s.", self._config.base_url, words)


def _messages(request: Request) -> list[Any]:
    user = {"role": "user", "content": request.user}
    return [{"role": "system", "content": request.system}, user] if request.system else [user]


def _estimated_prompt(request: Request) -> int:
    """Tokens of the prompt, before the endpoint has counted any; the schema is counted by most."""
    return about_tokens(request.system) + about_tokens(request.user) + about_tokens(json.dumps(schema_of(request.form)))
