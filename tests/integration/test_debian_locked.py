"""Debian with exactly the packages of a manifest: the element, by dib and apt, from the host's own mirror.

On a tree without OpenStack, which takes two or three minutes a build instead of four to eight.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import tarfile
from pathlib import Path

import pytest

from stacklab import base, dib, locked, repositories
from stacklab.errors import LabError
from stacklab.locked import Manifest, Package

# Several minutes: wider than CI.
pytestmark = [pytest.mark.integration, pytest.mark.matrix]

ELEMENTS = ("debian-minimal", "stacklab-golden")
FIXED = {"DIB_RELEASE": "bookworm", "DIB_DEBUG_TRACE": "0", "PYTHONHASHSEED": "0"}
# Each stands alone, and more than one suite has it. tzdata comes with the bootstrap, which knows one suite
# alone: where an older one is in another suite it has to be brought back to that.
OLDER = ("ca-certificates", "sudo", "tzdata")


def build(work: Path, lock: Manifest | None = None) -> dict[str, bytes]:
    """The tree's files below /etc, by name."""
    fixed, elements = dict(FIXED), list(ELEMENTS)
    if lock:
        fixed["STACKLAB_LOCKED"] = str(locked.prepare(lock, work / "locked"))
        elements.append(locked.ELEMENT)
    environment = dib.environment(work, fixed, dib.apt_mirrors("bookworm"))
    dib.build(dib.argv(elements, "tar", work / "image"), work / "log", environment, 1800)
    found = {}
    with tarfile.open(work / "image.tar") as archive:
        for member in archive:
            if member.isfile() and member.name.startswith("./etc/"):
                handle = archive.extractfile(member)
                assert handle is not None
                found[member.name] = handle.read()
    dib.remove_tree(work)
    return found


def manifest(files: dict[str, bytes], where: Path) -> Manifest:
    where.write_bytes(files["./etc/dib-manifests/packages.txt"])
    return locked.read(where, "the first build")


def test_older_versions_where_newer_ones_are(tmp_path: Path) -> None:
    if os.geteuid() != 0 or not shutil.which("mmdebstrap") or not all(dib.apt_mirrors("bookworm")):
        pytest.skip("needs root, mmdebstrap and a mirror of Debian 12 and its security archive")
    first = build(tmp_path / "first")
    newest = manifest(first, tmp_path / "packages.txt")
    spec = base.spec("debian-12", "lxc", manifest=newest)
    repositories.have(spec, tmp_path / "lists")
    offered = repositories.offered(spec, tmp_path / "lists")
    older = {
        name: version
        for name, version in sorted(offered, reverse=True)  # the last one counts
        if name in OLDER and version not in {package.version for package in newest.packages}
    }
    changed = (one._replace(version=older.get(one.name, one.version)) for one in newest.packages)
    wanted = dataclasses.replace(newest, packages=tuple(changed))
    assert locked.difference(newest.packages, wanted.packages), "no suite has an older version of these now"
    second = build(tmp_path / "second", wanted)
    assert second["./etc/dib-manifests/packages.txt"].decode() == wanted.text
    # apt's configuration is as it would be without the lock.
    apt = [{name: text for name, text in each.items() if "/apt/" in name} for each in (first, second)]
    assert apt[0] and apt[0] == apt[1]
    gone = Package("sudo", "0.9", "amd64", "")
    lost = dataclasses.replace(newest, packages=(*newest.packages, gone))
    with pytest.raises(LabError, match=r"no longer have 1 of the packages of the first build:\n  sudo 0\.9$"):
        repositories.have(dataclasses.replace(spec, manifest=lost), tmp_path / "lists")
