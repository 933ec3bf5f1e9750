"""What the package repositories hold, in one checksum each: whether there is anything new for an image.

A repository's index names every package with its digest, so an index that is the same means
packages that are the same: repomd.xml in RPM's repositories, InRelease in Debian's.
"""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor

from stacklab import dib, distributions, download, releases
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
