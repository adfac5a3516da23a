"""Models that lm-eval runs: the prompts and draws that they should make, here and on a server."""

from __future__ import annotations

import datasets
import pytest
import torch

from tc_adapters_lens import toy
from tc_adapters_lens.errors import ConfigError, RunError
from tc_adapters_lens.integrations.hf.export import export_hf
from tc_adapters_lens.integrations.hf.model import adapter_model
from tc_adapters_lens.integrations.lm_eval.harness import Changes, evaluate
from tc_adapters_lens.integrations.lm_eval.model import AdaptersLM, ServedLM
from tc_adapters_lens.integrations.lm_eval.server import completions_url, served_model
from tc_adapters_lens.models.adapter_set import AdapterSet, AdapterSetInfo
from tc_adapters_lens.models.checkpoints import Checkpoint
from tc_adapters_lens.models.pair_info import PairInfo
from tc_adapters_lens.models.sampling import Sampling, load_target, sample
from tests.integrations.lm_eval_fakes import END, served

N = 4


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch, tmp_path):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture(scope="module")
def target():
    checkpoint = Checkpoint.open("toy:target")
    return checkpoint, load_target(checkpoint, torch.float32, "cpu")


def run(lm, tokenizer, **changes):
    def n_tokens(text):
        return len(tokenizer(text, add_special_tokens=False).input_ids)

    return evaluate(lm, "toy", Changes(**changes), limit=N, seed=5, n_tokens=n_tokens)


def prompts_of(tokenizer) -> list[list[int]]:
    questions = [problem.question for problem in toy.load_problems()[:N]]
    chats = [[{"role": "user", "content": question}] for question in questions]
    return [tokenizer.apply_chat_template(chat, add_generation_prompt=True) for chat in chats]


def responses(samples) -> list[list[str]]:
    return [sample["resps"][0] for sample in samples]


def test_greedy_responses_are_those_of_generate(target):
    checkpoint, model = target
    benchmark, _, samples = run(
        AdaptersLM(model, checkpoint.tokenizer, batch_size=3), checkpoint.tokenizer, temperature=0
    )
    rows = list(sample(model, prompts_of(checkpoint.tokenizer), Sampling(0, 1, 256), end_tokens=[END]))
    texts = [checkpoint.tokenizer.decode(r.input_ids[r.prompt_length :], skip_special_tokens=True) for r in rows]
    assert responses(samples) == [[text] for text in texts]
    right = [toy.parse_answer(t) == p.answer for t, p in zip(texts, toy.load_problems()[:N], strict=True)]
    assert benchmark.accuracy == sum(right) / N
    # The end token has no text.
    assert benchmark.response_length == sum(len(r.input_ids) - r.prompt_length - 1 for r in rows) / N


def test_repeats_differ_and_come_again_with_the_seed(target):
    checkpoint, model = target
    lm = AdaptersLM(model, checkpoint.tokenizer, batch_size=6)
    first, again = (responses(run(lm, checkpoint.tokenizer, repeats=3, max_new_tokens=60)[2]) for _ in range(2))
    assert first == again
    assert all(len(of_problem) == 3 for of_problem in first)
    assert max(len(set(of_problem)) for of_problem in first) == 3


def test_draws_are_from_the_whole_vocabulary(target, monkeypatch):
    checkpoint, model = target
    lm = AdaptersLM(model, checkpoint.tokenizer, batch_size=N)
    options = {"temperature": 3.0, "max_new_tokens": 12}
    plain = responses(run(lm, checkpoint.tokenizer, **options)[2])
    monkeypatch.setattr(model.generation_config, "top_k", 1)
    monkeypatch.setattr(model.generation_config, "repetition_penalty", 3.0)
    assert responses(run(lm, checkpoint.tokenizer, **options)[2]) == plain
    greedy = responses(run(lm, checkpoint.tokenizer, temperature=0, max_new_tokens=12)[2])
    assert plain != greedy


def test_thinking_that_the_prompt_opens_belongs_to_the_response(target):
    checkpoint, model = target
    opening = checkpoint.tokenizer.chat_template + "{% if add_generation_prompt %}<think>\n{% endif %}"
    tokenizer = Checkpoint.open("toy:target").tokenizer
    lm = AdaptersLM(model, tokenizer, opening, batch_size=N)
    benchmark, _, samples = run(lm, tokenizer, temperature=0, max_new_tokens=9)
    assert all(sample["arguments"][0][0].endswith("<think>\n") for sample in samples)
    assert all(text.startswith("<think>\n") for (text,) in responses(samples))
    assert benchmark.n_unclosed == N
    assert benchmark.response_length == 9


