"""Labs as files: real tar and zstd, real layers, no containers."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stacklab import (
    archive,
    cloud,
    files,
    handover,
    lab,
    namespace,
    packstack,
    plan,
    removal,
    seed,
    snapshots,
    stages,
)
from stacklab.archive import Manifest
from stacklab.base import Golden
from stacklab.errors import CommandFailed, InvalidInput, LabError
from stacklab.plan import Plan
from stacklab.run import run
from stacklab.snapshots import Snapshot

NODES = ("controller", "compute1")


@pytest.fixture
def golden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Golden:
    """An image in a cache of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return image("debian-12-lxc-0123456789ab", "sum")


def image(name: str, sha256: str) -> Golden:
    place = files.cache_dir() / "images" / name
    files.write(place / "rootfs" / "etc" / "os-release", "ID=debian\n")
    files.write_json(place / "metadata.json", {"name": name, "sha256": sha256})
    return Golden(name, name.rsplit("-", 1)[1], place)


@pytest.fixture
def made(two_node: Plan, golden: Golden) -> Plan:
    """A lab with two snapshots, one over the other, and all that a lab has of its own."""
    place = two_node.directory
    place.mkdir(mode=0o700, parents=True)
    packstack.secrets(two_node)
    seed.write(two_node)
    cloud.write_credentials(two_node)
    files.write(place / "answers.txt", "CONFIG_X=secret\n", 0o600)
    files.write_json(place / "plan.json", {"plan": two_node.as_json()})
    files.write_json(place / "golden.json", archive.golden_json(golden))
    files.write_json(place / "stages" / "key-cloud.json", {"stage": "cloud", "previous": "", "inputs": {}})
    files.write(place / "logs" / "nodes.log", "not to be handed over")
    for node in NODES:
        for layer in ("old", "new"):
            upper = place / "layers" / layer / node / "upper"
            files.write(upper / "etc" / "state", f"{layer} of {node}", 0o640)
        os.link(upper / "etc" / "state", upper / "etc" / "state-too")
        (upper / "link").symlink_to("/etc/passwd")
        (upper / "opaque").mkdir()
    for name, layers, age in (("nodes", ["old"], 1), ("cloud", ["new", "old"], 2)):
        one = Snapshot(name, name, f"key-{name}", age, {"layers": layers})
        files.write_json(place / "snapshots" / f"{name}.json", one.__dict__)
    return two_node


def exported(lab_plan: Plan, golden: Golden, target: Path, *names: str, with_image: bool = False) -> Manifest:
    chosen = [snapshots.get(lab_plan, name) for name in names or ("cloud",)]
    archive.export(lab_plan, golden, chosen, target, with_image=with_image)
    return archive.read(target)


def taken_in(path: Path, name: str) -> Plan:
    manifest = archive.read(path)
    renamed = archive.renamed(manifest, name)
    archive.check(path, manifest, renamed)
    archive.unpack(path, manifest, renamed)
    return lab.open_plan(renamed.lab)


def problems(path: Path, name: str) -> str:
    manifest = archive.read(path)
    with pytest.raises(InvalidInput) as caught:
        archive.check(path, manifest, archive.renamed(manifest, name))
    return str(caught.value)


def test_the_file_says_what_it_holds(made: Plan, golden: Golden, tmp_path: Path) -> None:
    manifest = exported(made, golden, tmp_path / "lab.file")
    assert manifest.plan == made
    assert (manifest.golden, manifest.golden_key, manifest.sha256) == (golden.name, "0123456789ab", "sum")
    assert (manifest.with_image, manifest.snapshots) == (False, ("cloud",))
    assert manifest.size > 4 * 4096
    assert (tmp_path / "lab.file").stat().st_mode & 0o777 == 0o600


