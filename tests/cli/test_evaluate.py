"""`evaluate`: from directories and a token file to a table and a JSON result."""

from __future__ import annotations

import json

import pytest

from tc_adapters_lens.cli.main import main
from tests.cli.conftest import N_FEATURES
from tests.tiny import D_VOCAB, N_LAYERS


@pytest.fixture
def argv(pair, adapters, tmp_path):
    rows = [{"input_ids": list(range(3, 3 + length)), "prompt_length": 2} for length in (4, 9, 6)]
    tokens = tmp_path / "tokens.jsonl"
    tokens.write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = {"--base": pair[0], "--target": pair[1], "--adapters": str(adapters), "--tokens": str(tokens)}
    return ["evaluate", "--device", "cpu", *(word for option in options.items() for word in option)]


@pytest.mark.parametrize(("positions", "n_tokens"), [("all", 4 + 9 + 6), ("response", 2 + 7 + 4)])
def test_table_and_json(positions, n_tokens, argv, tmp_path, capsys):
    file = tmp_path / "found.json"
    assert main([*argv, "--positions", positions, "--batch-size", "2", "--json", str(file)]) == 0
    table = capsys.readouterr().out
    assert [line.split()[0] for line in table.splitlines()[2:]] == ["base", "hybrid", "adapters", "target"]
    found = json.loads(file.read_text())
    assert found["n_tokens"] == n_tokens
    assert len(found["nmse_per_layer"]) == len(found["l0_per_layer"]) == N_LAYERS
    assert {direction: len(kls) for direction, kls in found["bridging_kl"].items()} == {
        "replacement_to_target": N_LAYERS + 1,
        "target_to_replacement": N_LAYERS + 1,
    }
    assert found["n_features"] == N_LAYERS * N_FEATURES
    assert {"kl", "top1_error", "nmse", "l0", "l1", "dead_features"} <= found.keys()
    assert found["base"].keys() == found["hybrid"].keys() == {"kl", "top1_error"}


def test_batching_changes_nothing(argv, tmp_path):
    results = []
    for size in ("1", "3"):
        file = tmp_path / f"{size}.json"
        assert main([*argv, "--batch-size", size, "--json", str(file)]) == 0
        results.append(json.loads(file.read_text()))
    assert results[0]["kl"] == pytest.approx(results[1]["kl"], rel=1e-5)
    assert results[0]["l0_per_layer"] == results[1]["l0_per_layer"]


@pytest.mark.parametrize(
    ("change", "code", "says"),
    [
        (["--batch-size", "0"], 2, "--batch-size must be at least 1. Got 0."),
        (["--tokens", "none.jsonl"], 1, "none.jsonl"),
        (["--context-size", "1"], 2, "context_size must be at least 2"),
        (["--adapters", "nowhere"], 1, "nowhere"),
    ],
)
def test_bad_input_is_one_line(change, code, says, argv, capsys):
    assert main([*argv, *change]) == code
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("tc-adapters: error: ")
    assert says in last


def test_token_ids_out_of_range(argv, tmp_path, capsys):
    tokens = tmp_path / "high.jsonl"
    tokens.write_text(json.dumps({"input_ids": [3, D_VOCAB]}) + "\n")
    assert main([*argv, "--tokens", str(tokens)]) == 1
    assert f"Got {D_VOCAB} in row 0, position 1" in capsys.readouterr().err
