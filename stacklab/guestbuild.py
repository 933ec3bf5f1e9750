"""Guest images: built by diskimage-builder from elements/ or fetched, checked, converted.

Each is named by the hash of its inputs and appears whole, by a rename. Whoever asks for an image
that is there has it at once; of two who ask for one that is not, one builds and the other waits.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

from stacklab import contract, dib, download, files, guestboot, guestcontract, guests, ui, variants
from stacklab.catalogue import UPLOAD_ONLY, Entry
from stacklab.errors import InvalidInput, LabError, Problem
from stacklab.guests import GuestImage

BUILD_SECONDS = 3600
FETCH_SECONDS = 4 * 3600
# What the probe's kernel and busybox are of. Only the probe imports how golden images are made: an upload of
# any other takes less CPU time and memory without it.
_GOLDEN = ("debian-12", "lxc")

# Programs with the packages that bring them, and what an element needs beside.
_PROGRAMS = {
    "debugfs": "e2fsprogs",
    "mkfs.ext4": "e2fsprogs",
    "partx": "util-linux",
    "qemu-img": "qemu-utils",
    "sfdisk": "fdisk",
    "sudo": "sudo",
}
_FIXED = {
    # cloud-init writes the interfaces.
    "DIB_APT_MINIMAL_CREATE_INTERFACES": "0",
    "DIB_CLOUD_INIT_GROWPART_DEVICES": "['/']",
    "DIB_DEBUG_TRACE": "0",
    "DIB_GRUB_TIMEOUT": "1",
    "FS_TYPE": "ext4",
}


def inputs(entry: Entry) -> dict[str, Any]:
    """All that decides what dib makes of an entry, apart from what the repositories hold."""
    return {
        "elements": list(entry.elements),
        "digests": dib.element_digests(entry.elements),
        "diskimage-builder": metadata.version("diskimage-builder"),
        "environment": {**_FIXED, **entry.environment},
        "contract": guestcontract.VERSION,
    }


def find(entry: Entry) -> tuple[GuestImage, ...]:
    """The images of an entry that are there, by format, without building or asking anybody."""
    if entry.builder == "probe":
        from stacklab import base

        golden = base.wanted(base.spec(*_GOLDEN))
        probe = guests.find_probe(files.cache_dir(), inputs=golden.key, entry=entry)
        return (probe,) if probe else ()
    stem = _stem(entry, online=False)
    return _found(entry, stem) if stem else ()


def build(entry: Entry, *, rebuild: bool = False, boot: bool = False) -> tuple[GuestImage, ...]:
    """The images of an entry, one a format, in its order; built or fetched if its inputs changed.

    `rebuild` builds anew although nothing changed, for what is new in the repositories. `boot`
    starts the image once; where that went well before it is not done again. Raises LabError when
    a build, a download or a check fails; then what was there before stays.
    """
    if entry.builder == "probe":
        return (_probe(entry),)  # `verify` boots it in every lab
    stem = _stem(entry, online=True)
    found = () if rebuild else _found(entry, stem)
    if len(found) < len(entry.formats):
        lock = files.cache_dir() / "guests" / f"{stem}.lock"
        with files.lock(lock, f"the guest image {stem}", wait=FETCH_SECONDS):
            found = () if rebuild else _found(entry, stem)
            if len(found) < len(entry.formats):
                with ui.step(
                    f"{'fetching' if entry.builder == 'url' else 'building'} the guest image {stem}"
                ):
                    _make(entry, stem, rebuild)
        found = _found(entry, stem)
    if boot:
        _boot(entry, stem)
    return found


def leftovers(entries: Iterable[Entry]) -> list[Path]:
    """What lies in the cache of guests and belongs to none of `entries` as they are now."""
    others = [entry for entry in entries if entry.builder != "probe"]
    stems = {stem for entry in others if (stem := _stem(entry, online=False))}
    place = files.cache_dir() / "guests"
    return [
        path
        for path in sorted(place.glob("*") if place.is_dir() else ())
        if not path.name.startswith(("probe-", ".probe-", ".building-"))
        and path.suffix != ".lock"
        and not any(path.name.startswith((f"{stem}.", f".{stem}.")) for stem in stems)
        and not path.name.endswith(".published.json")
    ]


def _stem(entry: Entry, *, online: bool) -> str:
    """The name of the entry's files before their formats; '' when it cannot be known offline."""
    if entry.builder == "dib":
        return f"{entry.name}-{files.digest(inputs(entry))[:12]}"
    digest = entry.digest or _published(entry, online=online)
    return f"{entry.name}-{digest.rpartition(':')[2][:12]}" if digest else ""


