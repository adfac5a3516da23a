"""An attribution graph's SVG, read back: boxes of nodes and letters, looks of links, texts."""

from __future__ import annotations

import re
from collections import defaultdict
from html import unescape
from pathlib import Path
from xml.etree import ElementTree

SVG = "{http://www.w3.org/2000/svg}"
LINK = "{http://www.w3.org/1999/xlink}href"
NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e-?\d+)?")
Box = tuple[float, float, float, float]  # left, top, right, bottom, as SVG counts


class Picture:
    """An SVG's parts by what their ids begin with."""

    def __init__(self, path: Path) -> None:
        builder = ElementTree.TreeBuilder(insert_comments=True)
        self.root = ElementTree.parse(path, ElementTree.XMLParser(target=builder)).getroot()
        comments = (part.text for part in self.root.iter() if part.tag is ElementTree.Comment)
        self.texts = [unescape(text.strip()) for text in comments]
        self.width, self.height = (float(self.root.attrib[key].removesuffix("pt")) for key in ("width", "height"))
        self.parts: dict[str, dict[str, ElementTree.Element]] = defaultdict(dict)
        for part in self.root.iter(f"{SVG}g"):
            kind, _, of = part.attrib.get("id", "").partition(":")
            assert of not in self.parts[kind] or not of, f"{kind}:{of} is drawn twice"
            self.parts[kind][of] = part
        self.glyphs = {
            path.attrib["id"]: _extent(path, 1 / 64) for path in self.root.iter(f"{SVG}path") if "id" in path.attrib
        }

    def nodes(self) -> dict[str, Box]:
        """Their boxes."""
        return {of: _extent(part.find(f"{SVG}path"), 1) for of, part in self.parts["node"].items()}

    def links(self) -> dict[str, dict[str, str]]:
        """Their styles."""
        return {
            of: dict(pair.split(": ") for pair in part.find(f"{SVG}path").attrib["style"].split("; "))
            for of, part in self.parts["link"].items()
        }

    def ink(self, kind: str) -> dict[str, Box]:
        """Boxes around the letters of texts that are not turned."""
        found = {}
        for of, part in self.parts[kind].items():
            words = next(one for one in part.findall(f"{SVG}g") if "scale" in one.attrib.get("transform", ""))
            x, y, scale, _ = map(float, NUMBER.findall(words.attrib["transform"]))
            boxes = []
            for use in words.findall(f"{SVG}use"):
                along = float((NUMBER.findall(use.attrib.get("transform", "")) or ["0"])[0])
                left, low, right, high = self.glyphs[use.attrib[LINK].removeprefix("#")]
                boxes.append(
                    (x + scale * (along + left), y - scale * high, x + scale * (along + right), y - scale * low)
                )
            if boxes:
                sides = list(zip(*boxes, strict=True))
                found[of] = (min(sides[0]), min(sides[1]), max(sides[2]), max(sides[3]))
        return found

    def text(self, kind: str, of: str) -> str:
        """A text that was drawn, which the SVG says in a comment."""
        comments = [part.text for part in self.parts[kind][of].iter() if part.tag is ElementTree.Comment]
        return unescape(comments[0].strip())


def _extent(path: ElementTree.Element, scale: float) -> Box:
    numbers = [scale * float(number) for number in NUMBER.findall(path.get("d", ""))]
    x, y = numbers[::2], numbers[1::2]
    return (min(x), min(y), max(x), max(y)) if x else (0.0, 0.0, 0.0, 0.0)
