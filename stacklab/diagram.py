"""A picture of a topology: networks as bars, nodes as cards between them, with roles, addresses and sizes.

Nodes of one kind beyond the third share a card, so that fifty compute nodes fit on a page. The SVG
depends on the topology alone; `png` has librsvg draw it.
"""

from __future__ import annotations

import shutil
import textwrap
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from stacklab import files
from stacklab.errors import LabError
from stacklab.model import Node, Topology
from stacklab.run import run

# Pixels. A card is as wide as two connectors with their addresses.
_MARGIN, _CARD, _GAP, _BAR = 36, 220, 26, 40
_ALONE = 3  # cards of one kind before the rest share one

_FONT = "DejaVu Sans, Verdana, Helvetica, Arial, sans-serif"
_INK, _GREY, _PALE = "#1f2933", "#5f6c7b", "#f5f7fa"
_NETWORKS = {"provider": "#c2410c", "management": "#1d4ed8", "tunnel": "#0f766e", "tenant": "#7c3aed"}
_ROLES = {
    "controller": "#1d4ed8",
    "network": "#0f766e",
    "compute": "#c2410c",
    "block-storage": "#7c3aed",
    "object-storage": "#a16207",
}


@dataclass(frozen=True)
class Card:
    """One node, or several of a kind: the first and the last of them."""

    first: Node
    last: Node
    count: int

    @property
    def title(self) -> str:
        if self.count == 1:
            return self.first.name
        joint = "," if self.count == 2 else " …"
        return f"{self.first.name}{joint} {self.last.name}"

    def addresses(self, name: str) -> list[str]:
        """The address of one network, or the first and the last one."""
        found = [getattr(node, name) for node in (self.first, self.last)]
        return found[:1] if self.count == 1 else [found[0], f"… {found[1]}"]


def cards(topology: Topology) -> list[Card]:
    """The nodes in the file's order; those of one kind after the third together, two at least."""
    kinds: dict[object, list[Node]] = {}
    for node in topology.nodes:
        kind = (node.roles, node.cpus, node.memory, node.disk, node.extra_disks)
        kinds.setdefault(kind, []).append(node)
    found = []
    for nodes in kinds.values():
        alone = len(nodes) if len(nodes) <= _ALONE + 1 else _ALONE
        found += [Card(node, node, 1) for node in nodes[:alone]]
        if rest := nodes[alone:]:
            found.append(Card(rest[0], rest[-1], len(rest)))
    order = {node.name: number for number, node in enumerate(topology.nodes)}
    return sorted(found, key=lambda card: order[card.first.name])


def svg(topology: Topology) -> str:
    """The picture as an SVG document."""
    shown = cards(topology)
    width = 2 * _MARGIN + max(len(shown) * _CARD + (len(shown) - 1) * _GAP, 3 * _CARD + 2 * _GAP)
    page = _Page(width)
    top = _heading(page, topology)
    provider = top
    card_top = provider + _BAR + 46
    height = max(_card_height(card) for card in shown)
    management = card_top + height + 64
    tunnel = management + _BAR + 44
    inner = width - 2 * _MARGIN - (len(shown) * _CARD + (len(shown) - 1) * _GAP)
    for number, card in enumerate(shown):
        left = _MARGIN + inner / 2 + number * (_CARD + _GAP)
        _connectors(page, card, left, (provider, card_top, height, management, tunnel))
    _bars(page, topology, provider, management, tunnel)
    for number, card in enumerate(shown):
        _card(page, card, _MARGIN + inner / 2 + number * (_CARD + _GAP), card_top, height)
    return page.document(_footer(page, topology, tunnel + _BAR + 30))


def write(topology: Topology, target: Path) -> None:
    """Write the picture to a file that ends in .svg or .png.

    Raises LabError for another ending, for a place where no file can be, and for a PNG where librsvg is
    not installed.
    """
    if target.suffix not in (".svg", ".png"):
        raise LabError(f"{target} is neither .svg nor .png", hint=f"say {target.with_suffix('.svg')}")
    try:
        if target.suffix == ".svg":
            files.write(target, svg(topology))
        else:
            png(svg(topology), target)
    except OSError as error:
        raise LabError(f"{target} cannot be written: {error.strerror}", hint="say --output") from error


