"""The doctor's checks for virtual machines, each both ways, and what --fix does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from ipaddress import IPv4Network
from pathlib import Path

import pytest

from stacklab import doctor, doctor_machines, topology
from stacklab.doctor_machines import allowed_networks, level
from stacklab.examination import Check, Do, Host, Needs
from stacklab.files import PROJECT
from stacklab.run import Result

GIB = 1024**3
V2 = "flags\t\t: fpu cx16 lahf_lm popcnt sse4_1 sse4_2 ssse3\n"
V3 = V2.rstrip() + " avx avx2 bmi1 bmi2 f16c fma abm movbe xsave\n"


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    """A machine where all is well."""
    monkeypatch.delenv("VAGRANT_HOME", raising=False)
    for path, text in {
        "etc/os-release": 'ID=debian\nVERSION_ID="12"\n',
        "proc/cpuinfo": V3,
        "proc/meminfo": "MemTotal: 33554432 kB\nMemAvailable: 33554432 kB\n",
        "sys/module/kvm_intel/parameters/nested": "Y\n",
        "etc/vbox/networks.conf": "# ours\n* 10.0.0.0/8 203.0.113.0/24\n* fc00::/7\n",
        "venv/bin/disk-image-create": "",
        **{
            f"usr/share/{name}": "{}"
            for plugin in ("vagrant-libvirt", "vagrant-vmware-desktop")
            for name in (
                f"vagrant-plugins/plugins.d/{plugin}.json",
                f"rubygems-integration/all/specifications/{plugin}-1.0.gemspec",
            )
        },
    }.items():
        file = tmp_path / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    (tmp_path / "venv/bin/disk-image-create").chmod(0o755)
    return Host(
        root=tmp_path,
        home=tmp_path / "root",
        tools=tmp_path / "venv/bin",
        euid=lambda: 0,
        which=lambda name: f"/usr/bin/{name}",
        run=lambda argv, *more: Result(0, ""),
        free=lambda path: 200 * GIB,
        kvm=lambda: (True, "a guest ran"),
        reaches=lambda url: True,
        routes=list,
    )


def needs(provider: str, tmp_path: Path, **more: object) -> Needs:
    two = topology.load("two-node", PROJECT / "topologies")
    made = Needs(provider, tmp_path / "lab", tmp_path / "cache", two, golden=True, isolated=False)
    return replace(made, **more)  # type: ignore[arg-type]


def checks(wanted: Needs, host: Host) -> dict[str, Check]:
    found = doctor.run_checks(wanted, host)
    assert all(check.fix for check in found if check.state != "OK"), "a finding without what to type"
    assert all(not check.fix for check in found if check.state == "OK")
    return {check.name: check for check in found}


@pytest.mark.parametrize("provider", ["libvirt", "virtualbox", "vmware_desktop"])
def test_a_good_machine(provider: str, host: Host, tmp_path: Path) -> None:
    found = checks(needs(provider, tmp_path, level=2, mirrors=("http://192.0.2.1/",)), host)
    assert {check.state for check in found.values()} == {"OK"}
    assert {"commands", "processor", "addresses", "mirrors", "memory", "kvm"} <= found.keys()
    assert ("libvirtd" in found, "host-only networks" in found) == (
        provider == "libvirt",
        provider == "virtualbox",
    )


@pytest.mark.parametrize(
    ("provider", "name", "debian", "rocky"),
    [
        ("libvirt", "virsh", "apt-get install libvirt-clients", "dnf install libvirt-client"),
        ("libvirt", "libvirtd", "apt-get install libvirt-daemon-system", "dnf install libvirt-daemon"),
        ("libvirt", "xorriso", "apt-get install xorriso", "dnf install xorriso"),
        ("virtualbox", "VBoxManage", "virtualbox.org", "virtualbox.org"),
        ("vmware_desktop", "vmrun", "VMware Workstation", "VMware Workstation"),
    ],
)
def test_what_to_install(
    provider: str, name: str, debian: str, rocky: str, host: Host, tmp_path: Path
) -> None:
    host = replace(host, which=lambda asked: None if asked == name else f"/usr/bin/{asked}")
    check = checks(needs(provider, tmp_path), host)[f"command {name}"]
    assert check.state == "FAIL" and debian in check.fix
    (tmp_path / "etc/os-release").write_text('ID="rocky"\nID_LIKE="rhel centos fedora"\n')
    assert rocky in checks(needs(provider, tmp_path), host)[f"command {name}"].fix


@pytest.mark.parametrize(
    ("provider", "plugin"), [("libvirt", "vagrant-libvirt"), ("vmware_desktop", "vagrant-vmware-desktop")]
)
def test_plugins(provider: str, plugin: str, host: Host, tmp_path: Path) -> None:
    (tmp_path / f"usr/share/vagrant-plugins/plugins.d/{plugin}.json").unlink()
    check = checks(needs(provider, tmp_path), host)[plugin]
    assert check.state == "FAIL" and plugin in check.fix


def test_processor_levels(host: Host, tmp_path: Path) -> None:
    assert [level("el", version) for version in ("7", "8-stream", "9", "9-stream", "10")] == [1, 1, 2, 2, 3]
    assert level("debian", "bookworm") == 1
    assert checks(needs("libvirt", tmp_path, level=3), host)["processor"].state == "OK"
    (tmp_path / "proc/cpuinfo").write_text(V2)
    assert checks(needs("libvirt", tmp_path, level=2), host)["processor"].state == "OK"
    check = checks(needs("libvirt", tmp_path, level=3), host)["processor"]
    assert check.state == "FAIL" and "avx2" in check.message and "cx16" not in check.message
    (tmp_path / "proc/cpuinfo").write_text("flags : fpu sse4_1\nflags : fpu\n")
    check = checks(needs("libvirt", tmp_path, level=2), host)["processor"]
    assert check.state == "FAIL" and "popcnt" in check.message and "sse4_1" not in check.message


def test_nested(host: Host, tmp_path: Path) -> None:
    parameter = tmp_path / "sys/module/kvm_intel/parameters/nested"
    parameter.write_text("N\n")
    check = checks(needs("libvirt", tmp_path), host)["nested"]
    assert check.state == "WARN" and "modprobe -r kvm_intel" in check.fix
    parameter.unlink()
    assert checks(needs("libvirt", tmp_path), host)["nested"].state == "OK"


def test_libvirtd_of_the_host_and_of_the_lab(host: Host, tmp_path: Path) -> None:
    def run(argv: Sequence[str], *more: object) -> Result:
        silent = argv[0] in ("virsh", "id")
        return Result(1 if silent else 0, "error: failed to connect" if silent else "")

    host = replace(host, run=run)
    check = checks(needs("libvirt", tmp_path), host)["libvirtd"]
    assert (check.state, check.fix) == ("FAIL", "systemctl enable --now libvirtd")
    assert check.message == "error: failed to connect"
    check = checks(needs("libvirt", tmp_path, isolated=True), host)["libvirtd"]
    assert check.state == "FAIL" and "libvirt-daemon-system" in check.fix


@pytest.mark.parametrize(
    ("conf", "allowed"),
    [
        ("", ["192.168.56.0/21"]),
        ("* 10.0.0.0/24\n", ["10.0.0.0/24"]),
        ("#* 10.0.0.0/8\n", ["192.168.56.0/21"]),
        ("* 0.0.0.0/0 ::/0\n", ["0.0.0.0/0"]),
        ("  * 10.0.0.0/8\n* 203.0.113.1/24\n", ["10.0.0.0/8", "203.0.113.0/24"]),
    ],
)
def test_networks_conf(conf: str, allowed: list[str]) -> None:
    assert [str(network) for network in allowed_networks(conf)] == allowed


def test_host_only_networks(host: Host, tmp_path: Path) -> None:
    conf = tmp_path / "etc/vbox/networks.conf"
    conf.write_text("* 10.0.0.0/16\n")
    check = checks(needs("virtualbox", tmp_path), host)["host-only networks"]
    assert check.state == "FAIL" and "10.0.0.0" not in check.message
    assert check.do[-1] == Do(("tee", "-a", "/etc/vbox/networks.conf"), "* 203.0.113.0/24\n")
    conf.unlink()
    check = checks(needs("virtualbox", tmp_path), host)["host-only networks"]
    assert "echo '* 10.0.0.0/24 203.0.113.0/24' >> /etc/vbox/networks.conf" in check.fix


def test_addresses(host: Host, tmp_path: Path) -> None:
    host = replace(host, routes=lambda: [IPv4Network("10.0.0.0/8"), IPv4Network("192.168.1.0/24")])
    check = checks(needs("libvirt", tmp_path), host)["addresses"]
    assert check.state == "FAIL" and "management 10.0.0.0/24 is also the host's 10.0.0.0/8" in check.message
    assert "192.168" not in check.message and "--own-network" in check.fix
    assert "--own-network" not in checks(needs("virtualbox", tmp_path), host)["addresses"].fix
    assert checks(needs("libvirt", tmp_path, isolated=True), host)["addresses"].state == "OK"
    # Those are the lab's own by then.
    assert checks(needs("libvirt", tmp_path, exists=True), host)["addresses"].state == "OK"


def test_the_fix_names_the_network_that_collides(host: Host, tmp_path: Path) -> None:
    host = replace(host, routes=lambda: [IPv4Network("203.0.113.0/25"), IPv4Network("10.0.1.0/24")])
    check = checks(needs("virtualbox", tmp_path), host)["addresses"]
    # Virtual machines have no network for tunnels.
    assert check.message == "provider 203.0.113.0/24 is also the host's 203.0.113.0/25"
    assert "networks.provider.cidr" in check.fix and "management" not in check.fix
    host = replace(host, routes=lambda: [IPv4Network(one) for one in ("203.0.113.0/25", "10.0.0.0/8")])
    check = checks(needs("libvirt", tmp_path), host)["addresses"]
    assert "(networks.management.cidr, networks.provider.cidr)" in check.fix
    # It would only take EL's nodes their way out.
    assert "--own-network" in check.fix
    check = checks(needs("libvirt", tmp_path, family="el"), host)["addresses"]
    assert check.state == "FAIL" and "--own-network" not in check.fix


def test_the_way_out_of_el(host: Host, tmp_path: Path) -> None:
    def check(provider: str, topology_name: str = "two-node", **more: object) -> Check:
        shape = topology.load(topology_name, PROJECT / "topologies")
        return checks(needs(provider, tmp_path, topology=shape, family="el", **more), host)["way out"]

    for provider in ("libvirt", "virtualbox", "vmware_desktop"):
        assert "way out" not in checks(needs(provider, tmp_path), host)
    assert (check("libvirt").state, check("libvirt").message) == ("OK", "through the host, NAT")
    for provider in ("virtualbox", "vmware_desktop"):
        found = check(provider)
        assert found.state == "FAIL" and "no way out" in found.message
        assert found.fix == "give networks.management in the topology a gateway and dns that lead out"
        found = check(provider, "vmware-notes")
        assert (found.state, found.message) == ("OK", "10.0.0.2, names by 10.0.0.2")
    found = check("libvirt", "vmware-notes", isolated=True)
    assert found.state == "FAIL" and found.message == (
        "EL nodes fetch OpenStack's packages from repositories; a namespace of the lab's own has no way out"
    )
    assert "--own-network" in found.fix and "libvirtd" in found.fix
    host = replace(host, routes=lambda: [IPv4Network("10.0.0.0/16")])
    found = check("libvirt", isolated=True)
    assert found.fix == (
        "take networks that are free on this host (networks.management.cidr in the topology)"
    )


def test_what_answers_for_names(host: Host, tmp_path: Path) -> None:
    host = replace(host, which=lambda name: None if name == "dnsmasq" else f"/usr/bin/{name}")
    found = checks(needs("libvirt", tmp_path, family="el"), host)["command dnsmasq"]
    assert found.state == "FAIL" and found.fix == "apt-get install dnsmasq-base"
    assert "command dnsmasq" not in checks(needs("libvirt", tmp_path), host)


def test_mirrors_and_kvm(host: Host, tmp_path: Path) -> None:
    host = replace(host, reaches=lambda url: "two" in url, kvm=lambda: (False, "no /dev/kvm"))
    wanted = needs("libvirt", tmp_path, mirrors=("http://one/", "http://two/"))
    found = checks(wanted, host)
    assert found["mirrors"].state == "FAIL" and "http://one/" in found["mirrors"].message
    assert found["kvm"].state == "WARN" and "ten times as slow" in found["kvm"].message
    assert checks(needs("virtualbox", tmp_path), host)["kvm"].state == "OK"


def test_memory_and_disk_follow_the_nodes(host: Host, tmp_path: Path) -> None:
    found = checks(needs("libvirt", tmp_path), replace(host, free=lambda path: 20 * GIB))
    # Two nodes of 6 GiB and half of 12 GiB of memory three times, beside 2 GiB in the cache.
    assert "32 needed" in found["disk for cache and lab"].message
    assert found["disk for cache and lab"].state == "FAIL"
    (tmp_path / "proc/meminfo").write_text("MemTotal: 8388608 kB\nMemAvailable: 8388608 kB\n")
    assert checks(needs("libvirt", tmp_path), host)["memory"].state == "FAIL"


def test_fix_does_what_is_safe_once(host: Host, tmp_path: Path) -> None:
    ran: list[tuple[tuple[str, ...], str]] = []

    def run(argv: Sequence[str], stdin: str = "", timeout: float = 0) -> Result:
        ran.append((tuple(argv), stdin))
        return Result(100, "E: Unable to locate package xorriso\n") if "xorriso" in argv else Result(0, "")

    (tmp_path / "etc/vbox/networks.conf").unlink()

    def lacking(name: str) -> str | None:
        return None if name in ("xorriso", "nsenter", "unshare", "VBoxManage") else f"/usr/bin/{name}"

    found = doctor.run_checks(needs("virtualbox", tmp_path), replace(host, which=lacking))
    told = doctor.repair(found, replace(host, run=run))
    install = ("env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "install", "-q", "-y")
    assert ran == [
        ((*install, "util-linux"), ""),  # once, for both of its commands
        ((*install, "xorriso"), ""),
        (("mkdir", "-p", "/etc/vbox"), ""),
        (("tee", "-a", "/etc/vbox/networks.conf"), "* 10.0.0.0/24 203.0.113.0/24\n"),
    ]
    assert [how for _, how in told] == ["done", "E: Unable to locate package xorriso", "done", "done"]
    assert doctor.repair([Check("a", "OK", "b", do=(Do(("false",)),))], replace(host, run=run)) == []
    assert set(doctor_machines.COMMANDS) == {"libvirt", "virtualbox", "vmware_desktop"}