def test_a_colon_in_the_files_name_is_of_no_host(
    made: Plan, golden: Golden, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert exported(made, golden, Path("lab:10.30")).plan == made
    assert taken_in(Path("lab:10.30"), "other").lab == "other"


def test_a_lab_under_another_name_is_the_same_lab(made: Plan, golden: Golden, tmp_path: Path) -> None:
    exported(made, golden, tmp_path / "lab.file")
    new = taken_in(tmp_path / "lab.file", "other")
    assert (new.lab, new.namespace) == ("other", "stacklab-other")
    assert new.topology == made.topology
    assert packstack.secrets(new) == packstack.secrets(made)
    for name in ("secrets.json", "answers.txt", "clouds.yaml", "ssh/id_ed25519", "ssh/host_controller"):
        here, there = new.directory / name, made.directory / name
        assert here.read_bytes() == there.read_bytes(), name
        assert here.stat().st_mode & 0o777 == 0o600, name
    assert new.directory.stat().st_mode & 0o777 == 0o700
    (one,) = snapshots.listed(new)
    assert one == snapshots.get(made, "cloud")
    for layer in ("old", "new"):
        for node in NODES:
            upper = new.directory / "layers" / layer / node / "upper"
            assert (upper / "etc" / "state").read_text() == f"{layer} of {node}"
            assert stat.S_IMODE((upper / "etc" / "state").stat().st_mode) == 0o640
    assert (upper / "etc" / "state-too").stat().st_ino == (upper / "etc" / "state").stat().st_ino
    assert (upper / "link").readlink() == Path("/etc/passwd")
    assert (new.directory / "stages" / "key-cloud.json").is_file()
    assert not (new.directory / "logs").exists()
    assert lab.provider_of(new).golden == golden


def test_paths_and_addresses_are_the_new_labs(made: Plan, golden: Golden, tmp_path: Path) -> None:
    exported(made, golden, tmp_path / "lab.file")
    new = taken_in(tmp_path / "lab.file", "other")
    seed.write(new)  # as it is done when the nodes are made
    text = (new.directory / "ssh_config").read_text()
    assert str(new.directory) in text and "stacklab-other" in text
    for path in new.directory.rglob("*"):
        if path.is_file():
            for words in (str(made.directory), made.namespace):
                assert words not in path.read_text(), path
    identity = "seed/controller.machine-id"  # the databases know the nodes by it
    assert (new.directory / identity).read_text() == (made.directory / identity).read_text()


def test_whiteouts_and_marks_are_kept(made: Plan, golden: Golden, tmp_path: Path) -> None:
    upper = Path("layers/new/controller/upper")
    try:
        os.mknod(made.directory / upper / "deleted", stat.S_IFCHR, os.makedev(0, 0))
        os.setxattr(made.directory / upper / "opaque", "trusted.overlay.opaque", b"y")
        os.setxattr(made.directory / upper / "opaque", "trusted.overlay.origin", b"an inode of this disk")
        os.chown(made.directory / upper / "etc" / "state", 12345, 54321)
    except PermissionError:
        pytest.skip("only root makes layers")
    exported(made, golden, tmp_path / "lab.file")
    new = taken_in(tmp_path / "lab.file", "other").directory / upper
    assert stat.S_ISCHR((new / "deleted").lstat().st_mode) and (new / "deleted").lstat().st_rdev == 0
    assert os.listxattr(new / "opaque") == ["trusted.overlay.opaque"]
    assert ((new / "etc/state").stat().st_uid, (new / "etc/state").stat().st_gid) == (12345, 54321)


def test_only_what_the_chosen_snapshots_need(made: Plan, golden: Golden, tmp_path: Path) -> None:
    exported(made, golden, tmp_path / "lab.file", "nodes")
    new = taken_in(tmp_path / "lab.file", "other")
    assert [path.name for path in (new.directory / "layers").iterdir()] == ["old"]
    exported(made, golden, tmp_path / "both.file", "nodes", "cloud")
    both = taken_in(tmp_path / "both.file", "both")
    assert [one.name for one in snapshots.listed(both)] == ["nodes", "cloud"]


def test_ruins_of_images_are_in_no_ones_way(made: Plan, golden: Golden, tmp_path: Path) -> None:
    exported(made, golden, tmp_path / "lab.file", with_image=True)
    (golden.directory / "metadata.json").unlink()  # its deletion was killed
    left, busy = (archive.staging(golden.directory.with_name(name)) for name in ("left", "busy"))
    for stage in (left, busy):
        files.write(stage / "rootfs" / "file", "")
    with files.lock(golden.directory.with_name("busy.lock"), "another import"):
        taken_in(tmp_path / "lab.file", "other")
    assert (golden.rootfs / "etc" / "os-release").read_text() == "ID=debian\n"
    assert not left.exists() and busy.exists()


def test_an_image_that_is_missing_is_asked_for(made: Plan, golden: Golden, tmp_path: Path) -> None:
    exported(made, golden, tmp_path / "without.file")
    exported(made, golden, tmp_path / "with.file", with_image=True)
    shutil.rmtree(golden.directory)
    assert f"its golden image {golden.name} is neither in the cache" in problems(
        tmp_path / "without.file", "other"
    )
    taken_in(tmp_path / "with.file", "other")
    assert (golden.rootfs / "etc" / "os-release").read_text() == "ID=debian\n"
    assert files.read_json(golden.directory / "metadata.json")["sha256"] == "sum"


def test_another_build_of_the_image_is_refused(made: Plan, golden: Golden, tmp_path: Path) -> None:
    exported(made, golden, tmp_path / "lab.file", with_image=True)
    image(golden.name, "another sum")
    assert "is another build of its golden image" in problems(tmp_path / "lab.file", "other")


def test_all_that_is_in_the_way_is_named_at_once(
    made: Plan, golden: Golden, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exported(made, golden, tmp_path / "lab.file")
    manifest = archive.read(tmp_path / "lab.file")
    files.write_json(made.directory / "plan.json", {"plan": {**made.as_json(), "datapath": "system"}})
    system = lab.open_plan("two-node")
    shutil.rmtree(golden.directory)
    monkeypatch.setattr(plan, "kernel_datapath", lambda: False)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(100, 100, 0))
    with pytest.raises(InvalidInput) as caught:
        archive.check(tmp_path / "lab.file", manifest, system)
    assert len(caught.value.problems) == 4
    for words in ("there is a lab two-node already", "golden image", "kernel module", "MiB are free"):
        assert words in str(caught.value)


@pytest.mark.parametrize("kind", ["missing", "text", "another archive", "cut", "newer"])
def test_files_that_are_no_lab(kind: str, made: Plan, golden: Golden, tmp_path: Path) -> None:
    path = tmp_path / "lab.file"
    exported(made, golden, path)
    if kind == "missing":
        path.unlink()
    elif kind == "text":
        path.write_text("a lab")
    elif kind == "another archive":
        (tmp_path / "x").touch()
        run(["tar", "--zstd", "-cf", path, "-C", tmp_path, "x"])
    elif kind == "cut":
        path.write_bytes(path.read_bytes()[:100])
    else:
        files.write_json(tmp_path / "manifest.json", {"format": archive.FORMAT + 1, "stacklab": "9.0"})
        run(["tar", "--zstd", "-cf", path, "-C", tmp_path, "manifest.json"])
    with pytest.raises(InvalidInput) as caught:
        archive.read(path)
    words = {"missing": "no such file", "newer": "by stacklab 9.0"}.get(kind, "no lab that stacklab exported")
    assert words in str(caught.value)


def test_a_cut_file_leaves_nothing(made: Plan, golden: Golden, tmp_path: Path, labs: Path) -> None:
    path = tmp_path / "lab.file"
    files.write(made.directory / "layers/new/controller/upper/big", os.urandom(2_000_000).hex())
    exported(made, golden, path)
    path.write_bytes(path.read_bytes()[:-500_000])
    with pytest.raises(CommandFailed):
        taken_in(path, "other")
    assert sorted(one.name for one in labs.iterdir() if "lock" not in one.name) == ["two-node"]


def test_an_export_that_fails_leaves_the_file_before(made: Plan, golden: Golden, tmp_path: Path) -> None:
    path = tmp_path / "out" / "lab.file"
    exported(made, golden, path)
    before = path.read_bytes()
    shutil.rmtree(made.directory / "layers" / "new")
    with pytest.raises(CommandFailed):
        exported(made, golden, path)
    assert path.read_bytes() == before
    assert [one.name for one in path.parent.iterdir()] == ["lab.file"]


def test_what_a_killed_import_left_is_no_lab(made: Plan, golden: Golden, tmp_path: Path, labs: Path) -> None:
    exported(made, golden, tmp_path / "lab.file")
    stage = archive.staging(labs / "other")
    files.write_json(stage / "plan.json", {"plan": made.as_json()})
    files.write(stage / "rubbish", "")
    assert lab.existing() == lab.directories() == ["two-node"]
    new = taken_in(tmp_path / "lab.file", "other")
    assert not (new.directory / "rubbish").exists()
    files.write(archive.staging(labs / "third") / "rubbish", "")
    removal.down("third")
    assert not archive.staging(labs / "third").exists()


class Handed:
    """What the commands do once the files are there: the restore is written down."""

    def __init__(self) -> None:
        self.restored: list[tuple[str, str]] = []

    def __call__(self, plan: Plan, provider: Any, snapshot: Snapshot) -> None:
        self.restored.append((plan.lab, snapshot.name))


@pytest.fixture
def handed(monkeypatch: pytest.MonkeyPatch) -> Handed:
    made = Handed()
    monkeypatch.setattr(lab, "restore", made)
    return made


def test_the_commands(made: Plan, tmp_path: Path, handed: Handed) -> None:
    # A user's own, later: what is handed over is the lab as the last stage left it.
    mine = Snapshot("mine", "cloud", "key-cloud", 3, {"layers": ["new", "old"]})
    files.write_json(made.directory / "snapshots" / "mine.json", mine.__dict__)
    handover.export(made, tmp_path / "lab.file", [], whole=False, image=False)
    assert archive.read(tmp_path / "lab.file").snapshots == ("cloud",)
    handover.export(made, tmp_path / "lab.file", ["nodes"], whole=False, image=False)
    assert archive.read(tmp_path / "lab.file").snapshots == ("nodes",)
    handover.export(made, tmp_path / "lab.file", [], whole=True, image=False)
    assert archive.read(tmp_path / "lab.file").snapshots == ("nodes", "cloud", "mine")
    handover.take_in(tmp_path / "lab.file", "other")
    assert handed.restored == [("other", "cloud")]
    with pytest.raises(InvalidInput, match="there is a lab other already"):
        handover.take_in(tmp_path / "lab.file", "other")
    with pytest.raises(InvalidInput, match="lower-case letters"):
        handover.take_in(tmp_path / "lab.file", "../x")
    files.write_json(made.directory / "growth.json", {"plan": made.as_json()})
    with pytest.raises(LabError, match="nodes were being added"):
        handover.export(made, tmp_path / "lab.file", [], whole=True, image=False)


def test_a_lab_without_snapshots_cannot_be_handed_over(made: Plan, tmp_path: Path, handed: Handed) -> None:
    snapshots.forget_all(made)
    with pytest.raises(LabError, match="there is no snapshot 'verified'"):
        handover.export(made, tmp_path / "lab.file", [], whole=False, image=False)
    assert not (tmp_path / "lab.file").exists()


def test_after_an_import_up_has_nothing_to_do(
    make_plan: Callable[..., Plan], made: Plan, golden: Golden, tmp_path: Path
) -> None:
    todo = lab.stages_of(made, golden, lambda rows: None)
    one = Snapshot("verified", "verified", todo[-1].key, 9, {"layers": ["old"]})
    files.write_json(made.directory / "snapshots" / "verified.json", one.__dict__)
    exported(made, golden, tmp_path / "lab.file", "verified")
    taken_in(tmp_path / "lab.file", "other")
    again = make_plan(lab="other")
    todo = lab.stages_of(again, golden, lambda rows: None)
    begin = stages.start_of(again, lab.provider_of(again), todo)
    assert (begin.done, begin.snapshot) == (len(todo), one)


def test_the_namespace_of_another_checkout_is_left_alone(
    made: Plan, tmp_path: Path, handed: Handed, monkeypatch: pytest.MonkeyPatch
) -> None:
    handover.export(made, tmp_path / "lab.file", [], whole=False, image=False)
    monkeypatch.setattr(namespace, "path", lambda plan: tmp_path)  # it is there
    with pytest.raises(LabError, match="belongs to a lab other of another checkout"):
        handover.take_in(tmp_path / "lab.file", "other")
    with pytest.raises(LabError, match="of another checkout"):
        lab.up(archive.renamed(archive.read(tmp_path / "lab.file"), "other"), lambda rows: None)
    assert not (made.directory.parent / "other").exists()


def test_a_directory_is_no_file_to_export_to(two_node: Plan, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"is a directory: name a file, such as two-node\.lab"):
        handover.export(two_node, tmp_path, [], whole=False, image=False)
