"""`tc-adapters benchmark`: accuracy on reasoning benchmarks, by lm-evaluation-harness."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from jsonargparse import Namespace

from tc_adapters_lens.cli import of_run, options
from tc_adapters_lens.cli.parser import Parser
from tc_adapters_lens.errors import ConfigError, RunError
from tc_adapters_lens.models.atomic import atomic_file, write_json

if TYPE_CHECKING:
    from tc_adapters_lens.cli.benchmark_model import BenchmarkModel
    from tc_adapters_lens.integrations.lm_eval.harness import Benchmark, Changes

SUMMARY = "measure accuracy and response length on benchmarks, by lm-evaluation-harness"
EXAMPLE = """\
examples:
  tc-adapters benchmark --run runs/toy --tasks toy --temperature 0 --out runs/toy/benchmarks
  tc-adapters benchmark --run runs/r1-distill-qwen-7b --model hybrid --tasks math500,amc23,aime25,gpqa_diamond \\
      --dtype bfloat16 --out hybrid
  tc-adapters benchmark --target exported --model target --server http://localhost:8000/v1 --batch-size 64 \\
      --tasks math500 --out served

tasks                repeats
  toy                  1   the built-in pair's 400 held-out problems
  math500              1   HuggingFaceH4/MATH-500
  amc23                10  math-ai/amc23
  aime25               10  math-ai/aime25
  gpqa_diamond         3   Idavidrein/gpqa, for which the hub wants to know who you are
Temperature 0.7 and up to 32,768 new tokens (toy: 256), through the chat template. NAME_base is the task for a base
model: four worked problems first, no chat template, temperature 0, up to 2,048 new tokens.

OUT gets TASK.json, what lm-eval found, and TASK.jsonl, every response. A task whose result is there already is not run
again; one that was interrupted starts over. Needs lm-eval:
  pip install "tc-adapters-lens[evals]\""""

FORMAT = "tc_adapters_lens.benchmark"


def add_arguments(parser: Parser) -> None:
    parser.add_argument(
        "--run", type=str | None, metavar="DIR", help="a training run: names pair, adapters and number type"
    )
    options.add_pair(parser, required=False)
    parser.add_argument(
        "--adapters", type=str | None, metavar="DIR", help="directory or hub id of adapters, in place of the run's"
    )
    parser.add_argument(
        "--model",
        type=Literal["replacement", "hybrid", "target", "base"],
        default="replacement",
        help="which model answers",
    )
    parser.add_argument("--tasks", type=str, required=True, metavar="NAMES", help="tasks with commas; see below")
    parser.add_argument("--out", type=str, required=True, metavar="DIR", help="directory of the results")
    parser.add_argument("--limit", type=int | None, metavar="N", help="the first N problems of each task")
    parser.add_argument("--temperature", type=float | None, help="in place of the task's; 0: the likeliest token")
    parser.add_argument("--max-new-tokens", type=int | None, metavar="N", help="in place of the task's")
    parser.add_argument("--repeats", type=int | None, metavar="N", help="responses to each problem, as above")
    parser.add_argument(
        "--data",
        type=str | None,
        metavar="FILE",
        help="problems of the one task, in place of the hub's: json, jsonl, parquet or csv; or another dataset",
    )
    parser.add_argument(
        "--server",
        type=str | None,
        metavar="URL",
        help="ask an OpenAI-compatible server such as vLLM, as http://localhost:8000/v1; only the tokenizer is loaded",
    )
    parser.add_argument(
        "--served-model", type=str | None, metavar="NAME", help="its name there; default: the one that is served"
    )
    parser.add_argument("--chat-template", type=str | None, metavar="FILE", help="Jinja; default: the tokenizer's")
    parser.add_argument(
        "--batch-size", type=int, default=16, help="prompts continued together; of a server, requests under way"
    )
    parser.add_argument("--seed", type=int, default=42, help="of every draw")
    of_run.add_allowances(parser)
    options.add_placement(parser, of_run=True)
    options.add_json(parser)


