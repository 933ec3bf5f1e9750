"""The builder dib: golden images made by diskimage-builder from elements/."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from stacklab import base, contract, dib, distributions, files, releases, ui
from stacklab.base import Spec
from stacklab.errors import CommandFailed
from stacklab.run import run


def inputs(spec: Spec) -> dict[str, Any]:
    """What of this builder decides an image's content."""
    own = files.PROJECT / "elements"
    return {
        "elements": {
            name: files.tree_digest(own / name) if (own / name).is_dir() else "dib" for name in spec.elements
        },
        "diskimage-builder": metadata.version("diskimage-builder"),
        "environment": fixed_environment(spec),
    }


def commands(spec: Spec, out: Path) -> list[list[str]]:
    """The command of the build, which leaves OUT.tar."""
    return [dib.argv(spec.elements, "tar", out)]


def make(spec: Spec, work: Path, log: Path) -> dict[str, Any]:
    """Build in `work` and check the result; see `base`."""
    row = distributions.distribution(spec.distribution)
    environment = dib.environment(work, fixed_environment(spec), dib.apt_mirrors(row.version))
    environment["STACKLAB_PACKSTACK_WHEEL"] = str(_wheel(releases.release(spec.release), log))
    for argv in commands(spec, work / "image"):
        run(
            argv,
            log=log,
            env=environment,
            timeout=base.BUILD_SECONDS,
            each_line=dib.progress,
            hint="the first error is the one to look at; `build-base` starts the build anew",
        )
    with ui.step("unpacking and checking it against the contract"):
        sha256 = _unpack(work / "image.tar", work / "rootfs")
        base.keeps_contract(contract.check(work / "rootfs", spec.provider))
    (work / "image.tar").unlink()
    shutil.copyfile(work / "rootfs" / "etc" / "dib-manifests" / "packages.txt", work / "packages.txt")
    return {"sha256": sha256}


def fixed_environment(spec: Spec) -> dict[str, str]:
    """The variables of a build that are the same on every machine."""
    row = distributions.distribution(spec.distribution)
    return {"DIB_RELEASE": row.version, "DIB_DEBUG_TRACE": "0", **row.environment}


def _wheel(release: releases.Release, log: Path) -> Path:
    """Packstack's wheel in the cache; pip checks its sha256 against stacklab's table."""
    place = files.cache_dir() / "wheels"
    found = sorted(place.glob(f"packstack-{release.packstack}-*.whl"))
    if found and hashlib.sha256(found[0].read_bytes()).hexdigest() == release.sha256:
        return found[0]
    place.mkdir(parents=True, exist_ok=True)
    requirements = log.with_name("packstack.txt")
    requirements.write_text(
        f"packstack=={release.packstack} --hash=sha256:{release.sha256}\n", encoding="utf-8"
    )
    run(
        [
            *(sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"),
            *("-d", place, "-r", requirements),
        ],
        log=log,
        hint="is the package index reachable?",
    )
    return sorted(place.glob(f"packstack-{release.packstack}-*.whl"))[0]


def _unpack(archive: Path, rootfs: Path) -> str:
    """Unpack the image and return its sha256; owners, modes and file capabilities are kept."""
    if not archive.is_file():
        raise CommandFailed("diskimage-builder ended well but left no image", hint="see the build log")
    rootfs.mkdir()
    digest = hashlib.sha256()
    tar = subprocess.Popen(
        ["tar", "-x", "--numeric-owner", "--xattrs", "--xattrs-include=*", "-C", str(rootfs)],
        stdin=subprocess.PIPE,
    )
    assert tar.stdin is not None
    with archive.open("rb") as source:
        while block := source.read(1 << 20):
            digest.update(block)
            tar.stdin.write(block)
    tar.stdin.close()
    if tar.wait() != 0:
        raise CommandFailed(f"{archive.name} cannot be unpacked", hint="is the disk full?")
    return digest.hexdigest()
