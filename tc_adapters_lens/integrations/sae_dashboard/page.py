"""sae-dashboard's HTML as a page that works from the disk and shows any token text without running it.

sae-dashboard puts token texts into a <script>, and with innerHTML into tooltips. Here they come back in as JSON without
angle brackets, tooltips escape them, and the page's policy runs no script but its own, known by their hashes.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from sae_dashboard.sae_vis_data import SaeVisData

from tc_adapters_lens.integrations.sae_dashboard.runner import Drawn
from tc_adapters_lens.templates import templates

__all__ = ["FeatureFacts", "Script", "render", "render_page", "visible"]

_TEMPLATES = Path(__file__).parent / "templates"
_CDN = """<script src="https://d3js.org/d3.v6.min.js"></script>
<script src="https://cdn.plot.ly/plotly-latest.min.js"></script>

<script>
"""
_COLUMN = 2  # of the sequence groups, in sae-dashboard's default layout
_SILENT = "NOT ACTIVE ON THIS PAGE'S TOKENS"
# In sae-dashboard 0.8.0's scripts: what there is, what it becomes, and how often it is there.
_CHANGES = (
    ("${tok}", "${escapeText(tok)}", 4),
    (".html(d => d)", ".text(d => d)", 1),
    ("d.value.toFixed(2)", "d.value.toPrecision(3)", 1),
    # Never computed by this version, which shows 0 in its place.
    ('firstTable.append("tr").html(lossRow);', "", 1),
    ('.html("Feature not active on prev token;<br>no predictions were affected.")', "", 1),
    ("prevTokenActive ? 270 : 160", "prevTokenActive ? 270 : 80", 1),
    # Its words for other models' hooks.
    ('"NEURON ALIGNMENT"', '"RESIDUAL DIMENSIONS IT WRITES"', 1),
    ('"CORRELATED NEURONS"', '"CORRELATED MLP INPUTS"', 1),
    ('"CORRELATED FEATURES"', '"CORRELATED, OF THIS PAGE"', 1),
)


@dataclass(frozen=True)
class FeatureFacts:
    """What a page and the index say of a feature beside its dashboard.

    frequency, max: share of positions where it is active, and its highest activation, over the text named in the index.
    promoted: texts of the tokens whose logits it raises most.
    """

    frequency: float
    max: float
    promoted: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        return {"frequency": self.frequency, "max": self.max, "promoted": list(self.promoted)}


@dataclass(frozen=True)
class Script:
    """A browser script that a page loads: from beside it, or from a CDN with the hash of what it must be."""

    src: str
    integrity: str | None = None


def render_page(
    drawn: Drawn,
    layer: int,
    facts: Mapping[int, FeatureFacts],
    text_of: Callable[[int], str],
    scripts: Sequence[Script],
    about: Mapping[str, Any],
) -> str:
    """One page of features of one layer.

    Args:
        drawn: what sae-dashboard made.
        facts: feature -> what is known of it.
        text_of: token id -> its text.
        scripts: d3, plotly.
        about: further values of the template: `pair`, `n_sequences`, `length`, `from_store`.
    """
    columns, styles, code, data = _take_apart(drawn.html)
    for old, new, times in _CHANGES:
        assert code.count(old) == times, f"sae-dashboard has changed: {old!r} is there {code.count(old)} times"
        code = code.replace(old, new)
    dashboards = {key: _mended(int(key), value, drawn.data, text_of) for key, value in data["DASHBOARD_DATA"].items()}
    with_data = f"{code}{_json({'AGGDATA': {}, 'DASHBOARD_DATA': dashboards})};\n}}\n"
    own = [templates(_TEMPLATES).get_template("page.js").render(), with_data]
    sources = [f"'sha256-{_sha256(script)}'" for script in own]
    sources += [script.src for script in scripts if script.integrity]
    return render(
        "page.html",
        layer=layer,
        facts=facts,
        columns=_all_columns(columns),
        styles=styles,
        scripts=scripts,
        inline=own,
        policy=f"default-src 'none'; script-src 'self' {' '.join(sources)}; style-src 'unsafe-inline'; "
        "img-src data: blob:; base-uri 'none'; form-action 'none'",
        **about,
    )


def render(template: str, **values: Any) -> str:
    """A template of this package; values are escaped."""
    return templates(_TEMPLATES).get_template(template).render(visible=visible, **values)


def visible(text: str) -> str:
    """A token's text with signs for what cannot be seen or would change how its surroundings are shown."""
    return "".join(_visible_letter(letter) for letter in text)


