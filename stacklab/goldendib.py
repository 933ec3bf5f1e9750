"""The builder dib: golden images made by diskimage-builder from elements/."""

from __future__ import annotations

import hashlib
import shutil
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

from stacklab import (
    assemble,
    base,
    contract,
    dib,
    distributions,
    files,
    locked,
    normalise,
    releases,
    repositories,
    ui,
)
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
        **({"tree": normalise.VERSION} if _kind(spec) == "tar" else {}),
        **({"disk": assemble.VERSION} if _kind(spec) == "tar" and spec.provider != "lxc" else {}),
    }


def commands(spec: Spec, out: Path) -> list[list[str]]:
    """The command of the build, which leaves OUT.tar or OUT.raw."""
    return [dib.argv(spec.elements, _kind(spec), out)]


def _kind(spec: Spec) -> str:
    """A disk of EL is partitioned and given its boot loader by dib; all else is made of a tree."""
    if spec.provider != "lxc" and distributions.distribution(spec.distribution).family == "el":
        return "raw"
    return "tar"


def make(spec: Spec, work: Path, log: Path) -> dict[str, Any]:
    """Build in `work` and check the result; see `base`."""
    kind = _kind(spec)
    if spec.manifest:
        repositories.have(spec, work / "tmp" / "indexes")
    started = time.time()
    for argv in commands(spec, work / "image"):
        dib.build(argv, log, environment(spec, work, log), base.BUILD_SECONDS)
    made = work / f"image.{kind}"
    if not made.is_file():
        raise CommandFailed("diskimage-builder ended well but left no image", hint="see the build log")
    if kind == "raw":
        return base.take_disk(made, work, spec.provider, log, base.hosts_of_build(spec))
    rootfs = work / "rootfs"
    with ui.step("unpacking it"):
        epoch = unpack(made, rootfs, started, log)
        made.unlink()
    if spec.provider == "lxc":
        with ui.step("checking it against the contract"):
            base.keeps_contract(contract.check(rootfs, spec.provider, base.hosts_of_build(spec)))
            sha256 = normalise.digest(rootfs)
        shutil.copyfile(rootfs / "etc/dib-manifests/packages.txt", work / "packages.txt")
        return {"sha256": sha256}
    raw = work / "disk.raw"
    with ui.step("assembling the disk"):
        assemble.disk(rootfs, raw, epoch, log)
    dib.remove_tree(rootfs)
    return base.take_disk(raw, work, spec.provider, log, base.hosts_of_build(spec))


def fixed_environment(spec: Spec) -> dict[str, str]:
    """The variables of a build that are the same on every machine."""
    row = distributions.distribution(spec.distribution)
    found = {
        "DIB_RELEASE": row.version,
        "DIB_DEBUG_TRACE": "0",
        # dib installs packages in the order of a Python set.
        "PYTHONHASHSEED": "0",
        **row.environment,
    }
    if row.family == "el":
        release = releases.release(spec.release)
        found["STACKLAB_PACKAGES"] = " ".join(release.packages)
        found["STACKLAB_ENABLING"] = release.enabling
        if release.status == "end of life":
            found["STACKLAB_REPOSITORIES"] = " ".join(
                f"{name}={url}" for name, url in release.repositories.items()
            )
    return found


def environment(spec: Spec, work: Path, log: Path) -> dict[str, str]:
    row = distributions.distribution(spec.distribution)
    mirrors = dib.apt_mirrors(row.version)
    own = image_sources(spec)
    if spec.mirror:
        # As mirrors of Debian lay their two archives out; EL's needs only the first.
        mirrors = (spec.mirror, f"{spec.mirror}-security" if row.family == "debian" else "")
    found = dib.environment(work, {**fixed_environment(spec), **own}, mirrors)
    if _kind(spec) == "raw":
        found |= dib.block_device()
    if spec.manifest:
        found["STACKLAB_LOCKED"] = str(locked.prepare(spec.manifest, work / "tmp" / "locked"))
    if row.family == "debian":
        found["STACKLAB_PACKSTACK_WHEEL"] = str(wheel(releases.release(spec.release), log))
    return found


def image_sources(spec: Spec) -> dict[str, str]:
    """What tells the element stacklab-golden the package sources of a Debian image."""
    row = distributions.distribution(spec.distribution)
    sources = dib.apt_sources(row.version, dib.apt_mirrors(row.version))
    keep = row.family != "debian" or not (sources or spec.mirror)
    return {} if keep else {"STACKLAB_APT": sources}


def wheel(release: releases.Release, log: Path) -> Path:
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


def unpack(archive: Path, rootfs: Path, started: float, log: Path) -> int:
    """Unpack the image and normalise its tree; owners, modes and file capabilities are kept.

    The build began at `started`, in seconds since 1970. Returns what `normalise.tree` does.
    """
    rootfs.mkdir()
    words = ("--numeric-owner", "--xattrs", "--xattrs-include=*", "-C", rootfs, "-f", archive)
    run(["tar", "-x", *words], log=log, timeout=1800, hint="is the disk full?")
    return normalise.tree(rootfs, started)
