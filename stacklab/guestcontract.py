"""What every guest image built here has to keep, checked offline from the image's own files.

diskimage-builder ends well on broken images, so no image gets its name unchecked.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from stacklab import contract, diskfiles

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


def extract(image: Path, tree: Path, log: Path) -> None:
    """Copy out of the raw `image` with one ext4 partition what `check` looks at, to `tree`.

    Raises CommandFailed when there is no such partition or it cannot be read.
    """
    programs = [path for paths in _PROGRAMS.values() for path in paths]
    diskfiles.extract(image, tree, _TREES, programs, log)


def check(tree: Path) -> list[str]:
    """All that is wrong with the image that `tree` was extracted from, as sentences."""
    checks: tuple[Callable[[Path], list[str]], ...] = (
        contract.kernel,
        contract.boot,
        _programs,
        _units,
        _sources,
        contract.identity,
        contract.secrets,
        _proxies,
        _packages,
    )
    return [problem for one in checks for problem in one(tree)]


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
