"""Files out of a raw disk image with one ext4 partition, for the checks of golden images and guests.

They are copied by debugfs: nothing is mounted, no loop device is needed. And what a disk of any
format has on it, before it is known to be of that kind.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from stacklab import contract
from stacklab.errors import CommandFailed
from stacklab.run import run

SECTOR = 512
_PIECE = 1 << 20  # bytes that hold a partition table, and those that hold a filesystem's name


def filesystems(disk: Path, scratch: Path, log: Path) -> list[str]:
    """What the partitions of `disk` hold, in the order of its table: ext4, xfs …, or "no filesystem".

    The disk is of any format that qemu-img knows; a piece of it at a time is copied to `scratch`, a
    directory. Without a table of partitions there are none. Raises CommandFailed when it cannot be read.
    """
    told = json.loads(run(["qemu-img", "info", "--output=json", disk], log=log, merge_stderr=False).output)
    whole = {"driver": told["format"], "file": {"driver": "file", "filename": str(disk)}}
    piece = scratch / "piece.raw"
    _copy(whole, piece, 0, told["virtual-size"], log)
    table = run(["sfdisk", "--json", piece], log=log, merge_stderr=False, check=False)
    partitions = json.loads(table.output)["partitiontable"].get("partitions", ()) if table.code == 0 else ()
    found = []
    for one in partitions:
        _copy(whole, piece, int(one["start"]) * SECTOR, int(one["size"]) * SECTOR, log)
        kind = run(["blkid", "-p", "-o", "value", "-s", "TYPE", piece], log=log, check=False)
        found.append(kind.output.strip() or "no filesystem")
    piece.unlink()
    return found


def _copy(whole: dict[str, Any], piece: Path, start: int, size: int, log: Path) -> None:
    """Copy the beginning of the `size` bytes at `start` of a disk, as QEMU names it; the rest is a hole."""
    part = {"driver": "raw", "offset": start, "size": min(size, _PIECE), "file": whole}
    run(["qemu-img", "convert", "-O", "raw", f"json:{json.dumps(part)}", piece], log=log)
    os.truncate(piece, size)


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
