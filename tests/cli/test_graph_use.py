"""`graph` used wrongly: one line that names the rule, what was given, and the fix."""

from __future__ import annotations

import builtins
import contextlib
import json
import re
import shlex
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

pytest.importorskip("circuit_tracer")

from tc_adapters_lens.cli import graph_tracing
from tc_adapters_lens.cli.graph import EXAMPLE
from tc_adapters_lens.cli.main import VERBS, build_parser, main
from tc_adapters_lens.models.adapter_set import AdapterSet
from tc_adapters_lens.models.atomic import write_json
from tests.cli.graph_run import make_run, without_tokenizer
from tests.tiny import D_MODEL, D_VOCAB

PROMPT = ("--prompt", "w1 w9 w8")


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return make_run(tmp_path_factory.mktemp("use"))


@pytest.fixture
def refused(run, capsys):
    """Runs the verb, which must fail in one line and write nothing; returns the line."""

    def call(*argv: str, code: int = 1, of: Path | None = run) -> str:
        before = sorted(run.rglob("*"))
        named = [] if of is None else ["--run", str(of)]
        assert main(["graph", *named, "--device", "cpu", *argv]) == code
        lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("tc-adapters")]
        assert len(lines) == 1
        assert [path for path in sorted(run.rglob("*")) if path.name != "graphs"] == before
        shutil.rmtree(run / "graphs", ignore_errors=True)
        return lines[0].removeprefix("tc-adapters: error: ")

    return call


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ("", r"One of --prompt, --prompts, --tokens must be given\. Got none\."),
        ("--prompt w5 --tokens toy", r"One of .* must be given\. Got --prompt and --tokens\."),
        ("--prompt w5 --prompts a --tokens toy", r"Got --prompt and --prompts and --tokens\."),
        ("--prompt w5 --contrast a b --direction f", r"At most one of --target-token, --contrast, --direction .* Got"),
        ("--prompt w5 --target-token a --contrast a b", r"Got --target-token and --contrast\."),
        ("--tokens toy --before wait --end 3", r"At most one of --before, --end must be given"),
        ("--prompt w5 --rows 3", r"--rows goes with --tokens, which is missing\."),
        ("--prompt w5 --before wait", r"--before goes with --tokens"),
        ("--prompt w5 --end 3", r"--end goes with --tokens"),
        ("--prompts a --n 3", r"--n goes with --tokens"),
        ("--tokens toy --chat", r"--chat goes with --prompt or --prompts\. Got --tokens\."),
        ("--prompt w5 --chat-template f", r"--chat-template goes with --chat or --tokens, which are missing\."),
        ("--tokens toy --before ' '", r"--before must be a word\. Got ' '\."),
        ("--tokens toy --rows 3-1", r"--rows must be numbers and ranges with commas, such as 0,3-5\. Got '3-1'\."),
        ("--tokens toy --end 0", r"--end must be at least 1\. Got 0\."),
        ("--tokens toy --n 0", r"--n must be at least 1\. Got 0\."),
        ("--prompt w5 --max-features 0", r"--max-features must be at least 1\. Got 0\."),
        ("--prompt w5 --max-logits -1", r"--max-logits must be at least 1\. Got -1\."),
        ("--prompt w5 --max-edges 0", r"--max-edges must be at least 1\. Got 0\."),
        ("--prompt w5 --logit-share 0", r"--logit-share must be over 0 and at most 1\. Got 0\.0\."),
        ("--prompt w5 --influence-share 1.5", r"--influence-share must be over 0 and at most 1\. Got 1\.5\."),
        ("--prompt w5 --keep nan", r"--keep must be a float\. Got 'nan'\."),
        ("--prompt w5 --node-threshold -1", r"--node-threshold must be from 0 to 1\. Got -1\.0\."),
        ("--prompt w5 --edge-threshold 2", r"--edge-threshold must be from 0 to 1\. Got 2\.0\."),
        ("--prompt w5 --name 'a b'", r"name must be of letters, digits, - and _, at most 100\. Got 'a b'\."),
        ("--prompt w5 --name ../a", r"Got '\.\./a'\."),
        ("--prompt w5 --name ''", r"Got ''\."),
        (f"--prompt w5 --name {'a' * 101}", r"at most 100\. Got 'a+'\."),
        ("--prompt w5 --contrast a", "contrast"),
        ("--prompt w5 --sampled base", r"--sampled must be 'replacement' or 'target'\. Got 'base'"),
        ("--prompt w5 --rule lrp", r"--rule must be 'relp' or 'gate-detach'\. Got 'lrp'"),
        ("--prompt w5 --max-feature 3", r"--max-feature is not an option .* Did you mean '--max-features'\?"),
        ("--prompt w5 --device gpu", r"--device must be one that this machine"),
    ],
)
def test_wrong_use(refused, options, line) -> None:
    assert re.search(line, refused(*shlex.split(options), code=2))


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ((*PROMPT, "--target-token", "w5 w6"), r"must be one token.* Got 'w5 w6', which is 2 tokens: \['w5', 'w6'\]\."),
        ((*PROMPT, "--target-token", f"#{D_VOCAB}"), rf"id must be from 0 to {D_VOCAB - 1}\. Got {D_VOCAB}\."),
        ((*PROMPT, "--target-token", "w5", "--target-token", "#5"), r"each once\. Got \['w5', 5\]\."),
        ((*PROMPT, "--contrast", "w5", "#5"), r"A contrast must be of two tokens\. Got 'w5' twice\."),
        ((*PROMPT, "--contrast", "w5", ""), r"Got '', which is no token\."),
        ((*PROMPT, "--direction", "nowhere.safetensors"), r"--direction must be a safetensors file\. Got nowhere"),
        ((*PROMPT, "--features", "nowhere"), r"nowhere"),
        (("--prompt", " "), r"A prompt must be of at least a word\. Got none in --prompt\."),
        (("--prompt", "w5 " * 1025), r"A prompt must be of 2 to 1,024 tokens, the model's context\. Got 1,025\."),
        (("--prompt", "w5"), r"A prompt must be of 2 to 1,024 tokens, .* Got 1\."),
        (("--prompt", "w5", "--chat"), r"needs a chat template"),
        (("--prompts", "nowhere"), r"--prompts must be a directory with \.txt files"),
        (("--tokens", "nowhere.jsonl"), r"nowhere\.jsonl"),
    ],
)
def test_what_cannot_be_traced(refused, options, line) -> None:
    assert re.search(line, refused(*options))


