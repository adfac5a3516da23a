"""An OpenAI-compatible endpoint on this machine that misbehaves as it is told, and counts what it bills.

Questions are "question 17"; a good reply is {"value": 17}, unless a mind is given that reads the request. What is told
is, by question, a list of acts, one for each time it is asked; after them, and for all others, it replies well. A reply
is billed when it is made; asked again with the same Idempotency-Key, the endpoint sends what it made, or tries to, and
bills nothing.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

PROMPT_TOKENS, COMPLETION_TOKENS = 40, 10


@dataclass(frozen=True)
class Received:
    """A request as it arrived; headers by their names in small letters, began in seconds of
    time.monotonic."""

    question: int
    key: str
    body: Mapping[str, Any]
    headers: Mapping[str, str]
    began: float


class Mind:
    """What knows good replies."""

    def number(self, body: Mapping[str, Any]) -> int:
        """Of the question in a request."""
        return int(body["messages"][-1]["content"].split()[-1])

    def reply(self, body: Mapping[str, Any]) -> str:
        return json.dumps({"value": self.number(body)})


@dataclass
class Endpoint:
    """What it was told, and what it saw."""

    acts: Mapping[int, Sequence[Act]] = field(default_factory=dict)
    delay: float = 0.0
    mind: Mind = field(default_factory=lambda: Mind())
    url: str = ""
    received: list[Received] = field(default_factory=list)
    billed: Counter[str] = field(default_factory=Counter)
    made: dict[str, bytes] = field(default_factory=dict)
    refused_at: list[float] = field(default_factory=list)
    out: int = 0
    most_out: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def times(self, question: int) -> list[float]:
        return [one.began for one in self.received if one.question == question]

    @property
    def n_billed(self) -> int:
        return sum(self.billed.values())

    def make(self, key: str, text: str, **choice: Any) -> bytes:
        """The body of a reply, billed once for each key."""
        with self.lock:
            if key not in self.made:
                self.billed[key] += 1
                message = {"role": "assistant", "content": text}
                usage = {"prompt_tokens": PROMPT_TOKENS, "completion_tokens": COMPLETION_TOKENS}
                one = {"index": 0, "message": message, "finish_reason": "stop", **choice}
                body = {"id": "x", "object": "chat.completion", "choices": [one], "usage": usage}
                self.made[key] = json.dumps(body).encode()
            return self.made[key]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    endpoint: Endpoint
    received: Received

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        endpoint, question = self.endpoint, self.endpoint.mind.number(body)
        key = self.headers["Idempotency-Key"]
        lower = {name.lower(): value for name, value in self.headers.items()}
        with endpoint.lock:
            acts = endpoint.acts.get(question, ())
            n_before = sum(one.question == question for one in endpoint.received)
            self.received = Received(question, key, body, lower, time.monotonic())
            endpoint.received.append(self.received)
            endpoint.out += 1
            endpoint.most_out = max(endpoint.most_out, endpoint.out)
        try:
            assert self.path == "/v1/chat/completions"
            time.sleep(endpoint.delay)
            (acts[n_before] if n_before < len(acts) else well)(self)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True
        finally:
            with endpoint.lock:
                endpoint.out -= 1

    def made(self, text: str, **choice: Any) -> bytes:
        return self.endpoint.make(self.received.key, text, **choice)

    def send(self, body: bytes, status: int = 200, headers: Mapping[str, str] | None = None) -> None:
        self.head(len(body), status, headers)
        self.wfile.write(body)

    def head(self, length: int, status: int = 200, headers: Mapping[str, str] | None = None) -> None:
        if status == 429:
            self.endpoint.refused_at.append(time.monotonic())
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": length, **(headers or {})}.items():
            self.send_header(name, str(value))
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        pass


Act = Callable[[Handler], None]


def well(handler: Handler) -> None:
    handler.send(_reply(handler))


def _reply(handler: Handler) -> bytes:
    return handler.made(handler.endpoint.mind.reply(handler.received.body))


def says(text: str, **choice: Any) -> Act:
    """A reply of this text."""
    return lambda handler: handler.send(handler.made(text, **choice))


def status(code: int, error: Any = None, headers: Mapping[str, str] | None = None) -> Act:
    body = json.dumps({"error": {"message": "no"} if error is None else error}).encode()
    return lambda handler: handler.send(body, code, headers)


def body(text: str) -> Act:
    """A body that costs nothing and may be anything."""
    return lambda handler: handler.send(text.encode())


def echoes_key(handler: Handler) -> None:
    given = handler.headers["Authorization"].removeprefix("Bearer ")
    status(401, {"message": f"Incorrect API key provided: {given}. See {given[:24]}..."})(handler)


def hangs(seconds: float) -> Act:
    return lambda handler: time.sleep(seconds)


def drips(handler: Handler) -> None:
    """A reply that is made, and comes a byte each 50 ms."""
    whole = _reply(handler)
    handler.head(len(whole))
    for at in range(60):
        handler.wfile.write(whole[at : at + 1])
        handler.wfile.flush()
        time.sleep(0.05)
    handler.close_connection = True


def drops(handler: Handler) -> None:
    """Nothing at all."""
    handler.close_connection = True


def drops_midway(handler: Handler) -> None:
    """A reply that is made, half of which comes."""
    whole = _reply(handler)
    handler.head(len(whole))
    handler.wfile.write(whole[: len(whole) // 2])
    handler.close_connection = True


def half_json(handler: Handler) -> None:
    """A reply that is made, half of which comes as if it were all."""
    whole = _reply(handler)
    handler.send(whole[: len(whole) // 2])


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128


@contextlib.contextmanager
def running(
    acts: Mapping[int, Sequence[Act]] | None = None, delay: float = 0.0, mind: Mind | None = None
) -> Iterator[Endpoint]:
    """An endpoint that runs.

    Args:
        delay: seconds before it does anything about a request.
    """
    endpoint = Endpoint({} if acts is None else acts, delay, mind or Mind())
    server = _Server(("127.0.0.1", 0), type("OneHandler", (Handler,), {"endpoint": endpoint}))
    endpoint.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield endpoint
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
