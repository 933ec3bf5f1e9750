"""The catalogue of guest images: the shipped one, a user's own, and the broken ones to exact messages."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from stacklab import catalogue, files, guests
from stacklab.catalogue import Entry
from stacklab.errors import InvalidInput

BROKEN = Path(__file__).parent / "broken_catalogues"
OS = "properties: {os_distro: debian, os_version: 12}"
DIB = f"builder: dib, elements: [debian-minimal], {OS}"


def parse(images: str) -> dict[str, Entry]:
    return catalogue.parse(f"images:\n  {images}", "images.yaml")


def test_what_is_shipped() -> None:
    entries = catalogue.shipped()
    builders = {name: entry.builder for name, entry in entries.items()}
    assert builders == {
        "probe": "probe",
        **dict.fromkeys(("debian-12", "rocky-9", "centos-stream-9"), "dib"),
        **{f"{name}-cloud": "url" for name in ("debian-12", "rocky-9", "centos-stream-9")},
    }
    debian = entries["debian-12"]
    assert debian.elements == ("debian-minimal", "block-device-mbr", "stacklab-guest")
    assert (debian.title, debian.formats, debian.compression) == ("Debian 12", ("qcow2",), "zstd")
    assert debian.environment == {"DIB_RELEASE": "bookworm"}
    assert (debian.properties["os_version"], debian.properties["hw_qemu_guest_agent"]) == ("12", "yes")
    assert entries["rocky-9"].environment == {"DIB_RELEASE": "9"}
    assert entries["rocky-9"].properties["image_original_user"] == "rocky"
    assert all(entry.checksums.startswith("https://") for entry in entries.values() if entry.url)


def test_the_probe_of_the_labs_is_the_entry() -> None:
    entry = catalogue.shipped()["probe"]
    assert entry.title == guests.PROBE
    assert guests.probe_entry() == entry
    changed = dataclasses.replace(entry, min_ram=256)
    assert guests.probe_key("golden", changed) != guests.probe_key("golden")


def test_defaults() -> None:
    (entry,) = parse("mine: {" + DIB + "}").values()
    assert entry == Entry(
        name="mine",
        title="mine",
        builder="dib",
        elements=("debian-minimal",),
        properties={"os_distro": "debian", "os_version": "12"},
    )
    assert (entry.formats, entry.compression, entry.visibility) == (("qcow2",), "zstd", "private")
    assert (entry.min_disk, entry.min_ram, entry.keep) == (1, 512, 1)


def test_vpc_is_vhd() -> None:
    (entry,) = parse("mine: {" + DIB + ", formats: [raw, vpc]}").values()
    assert entry.formats == ("raw", "vhd")


def test_what_can_only_be_uploaded_stays_as_it_is() -> None:
    url = "builder: url, url: http://images.example/x.iso, digest: 'sha256:" + "A" * 64 + "'"
    (entry,) = parse("mine: {" + f"{url}, format: iso, {OS}" + "}").values()
    assert (entry.format, entry.formats, entry.digest) == ("iso", ("iso",), "sha256:" + "a" * 64)


def test_a_fetched_image_may_be_converted() -> None:
    url = "builder: url, url: https://images.example/x.img, checksums: https://images.example/SUMS"
    (entry,) = parse("mine: {" + f"{url}, format: raw, formats: [raw, qcow2], {OS}" + "}").values()
    assert (entry.format, entry.formats) == ("raw", ("raw", "qcow2"))


def test_values_that_yaml_would_spoil() -> None:
    properties = "{os_distro: debian, os_version: 12.10, provided_until: 2028-06-30, hw_qemu_guest_agent: on}"
    (entry,) = parse(
        "mine: {builder: dib, elements: [a], environment: {DIB_X: yes, DIB_Y: 010}, properties: "
        + properties
        + "}"
    ).values()
    assert entry.environment == {"DIB_X": "1", "DIB_Y": "010"}
    assert entry.properties["os_version"] == "12.10"
    assert entry.properties["provided_until"] == "2028-06-30"
    assert entry.properties["hw_qemu_guest_agent"] == "yes"


def test_own_entries_are_added_or_replace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "PROJECT", tmp_path)
    assert catalogue.load() == catalogue.shipped()
    own = tmp_path / "images.yaml"
    own.write_text("images:\n  mine: {" + DIB + "}\n  debian-12: {" + DIB + "}\n")
    entries = catalogue.load()
    assert set(entries) == {*catalogue.shipped(), "mine"}
    assert entries["debian-12"].elements == ("debian-minimal",)
    assert entries["rocky-9"] == catalogue.shipped()["rocky-9"]
    other = tmp_path / "other.yaml"
    other.write_text("images:\n  theirs: {" + DIB + "}\n")
    assert "theirs" in catalogue.load(str(other)) and "mine" not in catalogue.load(str(other))


def test_an_own_title_may_not_push_a_shipped_image_out_of_glance(tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text("images:\n  mine: {" + DIB + ", title: Debian 12}\n")
    with pytest.raises(InvalidInput, match=r"images\.mine\.title: 'Debian 12' is the title of debian-12 too"):
        catalogue.load(str(own))


def test_a_catalogue_that_is_not_there_or_not_text(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"nowhere\.yaml: cannot be read, No such file"):
        catalogue.load(str(tmp_path / "nowhere.yaml"))
    latin = tmp_path / "latin.yaml"
    latin.write_bytes(b"images: caf\xe9\n")
    with pytest.raises(InvalidInput, match="cannot be read, invalid continuation byte"):
        catalogue.load(str(latin))


def test_names() -> None:
    entries = catalogue.shipped()
    assert [entry.name for entry in catalogue.named(entries, ["rocky-9", "probe", "rocky-9"])] == [
        "rocky-9",
        "probe",
    ]
    assert catalogue.named(entries, []) == list(entries.values())
    with pytest.raises(InvalidInput, match="unknown image 'debain-12': did you mean 'debian-12'") as caught:
        catalogue.named(entries, ["debain-12", "nothing"])
    assert len(caught.value.problems) == 2
    assert "images.yaml" in caught.value.hint


@pytest.mark.parametrize("file", sorted(BROKEN.glob("*.yaml")), ids=lambda file: file.stem)
def test_broken(file: Path) -> None:
    with pytest.raises(InvalidInput) as caught:
        catalogue.parse(file.read_text(encoding="utf-8"), file.name)
    assert f"{caught.value}\n" == file.with_suffix(".expected").read_text(encoding="utf-8")
    assert caught.value.exit_code == 2
    assert len(caught.value.problems) == len(str(caught.value).splitlines())


def test_every_expectation_has_its_file() -> None:
    stems = {suffix: {file.stem for file in BROKEN.glob(f"*{suffix}")} for suffix in (".yaml", ".expected")}
    assert stems[".yaml"] == stems[".expected"]
    assert len(stems[".yaml"]) >= 12