def png(picture: str, target: Path) -> None:
    """Draw an SVG document as PNG, at twice its size. Raises LabError where librsvg is not installed."""
    if shutil.which("rsvg-convert") is None:
        hint = "on Debian and Ubuntu: apt-get install librsvg2-bin fonts-dejavu-core; or write an .svg"
        raise LabError("a PNG needs rsvg-convert, which is not installed", hint=hint)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.part")
    try:
        run(["rsvg-convert", "--zoom", "2", "--output", partial], stdin=picture, timeout=60)
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


# -- parts of the picture ------------------------------------------------------------------


def _heading(page: _Page, topology: Topology) -> float:
    """Name and description; returns where the next part begins."""
    page.text(_MARGIN, 50, topology.name, size=26, weight="bold")
    y = 76.0
    for line in textwrap.wrap(topology.description, int(page.width / 8.2)):
        page.text(_MARGIN, y, line, size=14, fill=_GREY)
        y += 20
    return y + 12


def _bars(page: _Page, topology: Topology, provider: float, management: float, tunnel: float) -> None:
    out = topology.provider_network
    inside = topology.management
    pool = f"gateway {out.gateway} · floating IPs {out.pool_start} … {out.pool_end}"
    _bar(page, provider, "provider", f"provider  {out.cidr}", pool)
    host = f"host {inside.host}"
    host += f" · gateway {inside.gateway}" if inside.gateway != inside.host else ""
    host += f" · DNS {', '.join(inside.dns)}" if inside.dns else ""
    _bar(page, management, "management", f"management  {inside.cidr}", host)
    where = "only where Open vSwitch runs in userspace (lxc)"
    _bar(page, tunnel, "tunnel", f"tunnel  {topology.tunnel.cidr}", where)


def _bar(page: _Page, y: float, network: str, left: str, right: str) -> None:
    page.rect(_MARGIN, y, page.width - 2 * _MARGIN, _BAR, fill=_NETWORKS[network], radius=8)
    page.text(_MARGIN + 16, y + 26, left, size=15, weight="bold", fill="#ffffff")
    page.text(page.width - _MARGIN - 16, y + 25, right, size=12, fill="#ffffff", anchor="end")


def _connectors(page: _Page, card: Card, left: float, rows: tuple[float, float, float, float, float]) -> None:
    """Lines from a card to its networks, each with its interface and address; bars are drawn over them."""
    provider, top, height, management, tunnel = rows
    bottom = top + height
    if {"network", "compute"} & set(card.first.roles):
        x = left + _CARD / 2
        page.line(x, provider + _BAR, x, top, _NETWORKS["provider"])
        page.text(x + 8, provider + _BAR + 28, "eth1 · br-ex", size=11, fill=_GREY)
    for x, name, end in ((left + 22, "management", management), (left + 122, "tunnel", tunnel)):
        page.line(x, bottom, x, end, _NETWORKS[name])
        for number, address in enumerate(card.addresses(name)):
            page.text(x + 7, bottom + 26 + 16 * number, address, size=12, fill=_INK)


def _card_height(card: Card) -> float:
    return 108 + 26 * len(card.first.roles) + (20 if card.first.extra_disks else 0)


def _card(page: _Page, card: Card, left: float, top: float, height: float) -> None:
    node = card.first
    if card.count > 1:  # a stack of cards
        for shift in (10, 5):
            page.rect(left + shift, top - shift, _CARD, height, fill="#ffffff", stroke="#b8c2cc", radius=10)
    page.rect(left, top, _CARD, height, fill=_PALE, stroke="#9aa5b1", radius=10)
    page.text(left + 16, top + 30, card.title, size=17, weight="bold", longest=_CARD - 32)
    under = node.fqdn if card.count == 1 else f"{card.count} nodes"
    page.text(left + 16, top + 49, under, size=11, fill=_GREY, longest=_CARD - 32)
    y = top + 64
    for role in node.roles:
        wide = _wide(role, 12) + 20
        page.rect(left + 16, y, wide, 20, fill=_ROLES[role], radius=10)
        page.text(left + 16 + wide / 2, y + 14.5, role, size=12, fill="#ffffff", anchor="middle")
        y += 26
    cpus = f"{node.cpus} CPU" + ("s" if node.cpus > 1 else "")
    page.text(left + 16, y + 16, f"{cpus} · {_size(node.memory)} · {node.disk} GB disk", size=12)
    if node.extra_disks:
        disks = ", ".join(f"{size} GB" for size in node.extra_disks)
        page.text(left + 16, y + 36, f"extra: {disks}", size=12, longest=_CARD - 32)


