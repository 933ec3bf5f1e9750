"""Two small emulated nodes: Debian with the elements that make a node of an image, and no OpenStack."""

from __future__ import annotations

import dataclasses
import subprocess
import time
from pathlib import Path

from stacklab import assemble, dib, files, goldendib, normalise, plan, topology
from stacklab.base import Golden
from stacklab.plan import Plan
from stacklab.run import run

ELEMENTS = ("debian-minimal", "stacklab-golden", "vm-node", "stacklab-seed")
FIXED = {"DIB_RELEASE": "bookworm", "DIB_DEBUG_TRACE": "0", "DIB_APT_MINIMAL_CREATE_INTERFACES": "0"}


def image() -> Golden:
    """The nodes' image, by dib and stacklab's own assembly; in the cache by the digest of its elements."""
    digests = dib.element_digests(ELEMENTS)
    key = files.digest(digests, FIXED, assemble.VERSION, normalise.VERSION)[:12]
    name = f"small-libvirt-{key}"
    place = files.cache_dir() / "tests" / name
    if not (place / "metadata.json").is_file():
        with files.lock(place.with_suffix(".lock"), f"the test image {name}", wait=1800):
            if not (place / "metadata.json").is_file():
                _build(place)
    return Golden(name, key, place)


def _build(place: Path) -> None:
    work = place.with_name(f".building-{place.name}")
    dib.remove_tree(work)
    dib.remove_tree(place)
    tree = work / "tree"
    work.mkdir(parents=True)
    started = time.time()
    log = work / "build.log"
    environment = dib.environment(work, FIXED, dib.apt_mirrors("bookworm"))
    dib.build(dib.argv(ELEMENTS, "tar", work / "image"), log, environment, 1800)
    epoch = goldendib.unpack(work / "image.tar", tree, started, log)
    raw = work / "disk.raw"
    assemble.disk(tree, raw, epoch, log)
    disk = work / "disk.qcow2"
    run(["qemu-img", "convert", "-c", "-O", "qcow2", "-o", "compression_type=zstd", raw, disk], log=log)
    told = subprocess.run(["sha256sum", disk], check=True, capture_output=True, text=True).stdout
    files.write_json(work / "metadata.json", {"sha256": told.split()[0]})
    dib.remove_tree(tree)
    for path in (raw, work / "image.tar"):
        path.unlink()
    dib.remove_tree(work / "tmp")
    work.rename(place)


def two_nodes(lab: str) -> Plan:
    """A plan of the two nodes of `two-node` with little memory, emulated, in a namespace of their own."""
    shipped = topology.load("two-node", files.PROJECT / "topologies")
    nodes = tuple(dataclasses.replace(node, memory=768, disk=12, cpus=1) for node in shipped.nodes)
    found = plan.resolve(
        dataclasses.replace(shipped, nodes=nodes),
        lab=lab,
        distribution="debian-12",
        provider="libvirt",
        own_network=True,
    )
    return dataclasses.replace(found, emulated=True)
