"""A command that asks so many questions: URL, directory of replies, number, concurrency."""

from __future__ import annotations

import sys
from pathlib import Path

from tc_adapters_lens.cli import main
from tests.judge.questions import asker_at, questions


def run(argv: list[str]) -> None:
    url, directory, n, concurrency = argv
    asker_at(url, Path(directory), concurrency=int(concurrency)).ask(questions(int(n)), "ask")


if __name__ == "__main__":
    main.run = run
    sys.exit(main.main())
