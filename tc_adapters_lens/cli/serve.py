"""`tc-adapters serve`: a local page on which a run's features and graphs are browsed."""

from __future__ import annotations

from jsonargparse import Namespace

from tc_adapters_lens.cli.parser import Parser
from tc_adapters_lens.errors import ConfigError, MissingExtraError

SUMMARY = "browse a run's features and graphs on a local page"
EXAMPLE = """\
examples:
  tc-adapters serve runs/toy
  tc-adapters serve runs/toy --port 9000 --open

Only this machine can reach the page. From elsewhere, forward the port (ssh -L 8765:127.0.0.1:8765 MACHINE) rather than
open it with --host. What is filtered, sorted and opened stands in the page's address, which can be sent to others.
Graphs in RUN/graphs are shown at /circuits/ on circuit-tracer's own page; pins and groups saved there are written into
the graph's file."""


def add_arguments(parser: Parser) -> None:
    parser.add_argument(
        "run", type=str, metavar="RUN", help="directory of a run with features or graphs, or of one feature store"
    )
    parser.add_argument("--port", type=int, default=8765, help="port to listen on; 0 takes any that is free")
    parser.add_argument(
        "--host",
        type=str,
        default="127.0.0.1",
        metavar="ADDRESS",
        help="address to listen on; any but 127.0.0.1 lets other machines in, without a password",
    )
    parser.add_argument("--open", action="store_true", help="also open the page in the browser")


def run(args: Namespace) -> None:
    if not 0 <= args.port <= 65535:
        raise ConfigError(f"--port must be from 0 to 65535. Got {args.port}.")
    try:
        from tc_adapters_lens.serve.server import serve
    except ModuleNotFoundError as missing:
        if missing.name not in ("starlette", "uvicorn"):
            raise
        raise MissingExtraError(
            f'`tc-adapters serve` needs {missing.name}, which is not installed: pip install "tc-adapters-lens[serve]"'
        ) from missing
    serve(args.run, args.host, args.port, open_browser=args.open)