def test_lm_eval_makes_it_by_name_from_an_export(target, tmp_path):
    from lm_eval.api.registry import get_model

    base = Checkpoint.open("toy:base")
    info = AdapterSetInfo(PairInfo("toy:base", "toy:target", None, None, base.fingerprint(), target[0].fingerprint()))
    adapters = AdapterSet.fresh(4, 128, 8, info, seed=0)
    for adapter in adapters.values():
        adapter.W_dec.data.normal_(std=0.05, generator=torch.Generator().manual_seed(0))
    model = adapter_model(base, target[0], adapters)
    export_hf(tmp_path / "exported", base, target[0], adapters, dtype=torch.float32)
    arguments = f"pretrained={tmp_path / 'exported'},trust_remote_code=True,dtype=float32"
    exported = get_model("tc-adapters").create_from_arg_string(arguments, {"device": "cpu", "batch_size": N})
    assert isinstance(exported, AdaptersLM)
    built = AdaptersLM(model, target[0].tokenizer, batch_size=N)
    found, expected = (
        responses(run(lm, target[0].tokenizer, temperature=0, max_new_tokens=40)[2]) for lm in (exported, built)
    )
    assert found == expected


def served_lm(server: str, **options) -> ServedLM:
    return ServedLM(completions_url(server), "toy-target", str(toy.TARGET), max_length=513, **options)


@pytest.mark.parametrize("n_requests", [1, 3])
def test_a_server_is_asked_the_same_and_answers_the_same(target, n_requests):
    checkpoint, model = target
    local, _, of_local = run(AdaptersLM(model, checkpoint.tokenizer, batch_size=N), checkpoint.tokenizer, temperature=0)
    with served() as (server, record):
        there, _, of_server = run(served_lm(server, num_concurrent=n_requests), checkpoint.tokenizer, temperature=0)
    assert there == local
    assert responses(of_server) == responses(of_local)
    asked = sorted(payload["prompt"][0] for payload in record.payloads)
    assert asked == sorted(prompts_of(checkpoint.tokenizer))
    assert {payload["model"] for payload in record.payloads} == {"toy-target"}


@pytest.mark.parametrize("n_requests", [1, 5])
def test_repeats_are_sent_with_different_seeds(n_requests):
    with served() as (server, record):
        lm = served_lm(server, num_concurrent=n_requests, seed=7)
        benchmark, _, samples = run(lm, record.tokenizer, repeats=3, max_new_tokens=20)
    assert [sorted(texts) for texts in responses(samples)] == [[f"The answer is {7 + n}." for n in range(3)]] * N
    assert {(p["temperature"], p["top_p"], p["max_tokens"]) for p in record.payloads} == {(0.7, 1.0, 20)}
    assert benchmark.n_answered == 3 * N


@pytest.mark.parametrize("n_requests", [1, 2])
def test_a_server_that_fails(n_requests, monkeypatch, caplog):
    monkeypatch.setenv("OPENAI_API_KEY", "a-secret")
    with served(status=500) as (server, record):
        lm = served_lm(server, num_concurrent=n_requests, max_retries=1)
        with pytest.raises(RunError, match=r"The server stopped answering: .*500.* Start it and this command again"):
            run(lm, record.tokenizer)
    assert "API request failed" in caplog.text
    assert "a-secret" not in caplog.text


def test_what_a_server_serves():
    with served() as (server, _):
        assert served_model(server, None) == served_model(f"{server}/", "toy-target") == "toy-target"
        assert completions_url(server) == completions_url(f"{server}/completions") == f"{server}/completions"
        with pytest.raises(ConfigError, match=r"serves: toy-target. Got 'toy-targt'. Did you mean 'toy-target'?"):
            served_model(server, "toy-targt")
        with pytest.raises(ConfigError, match=r"must be an OpenAI-compatible server. Got something else at"):
            served_model(server.removesuffix("/v1"), None)
    with pytest.raises(ConfigError, match=r"--server must answer. Got .*refused.* Start it, or mend the address."):
        served_model(server, None)
    with pytest.raises(ConfigError, match=r"an address such as http://localhost:8000/v1. Got localhost:8000"):
        served_model("localhost:8000", None)
