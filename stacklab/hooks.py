"""The hooks of elements/ for a machine that already runs: what diskimage-builder does in a chroot.

So an image is the same whoever builds it. Elements of dib that make a root filesystem or a disk
have no place there; of the others those are taken that only add to a running system.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tarfile
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import diskimage_builder

from stacklab import dib, files
from stacklab.errors import LabError
from stacklab.run import run

# dib's own that our elements need and that are plain additions to a running system.
_OF_DIB = ("growroot", "runtime-ssh-host-keys")
_PHASES = ("pre-install.d", "install.d", "post-install.d")
_LAST = "finalise.d"
_TREES = (("static", "static"), ("init-scripts/systemd", "static/usr/lib/systemd/system"))
_LIBRARY = files.PROJECT / "scripts" / "provision"


def elements(names: Sequence[str]) -> dict[str, Path]:
    """The elements to run for `names`, with all they need, each with its directory, in order."""
    found: dict[str, Path] = {}
    waiting = list(names)
    while waiting:
        name = waiting.pop(0)
        place = _directory(name)
        if place is None or name in found:
            continue
        found[name] = place
        deps = place / "element-deps"
        if deps.is_file():
            waiting += deps.read_text(encoding="utf-8").split()
    return found


def _directory(name: str) -> Path | None:
    own = files.PROJECT / "elements" / name
    if own.is_dir():
        return own
    return _dib_elements() / name if name in _OF_DIB else None


def _dib_elements() -> Path:
    return Path(diskimage_builder.__path__[0]) / "elements"


def digests(names: Sequence[str]) -> dict[str, str]:
    """The digest of each element that `names` lead to."""
    return {name: files.tree_digest(place) for name, place in elements(names).items()}


def archive(
    names: Sequence[str],
    environment: Mapping[str, str],
    system: tuple[str, str, str],
    work: Path,
    log: Path,
    have: Collection[str] = (),
) -> Path:
    """Write hooks.tar in `work` and return it.

    `environment` is that of the hooks; `system` is what package names are mapped for: release,
    distribution and family as dib calls them. Elements in `have` are in the machine already: of
    them only the last phase is taken, which may be run again. Raises LabError when a list of
    packages cannot be read or two elements have a hook of one name.
    """
    tree = work / "hooks"
    tree.mkdir(parents=True)
    known = elements(names)
    fresh = {name: place for name, place in known.items() if name not in have}
    for place in known.values():
        _merge(place / "environment.d", tree / "environment.d")
        _merge(place / _LAST, tree / _LAST)
    for place in fresh.values():
        for phase in (*_PHASES, "bin"):
            _merge(place / phase, tree / phase)
        for source, goes_to in _TREES:
            if (place / source).is_dir():
                shutil.copytree(place / source, tree / goes_to, symlinks=True, dirs_exist_ok=True)
    for place in fresh.values():
        for hook in sorted((place / "extra-data.d").glob("*")):
            # These run on the build host and put files beside the hooks.
            run([hook], log=log, env={**environment, "TMP_HOOKS_PATH": str(tree)})
    _packages(fresh, environment, system, tree, log)
    (tree / "lib").mkdir()
    for program in ("hooks", "install-packages"):
        shutil.copy2(_LIBRARY / program, tree / "lib" / program)
    target = work / "hooks.tar"
    with tarfile.open(target, "w") as tar:
        tar.add(tree, ".", filter=_as_root)
    return target


def _as_root(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = 0
    member.uname = member.gname = "root"
    if not member.issym():
        # It is unpacked over a machine's own directories.
        member.mode = dib.plain_mode(member.mode)
    return member


def _merge(source: Path, target: Path) -> None:
    for path in sorted(source.glob("*")):
        target.mkdir(parents=True, exist_ok=True)
        if (target / path.name).exists():
            raise LabError(f"{path}: another element has a hook of the same name")
        shutil.copy2(path, target / path.name)


def _packages(
    known: Mapping[str, Path],
    environment: Mapping[str, str],
    system: tuple[str, str, str],
    tree: Path,
    log: Path,
) -> None:
    """Lists of packages, one a phase, read by dib's own reader and mapped to what they are called here."""
    squashed = tree / "package-installs.json"
    run(
        [
            *(sys.executable, _dib_elements() / "package-installs" / "bin" / "package-installs-squash"),
            *("--elements", " ".join(known), "--path"),
            os.pathsep.join((str(files.PROJECT / "elements"), str(_dib_elements()))),
            squashed,
        ],
        log=log,
        env={"ARCH": "amd64", **environment},
    )
    lists: dict[str, Any] = json.loads(squashed.read_text(encoding="utf-8"))
    squashed.unlink()
    for phase, wanted in lists.items():
        mapped = [
            package
            for name, element in wanted.get("install", ())
            for package in _called(name, known[element], known.values(), system)
        ]
        if mapped:
            files.write(tree / "packages" / phase, "\n".join(dict.fromkeys(mapped)) + "\n")


def _called(package: str, element: Path, known: Iterable[Path], system: tuple[str, str, str]) -> list[str]:
    """The names of a package on this system: what is said of the narrowest kind of system counts.

    What any of the `known` elements says of the very release holds for the packages of all.
    """
    release, distribution, family = system
    own = _map(element)
    for names in (
        *(
            _map(place).get("release", {}).get(distribution, {}).get(release, {})
            for place in (element, *known)
        ),
        own.get("distro", {}).get(distribution, {}),
        own.get("family", {}).get(family, {}),
        own.get("default", {}),
    ):
        if package in names:
            # '' means that it needs none here.
            return str(names[package]).split()
    return [package]


def _map(element: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads((element / "pkg-map").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    return found
