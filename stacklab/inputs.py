"""What golden images are started from: installers and cloud images, verified before anything uses them.

Name, place and checksum are in data/inputs.yaml. A file counts when its sha256 is the pinned one,
or the one of the publisher's list of checksums, which his signature has to prove wherever he signs.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from stacklab import download, files, signatures, ui
from stacklab.errors import InvalidInput, LabError, Problem
from stacklab.yamlfile import read_own

DATA = Path(__file__).parent / "data" / "inputs.yaml"
FETCH_SECONDS = 4 * 3600


@dataclass(frozen=True)
class Input:
    """A file to start from; see data/inputs.yaml for what each field means.

    `sha256` is '' where nothing is pinned; `fingerprint` and `key_url` are '' where nobody signs.
    """

    distribution: str
    kind: str
    name: str
    sha256: str
    roots: tuple[str, ...]
    path: str
    checksums: str
    signature: str
    fingerprint: str = ""
    key_url: str = ""
    packages: tuple[tuple[str, str], ...] = ()
    kickstart: str = ""

    def trees(self, mirror: str = "") -> dict[str, str]:
        """Where an installer without packages has them from: URLs by repository, the system's own first."""
        root = (mirror or self.roots[0]).rstrip("/")
        return {name: f"{root}/{path}/" for name, path in self.packages}


@dataclass(frozen=True)
class Fetched:
    """A verified file: `digest` as sha256:HEX or sha512:HEX, `proof` says in words what vouches for it."""

    path: Path
    digest: str
    proof: str


@dataclass
class _Source:
    """Where to look, in order; what cannot be had there is kept, to be told at the end."""

    roots: tuple[str, ...]
    path: str
    misses: list[str] = field(default_factory=list)

    def urls(self, name: str) -> list[str]:
        return [f"{root.rstrip('/')}/{self.path}/{name}" for root in self.roots]

    def content(self, name: str) -> bytes | None:
        for url in self.urls(name):
            try:
                return download.content(url)
            except LabError as error:
                self.misses.append(error.message)
        return None


@cache
def _table() -> dict[str, Any]:
    table: dict[str, Any] = read_own(DATA)
    return table


def kinds(distribution: str) -> tuple[str, ...]:
    """The kinds of inputs (iso, cloud) that a distribution has."""
    return tuple(_table()["inputs"].get(distribution, {}))


def all_inputs() -> tuple[Input, ...]:
    """Every input of the table."""
    return tuple(find(name, kind) for name in _table()["inputs"] for kind in kinds(name))


def find(distribution: str, kind: str) -> Input:
    """The input of that kind; InvalidInput where there is none."""
    if kind not in kinds(distribution):
        known = ", ".join(f"{name} ({', '.join(kinds(name))})" for name in _table()["inputs"])
        message = f"{distribution} has no {kind!r}: known are {known}"
        raise InvalidInput([Problem("", "input", message)])
    row = dict(_table()["inputs"][distribution][kind])
    key = _table()["keys"].get(row.pop("key", ""), {})
    return Input(
        distribution=distribution,
        kind=kind,
        name=row["name"],
        sha256=row.get("sha256", ""),
        roots=tuple(row["roots"]),
        path=row["path"],
        checksums=row["checksums"],
        signature=row["signature"],
        fingerprint=key.get("fingerprint", ""),
        key_url=key.get("url", ""),
        packages=tuple(row.get("packages", {}).items()),
        kickstart=row.get("kickstart", ""),
    )


def fetch(wanted: Input, mirror: str = "", keyring: Path | None = None) -> Fetched:
    """The verified file, from the cache where it is there; a broken download is continued.

    `mirror` is a root of the publisher's tree to ask first, the setting by default; `keyring`
    holds the publisher's key, for where it cannot be fetched. Its fingerprint has to be the pinned
    one all the same. Raises LabError for a bad signature, a checksum that does not fit and a file
    that nobody has; then there is no file.
    """
    mirror = mirror or download.mirror()
    if wanted.sha256:
        # The pin is enough to know the file again.
        digest = f"sha256:{wanted.sha256}"
        known = _known(wanted, digest)
        if known:
            return known
    digest, proof = _expected(wanted, mirror, keyring)
    path = _place(wanted, digest)
    with files.lock(path.with_name(path.name + ".lock"), wanted.name, wait=FETCH_SECONDS):
        known = _known(wanted, digest)
        if not known:
            with ui.step(f"fetching {wanted.name}"):
                _download(wanted, mirror, path, digest)
            files.write_json(_about(path), {"digest": digest, "proof": proof, **_stamp(path)})
            known = Fetched(path, digest, proof)
    return known