def test_directions_that_are_none(refused, tmp_path) -> None:
    vectors = {"a": torch.ones(D_MODEL), "b": torch.ones(D_MODEL)}
    for tensors, line in (
        (vectors, r"--direction must be a file with one tensor\. Got .* with 2\."),
        ({}, r"with 0\."),
        ({"a": torch.ones(3)}, rf"A direction must be {D_MODEL} finite numbers\. Got \(3,\) for 'd'\."),
        ({"a": torch.full((D_MODEL,), torch.nan)}, "finite numbers"),
    ):
        save_file(tensors, tmp_path / "d.safetensors")
        assert re.search(line, refused(*PROMPT, "--direction", str(tmp_path / "d.safetensors")))
    (tmp_path / "d.safetensors").write_bytes(b"no")
    assert "--direction must be a safetensors file" in refused(*PROMPT, "--direction", str(tmp_path / "d.safetensors"))


def test_circuit_tracer_is_missing(refused, monkeypatch) -> None:
    monkeypatch.delitem(sys.modules, "tc_adapters_lens.integrations.circuit_tracer.graph_files")
    imported = builtins.__import__

    def without(name, *args, **options):
        if name.split(".")[0] == "circuit_tracer":
            raise ModuleNotFoundError("No module named 'circuit_tracer'", name="circuit_tracer")
        return imported(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    assert refused(*PROMPT).endswith('which is not installed: pip install "tc-adapters-lens[attribution]"')


def test_runs_that_are_none(refused, run, tmp_path) -> None:
    (tmp_path / "demo").mkdir()
    line = refused(*PROMPT, of=tmp_path / "demo", code=2)
    assert line.endswith("Got " + str(tmp_path / "demo") + ", which has no config.yaml.")
    for name in ("sparse", "dense"):
        shutil.copytree(run, tmp_path / "demo" / name)
    line = refused(*PROMPT, of=tmp_path / "demo", code=2)
    assert line.endswith(", which has no config.yaml but holds the runs dense, sparse: name one.")
    shutil.rmtree(tmp_path / "demo" / "dense" / "adapters")
    assert "it is not finished; start it again" in refused(*PROMPT, of=tmp_path / "demo" / "dense", code=2)
    assert "Either --run, or --base, --target and --adapters" in refused(*PROMPT, of=None, code=2)
    base = ("--base", "b", "--target", "t", "--adapters", "a")
    assert refused(*PROMPT, *base, of=None, code=2) == "--out must be given where there is no --run. It is missing."


def test_adapters_of_another_pair(refused, run, tmp_path) -> None:
    adapters = AdapterSet.load(run / "adapters")
    about = json.loads((run / "adapters" / "adapter_set.json").read_text())
    shutil.copytree(run / "adapters", tmp_path / "adapters")
    text = json.dumps(about).replace(adapters.info.pair.base_fingerprint, "sha256:other")
    write_json(tmp_path / "adapters" / "adapter_set.json", json.loads(text))
    line = refused(*PROMPT, "--adapters", str(tmp_path / "adapters"))
    assert re.search(
        r"were trained on another pair: base .* \(sha256:other\)\. Got base .* say allow_other_pair\.", line
    )


def test_a_pair_without_a_tokenizer(refused, run, tmp_path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"input_ids": [1, 9, 8]}\n')
    options = without_tokenizer(run, tmp_path)
    for source in (PROMPT, ("--tokens", str(rows))):
        line = refused(*options, *source, "--out", str(tmp_path / "out"), "--allow-other-pair", of=None)
        assert line.startswith("A graph needs a tokenizer, to name tokens. Got a target without one")
    assert not (tmp_path / "out").exists()


def test_a_name_for_several(refused, tmp_path) -> None:
    for name in "ab":
        (tmp_path / f"{name}.txt").write_text(f"w5 w{ord(name)}")
    line = refused("--prompts", str(tmp_path), "--name", "mine", code=2)
    assert line == "--name must be of one graph. Got 2 prompts; leave it out."


def test_places_that_cannot_be_written_to(refused, monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(graph_tracing, "trace", None)  # it is seen before anything is computed
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/nowhere")):
        line = refused(*PROMPT, "--out", str(out))
        assert re.search(r"^Writing .* failed: .*Name a directory that can be written to", line)
    (tmp_path / "closed").mkdir(mode=0o500)
    with contextlib.suppress(OSError):  # who may write everywhere sees nothing of this
        (tmp_path / "closed" / "probe").touch()
        return
    assert re.search(r"^Writing .*closed failed", refused(*PROMPT, "--out", str(tmp_path / "closed")))


def test_memory(refused, monkeypatch) -> None:
    module = "tc_adapters_lens.integrations.circuit_tracer.trace._free_memory"
    monkeypatch.setattr(module, lambda: 8_000)
    assert re.search(
        r"must fit into 0\.00 GiB\. Got about .* about \d+ features fit: lower max_f.*--max-features", refused(*PROMPT)
    )
    monkeypatch.undo()

    def full(*args, **options):
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 20 GiB.")

    monkeypatch.setattr(graph_tracing, "trace", full)
    line = "A prompt's graph must fit into the memory of cpu. Got 3 tokens, which do not fit; take a shorter prompt, "
    assert refused(*PROMPT).startswith(line)


def test_help(capsys) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["graph", "--help"])
    assert ended.value.code == 0
    out = capsys.readouterr().out
    assert EXAMPLE.split("\n\n")[0] in out
    for line in EXAMPLE.splitlines():
        if line.startswith("  tc-adapters graph"):
            parser, verbs = build_parser()
            VERBS["graph"].add_arguments(verbs["graph"])
            VERBS["graph"]._check(parser.parse_args(shlex.split(line)[1:])["graph"])
