"""Pictures of topologies as PNG, drawn by librsvg."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from xml.etree import ElementTree

import pytest

from stacklab import diagram, topology

pytestmark = pytest.mark.integration

TOPOLOGIES = Path(__file__).resolve().parents[2] / "topologies"


def pixels(path: Path) -> tuple[int, int, bytes]:
    """Width, height and the decompressed rows of a PNG, filters left as they are."""
    content = path.read_bytes()
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = struct.unpack(">II", content[16:24])
    data, at = b"", 8
    while at < len(content):
        (length,) = struct.unpack(">I", content[at : at + 4])
        if content[at + 4 : at + 8] == b"IDAT":
            data += content[at + 8 : at + 8 + length]
        at += 12 + length
    return width, height, zlib.decompress(data)


def without_words(picture: str) -> str:
    root = ElementTree.fromstring(picture)
    for text in root.findall("{http://www.w3.org/2000/svg}text"):
        root.remove(text)
    return ElementTree.tostring(root, encoding="unicode")


@pytest.mark.parametrize("name", [path.stem for path in topology.available(TOPOLOGIES)])
def test_a_png_has_twice_the_size_and_words_on_it(name: str, tmp_path: Path) -> None:
    lab = topology.load(name, TOPOLOGIES)
    diagram.write(lab, tmp_path / "lab.png")
    diagram.png(without_words(diagram.svg(lab)), tmp_path / "mute.png")
    root = ElementTree.fromstring(diagram.svg(lab))
    width, height, rows = pixels(tmp_path / "lab.png")
    assert (width, height) == (2 * int(root.get("width", "")), 2 * float(root.get("height", "")))
    # Where no font is installed, librsvg draws no words and says nothing.
    assert rows != pixels(tmp_path / "mute.png")[2]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lab.png", "mute.png"]