def _footer(page: _Page, topology: Topology, y: float) -> float:
    """What runs there; returns the picture's height."""
    tenant = topology.tenant
    page.rect(_MARGIN, y, page.width - 2 * _MARGIN, _BAR, stroke=_NETWORKS["tenant"], radius=8, dashed=True)
    page.text(
        _MARGIN + 16, y + 26, f"tenant  {tenant.cidr}", size=15, weight="bold", fill=_NETWORKS["tenant"]
    )
    about = f"a virtual network: router {tenant.gateway} to provider, tunnels between the nodes"
    page.text(page.width - _MARGIN - 16, y + 25, about, size=12, fill=_GREY, anchor="end")
    y += _BAR + 30
    chosen = {
        "services": ", ".join(topology.services),
        "distribution": topology.distribution,
        "release": topology.release,
        "provider": topology.provider,
        "network agent": topology.network_agent,
    }
    for text in (f"{label}: {value}" for label, value in chosen.items() if value != "auto"):
        for line in textwrap.wrap(text, int(page.width / 7.4)):
            page.text(_MARGIN, y, line, size=12, fill=_GREY)
            y += 18
    return y + 12


def _wide(text: str, size: float) -> float:
    """About how wide a text is drawn, in pixels."""
    return size * sum(0.38 if c in "fijlrt.,- " else 0.98 if c in "mwMW…" else 0.67 for c in text)


def _size(mebibytes: int) -> str:
    return f"{mebibytes} MB" if mebibytes % 1024 else f"{mebibytes // 1024} GB"


class _Page:
    """An SVG document that grows shape by shape."""

    def __init__(self, width: float) -> None:
        self.width = width
        self._root = ElementTree.Element("svg", {"xmlns": "http://www.w3.org/2000/svg", "font-family": _FONT})

    def rect(
        self,
        x: float,
        y: float,
        width: float,
        height: float,
        *,
        fill: str = "none",
        stroke: str = "none",
        radius: float = 0,
        dashed: bool = False,
    ) -> None:
        numbers = {"x": x, "y": y, "width": width, "height": height, "rx": radius}
        look = {"fill": fill, "stroke": stroke, **({"stroke-dasharray": "7 5"} if dashed else {})}
        self._add("rect", numbers, {**look, "stroke-width": "1.5"})

    def line(self, x1: float, y1: float, x2: float, y2: float, colour: str) -> None:
        self._add("line", {"x1": x1, "y1": y1, "x2": x2, "y2": y2}, {"stroke": colour, "stroke-width": "3"})

    def text(
        self,
        x: float,
        y: float,
        text: str,
        *,
        size: float,
        fill: str = _INK,
        weight: str = "normal",
        anchor: str = "start",
        longest: float = 0,
    ) -> None:
        """`longest` is the room that there is: longer text is drawn narrower."""
        look = {"fill": fill, "font-weight": weight, "text-anchor": anchor}
        if longest and (wide := _wide(text, size)) > longest:
            size *= longest / wide
        self._add("text", {"x": x, "y": y, "font-size": size}, look).text = text

    def _add(self, tag: str, numbers: dict[str, float], look: dict[str, str]) -> ElementTree.Element:
        values = {name: f"{value:.6g}" for name, value in numbers.items()}
        return ElementTree.SubElement(self._root, tag, {**values, **look})

    def document(self, height: float) -> str:
        """The whole document, on white."""
        size = {"width": f"{self.width:.6g}", "height": f"{height:.6g}"}
        for name, value in {**size, "viewBox": f"0 0 {self.width:.6g} {height:.6g}"}.items():
            self._root.set(name, value)
        self._root.insert(0, ElementTree.Element("rect", {**size, "fill": "#ffffff"}))
        ElementTree.indent(self._root)
        return ElementTree.tostring(self._root, encoding="unicode") + "\n"
