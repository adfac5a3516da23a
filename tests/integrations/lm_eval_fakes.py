"""A model of lm-eval that says what it is told to, and a completions server that answers from the toy target."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import torch
from lm_eval.api.model import LM

from tc_adapters_lens.models.checkpoints import Checkpoint
from tc_adapters_lens.models.sampling import Sampling, load_target, sample

END = 3  # of the toy pair's tokens


class Told(LM):
    """Says `say(prompt, repeat)`; its chat template writes "U:" before a message. Keeps the prompts."""

    max_length = 100_000

    def __init__(self, say: Callable[[str, int], str]):
        super().__init__()
        self.say, self.prompts, self.options = say, [], []

    def generate_until(self, requests, disable_tqdm=False):
        said = []
        for request in requests:
            prompt, options = request.args
            said.append(self.say(prompt, self.prompts.count(prompt)))
            self.prompts.append(prompt)
            self.options.append(options)
        return said

    def loglikelihood(self, requests, disable_tqdm=False):
        raise NotImplementedError

    loglikelihood_rolling = loglikelihood

    @property
    def tokenizer_name(self):
        return "told"

    def apply_chat_template(self, chat_history, add_generation_prompt=True):
        return "".join(f"U:{message['content']}" for message in chat_history)


class Served:
    """What a server was asked, and how it answers: greedily from the toy target, or the seed at a temperature."""

    def __init__(self):
        self.payloads: list[dict] = []
        checkpoint = Checkpoint.open("toy:target")
        self.tokenizer = checkpoint.tokenizer
        self.model = load_target(checkpoint, torch.float32, "cpu")

    def answer(self, payload: dict) -> str:
        self.payloads.append(payload)
        if payload["temperature"] > 0:
            return f"The answer is {payload['seed']}."
        settings = Sampling(temperature=0, max_new_tokens=payload["max_tokens"])
        texts = []
        for row in sample(self.model, payload["prompt"], settings, end_tokens=[END]):
            texts.append(self.tokenizer.decode(row.input_ids[row.prompt_length :], skip_special_tokens=True))
        (text,) = texts
        return text


@contextmanager
def served(status: int = 200) -> Iterator[tuple[str, Served]]:
    """Address and record of a server whose completions end with this status."""
    record = Served()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self._send(200, {"data": [{"id": "toy-target"}]} if self.path == "/v1/models" else {"no": "models"})

        def do_POST(self):
            payload = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            text = record.answer(payload) if status == 200 else ""
            self._send(status, {"choices": [{"index": 0, "text": text}]})

        def _send(self, code: int, value: dict) -> None:
            body = json.dumps(value).encode()
            self.send_response(code)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *words):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1", record
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
