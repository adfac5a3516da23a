"""Models that lm-eval's evaluator runs: a model in this process, or one that a server holds."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from aiohttp import ClientError
from lm_eval.api.registry import register_model
from lm_eval.models import huggingface, openai_completions
from lm_eval.models.utils import has_bos_prefix
from requests import RequestException
from transformers import GenerationConfig

from tc_adapters_lens.errors import RunError
from tc_adapters_lens.evaluation.answers import opened_thinking

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance
    from torch import Tensor

__all__ = ["AdaptersLM", "ServedLM"]

# The decorator that registers lm-eval's classes hides them from type checkers.
_HFLM: Any = huggingface.HFLM
_LocalCompletionsAPI: Any = openai_completions.LocalCompletionsAPI


class AdaptersLM(_HFLM):
    """lm-eval's HFLM for reasoning models. Where this module is imported, lm-eval knows it as `tc-adapters`.

    A response begins with the think block that its prompt opened, so that tasks can tell thinking that never ends.
    Draws are made from all of the vocabulary: of the model's generation configuration only the end tokens are used.
    The repeats of a problem are different draws from torch's random state.

    Args:
        pretrained: a model, or a directory that Hugging Face's `from_pretrained` reads.
        tokenizer: with a model, its tokenizer.
        chat_template: Jinja text in place of the tokenizer's.
        **options: of HFLM.
    """

    def __init__(self, pretrained: Any, tokenizer: Any = None, chat_template: str | None = None, **options: Any):
        with _without("lm_eval.models.huggingface", "`pretrained` model kwarg", "Passed an already-initialized model"):
            super().__init__(pretrained, tokenizer=tokenizer, **{"backend": "causal", **options})
        if chat_template is not None:
            self.tokenizer.chat_template = chat_template

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        return _with_thinking(requests, super().generate_until(requests, disable_tqdm))

    def _model_generate(self, context: Tensor, max_length: int, stop: list[str], **options: Any) -> Tensor:
        own = self.model.generation_config
        config = GenerationConfig(
            eos_token_id=self.eot_token_id if own is None or own.eos_token_id is None else own.eos_token_id,
            **({"top_k": 0} if options.get("do_sample") else {}),
        )
        options |= {"generation_config": config, "use_model_defaults": False}
        return super()._model_generate(context, max_length, stop, **options)


class ServedLM(_LocalCompletionsAPI):
    """lm-eval's client of an OpenAI-compatible completions server, such as vLLM serving an exported model.

    Prompts are written and split into tokens here, so they are those of `AdaptersLM`. The repeats of a prompt are sent
    with different seeds: lm-eval's own client sends one seed with every request, for which servers such as vLLM answer
    with the same response every time.

    Args:
        base_url: of the server's completions, as http://localhost:8000/v1/completions.
        model: the name it is served under.
        tokenizer: directory of its tokenizer.
        chat_template: Jinja text in place of the tokenizer's.
        seed: of the first response to each prompt; the others count on from there.
        **options: of LocalCompletionsAPI.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        tokenizer: str,
        chat_template: str | None = None,
        seed: int = 42,
        **options: Any,
    ):
        super().__init__(
            base_url=base_url,
            model=model,
            tokenizer=tokenizer,
            tokenizer_backend="huggingface",
            tokenized_requests=True,
            seed=seed,
            **options,
        )
        if chat_template is not None:
            self.tokenizer.chat_template = chat_template
        self._sent: Counter[str] = Counter()

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Raises RunError: the server stopped answering, or refused, three times."""
        why = ""
        with (
            _without("asyncio", "Task exception was never retrieved"),
            _without("lm_eval.models.api_models", "Exception:"),  # it shows the key that the request was sent with
        ):
            try:
                return _with_thinking(requests, super().generate_until(requests, disable_tqdm))
            except (RequestException, ClientError, asyncio.TimeoutError) as error:
                why = " ".join(str(error).split())[:300] or type(error).__name__
            gc.collect()  # the other requests, each of which has a word on its failure
        raise RunError(f"The server stopped answering: {why}. Start it and this command again.")

    def tok_encode(self, string: Any, **options: Any) -> Any:
        first = string if isinstance(string, str) else string[0]
        begins = has_bos_prefix(first, self.tokenizer.bos_token)
        return super().tok_encode(string, **{**options, "add_special_tokens": not begins})

    def _create_payload(self, messages: Any, generate: bool = False, seed: int = 1234, **options: Any) -> dict:
        prompt = json.dumps(messages)
        payload = super()._create_payload(messages, generate=generate, seed=seed + self._sent[prompt], **options)
        self._sent[prompt] += 1
        return payload


register_model("tc-adapters")(AdaptersLM)
register_model("tc-adapters-server")(ServedLM)


def _with_thinking(requests: Sequence[Instance], responses: Sequence[str]) -> list[str]:
    return [opened_thinking(request.args[0]) + text for request, text in zip(requests, responses, strict=True)]


@contextmanager
def _without(name: str, *messages: str) -> Iterator[None]:
    """Messages of this logger that begin so are not logged."""
    logger = logging.getLogger(name)

    def passes(record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith(messages)

    logger.addFilter(passes)
    try:
        yield
    finally:
        logger.removeFilter(passes)
