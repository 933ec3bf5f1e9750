"""A whole lab as one file, to keep it or to hand a prepared one to others.

The file is a tar archive, compressed by zstd: manifest.json first, then the lab's own secrets
and keys, snapshots with all that they need over the golden image and, if wanted, the image.
It holds secrets and is as private as the lab (mode 0600); its nodes are root on whatever
machine they are brought up on, so an import wants as much trust as a program does.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path

from stacklab import base, dib, files, plan, providers, ui
from stacklab.base import Golden
from stacklab.errors import Busy, CommandFailed, InvalidInput, LabError, Problem
from stacklab.plan import Plan
from stacklab.run import run
from stacklab.snapshots import Snapshot

FORMAT = 2
_READABLE = (1, 2)  # 1: snapshots without the plan of their moment
_MANIFEST = "manifest.json"
# Of the lab's directory; what else is there follows from the plan and is written anew.
_OWN = ("secrets.json", "answers.txt", "clouds.yaml", "openrc-admin", "openrc-demo", "ssh", "seed", "stages")
# Layers hold whiteouts, capabilities and overlayfs's marks. Its references to inodes are of one disk only.
_TAR: tuple[str | Path, ...] = (
    *("tar", "--numeric-owner", "--acls", "--xattrs", "--xattrs-include=*"),
    *("--xattrs-exclude=trusted.overlay.origin", "--warning=no-file-ignored"),
    "--force-local",  # a colon in a file's name is none of a host's
)
_SECONDS = 3600


@dataclass(frozen=True)
class Manifest:
    """What a file holds. `size` in bytes, unpacked; `sha256` is the golden image's."""

    plan: Plan
    golden: str
    golden_key: str
    sha256: str
    with_image: bool
    snapshots: tuple[str, ...]
    size: int
    created: int


def export(lab: Plan, golden: Golden, chosen: Sequence[Snapshot], target: Path, *, with_image: bool) -> None:
    """Write the lab with the snapshots `chosen` to `target`, which appears whole or not at all.

    Raises LabError for a lab of virtual machines, whose snapshots are in the disks that run.
    """
    if lab.provider != "lxc":
        raise LabError(
            f"a lab on {lab.provider} cannot be exported: its snapshots are inside its nodes' disks",
            hint="labs of containers can (--provider lxc)",
        )
    provider = providers.provider(lab, golden)
    parts = list(dict.fromkeys(part for one in chosen for part in provider.parts(one.payload)))
    own = [lab.directory / name for name in _OWN if (lab.directory / name).exists()]
    own += [lab.directory / "snapshots" / f"{one.name}.json" for one in chosen]
    size = sum(files.disk_usage(part) for part in parts)
    manifest = {
        "format": FORMAT,
        "stacklab": metadata.version("stacklab"),
        "plan": lab.as_json(),
        "golden": {"name": golden.name, "key": golden.key, "sha256": _sha256(golden)},
        "image": with_image,
        "snapshots": [one.name for one in chosen],
        "size": size + (files.disk_usage(golden.directory) if with_image else 0),
        "created": int(time.time()),
    }
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.part")
    partial.unlink(missing_ok=True)
    partial.touch(mode=0o600)
    with tempfile.TemporaryDirectory() as place:
        files.write_json(Path(place) / _MANIFEST, manifest)
        argv: list[str | Path] = [*_TAR, "--create", "--use-compress-program=zstd -q -T0 -3", "-f", partial]
        argv += ["-C", place, _MANIFEST, "-C", lab.directory.parent]
        argv += [path.relative_to(lab.directory.parent) for path in own + parts]
        if with_image:
            argv += ["-C", golden.directory.parent, golden.name]
        try:
            run(argv, timeout=_SECONDS, hint="is the disk full?")
            run(["sync", partial])
            partial.rename(target)
        finally:
            partial.unlink(missing_ok=True)


def _sha256(golden: Golden) -> str:
    described = files.read_json(golden.directory / "metadata.json") or {}
    return str(described.get("sha256", ""))


def read(path: Path) -> Manifest:
    """What the file holds, without unpacking it. Raises InvalidInput for one that is no exported lab."""
    if not path.is_file():
        raise InvalidInput([Problem(str(path), "", "there is no such file")])
    try:
        # The manifest is the first member: nothing else is read.
        argv = [*_TAR, "--zstd", "--extract", "--to-stdout", "--occurrence=1", "-f", path, _MANIFEST]
        found = json.loads(run(argv, merge_stderr=False, timeout=120).output)
        if found["format"] not in _READABLE:
            message = f"it was written by stacklab {found['stacklab']}, in a form this one does not know"
            raise InvalidInput([Problem(str(path), "", message)])
        return Manifest(
            plan.from_json(found["plan"]),
            found["golden"]["name"],
            found["golden"]["key"],
            found["golden"]["sha256"],
            found["image"],
            tuple(found["snapshots"]),
            found["size"],
            found["created"],
        )
    except (CommandFailed, ValueError, KeyError, TypeError) as error:
        raise InvalidInput([Problem(str(path), "", "this is no lab that stacklab exported")]) from error


