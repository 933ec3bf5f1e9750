"""scripts/provision in a chroot over the golden lxc image: its hooks, its packages, what it leaves.

The real package manager and the real mirror take part. There is no machine: systemd is told that it is
offline, and `uname` names the newest kernel, as after the boot that Packer would have done.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from stacklab import base, contract, files, goldendib, hooks, packer, releases
from tests.integration import needs

pytestmark = pytest.mark.integration

# What of the image counts as not yet there: a wheel, a package that it lacks, files, units.
FRESH = {"growroot", "packstack", "stacklab-seed", "vm-node"}
FAKES = {
    "uname": """#!/bin/sh
[ "$1" = -r ] || exec /usr/bin/uname "$@"
ls /boot | sed -n s/^vmlinuz-//p | sort -V | tail -n 1
""",
    # the host's filesystems are none of its business
    "fstrim": "#!/bin/sh\n",
}


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The golden image's root filesystem, with a layer for what is written, after the provisioning."""
    needs.root("mounting")
    golden = base.build(base.spec("debian-12", "lxc"))
    place = tmp_path_factory.mktemp("provision")
    for name in ("upper", "work", "root"):
        (place / name).mkdir()
    root = place / "root"
    layers = f"lowerdir={golden.rootfs},upperdir={place / 'upper'},workdir={place / 'work'}"
    subprocess.run(["mount", "-t", "overlay", "overlay", "-o", layers, root], check=True)
    try:
        before(root, place)
        for script in ("install", "reboot", "finish"):
            provision(root, script)
        yield root
    finally:
        subprocess.run(["umount", root], check=True)


def before(root: Path, place: Path) -> None:
    """What Packer and the seed would have brought in."""
    spec = base.spec("debian-12", "libvirt", builder="packer")
    environment = {
        **goldendib.fixed_environment(spec),
        "STACKLAB_PACKSTACK_WHEEL": str(goldendib.wheel(releases.release(spec.release), place / "log")),
    }
    have = set(hooks.elements(spec.elements)) - FRESH
    system = ("bookworm", "debian", "debian")
    archive = hooks.archive(spec.elements, environment, system, place / "hooks", place / "log", have)
    shutil.copyfile(archive, root / "tmp/hooks.tar")
    for name in ("proc", "sys", "dev", "run"):
        (root / name).mkdir(exist_ok=True)
    for name, text in FAKES.items():
        files.write(root / "usr/local/fakes" / name, text, 0o755)
    files.write(root / "root/.ssh/authorized_keys", "ssh-ed25519 AAAA build\n")
    files.write(root / "etc/systemd/network/05-build.network", "[Match]\nType=ether\n")
    files.write(root / "var/lib/stacklab/files", "etc/systemd/network/05-build.network\n")
    files.write(root / "var/lib/stacklab/id", "id\n")
    files.write(root / "etc/machine-id", "0" * 32 + "\n")
    files.write(root / "etc/ssh/ssh_host_ed25519_key", "a key\n")


def provision(root: Path, script: str) -> None:
    shutil.copyfile(packer.PROVISION / script, root / "tmp" / script)
    environment = {
        **goldendib.fixed_environment(base.spec("debian-12", "libvirt", builder="packer")),
        **packer._network("bookworm"),
        "DIB_INIT_SYSTEM": "systemd",
        "DIB_MANIFEST_IMAGE_DIR": "/etc/dib-manifests",
        "DISTRO_NAME": "debian",
        "STACKLAB_HOSTS": "192.0.2.1 mirror.example|192.0.2.2 proxy.example",
        "SYSTEMD_OFFLINE": "1",
        "PATH": "/usr/local/fakes:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    }
    inside = (
        f"mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev; bash /tmp/{script}"
    )
    words = [f"{name}={value}" for name, value in environment.items()]
    result = subprocess.run(
        ["unshare", "--mount", "chroot", root, "env", *words, "sh", "-c", inside],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=900,
    )
    assert result.returncode == 0, result.stdout[-3000:]
    (root / "tmp" / script).unlink()


def test_it_keeps_the_contract(machine: Path) -> None:
    problems = [*contract.kernel(machine), *contract.identity(machine), *contract.secrets(machine)]
    assert problems == []
    packages = (machine / "etc/dib-manifests/packages.txt").read_text()
    # of the elements that were new to it
    for name in ("cloud-utils", "grub-pc-bin", "qemu-guest-agent"):
        assert f"\n{name} " in packages, name
    assert (machine / "usr/bin/packstack").is_file()


def test_the_units_are_as_the_presets_want_them(machine: Path) -> None:
    for unit in ("growroot.service", "ssh.service", "chrony.service", "stacklab-seed.service"):
        assert contract.is_enabled(machine, unit), unit
    for unit in ("mariadb.service", "rabbitmq-server.service", "qemu-guest-agent.service"):
        assert not contract.is_enabled(machine, unit), unit


def test_nothing_of_the_build_is_left(machine: Path) -> None:
    for name in (
        *("root/.ssh", "var/lib/stacklab", "etc/systemd/network/05-build.network", "usr/sbin/policy-rc.d"),
        *("tmp/hooks.tar", "tmp/in_target.d", "var/lib/systemd/random-seed"),
    ):
        assert not (machine / name).exists(), name
    assert "example" not in (machine / "etc/hosts").read_text()
    assert list((machine / "var/lib/apt/lists").iterdir()) == []
    logs = [path for path in (machine / "var/log").rglob("*") if path.is_file() and not path.is_symlink()]
    assert logs and not [path for path in logs if path.stat().st_size]
    # the image's own sources are as they were
    lists = sorted((machine / "etc/apt/sources.list.d").iterdir())
    golden = base.wanted(base.spec("debian-12", "lxc")).rootfs / "etc/apt/sources.list.d"
    assert [path.name for path in lists] == sorted(path.name for path in golden.iterdir())


def test_the_root_filesystem_is_found_by_its_label(machine: Path) -> None:
    assert (machine / "etc/fstab").read_text() == "LABEL=stacklab-root / ext4 defaults 0 1\n"
    kernel = contract.kernels(machine)[-1]
    assert f"/boot/vmlinuz-{kernel} root=LABEL=stacklab-root" in (machine / "boot/grub/grub.cfg").read_text()
