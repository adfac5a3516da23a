"""Graphs from prompts: traced where they are not there yet, then written; one that fails does not stop the others."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
import xxhash
from safetensors import SafetensorError
from tqdm.auto import tqdm

from tc_adapters_lens.cli.graph_output import GraphView, known, there, write
from tc_adapters_lens.cli.graph_prompts import GraphPrompt
from tc_adapters_lens.core.relp import Rule
from tc_adapters_lens.errors import CheckpointError, ConfigError, GraphError
from tc_adapters_lens.evaluation.record import versions
from tc_adapters_lens.integrations.circuit_tracer import targets as graph_targets
from tc_adapters_lens.integrations.circuit_tracer.graph_files import check_slug
from tc_adapters_lens.integrations.circuit_tracer.replacement import AdapterReplacementModel, Sampled
from tc_adapters_lens.integrations.circuit_tracer.sparse_graph import SparseGraph
from tc_adapters_lens.integrations.circuit_tracer.summary import Words
from tc_adapters_lens.integrations.circuit_tracer.targets import GraphTargets
from tc_adapters_lens.integrations.circuit_tracer.trace import trace
from tc_adapters_lens.models.atomic import writing
from tc_adapters_lens.models.json_files import first_line
from tc_adapters_lens.models.tensor_files import open_safetensors

__all__ = ["GraphOutcome", "GraphSettings", "make_graphs", "slug_of"]


@dataclass(frozen=True)
class GraphSettings:
    """What is traced.

    sampled, rule, zero_first: as `replacement_model` takes them; the model is made with them.
    target_tokens: texts, or #ID; contrast: two of them; direction: a safetensors file with one vector. At most one of
        the three; None of them: the most probable tokens.
    max_logits, logit_share, max_features, influence_share, keep: as `trace` takes them.
    """

    sampled: Sampled
    rule: Rule
    zero_first: bool
    target_tokens: tuple[str, ...] | None = None
    contrast: tuple[str, str] | None = None
    direction: str | None = None
    max_logits: int = 10
    logit_share: float = 0.95
    max_features: int | None = None
    influence_share: float = 1.0
    keep: float = 0.999

    def targets(self, model: AdapterReplacementModel) -> GraphTargets | None:
        """In the words of `trace`.

        Raises:
            GraphError: not one token, or not a direction of the model's width.
        """
        if self.target_tokens is not None:
            return graph_targets.tokens(model, [_token(text) for text in self.target_tokens])
        if self.contrast is not None:
            return graph_targets.contrast(model, *map(_token, self.contrast))
        if self.direction is not None:
            return graph_targets.direction(model, Path(self.direction).stem, _vector(Path(self.direction)))
        return None


class GraphOutcome(NamedTuple):
    """What became of a prompt.

    slug: the graph's name.
    made: whether anything was written; False where all of it was there, or it failed.
    summary: as `summary.json` has it; None where it failed.
    failure: why there is no graph, in one line.
    """

    slug: str
    made: bool
    summary: dict[str, Any] | None
    failure: str = ""


def make_graphs(
    model: AdapterReplacementModel,
    prompts: list[GraphPrompt],
    settings: GraphSettings,
    view: GraphView,
    words: Words,
    out: Path,
    about: Mapping[str, Any],
    name: str | None = None,
) -> Iterator[GraphOutcome]:
    """Make every prompt's graph: `OUT/SLUG.json`, and its summary, pictures and edges in `OUT/SLUG/`.

    A graph that is there is taken as it is; one with another view, or other words on features, is pruned anew, what was
    pinned on the page stays. A prompt that cannot be traced is an outcome like others.

    Args:
        about: pair and adapters, which a graph is of.
        name: the graph's name, of one prompt; None: from the prompt.
    Raises:
        ConfigError: a name for several prompts.
        GraphError: targets that are none, or writing fails.
    """
    if name is not None and len(prompts) > 1:
        raise ConfigError(f"--name must be of one graph. Got {len(prompts)} prompts; leave it out.")
    targets = settings.targets(model)
    with writing(out, GraphError):
        out.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=out).close()
    for number, prompt in enumerate(prompts):
        key = _key(prompt, settings, about)
        slug = name or slug_of(prompt, key)
        found = there(out, slug, key, view, words)
        if found is not None:
            yield GraphOutcome(slug, False, found)
            continue
        try:
            graph = known(out, slug, key, may_replace=name is None)
            if graph is None:
                info = {"key": key, **asdict(settings), "source": prompt.source, **about, "versions": versions()}
                place = f"{number + 1} of {len(prompts)}: " if len(prompts) > 1 else ""
                graph = _traced(model, prompt, targets, settings, info, f"{place}{slug}")
        except GraphError as error:
            yield GraphOutcome(slug, False, None, str(error))
            continue
        yield GraphOutcome(slug, True, write(graph, slug, view, words, out))


def slug_of(prompt: GraphPrompt, key: str) -> str:
    """A graph's name: the same for the same prompt and settings, and no other."""
    return check_slug(f"{prompt.name}-{key[:8]}")


def _key(prompt: GraphPrompt, settings: GraphSettings, about: Mapping[str, Any]) -> str:
    words = asdict(settings)
    if settings.direction is not None:
        path = Path(settings.direction)
        words["direction"] = [path.stem, _vector(path).tolist()]
    content = json.dumps([prompt.tokens, words, dict(about)], sort_keys=True)
    return xxhash.xxh3_128_hexdigest(content.encode())


def _traced(
    model: AdapterReplacementModel,
    prompt: GraphPrompt,
    targets: GraphTargets | None,
    settings: GraphSettings,
    info: Mapping[str, Any],
    title: str,
) -> SparseGraph:
    with tqdm(total=0, desc=title, unit=" nodes", disable=None, leave=False) as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        try:
            return trace(
                torch.tensor(prompt.tokens, dtype=torch.int64),
                model,
                targets=targets,
                max_n_logits=min(settings.max_logits, model.cfg.d_vocab),
                desired_logit_prob=settings.logit_share,
                max_feature_nodes=settings.max_features,
                influence_share=settings.influence_share,
                keep=settings.keep,
                info=info,
                progress=progress,
            )
        except torch.OutOfMemoryError as error:
            raise GraphError(
                f"A prompt's graph must fit into the memory of {model.cfg.device}. Got {len(prompt.tokens):,} tokens, "
                "which do not fit; take a shorter prompt, --dtype bfloat16, or --device cpu."
            ) from error


def _token(text: str) -> str | int:
    return int(text[1:]) if text.startswith("#") and text[1:].isdecimal() else text


def _vector(path: Path) -> torch.Tensor:
    """The one tensor of a file."""
    try:
        stored = open_safetensors(path.expanduser())
        names = list(stored.keys())
        if len(names) == 1:
            return stored.get_tensor(names[0]).float()
    except (CheckpointError, SafetensorError) as error:
        raise GraphError(f"--direction must be a safetensors file. Got {path}: {first_line(error)}.") from error
    raise GraphError(f"--direction must be a file with one tensor. Got {path} with {len(names)}.")
