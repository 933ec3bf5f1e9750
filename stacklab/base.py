"""Golden images: what a lab's nodes start from. Each is named by the hash of its inputs.

What to build is a `Spec`; how, a builder's module says (`goldendib`). Here is what they have in
common: an image appears whole, by one rename, and only when it keeps the contract.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import urlsplit

from stacklab import (
    contract,
    dib,
    diskfiles,
    distributions,
    download,
    files,
    locked,
    releases,
    services,
    ui,
    variants,
)
from stacklab.errors import InvalidInput, LabError, Problem
from stacklab.locked import Manifest
from stacklab.plan import Plan

BUILD_SECONDS = 3600


@dataclass(frozen=True)
class Spec:
    """A golden image to have: all that its content follows from, but for the repositories.

    `extras` are elements beyond the distribution's own, for services that not every lab has.
    `source` is what the builder packer starts from: iso, cloud, or a file of the user's own.
    `mirror` is where packages are fetched from; it leaves nothing in the image and does not count.
    `manifest` has the packages that it has to come out with, in these very versions.
    """

    distribution: str
    release: str
    builder: str
    provider: str
    extras: tuple[str, ...] = ()
    source: str = ""
    mirror: str = field(default="", compare=False)
    manifest: Manifest | None = None

    @property
    def elements(self) -> tuple[str, ...]:
        """diskimage-builder's elements, in order."""
        row = distributions.distribution(self.distribution)
        lock = (locked.ELEMENT,) if self.manifest else ()
        return (*row.elements, *row.providers[self.provider], *self.extras, *lock)


@dataclass(frozen=True)
class Golden:
    """A golden image.

    `directory` holds metadata.json, packages.txt and build.log; for lxc rootfs/, for other
    providers disk.qcow2.
    """

    name: str
    key: str
    directory: Path

    @property
    def rootfs(self) -> Path:
        """The unpacked root filesystem, shared read-only by all nodes of all labs."""
        return self.directory / "rootfs"

    @property
    def disk(self) -> Path:
        """The bootable disk, qcow2; nodes write to layers over it."""
        return self.directory / "disk.qcow2"


def spec(
    distribution: str,
    provider: str,
    release: str = "",
    builder: str = "",
    extras: Sequence[str] = (),
    source: str = "",
    mirror: str = "",
    manifest: Manifest | None = None,
) -> Spec:
    """The Spec with the distribution's defaults for what is not given.

    Raises InvalidInput with everything that does not go together.
    """
    row = distributions.distribution(distribution)
    found = Spec(
        distribution,
        release or row.release,
        builder or row.builders[0],
        row.form(provider),
        tuple(sorted(set(extras))),
        source,
        (mirror or download.mirror()).rstrip("/"),
        manifest,
    )
    problems = []
    if found.provider not in row.providers:
        message = f"{provider!r} has no {row.name} image: take {', '.join(row.runs_on)}"
        problems.append(Problem("", "provider", message))
    if found.builder not in row.builders:
        message = f"{builder!r} does not build {row.name}: take {', '.join(row.builders)}"
        problems.append(Problem("", "builder", message))
    if source and found.builder != "packer":
        message = f"{found.builder} starts from nothing: only the builder packer takes a source"
        problems.append(Problem("", "source", message))
    if mirror and not re.fullmatch(r"https?://[^\s/]+(/\S*)?", mirror):
        problems.append(
            Problem("", "mirror", f"{mirror!r} is no URL: write it such as http://mirror.example/debian")
        )
    runs_on = releases.release(found.release).distributions
    if found.distribution not in runs_on:
        message = f"{found.release} does not run on {row.name}: {distributions.advice(runs_on)}"
        problems.append(Problem("", "release", message))
    if manifest:
        problems += _fits(found, manifest)
    if problems:
        raise InvalidInput(problems)
    return found


def _fits(spec: Spec, manifest: Manifest) -> list[Problem]:
    """What of a build does not go together with its manifest, and would end in another image."""
    found = []
    if spec.builder != "dib":
        found.append(
            f"{spec.builder} takes the newest of every package: only the builder dib keeps to a manifest"
        )
    of = locked.distribution(manifest)
    if of != spec.distribution:
        other = f"is of {of}: --distribution {of}" if of else "is of no distribution that is known"
        found.append(f"{other}; the build is of {spec.distribution}")
        return [Problem(manifest.name, "locked", message) for message in found]
    for name, wanted in (("provider", spec.provider), ("release", spec.release)):
        had = manifest.about.get(name, wanted)
        if had != wanted:
            found.append(f"is of an image for {had}, and the build for {wanted}: --{name} {had}")
    elements = manifest.about.get("inputs", {}).get("elements")
    for_services = set(services.extras(spec.distribution, services.table()))
    if elements is not None and for_services & set(elements) != for_services & set(spec.extras):
        found.append("is of an image for other services: name those with --services")
    return [Problem(manifest.name, "locked", message) for message in found]


