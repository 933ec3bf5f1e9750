"""The boot test of a golden image: a node of no lab, whose seed has it report and switch itself off.

What runs is what a lab's nodes run: the disk, a layer over it, and a disc labelled STACKLAB
that the image's own stacklab-seed.service lays over the root.
"""

from __future__ import annotations

import io
import tarfile
import tempfile
from pathlib import Path

from stacklab import files, guestboot, ui
from stacklab.errors import LabError
from stacklab.run import run

DATA = Path(__file__).parent / "data" / "golden-boot"
DISK = 12
"""GiB that the layer has, more than the image: the root filesystem is to grow."""
MEMORY = 2048
HOSTNAME = "golden.lab.test"
_MACHINE_ID = "5ca1ab1e000040008000000000000003"
_MAC = "52:54:00:12:34:56"  # QEMU's own for the first interface
_KIBIBYTES = 1440

# Where each file of DATA goes, and its mode.
_PLACES = {
    "report": ("usr/local/lib/stacklab/report", 0o755),
    "report.service": ("etc/systemd/system/report.service", 0o644),
    "eth0.network": ("etc/systemd/network/10-eth0.network", 0o644),
    "eth0.nmconnection": ("etc/NetworkManager/system-connections/eth0.nmconnection", 0o600),
}


def check(disk: Path, kernel: str, log: Path, deadline: float = guestboot.DEADLINE) -> dict[str, str]:
    """Boot a layer over the qcow2 `disk` and return what the node said of itself.

    `kernel` is the version that it has to run. Raises LabError, naming all that is wrong, or when
    there is no report within `deadline` seconds. KVM where it works, else emulated: a minute or two.
    """
    with ui.step(f"booting {disk.parent.name}"):
        report = guestboot.boot(disk, "qcow2", DISK, MEMORY, log, deadline, seed=make_seed)
        found = problems(report, kernel)
        if found:
            text = "\n".join(f"  {problem}" for problem in found)
            raise LabError(f"{disk.parent.name} boots, but:\n{text}", hint=f"its console: {log}")
    return report


def problems(report: dict[str, str], kernel: str) -> list[str]:
    """All that is wrong with a node that reported."""
    found = [] if report.get("kernel") == kernel else [f"it runs {report.get('kernel')}, not {kernel}"]
    found += [f"{name} does not answer" for name in ("chrony", "ssh") if report.get(name) != "up"]
    # A filesystem shows less than its partition has.
    if int(report.get("root-mib") or 0) < DISK * 1024 * 0.85:
        found.append(f"the root filesystem did not grow: {report.get('root-mib')} MiB of {DISK} GiB")
    if not report.get("address"):
        found.append("no address by DHCP")
    if report.get("hostname") != HOSTNAME:
        found.append(f"its name is {report.get('hostname')}: the seed was not laid before the rest started")
    if report.get("machine-id") != _MACHINE_ID:
        found.append("its machine-id is not the seed's")
    if report.get("failed"):
        found.append(f"units have failed: {report['failed']}")
    return found


def make_seed(path: Path) -> None:
    """A disc labelled STACKLAB as labs make them; FAT, so that nothing has to be mounted for it."""
    run(["mkfs.fat", "-n", "STACKLAB", "-C", path, str(_KIBIBYTES)])
    with tempfile.TemporaryDirectory(prefix=".seed-", dir=path.parent) as place:
        disc = Path(place)
        run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "boot test", "-f", disc / "key"])
        content = {target: ((DATA / name).read_bytes(), mode) for name, (target, mode) in _PLACES.items()}
        content["root/.ssh/id_ed25519"] = ((disc / "key").read_bytes(), 0o600)
        content["root/.ssh/authorized_keys"] = ((disc / "key.pub").read_bytes(), 0o600)
        content["etc/hostname"] = (f"{HOSTNAME}\n".encode(), 0o644)
        content["etc/machine-id"] = (f"{_MACHINE_ID}\n".encode(), 0o444)
        _archive(disc / "seed.tar", content)
        files.write(disc / "nics", f"{_MAC} eth0\n")
        files.write(disc / "id", "boot test\n")
        run(["mcopy", "-i", path, *(disc / name for name in ("id", "nics", "seed.tar")), "::"])


def _archive(path: Path, content: dict[str, tuple[bytes, int]]) -> None:
    with tarfile.open(path, "w") as archive:
        for name, (data, mode) in content.items():
            member = tarfile.TarInfo(f"./{name}")
            member.size, member.mode = len(data), mode
            archive.addfile(member, io.BytesIO(data))
        link = tarfile.TarInfo("./etc/systemd/system/multi-user.target.wants/report.service")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/systemd/system/report.service"
        archive.addfile(link)
