"""Golden images: built by diskimage-builder from elements/, named by the hash of their inputs."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from stacklab import contract, dib, files, releases, ui
from stacklab.errors import CommandFailed, LabError
from stacklab.run import run

# What an image's form adds to the distribution's own elements.
PROVIDER_ELEMENTS = {"lxc": ("lxc-node",)}
BUILD_SECONDS = 3600


@dataclass(frozen=True)
class Golden:
    """A golden image: `directory` holds rootfs/, metadata.json, packages.txt and build.log."""

    name: str
    key: str
    directory: Path

    @property
    def rootfs(self) -> Path:
        """The unpacked root filesystem, shared read-only by all nodes of all labs."""
        return self.directory / "rootfs"


def wanted(distribution: str, provider: str) -> Golden:
    """The image that the elements as they are now would give, built or not.

    Raises InvalidInput for an unknown distribution, and for a provider that it has no image for.
    """
    releases.check_provider(releases.distribution(distribution), provider)
    key = files.digest(inputs(distribution, provider))[:12]
    name = f"{distribution}-{provider}-{key}"
    return Golden(name, key, files.cache_dir() / "images" / name)


def inputs(distribution: str, provider: str) -> dict[str, Any]:
    """All that decides an image's content, apart from what the repositories hold."""
    row = releases.distribution(distribution)
    release = releases.release(row.release)
    own = files.PROJECT / "elements"
    names = (*row.elements, *PROVIDER_ELEMENTS[provider])
    return {
        "distribution": row.codename,
        "elements": {
            name: files.tree_digest(own / name) if (own / name).is_dir() else "dib" for name in names
        },
        "diskimage-builder": metadata.version("diskimage-builder"),
        "packstack": release.sha256,
        "environment": _fixed_environment(row),
        "contract": contract.VERSION,
    }


def is_built(image: Golden) -> bool:
    """Whether the whole image is there: its directory appears by one rename."""
    return (image.directory / "metadata.json").is_file()


def build(distribution: str, provider: str) -> Golden:
    """The golden image, built if its inputs changed; one builds, others wait and use it.

    Raises LabError when the build fails or its result breaks the contract.
    """
    image = wanted(distribution, provider)
    if is_built(image):
        return image
    lock = image.directory.with_name(image.name + ".lock")
    with files.lock(lock, f"the golden image {image.name}", wait=BUILD_SECONDS):
        if not is_built(image):
            with ui.step(f"building the golden image {image.name}"):
                _build(image, distribution, provider)
    return image


def _build(image: Golden, distribution: str, provider: str) -> None:
    work = image.directory.with_name(f".building-{image.name}")
    dib.remove_tree(work)
    work.mkdir(parents=True)
    log = work / "build.log"
    started = time.time()
    row = releases.distribution(distribution)
    log.touch()
    try:
        environment = {**_environment(row, work), "STACKLAB_PACKSTACK_WHEEL": str(_wheel(row, log))}
        run(
            dib_argv(distribution, provider, work / "image"),
            log=log,
            env=environment,
            timeout=BUILD_SECONDS,
            each_line=dib.progress,
            hint="the first error is the one to look at; `build-base` starts the build anew",
        )
        with ui.step("unpacking and checking it against the contract"):
            sha256 = _unpack(work / "image.tar", work / "rootfs")
            problems = contract.check(work / "rootfs", provider)
            if problems:
                raise LabError(
                    "the built image breaks the contract:\n" + "\n".join(f"  {p}" for p in problems)
                )
    except BaseException:
        kept = files.cache_dir() / "logs" / f"{image.name}.log"
        kept.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(log, kept)
        ui.say(f"build log: {kept}")
        dib.remove_tree(work)
        raise
    (work / "image.tar").unlink()
    _save_manifest(work)
    files.write_json(
        work / "metadata.json",
        {
            "name": image.name,
            "inputs": inputs(distribution, provider),
            "sha256": sha256,
            "built": int(started),
            "seconds": round(time.time() - started),
        },
    )
    dib.remove_tree(work / "tmp")
    dib.remove_tree(image.directory)  # not a whole image, or this build would not run
    work.rename(image.directory)


def dib_argv(distribution: str, provider: str, out: Path) -> list[str]:
    """The command of the build."""
    row = releases.distribution(distribution)
    return dib.argv((*row.elements, *PROVIDER_ELEMENTS[provider]), "tar", out)


def _fixed_environment(row: releases.Distribution) -> dict[str, str]:
    return {
        "DIB_RELEASE": row.codename,
        # Nodes get their addresses from stacklab, never by DHCP.
        "DIB_APT_MINIMAL_CREATE_INTERFACES": "0",
        "DIB_DEBUG_TRACE": "0",
    }


def _environment(row: releases.Distribution, work: Path) -> dict[str, str]:
    return dib.environment(work, _fixed_environment(row), dib.apt_mirrors(row.codename))


def _wheel(row: releases.Distribution, log: Path) -> Path:
    """Packstack's wheel in the cache; pip checks its sha256 against stacklab's table."""
    release = releases.release(row.release)
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
            sys.executable,
            "-m",
            "pip",
            "download",
            "--no-deps",
            "--only-binary",
            ":all:",
            "-d",
            place,
            "-r",
            requirements,
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


def _save_manifest(work: Path) -> None:
    shutil.copyfile(work / "rootfs" / "etc" / "dib-manifests" / "packages.txt", work / "packages.txt")


def built() -> Sequence[Golden]:
    """The golden images in the cache, by name."""
    place = files.cache_dir() / "images"
    images = [Golden(path.name, path.name.rsplit("-", 1)[1], path) for path in sorted(place.glob("[!.]*-*"))]
    return [image for image in images if is_built(image)]
