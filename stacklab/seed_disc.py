"""A node's seed as a disc, for virtual machines: labelled STACKLAB, read by the element stacklab-seed."""

from __future__ import annotations

import hashlib
import io
import shutil
import tarfile
from pathlib import Path

from stacklab import files, interfaces
from stacklab.model import Node
from stacklab.plan import Plan
from stacklab.run import run

LABEL = "STACKLAB"


def write(plan: Plan, node: Node, disc: Path) -> None:
    """Write the disc of a node, from the tree that `seed.write` wrote, with mode 0600: it holds keys."""
    tree = plan.directory / "seed" / node.name
    make(tree, nics(plan, node), disc, plan.directory / "logs" / "nodes.log")


def make(tree: Path, names: str, disc: Path, log: Path) -> None:
    """Write a disc that lays `tree` over a machine and names its interfaces (see `nics`)."""
    content = disc.with_suffix(".content")
    shutil.rmtree(content, ignore_errors=True)
    content.mkdir(mode=0o700, parents=True)
    partial = disc.with_suffix(".part")
    try:
        tar = pack(tree)
        (content / "seed.tar").write_bytes(tar)
        files.write(content / "nics", names)
        files.write(content / "id", hashlib.sha256(tar + names.encode()).hexdigest() + "\n")
        partial.unlink(missing_ok=True)
        partial.touch(mode=0o600)
        run(
            ["xorriso", "-as", "mkisofs", "-quiet", "-V", LABEL, "-R", "-o", partial, content],
            log=log,
            timeout=60,
        )
        partial.replace(disc)
    finally:
        shutil.rmtree(content, ignore_errors=True)


def nics(plan: Plan, node: Node) -> str:
    """A line for each interface: its MAC address and the name that it gets."""
    return "".join(f"{one.mac} {one.name}\n" for one in interfaces.of(plan, node))


def pack(root: Path) -> bytes:
    """A tree as a tar: owned by root, without times, so that the same files give the same bytes."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for path in sorted(root.rglob("*")):
            member = tar.gettarinfo(str(path), f"./{path.relative_to(root)}")
            member.uid = member.gid = member.mtime = 0
            member.uname = member.gname = ""
            if member.isreg():
                with path.open("rb") as source:
                    tar.addfile(member, source)
            else:
                tar.addfile(member)
    return buffer.getvalue()
