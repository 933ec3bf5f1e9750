"""The probe guest: a bootable image of 10 MB that tells whether a cloud works.

It is named by the hash of what it is made from, and lies in the cache with its metadata beside it.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from stacklab import catalogue, files, ui
from stacklab.catalogue import Entry
from stacklab.errors import CommandFailed
from stacklab.run import run

PROBE = "stacklab-probe"
SCRIPTS = files.PROJECT / "scripts"
PROBE_SCRIPTS = ("build-probe-guest.sh", "probe-guest-init", "probe-guest-udhcpc")
BUILD_SECONDS = 300


@dataclass(frozen=True)
class GuestImage:
    """An image ready for upload. `size` in bytes, `min_disk` in GB, `min_ram` in MiB.

    `sha512` in hex; empty where nobody has taken it yet, which an upload then does.
    """

    name: str
    path: Path
    disk_format: str
    sha512: str
    size: int
    min_disk: int
    min_ram: int
    properties: Mapping[str, str] = field(default_factory=dict)


def probe_entry() -> Entry:
    """The catalogue's entry of the probe, as it comes with stacklab."""
    return catalogue.shipped()["probe"]


def probe_key(inputs: str, entry: Entry | None = None) -> str:
    """The name of what the scripts as they are now make of `inputs`: 12 hex digits."""
    entry = entry or probe_entry()
    scripts = {name: hashlib.sha256((SCRIPTS / name).read_bytes()).hexdigest() for name in PROBE_SCRIPTS}
    constants = [entry.title, _properties(entry), entry.min_ram, entry.min_disk]
    return files.digest(scripts, constants, inputs)[:12]


def _properties(entry: Entry) -> dict[str, str]:
    return {**entry.properties, "image_source": "private"}


def find_probe(cache: Path, *, inputs: str, entry: Entry | None = None) -> GuestImage | None:
    """The probe guest of the golden image `inputs`, if it is in the cache and whole."""
    return _read(cache / "guests" / f"probe-{probe_key(inputs, entry)}.qcow2")


def build_probe(
    rootfs: Path, cache: Path, log: Path, *, inputs: str, entry: Entry | None = None
) -> GuestImage:
    """The probe guest made from the kernel and the busybox of `rootfs`, built if anything changed.

    `inputs` is the key of the golden image that `rootfs` belongs to: it stands for all that is
    in there. The result is cache/guests/probe-<key>.qcow2, described by the JSON file beside
    it; without that, or when the two do not agree, it is built anew.

    Raises CommandFailed when the build fails, Busy when another one takes too long.
    """
    entry = entry or probe_entry()
    place = cache / "guests"
    path = place / f"probe-{probe_key(inputs, entry)}.qcow2"
    found = _read(path)
    if found is not None:
        return found
    with files.lock(path.with_suffix(".lock"), f"the probe guest {path.name}", wait=BUILD_SECONDS):
        found = _read(path)
        if found is not None:
            return found
        with ui.step(f"building the probe guest {path.name}"):
            return _build(entry, rootfs, path, log)


def _build(entry: Entry, rootfs: Path, path: Path, log: Path) -> GuestImage:
    metadata = path.with_suffix(".json")
    # First the description goes, last it comes: an image counts only together with its own.
    metadata.unlink(missing_ok=True)
    for stale in path.parent.glob(f".{path.stem}-*"):
        shutil.rmtree(stale, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=f".{path.stem}-", dir=path.parent) as work:
        partial = Path(work) / path.name
        run(
            [SCRIPTS / "build-probe-guest.sh", rootfs, partial],
            log=log,
            timeout=BUILD_SECONDS,
            hint=f"is {rootfs} whole? it has to hold a kernel with its modules, and busybox",
        )
        if not partial.is_file():
            raise CommandFailed(
                "the build of the probe guest ended well but left no image", hint=f"see {log}"
            )
        description = {
            "name": entry.title,
            "disk_format": "qcow2",
            "sha512": _sha512(partial),
            "size": partial.stat().st_size,
            "min_disk": entry.min_disk,
            "min_ram": entry.min_ram,
            "properties": {
                **_properties(entry),
                **_system(rootfs),
                "image_build_date": f"{datetime.now(UTC):%Y-%m-%d}",
            },
        }
        partial.replace(path)
    files.write_json(metadata, description)
    return _image(path, description)


def _read(path: Path) -> GuestImage | None:
    """The image at `path`, or None where it is not there or is not what its description says."""
    try:
        description = files.read_json(path.with_suffix(".json"))
        image = _image(path, description) if description else None
    except (ValueError, KeyError, TypeError):
        return None
    if image is None or not path.is_file() or path.stat().st_size != image.size:
        return None
    return image if _sha512(path) == image.sha512 else None


def _image(path: Path, description: dict[str, Any]) -> GuestImage:
    return GuestImage(
        name=description["name"],
        path=path,
        disk_format=description["disk_format"],
        sha512=description["sha512"],
        size=description["size"],
        min_disk=description["min_disk"],
        min_ram=description["min_ram"],
        properties=dict(description["properties"]),
    )


def _system(rootfs: Path) -> dict[str, str]:
    """os_distro and os_version, from the tree that the kernel and busybox come from."""
    for place in ("usr/lib/os-release", "etc/os-release"):
        if (rootfs / place).is_file():
            lines = (rootfs / place).read_text(encoding="utf-8").splitlines()
            values = dict(line.split("=", 1) for line in lines if "=" in line)
            return {
                "os_distro": values.get("ID", "debian").strip('"'),
                "os_version": values.get("VERSION_ID", "unknown").strip('"'),
            }
    return {"os_distro": "debian", "os_version": "unknown"}


def _sha512(path: Path) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha512").hexdigest()