def _published(entry: Entry, *, online: bool) -> str:
    """The digest that the publisher gives; the last one seen where he cannot be asked."""
    seen = files.cache_dir() / "guests" / f"{entry.name}.published.json"
    known = files.read_json(seen) or {}
    last = str(known.get("digest", "")) if known.get("url") == entry.url else ""
    if not online:
        return last
    try:
        digest = download.published(entry.checksums, entry.url)
    except LabError as error:
        if not last:
            raise
        ui.warn(f"{error.message}; the version seen last is taken")
        return last
    files.write_json(seen, {"url": entry.url, "digest": digest})
    return digest


def _found(entry: Entry, stem: str) -> tuple[GuestImage, ...]:
    described = [
        (path, disk_format, variants.read(path))
        for disk_format in entry.formats
        for path in [variants.path_of(entry, stem, disk_format)]
    ]
    return tuple(variants.image(entry, path, name, found) for path, name, found in described if found)


def _make(entry: Entry, stem: str, rebuild: bool) -> None:
    """Make the formats that are missing, of one that is there or of a new build."""
    _require(entry)
    work = dib.workplace(files.cache_dir() / "guests", stem)
    log = files.cache_dir() / "logs" / f"{stem}.log"
    log.unlink(missing_ok=True)
    try:
        have = {} if rebuild else {image.disk_format: image.path for image in _found(entry, stem)}
        if have:
            known = variants.read(next(iter(have.values()))) or {}
            names = ("source", "built", "seconds", "inputs", "kernel")
            source = variants.Source(**{name: known[name] for name in names})
            disk_format, path = next(iter(have.items()))
        else:
            disk_format, path, source = _origin(entry, stem, work, log)
        for wanted in entry.formats:
            if wanted not in have:
                _variant(entry, stem, (disk_format, path, source), wanted, work, log)
    finally:
        dib.remove_tree(work)


def _variant(
    entry: Entry,
    stem: str,
    origin: tuple[str, Path, variants.Source],
    wanted: str,
    work: Path,
    log: Path,
) -> None:
    disk_format, path, source = origin
    target = variants.path_of(entry, stem, wanted)
    if path == target:
        return  # fetched in this format: it is there
    partial = work / target.name
    with ui.step(f"converting to {wanted}"):
        variants.convert(path, disk_format, partial, wanted, entry.compression, log)
        variants.publish(partial, target, wanted, source)


def _origin(entry: Entry, stem: str, work: Path, log: Path) -> tuple[str, Path, variants.Source]:
    """What the formats are made of: its format, its file, where it comes from."""
    started = time.time()
    if entry.builder == "dib":
        kernel = _build(entry, stem, work, log)
        seconds = round(time.time() - started)
        source = variants.Source("private", int(started), seconds, inputs(entry), kernel)
        return "raw", work / "image.raw", source
    path = variants.path_of(entry, stem, entry.format)
    digest = entry.digest or _published(entry, online=False)
    download.fetch(entry.url, path, digest, ui.amount)
    try:
        size = variants.inspect(path, entry.format, log)
    except LabError:
        path.unlink()
        raise
    _fits(entry, size)
    seconds = round(time.time() - started)
    source = variants.Source(entry.url, int(path.stat().st_mtime), seconds, {"digest": digest})
    variants.publish(path, path, entry.format, source)
    return entry.format, path, source


