"""`SparseGraph`: an attribution graph that keeps the edges that carry nearly all of each node's input.

A node's row holds the direct effects on it of every node below. Sources are numbered as circuit-tracer numbers them:

    active features     their index in `active_features`
    errors              n_active + layer * n_pos + position
    tokens              n_active + n_layers * n_pos + position

circuit-tracer itself is needed for `to_graph` only.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
import xxhash
from jaxtyping import Float, Int
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from tc_adapters_lens.errors import CheckpointError, GraphError
from tc_adapters_lens.integrations.circuit_tracer import graph_checks
from tc_adapters_lens.models.atomic import atomic_directory, write_json
from tc_adapters_lens.models.json_files import first_line, read_json
from tc_adapters_lens.models.tensor_files import open_safetensors

if TYPE_CHECKING:
    from circuit_tracer.graph import Graph

__all__ = ["GRAPH_FILE", "WEIGHTS_FILE", "SparseGraph", "Target"]

FORMAT, VERSION = "tc_adapters_lens.sparse_graph", 1
GRAPH_FILE, WEIGHTS_FILE = "graph.json", "graph.safetensors"
_TERM = "terms."
_GIB = 2**30


class Target(NamedTuple):
    """An output that is explained.

    label: the token's text, or the direction's name.
    vocab_idx: the token's id; of a direction, the vocabulary's size + its place, as circuit-tracer has it.
    kind: a direction, such as the difference of two tokens, has a weight and no probability.
    """

    label: str
    vocab_idx: int
    kind: Literal["token", "direction"] = "token"


@dataclass(frozen=True, eq=False)
class SparseGraph:
    """An attribution graph. Rows are those of the selected features, in their order, then those of the targets.

    Attributes:
        tokens: the prompt.
        token_texts: each token's text.
        prompt: its text.
        n_layers: of the model.
        active_features: (layer, position, feature) of every active feature, ascending.
        activations: of them.
        selected: ascending indices into `active_features`: features whose rows were computed.
        targets: the outputs.
        probabilities: of the targets, or the weights that a user gave them.
        row_starts: where each row's edges begin; one more than rows.
        columns: the edges' sources, ascending in a row.
        weights: the edges' direct effects, none 0.
        values: what a row adds up to with its terms: a feature's pre-activation, a target's demeaned logit.
        terms: kind -> what biases of that kind add to each row.
        row_abs: sum of the absolute direct effects of all sources, dropped ones included.
        dropped_sum, dropped_abs: sum of the direct effects that were dropped, and of their absolute values.
        vocab_size: of the tokenizer.
        scan: where circuit-tracer's page finds the features.
        info: what else a reader needs, in JSON's words: what was sampled, the rule, the adapters' fingerprint.
    """

    tokens: Int[Tensor, "n_pos"]
    token_texts: tuple[str, ...]
    prompt: str
    n_layers: int
    active_features: Int[Tensor, "n_active 3"]
    activations: Float[Tensor, "n_active"]
    selected: Int[Tensor, "n_selected"]
    targets: tuple[Target, ...]
    probabilities: Float[Tensor, "n_targets"]
    row_starts: Int[Tensor, "n_rows+1"]
    columns: Int[Tensor, "n_edges"]
    weights: Float[Tensor, "n_edges"]
    values: Float[Tensor, "n_rows"]
    terms: Mapping[str, Tensor]
    row_abs: Float[Tensor, "n_rows"]
    dropped_sum: Float[Tensor, "n_rows"]
    dropped_abs: Float[Tensor, "n_rows"]
    vocab_size: int
    scan: str
    info: Mapping[str, Any]

    @property
    def n_pos(self) -> int:
        """Tokens of the prompt."""
        return len(self.tokens)

    @property
    def n_active(self) -> int:
        """Active features."""
        return len(self.active_features)

    @property
    def n_selected(self) -> int:
        """Active features with a row."""
        return len(self.selected)

    @property
    def n_rows(self) -> int:
        """Selected features and targets."""
        return self.n_selected + len(self.targets)

    @property
    def n_edges(self) -> int:
        """Direct effects that were kept."""
        return len(self.columns)

    @property
    def n_sources(self) -> int:
        """Active features, errors and tokens."""
        return self.n_active + (self.n_layers + 1) * self.n_pos

    @property
    def n_nodes(self) -> int:
        """Selected features, errors, tokens and targets: circuit-tracer's nodes, in its order."""
        return self.n_selected + (self.n_layers + 1) * self.n_pos + len(self.targets)

    @cached_property
    def node_of_source(self) -> Int[Tensor, "n_sources"]:
        """A source's node, int32; -1 for features without a row."""
        nodes = torch.full((self.n_sources,), -1, dtype=torch.int32)
        nodes[self.selected] = torch.arange(self.n_selected, dtype=torch.int32)
        nodes[self.n_active :] = self.n_selected + torch.arange(self.n_sources - self.n_active, dtype=torch.int32)
        return nodes

    @cached_property
    def layer_rows(self) -> tuple[int, ...]:
        """Where each layer's rows begin among the selected features, and where the last ends."""
        layers = self.active_features[self.selected, 0].contiguous()
        return tuple(torch.searchsorted(layers, torch.arange(self.n_layers + 1)).tolist())

    def save(self, directory: str | Path) -> None:
        """Write `graph.safetensors` and `graph.json`: whole or not at all, in place of another graph and all beside it.

        Raises:
            GraphError: something else stands there, the disk is full, or writing is not permitted.
        """
        tensors = {field.name: getattr(self, field.name) for field in fields(self) if field.name in graph_checks.SHAPES}
        tensors |= {f"{_TERM}{kind}": term for kind, term in self.terms.items()}
        with atomic_directory(directory, may_replace=_is_graph, error=GraphError) as partial:
            save_file({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, partial / WEIGHTS_FILE)
            about = {
                "format": FORMAT,
                "version": VERSION,
                "tensors": _hash(partial / WEIGHTS_FILE),
                "prompt": self.prompt,
                "token_texts": list(self.token_texts),
                "n_layers": self.n_layers,
                "targets": [target._asdict() for target in self.targets],
                "vocab_size": self.vocab_size,
                "scan": self.scan,
                "info": dict(self.info),
            }
            write_json(partial / GRAPH_FILE, about)

    @classmethod
    def load(cls, directory: str | Path) -> SparseGraph:
        """Read what `save` wrote.

        Raises:
            GraphError: not a graph, of another version, or damaged.
        """
        directory = Path(directory).expanduser()
        try:
            about = read_json(directory / GRAPH_FILE)
            if about.get("format") != FORMAT or about.get("version") != VERSION:
                raise GraphError(
                    f"{directory / GRAPH_FILE} must be of format {FORMAT} {VERSION}. Got {about.get('format')} "
                    f"{about.get('version')}; make the graph again."
                )
            stored = open_safetensors(directory / WEIGHTS_FILE)
            if _hash(directory / WEIGHTS_FILE) != about["tensors"]:
                raise GraphError(f"{directory / WEIGHTS_FILE} is not the file that {GRAPH_FILE} beside it describes.")
            tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
            graph = cls(
                **{name: tensors[name] for name in graph_checks.SHAPES},
                terms={name.removeprefix(_TERM): t for name, t in sorted(tensors.items()) if name.startswith(_TERM)},
                targets=tuple(Target(str(t["label"]), int(t["vocab_idx"]), t["kind"]) for t in about["targets"]),
                token_texts=tuple(map(str, about["token_texts"])),
                **{name: about[name] for name in ("prompt", "n_layers", "vocab_size", "scan", "info")},
            )
            graph_checks.check(graph)
        except (CheckpointError, GraphError) as error:
            raise GraphError(f"{first_line(error, 400)} Make the graph again.") from error
        except (SafetensorError, KeyError, TypeError, ValueError, OSError) as error:
            raise GraphError(f"{directory} is not a whole graph: {first_line(error)}. Make the graph again.") from error
        return graph

    def to_graph(self, cfg: Any, limit: int = 4 * _GIB) -> Graph:
        """circuit-tracer's dense `Graph`, with the columns of features without a row left out, as `attribute` does.

        Args:
            cfg: the model's configuration.
            limit: most bytes of its matrix, `4 n_nodes^2`.
        Raises:
            GraphError: the matrix would be larger.
        """
        from circuit_tracer.attribution.targets import LogitTarget
        from circuit_tracer.graph import Graph

        n_bytes = 4 * self.n_nodes**2
        if n_bytes > limit:
            raise GraphError(
                f"circuit-tracer's own Graph may take at most {limit / _GIB:,.1f} GiB. Got {self.n_nodes:,} nodes, "
                f"which take {n_bytes / _GIB:,.1f} GiB; trace with fewer feature nodes."
            )
        matrix = torch.zeros(self.n_nodes, self.n_nodes)
        rows = torch.arange(self.n_rows)
        rows[self.n_selected :] += self.n_nodes - self.n_rows
        targets = rows.repeat_interleave(self.row_starts.diff())
        sources = self.node_of_source[self.columns]
        known = sources >= 0
        matrix[targets[known], sources[known]] = self.weights[known]
        return Graph(
            input_string=self.prompt,
            input_tokens=self.tokens,
            active_features=self.active_features,
            adjacency_matrix=matrix,
            cfg=cfg,
            selected_features=self.selected,
            activation_values=self.activations,
            logit_targets=[LogitTarget(target.label, target.vocab_idx) for target in self.targets],
            logit_probabilities=self.probabilities,
            scan=self.scan,
            vocab_size=self.vocab_size,
        )


def _hash(path: Path) -> str:
    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return f"xxh3:{digest.hexdigest()}"


def _is_graph(directory: Path) -> bool:
    try:
        about = json.loads((directory / GRAPH_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(about, dict) and about.get("format") == FORMAT
