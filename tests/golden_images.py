"""Small golden images, for tests of what is made of them."""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path

from stacklab import files
from stacklab.base import Golden

SIZE = 64 << 20


def with_disk(place: Path, key: str = "0123456789ab", content: bytes = b"content") -> Golden:
    """A golden image with a disk of 64 MiB, as the builders leave it in the cache."""
    golden = Golden(f"debian-12-libvirt-{key}", key, place / f"debian-12-libvirt-{key}")
    golden.directory.mkdir(parents=True)
    raw = place / "raw"
    with raw.open("wb") as handle:
        handle.truncate(SIZE)
        handle.write(content)
    argv = ["qemu-img", "convert", "-c", "-O", "qcow2", "-o", "compression_type=zstd"]
    subprocess.run([*argv, str(raw), str(golden.disk)], check=True)
    raw.unlink()
    described(golden, hashlib.sha256(golden.disk.read_bytes()).hexdigest())
    return golden


def with_rootfs(place: Path, key: str = "0123456789ab") -> Golden:
    """A golden image with a root filesystem of three files."""
    golden = Golden(f"debian-12-lxc-{key}", key, place / f"debian-12-lxc-{key}")
    for name, text in (("etc/hostname", "golden\n"), ("etc/os-release", "ID=debian\n"), ("bin/sh", "#!\n")):
        files.write(golden.rootfs / name, text)
    described(golden, "f" * 64)
    return golden


def described(golden: Golden, sha256: str) -> None:
    """Write the image's metadata."""
    files.write_json(
        golden.directory / "metadata.json", {"name": golden.name, "sha256": sha256, "inputs": {}}
    )
