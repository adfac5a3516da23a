"""Responses sampled from a Hugging Face model: the same tokens for the same settings, wherever the work is taken up.

Token t of prompt i follows from the seed, i, t and the logits it has: which prompts are continued together changes
nothing but the rounding of those.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PretrainedConfig,
    PreTrainedModel,
    TemperatureLogitsWarper,
    TopPLogitsWarper,
)

from tc_adapters_lens.errors import CheckpointError, ConfigError, DataError
from tc_adapters_lens.models.checkpoints import Checkpoint
from tc_adapters_lens.models.json_files import first_line
from tc_adapters_lens.models.pair import hf_model
from tc_adapters_lens.models.pair_checks import checkpoint_checks

LONGEST_DEFAULT = 2048  # new tokens
COOLEST = 1e-4  # below it logits divided by the temperature leave float32's range
_BLOCK = 256  # random numbers of a prompt that are made at a time


@dataclass(frozen=True)
class Sampling:
    """How responses are drawn.

    Args:
        temperature: divides the logits; 0 takes the likeliest token every time.
        top_p: draw among the fewest tokens that together have this probability.
        max_new_tokens: a response is cut there; None: what the longest prompt leaves of the context, at most 2,048.
        seed: of all draws.
        batch_size: prompts that are continued together. It changes nothing but the rounding of logits.
    Raises:
        ConfigError: a value out of range.
    """

    temperature: float = 0.7
    top_p: float = 1.0
    max_new_tokens: int | None = None
    seed: int = 42
    batch_size: int = 16

    def __post_init__(self) -> None:
        if not (self.temperature == 0 or (self.temperature >= COOLEST and math.isfinite(self.temperature))):
            raise ConfigError(f"temperature must be 0 (greedy) or at least {COOLEST}. Got {self.temperature}.")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p must be above 0 and at most 1. Got {self.top_p}.")
        for name, least in (("max_new_tokens", 1), ("seed", 0), ("batch_size", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ConfigError(f"{name} must be at least {least}. Got {value}.")


class Sampled(NamedTuple):
    """One prompt and its response.

    input_ids: prompt and response, with the end token that it reached.
    prompt_length: how many of them are the prompt.
    finished: whether the response reached an end token.
    """

    input_ids: list[int]
    prompt_length: int
    finished: bool


def load_target(checkpoint: Checkpoint, dtype: torch.dtype, device: str | torch.device) -> PreTrainedModel:
    """The model to sample from, in evaluation mode, with attention that computes all its configuration asks for.

    A model in memory is moved and cast itself.

    Raises:
        CheckpointError: of an unsupported kind, incomplete, or with NaN weights.
    """
    for check in checkpoint_checks("target", checkpoint):
        check.run()
    model = hf_model(checkpoint, dtype)
    if getattr(model.config, "attn_logit_softcapping", None):
        model.set_attn_implementation("eager")  # torch's fused attention leaves the soft cap out
    return model.to(device, dtype).eval()  # pyright: ignore[reportArgumentType, reportCallIssue]


def end_tokens(checkpoint: Checkpoint) -> list[int]:
    """Tokens that end a response: of the generation configuration, else of the tokenizer; sorted.

    Raises:
        CheckpointError: neither names one of the vocabulary, or generation_config.json cannot be read.
    """
    named: Any = _generation_end(checkpoint)
    if named is None and checkpoint.tokenizer is not None:
        named = checkpoint.tokenizer.eos_token_id
    found: list[int] = named if isinstance(named, list) else [] if named is None else [named]
    usable = sorted({token for token in found if 0 <= token < checkpoint.config.vocab_size})
    if not usable:
        raise CheckpointError(
            f"{checkpoint.name}: an end token must be known to sample from it. Got {named} from generation_config.json "
            "and tokenizer; set eos_token_id in generation_config.json."
        )
    return usable


def _generation_end(checkpoint: Checkpoint) -> int | list[int] | None:
    if checkpoint.model is not None and checkpoint.model.generation_config is not None:
        return checkpoint.model.generation_config.eos_token_id
    if checkpoint.directory is None or not (checkpoint.directory / "generation_config.json").is_file():
        return getattr(checkpoint.config, "eos_token_id", None)
    try:
        return GenerationConfig.from_pretrained(checkpoint.directory, local_files_only=True).eos_token_id
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(f"{checkpoint.name}: generation_config.json: {first_line(error)}") from error


def fit(settings: Sampling, prompts: Sequence[Sequence[int]], config: PretrainedConfig) -> Sampling:
    """The settings with `max_new_tokens` as a number, once prompts and model are known to suit each other.

    Raises:
        DataError: no prompts, an empty one, a token outside the vocabulary, or one that leaves too little room.
    """
    if not prompts:
        raise DataError("there must be a prompt to sample from. Got none.")
    for number, prompt in enumerate(prompts):
        if not prompt:
            raise DataError(f"a prompt must have tokens. Got none in prompt {number}.")
        if not 0 <= min(prompt) <= max(prompt) < config.vocab_size:
            worst = max(prompt) if max(prompt) >= config.vocab_size else min(prompt)
            raise DataError(
                f"token ids must be below the vocabulary of {config.vocab_size}. Got {worst} in prompt {number}; "
                "use the target's own tokenizer."
            )
    longest = max(range(len(prompts)), key=lambda number: len(prompts[number]))
    length = len(prompts[longest])
    context = getattr(config, "max_position_embeddings", None) or length + (settings.max_new_tokens or LONGEST_DEFAULT)
    room = context - length
    wanted = settings.max_new_tokens or min(LONGEST_DEFAULT, max(room, 1))
    if wanted > room:
        raise DataError(
            f"prompt and response must fit into the context of {context} tokens. Got {length} tokens in prompt "
            f"{longest}, which leaves {max(room, 0)}, and max_new_tokens {wanted}; shorten one of them."
        )
    return replace(settings, max_new_tokens=wanted)


def sample(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    settings: Sampling,
    *,
    end_tokens: Sequence[int],
    start: int = 0,
    on_step: Callable[[int], None] | None = None,
) -> Iterator[Sampled]:
    """Continue prompts with Hugging Face's `generate`, a batch at a time, in order.

    Nothing of the model's own generation configuration is used, and torch's random state neither used nor changed.

    Args:
        model: a causal language model in evaluation mode, as `load_target` gives it.
        prompts: token ids.
        settings: how to draw.
        end_tokens: a response ends with the first of these.
        start: the first prompt to continue; batches are counted from there.
        on_step: called at every step of a batch with the number of steps so far.
    Raises:
        DataError: as in `fit`.
        CheckpointError: the model's logits are not numbers (while iterating).
    """
    settings = fit(settings, prompts, model.config)

    def rows() -> Iterator[Sampled]:
        for first in range(start, len(prompts), settings.batch_size):
            batch = prompts[first : first + settings.batch_size]
            steps = [_Watch(first, on_step), *_draws(settings, range(first, first + len(batch)), model.device)]
            yield from _sample_batch(model, batch, settings, end_tokens, LogitsProcessorList(steps))

    return rows()


def _sample_batch(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    settings: Sampling,
    end_tokens: Sequence[int],
    steps: LogitsProcessorList,
) -> Iterator[Sampled]:
    width = max(map(len, prompts))
    padding = [width - len(prompt) for prompt in prompts]
    fill = end_tokens[0]  # never looked at: masked on the left, cut off on the right
    tokens = torch.tensor([[fill] * n + list(prompt) for n, prompt in zip(padding, prompts, strict=True)])
    mask = torch.tensor([[0] * n + [1] * (width - n) for n in padding])
    generation = GenerationConfig(
        max_new_tokens=settings.max_new_tokens,
        eos_token_id=list(end_tokens),
        pad_token_id=fill,
        do_sample=False,  # the last of the steps leaves one token only
    )
    output = model.generate(  # pyright: ignore[reportCallIssue]
        tokens.to(model.device),
        attention_mask=mask.to(model.device),
        generation_config=generation,
        use_model_defaults=False,
        logits_processor=steps,
    )
    ends = set(end_tokens)
    for prompt, response in zip(prompts, output[:, width:].tolist(), strict=True):
        end = next((place for place, token in enumerate(response) if token in ends), None)
        response = response if end is None else response[: end + 1]
        yield Sampled([*prompt, *response], len(prompt), end is not None)


class _Watch(LogitsProcessor):
    """Sees the logits of every step before anything is done to them."""

    def __init__(self, first: int, on_step: Callable[[int], None] | None):
        self.first, self.on_step, self.n_steps = first, on_step, 0

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        usable = scores.amax(-1).isfinite()  # NaN wins every maximum
        if not usable.all():
            number = self.first + int((~usable).nonzero()[0])
            raise CheckpointError(
                "the target's next-token probabilities must be numbers. Got NaN or infinite logits in prompt "
                f"{number} after {self.n_steps} new tokens; use another number type (--dtype) or checkpoint."
            )
        self.n_steps += 1
        if self.on_step is not None:
            self.on_step(self.n_steps)
        return scores


def _draws(settings: Sampling, numbers: range, device: torch.device) -> list[LogitsProcessor]:
    """What is done to logits before their maximum is taken, for the prompts of these numbers."""
    if not settings.temperature:
        return []
    return [
        TemperatureLogitsWarper(float(settings.temperature)),
        *([TopPLogitsWarper(settings.top_p)] if settings.top_p < 1 else []),
        _Draw(settings.seed, numbers, device),
    ]


class _Draw(LogitsProcessor):
    """Draws a token for every prompt and gives all others minus infinity.

    The token is the first up to which the probabilities sum to more than a number that is uniform in [0, 1), of a
    stream of the prompt's own.
    """

    def __init__(self, seed: int, numbers: range, device: torch.device):
        self.streams = [np.random.Generator(np.random.PCG64([seed, number])) for number in numbers]
        self.device = torch.device("cpu") if device.type == "mps" else device  # which has no float64
        self.n_steps = 0

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        place = self.n_steps % _BLOCK
        if place == 0:
            uniform = np.stack([stream.random(_BLOCK) for stream in self.streams], axis=1)
            self.uniform = torch.from_numpy(uniform).to(self.device)
        self.n_steps += 1
        sums = scores.softmax(-1).to(self.device).to(torch.float64).cumsum(-1)
        whole = sums[:, -1:]
        aim = torch.minimum(self.uniform[place, :, None] * whole, whole.nextafter(torch.zeros_like(whole)))
        token = torch.searchsorted(sums, aim, right=True).to(scores.device)
        return torch.full_like(scores, -torch.inf).scatter_(-1, token, 0.0)
