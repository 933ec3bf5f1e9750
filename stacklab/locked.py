"""The manifest of a golden image as what another build has to come out as: read, pinned, compared."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from stacklab import distributions, files
from stacklab.errors import InvalidInput, LabError, Problem

ELEMENT = "stacklab-locked"
# Names and versions go into apt's configuration: nothing else is let through.
_LINE = re.compile(
    r"([A-Za-z0-9][\w.+-]*) ((?=[^ ]*\d)[\w.+~^:-]+) (\w+|\(none\))(?: ([0-9a-f]{64}|\(none\)))?", re.ASCII
)


class Package(NamedTuple):
    """One line of a manifest; `digest` is that of the RPM's header, '' on Debian."""

    name: str
    version: str
    architecture: str
    digest: str


@dataclass(frozen=True)
class Manifest:
    """All packages of a golden image, sorted.

    `sha256` is what `base.show` calls manifest-sha256, `name` what the user called it, `about` what
    is known of the image that it lies beside. The same packages are the same manifest.
    """

    sha256: str
    name: str = field(compare=False)
    packages: tuple[Package, ...] = field(compare=False, repr=False)
    about: Mapping[str, Any] = field(compare=False, repr=False, default_factory=dict)

    @property
    def text(self) -> str:
        """As packages.txt has it."""
        return _text(self.packages)


def read(path: Path, name: str) -> Manifest:
    """The manifest in a file. Raises InvalidInput for a file that cannot be read or is none."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not text"
        raise InvalidInput([Problem("", "locked", f"{path} cannot be read: {why}")]) from error
    found = parse(text, str(path))
    digest = hashlib.sha256(_text(found).encode()).hexdigest()
    return Manifest(digest, name, found, _about(path.with_name("metadata.json")))


def _about(path: Path) -> dict[str, Any]:
    """What is known of the golden image that the manifest lies beside; nothing of any other file's."""
    try:
        found = files.read_json(path)
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) and isinstance(found.get("inputs"), dict) else {}


def parse(text: str, where: str) -> tuple[Package, ...]:
    """The packages of a manifest, sorted; InvalidInput names its first line that is no package's."""
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        match = _LINE.fullmatch(line.rstrip())
        if match is None:
            what = f"line {number}: {line[:60]!r} is not `name version architecture`, on EL with a digest"
            raise InvalidInput([Problem(where, "locked", f"not the manifest of a golden image: {what}")])
        found.append(Package(*match.groups(default="")))
    if not found:
        raise InvalidInput([Problem(where, "locked", "not the manifest of a golden image: it is empty")])
    return tuple(sorted(found))


def distribution(manifest: Manifest) -> str:
    """The distribution whose packages they are; '' when it is none that is known."""
    versions = {package.name: package.version.rpartition(":")[2] for package in manifest.packages}
    for name in distributions.names():
        number = name.rpartition("-")[2]
        if re.match(rf"{number}\b", versions.get(distributions.distribution(name).identity, "")):
            return name
    return ""


def preferences(manifest: Manifest) -> str:
    """The preferences of apt that keep it to the manifest; with their priority it downgrades, too."""
    return "\n".join(
        f"Package: {package.name}\nPin: version {package.version}\nPin-Priority: 1001\n"
        for package in manifest.packages
    )


def prepare(manifest: Manifest, place: Path) -> Path:
    """Write what the element stacklab-locked reads to `place`, and return it."""
    files.write(place / "preferences", preferences(manifest))
    files.write(place / "packages.txt", manifest.text)
    return place


def difference(
    before: Iterable[Package], after: Iterable[Package], *, digests: bool = False
) -> list[tuple[str, str, str]]:
    """Packages added, removed and changed: name, old version, new version; sorted.

    With `digests` those too that differ in their architecture or digest alone, which are shown then.
    """
    old, new = _by_name(before), _by_name(after)
    found = []
    for name in sorted(old.keys() | new.keys()):
        one, other = old.get(name, []), new.get(name, [])
        if _versions(one) != _versions(other):
            found.append((name, _versions(one), _versions(other)))
        elif digests and one != other:
            found.append((name, _whole(one), _whole(other)))
    return found


def keeps(manifest: Manifest, built: Path) -> None:
    """Raise LabError, with all that is missing, added or changed, unless `built` lists its very packages."""
    rows = difference(manifest.packages, parse(built.read_text(encoding="utf-8"), str(built)), digests=True)
    if rows:
        text = "\n".join(f"  {_said(*row)}" for row in rows)
        raise LabError(f"the built image differs from the manifest {manifest.name}, and is not kept:\n{text}")


def _said(name: str, wanted: str, got: str) -> str:
    if not got:
        return f"missing: {name} {wanted}"
    return f"changed: {name}: wanted {wanted}, got {got}" if wanted else f"added: {name} {got}"


def _versions(packages: Iterable[Package]) -> str:
    return " ".join(package.version for package in packages)


def _whole(packages: Iterable[Package]) -> str:
    return ", ".join(" ".join(package[1:]).rstrip() for package in packages)


def _by_name(packages: Iterable[Package]) -> dict[str, list[Package]]:
    found: dict[str, list[Package]] = {}
    for package in packages:
        found.setdefault(package.name, []).append(package)
    return found


def _text(packages: Iterable[Package]) -> str:
    # Sorted as `sort` does it in the C locale: by the bytes of the whole line.
    return "".join(f"{line}\n" for line in sorted(" ".join(package).rstrip() for package in packages))
