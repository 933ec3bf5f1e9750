"""The catalogue as nodepool-builder reads it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml

from stacklab import catalogue, nodepool
from stacklab.errors import InvalidInput, LabError

ENTRIES = catalogue.shipped()


def test_export(tmp_path: Path) -> None:
    written = nodepool.export(ENTRIES.values(), tmp_path / "out")
    assert [path.name for path in written] == ["nodepool.yaml", "README.rst", "elements"]
    config = yaml.safe_load(written[0].read_text())
    images = {image["name"]: image for image in config["diskimages"]}
    assert list(images) == ["debian-12", "rocky-9", "centos-stream-9"]
    debian = images["debian-12"]
    assert debian["formats"] == ["qcow2"]
    assert debian["elements"] == ["debian-minimal", "block-device-mbr", "stacklab-guest"]
    assert debian["username"] == "debian"
    assert debian["rebuild-age"] == 30 * 86400
    assert debian["env-vars"]["DIB_RELEASE"] == "bookworm"
    assert debian["env-vars"]["QEMU_IMG_OPTIONS"] == "compression_type=zstd"
    # nodepool wants text for each variable
    assert all(isinstance(value, str) for image in images.values() for value in image["env-vars"].values())
    (provider,) = config["providers"]
    assert [image["name"] for image in provider["diskimages"]] == list(images)
    assert provider["diskimages"][0]["meta"]["os_distro"] == "debian"
    assert {"zookeeper-servers", "elements-dir", "images-dir", "labels"} <= set(config)


def test_our_elements_go_along_and_the_readme_names_the_rest(tmp_path: Path) -> None:
    nodepool.export(ENTRIES.values(), tmp_path)
    assert [path.name for path in (tmp_path / "elements").iterdir()] == ["stacklab-guest"]
    hook = tmp_path / "elements/stacklab-guest/finalise.d/93-stacklab-guest-clean"
    assert hook.stat().st_mode & 0o111
    readme = (tmp_path / "README.rst").read_text()
    assert "Images: debian-12, rocky-9, centos-stream-9" in readme
    assert "probe (probe), debian-12-cloud (url)" in readme


def test_again_over_the_same_but_never_over_other_files(tmp_path: Path) -> None:
    nodepool.export(ENTRIES.values(), tmp_path)
    first = (tmp_path / "nodepool.yaml").read_text()
    nodepool.export(ENTRIES.values(), tmp_path)
    assert (tmp_path / "nodepool.yaml").read_text() == first
    (tmp_path / "mine").touch()
    with pytest.raises(LabError, match="holds other files: mine"):
        nodepool.export(ENTRIES.values(), tmp_path)


@pytest.mark.parametrize("name", ["nodepool.yaml", "README.rst", "elements/mine/element-deps"])
def test_a_nodepool_directory_of_the_users_own_stays(name: str, tmp_path: Path) -> None:
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text("labels: []\n")
    with pytest.raises(LabError, match=f"holds other files: {name.partition('/')[0]}"):
        nodepool.export(ENTRIES.values(), tmp_path)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [tmp_path / name]
    assert (tmp_path / name).read_text() == "labels: []\n"


def test_an_export_cut_short_can_be_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def cut(_source: Path, target: Path, **_: object) -> None:
        target.mkdir(parents=True)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(shutil, "copytree", cut)
        nodepool.export(ENTRIES.values(), tmp_path)
    assert len(nodepool.export(ENTRIES.values(), tmp_path)) == 3


@pytest.mark.parametrize("name", ["file", "file/below"])
def test_a_file_is_no_directory(name: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InvalidInput, match=f"directory: .*{name} cannot be used"):
        nodepool.export(ENTRIES.values(), tmp_path / name)
    assert (tmp_path / "file").read_text() == "mine"


def test_nothing_to_export(tmp_path: Path) -> None:
    with pytest.raises(LabError, match="no image of these"):
        nodepool.export([ENTRIES["probe"]], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_other_formats_do_not_get_an_option_that_is_qcow2s() -> None:
    properties = "properties: {os_distro: d, os_version: 1}"
    text = "images:\n  x: {builder: dib, elements: [a], formats: [qcow2, vmdk], " + properties + "}"
    config = nodepool.configuration(catalogue.parse(text, "x.yaml").values())
    assert "QEMU_IMG_OPTIONS" not in config["diskimages"][0]["env-vars"]
