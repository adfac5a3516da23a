"""`evaluate`: from directories and a token file to a table and a JSON result."""

from __future__ import annotations

import json
import shutil

import pytest

from tc_adapters_lens import AdapterSet, AdapterSetInfo, load_pair
from tc_adapters_lens.cli.main import main
from tests.cli.conftest import N_FEATURES
from tests.tiny import D_VOCAB, N_LAYERS

LENGTHS = (4, 9, 6, 5, 8, 7, 4, 6, 9, 5, 7, 8)


@pytest.fixture
def argv(pair, adapters, tmp_path):
    rows = [{"input_ids": [(7 * n + i) % D_VOCAB for i in range(n)], "prompt_length": 2} for n in LENGTHS]
    tokens = tmp_path / "tokens.jsonl"
    tokens.write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = {"--base": pair[0], "--target": pair[1], "--adapters": str(adapters), "--tokens": str(tokens)}
    return ["evaluate", "--device", "cpu", *(word for option in options.items() for word in option)]


@pytest.mark.parametrize(
    ("positions", "n_tokens"), [("all", sum(LENGTHS)), ("response", sum(LENGTHS) - 2 * len(LENGTHS))]
)
def test_table_and_json(positions, n_tokens, argv, tmp_path, capsys):
    file = tmp_path / "found.json"
    argv += ["--positions", positions, "--batch-size", "2", "--json", str(file), "--account"]
    assert main([*argv, "--baselines", "base,reverse,shuffled"]) == 0
    table = capsys.readouterr().out
    names = {line.split()[0] for line in table.splitlines()[2:]}
    assert names == {"base", "hybrid", "reverse", "shuffled", "adapters", "target"}
    found = json.loads(file.read_text())
    assert (found["n_tokens"], found["n_sequences"], found["positions"]) == (n_tokens, len(LENGTHS), positions)
    assert found["models"].keys() == {"base", "hybrid", "reverse", "shuffled", "replacement"}
    assert len(found["nmse_per_layer"]) == len(found["l0_per_layer"]) == len(found["dead_per_layer"]) == N_LAYERS
    assert {which: len(kls) for which, kls in found["partial_kl"].items()} == {
        "first": N_LAYERS + 1,
        "last": N_LAYERS + 1,
        "single": N_LAYERS,
    }
    assert found["partial_kl"]["first"][-1]["value"] == pytest.approx(found["models"]["replacement"]["kl"]["value"])
    assert (found["n_layers"], found["n_features"]) == (N_LAYERS, N_FEATURES)
    assert sorted(found["shuffle"]) == list(range(N_LAYERS))
    account = found["account"]
    total = sum(step["recovered"]["value"] for step in account["cumulative"])
    assert total == pytest.approx(found["models"]["base"]["kl"]["value"])
    assert account["mlps_last"][-2]["kl"] == found["models"]["hybrid"]["kl"]


def test_batching_changes_nothing(argv, tmp_path):
    results = []
    for size in ("1", "3"):
        file = tmp_path / f"{size}.json"
        assert main([*argv, "--batch-size", size, "--json", str(file)]) == 0
        results.append(json.loads(file.read_text()))
    for name in ("replacement", "hybrid", "base"):
        one, other = (result["models"][name]["kl"] for result in results)
        assert list(one.values()) == pytest.approx(list(other.values()), rel=1e-5)
    assert results[0]["l0_per_layer"] == results[1]["l0_per_layer"]
    assert results[0]["frequency"] == results[1]["frequency"]


def test_partial_replacement_on_some_sequences_or_not_at_all(argv, tmp_path):
    file = tmp_path / "found.json"
    assert main([*argv, "--partial-sequences", "10", "--json", str(file)]) == 0
    assert json.loads(file.read_text())["partial_sequences"] == 10
    assert main([*argv, "--no-partial", "--bootstrap", "0", "--json", str(file)]) == 0
    found = json.loads(file.read_text())
    assert (found["partial_kl"], found["partial_sequences"]) == (None, 0)
    assert found["models"]["replacement"]["kl"]["low"] is None