def _fits(entry: Entry, size: int) -> None:
    """Raise InvalidInput for a disk of `size` bytes that is larger than the entry's min_disk; 0 is any."""
    if entry.min_disk and size > entry.min_disk << 30:
        told = f"{entry.min_disk} GiB do not hold the image, whose disk has {ui.size(size)}"
        problem = Problem("", f"images.{entry.name}.min_disk", f"{told}: write {-(-size >> 30)}")
        raise InvalidInput([problem])


def _build(entry: Entry, stem: str, work: Path, log: Path) -> str:
    """Have dib make work/image.raw, check it, keep its list of packages; the kernel that is to boot."""
    mirrors = dib.apt_mirrors(entry.environment.get("DIB_RELEASE", ""))
    environment = {**dib.environment(work, _FIXED, mirrors), **dib.block_device(), **entry.environment}
    dib.build(dib.argv(entry.elements, "raw", work / "image"), log, environment, BUILD_SECONDS)
    image, tree = work / "image.raw", work / "tree"
    if not image.is_file():
        raise LabError("diskimage-builder ended well but left no image", hint=f"see {log}")
    with ui.step("checking it against the contract of guests"):
        guestcontract.extract(image, tree, log)
        problems = guestcontract.check(tree)
        if problems:
            text = "\n".join(f"  {problem}" for problem in problems)
            raise LabError(f"the built image breaks the contract:\n{text}", hint=f"build log: {log}")
    packages = files.cache_dir() / "guests" / f"{stem}.packages.txt"
    files.write(packages, (tree / guestcontract.PACKAGES).read_text(encoding="utf-8"))
    return contract.kernels(tree)[-1]


def _probe(entry: Entry) -> GuestImage:
    from stacklab import base

    golden = base.build(base.spec(*_GOLDEN))
    log = files.cache_dir() / "logs" / "probe.log"
    return guests.build_probe(golden.rootfs, files.cache_dir(), log, inputs=golden.key, entry=entry)


def _require(entry: Entry) -> None:
    """Raise LabError, naming all that a build needs and this machine lacks."""
    built = entry.builder == "dib"
    needed = _PROGRAMS if built else () if entry.format in UPLOAD_ONLY else ("qemu-img",)
    packages = sorted({_PROGRAMS[name] for name in needed if shutil.which(name) is None})
    missing = [f"{package} is not installed" for package in packages]
    if built and os.geteuid() != 0:
        missing.append("diskimage-builder needs root: run it with sudo")
    container = entry.environment.get("DIB_CONTAINERFILE_RUNTIME", "podman")
    if any(name.endswith("-container") for name in entry.elements) and shutil.which(container) is None:
        missing.append(f"the element starts from a container image, and {container} is not installed")
    if "centos" in entry.elements and not dib.has_device_mapper():
        missing.append(
            "the element centos unpacks a cloud image by kpartx, and this kernel has no device-mapper"
        )
    if missing:
        text = "\n".join(f"  {line}" for line in missing)
        raise LabError(
            f"{entry.name} cannot be made here:\n{text}", hint="`invoke doctor` says what to install"
        )


def _boot(entry: Entry, stem: str) -> None:
    """Boot the first format that QEMU reads, if that was not done before, and keep what it reported."""
    names = [name for name in entry.formats if name not in UPLOAD_ONLY]
    if not names:
        return  # an installer wants a person
    path = variants.path_of(entry, stem, names[0])
    known = variants.read(path) or {}
    if known.get("boot"):
        return
    log = files.cache_dir() / "logs" / f"{stem}.boot.log"
    log.unlink(missing_ok=True)
    started = time.time()
    disk = entry.min_disk + 1
    with ui.step(f"booting {path.name}"):
        report = guestboot.boot(path, names[0], disk, entry.min_ram, log)
        problems = guestboot.problems(report, disk, known["kernel"]) if entry.builder == "dib" else []
        if problems:
            text = "\n".join(f"  {problem}" for problem in problems)
            raise LabError(f"{path.name} boots, but:\n{text}", hint=f"its console: {log}")
    report["seconds"] = str(round(time.time() - started))
    files.write_json(variants.description_of(path), {**known, "boot": report})
