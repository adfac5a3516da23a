"""What stands between the network and the page: hosts, methods and headers."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Collection, Sequence

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LOOPBACK = ("127.0.0.1", "localhost", "::1")
METHODS = ("GET", "HEAD")
SAVE = "/save_graph/"  # below it, and nowhere else, a page from here may also POST JSON
SELF = "'self'"


class Guard:
    """Refuses other hosts' names (DNS rebinding), other pages and every method that changes something but what the page
    of graphs saves; adds headers to the rest.

    A page whose response says nothing itself may load scripts and styles from here and `scripts`, and nothing else.
    """

    def __init__(self, app: ASGIApp, hosts: Collection[str], scripts: Sequence[str]):
        """
        Args:
            hosts: names and addresses by which the server may be called.
            scripts: addresses outside, each of one script file.
        """
        self._app, self._hosts = app, frozenset(host.lower() for host in hosts)
        self._any_address = any(is_unspecified(host) for host in hosts)
        self._policy = content_policy(scripts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        headers = Headers(scope=scope)
        host = host_name(headers.get("host", ""))
        refusal = None
        if not (host in self._hosts or (self._any_address and is_address(host))):
            refusal = PlainTextResponse("This server is not known by that name.", status_code=421)
        elif scope["method"] == "POST" and scope["path"].startswith(SAVE):
            refusal = refusal_to_save(headers)
        elif scope["method"] not in METHODS:
            refusal = PlainTextResponse("Only GET and HEAD.", status_code=405, headers={"Allow": ", ".join(METHODS)})

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.setdefault("Content-Security-Policy", self._policy)
                headers.setdefault("Cache-Control", "no-cache")
                headers["X-Content-Type-Options"] = "nosniff"
                headers["Referrer-Policy"] = "no-referrer"
                headers["X-Frame-Options"] = "DENY"
                headers["Cross-Origin-Opener-Policy"] = "same-origin"
                headers.setdefault("Cross-Origin-Resource-Policy", "same-origin")
            await send(message)

        await (refusal or self._app)(scope, receive, send_with_headers)


def refusal_to_save(headers: Headers) -> PlainTextResponse | None:
    """What a request to save is answered unless a page of this very server sent it, and JSON."""
    host = headers.get("host", "").lower()
    same = headers.get("origin", "").lower() in (f"http://{host}", f"https://{host}")
    if not same or headers.get("sec-fetch-site", "same-origin") != "same-origin":
        return PlainTextResponse("Only this server's own page may save.", status_code=403)
    if headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        return PlainTextResponse("What is saved must be JSON.", status_code=415)
    return None


def content_policy(scripts: Sequence[str]) -> str:
    """The page's own policy: no inline script or style, nothing evaluated, nobody else's frame."""
    return (
        f"default-src 'none'; script-src {' '.join([SELF, *scripts])}; "
        "style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    )


def dashboard_policy(scripts: Sequence[str]) -> str:
    """For other tools' pages, which run scripts of their own: they run, but apart from this origin, without network."""
    return (
        "sandbox allow-scripts allow-popups allow-downloads; default-src 'none'; "
        f"script-src {' '.join([SELF, *scripts])} 'unsafe-inline' 'unsafe-eval'; "
        "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; font-src 'self' data:; connect-src 'none'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


def picture_policy() -> str:
    """For pictures, which are nothing but styled shapes."""
    return (
        "sandbox; default-src 'none'; style-src 'unsafe-inline'; img-src data:; font-src data:; frame-ancestors 'none'"
    )


def allowed_hosts(host: str) -> list[str]:
    """By what names a server that listens on `host` may be called."""
    names = [*LOOPBACK, host]
    return [*names, socket.gethostname()] if is_unspecified(host) else names


def host_name(header: str) -> str:
    """The name in a Host header, without port and brackets, in lower case."""
    if header.startswith("["):
        return header[1:].partition("]")[0].lower()
    return header.partition(":")[0].lower()


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server there."""
    return host.lower() == "localhost" or (is_address(host) and ipaddress.ip_address(host).is_loopback)


def is_unspecified(host: str) -> bool:
    """0.0.0.0 and ::, on which a server listens to all networks."""
    return is_address(host) and ipaddress.ip_address(host).is_unspecified


def is_address(host: str) -> bool:
    """Whether a host is an address rather than a name, which somebody else's name server could make ours."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
