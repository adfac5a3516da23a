"""Fetching browser scripts from a registry on this machine that gives the right file, and from ones that do not."""

from __future__ import annotations

import base64
import hashlib
import http.server
import io
import sys
import tarfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tc_adapters_lens import assets
from tc_adapters_lens.assets import Asset
from tc_adapters_lens.errors import AssetError

SCRIPT = b"export const answer = 42;\n"
TARBALL = "/@lens/paint/-/paint-1.2.3.tgz"


def packed(*members: tuple[str, bytes | str]) -> bytes:
    """A tarball; content as bytes is a file, as text the target of a symbolic link."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in members:
            member = tarfile.TarInfo(name)
            if isinstance(content, str):
                member.type, member.linkname = tarfile.SYMTYPE, content
                tar.addfile(member)
            else:
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


RIGHT = packed(("package/package.json", b"{}"), ("package/dist/paint.js", SCRIPT))


@pytest.fixture
def asset(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Asset:
    digest = base64.b64encode(hashlib.sha384(SCRIPT).digest()).decode()
    made = Asset("paint", "@lens/paint", "1.2.3", "dist/paint.js", f"sha384-{digest}")
    monkeypatch.setattr(assets, "ASSETS", {"paint": made})
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "prefix"))
    return made


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[bytes, int | None], list[str]]]:
    """serve(body, length): answers the asset's tarball with it, anything else with 404. Returns what was asked for."""
    servers = []

    def serve(body: bytes, length: int | None = None) -> list[str]:
        asked: list[str] = []

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                asked.append(self.path)
                if self.path != TARBALL:
                    self.send_error(404)
                    return
                self.send_response(200)
                self.send_header("Content-Length", str(len(body) if length is None else length))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                pass

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("npm_config_registry", f"http://127.0.0.1:{server.server_address[1]}/")
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        return asked

    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()


def written(tmp_path: Path) -> list[str]:
    return sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if not path.is_dir())


def test_fetches_once_and_finds(asset, registry, tmp_path):
    asked = registry(RIGHT)
    assert assets.find("paint") is None
    files = assets.fetch()
    assert files == {"paint": assets.find("paint")} == assets.fetch(["paint"])
    assert files["paint"].read_bytes() == SCRIPT
    assert written(tmp_path) == ["prefix/share/tc-adapters-lens/paint-1.2.3.js"]
    assert asked == [TARBALL]
    assert asset.cdn == "https://cdn.jsdelivr.net/npm/@lens/paint@1.2.3/dist/paint.js"


def test_a_changed_file_counts_as_missing_and_is_fetched_again(asset, registry):
    registry(RIGHT)
    asset.file.parent.mkdir(parents=True)
    asset.file.write_bytes(SCRIPT + b"alert(1)")
    assert assets.find("paint") is None
    assert assets.fetch()["paint"].read_bytes() == SCRIPT


@pytest.mark.parametrize(
    ("body", "length", "says"),
    [
        (packed(("package/dist/paint.js", SCRIPT + b"alert(1)")), None, "gave another file (sha384-"),
        (RIGHT[: len(RIGHT) // 2], None, "gave no tarball"),
        (RIGHT[: len(RIGHT) // 2], len(RIGHT), f"was cut off after {len(RIGHT) // 2:,} bytes"),
        (b"<html>sign in</html>", None, "gave no tarball"),
        (packed(("package/package.json", b"{}")), None, "gave a tarball without dist/paint.js"),
        (packed(("package/dist/paint.js", "/etc/passwd")), None, "gave a tarball without dist/paint.js"),
        (packed(("package/../package/dist/paint.js", SCRIPT)), None, "gave a tarball without dist/paint.js"),
    ],
    ids=["wrong-hash", "short-gzip", "cut-off", "a-page", "file-missing", "a-link", "another-spelling"],
)
def test_anything_else_is_refused_and_nothing_written(asset, registry, tmp_path, body, length, says):
    registry(body, length)
    with pytest.raises(AssetError) as caught:
        assets.fetch()
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not written(tmp_path)


def test_only_the_wanted_member_is_read(asset, registry, tmp_path):
    hostile = [("../../outside.js", b"x"), (str(tmp_path / "absolute.js"), b"x"), ("package/dist", "/tmp")]
    registry(packed(*hostile, ("package/dist/paint.js", SCRIPT), ("package/late.js", b"x")))
    assets.fetch()
    assert written(tmp_path) == ["prefix/share/tc-adapters-lens/paint-1.2.3.js"]


def test_no_such_package_and_no_network(asset, registry, monkeypatch, capsys):
    registry(RIGHT)
    monkeypatch.setitem(assets.ASSETS, "paint", Asset("paint", "@lens/paint", "9.9.9", "paint.js", "sha384-x"))
    with pytest.raises(AssetError, match="HTTP Error 404"):
        assets.fetch()
    monkeypatch.setenv("npm_config_registry", "http://127.0.0.1:9/")  # nothing listens there
    assert assets.main() == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("error: Fetching @lens/paint 9.9.9 from http://127.0.0.1:9/")
    assert said.err.count("\n") == 1


def test_wrong_use(asset, monkeypatch):
    with pytest.raises(AssetError, match="Did you mean 'paint'"):
        assets.fetch(["pain"])
    monkeypatch.setenv("npm_config_registry", "file:///tmp/")
    with pytest.raises(AssetError, match="must begin with https:// or http://"):
        assets.fetch()


def test_main_says_what_it_fetched(asset, registry, capsys):
    registry(RIGHT)
    assert assets.main() == 0
    assert capsys.readouterr().out == f"paint 1.2.3: {asset.file}\n"


def test_every_asset_is_one_pinned_file():
    for name, asset in assets.ASSETS.items():
        assert asset.name == name
        assert len(base64.b64decode(asset.integrity.removeprefix("sha384-"))) == 384 // 8
        assert asset.cdn == f"https://cdn.jsdelivr.net/npm/{asset.package}@{asset.version}/{asset.path}"
