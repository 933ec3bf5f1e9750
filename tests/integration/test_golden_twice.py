"""debian-12 built twice from the same packages: the same bytes, so that a digest names an image.

One build is the user's cache's, from whenever it was; the other is made here, in a cache of its own.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from stacklab import base, files
from tests.integration import needs

# Four to eight minutes each: wider than CI.
pytestmark = [pytest.mark.integration, pytest.mark.matrix]


def packages(golden: base.Golden) -> str:
    return (golden.directory / "packages.txt").read_text(encoding="utf-8")


def sha256(golden: base.Golden) -> str:
    return str(files.read_json(golden.directory / "metadata.json")["sha256"])


@pytest.mark.parametrize("provider", ["lxc", "libvirt"])
def test_the_same_packages_give_the_same_bytes(
    provider: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs.root("diskimage-builder")
    spec = base.spec("debian-12", provider)
    first = base.build(spec)
    # What is only downloaded may be shared.
    for name in ("wheels", "dib"):
        shutil.copytree(files.cache_dir() / name, tmp_path / "stacklab" / name)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    second = base.build(spec)
    assert second.directory != first.directory
    assert packages(second) == packages(first), "the mirror has moved on: `invoke build-base --refresh` first"
    assert sha256(second) == sha256(first)
