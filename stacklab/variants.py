"""The files of one guest image: one a disk format, each with its description beside it.

A file counts only together with its description, which holds the sha512 that was taken once.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stacklab import files, magic
from stacklab.catalogue import UPLOAD_ONLY, Entry
from stacklab.errors import LabError
from stacklab.guests import GuestImage
from stacklab.run import run

CONVERT_SECONDS = 1800

# What QEMU calls a format where Glance calls it otherwise.
_QEMU = {"vhd": "vpc"}
# streamOptimized is the only vmdk that vSphere imports; force_size keeps a vhd's size to the byte.
_OPTIONS = {"vmdk": ("subformat=streamOptimized",), "vhd": ("subformat=dynamic,force_size=on",)}
# The kinds of vmdk that are one file; any other may name files of this machine as parts of it.
_ALONE = ("monolithicSparse", "streamOptimized")
_PROPERTIES = {"vmdk": {"vmware_disktype": "streamOptimized"}}


@dataclass(frozen=True)
class Source:
    """Where an image comes from: `source` for its property, `built` in seconds since 1970.

    `seconds` is how long the build took, `kernel` the version that is to boot, where it is known.
    """

    source: str
    built: int
    seconds: int
    inputs: Any
    kernel: str = ""


def qemu_name(disk_format: str) -> str:
    """QEMU's name of a format."""
    return _QEMU.get(disk_format, disk_format)


def path_of(entry: Entry, stem: str, disk_format: str) -> Path:
    """The file of a format: cache/guests/STEM.zstd.qcow2, STEM.raw, …"""
    compression = f".{entry.compression}" if disk_format == "qcow2" and _made(entry, disk_format) else ""
    return files.cache_dir() / "guests" / f"{stem}{compression}.{disk_format}"


def _made(entry: Entry, disk_format: str) -> bool:
    """Whether the file of that format is made here; else it is what was fetched, untouched."""
    return entry.builder != "url" or disk_format != entry.format


def description_of(path: Path) -> Path:
    """Where the description of an image's file lies."""
    return path.with_name(f"{path.name}.json")


def read(path: Path) -> dict[str, Any] | None:
    """The description of the file at `path`; None where either is missing or they do not agree.

    A file whose size and time are as they were is not read again; else its sha512 decides.
    """
    try:
        found = files.read_json(description_of(path))
        status = path.stat()
        if not found or status.st_size != found["size"]:
            return None
        if status.st_mtime_ns != found["mtime_ns"]:
            if sha512(path) != found["sha512"]:
                return None
            found["mtime_ns"] = status.st_mtime_ns
            files.write_json(description_of(path), found)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return dict(found)


def title(entry: Entry, disk_format: str) -> str:
    """The name in Glance: the entry's title for its first format; further ones name their format too."""
    return entry.title if disk_format == entry.formats[0] else f"{entry.title} ({disk_format})"


def image(entry: Entry, path: Path, disk_format: str, found: dict[str, Any]) -> GuestImage:
    """The image of a described file, as the catalogue wants it now."""
    return GuestImage(
        name=title(entry, disk_format),
        path=path,
        disk_format=disk_format,
        sha512=found["sha512"],
        size=found["size"],
        min_disk=entry.min_disk,
        min_ram=entry.min_ram,
        properties={
            **entry.properties,
            **_PROPERTIES.get(disk_format, {}),
            "image_source": found["source"],
            "image_build_date": time.strftime("%Y-%m-%d", time.gmtime(found["built"])),
        },
    )


def publish(partial: Path, path: Path, disk_format: str, source: Source) -> None:
    """Give a finished file its name and its description. `partial` has to be on the same filesystem."""
    # An old description does not fit the new file: its sha512 tells.
    if partial != path:
        partial.replace(path)
    status = path.stat()
    files.write_json(
        description_of(path),
        {
            "disk_format": disk_format,
            "sha512": sha512(path),
            "size": status.st_size,
            "mtime_ns": status.st_mtime_ns,
            **dataclasses.asdict(source),
        },
    )


def convert(
    source: Path, source_format: str, target: Path, disk_format: str, compression: str, log: Path
) -> None:
    """Write `source` to `target` in another format. Raises CommandFailed when qemu-img does."""
    options = list(_OPTIONS.get(disk_format, ()))
    if disk_format == "qcow2":
        options = [f"compat=1.1,compression_type={compression}"]
    run(
        [
            *("qemu-img", "convert", "-f", qemu_name(source_format)),
            *("-O", qemu_name(disk_format)),
            *(("-c",) if disk_format == "qcow2" else ()),
            *(word for option in options for word in ("-o", option)),
            *(source, target),
        ],
        log=log,
        timeout=CONVERT_SECONDS,
        hint="is the disk full?",
    )


def inspect(path: Path, disk_format: str, log: Path) -> int:
    """Look whether a fetched file is a whole disk image of its format, and stands alone.

    The result is the size of its disk in bytes, 0 for a format that has none.

    Raises LabError for another format, and for an image that refers to other files: converting it
    would read those of this machine.
    """
    if problem := magic.against(path, disk_format):
        raise LabError(f"{path.name}: {problem}", hint="mend the entry's `format`, or its `url`")
    if disk_format in UPLOAD_ONLY:
        return 0
    wanted = qemu_name(disk_format)
    argv: list[str | Path] = ["qemu-img", "info", "--output=json", "-f", wanted, path]
    known = json.loads(run(argv, log=log, merge_stderr=False, hint=f"is it a {disk_format} image?").output)
    data = known.get("format-specific", {}).get("data", {})
    parts = [name for part in data.get("extents", ()) if (name := part["filename"]) != str(path)]
    for other in (known.get("backing-filename"), data.get("data-file"), *parts):
        if other:
            raise LabError(f"{path.name} needs another file, {other}", hint="take an image that stands alone")
    create_type = data.get("create-type")
    if disk_format == "vmdk" and create_type not in _ALONE:
        raise LabError(
            f"{path.name} is a vmdk of the kind {create_type}", hint=f"take one that is {' or '.join(_ALONE)}"
        )
    return int(known["virtual-size"])


def sha512(path: Path) -> str:
    """sha512 of a file, in hex."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha512").hexdigest()
