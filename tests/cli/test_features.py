"""`features`: from directories and a token file to a store; shards, resuming, other models, wrong use."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from tc_adapters_lens import AdapterSet, load_pair
from tc_adapters_lens.cli import feature_pass
from tc_adapters_lens.cli.main import main
from tc_adapters_lens.errors import FeatureStoreError
from tc_adapters_lens.features.store import FeatureStore
from tc_adapters_lens.models.pair import load_base
from tc_adapters_lens.models.progress import Progress
from tests.cli.conftest import N_FEATURES
from tests.tiny import D_VOCAB, N_LAYERS

LENGTHS = (4, 9, 6, 5, 8, 7, 4, 6, 9, 5, 7, 8)
ROWS = [
    {
        "input_ids": [(7 * n + 3 * i + row) % D_VOCAB for i in range(n)],
        "prompt_length": 2,
        "domain": ("math", "code")[row % 2],
    }
    for row, n in enumerate(LENGTHS)
]


@pytest.fixture
def argv(pair, adapters, tmp_path):
    tokens = tmp_path / "tokens.jsonl"
    tokens.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    options = {"--base": pair[0], "--target": pair[1], "--adapters": str(adapters), "--tokens": str(tokens)}
    options |= {"--out": str(tmp_path / "store"), "--device": "cpu", "--batch-size": "2", "--k": "3"}
    return ["features", *(word for option in options.items() for word in option)]


def files(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_a_store_of_adapter_features(argv, pair, adapters, tmp_path, capsys):
    result = tmp_path / "result.json"
    assert main([*argv, "--group-by", "domain", "--json", str(result)]) == 0
    loaded = load_pair(*pair)
    trained = AdapterSet.load(adapters, pair=loaded.pair)
    store = FeatureStore.open(tmp_path / "store", trained)
    acts = [[] for _ in range(N_LAYERS)]
    with loaded.adapters(trained):
        for row in ROWS:
            _, cache = loaded.run_with_cache(torch.tensor([row["input_ids"]]))
            for layer in range(N_LAYERS):
                acts[layer].append(cache[f"blocks.{layer}.mlp.hook_delta.hook_sae_acts_post"][0])
    for layer in range(N_LAYERS):
        flat = torch.cat(acts[layer])
        for index in range(N_FEATURES):
            feature = store[layer, index]
            assert feature.n_active == int((flat[:, index] > 0).sum())
            assert feature.max == pytest.approx(float(flat[:, index].max().clamp(min=0)), abs=1e-5)
            assert len(feature.promoted) == 20
            for example in (*feature.top, *feature.sampled):
                row = ROWS[example.sequence]
                assert example.group == row["domain"]
                assert example.tokens.tolist() == row["input_ids"]  # shorter than a window
                np.testing.assert_allclose(
                    example.activations, acts[layer][example.sequence][:, index].clamp(min=0), atol=1e-5
                )
            if feature.n_active:
                in_code = [
                    a[:, index].gt(0).sum() for a, row in zip(acts[layer], ROWS, strict=True) if row["domain"] == "code"
                ]
                assert feature.groups["code"] == pytest.approx(float(sum(in_code)) / feature.n_active)
                assert feature.regions["think"] == 0
                in_prompt = sum(int((a[:2, index] > 0).sum()) for a in acts[layer])
                assert feature.regions["prompt"] == pytest.approx(in_prompt / feature.n_active)
    assert store.info.region_tokens == (2 * len(LENGTHS), 0, sum(LENGTHS) - 2 * len(LENGTHS))
    found = json.loads(result.read_text())
    assert found["n_counted"] == sum(LENGTHS)
    assert found["l0"][0] == pytest.approx(float((torch.cat(acts[0]) > 0).sum(1).float().mean()))
    assert "78 of 78 positions counted" in capsys.readouterr().out


@pytest.mark.parametrize("model", ["target", "base"])
def test_neurons_of_target_and_base(model, argv, pair, tmp_path):
    assert main([*argv, "--model", model]) == 0
    store = FeatureStore.open(tmp_path / "store")
    assert (store.info.model, store.info.hook) == (model, "blocks.{layer}.mlp.hook_post")
    hooked = load_pair(*pair) if model == "target" else load_base(pair[0])
    acts = torch.cat(
        [
            hooked.run_with_cache(torch.tensor([row["input_ids"]]))[1]["blocks.1.mlp.hook_post"][0].detach()
            for row in ROWS
        ]
    )
    assert store.info.n_features == acts.shape[1]
    maxima = [store[1, neuron].max for neuron in range(acts.shape[1])]
    np.testing.assert_allclose(maxima, acts.amax(0).clamp(min=0), atol=1e-5)
    direction = hooked.blocks[1].mlp.W_out[5] * hooked.ln_final.w
    logits = direction @ hooked.W_U
    assert store[1, 5].promoted[0].token == int(logits.argmax())
    with pytest.raises(FeatureStoreError, match=f"of the {model}'s neurons"):
        FeatureStore.open(tmp_path / "store", AdapterSet.load(tmp_path / "adapters"))


def test_neurons_of_the_base_inside_the_target(argv, pair, tmp_path):
    assert main([*argv, "--model", "target", "--hook", "blocks.{layer}.mlp.base.hook_post"]) == 0
    store, hooked = FeatureStore.open(tmp_path / "store"), load_pair(*pair)
    name = "blocks.2.mlp.base.hook_post"
    acts = torch.cat(
        [hooked.run_with_cache(torch.tensor([row["input_ids"]]), names_filter=name)[1][name][0] for row in ROWS]
    )
    assert store[2, 4].max == pytest.approx(float(acts[:, 4].max().clamp(min=0)), abs=1e-5)
    logits = (hooked.blocks[2].mlp.base.W_out[4] * hooked.ln_final.w) @ hooked.W_U
    assert store[2, 4].promoted[0].token == int(logits.argmax())


def test_any_other_hook_has_no_promoted_tokens(argv, tmp_path):
    assert main([*argv, "--hook", "ln2.hook_normalized"]) == 0
    store = FeatureStore.open(tmp_path / "store")
    assert store[0, 3].n_active > 0
    assert store[0, 3].promoted == []


def test_as_many_windows_as_are_asked_for(argv, tmp_path):
    assert main([*argv, "--windows", "5", "--before", "2", "--after", "1"]) == 0
    store = FeatureStore.open(tmp_path / "store")
    assert store.info.n_windows == len(store.windows) == 5
    assert store.window_maxima(0).shape == (store.info.n_features, 5)
    assert (store.windows[:, 2] - store.windows[:, 1] <= 4).all()
    assert main([*argv, "--windows", "100000"]) == 0
    store = FeatureStore.open(tmp_path / "store")
    assert store.info.n_windows == store.info.n_counted  # there are no more


def test_response_positions_alone(argv, tmp_path):
    assert main([*argv, "--positions", "response"]) == 0
    info = FeatureStore.open(tmp_path / "store").info
    assert (info.n_counted, info.region_tokens[0]) == (sum(LENGTHS) - 2 * len(LENGTHS), 0)


def test_shards_merged_are_the_whole_to_the_bit(argv, tmp_path, capsys):
    assert main(argv) == 0
    whole = files(tmp_path / "store")
    parts = [*argv, "--out", str(tmp_path / "parts")]
    assert main([*parts, "--shard", "2/3"]) == 0
    assert "--merge 3" in capsys.readouterr().out
    assert main([*parts, "--merge", "3"]) == 1
    assert "All 3 shards must be there to be merged. Got 2-of-3.safetensors" in capsys.readouterr().err
    for shard in ("0/3", "1/3"):
        assert main([*parts, "--shard", shard]) == 0
    path = tmp_path / "parts.shards" / "1-of-3.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[:-5])
    assert main([*parts, "--merge", "3"]) == 1
    assert "truncated" in capsys.readouterr().err
    assert not (tmp_path / "parts").exists()
    path.write_bytes(content)
    assert main([*parts, "--merge", "3", "--seed", "1"]) == 1
    assert "of the same models, text and options" in capsys.readouterr().err
    assert main([*parts, "--merge", "3"]) == 0
    assert files(tmp_path / "parts") == whole
    assert not path.parent.exists()


def test_a_shard_of_other_labels_is_refused(argv, tmp_path, capsys):
    """The same tokens, with their prompts elsewhere: regions would be counted two ways."""
    assert main([*argv, "--shard", "0/2"]) == 0
    other = tmp_path / "other.jsonl"
    other.write_text("".join(json.dumps({**row, "prompt_length": 3}) + "\n" for row in ROWS))
    assert main([*argv, "--tokens", str(other), "--shard", "1/2"]) == 0
    assert main([*argv, "--merge", "2"]) == 1
    assert "Got another in" in capsys.readouterr().err
    assert not (tmp_path / "store").exists()


def test_an_interrupted_pass_goes_on(argv, tmp_path, monkeypatch, capsys):
    assert main(argv) == 0
    whole = files(tmp_path / "store")
    monkeypatch.setattr(feature_pass, "Progress", functools.partial(Progress, seconds=0))
    again = [*argv, "--out", str(tmp_path / "again")]
    made, batch = [], feature_pass.Text.batch

    def interrupted(text, chosen, device):
        made.append(1)
        if len(made) == 4:
            raise KeyboardInterrupt
        return batch(text, chosen, device)

    monkeypatch.setattr(feature_pass.Text, "batch", interrupted)
    assert main(again) == 130
    assert not (tmp_path / "again").exists()
    read = []
    original = feature_pass.Collector.add
    monkeypatch.setattr(
        feature_pass.Collector, "add", lambda self, layer, *rest: (read.append(layer), original(self, layer, *rest))[1]
    )
    assert main(again) == 0
    assert read.count(0) == 3  # of 6 batches
    assert files(tmp_path / "again") == whole
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize(
    ("extra", "code", "message"),
    [
        (["--k", "0"], 2, "--k must be at least 1. Got 0."),
        (["--windows", "0"], 2, "--windows must be at least 1. Got 0."),
        (["--before", "200", "--after", "60"], 2, "at most 255 together. Got 200 and 60."),
        (["--shard", "3/3"], 2, "--shard must be I/N, I from 0 to N - 1. Got '3/3'."),
        (["--shard", "0/2", "--merge", "2"], 2, "--shard and --merge exclude each other"),
        (
            ["--hook", "mlp.hook_pst"],
            2,
            "Got blocks.0.mlp.hook_pst, which is none. Did you mean 'blocks.0.mlp.hook_post'?",
        ),
        (["--hook", "attn.hook_z"], 2, "must give activations [batch pos units]"),
        (["--group-by", "domains"], 1, "Did you mean 'domain'?"),
    ],
)
def test_wrong_use_is_one_line(extra, code, message, argv, tmp_path, capsys):
    assert main([*argv, *extra]) == code
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert message in error
    assert not (tmp_path / "store").exists()


def test_untrained_adapters_are_never_active(argv, adapters, tmp_path, capsys):
    silent = AdapterSet.load(adapters)
    for adapter in silent.values():
        adapter.b_enc.data.fill_(-1e6)
    silent.save(tmp_path / "silent")
    assert main([*argv, "--adapters", str(tmp_path / "silent")]) == 1
    assert "A unit must be active somewhere. Got none" in capsys.readouterr().err
    assert not (tmp_path / "store").exists()


def test_an_empty_text(argv, tmp_path, capsys):
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    assert main([*argv, "--tokens", str(empty)]) == 1
    assert "a data file must have rows. Got an empty file" in capsys.readouterr().err


def test_what_stands_there_is_not_overwritten(argv, tmp_path, capsys):
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "thesis.txt").write_text("mine")
    assert main(argv) == 1
    assert "--out must be a new directory, or a feature store to replace" in capsys.readouterr().err
    (tmp_path / "store" / "thesis.txt").unlink()
    assert main(argv) == 0
    store = FeatureStore.open(tmp_path / "store")
    store.add_labels("judged", store.frame()[["layer", "feature"]].assign(kind="output"))
    assert main(argv) == 1
    assert "has labels, which would be lost" in capsys.readouterr().err
    assert FeatureStore.open(tmp_path / "store")[0, 0].labels == {"kind": "output"}


def test_a_store_of_other_adapters_is_refused(argv, adapters, tmp_path):
    assert main(argv) == 0
    other = AdapterSet.load(adapters)
    other[1].W_dec.data[0, 0] += 1
    with pytest.raises(FeatureStoreError, match="must be of these adapters"):
        FeatureStore.open(tmp_path / "store", other)
    assert FeatureStore.open(tmp_path / "store", AdapterSet.load(adapters)).info.n_layers == N_LAYERS
