"""What every guest image built here has to keep, checked offline from the image's own files.

The files are copied out of the image by debugfs: nothing is mounted, no loop device is needed.
diskimage-builder ends well on broken images, so no image gets its name unchecked.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

from stacklab import contract
from stacklab.errors import CommandFailed
from stacklab.run import run

# Part of an image's inputs: raise it when a check changes, and old images are built anew.
VERSION = 1

PACKAGES = "usr/share/stacklab/packages.txt"
_TREES = ("boot", "etc", "root", "usr/share/stacklab")
# Only whether they are there is of interest: each is listed in its directory's name.
_PROGRAMS = {
    "cloud-init": ("usr/bin/cloud-init",),
    "growpart (cloud-guest-utils)": ("usr/bin/growpart",),
    "qemu-guest-agent": ("usr/sbin/qemu-ga", "usr/bin/qemu-ga"),
    "sshd": ("usr/sbin/sshd",),
}
_SECTOR = 512


def extract(image: Path, tree: Path, log: Path) -> None:
    """Copy out of the raw `image` with one ext4 partition what `check` looks at, to `tree`.

    Raises CommandFailed when there is no such partition or it cannot be read.
    """
    place = f"{image}?offset={_start(image, log)}"
    tree.mkdir()
    (tree / "mbr").write_bytes(_first_sector(image))
    for name in _TREES:
        parent = tree / Path(name).parent
        parent.mkdir(parents=True, exist_ok=True)
        _debugfs(place, f'rdump "/{name}" "{parent}"', log)
    wanted = [f"/{path}" for paths in _PROGRAMS.values() for path in paths]
    wanted += [f"/usr/lib/modules/{name}/modules.dep" for name in kernels(tree)]
    for path in wanted:
        # debugfs ends well whatever happens; a file that is there has its inode shown.
        if re.search(r"^Inode: \d+", _debugfs(place, f'stat "{path}"', log), re.MULTILINE):
            (tree / path[1:]).parent.mkdir(parents=True, exist_ok=True)
            (tree / path[1:]).touch()
    modules = tree / "usr/lib/modules"
    if modules.is_dir():
        (tree / "lib").mkdir()
        (tree / "lib/modules").symlink_to(modules)


def kernels(tree: Path) -> list[str]:
    """The versions of all kernels in /boot, the newest last."""
    names = (path.name.removeprefix("vmlinuz-") for path in (tree / "boot").glob("vmlinuz-*"))
    return sorted((name for name in names if "rescue" not in name), key=contract.release)


def check(tree: Path) -> list[str]:
    """All that is wrong with the image that `tree` was extracted from, as sentences."""
    checks: tuple[Callable[[Path], list[str]], ...] = (
        contract.kernel,
        _boot,
        _programs,
        _units,
        _sources,
        contract.identity,
        contract.secrets,
        _proxies,
        _packages,
    )
    return [problem for one in checks for problem in one(tree)]


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
    return int(partitions[0]["start"]) * _SECTOR


def _first_sector(image: Path) -> bytes:
    with image.open("rb") as handle:
        return handle.read(_SECTOR)


def _boot(tree: Path) -> list[str]:
    found = kernels(tree)
    if not found:
        return []  # said already
    newest = found[-1]
    problems = []
    if b"GRUB" not in (tree / "mbr").read_bytes():
        problems.append("the disk's first sector holds no GRUB: nothing would boot")
    entries = _entries(tree)
    own = [line for line in entries if f"vmlinuz-{newest}" in line]
    if not own:
        problems.append(f"the newest kernel {newest} has no boot entry")
    elif not any(re.search(r"\bconsole=ttyS0\b", line) for line in own):
        problems.append(f"the boot entry of {newest} has no serial console: console=ttyS0 is missing")
    return problems


def _entries(tree: Path) -> list[str]:
    """Kernel and arguments of every boot entry, one a line, from GRUB's own or the loader's files."""
    lines = []
    for name in ("boot/grub/grub.cfg", "boot/grub2/grub.cfg"):
        if (tree / name).is_file():
            text = (tree / name).read_text(encoding="utf-8", errors="replace")
            lines += re.findall(r"^\s*linux(?:16|efi)?\s+(.*)$", text, re.MULTILINE)
    for path in sorted((tree / "boot/loader/entries").glob("*.conf")):
        values = dict(line.split(maxsplit=1) for line in path.read_text().splitlines() if " " in line.strip())
        lines.append(f"{values.get('linux', '')} {values.get('options', '')}")
    return lines


def _programs(tree: Path) -> list[str]:
    return [
        f"{name} is not installed: no /{paths[0]}"
        for name, paths in _PROGRAMS.items()
        if not any((tree / path).exists() for path in paths)
    ]


def _units(tree: Path) -> list[str]:
    wanted = {
        "cloud-init": ("cloud-init.service", "cloud-init-main.service"),
        "chrony": ("chrony.service", "chronyd.service"),
        "sshd": ("ssh.service", "sshd.service"),
    }
    problems = [
        f"{name} is not enabled" for name, units in wanted.items() if not contract.is_enabled(tree, *units)
    ]
    if (tree / "etc/cloud/cloud-init.disabled").exists():
        problems.append("/etc/cloud/cloud-init.disabled switches cloud-init off")
    return problems


def _sources(tree: Path) -> list[str]:
    """cloud-init has to ask OpenStack's data sources: the last list that is set counts."""
    found = ""
    for path in sorted((tree / "etc/cloud/cloud.cfg.d").glob("*.cfg")):
        lists = re.findall(r"^datasource_list:\s*\[(.*)\]", path.read_text(encoding="utf-8"), re.MULTILINE)
        found = lists[-1] if lists else found
    names = [name.strip() for name in found.split(",")]
    missing = [name for name in ("ConfigDrive", "OpenStack", "None") if name not in names]
    return [f"cloud-init does not ask the data source {name}" for name in missing]


def _proxies(tree: Path) -> list[str]:
    """Beside apt's, which the golden image contract knows."""
    problems = []
    for name in ("etc/environment", "etc/yum.conf", "etc/dnf/dnf.conf", "etc/wgetrc"):
        path = tree / name
        if path.is_file() and re.search(r"(?im)^\s*\w*proxy\s*=\s*\S", path.read_text(encoding="utf-8")):
            problems.append(f"/{name} names a proxy")
    return problems


def _packages(tree: Path) -> list[str]:
    path = tree / PACKAGES
    if not path.is_file() or not path.read_text(encoding="utf-8").strip():
        return [f"there is no list of packages: /{PACKAGES}"]
    return []
