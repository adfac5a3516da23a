"""Listening: real sockets, and the verb as a process."""

from __future__ import annotations

import http.client
import os
import re
import signal
import socket
import subprocess
import sys

import pytest

from tc_adapters_lens import AdapterSet, AdapterSetInfo, PairInfo
from tc_adapters_lens.cli.main import main
from tc_adapters_lens.errors import AdapterLensError
from tc_adapters_lens.serve.app import Site
from tc_adapters_lens.serve.guard import is_loopback
from tc_adapters_lens.serve.server import address, listen
from tests.features.builder import PAIR, synthetic_store
from tests.serve.running import running


@pytest.fixture(scope="module")
def server(run):
    with running(run) as url:
        yield url.removeprefix("http://")


def raw(server: str, request: bytes) -> bytes:
    """What the server answers to these very bytes."""
    host, _, port = server.partition(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        connection.sendall(request)
        answer = b""
        while part := connection.recv(65536):
            answer += part
        return answer


@pytest.mark.parametrize(
    "target",
    [
        b"/run/dashboards/../../secret.html",
        b"/run/dashboards/..%2f..%2fsecret.html",
        b"/run/dashboards/%2e%2e%2f%2e%2e%2fsecret.html",
        b"/run/dashboards/%252e%252e/secret.html",
        b"/run/dashboards/link.html",
        b"/run/dashboards/a%20b.html%00",
        b"//etc/passwd",
        b"/static/../../../../../../etc/passwd",
    ],
)
def test_raw_paths_lead_nowhere(server, target):
    answer = raw(server, b"GET " + target + b" HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
    assert re.match(rb"HTTP/1.1 4\d\d ", answer)
    assert b"secret" not in answer
    assert b"root:" not in answer


@pytest.mark.parametrize("host", [b"evil.example", b"127.0.0.1.evil.example:80", b"127.0.0.1@evil.example"])
def test_raw_hosts_are_checked(server, host):
    answer = raw(server, b"GET /api/info HTTP/1.1\r\nHost: " + host + b"\r\nConnection: close\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 421 ")
    assert b"toy" not in answer


def test_head_is_get_without_a_body(server):
    connection = http.client.HTTPConnection(server, timeout=20)
    connection.request("HEAD", "/")
    answer = connection.getresponse()
    assert (answer.status, answer.read()) == (200, b"")
    connection.close()


def test_a_websocket_is_refused(server):
    head = b"GET /api/info HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    keys = b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\nConnection: close\r\n\r\n"
    assert b" 101 " not in raw(server, head + keys)


def test_the_verb_says_where_and_ends_with_ctrl_c(tmp_path):
    synthetic_store(tmp_path / "toy" / "features", n_layers=1, n_features=5)
    command = [sys.executable, "-m", "tc_adapters_lens.cli.main", "serve", "toy", "--port", "0"]
    process = subprocess.Popen(
        command,
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=dict(os.environ),
        # where tests run in the background of a shell, Ctrl-C is ignored, which a process would inherit
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        found = re.fullmatch(r"showing features of toy at http://(127\.0\.0\.1:\d+)/  \(Ctrl-C stops\)\n", line)
        assert found, line + process.communicate(timeout=30)[1]
        connection = http.client.HTTPConnection(found[1], timeout=30)
        connection.request("GET", "/api/table")
        assert connection.getresponse().status == 200
        process.send_signal(signal.SIGINT)  # with a connection open
        rest, errors = process.communicate(timeout=30)
        connection.close()
    finally:
        process.kill()
        process.communicate()
    assert (process.returncode, rest, errors) == (130, "", "tc-adapters: interrupted\n")


def test_a_port_in_use_is_one_line(tmp_path, capsys):
    synthetic_store(tmp_path / "features", n_layers=1, n_features=5)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["serve", str(tmp_path), "--port", str(port)]) == 1
    errors = capsys.readouterr().err
    assert errors.count("\n") == 1
    assert f"Port {port} of 127.0.0.1 must be free" in errors
    assert f"--port {port + 1}" in errors


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["nowhere"], 1, "RUN must be the directory of a run or of a feature store. Got nowhere, which is none."),
        (["."], 1, "make them: tc-adapters features --run ."),
        ([".", "--port", "70000"], 2, "--port must be from 0 to 65535. Got 70000."),
        ([".", "--prot", "1"], 2, "Did you mean '--port'?"),
        (["run", "--host", "no such host"], 1, "--host must be an address or name of this machine. Got no such host"),
    ],
)
def test_wrong_use_is_one_line(words, code, says, tmp_path, monkeypatch, capsys):
    synthetic_store(tmp_path / "run" / "features", n_layers=1, n_features=5)
    monkeypatch.chdir(tmp_path)
    assert main(["serve", *words]) == code
    errors = capsys.readouterr().err
    assert says in errors
    assert errors.count("\n") == 1


def test_a_store_of_other_adapters_is_one_line(tmp_path, capsys):
    info = AdapterSetInfo(PairInfo(**PAIR))
    adapters = AdapterSet.fresh(2, 4, 6, info)
    synthetic_store(tmp_path / "features", n_layers=2, n_features=6, adapters_fingerprint=adapters.fingerprint())
    adapters.save(tmp_path / "adapters")
    assert Site(tmp_path).stores.keys() == {"features"}
    AdapterSet.fresh(2, 4, 6, info, seed=1).save(tmp_path / "adapters")
    assert main(["serve", str(tmp_path)]) == 1
    said = capsys.readouterr().err
    assert "features must be of the adapters in" in said
    assert said.count("\n") == 1


def test_a_broken_store_is_one_line(tmp_path, capsys):
    store = synthetic_store(tmp_path / "features", n_layers=1, n_features=5)
    (store.directory / "table.parquet").unlink()
    assert main(["serve", str(tmp_path)]) == 1
    errors = capsys.readouterr().err
    assert "table.parquet" in errors
    assert errors.count("\n") == 1


def test_without_the_extra_the_line_says_how_to_get_it(tmp_path, monkeypatch, capsys):
    monkeypatch.delitem(sys.modules, "tc_adapters_lens.serve.server")
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert main(["serve", str(tmp_path)]) == 1
    assert 'pip install "tc-adapters-lens[serve]"' in capsys.readouterr().err


def test_other_hosts_are_warned_of(monkeypatch, tmp_path, capsys):
    synthetic_store(tmp_path / "features", n_layers=1, n_features=5)
    served = []
    monkeypatch.setattr("uvicorn.Server.run", lambda self, sockets: served.extend(sockets))
    for host, warned in (("127.0.0.1", False), ("0.0.0.0", True)):
        assert main(["serve", str(tmp_path), "--port", "0", "--host", host]) == 0
        served.pop().close()
        said = capsys.readouterr()
        assert ("there is no password" in said.err) == warned
        assert "at http://127.0.0.1:" in said.out


@pytest.mark.parametrize(
    ("host", "expected"), [("127.0.0.1", True), ("localhost", True), ("::1", True), ("0.0.0.0", False), ("box", False)]
)
def test_loopback_is_told(host, expected):
    assert is_loopback(host) == expected


def test_addresses():
    assert address("::1", 5) == "http://[::1]:5/"
    with pytest.raises(AdapterLensError, match=r"of 192\.0\.2\.1 must be free"):  # no address of this machine
        listen("192.0.2.1", 0)
