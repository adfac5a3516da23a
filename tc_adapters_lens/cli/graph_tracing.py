"""Graphs from prompts to files: traced, pruned, summed up, drawn; what is there already is not made again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import xxhash
from safetensors import SafetensorError
from tqdm.auto import tqdm

from tc_adapters_lens.cli.graph_prompts import GraphPrompt
from tc_adapters_lens.core.relp import Rule
from tc_adapters_lens.errors import CheckpointError, ConfigError, GraphError
from tc_adapters_lens.evaluation.record import versions
from tc_adapters_lens.integrations.circuit_tracer import targets as graph_targets
from tc_adapters_lens.integrations.circuit_tracer.graph_files import check_slug, write_graph_files
from tc_adapters_lens.integrations.circuit_tracer.prune import prune
from tc_adapters_lens.integrations.circuit_tracer.replacement import AdapterReplacementModel, Sampled
from tc_adapters_lens.integrations.circuit_tracer.sparse_graph import GRAPH_FILE, SparseGraph
from tc_adapters_lens.integrations.circuit_tracer.summary import Words, summarise
from tc_adapters_lens.integrations.circuit_tracer.targets import GraphTargets
from tc_adapters_lens.integrations.circuit_tracer.trace import trace
from tc_adapters_lens.integrations.circuit_tracer.words import DecoderWords
from tc_adapters_lens.models.atomic import atomic_file, write_json
from tc_adapters_lens.models.tensor_files import first_line, open_safetensors
from tc_adapters_lens.report.graph_picture import draw_graph

__all__ = ["GraphSettings", "GraphView", "make_graphs", "slug_of"]

SUMMARY_FILE = "summary.json"
PICTURES = ("graph.svg", "graph.png")


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
    keep: float = 0.9999

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


@dataclass(frozen=True)
class GraphView:
    """What of a graph the page and the picture show: thresholds as circuit-tracer has them, and the most links."""

    node_threshold: float
    edge_threshold: float
    most_links: int


def make_graphs(
    model: AdapterReplacementModel,
    prompts: list[GraphPrompt],
    settings: GraphSettings,
    view: GraphView,
    words: Words,
    out: Path,
    about: Mapping[str, Any],
    name: str | None = None,
) -> list[dict[str, Any]]:
    """Make every prompt's graph: `OUT/SLUG.json`, and its summary, pictures and edges in `OUT/SLUG/`.

    A graph that is there is taken as it is; one with another view is pruned anew, what was pinned on the page stays.

    Args:
        about: pair and adapters, which a graph is of.
        name: the graph's name, of one prompt; None: from the prompt.
    Returns:
        Their summaries, each with "slug" and "made".
    Raises:
        GraphError: a graph of that name is of something else, or whatever `trace` objects to.
    """
    if name is not None and len(prompts) > 1:
        raise ConfigError(f"--name must be of one graph. Got {len(prompts)} prompts; leave it out.")
    targets = settings.targets(model)
    found = []
    for number, prompt in enumerate(prompts):
        key = _key(prompt, settings, about)
        slug = check_slug(name) if name is not None else slug_of(prompt, key)
        summary = _there(out, slug, key, view)
        made = summary is None
        if summary is None:
            graph = _known(out / slug, key)
            if graph is None:
                info = {"key": key, **asdict(settings), "source": prompt.source, **about, "versions": versions()}
                place = f"{number + 1} of {len(prompts)}: " if len(prompts) > 1 else ""
                graph = _traced(model, prompt, targets, settings, info, f"{place}{slug}")
                graph.save(out / slug)
            summary = _write(graph, slug, view, words, out)
        found.append({"slug": slug, "made": made, **summary})
    return found


def slug_of(prompt: GraphPrompt, key: str) -> str:
    """A graph's name: the same for the same prompt and settings, and no other."""
    return check_slug(f"{prompt.name}-{key[:8]}")


def _key(prompt: GraphPrompt, settings: GraphSettings, about: Mapping[str, Any]) -> str:
    words = asdict(settings)
    if settings.direction is not None:
        words["direction"] = [settings.direction, _vector(Path(settings.direction)).tolist()]
    content = json.dumps([prompt.tokens, words, dict(about)], sort_keys=True)
    return xxhash.xxh3_128_hexdigest(content.encode())


def _there(out: Path, slug: str, key: str, view: GraphView) -> dict[str, Any] | None:
    """The summary of a graph that is whole and shows what is wanted."""
    files = [out / f"{slug}.json", *(out / slug / file for file in (SUMMARY_FILE, GRAPH_FILE, *PICTURES))]
    if not all(file.is_file() for file in files):
        return None
    try:
        summary = json.loads((out / slug / SUMMARY_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    same = isinstance(summary, dict) and summary.get("key") == key and summary.get("view") == asdict(view)
    return summary if same else None


def _known(directory: Path, key: str) -> SparseGraph | None:
    """A graph that was traced before; None where there is none."""
    if not (directory / GRAPH_FILE).is_file():
        return None
    graph = SparseGraph.load(directory)
    if graph.info.get("key") != key:
        raise GraphError(
            f"A graph's name must be its own. Got {directory.name}, which is there and of another prompt, adapters or "
            "settings; give another --name, or delete it."
        )
    return graph


def _traced(
    model: AdapterReplacementModel,
    prompt: GraphPrompt,
    targets: GraphTargets | None,
    settings: GraphSettings,
    info: Mapping[str, Any],
    title: str,
) -> SparseGraph:
    with tqdm(total=0, desc=title, unit=" nodes", disable=None) as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

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


def _write(graph: SparseGraph, slug: str, view: GraphView, words: Words, out: Path) -> dict[str, Any]:
    """Everything that is made from a traced graph; the summary last, which says that the rest is there."""
    pruned = prune(graph, view.node_threshold, view.edge_threshold)
    summary = summarise(graph)
    shown = graph.active_features[graph.selected[pruned.node_mask[: graph.n_selected]]]
    features = list(dict.fromkeys((layer, feature) for layer, _, feature in shown.tolist()))
    if isinstance(words, DecoderWords):
        words.find([*features, *summary.features])
    written = write_graph_files(
        graph,
        pruned,
        slug,
        out,
        {feature: words[feature].label for feature in features},
        node_threshold=view.node_threshold,
        most_links=view.most_links,
    )
    content = json.loads(written.path.read_text(encoding="utf-8"))
    for file in PICTURES:
        draw_graph(content, out / slug / file)
    found = {
        **summary.to_dict(words),
        "view": asdict(view),
        "shown": {"nodes": written.n_nodes, "links": written.n_links, "links_left_out": written.n_links_left_out},
    }
    with atomic_file(out / slug / SUMMARY_FILE, error=GraphError) as file:
        write_json(file, found)
    return found


def _token(text: str) -> str | int:
    return int(text[1:]) if text.startswith("#") and text[1:].isdigit() else text


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
