"""`tc-adapters VERB`: picks the verb, runs it, and turns its outcome into an exit code.

    0    done
    1    failed: a line on standard error says why and what to do
    2    wrong use: an option, a verb or a configuration is not what it must be
    130  interrupted

Errors in the program itself keep their traceback. Verbs import torch when they run, never for `--help`.
"""

from __future__ import annotations

import errno
import logging
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from tc_adapters_lens import __version__
from tc_adapters_lens.cli import (
    benchmark,
    dashboard,
    demo,
    doctor,
    evaluate,
    export,
    features,
    generate,
    graph,
    group,
    import_,
    intervene,
    judge,
    overlap,
    report,
    serve,
    train,
)
from tc_adapters_lens.cli.output import write_json
from tc_adapters_lens.cli.parser import Parser
from tc_adapters_lens.errors import AdapterLensError, ConfigError, StopTraining

PROG = "tc-adapters"
VERBS = {
    "demo": demo,
    "doctor": doctor,
    "train": train,
    "generate": generate,
    "evaluate": evaluate,
    "benchmark": benchmark,
    "report": report,
    "features": features,
    "overlap": overlap,
    "judge": judge,
    "graph": graph,
    "group": group,
    "intervene": intervene,
    "dashboard": dashboard,
    "serve": serve,
    "import": import_,
    "export": export,
}
# What the user can mend; any other OSError is an error of ours.
MENDABLE = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line.

    Args:
        argv: the words after `tc-adapters`; None takes them from the process.
    Returns:
        The exit code. `--help` and `--version` raise SystemExit(0) instead, as argparse does.
    """
    try:
        run(sys.argv[1:] if argv is None else argv)
    except StopTraining as stopped:
        return _say(str(stopped), 130)
    except AdapterLensError as error:
        return _say(f"error: {error}", 2 if isinstance(error, ConfigError) else 1)
    except KeyboardInterrupt as stopped:
        return _say(str(stopped) or "interrupted", 130)
    except BrokenPipeError:  # `tc-adapters ... | head`; the second flush, at exit, must not fail as well
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        if error.errno not in MENDABLE:
            raise
        return _say(f"error: {error.filename or 'writing'}: {error.strerror}. Name a place that can be written to.", 1)
    return 0


def run(argv: Sequence[str]) -> None:
    """Parse, run the verb, and write its result where `--json` says.

    Raises:
        ConfigError: wrong use.
        AdapterLensError: the verb failed.
    """
    parser, parsers = build_parser()
    verbs: Mapping[str, Any] = VERBS
    for word in (word for word in argv if not word.startswith("-")):
        if word not in verbs:
            break
        parser.chosen, verb = parsers[word], verbs[word]
        verbs = getattr(verb, "VERBS", {})
        if not verbs:
            verb.add_arguments(parsers[word])
            break
        parsers = add_verbs(parsers[word], verbs)
    args = parser.parse_args(list(argv))
    logging.basicConfig(format="%(message)s")
    logging.getLogger("tc_adapters_lens").setLevel(logging.INFO)
    verb, args = VERBS[args.verb], args[args.verb]
    if "verb" in args:
        verb, args = verb.VERBS[args.verb], args[args.verb]
    result = verb.run(args)
    if args.get("json") and result is not None:
        write_json(args.json, result)


def build_parser() -> tuple[Parser, dict[str, Parser]]:
    """The parser of the whole command line, and by verb the parsers whose arguments are still to be added."""
    parser = Parser(
        prog=PROG,
        version=__version__,
        description="Train, measure and read transcoder adapters for a base model and its fine-tuned target.",
        epilog=f"example:\n  {PROG} demo --out runs/demo\n\n`{PROG} VERB --help` shows a verb's options.",
    )
    return parser, add_verbs(parser, VERBS)


def add_verbs(parser: Parser, verbs: Mapping[str, Any]) -> dict[str, Parser]:
    """Parsers of these verbs, by name, with their summaries and examples."""
    parsers = parser.add_verbs({name: module.SUMMARY for name, module in verbs.items()})
    for name, verb_parser in parsers.items():
        verb_parser.epilog = verbs[name].EXAMPLE
    return parsers


def _say(message: str, code: int) -> int:
    if _speaks():
        print(f"{PROG}: {' '.join(message.split())}", file=sys.stderr, flush=True)
    return code


def _speaks() -> bool:
    """Of several processes of a run one says how it ended."""
    joined = sys.modules.get("tc_adapters_lens.training.distributed")
    return os.environ.get("RANK", "0") == "0" if joined is None else joined.speaks()


if __name__ == "__main__":
    sys.exit(main())
