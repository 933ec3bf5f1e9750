"""The boot test of a guest image: started by QEMU with a NoCloud seed, it reports and powers off."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable
from pathlib import Path

from stacklab import dib, kvm, ui, variants
from stacklab.errors import LabError
from stacklab.run import run

DEADLINE = 900.0
"""Seconds that a boot may take; emulated on a busy machine one takes 100."""

SEED = dib.DATA / "seed"
_LINE = re.compile(r"STACKLAB-BOOT ([\w-]+)=?(\S*)")
_KIBIBYTES = 1440  # of the seed


def boot(
    image: Path,
    disk_format: str,
    disk: int,
    memory: int,
    log: Path,
    deadline: float = DEADLINE,
    seed: Callable[[Path], None] | None = None,
) -> dict[str, str]:
    """Boot a copy-on-write layer over `image` and return what the guest said of itself.

    `disk` in GiB is what the layer grows to, `memory` in MiB; `seed` makes the disc that has it
    report, in place of a guest's. KVM where it works, else emulated.
    The answer has kernel, root-mib, address, chrony, ssh, agent (up or down), host-keys, apt-sources, source.
    Raises LabError when there is no report within `deadline` seconds.
    """
    with tempfile.TemporaryDirectory(prefix=".booting-", dir=image.parent) as place:
        layer, disc = Path(place) / "layer.qcow2", Path(place) / "seed.img"
        # A relative path would be taken from the layer's place.
        back = ("-b", image.resolve(), "-F", variants.qemu_name(disk_format))
        run(["qemu-img", "create", "-q", "-f", "qcow2", *back, layer, f"{disk}G"])
        (seed or make_seed)(disc)
        result = run(
            argv(layer, disc, memory, kvm.usable()[0]),
            log=log,
            timeout=deadline,
            check=False,
            each_line=_progress,
            hint=f"the console is in {log}",
        )
    report: dict[str, str] = dict(_LINE.findall(result.output))
    if "done" not in report:
        tail = "".join(f"\n    {line.rstrip()}" for line in result.output.splitlines()[-10:])
        raise LabError(f"{image.name} ended before it reported{tail}", hint=f"the console is in {log}")
    return report


def problems(report: dict[str, str], disk: int, kernel: str) -> list[str]:
    """What is wrong with a guest of our own elements that reported.

    `disk` in GiB is what it had, `kernel` the version that it should run.
    """
    found = [] if report.get("kernel") == kernel else [f"it runs {report.get('kernel')}, not {kernel}"]
    found += [f"{name} is not running" for name in ("chrony", "ssh", "agent") if report.get(name) != "up"]
    # A filesystem shows less than its partition has.
    if int(report.get("root-mib") or 0) < disk * 1024 * 0.85:
        found.append(f"the root filesystem did not grow: {report.get('root-mib')} MiB of {disk} GiB")
    if not report.get("address"):
        found.append("no address by DHCP")
    if not int(report.get("host-keys") or 0):
        found.append("no host keys were made")
    return found


def argv(disk: Path, seed: Path, memory: int, kvm_works: bool) -> list[str]:
    """The command that runs the guest until it powers off, its console on standard output."""
    return [
        *("qemu-system-x86_64", "-machine", "q35", "-smp", "1", "-m", str(max(memory, 1024))),
        *(("-accel", "kvm", "-cpu", "host") if kvm_works else ("-accel", "tcg", "-cpu", "max")),
        *("-display", "none", "-serial", "stdio", "-monitor", "none", "-no-reboot"),
        # `restrict`: the guest gets an address and reaches nothing.
        *("-nic", "user,model=virtio-net-pci,restrict=on"),
        *("-drive", f"file={disk},format=qcow2,if=virtio"),
        *("-drive", f"file={seed},format=raw,if=virtio,readonly=on"),
        *("-device", "virtio-rng-pci", "-device", "virtio-serial-pci", "-chardev", "null,id=agent"),
        *("-device", "virtserialport,chardev=agent,name=org.qemu.guest_agent.0"),
    ]


def make_seed(path: Path) -> None:
    """A NoCloud seed, a FAT filesystem labelled CIDATA; nothing is mounted for it."""
    run(["mkfs.fat", "-n", "CIDATA", "-C", path, str(_KIBIBYTES)])
    run(["mcopy", "-i", path, *sorted(SEED.iterdir()), "::"])


def _progress(line: str) -> None:
    if found := _LINE.search(line):
        ui.detail(f"the guest says {found[0]}")