def of(plan: Plan) -> Spec:
    """The image that a plan's nodes start from."""
    extras = services.extras(plan.distribution, plan.topology.services)
    return spec(plan.distribution, plan.provider, plan.release, extras=extras)


def wanted(spec: Spec) -> Golden:
    """The image that the inputs as they are now would give, built or not.

    Where `refresh` built one of newer packages, it is that one.
    """
    first = _named(spec, files.digest(inputs(spec))[:12])
    newest = files.read_json(_newest(first))
    if newest and is_built(found := _named(spec, newest["key"])):
        return found
    return first


def is_of(image: Golden, spec: Spec) -> bool:
    """Whether the image is there and was made of these very inputs, whatever the repositories held then."""
    if image.name.rpartition("-")[0] != f"{spec.distribution}-{spec.provider}" or not is_built(image):
        return False
    made_of = files.read_json(image.directory / "metadata.json").get("inputs")
    return files.digest(made_of) == files.digest(inputs(spec))


def _named(spec: Spec, key: str) -> Golden:
    name = f"{spec.distribution}-{spec.provider}-{key}"
    return Golden(name, key, files.cache_dir() / "images" / name)


def _newest(first: Golden) -> Path:
    """Where it is noted which image took the place of `first`; labs that run keep their own."""
    return first.directory.with_name(f".{first.name}.newest.json")


def inputs(spec: Spec) -> dict[str, Any]:
    """All that decides an image's content, apart from what the repositories hold."""
    row = distributions.distribution(spec.distribution)
    own: dict[str, Any] = _builder(spec).inputs(spec)
    return {
        **own,
        "distribution": row.version,
        "packstack": releases.release(spec.release).sha256,
        "contract": contract.VERSION,
        **({"locked-manifest": spec.manifest.sha256} if spec.manifest else {}),
    }


def commands(spec: Spec, out: Path) -> list[list[str]]:
    """What a build runs, for a dry run."""
    found: list[list[str]] = _builder(spec).commands(spec, out)
    return found


def is_built(image: Golden) -> bool:
    """Whether the whole image is there: its directory appears by one rename."""
    return (image.directory / "metadata.json").is_file()


def build(spec: Spec) -> Golden:
    """The golden image, built if its inputs changed; one builds, others wait and use it.

    Raises LabError when the build fails or its result breaks the contract.
    """
    image = wanted(spec)
    if is_built(image):
        return image
    return _build_once(image, spec)


def refresh(spec: Spec) -> Golden:
    """The golden image of what the repositories have now, built only if they have anything new.

    It gets a name of its own, and `wanted` means it from then on. Raises LabError when a repository
    does not answer, and as `build` does; then the image that was there stays the one that is wanted.
    """
    from stacklab import repositories

    now = repositories.checksums(spec)
    image = wanted(spec)
    if is_built(image):
        known = files.read_json(image.directory / "metadata.json").get("repositories")
        if known == now:
            ui.say(f"{image.name}: the repositories have nothing new")
            return image
    first = _named(spec, files.digest(inputs(spec))[:12])
    found = _build_once(_named(spec, files.digest(inputs(spec), now)[:12]), spec, now)
    files.write_json(_newest(first), {"key": found.key})
    return found


def _build_once(image: Golden, spec: Spec, repositories: Mapping[str, str] | None = None) -> Golden:
    lock = image.directory.with_name(image.name + ".lock")
    with files.lock(lock, f"the golden image {image.name}", wait=BUILD_SECONDS):
        if not is_built(image):
            with ui.step(f"building the golden image {image.name}"):
                _build(image, spec, repositories)
    return image


