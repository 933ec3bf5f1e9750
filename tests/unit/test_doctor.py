"""doctor and kvm against machines made of fakes: each check both ways."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from stacklab import files, kvm
from stacklab.doctor import COMMANDS, LXC_COMMANDS, run_checks
from stacklab.examination import Check, Host, Needs
from stacklab.model import Network, Node, ProviderNetwork, TenantNetwork, Topology
from stacklab.run import Result

GIB = 1024**3
V1 = "cgroup /sys/fs/cgroup/devices cgroup rw,devices 0 0\n"
V1_SYSTEMD = "cgroup /sys/fs/cgroup/systemd cgroup rw,name=systemd 0 0\n"
V2 = "cgroup2 /sys/fs/cgroup cgroup2 rw,nosuid 0 0\n"


def topology(*roles: tuple[str, ...]) -> Topology:
    net = Network("10.0.0.0/24", "10.0.0.1")
    nodes = tuple(
        Node(f"n{i}", f"n{i}.lab.test", r, f"10.0.0.1{i}", f"10.0.0.1{i}", 2, 6144, 20)
        for i, r in enumerate(roles)
    )
    provider = ProviderNetwork("203.0.113.0/24", "203.0.113.1", "203.0.113.101", "203.0.113.250")
    tenant = TenantNetwork("172.16.1.0/24", "172.16.1.1")
    words = ("two-node", "", "two-node.yaml", "lab.test", "lxc", "debian-12", "zed")
    return Topology(*words, net, provider, tenant, net, nodes, (), "openvswitch")


@dataclass
class Machine:
    """A machine where all is well, for a test to break something of."""

    root: Path
    absent: set[str] = field(default_factory=lambda: {"modprobe", kvm.QEMU})
    failing: dict[str, str] = field(default_factory=dict)
    asked: list[list[str]] = field(default_factory=list)
    topology: Topology | None = None
    provider: str = "lxc"
    golden: bool = False
    builder: str = "dib"
    changes: dict[str, Callable[..., object]] = field(default_factory=dict)

    def write(self, path: str, text: str = "") -> Path:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        return file

    def run(self, argv: Sequence[str]) -> Result:
        self.asked.append(list(argv))
        line = " ".join(argv)
        for words, answer in self.failing.items():
            if words in line:
                return Result(1, answer)
        return Result(0, "")

    def checks(self) -> dict[str, Check]:
        host = Host(
            root=self.root,
            home=self.root / "root",
            tools=self.root / "venv/bin",
            euid=lambda: 0,
            which=lambda name: None if name in self.absent else f"/usr/bin/{name}",
            run=self.run,
            free=lambda path: 100 * GIB,
            kvm=lambda: (False, "no access"),
        )
        host = replace(host, **self.changes)  # type: ignore[arg-type]
        lab, cache = self.root / "labs/two-node", self.root / "cache"
        needs = Needs(self.provider, lab, cache, self.topology, self.golden, builder=self.builder)
        found = run_checks(needs, host)
        assert all(check.fix for check in found if check.state != "OK"), "a finding without what to type"
        assert all(not check.fix for check in found if check.state == "OK")
        return {check.name: check for check in found}


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    monkeypatch.delenv("VAGRANT_HOME", raising=False)
    made = Machine(tmp_path)
    made.write("etc/os-release", 'ID=debian\nVERSION_ID="12"\n')
    made.write("proc/mounts", V1 + V1_SYSTEMD)
    made.write("proc/meminfo", "MemTotal: 16777216 kB\nMemAvailable: 10485760 kB\nHugePages_Total: 0\n")
    made.write("dev/net/tun")
    made.write("venv/bin/disk-image-create").chmod(0o755)
    made.write("usr/share/vagrant-plugins/plugins.d/vagrant-lxc.json", "{}")
    made.write("usr/share/rubygems-integration/all/specifications/vagrant-lxc-1.4.3.gemspec")
    return made


def test_a_good_machine_has_no_finding(machine: Machine) -> None:
    machine.topology = topology(("controller", "network"), ("compute",))
    found = machine.checks()
    assert {check.state for check in found.values()} == {"OK"}
    assert {"root", "commands", "vagrant-lxc", "overlayfs", "network", "memory", "kvm"} <= found.keys()


def test_not_root(machine: Machine) -> None:
    machine.changes["euid"] = lambda: 1000
    assert machine.checks()["root"].state == "FAIL"


@pytest.mark.parametrize("name", COMMANDS | LXC_COMMANDS)
def test_missing_command_names_its_package(machine: Machine, name: str) -> None:
    machine.absent.add(name)
    found = machine.checks()
    assert "commands" not in found
    check = found[f"command {name}"]
    assert (check.state, check.fix) == ("FAIL", f"apt-get install {(COMMANDS | LXC_COMMANDS)[name]}")


@pytest.mark.parametrize(
    ("release", "name", "fix"),
    [
        ('ID="rocky"\nID_LIKE="rhel centos fedora"\n', "qemu-img", "dnf install qemu-img"),
        ('ID="rocky"\nID_LIKE="rhel centos fedora"\n', "ssh", "dnf install openssh-clients"),
        ('ID="rocky"\nID_LIKE="rhel centos fedora"\n', "rsync", "dnf install rsync"),
        ('ID="rocky"\nID_LIKE="rhel centos fedora"\n', "lxc-start", "EPEL"),
        ("ID=ubuntu\nID_LIKE=debian\n", "vagrant", "developer.hashicorp.com"),
        ("ID=ubuntu\nID_LIKE=debian\n", "rsync", "apt-get install rsync"),
    ],
)
def test_the_fix_fits_the_distribution(machine: Machine, release: str, name: str, fix: str) -> None:
    machine.write("etc/os-release", release)
    machine.absent.add(name)
    assert fix in machine.checks()[f"command {name}"].fix


def test_packer_is_asked_for_where_it_builds_the_image(machine: Machine) -> None:
    machine.provider = "libvirt"
    machine.absent.add("packer")
    assert "command packer" not in machine.checks()
    machine.builder = "packer"
    check = machine.checks()["command packer"]
    assert (check.state, check.fix) == ("FAIL", "apt-get install packer")
    machine.golden = True
    assert "command packer" not in machine.checks()


def test_builder_missing(machine: Machine) -> None:
    (machine.root / "venv/bin/disk-image-create").unlink()
    assert machine.checks()["diskimage-builder"].state == "FAIL"


@pytest.mark.parametrize("half", ["plugins.d/vagrant-lxc.json", "vagrant-lxc-1.4.3.gemspec"])
def test_plugin_missing_or_half_there(machine: Machine, half: str) -> None:
    next(path for path in machine.root.rglob("*") if str(path).endswith(half)).unlink()
    check = machine.checks()["vagrant-lxc"]
    assert (check.state, check.fix) == ("FAIL", "apt-get install vagrant-lxc")
    assert ["vagrant", "plugin", "list"] in machine.asked, "said no without asking Vagrant"


def test_plugin_of_the_user(machine: Machine) -> None:
    (machine.root / "usr/share/vagrant-plugins/plugins.d/vagrant-lxc.json").unlink()
    machine.write("root/.vagrant.d/plugins.json", '{"installed": {"vagrant-lxc": {}}}')
    assert machine.checks()["vagrant-lxc"].state == "FAIL", "listed, but its gem is not there"
    machine.write("root/.vagrant.d/gems/3.1.0/gems/vagrant-lxc-1.4.3/README")
    machine.asked.clear()
    assert machine.checks()["vagrant-lxc"].state == "OK"
    assert ["vagrant", "plugin", "list"] not in machine.asked


def test_plugin_that_only_vagrant_knows(machine: Machine) -> None:
    (machine.root / "usr/share/vagrant-plugins/plugins.d/vagrant-lxc.json").unlink()
    for listed, state in (("vagrant-lxc (1.4.3, global)", "OK"), ("vagrant-lxc-ng (1.0)", "FAIL")):
        machine.changes["run"] = lambda argv, listed=listed: Result(0, listed + "\n")
        assert machine.checks()["vagrant-lxc"].state == state


def test_overlay_refused(machine: Machine) -> None:
    machine.failing["mount -t overlay"] = "mount: wrong fs type\n"
    check = machine.checks()["overlayfs"]
    assert check.state == "FAIL"
    assert "wrong fs type" in check.message
    mount = next(argv for argv in machine.asked if "overlay" in argv)
    assert mount[:4] == ["unshare", "-m", "--propagation", "private"]
    assert not list(machine.root.glob(".stacklab-doctor-*")), "left its trial behind"


def test_overlay_is_tried_where_the_lab_is(machine: Machine) -> None:
    (machine.root / "labs").mkdir()
    machine.checks()
    mount = next(argv for argv in machine.asked if "overlay" in argv)
    assert mount[-1].startswith(f"{machine.root}/labs/.stacklab-doctor-")


@pytest.mark.parametrize(
    ("broken", "told"),
    [
        ("unshare -n ip link show", "network namespace"),
        ("type veth", "no veth"),
        ("type bridge", "no bridge"),
    ],
)
def test_network_refused(machine: Machine, broken: str, told: str) -> None:
    machine.failing[broken] = "Operation not permitted"
    check = machine.checks()["network"]
    assert check.state == "FAIL"
    assert told in check.message
    assert "Operation not permitted" in check.message
    words = [argv for argv in machine.asked if "ip" in argv]
    assert all(argv[:2] == ["unshare", "-n"] for argv in words), "touched the host's own network"


def test_tun_missing(machine: Machine) -> None:
    (machine.root / "dev/net/tun").unlink()
    assert "mknod" in machine.checks()["tun"].fix


@pytest.mark.parametrize(
    ("mounts", "state"),
    [
        (V2, "OK"),
        (V1 + V1_SYSTEMD, "OK"),
        (V1, "FAIL"),
        (V1_SYSTEMD, "FAIL"),
        (V2.replace("rw", "ro"), "FAIL"),
        ((V1 + V1_SYSTEMD).replace("rw", "ro"), "FAIL"),
        ("", "FAIL"),
    ],
)
def test_cgroup(machine: Machine, mounts: str, state: str) -> None:
    machine.write("proc/mounts", mounts)
    assert machine.checks()["cgroup"].state == state


def test_datapath(machine: Machine) -> None:
    assert "user space" in machine.checks()["openvswitch"].message
    machine.absent.discard("modprobe")
    assert "kernel's" in machine.checks()["openvswitch"].message
    machine.failing["modprobe"] = "not found"
    assert "user space" in machine.checks()["openvswitch"].message
    (machine.root / "sys/module/openvswitch").mkdir(parents=True)
    assert "kernel's" in machine.checks()["openvswitch"].message


@pytest.mark.parametrize(
    ("total", "available", "state"), [(16, 10, "OK"), (16, 5.4, "WARN"), (5.4, 5.0, "FAIL"), (16, 5.6, "OK")]
)
def test_memory(machine: Machine, total: float, available: float, state: str) -> None:
    text = f"MemTotal: {int(total * 1024**2)} kB\nMemAvailable: {int(available * 1024**2)} kB\n"
    machine.write("proc/meminfo", text)
    machine.topology = topology(("controller", "network"), ("compute",))
    check = machine.checks()["memory"]
    assert check.state == state
    assert "5.5" in check.message


def test_memory_of_whole_machines(machine: Machine) -> None:
    machine.provider = "libvirt"
    machine.topology = topology(("controller",), ("compute",))
    check = machine.checks()["memory"]
    assert (check.state, "12.0" in check.message) == ("WARN", True)


def test_without_a_topology_memory_is_no_question(machine: Machine) -> None:
    assert "memory" not in machine.checks()


@pytest.mark.parametrize(
    ("free", "golden", "state"),
    [(16.9, False, "FAIL"), (17, False, "OK"), (6.9, True, "FAIL"), (7, True, "OK")],
)
def test_disk_of_one_filesystem_holds_both(machine: Machine, free: float, golden: bool, state: str) -> None:
    machine.golden = golden
    machine.changes["free"] = lambda path: int(free * GIB)
    assert machine.checks()["disk for cache and lab"].state == state


def test_disks_of_two_filesystems(machine: Machine) -> None:
    (machine.root / "cache").mkdir()
    machine.changes["device"] = lambda path: len(path.parts)
    machine.changes["free"] = lambda path: (11 if path.name == "cache" else 6) * GIB
    found = machine.checks()
    assert (found["disk for cache"].state, found["disk for lab"].state) == ("FAIL", "OK")


def test_a_lab_that_goes_on_needs_less(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.provider, machine.golden = "libvirt", True
    machine.topology = topology(("controller",), ("compute",))
    machine.changes["free"] = lambda path: 20 * GIB
    assert machine.checks()["disk for cache and lab"].state == "FAIL"
    (machine.root / "labs/two-node").mkdir(parents=True)
    assert machine.checks()["disk for cache and lab"].state == "FAIL"
    monkeypatch.setattr(files, "disk_usage", lambda path: 20 * GIB)
    assert machine.checks()["disk for cache and lab"].state == "OK"


def test_kvm_states(machine: Machine) -> None:
    assert machine.checks()["kvm"].state == "OK", "no QEMU on the host: nothing to warn of for lxc"
    machine.absent.discard(kvm.QEMU)
    check = machine.checks()["kvm"]
    assert (check.state, "TCG is slower" in check.message) == ("WARN", True)
    machine.changes["kvm"] = lambda: (True, "a guest ran")
    assert machine.checks()["kvm"].state == "OK"


def left_behind(directory: Path) -> list[str]:
    mounts = Path("/proc/self/mounts").read_text().splitlines()
    namespaces = [str(path) for path in Path("/run/netns").glob("*doctor*")]
    return [*namespaces, *(line for line in mounts if str(directory) in line), *map(str, directory.iterdir())]


def test_the_real_machine_is_left_as_it_was(tmp_path: Path) -> None:
    run_checks(Needs("lxc", tmp_path / "lab", tmp_path / "cache"), replace(Host(), kvm=lambda: (False, "")))
    assert left_behind(tmp_path) == []


def fake_qemu(directory: Path, body: str) -> str:
    file = directory / "qemu-fake"
    file.write_text(f"#!/bin/sh\n{body}\n")
    file.chmod(0o755)
    return str(file)


@pytest.mark.parametrize(
    ("body", "works", "why"),
    [
        ("exit 85", True, "a guest ran"),
        ("echo 'failed to set MSR 0xc0000104' >&2; exit 1", False, "failed to set MSR 0xc0000104"),
        ("trap '' TERM; while :; do sleep 0.05; done", False, "did not end within 0.3 s"),
        ("exit 0", False, "exit code 0"),
    ],
)
def test_kvm_probe(tmp_path: Path, body: str, works: bool, why: str) -> None:
    device = tmp_path / "kvm"
    device.touch()
    start = time.monotonic()
    # A busy machine may take long to start even a shell.
    limit = 0.3 if "within" in why else 20.0
    answer = kvm.usable(fake_qemu(tmp_path, body), device, limit=limit)
    assert answer[0] is works
    assert why in answer[1]
    assert time.monotonic() - start < 3, "one that does not heed SIGTERM was waited for"


@pytest.mark.parametrize(
    ("emulated", "works", "why"),
    [
        ("exit 85", False, "s with KVM, 0."),  # a machine that is slower with it than without
        ("sleep 0.4; exit 85", True, "a guest ran"),  # a busy machine
        ("echo 'invalid accelerator tcg' >&2; exit 1", True, "a guest ran"),  # EL's QEMU
    ],
)
def test_kvm_that_is_slower_than_no_kvm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, emulated: str, works: bool, why: str
) -> None:
    device = tmp_path / "kvm"
    device.touch()
    monkeypatch.setattr(kvm, "SLOW", 0.5)
    # More than five times the emulated one, even where that one's shell takes long to start.
    seconds = 0.8 if works else 4
    qemu = fake_qemu(tmp_path, f'case "$*" in *"-accel kvm"*) sleep {seconds}; exit 85;; esac\n{emulated}')
    answer = kvm.usable(qemu, device)
    assert answer[0] is works
    assert why in answer[1]


def test_kvm_probe_without_device_or_qemu(tmp_path: Path) -> None:
    assert kvm.usable(fake_qemu(tmp_path, "exit 85"), tmp_path / "none") == (
        False,
        f"{tmp_path / 'none'} is not there or not ours to open",
    )
    device = tmp_path / "kvm"
    device.touch()
    assert kvm.usable("no-such-qemu", device)[1] == "no-such-qemu is not installed, so it cannot be tried"


def test_kvm_is_tried_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    device, memo = tmp_path / "kvm", tmp_path / "memo.json"
    device.touch()
    tried = []

    def usable(**given: object) -> tuple[bool, str]:
        tried.append(given)
        return True, "a guest ran"

    monkeypatch.setattr(kvm, "usable", usable)
    qemu = fake_qemu(tmp_path, "exit 85")
    monkeypatch.setattr(shutil, "which", lambda name: qemu)
    assert [kvm.known(device, memo) for _ in range(2)] == [(True, "a guest ran")] * 2
    assert len(tried) == 1
    os.utime(qemu, (0, 0))  # another QEMU
    kvm.known(device, memo)
    assert len(tried) == 2
    # Where it cannot be written down, it is tried each time.
    assert kvm.known(device, Path("/proc/none/memo.json")) == (True, "a guest ran")


def test_boot_disk() -> None:
    disk = kvm.boot_disk()
    assert len(disk) == 1474560
    assert disk[510:512] == b"\x55\xaa"


def test_doctor_prints_nothing(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    machine.checks()
    assert capsys.readouterr() == ("", "")
    assert Check("a", "OK", "b").fix == ""
