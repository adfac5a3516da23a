"""A pair like the paper's in miniature, shipped with the package. README.md says what was measured of it.

``BASE`` and ``TARGET`` are ordinary Hugging Face model folders, so everything that takes a model takes them;
the other paths are the sequences and problems that go with them. Importing this needs neither torch nor
transformers.
``scripts/build_toy_pair.py`` rebuilds it all from one seed.
"""

import json
from importlib.resources import files
from pathlib import Path

from tc_adapters_lens.toy.problems import HESITATIONS, Problem, parse_answer

DATA = Path(str(files("tc_adapters_lens.toy"))) / "data"
BASE = DATA / "base"  # model folder: answers at once or after a short worked solution
TARGET = DATA / "target"  # model folder: thinks first, slips, hesitates, corrects itself, then answers
TRAIN = DATA / "train.parquet"  # columns messages, domain: chats sampled from the target, to train adapters on
EVAL_TOKENS = DATA / "eval.jsonl"  # input_ids, prompt_length, domain: token sequences sampled from the target
PROBLEMS = DATA / "problems.jsonl"  # question, answer, domain, kind: held out from all training
MEASURED = DATA / "measured.json"  # what the build measured of the pair


def load_problems() -> list[Problem]:
    """The shipped held-out problems, neither model's training data nor behind the evaluation sequences."""
    with PROBLEMS.open(encoding="utf-8") as lines:
        return [Problem(**json.loads(line)) for line in lines]


__all__ = [
    "BASE",
    "DATA",
    "EVAL_TOKENS",
    "HESITATIONS",
    "MEASURED",
    "PROBLEMS",
    "TARGET",
    "TRAIN",
    "Problem",
    "load_problems",
    "parse_answer",
]
