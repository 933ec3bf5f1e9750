"""Files out of a raw disk image with one ext4 partition, for the checks of golden images and guests.

They are copied by debugfs: nothing is mounted, no loop device is needed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path

from stacklab import contract
from stacklab.errors import CommandFailed
from stacklab.run import run

SECTOR = 512


def extract(image: Path, tree: Path, trees: Iterable[str], probes: Iterable[str], log: Path) -> None:
    """Copy `trees` (paths without the first slash) out of `image` to `tree`.

    Of `probes` and of each kernel's index of modules only an empty file is made, where they are
    there; `mbr` is the disk's first sector. Raises CommandFailed when there is no such partition
    or it cannot be read.
    """
    place = f"{image}?offset={_start(image, log)}"
    tree.mkdir()
    with image.open("rb") as handle:
        (tree / "mbr").write_bytes(handle.read(SECTOR))
    for name in trees:
        parent = tree / Path(name).parent
        parent.mkdir(parents=True, exist_ok=True)
        _debugfs(place, f'rdump "/{name}" "{parent}"', log)
    modules = (f"usr/lib/modules/{name}/modules.dep" for name in contract.kernels(tree))
    for path in (*probes, *modules):
        # debugfs ends well whatever happens; a file that is there has its inode shown.
        if re.search(r"^Inode: \d+", _debugfs(place, f'stat "/{path}"', log), re.MULTILINE):
            (tree / path).parent.mkdir(parents=True, exist_ok=True)
            (tree / path).touch()
    if (tree / "usr/lib/modules").is_dir():
        (tree / "lib").mkdir()
        (tree / "lib/modules").symlink_to(tree / "usr/lib/modules")


def forget_deleted(image: Path, log: Path) -> None:
    """Punch holes where the raw disk `image` still holds blocks of files that are deleted.

    A machine's own fstrim does not reach them all: a qcow2 gives back whole clusters only. Raises
    CommandFailed when the filesystem cannot be read.
    """
    place = f"{image}?offset={_start(image, log)}"
    # It discards nothing in a run in which it had something to mend, be it only a counter.
    for options in ((), ("-E", "discard")):
        done = run(["e2fsck", "-f", "-y", *options, place], log=log, timeout=1800, check=False)
        if done.code not in (0, 1):  # 1: mended
            raise CommandFailed(f"{image.name}: its filesystem is broken", hint=f"the log: {log}")


def _debugfs(place: str, request: str, log: Path) -> str:
    return run(["debugfs", "-R", request, place], log=log, hint="is the image's filesystem ext4?").output


def _start(image: Path, log: Path) -> int:
    """Where the only partition begins, in bytes."""
    table = run(["sfdisk", "--json", image], log=log, merge_stderr=False)
    partitions = json.loads(table.output)["partitiontable"]["partitions"]
    if len(partitions) != 1:
        raise CommandFailed(
            f"{image.name} has {len(partitions)} partitions; the check knows images with one",
            hint="take the element block-device-mbr",
        )
    return int(partitions[0]["start"]) * SECTOR
