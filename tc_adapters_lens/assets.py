"""Browser scripts that pages use: fetched once from the npm registry, checked by their hash, no part of this package.

    python -m tc_adapters_lens.assets        fetches what is missing

A page whose script is not here links the same file on a public CDN, with the same hash. plotly needs no fetching: its
wheel carries its script.
"""

from __future__ import annotations

import base64
import hashlib
import io
import os
import sys
import tarfile
import urllib.request
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path

from tc_adapters_lens.errors import AssetError, did_you_mean
from tc_adapters_lens.models.atomic import atomic_file

COMMAND = "python -m tc_adapters_lens.assets"
REGISTRY = "https://registry.npmjs.org"
LIMIT = 16 * 2**20  # bytes of a tarball, and of a file in it
SECONDS = 30  # that the registry may stay silent


@dataclass(frozen=True)
class Asset:
    """One file of one npm package.

    name: what pages call it.
    package, version: of npm.
    path: of the file inside the package.
    integrity: "sha384-..." of the file, as a script's `integrity` attribute takes it.
    """

    name: str
    package: str
    version: str
    path: str
    integrity: str

    @property
    def cdn(self) -> str:
        """URL of exactly this file."""
        return f"https://cdn.jsdelivr.net/npm/{self.package}@{self.version}/{self.path}"

    @property
    def file(self) -> Path:
        """Where the file is kept."""
        return directory() / f"{self.name}-{self.version}.js"

    @property
    def tarball(self) -> str:
        """Path of the package's tarball on a registry."""
        return f"{self.package}/-/{self.package.rpartition('/')[2]}-{self.version}.tgz"


ASSETS: dict[str, Asset] = {
    asset.name: asset
    for asset in (
        Asset(
            "d3",
            "d3",
            "6.7.0",
            "dist/d3.min.js",
            "sha384-ma33ZEb8L5emtidZhYJFZNIFdht2E8f5wHQMKQGom0aIx9rRKm86XXCjGxOISpM9",
        ),
        Asset(
            "d3-7",
            "d3",
            "7.9.0",
            "dist/d3.min.js",
            "sha384-CjloA8y00+1SDAUkjs099PVfnY2KmDC2BZnws9kh8D/lX1s46w6EPhpXdqMfjK6i",
        ),
        Asset(
            "d3-jetpack",
            "d3-jetpack",
            "2.1.0",  # the last whose script adds to the d3 that is there
            "build/d3-jetpack.js",
            "sha384-tIm7m7Jf4DR1MIjOjrAw9VAI3b/5NFqb8z4s3e+605E449z/5jCjUzhWTrLTEPT3",
        ),
        Asset(
            "dagre",
            "dagre",
            "0.8.5",
            "dist/dagre.min.js",
            "sha384-2IH3T69EIKYC4c+RXZifZRvaH5SRUdacJW7j6HtE5rQbvLhKKdawxq6vpIzJ7j9M",
        ),
        Asset(
            "lit-html",
            "lit-html",
            "3.3.3",
            "lit-html.js",
            "sha384-FsTl/aaLZggqQ8VOv8FErrA/mpKmmnD3LqW8NiTRDrqS/whhw7jsJ16ZJM2m0IJP",
        ),
    )
}


def directory() -> Path:
    """Where fetched files are kept: beside the Python that runs."""
    return Path(sys.prefix) / "share" / "tc-adapters-lens"


def find(name: str) -> Path | None:
    """The fetched file of an asset; None where there is none, or another file than the one wanted.

    Raises:
        KeyError: no asset has this name.
    """
    asset = ASSETS[name]
    try:
        content = asset.file.read_bytes()
    except OSError:
        return None
    return asset.file if integrity(content) == asset.integrity else None


def fetch(names: Iterable[str] | None = None) -> dict[str, Path]:
    """Fetches those that are not here.

    The registry is npm's, or the environment variable `npm_config_registry`. From its tarball only the wanted file is
    read, and only a file with the wanted hash is written.

    Args:
        names: of ASSETS; None for all.
    Returns:
        Name -> file, for all names.
    Raises:
        AssetError: unknown name, no network, another file than wanted, or writing is not permitted.
    """
    files = {}
    for name in ASSETS if names is None else names:
        if name not in ASSETS:
            raise AssetError(f"A script must be one of {', '.join(ASSETS)}. Got '{name}'.{did_you_mean(name, ASSETS)}")
        asset = ASSETS[name]
        if find(name) is None:
            content = _download(asset)
            with atomic_file(asset.file, error=AssetError) as path:
                path.write_bytes(content)
        files[name] = asset.file
    return files


def integrity(content: bytes) -> str:
    """Hash of a file as an `integrity` attribute takes it."""
    return "sha384-" + base64.b64encode(hashlib.sha384(content).digest()).decode()


def _download(asset: Asset) -> bytes:
    """The asset's file, out of its package's tarball, its hash checked."""
    registry = os.environ.get("npm_config_registry") or REGISTRY  # noqa: SIM112
    if not registry.startswith(("https://", "http://")):
        raise AssetError(
            f"npm_config_registry must begin with https:// or http://. Got '{registry}'. Mend or unset it."
        )
    url = f"{registry.rstrip('/')}/{asset.tarball}"
    try:
        with urllib.request.urlopen(url, timeout=SECONDS) as response:
            packed = response.read(LIMIT + 1)
            # read(n) does not tell when the connection ends early; only read() does
            missing = response.length
    except (OSError, HTTPException, ValueError) as failure:
        raise AssetError(_line(asset, url, f"failed: {failure}")) from failure
    if missing or len(packed) > LIMIT:
        raise AssetError(_line(asset, url, f"was cut off after {len(packed):,} bytes"))
    try:
        content = _member(packed, f"package/{asset.path}")
    except (tarfile.TarError, OSError, EOFError, zlib.error) as failure:
        raise AssetError(_line(asset, url, f"gave no tarball ({failure})")) from failure
    if content is None:
        raise AssetError(_line(asset, url, f"gave a tarball without {asset.path}"))
    if integrity(content) != asset.integrity:
        raise AssetError(_line(asset, url, f"gave another file ({integrity(content)}, not {asset.integrity})"))
    return content


def _member(packed: bytes, name: str) -> bytes | None:
    """The first plain file of exactly this name. Nothing is written, whatever else the tarball holds."""
    with tarfile.open(fileobj=io.BytesIO(packed), mode="r|gz") as tar:
        for member in tar:
            if member.name == name and member.isreg() and member.size <= LIMIT:
                opened = tar.extractfile(member)
                return opened.read() if opened is not None else None
    return None


def _line(asset: Asset, url: str, what: str) -> str:
    said = " ".join(what.split())
    return (
        f"Fetching {asset.package} {asset.version} from {url} {said}. Run `{COMMAND}` again with a network, or set "
        f"npm_config_registry to a registry that can be reached; until then pages link {asset.cdn}."
    )


def main() -> int:
    """Fetches everything; prints each file, or one line that says what failed. Returns the exit code."""
    try:
        for name, path in fetch().items():
            print(f"{name} {ASSETS[name].version}: {path}")
    except AssetError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
