"""Listening: the socket, the line that says where, and a clean end."""

from __future__ import annotations

import socket
import sys
import threading
import webbrowser
from pathlib import Path

import uvicorn

from tc_adapters_lens.errors import AdapterLensError
from tc_adapters_lens.serve.app import Site, make_app
from tc_adapters_lens.serve.guard import allowed_hosts, is_loopback, is_unspecified


def serve(path: str | Path, host: str, port: int, *, open_browser: bool = False) -> None:
    """Shows a run's features until it is interrupted.

    Args:
        path: a run's directory, or a store's.
        host: address or name to listen on.
        port: 0 takes any that is free.
        open_browser: also show the page in the user's browser.
    Raises:
        AdapterLensError: there is nothing to show, or the port is taken.
        KeyboardInterrupt: at Ctrl-C, once the server has ended.
    """
    site = Site(path)
    listening = listen(host, port)
    url = address("127.0.0.1" if is_unspecified(host) else host, listening.getsockname()[1])
    config = uvicorn.Config(
        make_app(site, tuple(allowed_hosts(host))),
        log_config=None,
        log_level="warning",
        access_log=False,
        server_header=False,
        lifespan="off",
        ws="none",
        timeout_graceful_shutdown=3,
    )
    threading.Thread(target=site.warm, daemon=True).start()
    if not is_loopback(host):
        print(
            f"warning: --host {host} lets everybody who can reach this machine read this run's text and features, and "
            "save pins in its graphs; there is no password.",
            file=sys.stderr,
        )
    print(f"showing {', '.join(site.shown)} of {path} at {url}  (Ctrl-C stops)", flush=True)
    if open_browser:
        threading.Thread(target=webbrowser.open, args=(url,), daemon=True).start()
    uvicorn.Server(config).run(sockets=[listening])


def listen(host: str, port: int) -> socket.socket:
    """A socket that takes connections.

    Raises:
        AdapterLensError: the port is in use, or there is no such address here.
    """
    try:
        family, kind, protocol, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except socket.gaierror as unknown:
        raise AdapterLensError(
            f"--host must be an address or name of this machine. Got {host} ({unknown.strerror})."
        ) from unknown
    listening = socket.socket(family, kind, protocol)
    try:
        if sys.platform != "win32":
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(where)
        listening.listen(128)
    except OSError as failure:
        listening.close()
        raise AdapterLensError(
            f"Port {port} of {host} must be free. Got: {failure.strerror}. Name another: --port {next_port(port)}"
        ) from failure
    return listening


def next_port(port: int) -> int:
    """A port to suggest instead."""
    return port + 1 if port < 65535 else 8765


def address(host: str, port: int) -> str:
    """The page's URL."""
    return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"
