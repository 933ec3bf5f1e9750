"""What is listed, shown and compared of golden images, on a cache with three of them."""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from stacklab import base, files, goldenshow
from stacklab.base import Golden
from stacklab.errors import InvalidInput, LabError

OLD = "acl 2.3.1-3 amd64\nlibc6 2.36-9 amd64\nlinux-image 6.1.1 amd64\nvim 9.0 amd64\n"
NEW = OLD.replace("2.36-9", "2.36-10").replace("vim 9.0", "linux-image 6.1.2") + "zstd 1.5 amd64\n"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for name, packages in (
        ("debian-12-lxc-aaaa00000000", OLD),
        ("debian-12-libvirt-bbbb00000000", NEW),
        ("debian-12-libvirt-bbcc00000000", NEW),
    ):
        place = files.cache_dir() / "images" / name
        files.write(place / "packages.txt", packages)
        if "libvirt" in name:
            (place / "disk.qcow2").write_bytes(b"a disk")
        files.write_json(
            place / "metadata.json",
            {
                "name": name,
                "built": 1700000000,
                "seconds": 200,
                "builder": "dib",
                "distribution": "debian-12",
                "provider": name.split("-")[2],
                "release": "zed",
                "sha256": hashlib.sha256(b"a disk").hexdigest(),
                "inputs": {"contract": 2, "elements": {"vm-node": "0123"}},
            },
        )
    return files.cache_dir()


@pytest.mark.parametrize("name", ["debian-12-lxc-aaaa00000000", "debian-12-lxc"])
def test_found_by_name_or_how_it_begins(name: str, cache: Path) -> None:
    assert goldenshow.find(name).key == "aaaa00000000"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (
            "debian-12-libvirt",
            "is more than one: there is debian-12-libvirt-bbbb00000000, debian-12",
        ),
        ("rocky-9", "'rocky-9' is not in the cache: there is debian-12-libvirt-bbbb00000000, debian"),
    ],
)
def test_not_found(name: str, said: str, cache: Path) -> None:
    with pytest.raises(InvalidInput) as caught:
        goldenshow.find(name)
    assert said in caught.value.message


def test_an_empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(InvalidInput, match="there is nothing"):
        goldenshow.find("debian-12")
    assert goldenshow.rows() == []


def test_listed(cache: Path) -> None:
    names = [(row[0], row[1], row[-1]) for row in goldenshow.rows()]
    assert names == [
        ("debian-12-libvirt-bbbb00000000", "dib", "0 MiB"),
        ("debian-12-libvirt-bbcc00000000", "dib", "0 MiB"),
        ("debian-12-lxc-aaaa00000000", "dib", "a tree"),
    ]


def test_the_difference_of_packages(cache: Path) -> None:
    found = goldenshow.difference(
        goldenshow.find("debian-12-lxc"), goldenshow.find("debian-12-libvirt-bbbb00000000")
    )
    assert found == [
        ("libc6", "2.36-9", "2.36-10"),
        ("linux-image", "6.1.1", "6.1.1 6.1.2"),
        ("vim", "9.0", ""),
        ("zstd", "", "1.5"),
    ]
    assert goldenshow.changes(found) == "1 added, 1 removed, 2 changed"
    assert goldenshow.difference(goldenshow.find("debian-12-lxc"), goldenshow.find("debian-12-lxc")) == []


def test_shown(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = goldenshow.find("debian-12-lxc")
    goldenshow.show(image, as_json=True)
    found = json.loads(capsys.readouterr().out)
    assert found["packages"] == 4
    assert found["kind"] == "reproducible"
    by_packer = goldenshow.find("debian-12-libvirt-bbbb").directory / "metadata.json"
    files.write_json(by_packer, {**files.read_json(by_packer), "builder": "packer"})
    assert goldenshow.about(goldenshow.find("debian-12-libvirt-bbbb"))["kind"] == "recorded"
    assert found["manifest-sha256"] == hashlib.sha256(OLD.encode()).hexdigest()
    goldenshow.show(image, as_json=False)
    said = capsys.readouterr().out
    assert "  sha256: " in said and "  elements vm-node: 0123\n" in said


def test_a_dry_run(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = base.spec("rocky-9", "libvirt")
    goldenshow.plan(spec)
    said = capsys.readouterr().out
    assert said.startswith(f"golden image {base.wanted(spec).name}: to be built\n")
    assert "disk-image-create -a amd64 -t raw" in said and "rocky-container" in said


def test_verify_looks_again(
    cache: Path, make_rootfs: Callable[[Path], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    image = goldenshow.find("debian-12-lxc")
    make_rootfs(image.rootfs)
    assert goldenshow.verify(image) == {}
    (image.rootfs / "etc/machine-id").write_text("0123456789abcdef0123456789abcdef\n")
    with pytest.raises(LabError, match="machine-id is baked in"):
        goldenshow.verify(image)
    with pytest.raises(InvalidInput, match="tree for containers"):
        goldenshow.verify(image, boot=True)


def test_a_disk_that_somebody_wrote_to(cache: Path) -> None:
    image: Golden = goldenshow.find("debian-12-libvirt-bbbb00000000")
    image.disk.write_bytes(b"another disk")
    with pytest.raises(LabError, match="when it was built"):
        goldenshow.verify(image)


def test_an_image_is_deleted(cache: Path) -> None:
    image = goldenshow.find("debian-12-lxc")
    goldenshow.delete(image)
    assert not image.directory.exists()
    assert len(base.built()) == 2


def test_what_a_lab_stands_on_is_not_deleted(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = goldenshow.find("debian-12-lxc")
    monkeypatch.setattr(files, "labs_dir", lambda: tmp_path / "labs")
    files.write_json(tmp_path / "labs" / "mine" / "golden.json", {"name": image.name})
    with pytest.raises(LabError, match="the labs mine stand on") as raised:
        goldenshow.delete(image)
    assert "invoke down --lab mine" in raised.value.hint
    assert base.is_built(image)


def test_what_is_mounted_is_not_deleted(cache: Path) -> None:
    image = goldenshow.find("debian-12-lxc")
    lower = image.directory / "rootfs"
    lower.mkdir()
    # A mount in a namespace of its own, as the nodes of another checkout's lab have it.
    argv = ["unshare", "--mount", "sh", "-c", f"mount -t tmpfs none {lower} && echo there && exec sleep 20"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        if not process.stdout.readline():
            pytest.skip("mounting needs root")
        with pytest.raises(LabError, match="is mounted"):
            goldenshow.delete(image)
        process.kill()
    assert base.is_built(image)
    goldenshow.delete(image)
