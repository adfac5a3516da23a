"""`generate`: from a target and prompts to rows of token ids."""

from __future__ import annotations

import json

import pytest
import torch

from tc_adapters_lens.cli import generate
from tc_adapters_lens.cli.main import main
from tc_adapters_lens.models.checkpoints import Checkpoint
from tc_adapters_lens.models.sampled_file import read_sampled
from tc_adapters_lens.models.sampling import Sampling, sample
from tests.tiny import save, tiny_model, word_tokenizer

PROMPTS = [[1, 5, 9], [1, 7], [1, 20, 30, 40], [33], [1, 4, 5, 6]]


@pytest.fixture
def argv(pair, tmp_path):
    prompts = tmp_path / "prompts.jsonl"
    rows = [{"input_ids": [*prompt, 3], "prompt_length": len(prompt)} for prompt in PROMPTS]
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = {"--target": pair[1], "--prompts": str(prompts), "--out": str(tmp_path / "r.jsonl")}
    options |= {"--batch-size": "2", "--max-new-tokens": "6", "--device": "cpu"}
    return ["generate", *(word for option in options.items() for word in option)]


def last_line(capsys) -> str:
    return capsys.readouterr().err.splitlines()[-1]


def test_rows_are_what_the_target_says(argv, pair, tmp_path, capsys):
    found = tmp_path / "found.json"
    assert main([*argv, "--temperature", "1.1", "--top-p", "0.9", "--seed", "3", "--json", str(found)]) == 0
    rows = [json.loads(line) for line in (tmp_path / "r.jsonl").read_text().splitlines()]
    model = Checkpoint.open(pair[1])
    from transformers import AutoModelForCausalLM

    target = AutoModelForCausalLM.from_pretrained(pair[1], dtype=torch.float32).eval()
    settings = Sampling(1.1, 0.9, 6, seed=3, batch_size=2)
    assert rows == [row._asdict() for row in sample(target, PROMPTS, settings, end_tokens=[2])]
    meta = read_sampled(tmp_path / "r.jsonl")
    assert meta is not None
    assert meta["settings"]["target_fingerprint"] == model.fingerprint()
    assert meta["settings"]["temperature"] == 1.1
    assert meta["target"] == {"name": pair[1], "revision": None}
    assert json.loads(found.read_text()) == {"path": str(tmp_path / "r.jsonl"), **meta}
    n_response = sum(len(row["input_ids"]) - row["prompt_length"] for row in rows)
    assert f"5 responses of {n_response} tokens" in capsys.readouterr().out


def test_interrupted_it_says_so_and_goes_on(argv, tmp_path, monkeypatch, capsys):
    assert main([*argv, "--out", str(tmp_path / "whole.jsonl")]) == 0
    step, n_steps = generate._Progress.step, []

    def interrupted(progress, n):
        n_steps.append(n)
        if n == 2 and len(n_steps) > 6:  # in the second batch
            raise KeyboardInterrupt
        step(progress, n)

    with monkeypatch.context() as patched:
        patched.setattr(generate._Progress, "step", interrupted)
        assert main(argv) == 130
    assert f"Stopped with 2 of 5 responses in {tmp_path / 'r.jsonl'}; the same command goes on." in last_line(capsys)
    assert main(argv) == 0
    assert (tmp_path / "r.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    monkeypatch.setattr(generate._Progress, "watch", None)
    assert main(argv) == 0  # whole already: nothing is sampled


def test_another_target_is_refused(argv, pair, capsys):
    assert main(argv) == 0
    assert main([*argv, "--target", pair[0]]) == 1
    assert "was begun with target_fingerprint sha256:" in last_line(capsys)


def test_other_prompts_are_refused(argv, capsys):
    assert main(argv) == 0
    assert main([*argv, "--n", "4"]) == 1
    assert "was begun with n_rows 5. Got 4" in last_line(capsys)


@pytest.mark.parametrize(
    ("change", "code", "says"),
    [
        (["--temperature", "-1"], 2, "temperature must be 0 (greedy) or at least 0.0001. Got -1.0."),
        (["--top-p", "0"], 2, "top_p must be above 0 and at most 1. Got 0.0."),
        (["--max-new-tokens", "0"], 2, "max_new_tokens must be at least 1. Got 0."),
        (["--max-new-tokens", "1021"], 1, "Got 4 tokens in prompt 2, which leaves 1020, and max_new_tokens 1021"),
        (["--n", "0"], 2, "--n must be at least 1. Got 0."),
        (["--n", "6"], 1, "n must not exceed the prompts there are. Got 6 and 5 rows"),
        (["--out", "r.json"], 2, "--out must end in .jsonl. Got r.json."),
        (["--prompts", "none.jsonl"], 1, "none.jsonl"),
        (["--prompt-column", "input_idz"], 1, "Did you mean 'input_ids'?"),
        (["--prompts", "toy"], 1, "need a chat template"),
        (["--target", "/nowhere"], 1, "/nowhere does not exist"),
    ],
)
def test_bad_input_is_one_line(change, code, says, argv, tmp_path, capsys):
    assert main([*argv, *change]) == code
    line = last_line(capsys)
    assert line.startswith("tc-adapters: error: ")
    assert says in line
    assert not (tmp_path / "r.jsonl").exists()


@pytest.mark.parametrize("temperature", ["0", "1"])
def test_a_target_whose_logits_are_not_numbers(temperature, argv, tmp_path, capsys):
    model = tiny_model("qwen2")
    with torch.no_grad():
        model.lm_head.weight *= 3e38  # finite weights, infinite logits
    directory = save(model, tmp_path / "broken", word_tokenizer())
    assert main([*argv, "--target", str(directory), "--temperature", temperature]) == 1
    assert "next-token probabilities must be numbers" in last_line(capsys)
