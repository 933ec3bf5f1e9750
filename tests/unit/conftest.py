"""What several unit tests share: labs in a directory of the test's own, and an image without a fault."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from stacklab import choice, files, namespace, plan, redact, topology
from stacklab.plan import Plan

# What the tests' machine has must not matter: no KVM, no libvirt, no VirtualBox, no routes.
BARE = choice.Machine(
    kvm=lambda: (False, "there is none"),
    which=lambda _: None,
    answers=lambda _: False,
    routes=list,
    root=Path("/nonexistent"),
)


@pytest.fixture(autouse=True)
def bare_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """`auto` chooses on a machine that has nothing."""
    monkeypatch.setattr(choice, "Machine", lambda: BARE)


@pytest.fixture
def labs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where labs live for the test; nothing is secret yet, and no namespace has an owner."""
    place = tmp_path / "labs"
    monkeypatch.setattr(namespace, "_OWNERS", tmp_path / "owners")
    monkeypatch.setattr(files, "labs_dir", lambda: place)
    monkeypatch.setattr(redact, "_secrets", set())
    return place


@pytest.fixture
def make_plan(labs: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Plan]:
    """Plans of the shipped topologies, with the kernel that a test wants."""

    def make(name: str = "two-node", datapath: str = "netdev", lab: str = "") -> Plan:
        monkeypatch.setattr(plan, "kernel_datapath", lambda: datapath == "system")
        return plan.resolve(topology.load(name, files.PROJECT / "topologies"), lab=lab)

    return make


@pytest.fixture
def two_node(make_plan: Callable[..., Plan]) -> Plan:
    """The shipped two-node lab on a kernel without Open vSwitch."""
    return make_plan()


@pytest.fixture
def make_rootfs() -> Callable[[Path], Path]:
    """Writes the least root filesystem that keeps the golden image contract for lxc."""
    return _rootfs


def _rootfs(root: Path) -> Path:
    kernel = "6.1.0-56-amd64"
    system = "etc/systemd/system"
    for name, text in {
        f"boot/vmlinuz-{kernel}": "kernel",
        f"boot/initrd.img-{kernel}": "initramfs",
        f"lib/modules/{kernel}/modules.dep": "modules",
        "usr/bin/packstack": "#!/usr/bin/python3\n",
        "usr/share/openstack-puppet/modules/packstack/init.pp": "",
        "etc/machine-id": "uninitialized\n",
        "etc/ssh/sshd_config": "",
        "etc/shadow": "root:*:20778:0:99999:7:::\nnobody:!:20778:0:99999:7:::\n",
        "etc/fstab": "\n",
        "etc/apt/apt.conf.d/95disable-recommends": 'APT::Install-Recommends "0";\n',
        "etc/dib-manifests/packages.txt": "acl 2.3.1-3 amd64\n",
        f"{system}/multi-user.target.wants/chrony.service": "",
        f"{system}/multi-user.target.wants/ssh.service": "",
        f"{system}/chrony.service.d/10-container.conf": (
            "[Unit]\nConditionCapability=\n\n[Service]\nExecStart=\nExecStart=!/usr/sbin/chronyd -x -F 1\n"
        ),
    }.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (root / "root/.ssh").mkdir(parents=True)
    (root / system / "systemd-udev-trigger.service").symlink_to("/dev/null")
    return root
