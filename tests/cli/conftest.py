"""A tiny pair on disk, adapters for it, and a run with an attribution graph."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from tc_adapters_lens.cli.main import main
from tc_adapters_lens.models.adapter_set import AdapterSet, AdapterSetInfo
from tc_adapters_lens.models.checkpoints import Checkpoint
from tc_adapters_lens.models.pair_info import PairInfo
from tests.cli.graph_run import PROMPT, make_run
from tests.tiny import D_MODEL, N_LAYERS, save, tiny_pair, word_tokenizer

N_FEATURES = 6


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """(base, target) directories."""
    root = tmp_path_factory.mktemp("pair")
    models = tiny_pair("qwen2")
    return tuple(
        str(save(model, root / name, word_tokenizer())) for name, model in zip(("base", "target"), models, strict=True)
    )


@pytest.fixture
def adapters(pair, tmp_path):
    """Directory of adapters whose every tensor is random."""
    base, target = (Checkpoint.open(directory) for directory in pair)
    info = AdapterSetInfo(PairInfo(base.name, target.name, None, None, base.fingerprint(), target.fingerprint()))
    adapters = AdapterSet.fresh(N_LAYERS, D_MODEL, N_FEATURES, info, seed=0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for adapter in adapters.values():
            for parameter in adapter.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
    adapters.save(tmp_path / "adapters")
    return tmp_path / "adapters"


@pytest.fixture(scope="session")
def graph_made(tmp_path_factory) -> Path:
    """A run with a graph named `one`, of the prompt of `graph_run`."""
    pytest.importorskip("circuit_tracer")
    run = make_run(tmp_path_factory.mktemp("graph"))
    assert main(["graph", "--run", str(run), "--prompt", PROMPT, "--name", "one", "--device", "cpu"]) == 0
    return run


@pytest.fixture
def graph_dir(graph_made, tmp_path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(graph_made, tmp_path / "run"))


@pytest.fixture
def graph_verb(graph_dir, capsys, monkeypatch):
    """Runs the verb; returns what it printed, its error line, and how many prompts were traced."""
    from tc_adapters_lens.cli import graph_tracing

    traced: list[int] = []

    def counted(tokens, *args, **options):
        traced.append(len(tokens))
        return trace(tokens, *args, **options)

    trace = graph_tracing.trace
    monkeypatch.setattr(graph_tracing, "trace", counted)

    def call(*argv: str, code: int = 0) -> tuple[str, str, int]:
        traced.clear()
        capsys.readouterr()
        assert main(["graph", "--run", str(graph_dir), "--device", "cpu", *argv]) == code, capsys.readouterr().err
        captured = capsys.readouterr()
        lines = [line for line in captured.err.splitlines() if line.startswith("tc-adapters")]
        assert len(lines) == (code != 0)
        return captured.out, "".join(lines), len(traced)

    return call


@pytest.fixture
def no_pictures(monkeypatch) -> None:
    """Pictures cost time, and have tests of their own."""
    from tc_adapters_lens.cli import graph_output

    monkeypatch.setattr(graph_output, "draw_graph", lambda content, path: path.write_bytes(b"drawn"))
