"""Whether KVM really runs a guest here, which the existence of /dev/kvm does not tell.

On nested hosts the device can be there and openable while QEMU spins for ever or dies
setting an MSR, or where each exit of the guest takes so long that its kernel never gets up
(a boot sector then takes 3.5 s; emulated, 0.1 s). So a guest is run, and timed against the
same one emulated: SeaBIOS and a boot sector that ends QEMU through its isa-debug-exit device,
with the processor that a lab's nodes would get.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from stacklab import files
from stacklab.errors import CommandFailed
from stacklab.run import run

QEMU = "qemu-system-x86_64"
LIMIT = 6.0
"""Seconds that the guest gets; it needs well under one."""
SLOW = 2.0
"""Seconds from which on KVM has to stand the comparison: no more than `TIMES` as long as emulated."""
TIMES = 5

# mov al, 0x2a; mov dx, 0x00f4 (16 bit: two bytes); out dx, al; hlt; jmp back to hlt
_CODE = bytes([0xB0, 0x2A, 0xBA, 0xF4, 0x00, 0xEE, 0xF4, 0xEB, 0xFD])
_FLOPPY = 1474560
MEMO = Path("/run/stacklab-kvm.json")
"""What was found, until the machine is started again."""
_GUEST_RAN = (0x2A << 1) | 1
"""isa-debug-exit ends QEMU with (value << 1) | 1."""


def boot_disk() -> bytes:
    """A raw disk of 1.44 MB whose boot sector ends QEMU with exit code 85."""
    sector = _CODE.ljust(510, b"\0") + b"\x55\xaa"
    return sector.ljust(_FLOPPY, b"\0")


def argv(disk: Path, accelerator: str, cpu: str, qemu: str = QEMU, limit: float = LIMIT) -> list[str]:
    """The command that runs `disk` and is killed after `limit` seconds."""
    # A QEMU that spins inside KVM does not heed SIGTERM.
    command = ["timeout", "-s", "KILL", f"{limit:g}", qemu]
    command += ["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]
    command += ["-machine", "q35", "-accel", accelerator, "-cpu", cpu, "-smp", "2", "-m", "64"]
    command += ["-device", "isa-debug-exit,iobase=0xf4,iosize=0x04"]
    command += ["-drive", f"file={disk},format=raw,if=none,id=disk,readonly=on"]
    return [*command, "-device", "virtio-blk-pci,drive=disk,bootindex=0"]


def try_guest(accelerator: str, cpu: str, qemu: str = QEMU, limit: float = LIMIT) -> tuple[bool, str]:
    """Run the boot sector with this accelerator: whether it ran, and if not, why."""
    with tempfile.TemporaryDirectory(prefix="stacklab-kvm-") as directory:
        disk = Path(directory) / "boot.img"
        disk.write_bytes(boot_disk())
        try:
            result = run(argv(disk, accelerator, cpu, qemu, limit), timeout=limit + 4, check=False)
        except CommandFailed:
            return False, f"the guest did not end within {limit:g} s"
    if result.code == _GUEST_RAN:
        return True, "a guest ran"
    if result.code in (137, -9):
        return False, f"the guest did not end within {limit:g} s"
    last = (result.output.strip().splitlines() or [""])[-1]
    return False, last or f"QEMU ended with exit code {result.code}"


def usable(qemu: str = QEMU, device: Path = Path("/dev/kvm"), limit: float = LIMIT) -> tuple[bool, str]:
    """Whether KVM runs a guest here, and why not. Takes up to `limit` + 4 seconds."""
    if not os.access(device, os.R_OK | os.W_OK):
        return False, f"{device} is not there or not ours to open"
    if shutil.which(qemu) is None:
        return False, f"{qemu} is not installed, so it cannot be tried"
    start = time.monotonic()
    works, why = try_guest("kvm", "host", qemu, limit)
    seconds = time.monotonic() - start
    if works and seconds > SLOW:
        start = time.monotonic()
        emulates, _ = try_guest("tcg", "max", qemu, limit)
        emulated = time.monotonic() - start
        if emulates and seconds > TIMES * emulated:
            return False, f"a guest took {seconds:.1f} s with KVM, {emulated:.1f} s without"
    return works, why


def known(device: Path = Path("/dev/kvm"), memo: Path = MEMO) -> tuple[bool, str]:
    """`usable`, tried once after each boot of this machine and each change of QEMU."""
    qemu = shutil.which(QEMU)
    key = files.digest(qemu, Path(qemu).stat().st_mtime if qemu else 0, os.access(device, os.R_OK | os.W_OK))
    found = files.read_json(memo)
    if found and found["key"] == key:
        return bool(found["works"]), str(found["why"])
    works, why = usable(device=device)
    # Who may not write there has it tried anew each time.
    with suppress(OSError):
        files.write_json(memo, {"key": key, "works": works, "why": why})
    return works, why