def given(path: Path) -> Fetched:
    """A file of the user's own: nobody vouches for it but he. Raises InvalidInput when it is not there."""
    if not path.is_file():
        raise InvalidInput([Problem("", "source", f"{path}: no such file")])
    with path.open("rb") as handle:
        digest = hashlib.file_digest(handle, "sha256").hexdigest()
    return Fetched(path.resolve(), f"sha256:{digest}", "given by the user")


def _expected(wanted: Input, mirror: str, keyring: Path | None) -> tuple[str, str]:
    """The digest that the file has to have, and what vouches for it."""
    pin = f"sha256:{wanted.sha256}" if wanted.sha256 else ""
    roots = (mirror, *wanted.roots) if mirror else wanted.roots
    source = _Source(roots if wanted.fingerprint else wanted.roots, wanted.path)
    listed = _listed(wanted, source, keyring)
    if pin and listed and listed != pin:
        raise LabError(
            f"{wanted.name}: the publisher's {wanted.checksums} says {listed}, pinned is {pin}",
            hint="the publisher replaced the file: look what he says, then change stacklab/data/inputs.yaml",
        )
    if listed and wanted.fingerprint:
        return listed, f"the list of checksums signed by {wanted.fingerprint}" + (", and the pin" * bool(pin))
    if pin:
        if wanted.fingerprint:
            ui.warn(f"{wanted.name}: no signed list of checksums can be had; the pinned sha256 decides")
        return pin, "the pinned sha256"
    if not listed:
        text = "\n".join(f"  {miss}" for miss in source.misses)
        raise LabError(
            f"{wanted.name}: the publisher's checksums cannot be had:\n{text}",
            hint="is the network there, or a `proxy` needed?",
        )
    ui.warn(f"{wanted.name}: the publisher signs no checksums; its list came from {wanted.roots[0]} by HTTPS")
    return listed, "the publisher's list of checksums, by HTTPS"


def _listed(wanted: Input, source: _Source, keyring: Path | None) -> str:
    """The digest of the publisher's list, its signature checked where he signs; '' where none can be had."""
    listing = source.content(wanted.checksums)
    if listing is None:
        return ""
    text = listing.decode("utf-8", "replace")
    if wanted.fingerprint:
        signature = b"" if wanted.signature == "inside" else source.content(wanted.signature)
        key = _key(wanted, source, keyring)
        if signature is None or key is None:
            return ""
        text = signatures.signed_text(listing, key, wanted.fingerprint, signature)
    digest = download.parse(text).get(wanted.name)
    if digest is None:
        raise LabError(f"the publisher's {wanted.checksums} does not name {wanted.name}")
    return digest


def _key(wanted: Input, source: _Source, keyring: Path | None) -> bytes | None:
    """The publisher's key, or what claims to be it; None where it cannot be had."""
    if keyring:
        try:
            return keyring.read_bytes()
        except OSError as error:
            raise LabError(f"{keyring} cannot be read: {error.strerror}") from error
    try:
        return download.content(wanted.key_url)
    except LabError as error:
        source.misses.append(f"{error.message}; --keyring FILE takes one that holds {wanted.fingerprint}")
        return None


def _download(wanted: Input, mirror: str, path: Path, digest: str) -> None:
    """Fetch the file from the first root that has it whole and right."""
    source = _Source((mirror, *wanted.roots) if mirror else wanted.roots, wanted.path)
    *others, last = source.urls(wanted.name)
    for url in others:
        try:
            download.fetch(url, path, digest, ui.amount)
            return
        except LabError as error:
            ui.warn(error.message)
    download.fetch(last, path, digest, ui.amount)


def _place(wanted: Input, digest: str) -> Path:
    return files.cache_dir() / "inputs" / f"{digest.partition(':')[2][:12]}-{wanted.name}"


def _about(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")


def _stamp(path: Path) -> dict[str, int]:
    status = path.stat()
    return {"size": status.st_size, "mtime_ns": status.st_mtime_ns}


def _known(wanted: Input, digest: str) -> Fetched | None:
    """The file in the cache, if it is as it was when it was verified."""
    path = _place(wanted, digest)
    about = files.read_json(_about(path))
    if not about or not path.is_file():
        return None
    stamp = _stamp(path)
    if about["digest"] != digest or any(about[name] != value for name, value in stamp.items()):
        return None
    return Fetched(path, digest, about["proof"])
