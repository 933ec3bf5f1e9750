"""The catalogue as a configuration of Zuul's nodepool-builder, for teams that outgrow one machine.

https://zuul-ci.org/docs/nodepool/latest/configuration.html
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from stacklab import dib, files, guestbuild
from stacklab.catalogue import Entry
from stacklab.errors import InvalidInput, LabError, Problem

ELEMENTS = "/etc/nodepool/elements"
_HEAD = """\
# Written by `invoke images.export-nodepool` from stacklab's catalogue. What is to be filled in
# here: the ZooKeeper servers, and in `providers` the cloud as clouds.yaml names it.
"""
# How often images are built anew, in seconds, by SCS-0102's replace_frequency.
_DAY = 86400
_AGES = {
    "daily": _DAY,
    "weekly": 7 * _DAY,
    "monthly": 30 * _DAY,
    "quarterly": 91 * _DAY,
    "yearly": 365 * _DAY,
}


def export(entries: Iterable[Entry], directory: Path) -> list[Path]:
    """Write nodepool.yaml, README.rst and elements/ for the dib entries; the paths written.

    Raises LabError when `directory` holds anything but an earlier export, or when no entry is built by
    dib; InvalidInput when it is no directory.
    """
    entries = list(entries)
    built = [entry for entry in entries if entry.builder == "dib"]
    if not built:
        raise LabError("no image of these is built by diskimage-builder", hint="nodepool builds only those")
    config, readme, elements = (directory / name for name in ("nodepool.yaml", "README.rst", "elements"))
    try:
        directory.mkdir(parents=True, exist_ok=True)
        found = {path.name for path in directory.iterdir()}
    except OSError as error:
        message = f"{directory} cannot be used, {error.strerror}: name an empty or a new directory"
        raise InvalidInput([Problem("", "directory", message)]) from error
    strange = found - ({path.name for path in (config, readme, elements)} if _ours(config) else set())
    if strange:
        raise LabError(
            f"{directory} holds other files: {', '.join(sorted(strange)[:5])}",
            hint="name an empty or a new directory",
        )
    # First what tells an export from a directory of the user's, so that one cut short can be repeated.
    text = yaml.safe_dump(configuration(built), sort_keys=False, width=100)
    files.write(config, _HEAD + text)
    shutil.rmtree(elements, ignore_errors=True)
    for name, digest in sorted(dib.element_digests(e for entry in built for e in entry.elements).items()):
        if digest != "dib":
            shutil.copytree(files.PROJECT / "elements" / name, elements / name, symlinks=True)
    elements.mkdir(exist_ok=True)
    files.write(readme, _readme(built, [entry for entry in entries if entry.builder != "dib"]))
    return [config, readme, elements]


def _ours(config: Path) -> bool:
    """Whether stacklab wrote this nodepool.yaml."""
    head = _HEAD.splitlines()[0].encode()
    return config.is_file() and config.read_bytes().startswith(head)


def configuration(entries: Iterable[Entry]) -> dict[str, Any]:
    """nodepool.yaml's content for entries that dib builds."""
    entries = list(entries)
    return {
        "elements-dir": ELEMENTS,
        "images-dir": "/opt/nodepool/images",
        "build-log-dir": "/var/log/nodepool/builds",
        "build-log-retention": 7,
        "zookeeper-servers": [{"host": "zookeeper.example.org", "port": 2281}],
        "labels": [],
        "providers": [_provider(entries)],
        "diskimages": [_diskimage(entry) for entry in entries],
    }


def _diskimage(entry: Entry) -> dict[str, Any]:
    """One image. nodepool uploads the format that a provider wants, so all of them are named."""
    found: dict[str, Any] = {
        "name": entry.name,
        "formats": list(entry.formats),
        "elements": list(entry.elements),
        "env-vars": {**guestbuild.inputs(entry)["environment"], **_qcow2(entry)},
        "build-timeout": guestbuild.BUILD_SECONDS,
    }
    user = entry.properties.get("image_original_user")
    if user:
        found["username"] = user
    age = _AGES.get(entry.properties.get("replace_frequency", ""))
    if age:
        found["rebuild-age"] = age
    return found


def _qcow2(entry: Entry) -> dict[str, str]:
    """dib's own compression is zlib; another one it takes for all its formats, so for qcow2 alone."""
    if "qcow2" not in entry.formats or not set(entry.formats) <= {"qcow2", "raw"}:
        return {}
    if entry.compression == "zlib":
        return {}
    return {"QEMU_IMG_OPTIONS": f"compression_type={entry.compression}"}


def _provider(entries: list[Entry]) -> dict[str, Any]:
    """A builder needs a provider to upload to; `pools` are the launcher's and stay empty."""
    return {
        "name": "cloud",
        "driver": "openstack",
        "cloud": "cloud",
        "diskimages": [{"name": entry.name, "meta": dict(entry.properties)} for entry in entries],
        "pools": [],
    }


def _readme(built: list[Entry], others: list[Entry]) -> str:
    lines = [
        "===========================",
        "Images for nodepool-builder",
        "===========================",
        "",
        "Written from stacklab's catalogue: the same elements, the same environment.",
        "",
        f"* copy ``elements/`` to ``{ELEMENTS}`` and ``nodepool.yaml`` to ``/etc/nodepool/``",
        "* name your ZooKeeper servers in ``zookeeper-servers``",
        "* give the provider the name that your cloud has in nodepool's ``clouds.yaml``",
        "* start ``nodepool-builder``; it builds what is older than ``rebuild-age`` and uploads it",
        "",
        "``pools`` is for nodepool-launcher, which starts machines: the builder needs none.",
        "",
        "What nodepool does not do and stacklab does: the check of each image against its contract,",
        "the boot test, hiding of replaced images.",
        "",
        "Images: " + ", ".join(entry.name for entry in built),
    ]
    if any("vhd" in entry.formats for entry in built):
        lines += ["", "For vhd diskimage-builder needs Xen's ``vhd-util`` on the builder."]
    if others:
        names = ", ".join(f"{entry.name} ({entry.builder})" for entry in others)
        lines += ["", f"Not here, as nodepool builds with diskimage-builder only: {names}"]
    return "\n".join(lines) + "\n"
