"""What the package repositories hold, in one checksum each: whether there is anything new for an image.

A repository's index names every package with its digest, so an index that is the same means
packages that are the same: repomd.xml in RPM's repositories, InRelease in Debian's. And whether
they still have the packages of a manifest.
"""

from __future__ import annotations

import gzip
import hashlib
import lzma
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from stacklab import dib, distributions, download, releases, ui
from stacklab.base import Spec
from stacklab.errors import LabError


def indexes(spec: Spec) -> dict[str, str]:
    """The address of each repository's index, by a name that is the same whichever mirror serves it.

    Raises LabError for Debian on a host whose apt knows no mirror of it, where none is given either.
    """
    row = distributions.distribution(spec.distribution)
    archive, security = dib.apt_mirrors(row.version) if row.family == "debian" else ("", "")
    if spec.mirror:
        archive, security = spec.mirror, f"{spec.mirror}-security"
    archive = archive or row.archive
    if row.indexes and not archive:
        raise LabError(f"this host's apt has no mirror of {row.title}", hint="say which: --mirror URL")
    roots = {"archive": archive, "security": security}
    found = {
        path: f"{root.rstrip('/')}/{path}"
        for kind, root in roots.items()
        if root
        for path in row.indexes.get(kind, ())
    }
    if row.family == "el":
        for name, url in releases.release(spec.release).repositories.items():
            found[name] = f"{url}repodata/repomd.xml"
    return found


def checksums(spec: Spec) -> dict[str, str]:
    """sha256 of each index as it is now. Raises LabError, naming every repository that does not answer."""
    wanted = indexes(spec)

    def ask(name: str) -> tuple[str, str, str]:
        try:
            return name, hashlib.sha256(download.content(wanted[name])).hexdigest(), ""
        except LabError as error:
            return name, "", error.message

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(ask, sorted(wanted)))
    failed = [why for _, _, why in answers if why]
    if failed:
        raise LabError(
            "the repositories cannot be asked for news:\n" + "\n".join(f"  {why}" for why in failed),
            hint="without --refresh the image that is in the cache is taken",
        )
    return {name: digest for name, digest, _ in answers}


# What Debian's images are made of, as a path below the InRelease of a suite; the first that there is.
_PACKAGES: dict[str, Callable[[bytes], bytes]] = {
    "Packages.xz": lzma.decompress,
    "Packages.gz": gzip.decompress,
    "Packages": bytes,
}
_LISTS = "main/binary-amd64"


def have(spec: Spec, scratch: Path) -> None:
    """Raise LabError, naming all that is gone, unless the repositories have what spec's manifest wants.

    Debian's alone are asked, by their lists of packages (10 MB), which are kept in `scratch`: on EL
    the build's own dnf knows all of them, and the element stacklab-locked asks it. Where the lists
    cannot be had this is said and left to the build.
    """
    manifest = spec.manifest
    if manifest is None or distributions.distribution(spec.distribution).family != "debian":
        return
    try:
        with ui.step(f"looking whether the packages of {manifest.name} are still there"):
            there = offered(spec, scratch)
    except LabError as error:
        ui.say(f"not known before the build whether all packages are still there: {error.message}")
        return
    gone = [one for one in manifest.packages if (one.name, one.version) not in there]
    if gone:
        text = "\n".join(f"  {one.name} {one.version}" for one in gone)
        raise LabError(
            f"the repositories no longer have {len(gone)} of the packages of {manifest.name}:\n{text}",
            hint="a mirror that keeps old versions is given with --mirror URL",
        )


def offered(spec: Spec, scratch: Path) -> set[tuple[str, str]]:
    """Name and version of every package in Debian's archives; LabError where they cannot be asked.

    Their lists are left in `scratch`.
    """
    found: set[tuple[str, str]] = set()
    for number, url in enumerate(indexes(spec).values()):
        sums = _sha256(download.content(url).decode("utf-8", "replace"))
        kept = [name for name in _PACKAGES if f"{_LISTS}/{name}" in sums]
        if not kept:
            raise LabError(f"{url} names no list of packages")
        path, name = scratch / str(number), f"{_LISTS}/{kept[0]}"
        download.fetch(url.removesuffix("InRelease") + name, path, f"sha256:{sums[name]}")
        text = _PACKAGES[kept[0]](path.read_bytes()).decode("utf-8")
        found.update(re.findall(r"^Package: (\S+)\n(?:.+\n)*?Version: (\S+)$", text, re.MULTILINE))
    return found


def _sha256(release: str) -> dict[str, str]:
    """The checksums that an InRelease gives, by path."""
    part = release.partition("\nSHA256:\n")[2]
    lines = re.match(r"(?: .*\n)*", part)
    return {line.split()[2]: line.split()[0] for line in (lines[0] if lines else "").splitlines()}