def run(args: Namespace) -> dict[str, Any]:
    from tc_adapters_lens.integrations.lm_eval.extra import require_lm_eval
    from tc_adapters_lens.integrations.lm_eval.harness import Changes, check_names

    names = args.tasks.split(",")
    check_names(names)
    _check(args, names)
    version = require_lm_eval()
    from tc_adapters_lens.cli.benchmark_model import BenchmarkModel, check_parts
    from tc_adapters_lens.training.config import read_chat_template

    template = None if args.chat_template is None else read_chat_template(args.chat_template)
    of_run.take_from_run(args)
    check_parts(args)
    model = BenchmarkModel(args, template)
    _check_template(args, names, model, template)
    changes = Changes(args.temperature, args.max_new_tokens, args.repeats, args.data)
    settings = {
        "model": args.model,
        "source": model.source,
        **dataclasses.asdict(changes),
        "data": _file_hash(args.data) or args.data,
        "chat_template": template,
        "limit": args.limit,
        "batch_size": args.batch_size,
        "seed": args.seed,
        "lm_eval": version,
    }
    out = Path(args.out).expanduser()
    results = {}
    standing = {name: _standing(out / f"{name}.json", settings) for name in names}
    for name in names:
        results[name] = standing[name] or _run_task(name, changes, model, args, settings, out)
        print(f"{name}: {out / f'{name}.json'}" + (" (was there already)" if standing[name] else ""))
    print(_table(args.model, list(results.values())))
    return {"model": args.model, "out": str(out), "tasks": results}


def _run_task(
    name: str, changes: Changes, model: BenchmarkModel, args: Namespace, settings: Mapping[str, Any], out: Path
) -> dict[str, Any]:
    from tc_adapters_lens.integrations.lm_eval.harness import evaluate

    def n_tokens(text: str) -> int:
        return len(model.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])  # type: ignore

    benchmark: Benchmark
    benchmark, found, samples = evaluate(model.lm, name, changes, limit=args.limit, seed=args.seed, n_tokens=n_tokens)
    result = dataclasses.asdict(benchmark)
    with atomic_file(out / f"{name}.jsonl", error=RunError) as file:
        file.write_text("".join(f"{json.dumps(sample, ensure_ascii=False)}\n" for sample in samples), encoding="utf-8")
    with atomic_file(out / f"{name}.json", error=RunError) as file:
        write_json(file, {"format": FORMAT, "format_version": 1, "result": result, "settings": settings, **found})
    return result


def _check(args: Namespace, names: Sequence[str]) -> None:
    options.require_at_least(args, 1, "limit", "max_new_tokens", "repeats", "batch_size")
    if args.seed < 0:
        raise ConfigError(f"--seed must be at least 0. Got {args.seed}.")
    if args.temperature is not None and not (0 <= args.temperature < math.inf):
        raise ConfigError(f"--temperature must be 0 or above. Got {args.temperature}.")
    if args.data is not None and len(names) > 1:
        raise ConfigError(f"--data is of one task. Got {len(names)}: {','.join(names)}; run them one by one.")
    if args.served_model is not None and args.server is None:
        raise ConfigError("--served-model is for --server. Got no --server; add it, or leave the name out.")


def _check_template(args: Namespace, names: Sequence[str], model: BenchmarkModel, template: str | None) -> None:
    from tc_adapters_lens.integrations.lm_eval.harness import takes_chat_template

    chats = [name for name in names if takes_chat_template(name)]
    if chats and template is None and not model.tokenizer.chat_template:
        raise ConfigError(
            f"{chats[0]} needs a chat template. Got a tokenizer of the {args.model} without one; give --chat-template "
            "FILE, or take tasks for base models, NAME_base."
        )


def _standing(path: Path, settings: Mapping[str, Any]) -> dict[str, Any] | None:
    """The result that stands there, None where there is no file.

    Raises:
        RunError: one of other settings, or another file.
    """
    if not path.exists():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        theirs, result = found["settings"], found["result"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"{path} is there already and is not a benchmark's result. Name another --out.") from error
    others = [key for key in settings if theirs.get(key) != settings[key]]
    if others:
        raise RunError(
            f"{path} must be of the same settings. Got {others[0]} {json.dumps(theirs.get(others[0]))} there and "
            f"{json.dumps(settings[others[0]])} now. Name another --out."
        )
    return result


def _file_hash(data: str | None) -> str | None:
    path = None if data is None else Path(data).expanduser()
    return f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}" if path is not None and path.is_file() else None


def _table(model: str, results: Sequence[Mapping[str, Any]]) -> str:
    heads = (model, "problems", "repeats", "accuracy", "length", "unclosed")
    rows: list[tuple[str, ...]] = [heads]
    for result in results:
        rows.append(
            (
                result["task"],
                f"{result['n_problems']:,}",
                str(result["repeats"]),
                _with_error(result["accuracy"], result["accuracy_stderr"], "{:.1%}"),
                _with_error(result["response_length"], result["response_length_stderr"], "{:,.1f}"),
                f"{result['n_unclosed']:,} of {result['n_responses']:,}",
            )
        )
    widths = [max(len(row[place]) for row in rows) for place in range(len(heads))]
    return "\n".join(
        "  ".join(
            cell.rjust(w) if place else cell.ljust(w) for place, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )


def _with_error(value: float, error: float | None, form: str) -> str:
    return form.format(value) + ("" if error is None else f" ± {form.format(error)}")