def check(path: Path, manifest: Manifest, lab: Plan) -> None:
    """Raise InvalidInput with everything that keeps this machine from taking the lab in as `lab`."""
    problems = []
    if lab.directory.exists():
        problems.append(f"there is a lab {lab.lab} already: say --lab with another name")
    image = _golden(manifest)
    if not base.is_built(image):
        if not manifest.with_image:
            missing = f"its golden image {manifest.golden} is neither in the cache here nor in the file"
            problems.append(f"{missing}: export it with --image")
    elif _sha256(image) != manifest.sha256:
        problems.append(
            f"{image.directory} is another build of its golden image, and a lab runs on the very one that "
            "it was made from: move that one away, and import a file that was exported with --image"
        )
    if lab.datapath == "system" and not plan.kernel_datapath():
        problems.append("it uses Open vSwitch's kernel module, which this kernel does not have")
    free = shutil.disk_usage(files.PROJECT).free
    if free < manifest.size * 1.1:
        problems.append(f"it needs {manifest.size >> 20} MiB, and {free >> 20} MiB are free")
    if problems:
        raise InvalidInput([Problem(str(path), "", problem) for problem in problems])


def _golden(manifest: Manifest) -> Golden:
    place = files.cache_dir() / "images" / manifest.golden
    return Golden(manifest.golden, manifest.golden_key, place)


def unpack(path: Path, manifest: Manifest, lab: Plan) -> Golden:
    """Put the image, where it is needed, and the lab's own files where they belong. No node is made yet.

    Both appear by one rename each.
    """
    image = _golden(manifest)
    with files.lock(
        image.directory.with_name(f"{image.name}.lock"), f"the image {image.name}", wait=_SECONDS
    ):
        if not base.is_built(image):
            dib.remove_tree(image.directory)  # what a deletion that was killed left
            _remove_killed(image.directory.parent)
            with ui.step(f"unpacking the golden image {image.name}"), _staged(image.directory) as stage:
                _extract(path, stage, manifest.golden)
    with ui.step(f"unpacking the lab {lab.lab}"), _staged(lab.directory) as stage:
        _extract(path, stage, manifest.plan.lab)
        stage.chmod(0o700)
        files.write_json(stage / "plan.json", {"plan": lab.as_json()}, mode=0o600)
        files.write_json(stage / "golden.json", golden_json(image))
    return image


def _remove_killed(images: Path) -> None:
    """Remove what killed imports of golden images left: each is gigabytes, and may never be tried again."""
    for left in images.glob(staging(images / "*").name):
        name = left.name.removeprefix(".").removesuffix(".importing")
        with suppress(Busy), files.lock(images / f"{name}.lock", f"the image {name}"):
            shutil.rmtree(left)


def golden_json(image: Golden) -> dict[str, str]:
    """What a lab keeps of the golden image that it was made from."""
    return {"name": image.name, "key": image.key, "directory": str(image.directory)}


def own_image(lab: Plan) -> Golden | None:
    """The golden image that a lab was made from; None for one that never was."""
    kept = files.read_json(lab.directory / "golden.json")
    return Golden(kept["name"], kept["key"], Path(kept["directory"])) if kept else None


def _extract(path: Path, target: Path, top: str) -> None:
    argv = [*_TAR, "--zstd", "--extract", "--preserve-permissions", "-f", path, "-C", target]
    run(
        [*argv, "--strip-components=1", top],
        timeout=_SECONDS,
        hint="is the file whole, and the disk not full?",
    )


@contextmanager
def _staged(target: Path) -> Iterator[Path]:
    """A directory that becomes `target` when the block ends well."""
    stage = staging(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(stage, ignore_errors=True)
    stage.mkdir(mode=0o700)
    try:
        yield stage
        run(["sync", "--file-system", stage], timeout=300)
        stage.rename(target)
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def staging(target: Path) -> Path:
    """Where something is unpacked before it becomes `target`; what a kill left there is rubbish."""
    return target.with_name(f".{target.name}.importing")


def renamed(manifest: Manifest, name: str) -> Plan:
    """The plan of the lab under its own name, or under another."""
    return replace(manifest.plan, lab=name) if name else manifest.plan
