"""The picture of a topology: everything is in it, in its place, and inside the page."""

from __future__ import annotations

import os
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import pytest

from stacklab import diagram, files, topology
from stacklab.errors import LabError
from stacklab.model import Topology

TOPOLOGIES = Path(__file__).parents[2] / "topologies"
SHIPPED = [topology.load(path.stem, TOPOLOGIES) for path in topology.available(TOPOLOGIES)]
SVG = "{http://www.w3.org/2000/svg}"


def many(count: int) -> Topology:
    text = (TOPOLOGIES / "multi-compute.yaml").read_text(encoding="utf-8")
    return topology.parse(text.replace("count: 2", f"count: {count}"), "many.yaml")


def shapes(lab: Topology, tag: str) -> list[ElementTree.Element]:
    return ElementTree.fromstring(diagram.svg(lab)).findall(f"{SVG}{tag}")


def texts(lab: Topology) -> list[str]:
    return [element.text or "" for element in shapes(lab, "text")]


def number(element: ElementTree.Element, name: str) -> float:
    return float(element.get(name, "0"))


@pytest.mark.parametrize("lab", SHIPPED, ids=lambda lab: lab.name)
def test_everything_of_a_shipped_topology_is_in_it(lab: Topology) -> None:
    found = texts(lab)
    for node in lab.nodes:
        assert {node.name, node.fqdn, node.management, node.tunnel, *node.roles} <= set(found)
        assert f"{node.cpus} CPUs · {node.memory // 1024} GB · {node.disk} GB disk" in found
        for size in node.extra_disks:
            assert f"extra: {size} GB" in found
    for name, cidr in (
        ("management", lab.management.cidr),
        ("tunnel", lab.tunnel.cidr),
        ("provider", lab.provider_network.cidr),
        ("tenant", lab.tenant.cidr),
    ):
        assert f"{name}  {cidr}" in found
    pool = f"{lab.provider_network.pool_start} … {lab.provider_network.pool_end}"
    assert any(pool in text for text in found)


@pytest.mark.parametrize("lab", [*SHIPPED, many(50)], ids=lambda lab: f"{lab.name}-{len(lab.nodes)}")
def test_all_of_it_is_on_the_page(lab: Topology) -> None:
    root = ElementTree.fromstring(diagram.svg(lab))
    width, height = number(root, "width"), number(root, "height")
    for rect in root.findall(f"{SVG}rect"):
        assert number(rect, "x") >= 0 and number(rect, "x") + number(rect, "width") <= width
        assert number(rect, "y") >= 0 and number(rect, "y") + number(rect, "height") <= height
    for text in root.findall(f"{SVG}text"):
        # A letter of DejaVu Sans takes 0.57 of its size on average.
        wide = 0.6 * number(text, "font-size") * len(text.text or "")
        before = {"start": 0.0, "middle": wide / 2, "end": wide}[text.get("text-anchor", "start")]
        assert number(text, "x") - before >= 0 and number(text, "x") - before + wide <= width, text.text
        assert 0 < number(text, "y") < height


def test_cards_do_not_touch() -> None:
    cards = [rect for rect in shapes(many(50), "rect") if rect.get("stroke") == "#9aa5b1"]
    places = sorted((number(card, "x"), number(card, "width")) for card in cards)
    assert len(places) == 5
    for (x, width), (following, _) in pairwise(places):
        assert x + width + 10 < following  # a stack shows 10 pixels of the cards behind


def test_up_to_four_of_a_kind_have_cards_of_their_own_and_fifty_share_one() -> None:
    assert [card.title for card in diagram.cards(many(4))] == [
        *("controller", "compute1", "compute2", "compute3", "compute4")
    ]
    assert [(card.title, card.count) for card in diagram.cards(many(50))] == [
        *(("controller", 1), ("compute1", 1), ("compute2", 1), ("compute3", 1)),
        ("compute4 … compute50", 47),
    ]
    found = texts(many(50))
    assert {"47 nodes", "10.0.0.34", "… 10.0.0.80", "… 10.0.1.80"} <= set(found)
    assert "compute17" not in found


def test_only_nodes_that_instances_use_are_on_the_provider_network() -> None:
    storage = next(lab for lab in SHIPPED if lab.name == "storage")
    assert texts(storage).count("eth1 · br-ex") == 2  # neither block1 nor object1


def test_the_gateway_and_name_server_of_the_older_notes() -> None:
    notes = next(lab for lab in SHIPPED if lab.name == "vmware-notes")
    assert "host 10.0.0.1 · gateway 10.0.0.2 · DNS 10.0.0.2" in texts(notes)


def test_words_of_a_user_are_no_markup() -> None:
    lab = replace(SHIPPED[0], description="<script>alert('&')</script>")
    assert lab.description in texts(lab)


def test_the_directory_of_a_png_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    convert = tmp_path / "bin/rsvg-convert"
    files.write(convert, '#!/bin/sh\ncat >"$4"\n', mode=0o755)
    monkeypatch.setenv("PATH", f"{convert.parent}:{os.environ['PATH']}")
    diagram.write(SHIPPED[0], tmp_path / "new/lab.png")
    assert (tmp_path / "new/lab.png").read_text() == diagram.svg(SHIPPED[0])


def test_a_png_needs_librsvg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(LabError, match="rsvg-convert") as caught:
        diagram.write(SHIPPED[0], tmp_path / "lab.png")
    assert "apt-get install librsvg2-bin" in caught.value.hint
    assert list(tmp_path.iterdir()) == []
