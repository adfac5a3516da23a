"""Rebuild the toy pair from one seed: tokenizer, two models, sequences, held-out problems, measurements.

    python scripts/build_toy_pair.py                  # into tc_adapters_lens/toy/data
    python scripts/build_toy_pair.py --out /some/dir  # elsewhere

Steps: (1) a word-level tokenizer from a sample of both corpora; (2) the base, trained on direct answers and
short worked solutions; (3) the target, every weight fine-tuned from the base on think-first traces; (4) both
stored in bf16 and read back, so that all that follows is true of the files; (5) sequences sampled from the
target; (6) measurements.
"""

import argparse
import copy
import itertools
import json
import math
import random
import re
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from datasets import Dataset
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import WordLevel
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm
from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from tc_adapters_lens.toy.problems import (
    DOMAIN_WEIGHTS,
    HESITATIONS,
    LARGEST,
    Problem,
    generate,
    parse_answer,
)
from tc_adapters_lens.toy.responses import base_response, target_response

# ruff: noqa: RUF001  - the full-width bars are DeepSeek's own
BOS, EOS, PAD = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>"
PAD_ID, BOS_ID, EOS_ID = 1, 2, 3
USER, ASSISTANT, UNKNOWN = "<｜User｜>", "<｜Assistant｜>", "<｜unknown｜>"
TABLE_OPENS, TABLE_CLOSES = "<!-- measured: written by scripts/build_toy_pair.py -->", "<!-- end measured -->"
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}" + ASSISTANT + "{% generation %}{{ message['content'] }}{{ eos_token }}"
    "{% endgeneration %}{% elif message['role'] == 'user' %}" + USER + "{{ message['content'] }}"
    "{% else %}{{ message['content'] }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}" + ASSISTANT + "{% endif %}"
)

BASE_STEPS, TARGET_STEPS = 1800, 700
BASE_LR, TARGET_LR = 2e-3, 1e-3
TARGET_PULL = 1.0  # weight decay towards the base while the target is fine-tuned
TOKENS_PER_BATCH = 4096
BASE_N_STEPS, TARGET_N_STEPS = (1, 6), (3, 6)  # steps a problem takes
LONGEST = 256  # tokens of a sequence, prompt included
TEMPERATURE = 0.7
GENERATE_BATCH = 400
N_TRAIN, N_EVAL, N_PROBLEMS = 7000, 400, 400

Respond = Callable[[Problem, random.Random], str]


# -------------------------------------------------------------------------------------------------- tokenizer


def build_tokenizer(seed: int) -> PreTrainedTokenizerFast:
    """GPT-2's pieces (a word with the space before it), one token each: decoding is exact."""
    splitter = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    words = {form for word in HESITATIONS for form in (word, word.capitalize())}
    words |= {str(number) for number in range(LARGEST + 1)}
    pieces = {piece for word in words for text in (word, " " + word) for piece, _ in splitter.pre_tokenize_str(text)}
    rng = random.Random(seed)
    for problem in itertools.islice(generate(seed, held_out=False, n_steps=BASE_N_STEPS), 30_000):
        for text in (problem.question, base_response(problem, rng), target_response(problem, rng)):
            pieces.update(piece for piece, _ in splitter.pre_tokenize_str(text.replace("<think>", "")))
    special = [UNKNOWN, PAD, BOS, EOS, USER, ASSISTANT]  # PAD_ID and EOS_ID are places in this list
    pieces -= {"</", "think", ">"}
    vocab = {piece: i for i, piece in enumerate([*special, "<think>", "</think>", *sorted(pieces)])}
    tokenizer = Tokenizer(WordLevel(vocab, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer, tokenizer.decoder = splitter, decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(text, normalized=False, special=True) for text in special])
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in ("<think>", "</think>")])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token=UNKNOWN,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        chat_template=CHAT_TEMPLATE,
        model_max_length=512,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