@pytest.mark.parametrize(
    ("change", "code", "says"),
    [
        (["--batch-size", "0"], 2, "--batch-size must be at least 1. Got 0."),
        (["--tokens", "none.jsonl"], 1, "none.jsonl"),
        (["--context-size", "1"], 2, "context_size must be at least 2"),
        (["--adapters", "nowhere"], 1, "nowhere"),
        (["--baselines", "base,skylines"], 2, "Got 'skylines'. Did you mean 'skyline'?"),
        (["--baselines", "skyline"], 2, "--baselines skyline are trained into a run's directory. Got no --run"),
        (["--baselines", "none", "--account"], 2, "--account starts at the base. Got --baselines none"),
        (["--skyline-lrs", "1e-3,fast"], 2, "--skyline-lrs must be numbers above 0"),
        (["--bootstrap", "50"], 2, "at least 100 bootstrap replicates. Got 50"),
        (["--max-sequences", "3"], 1, "Intervals need at least 10 sequences"),
        (["--partial-sequences", "4"], 1, "Intervals need at least 10 sequences"),
        (["--run", "nowhere"], 2, "--run must be the directory of a training run. Got nowhere"),
    ],
)
def test_bad_input_is_one_line(change, code, says, argv, capsys):
    assert main([*argv, *change]) == code
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("tc-adapters: error: ")
    assert says in last


def test_token_ids_out_of_range(argv, tmp_path, capsys):
    tokens = tmp_path / "high.jsonl"
    tokens.write_text(json.dumps({"input_ids": [3, D_VOCAB], "prompt_length": 1}) + "\n")
    assert main([*argv, "--tokens", str(tokens)]) == 1
    assert f"Got {D_VOCAB} in row 0, position 1" in capsys.readouterr().err


def test_rows_that_cannot_tell_a_response(argv, tmp_path, capsys):
    tokens = tmp_path / "plain.jsonl"
    tokens.write_text(json.dumps({"input_ids": [3, 4]}) + "\n")
    assert main([*argv, "--tokens", str(tokens)]) == 1
    assert "needs a column prompt_length" in capsys.readouterr().err.splitlines()[-1]


def test_a_set_without_one_of_its_layers(argv, adapters, capsys):
    shutil.rmtree(adapters / "layer_1")
    assert main(argv) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert f"must have {N_LAYERS} layers. Got {N_LAYERS - 1}, without layer_1" in last


def test_sequences_longer_than_the_context(argv, tmp_path, capsys):
    tokens = tmp_path / "long.jsonl"
    rows = [{"input_ids": [3] * 1500, "prompt_length": 1}, *({"input_ids": [3, 4], "prompt_length": 1},) * 12]
    tokens.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main([*argv, "--tokens", str(tokens)]) == 1
    assert "context of 1,024 tokens. Got 1 longer ones" in capsys.readouterr().err
    assert main([*argv, "--tokens", str(tokens), "--context-size", "20"]) == 0


def test_no_run_and_no_adapters(pair, capsys):
    assert main(["evaluate", "--base", pair[0], "--target", pair[1], "--tokens", "toy"]) == 2
    assert "--adapters is missing" in capsys.readouterr().err


def test_samples_from_the_target_first_and_refuses_text_of_another(tmp_path, capsys):
    """On the built-in pair, whose prompts end in responses."""
    pair = ["--base", "toy:base", "--target", "toy:target", "--adapters", str(tmp_path / "adapters")]
    info = AdapterSetInfo(load_pair("toy:base", "toy:target").pair)
    AdapterSet.fresh(4, 128, 8, info).save(tmp_path / "adapters")
    text, result = tmp_path / "sampled.jsonl", tmp_path / "result.json"
    argv = ["evaluate", *pair, "--device", "cpu", "--tokens", str(text), "--sample", "12", "--prompts", "toy"]
    assert main([*argv, "--no-partial", "--json", str(result), "--max-new-tokens", "30"]) == 0
    rows = [json.loads(line) for line in text.read_text().splitlines()]
    found = json.loads(result.read_text())
    assert found["n_sequences"] == len(rows) == 12
    assert found["n_tokens"] == sum(len(row["input_ids"]) - row["prompt_length"] for row in rows)
    assert found["sampling"]["settings"]["temperature"] == 0.7
    capsys.readouterr()
    swapped = ["--base", "toy:target", "--target", "toy:base", "--allow-other-pair", "--tokens", str(text)]
    assert main(["evaluate", *swapped, "--adapters", str(tmp_path / "adapters"), "--device", "cpu"]) == 1
    assert "must be sampled from the target" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("half", [["--sample", "3"], ["--prompts", "toy"], ["--max-new-tokens", "3"]])
def test_sampling_options_go_together(half, argv, capsys):
    assert main([*argv, *half]) == 2
    assert "--sample" in capsys.readouterr().err
