"""The catalogue of guest images: the shipped one, and a user's own entries of the same form.

Like a topology it is read once and checked whole: every mistake is reported, each with its place.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from stacklab import download, files
from stacklab.checker import Checker, join, show, unknown
from stacklab.errors import InvalidInput, Problem
from stacklab.yamlfile import read_yaml

SHIPPED = Path(__file__).parent / "data" / "guests.yaml"
OWN = "images.yaml"
BUILDERS = ("dib", "url", "probe")
FORMATS = ("qcow2", "raw", "vmdk", "vdi", "vhd")
# These pass through as they were fetched; qemu-img knows nothing of them.
UPLOAD_ONLY = ("ami", "aki", "ari", "iso")
COMPRESSIONS = ("zstd", "zlib")
VISIBILITIES = ("public", "private", "shared", "community")

# https://docs.scs.community/standards/scs-0102-v1-image-metadata, and what Nova reads of an image
# (https://docs.openstack.org/glance/latest/admin/useful-image-properties.html).
PROPERTIES = (
    *("architecture", "hypervisor_type", "os_distro", "os_version", "os_type", "os_purpose"),
    *("os_admin_user", "os_require_quiesce", "os_secure_boot", "os_shutdown_timeout"),
    *("image_original_user", "image_description", "image_source", "image_build_date", "patchlevel"),
    *("replace_frequency", "provided_until", "uuid_validity", "hotfix_hours", "license_included"),
    *("hw_boot_menu", "hw_cdrom_bus", "hw_cpu_cores", "hw_cpu_policy", "hw_cpu_sockets", "hw_cpu_threads"),
    *("hw_disk_bus", "hw_firmware_type", "hw_input_bus", "hw_machine_type", "hw_mem_page_size"),
    *("hw_mem_encryption", "hw_numa_nodes", "hw_pointer_model", "hw_qemu_guest_agent", "hw_rescue_bus"),
    *("hw_rescue_device", "hw_rng_model", "hw_scsi_model", "hw_serial_port_count", "hw_tpm_model"),
    *("hw_tpm_version", "hw_video_model", "hw_video_ram", "hw_vif_model", "hw_vif_multiqueue_enabled"),
    *("hw_virtio_packed_ring", "hw_vtpm", "hw_watchdog_action", "img_config_drive", "kernel_id"),
    *("ramdisk_id", "subscription_included", "maintained_until", "vmware_adaptertype", "vmware_disktype"),
    *("vmware_ostype", "default_user", "os_command_line"),
)
_FILLED_IN = ("image_source", "image_build_date")
# Glance's own attributes, with the entry's keys that they are made of. As properties they would win
# over these (https://docs.openstack.org/api-ref/image/v2/#create-image).
_OWN_KEYS = {
    **{key: key for key in ("visibility", "min_disk", "min_ram")},
    **{"name": "title", "disk_format": "formats", "container_format": "formats"},
}
_ATTRIBUTES = (
    *_OWN_KEYS,
    *("id", "protected", "owner", "status", "tags", "size", "virtual_size", "checksum"),
    *("os_hidden", "os_hash_algo", "os_hash_value", "created_at", "updated_at"),
    *("locations", "direct_url", "self", "file", "schema", "stores"),
)
_VALUES: dict[str, tuple[str, ...]] = {
    "architecture": ("x86_64",),
    "hw_disk_bus": ("virtio", "scsi", "sata", "ide", "usb", "fdc", "nvme"),
    "os_purpose": ("generic", "minimal", "k8snode", "gpu", "network", "application", "custom"),
    "replace_frequency": (
        *("monthly", "weekly", "daily", "quarterly", "yearly", "critical_bug", "never", "bootstrap"),
    ),
}
_KEYS: dict[str, tuple[str, ...]] = {
    "all": ("builder", "title", "properties", "min_disk", "min_ram", "visibility", "keep"),
    "dib": ("elements", "environment", "formats", "compression"),
    "url": ("url", "checksums", "digest", "format", "formats", "compression"),
    "probe": (),
}
_ALL_KEYS = tuple(dict.fromkeys(key for keys in _KEYS.values() for key in keys))
_DIGEST = re.compile(r"sha(?:256:[0-9a-f]{64}|512:[0-9a-f]{128})")
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True)
class Entry:
    """A guest image as the catalogue wants it. `min_disk` in GiB, `min_ram` in MiB.

    `title` is its name in Glance. `digest` is `sha256:HEX` or `sha512:HEX`, pinned; else
    `checksums` is the URL of the list that the publisher keeps. `format` is what `url` gives.
    `keep` is the number of replaced versions that stay in Glance.
    """

    name: str
    title: str
    builder: str
    elements: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    url: str = ""
    checksums: str = ""
    digest: str = ""
    format: str = "qcow2"
    formats: tuple[str, ...] = ("qcow2",)
    compression: str = "zstd"
    properties: Mapping[str, str] = field(default_factory=dict)
    min_disk: int = 1
    min_ram: int = 512
    visibility: str = "private"
    keep: int = 1


@cache
def shipped() -> Mapping[str, Entry]:
    """The entries that come with stacklab, by name."""
    return parse(SHIPPED.read_text(encoding="utf-8"), SHIPPED.name)


def load(own: str = "") -> dict[str, Entry]:
    """The shipped entries with those of the file `own` added or put in their place.

    Without `own` that is `images.yaml` of the checkout, where there is one. Raises InvalidInput when
    `own` is not there, cannot be read, and for all that is wrong in it.
    """
    path = Path(own) if own else files.PROJECT / OWN
    if not own and not path.exists():
        return dict(shipped())
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        cause = error.strerror if isinstance(error, OSError) else error.reason
        message = f"cannot be read, {cause}: give a catalogue, a readable file in UTF-8"
        raise InvalidInput([Problem(str(path), "", message)]) from error
    mine = parse(text, str(path))
    entries = {**{name: entry for name, entry in shipped().items() if name not in mine}, **mine}
    check = Checker(str(path))
    _titles(check, entries)
    if check.problems:
        raise InvalidInput(check.problems)
    return entries


def named(entries: Mapping[str, Entry], names: list[str]) -> list[Entry]:
    """The entries of `names`, all of them for no names. Raises InvalidInput for unknown ones."""
    strange = [Problem("", "", unknown("image", name, entries)) for name in names if name not in entries]
    if strange:
        raise InvalidInput(strange, hint=f"add it to {OWN}, or name one of these")
    return [entries[name] for name in dict.fromkeys(names)] if names else list(entries.values())


def parse(text: str, file: str) -> dict[str, Entry]:
    """Check the text of a catalogue, `file` for messages. Raises InvalidInput with all its problems."""
    check = Checker(file)
    content = read_yaml(check, text)
    top = check.mapping("", content, ("images",), {"images": "give a mapping of names to images"})
    images = check.mapping("images", top.get("images")) if "images" in top else {}
    if "images" in top and not images and not check.problems:
        check.problem("images", "there is no image in it: describe one, such as debian-12: {builder: dib, …}")
    entries = {name: _entry(check, name, value) for name, value in images.items()}
    _titles(check, entries)
    if check.problems:
        raise InvalidInput(check.problems)
    return entries


def _titles(check: Checker, entries: Mapping[str, Entry]) -> None:
    seen: dict[str, str] = {}
    for name, entry in entries.items():
        if entry.title and entry.title in seen:
            where, other = f"images.{name}.title", seen[entry.title]
            check.problem(where, f"'{entry.title}' is the title of {other} too: take another")
        seen.setdefault(entry.title, name)


def _entry(check: Checker, name: str, value: Any) -> Entry:
    path = join("images", name)
    if not re.fullmatch(r"[a-z0-9][a-z0-9.-]{0,62}", name):
        rule = "lowercase letters, digits, dots and dashes, at most 63 characters"
        check.problem(path, f"{show(name)} is not a valid name: take {rule}, such as debian-12")
    keys = check.mapping(path, value, _ALL_KEYS, {"builder": f"say one of {', '.join(BUILDERS)}"})
    # Without a builder nothing is known of what belongs to one.
    builder = _choice(check, f"{path}.builder", keys, BUILDERS) if "builder" in keys else ""
    if builder:
        _strangers(check, path, keys, builder)
    entry = Entry(
        name=name,
        title=_title(check, path, keys.get("title", name)),
        builder=builder,
        compression=_choice(check, f"{path}.compression", keys, COMPRESSIONS),
        properties=_properties(check, f"{path}.properties", keys.get("properties"), builder),
        min_disk=check.integer(f"{path}.min_disk", keys.get("min_disk", 1), 0, 65536),
        min_ram=check.integer(f"{path}.min_ram", keys.get("min_ram", 512), 0, 1 << 20),
        visibility=_choice(check, f"{path}.visibility", keys, VISIBILITIES, "private"),
        keep=check.integer(f"{path}.keep", keys.get("keep", 1), 0, 100),
    )
    if builder == "dib":
        return _built(check, path, keys, entry)
    if builder == "url":
        return _fetched(check, path, keys, entry)
    return dataclasses.replace(entry, compression="zlib")  # as build-probe-guest.sh makes it


def _built(check: Checker, path: str, keys: dict[str, Any], entry: Entry) -> Entry:
    return dataclasses.replace(
        entry,
        formats=_formats(check, path, keys, FORMATS),
        elements=_elements(check, path, keys),
        environment=_environment(check, f"{path}.environment", keys.get("environment")),
    )


def _fetched(check: Checker, path: str, keys: dict[str, Any], entry: Entry) -> Entry:
    found = _choice(check, f"{path}.format", keys, (*FORMATS, *UPLOAD_ONLY), given=_alias(keys.get("format")))
    formats = (found,) if found in UPLOAD_ONLY else FORMATS
    given = {"formats": [found], **keys} if found in (*FORMATS, *UPLOAD_ONLY) else keys
    digest = _digest(check, path, keys)
    if digest is None:
        check.problem(path, "nothing to check it by: give 'checksums', a URL, or 'digest', such as sha512:…")
    elif digest and "checksums" in keys:
        check.problem(f"{path}.checksums", "there is a digest too: keep one of the two")
    return dataclasses.replace(
        entry,
        url=_url(check, f"{path}.url", keys, pinned=True),
        checksums=_url(check, f"{path}.checksums", keys, pinned=False) if "checksums" in keys else "",
        digest=digest or "",
        format=found,
        formats=_formats(check, path, given, formats),
    )


def _strangers(check: Checker, path: str, keys: dict[str, Any], builder: str) -> None:
    for key in keys:
        owners = [name for name in BUILDERS if key in _KEYS[name]]
        if owners and builder not in owners:
            what = f"is for the builder {' or '.join(owners)}, not for {builder}: leave it out"
            check.problem(f"{path}.{key}", what)


def _choice(
    check: Checker,
    path: str,
    keys: dict[str, Any],
    known: tuple[str, ...],
    default: str = "",
    given: Any = None,
) -> str:
    """One of the known names of the key that ends `path`; without a default the first one is it."""
    key = path.rpartition(".")[2]
    value = keys.get(key, default or known[0]) if given is None else given
    if not isinstance(value, str) or value not in known:
        check.problem(path, unknown(key, value, known))
        return ""
    return value


def _title(check: Checker, path: str, value: Any) -> str:
    number = isinstance(value, int) and not isinstance(value, bool)
    title = str(value) if number else check.text(f"{path}.title", value)
    if isinstance(value, str) and not 1 <= len(title) <= 200:
        check.problem(f"{path}.title", f"{show(value)} is not a title: take 1 to 200 characters")
    return title


def _alias(name: Any) -> Any:
    """QEMU calls vpc what Glance calls vhd."""
    return "vhd" if name == "vpc" else name


def _formats(check: Checker, path: str, keys: dict[str, Any], known: tuple[str, ...]) -> tuple[str, ...]:
    value = keys.get("formats", [known[0]])
    if isinstance(value, list):
        value = [_alias(item) for item in value]
        for item in UPLOAD_ONLY:
            if item in value and item not in known:
                what = "cannot be made here: take a url image of that format, or leave it out"
                check.problem(f"{path}.formats", f"'{item}' {what}")
        possible = [item for item in value if item not in UPLOAD_ONLY or item in known]
        if len(possible) < len(value):
            return tuple(str(item) for item in possible)
    return check.choices(f"{path}.formats", value, known, "format")


def _elements(check: Checker, path: str, keys: dict[str, Any]) -> tuple[str, ...]:
    value = keys.get("elements")
    if not isinstance(value, list) or not value:
        advice = "write a list such as [debian-minimal, block-device-mbr, stacklab-guest]"
        shown = "an empty list" if value == [] else f"{show(value)} is not a list"
        shown = "'elements' is missing" if value is None else shown
        check.problem(f"{path}.elements", f"{shown}: {advice}")
        return ()
    for item in value:
        # A word that starts with a dash would be an option to disk-image-create.
        if not isinstance(item, str) or not re.fullmatch(r"[A-Za-z0-9][\w.-]*", item):
            message = f"{show(item)} is not an element's name: take one without blanks"
            check.problem(f"{path}.elements", message)
    return tuple(str(item) for item in value)


def _environment(check: Checker, path: str, value: Any) -> dict[str, str]:
    found = {}
    for key, item in check.mapping(path, value).items():
        if not re.fullmatch(r"[A-Z][A-Z0-9_]*", key):
            check.problem(join(path, key), "is not a variable's name: take capitals, digits and underscores")
        elif key.endswith(("_PASSWORD", "_TOKEN", "_SECRET")):
            message = "holds a secret, and dib writes its environment to logs: leave it out"
            check.problem(join(path, key), message)
        else:
            found[key] = _scalar(check, join(path, key), item, yes="1", no="0")
    return found


def _scalar(check: Checker, path: str, value: Any, *, yes: str, no: str) -> str:
    if isinstance(value, bool):
        return yes if value else no
    if isinstance(value, str | int):
        return str(value)
    check.problem(path, f"{show(value)} is not text: write a line of text, in quotes if need be")
    return ""


def _properties(check: Checker, path: str, value: Any, builder: str) -> dict[str, str]:
    found = {}
    for key, item in check.mapping(path, value).items():
        place = join(path, key)
        close = difflib.get_close_matches(key, PROPERTIES, n=1, cutoff=0.85)
        if key in _FILLED_IN:
            check.problem(place, "is filled in by the build: leave it out")
        elif key in _ATTRIBUTES:
            advice = f"use the entry's own key '{_OWN_KEYS[key]}'" if key in _OWN_KEYS else "leave it out"
            check.problem(place, f"is an attribute of Glance's own, not a property: {advice}")
        elif not re.fullmatch(r"[a-z][a-z0-9_:.-]{0,254}", key):
            check.problem(place, "is not a property's name: take lowercase letters, digits and underscores")
        elif key not in PROPERTIES and close:
            check.problem(place, f"unknown property '{key}': did you mean '{close[0]}'?")
        else:
            found[key] = _property(check, place, key, item)
    if builder in ("dib", "url"):
        for key in ("os_distro", "os_version"):
            # A misspelt name was reported already.
            if key not in found and not _reported(check, path, key):
                check.problem(join(path, key), f"'{key}' is missing: schedulers and tools go by it")
    return found


def _reported(check: Checker, path: str, key: str) -> bool:
    """Whether a problem below `path` already speaks of `key`."""
    return any(problem.path.startswith(path) and f"'{key}'" in problem.message for problem in check.problems)


def _property(check: Checker, path: str, key: str, value: Any) -> str:
    text = _scalar(check, path, value, yes="yes", no="no")
    if key in _VALUES and text not in _VALUES[key]:
        check.problem(path, unknown("value", text, _VALUES[key]))
    if key == "provided_until" and not re.fullmatch(r"none|notice|\d{4}-\d{2}-\d{2}", text):
        check.problem(path, f"{show(text)} is not possible: take none, notice or a date such as 2028-06-30")
    return text


def _url(check: Checker, path: str, keys: dict[str, Any], *, pinned: bool) -> str:
    key = path.rpartition(".")[2]
    example = "https://…/image.qcow2" if pinned else "https://…/SHA512SUMS"
    if key not in keys:
        check.problem(path, f"'{key}' is missing: give the image's address, such as {example}")
        return ""
    value = keys[key]
    parts = download.parts_of(value) if isinstance(value, str) else None
    if parts is None:
        check.problem(path, f"{show(value)} is not a URL: write it such as {example}")
        return ""
    if parts.username or parts.password:
        check.problem(path, "holds a password, which would be logged: take an address without one")
    if parts.scheme == "http" and not pinned and parts.hostname not in _LOOPBACK:
        check.problem(path, "http proves nothing about checksums: take https, or pin the image's digest")
    return str(value)


def _digest(check: Checker, path: str, keys: dict[str, Any]) -> str | None:
    """The pinned digest, '' where the checksums serve or it is wrong; None when there is neither."""
    if "digest" not in keys:
        return "" if "checksums" in keys else None
    value = keys["digest"]
    if not isinstance(value, str) or not _DIGEST.fullmatch(value.lower()):
        rule = "write sha256: and 64, or sha512: and 128 hexadecimal digits"
        check.problem(f"{path}.digest", f"{show(value)} is not a digest: {rule}")
        return ""
    return value.lower()