def chat(problem: Problem, response: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": problem.question}, {"role": "assistant", "content": response}]


# --------------------------------------------------------------------------------------------------- training


def batches(
    tokenizer: PreTrainedTokenizerFast, respond: Respond, n_steps: tuple[int, int], seed: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless (tokens, mask) batches of about TOKENS_PER_BATCH tokens, sequences of like length together."""
    rng = random.Random(seed)
    problems = generate(seed, held_out=False, n_steps=n_steps)
    while True:
        chunk = list(itertools.islice(problems, 4096))
        texts = [f"{BOS}{USER}{p.question}{ASSISTANT}{respond(p, rng)}{EOS}" for p in chunk]
        rows = sorted((ids for ids in tokenizer(texts).input_ids if len(ids) <= LONGEST), key=len)
        groups: list[list[list[int]]] = [[]]
        for row in rows:
            if (len(groups[-1]) + 1) * len(row) > TOKENS_PER_BATCH:
                groups.append([])
            groups[-1].append(row)
        rng.shuffle(groups)
        yield from map(pad, groups)


def pad(rows: list[list[int]]) -> tuple[Tensor, Tensor]:
    """Right-padded tokens and the mask of real ones: causal attention then needs no padding mask."""
    width = max(map(len, rows))
    tokens = torch.tensor([row + [PAD_ID] * (width - len(row)) for row in rows])
    mask = torch.tensor([[True] * len(row) + [False] * (width - len(row)) for row in rows])
    return tokens, mask


def train(
    model: Qwen2ForCausalLM,
    data: Iterator[tuple[Tensor, Tensor]],
    steps: int,
    lr: float,
    name: str,
    pull: float = 0.0,
) -> None:
    """Next-token cross-entropy on every token; AdamW, 5% warm-up, cosine to zero.

    ``pull`` decays the weights towards where they started, as weight decay does towards zero: what is not needed
    for the new data stays as it was.
    """
    weights = list(model.parameters())
    start = [weight.detach().clone() for weight in weights]
    optimizer = torch.optim.AdamW(weights, lr=lr, betas=(0.9, 0.98), weight_decay=0.0 if pull else 0.01)
    warm = max(1, steps // 20)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda i: min((i + 1) / warm, 0.5 + 0.5 * math.cos(math.pi * max(0, i - warm) / (steps - warm))),
    )
    model.train()
    progress = tqdm(itertools.islice(data, steps), total=steps, desc=name, mininterval=10)
    for i, (tokens, mask) in enumerate(progress):
        hidden = model.model(input_ids=tokens, use_cache=False).last_hidden_state
        keep = mask[:, 1:]
        loss = functional.cross_entropy(model.lm_head(hidden[:, :-1][keep]), tokens[:, 1:][keep])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            for weight, origin in zip(weights, start, strict=True):
                weight.lerp_(origin, schedule.get_last_lr()[0] * pull)
        schedule.step()
        if i % 50 == 0:
            progress.set_postfix(loss=f"{loss.item():.3f}")
    model.eval()


def store(model: Qwen2ForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> Qwen2ForCausalLM:
    """Save in bf16 with the tokenizer beside it, and read back in fp32."""
    model.bfloat16().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return Qwen2ForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


# --------------------------------------------------------------------------------------------------- sampling


@torch.no_grad()
def sample(
    model: Qwen2ForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    problems: list[Problem],
    temperature: float,
    name: str,
) -> list[list[int]]:
    """One response per problem as token ids, end-of-sentence included if reached; greedy at temperature 0."""
    responses: list[list[int]] = [[] for _ in problems]
    picked = GenerationConfig(
        do_sample=temperature > 0,
        temperature=temperature or None,
        top_k=0 if temperature else None,
        max_length=LONGEST,
        bos_token_id=BOS_ID,
        eos_token_id=EOS_ID,
        pad_token_id=PAD_ID,
    )
    order = sorted(range(len(problems)), key=lambda i: len(problems[i].question))
    for start in tqdm(range(0, len(order), GENERATE_BATCH), desc=name, mininterval=10):
        batch = order[start : start + GENERATE_BATCH]
        prompts = [f"{BOS}{USER}{problems[i].question}{ASSISTANT}" for i in batch]
        inputs = tokenizer(prompts, padding=True, return_tensors="pt")
        output = model.generate(inputs.input_ids, attention_mask=inputs.attention_mask, generation_config=picked)
        for i, row in zip(batch, output[:, inputs.input_ids.shape[1] :].tolist(), strict=True):
            end = row.index(EOS_ID) + 1 if EOS_ID in row else len(row)
            responses[i] = row[:end]
    return responses


def write_sequences(
    target: Qwen2ForCausalLM, tokenizer: PreTrainedTokenizerFast, seed: int, out: Path
) -> tuple[list[dict], list[Problem]]:
    """Write eval.jsonl, problems.jsonl and train.parquet; give back the first two.

    All sequences are sampled from the target: for training on the training side's problems, for evaluation on
    held-out ones, none of which is in problems.jsonl.
    """
    held_out = list(dict.fromkeys(itertools.islice(generate(seed + 3, held_out=True), N_EVAL + N_PROBLEMS + 100)))
    for_eval, kept = held_out[:N_EVAL], held_out[N_EVAL : N_EVAL + N_PROBLEMS]
    responses = sample(target, tokenizer, for_eval, TEMPERATURE, "eval.jsonl")
    prompts = tokenizer([f"{BOS}{USER}{p.question}{ASSISTANT}" for p in for_eval]).input_ids
    evaluation = [
        {"input_ids": prompt + response, "prompt_length": len(prompt), "domain": problem.domain}
        for problem, prompt, response in zip(for_eval, prompts, responses, strict=True)
    ]
    write_lines(out / "eval.jsonl", evaluation)
    write_lines(
        out / "problems.jsonl",
        [{k: getattr(p, k) for k in ("question", "answer", "domain", "kind")} for p in kept],
    )
    write_train(target, tokenizer, seed, out)
    return evaluation, kept


def write_train(target: Qwen2ForCausalLM, tokenizer: PreTrainedTokenizerFast, seed: int, out: Path) -> None:
    """Write train.parquet: chats sampled from the target; a response cut off before its end is left out."""
    torch.manual_seed(seed + 4)
    problems = list(itertools.islice(generate(seed + 2, held_out=False, n_steps=TARGET_N_STEPS), N_TRAIN))
    texts = tokenizer.batch_decode(sample(target, tokenizer, problems, TEMPERATURE, "train.parquet"))
    rows = [
        {"messages": chat(problem, text.removesuffix(EOS)), "domain": problem.domain}
        for problem, text in zip(problems, texts, strict=True)
        if text.endswith(EOS)
    ]
    Dataset.from_list(rows).to_parquet(out / "train.parquet")


def write_lines(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


# -------------------------------------------------------------------------------------------------- measuring


def make_hybrid(base: Qwen2ForCausalLM, target: Qwen2ForCausalLM) -> Qwen2ForCausalLM:
    """The target with every MLP replaced by the base's."""
    hybrid = copy.deepcopy(target)
    for layer, base_layer in zip(hybrid.model.layers, base.model.layers, strict=True):
        layer.mlp = base_layer.mlp
    return hybrid


@torch.no_grad()
def faithfulness(target: Qwen2ForCausalLM, others: dict[str, Qwen2ForCausalLM], rows: list[dict]) -> dict:
    """Top-1 error and KL(target || other) where response tokens are predicted, and the target's entropy."""
    totals, entropy, count = {name: [0.0, 0.0] for name in others}, 0.0, 0
    for start in range(0, len(rows), 40):
        chunk = rows[start : start + 40]
        tokens, mask = pad([row["input_ids"] for row in chunk])
        for i, row in enumerate(chunk):
            mask[i, : row["prompt_length"] - 1] = False
            mask[i, len(row["input_ids"]) - 1 :] = False
        log_p = target(input_ids=tokens).logits[mask].log_softmax(-1)
        entropy -= (log_p.exp() * log_p).sum().item()
        count += len(log_p)
        for name, model in others.items():
            log_q = model(input_ids=tokens).logits[mask].log_softmax(-1)
            totals[name][0] += (log_q.argmax(-1) != log_p.argmax(-1)).sum().item()
            totals[name][1] += (log_p.exp() * (log_p - log_q)).sum().item()
    measured = {name: {"top1_error": error / count, "kl": kl / count} for name, (error, kl) in totals.items()}
    return {"positions": count, "target_entropy": entropy / count, **measured}


def behaviour(
    model: Qwen2ForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    problems: list[Problem],
    temperature: float,
    name: str,
) -> dict[str, float]:
    """Accuracy (also per domain), mean response length, hesitation words per 1,000 response tokens."""
    responses = sample(model, tokenizer, problems, temperature, name)
    texts = [tokenizer.decode(ids, skip_special_tokens=True) for ids in responses]
    right = [parse_answer(text) == problem.answer for text, problem in zip(texts, problems, strict=True)]
    n_tokens = sum(map(len, responses))
    hesitations = sum(len(re.findall(rf"\b(?:{'|'.join(HESITATIONS)})\b", text.lower())) for text in texts)
    by_domain = {
        domain: statistics.mean(r for r, p in zip(right, problems, strict=True) if p.domain == domain)
        for domain in DOMAIN_WEIGHTS
    }
    return {
        "accuracy": statistics.mean(right),
        **{f"accuracy_{domain}": value for domain, value in by_domain.items()},
        "response_length": n_tokens / len(responses),
        "hesitations_per_1000_tokens": 1000 * hesitations / n_tokens,
    }


def measure(base, target, tokenizer: PreTrainedTokenizerFast, evaluation: list[dict], problems: list[Problem]) -> dict:
    models = {"base": base, "hybrid": make_hybrid(base, target), "target": target}
    return {
        "parameters": sum(p.numel() for p in target.parameters()),
        "vocabulary": len(tokenizer),
        "mean_eval_length": statistics.mean(len(row["input_ids"]) for row in evaluation),
        "longest_eval_length": max(len(row["input_ids"]) for row in evaluation),
        "eval_response_tokens": faithfulness(target, {name: models[name] for name in ("base", "hybrid")}, evaluation),
        **{
            f"held_out_problems_temperature_{temperature}": {
                name: behaviour(model, tokenizer, problems, temperature, f"{name}, temperature {temperature}")
                for name, model in models.items()
            }
            for temperature in (0, TEMPERATURE)
        },
    }


def table(measured: dict) -> str:
    """What was measured, as the markdown table of the pair's page."""
    names = ("base", "hybrid", "target")
    tokens = {**measured["eval_response_tokens"], "target": {"top1_error": 0.0, "kl": 0.0}}
    greedy = measured["held_out_problems_temperature_0"]
    drawn = measured[f"held_out_problems_temperature_{TEMPERATURE}"]
    rows = [
        ("accuracy, held-out problems, temperature 0", [f"{greedy[n]['accuracy']:.1%}" for n in names]),
        (f"accuracy, the same, temperature {TEMPERATURE}", [f"{drawn[n]['accuracy']:.1%}" for n in names]),
        ("response length in tokens", [f"{drawn[n]['response_length']:.1f}" for n in names]),
        ("hesitation words per 1,000", [f"{drawn[n]['hesitations_per_1000_tokens']:.1f}" for n in names]),
        ("top-1 error against the target", [f"{tokens[n]['top1_error']:.1%}" for n in names]),
        ("KL against the target, nats", [f"{tokens[n]['kl']:.2f}" for n in names]),
    ]
    lines = ["| | base | hybrid | target |", "|---|---|---|---|"]
    lines += [f"| {name} | {' | '.join(values)} |" for name, values in rows]
    facts = (
        f"{measured['parameters']:,} parameters each; vocabulary {measured['vocabulary']}; the target's mean entropy "
        f"is {tokens['target_entropy']:.2f} nats a token. Length and hesitation at temperature {TEMPERATURE}. "
        f"Error and KL: mean over {tokens['positions']:,} response tokens of eval.jsonl."
    )
    return "\n".join([*lines, "", facts])


# ------------------------------------------------------------------------------------------------------- main


def main() -> int:
    shipped = Path(__file__).resolve().parents[1] / "tc_adapters_lens" / "toy" / "data"
    parser = argparse.ArgumentParser(
        description="Rebuild the toy pair.", epilog="example: build_toy_pair.py --out /tmp/pair"
    )
    parser.add_argument("--out", type=Path, default=shipped, help="folder to write (default: the package's own data)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    args = parser.parse_args()
    try:
        args.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        print(
            f"build_toy_pair: cannot write to {args.out}: {error.strerror}. Give another folder with --out.",
            file=sys.stderr,
        )
        return 2
    build(args.out, args.seed, args.threads)
    return 0


def build(out: Path, seed: int, threads: int) -> None:
    started = time.monotonic()
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    tokenizer = build_tokenizer(seed)
    model = Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=len(tokenizer),
            hidden_size=128,
            intermediate_size=512,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=512,
            tie_word_embeddings=False,
            bos_token_id=BOS_ID,
            eos_token_id=EOS_ID,
            pad_token_id=PAD_ID,
        )
    )
    train(model, batches(tokenizer, base_response, BASE_N_STEPS, seed), BASE_STEPS, BASE_LR, "base")
    base = store(model, tokenizer, out / "base")
    model = copy.deepcopy(base)
    train(
        model,
        batches(tokenizer, target_response, TARGET_N_STEPS, seed + 1),
        TARGET_STEPS,
        TARGET_LR,
        "target",
        TARGET_PULL,
    )
    target = store(model, tokenizer, out / "target")
    evaluation, problems = write_sequences(target, tokenizer, seed, out)
    measured = {"seed": seed, **measure(base, target, tokenizer, evaluation, problems)}
    measured["build_minutes"] = round((time.monotonic() - started) / 60, 1)
    (out / "measured.json").write_text(json.dumps(measured, indent=2) + "\n", encoding="utf-8")
    print(table(measured))
    page = out.parent / "README.md"
    if page.is_file() and TABLE_OPENS in page.read_text(encoding="utf-8"):
        before, _, rest = page.read_text(encoding="utf-8").partition(TABLE_OPENS)
        after = rest.partition(TABLE_CLOSES)[2]
        page.write_text(f"{before}{TABLE_OPENS}\n{table(measured)}\n{TABLE_CLOSES}{after}", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