def _build(image: Golden, spec: Spec, repositories: Mapping[str, str] | None) -> None:
    work = dib.workplace(image.directory.parent, image.name)
    log = work / "build.log"
    started = time.time()
    log.touch()
    if repositories is None:
        repositories = _held_now(spec)
    try:
        about = _builder(spec).make(spec, work, log)
        if spec.manifest:
            locked.keeps(spec.manifest, work / "packages.txt")
    except BaseException:
        kept = files.cache_dir() / "logs" / f"{image.name}.log"
        with suppress(OSError):  # the disk may be full: then a rename still works
            kept.parent.mkdir(parents=True, exist_ok=True)
            log.rename(kept)
            ui.say(f"build log: {kept}")
        dib.remove_tree(work)
        raise
    files.write_json(
        work / "metadata.json",
        {
            "name": image.name,
            "distribution": spec.distribution,
            "release": spec.release,
            "builder": spec.builder,
            "provider": spec.provider,
            "inputs": inputs(spec),
            **({"repositories": dict(repositories)} if repositories else {}),
            **({"locked": spec.manifest.name} if spec.manifest else {}),
            **about,
            "built": int(started),
            "seconds": round(time.time() - started),
        },
    )
    dib.remove_tree(work / "tmp")
    dib.remove_tree(image.directory)  # not a whole image, or this build would not run
    work.rename(image.directory)


def _held_now(spec: Spec) -> dict[str, str]:
    """What the repositories hold, for a later `refresh` to compare; nothing where one does not answer."""
    from stacklab import repositories

    with suppress(LabError):
        return repositories.checksums(spec)
    return {}


def keeps_contract(problems: Sequence[str]) -> None:
    """Raise LabError, naming every problem, unless there is none."""
    if problems:
        text = "\n".join(f"  {problem}" for problem in problems)
        raise LabError(f"the built image breaks the contract:\n{text}")


def hosts_of_build(spec: Spec) -> tuple[str, ...]:
    """The hosts that serve the build and that no file of the image may name: mirror and proxy.

    But for those that it names rightly, since nodes have their packages from there.
    """
    row = distributions.distribution(spec.distribution)
    repositories = releases.release(spec.release).repositories.values()
    nodes = (row.archive, *dib.apt_mirrors(row.version), *repositories)
    builds = (spec.mirror, *(os.environ.get(name, "") for name in ("http_proxy", "https_proxy")))
    return tuple(sorted(_hosts(builds) - _hosts(nodes)))


def _hosts(urls: Sequence[str]) -> set[str]:
    """The hosts of URLs, with their ports where those are given."""
    # Programs take a proxy without a scheme too.
    named = (url if "//" in url else f"//{url}" for url in urls)
    return {host for url in named if (host := urlsplit(url).netloc.rpartition("@")[2])}


def take_disk(raw: Path, work: Path, provider: str, log: Path, hosts: Sequence[str] = ()) -> dict[str, Any]:
    """Check the disk `raw` that a builder made, and leave it in `work` as disk.qcow2 with packages.txt.

    `hosts` are those that the image may not name. Returns what metadata.json says of the disk.
    Raises LabError when it breaks the contract.
    """
    tree = work / "tree"
    with ui.step("checking it against the contract"):
        diskfiles.extract(raw, tree, contract.TREES, contract.PROBES, log)
        keeps_contract(contract.check(tree, provider, hosts))
    shutil.copyfile(tree / "etc/dib-manifests/packages.txt", work / "packages.txt")
    kernel = contract.kernels(tree)[-1]
    dib.remove_tree(tree)
    with ui.step("converting it to qcow2"):
        variants.convert(raw, "raw", work / "disk.qcow2", "qcow2", "zstd", log)
    raw.unlink()
    with (work / "disk.qcow2").open("rb") as handle:
        sha256 = hashlib.file_digest(handle, "sha256").hexdigest()
    return {"sha256": sha256, "kernel": kernel}


def _builder(spec: Spec) -> ModuleType:
    """The module that builds: `inputs(spec)`, `commands(spec, out)`, `make(spec, work, log)`.

    `make` leaves rootfs/ or disk.qcow2 and packages.txt in `work`, checked against the
    contract, and returns what metadata.json says of them, `sha256` at least.
    """
    from stacklab import goldendib, packer

    return {"dib": goldendib, "packer": packer}[spec.builder]


def built() -> Sequence[Golden]:
    """The golden images in the cache, by name."""
    place = files.cache_dir() / "images"
    images = [Golden(path.name, path.name.rsplit("-", 1)[1], path) for path in sorted(place.glob("[!.]*-*"))]
    return [image for image in images if is_built(image)]
