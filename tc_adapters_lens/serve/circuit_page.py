"""circuit-tracer's own page: its installed files with what they need to run here, offline and under a strict policy.

Its index links scripts of several hosts and holds one of its own; here these are those fetched at set-up, and a file.
In its scripts a few words are changed as they are read: what shows a text as HTML escapes it, and what loses saved
groups, or labels with a percent sign, keeps them. A word that is not there exactly once is left as it is.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Mapping
from html import escape
from pathlib import Path

from tc_adapters_lens.assets import ASSETS, find
from tc_adapters_lens.serve.run_files import inside

SCRIPTS = (
    "d3-7",
    "d3-jetpack",
    "dagre",
)  # in the order in which they run; the rest of what the index asks for is never used
MISSING = 'The page of graphs needs circuit-tracer, which is not installed: pip install "tc-adapters-lens[attribution]"'
INDEX = "index.html"
INLINE = "inline.js"
_SCRIPT = re.compile(r"<script(?P<attributes>[^>]*)>(?P<body>.*?)</script>\s*", re.DOTALL)
_OUTSIDE = re.compile(r"""\bsrc\s*=\s*['"]?(https?:)?//""")

_TITLE = (
    '`Feature&nbsp;<a style="color: inherit;" href="${d.url}" target="_blank">${label}</a> '
    '<span style="font-size: 0.9em; color: #777;">Act: ${actText}</span>`'
)
_PLAIN_TITLE = (
    '`Feature&nbsp;<a href="${plainText(d.url)}" target="_blank">${plainText(label)}</a> <span>Act: ${actText}</span>`'
)
_PARAMS = "['clickedId', 'pinnedIds', 'hiddenIds', 'supernodes', 'sg_pos', 'clerps']"
_OTHER_GRAPH = "visState.clickedId = undefined\n      "
_LABELS = "[data.qParams.clerps, util.params.get('clerps')].flatMap(text => JSON.parse(text || '[]'))"
_FIELD = "return `<div>${str}: <b>${val}</b></div>`"
_PLAIN_FIELD = "return `<div>${plainText(str)}: <b>${plainText(val)}</b></div>`"

PATCHES: Mapping[str, tuple[tuple[str, str], ...]] = {
    # another graph's pins and groups are not this one's
    INDEX: ((_OTHER_GRAPH, f"{_OTHER_GRAPH}for (const key of {_PARAMS}) util.params.set(key, null)\n      "),),
    "util.js": (("return str && decodeURIComponent(str)", "return str"),),
    "attribution_graph/init-cg.js": (
        ("let urlSupernodes = [];", "let urlSupernodes = null;"),
        ("util.params.get('clerps') || data.qParams.clerps;", f"JSON.stringify({_LABELS});"),
    ),
    "attribution_graph/util-cg.js": (
        ("(d.ppClerp || `F#${d.feature}`)", "plainText(d.ppClerp || `F#${d.feature}`)"),
        ("!ev.metaKey ? d.ppClerp :", "!ev.metaKey ? plainText(d.ppClerp) :"),
        (f"\n        {_FIELD}", f"\n        {_PLAIN_FIELD}"),
        (f"\n            {_FIELD}", f"\n            {_PLAIN_FIELD}"),
    ),
    "attribution_graph/init-cg-feature-detail.js": (
        (_TITLE, _PLAIN_TITLE),
        ("headerSel.html(`<b>${label}</b>`)", "headerSel.html(`<b>${plainText(label)}</b>`)"),
    ),
}


def page_root() -> Path | None:
    """The directory of the page's files in the installed circuit-tracer, which is not imported; None without one."""
    package = importlib.util.find_spec("circuit_tracer")
    for place in (package.submodule_search_locations or []) if package else []:
        root = Path(place).resolve() / "frontend" / "assets"
        if (root / INDEX).is_file():
            return root
    return None


def index_html(root: Path, run_name: str) -> str:
    """The index, with scripts from here, or from their CDN with their hash where they were not fetched.

    Args:
        root: of `page_root`.
        run_name: on the link to the run's features; "" for none.
    """
    text = _SCRIPT.sub(_script_of_ours, _patched_file(root, INDEX))
    note = "" if not from_cdn() else f"<small>{', '.join(from_cdn())}: from cdn.jsdelivr.net</small>"
    link = f"<a href='/'>Features of <bdi>{escape(run_name)}</bdi></a>" if run_name else ""
    top = (
        "<link rel='icon' href='/static/icon.svg' type='image/svg+xml'>\n"
        "<link rel='stylesheet' href='/static/circuits.css'>\n"
        f"<header class='run'>{link}{note}</header>\n"
    )
    scripts = "".join([*map(_tag, SCRIPTS), "<script src='/static/circuits.js'></script>\n"])
    for part, before in ((top, "<div"), (scripts, "<script")):
        place = text.find(before)
        text = text[:place] + part + text[place:]
    return text


def page_file(root: Path, name: str) -> str | None:
    """A script or style of the page, changed where it must be; None if it has none of that name."""
    if name == INLINE:
        scripts = _SCRIPT.finditer(_patched_file(root, INDEX))
        return "\n".join(script["body"] for script in scripts if "src" not in script["attributes"])
    path = inside(root, name) if name.endswith((".js", ".css")) else None
    return None if path is None else _patched_file(root, path.relative_to(root).as_posix())


def patched(text: str, patches: tuple[tuple[str, str], ...]) -> str:
    """A text with replacements, those left out whose old words are not in it exactly once."""
    for old, new in patches:
        if text.count(old) == 1:
            text = text.replace(old, new)
    return text


def from_cdn() -> list[str]:
    """Scripts that were not fetched."""
    return [name for name in SCRIPTS if find(name) is None]


def circuits_policy() -> str:
    """No inline script or style, nothing evaluated, no other host but for scripts that were not fetched."""
    scripts = " ".join(["'self'", *(ASSETS[name].cdn for name in from_cdn())])
    return (
        f"default-src 'none'; script-src {scripts}; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


def _patched_file(root: Path, name: str) -> str:
    return patched((root / name).read_text(encoding="utf-8"), PATCHES.get(name, ()))


def _script_of_ours(script: re.Match[str]) -> str:
    if "src" not in script["attributes"]:
        return f"<script src='./{INLINE}'></script>\n"
    return "" if _OUTSIDE.search(script["attributes"]) else script[0]


def _tag(name: str) -> str:
    asset = ASSETS[name]
    if find(name) is None:
        return f"<script src='{asset.cdn}' integrity='{asset.integrity}' crossorigin></script>\n"
    return f"<script src='/lib/{name}.js'></script>\n"