@cache
def _visible_letter(letter: str) -> str:
    if letter in "\n\t\r":
        return {"\n": "↵", "\t": "⇥", "\r": "␍"}[letter]
    if unicodedata.category(letter) in ("Cc", "Cf", "Co", "Cs", "Cn", "Zl", "Zp"):
        return f"⟨U+{ord(letter):04X}⟩"
    return letter


def _take_apart(html: str) -> tuple[str, str, str, dict[str, Any]]:
    """Columns, styles, code up to the data, and the data."""
    markup, script = html.split(_CDN)
    columns, styles = markup.split("<style>\n")
    at = script.index("return ", script.index("function defineData()")) + len("return ")
    data, _ = json.JSONDecoder().raw_decode(script, at)
    return columns, styles.partition("</style>")[0], script[:at], data


def _all_columns(columns: str) -> str:
    """With a place for every group of sequences. sae-dashboard makes those of the page's first feature alone, and what
    other features have in other groups is not shown."""
    first = columns.index(f"<div id='column-{_COLUMN}-0'")
    groups = [[0], *(range(start, start + 3) for start in (1, 4, 7)), [10]]
    made = "".join(
        f'<div id="column-{_COLUMN}-{index}" class="grid-column">'
        + "".join(f'<div class="seq-group" id="seq-group-{_COLUMN}-{group}"></div>' for group in column)
        + "</div>\n"
        for index, column in enumerate(groups)
    )
    return f"{columns[:first]}{made}</div>\n"


def _mended(feature: int, values: dict[str, Any], data: SaeVisData, text_of: Callable[[int], str]) -> dict[str, Any]:
    """One feature's data: texts for ids, plotly's own ticks, logits in full, nothing where there is nothing."""
    of_feature = data.feature_data_dict[feature]
    table = of_feature.logits_table_data
    for name, logits in (("posLogits", table.top_logits), ("negLogits", table.bottom_logits)):
        for row, value in zip(values["logitsTableData"]["0"][name], logits, strict=True):
            row["symbol"] = visible(text_of(int(row["symbol"])))
            row["value"] = value
    related = values["featureTablesData"]["0"]
    related["correlatedFeatures"] = [row for row in related["correlatedFeatures"] if row["index"] != feature]
    for histogram in ("actsHistogramData", "logitsHistogramData"):
        # These are multiples of 0.1, and where all values are smaller than that, hundreds of thousands of zeros.
        values[histogram]["0"].pop("ticks")
    active = bool(values["actsHistogramData"]["0"]["x"])
    if not active:
        values["actsHistogramData"]["0"] = {"x": [0], "y": [0], "colors": ["#fff"], "title": _SILENT}
    for name, group in values["tokenData"].items():
        if name == f"seq-group-{_COLUMN}-0":
            group["data"] = [tokens for tokens in group["data"] if any("featAct" in t for t in tokens if t["isBold"])]
        if not active:
            group["data"], group["title"] = [], ""
        for token in (token for tokens in group["data"] for token in tokens):
            token["tok"] = visible(text_of(token["tokID"]))
    return values


def _json(value: Any) -> str:
    """JSON that is safe inside a <script>: ASCII, and no character that HTML reads."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return re.sub("[<>&]", lambda found: f"\\u{ord(found[0]):04x}", text)


def _sha256(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
