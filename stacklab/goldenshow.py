"""What the cache knows of golden images: listed, shown, compared, checked again."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shlex
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stacklab import base, contract, dib, diskfiles, files, goldenboot, locked, ui
from stacklab.base import Golden, Spec
from stacklab.errors import InvalidInput, LabError, Problem
from stacklab.locked import Manifest
from stacklab.run import run


def find(name: str) -> Golden:
    """The image in the cache whose name is or begins with `name`.

    Raises InvalidInput, with what there is, when there is none or more than one.
    """
    images = base.built()
    found = [image for image in images if image.name == name] or [
        image for image in images if image.name.startswith(name)
    ]
    if len(found) == 1:
        return found[0]
    what = "is more than one" if found else "is not in the cache"
    names = ", ".join(image.name for image in found or images) or "nothing"
    raise InvalidInput([Problem("", "image", f"{name!r} {what}: there is {names}")])


def manifest(wanted: str) -> Manifest:
    """The manifest that a user means: a golden image's, by how its name begins, or the one in a file.

    Raises InvalidInput where there is neither, and for a file that cannot be read or is none.
    """
    path = Path(wanted)
    if path.is_dir():
        path /= "packages.txt"  # the directory that `build-base` printed
    elif not path.is_file() and "/" not in wanted:
        try:
            path = find(wanted).directory / "packages.txt"
        except InvalidInput as error:
            why = "; ".join(problem.message for problem in error.problems)
            raise InvalidInput([Problem("", "locked", f"no file, and as an image {why}")]) from error
    found = locked.read(path, wanted)
    return dataclasses.replace(found, name=found.about.get("name", wanted))


def rows() -> list[tuple[str, ...]]:
    """Name, builder, release, kernel, date and MiB of each image."""
    found: list[tuple[str, ...]] = []
    for image in base.built():
        about = files.read_json(image.directory / "metadata.json")
        date = time.strftime("%Y-%m-%d %H:%M", time.localtime(about["built"]))
        size = f"{image.disk.stat().st_size >> 20} MiB" if image.disk.is_file() else "a tree"
        known = (about.get(name, "") for name in ("builder", "release", "kernel"))
        found.append((image.name, *known, date, size))
    return found


def about(image: Golden) -> dict[str, Any]:
    """All that is known of an image; `kind` says what its build can promise.

    reproducible: the same packages give the same sha256. recorded: they are known by name, version
    and digest, and `--locked` takes exactly them, but the bytes differ from build to build.
    """
    packages = image.directory / "packages.txt"
    known = files.read_json(image.directory / "metadata.json")
    # Built twice and compared (tests/integration/test_golden_twice.py).
    same = known["distribution"].startswith("debian-") and known.get("builder") == "dib"
    return {
        "directory": str(image.directory),
        "kind": "reproducible" if same else "recorded",
        "packages": len(packages.read_text(encoding="utf-8").splitlines()),
        "manifest-sha256": hashlib.sha256(packages.read_bytes()).hexdigest(),
        **known,
    }


def show(image: Golden, *, as_json: bool) -> None:
    """`about` for people or machines."""
    found = about(image)
    if as_json:
        ui.out(json.dumps(found, indent=2, sort_keys=True))
        return
    ui.out(image.name)
    for name, value in found.items():
        if not isinstance(value, dict):
            ui.out(f"  {name}: {value}")
    for name, value in sorted(found["inputs"].items()):
        for key, digest in value.items() if isinstance(value, dict) else (("", value),):
            ui.out(f"  {' '.join(part for part in (name, key) if part)}: {digest}")


def plan(spec: Spec) -> None:
    """What a build would do; nothing is started."""
    image = base.wanted(spec)
    ui.out(f"golden image {image.name}: {'in the cache' if base.is_built(image) else 'to be built'}")
    ui.out(f"{spec.distribution}, OpenStack {spec.release}, for {spec.provider}, by {spec.builder}")
    if spec.manifest:
        ui.out(f"with the {len(spec.manifest.packages)} packages of {spec.manifest.name}")
    for argv in base.commands(spec, image.directory / "image"):
        ui.out("    " + shlex.join(argv))


def difference(one: Golden, other: Golden) -> list[tuple[str, str, str]]:
    """Packages added, removed and changed from `one` to `other`: name, old version, new version."""
    before, after = (locked.read(image.directory / "packages.txt", image.name) for image in (one, other))
    return locked.difference(before.packages, after.packages)


def verify(image: Golden, *, boot: bool = False) -> dict[str, str]:
    """Check an image of the cache against the contract again, and boot it if `boot` is set.

    What a boot reported is kept with the image and returned. Raises LabError for an image that
    breaks the contract, differs from its sha256, or does not come up.
    """
    known = files.read_json(image.directory / "metadata.json")
    log = files.cache_dir() / "logs" / f"{image.name}.verify.log"
    log.unlink(missing_ok=True)
    if image.rootfs.is_dir():
        if boot:
            raise InvalidInput([Problem("", "boot", f"{image.name} is a tree for containers: `up` boots it")])
        with ui.step(f"checking {image.name} against the contract"):
            base.keeps_contract(contract.check(image.rootfs, "lxc"))
        return {}
    with ui.step(f"checking {image.name} against the contract"):
        _check_disk(image, known["sha256"], log)
    if not boot:
        return {}
    report = goldenboot.check(image.disk, known["kernel"], log)
    files.write_json(image.directory / "boot.json", report)
    return report


def _check_disk(image: Golden, sha256: str, log: Path) -> None:
    with image.disk.open("rb") as handle:
        found = hashlib.file_digest(handle, "sha256").hexdigest()
    if found != sha256:
        raise LabError(
            f"{image.disk} has the sha256 {found}, and had {sha256} when it was built",
            hint="something wrote to it; remove its directory and build it anew",
        )
    with tempfile.TemporaryDirectory(prefix=".verifying-", dir=image.directory.parent) as place:
        raw = Path(place) / "disk.raw"
        run(["qemu-img", "convert", "-O", "raw", image.disk, raw], log=log, timeout=1800)
        diskfiles.extract(raw, Path(place) / "tree", contract.TREES, contract.PROBES, log)
        base.keeps_contract(contract.check(Path(place) / "tree", "libvirt"))


def delete(image: Golden) -> None:
    """Remove an image from the cache.

    Raises LabError while a lab of this checkout was made from it, or anything has it mounted: a lab of
    another checkout that is down is not known.
    """
    labs = sorted(
        path.parent.name
        for path in files.labs_dir().glob("*/golden.json")
        if files.read_json(path)["name"] == image.name
    )
    if labs:
        raise LabError(
            f"{image.name} is what the labs {', '.join(labs)} stand on",
            hint="; ".join(f"`invoke down --lab {lab}`" for lab in labs),
        )
    with files.lock(image.directory.with_name(image.name + ".lock"), f"the golden image {image.name}"):
        if dib.mounted_below(image.directory):
            raise LabError(f"{image.name} is mounted: a lab of another checkout stands on it")
        (image.directory / "metadata.json").unlink()  # from now on it is no image
        dib.remove_tree(image.directory)


def changes(found: Sequence[tuple[str, str, str]]) -> str:
    """How many packages were added, removed and changed, as a sentence."""
    added = sum(not old for _, old, _ in found)
    removed = sum(not new for _, _, new in found)
    return f"{added} added, {removed} removed, {len(found) - added - removed} changed"
