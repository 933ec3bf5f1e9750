"""The probe guest is built, twice the same, and boots under QEMU without KVM."""

from __future__ import annotations

import hashlib
import os
import selectors
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from stacklab import base, guests
from tests.integration import needs

pytestmark = pytest.mark.integration

BOOT_SECONDS = 180


@pytest.fixture(scope="module")
def rootfs() -> Path:
    """The golden image's; it is built here if it is not in the cache, and the lab tests use it after."""
    return base.build(base.spec("debian-12", "lxc")).rootfs


@pytest.fixture(scope="module")
def image(rootfs: Path, tmp_path_factory: pytest.TempPathFactory) -> guests.GuestImage:
    place = tmp_path_factory.mktemp("probe")
    return guests.build_probe(rootfs, place / "cache", place / "build.log", inputs="test")


def test_same_inputs_same_bytes(rootfs: Path, image: guests.GuestImage, tmp_path: Path) -> None:
    time.sleep(2.1)  # FAT counts time in steps of 2 s
    again = tmp_path / "again.qcow2"
    subprocess.run([guests.SCRIPTS / "build-probe-guest.sh", rootfs, again], check=True, timeout=120)
    assert hashlib.sha512(again.read_bytes()).hexdigest() == image.sha512
    assert list(tmp_path.iterdir()) == [again]
    assert 5 << 20 < image.size < 20 << 20


def test_half_a_tree_is_refused(tmp_path: Path) -> None:
    (tmp_path / "boot").mkdir()
    script = guests.SCRIPTS / "build-probe-guest.sh"
    done = subprocess.run(
        [script, tmp_path, tmp_path / "out.qcow2"], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1
    assert "holds no kernel" in done.stderr or "has no busybox" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["boot"]


class Guest:
    """A running guest: its console, its power button, its port 80 on 127.0.0.1."""

    def __init__(self, image: Path, place: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        answer = place / "metadata"
        answer.write_text(METADATA)
        answer.chmod(0o755)
        # `restrict`: the guest reaches nothing but this host's QEMU.
        network = (
            "user,model=virtio-net-pci,restrict=on,net=169.254.169.0/24"
            f",guestfwd=tcp:169.254.169.254:80-cmd:{answer},hostfwd=tcp:127.0.0.1:{self.port}-:80"
        )
        self.process = subprocess.Popen(
            [
                *("qemu-system-x86_64", "-accel", "tcg", "-m", "128", "-display", "none", "-serial", "stdio"),
                *("-monitor", f"unix:{place}/monitor,server,nowait", "-snapshot", "-nic", network),
                *("-drive", f"file={image},format=qcow2,if=virtio"),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
        )
        self.monitor = place / "monitor"
        self.console = b""

    def wait_for(self, marker: str) -> str:
        """The console's line from `marker` on."""
        assert self.process.stdout is not None
        end = time.monotonic() + BOOT_SECONDS
        with selectors.DefaultSelector() as ready:
            ready.register(self.process.stdout, selectors.EVENT_READ)
            while time.monotonic() < end:
                start = self.console.find(marker.encode())
                if start >= 0 and b"\n" in self.console[start:]:
                    return self.console[start:].split(b"\n")[0].decode().strip()
                if ready.select(timeout=1):
                    block = os.read(self.process.stdout.fileno(), 65536)
                    if not block:
                        break
                    self.console += block
        raise AssertionError(f"no line {marker!r} on the console:\n{self.console.decode(errors='replace')}")

    def press_power_button(self) -> None:
        with socket.socket(socket.AF_UNIX) as monitor:
            monitor.connect(str(self.monitor))
            monitor.sendall(b"system_powerdown\n")
            self.process.wait(timeout=30)


METADATA = """#!/bin/sh
read -r _ path _
case $path in
    *instance-id) body=i-0001 ;;
    *hostname) body=probe-1.novalocal ;;
esac
printf 'HTTP/1.0 200 OK\\r\\nContent-Type: text/plain\\r\\n\\r\\n%s' "$body"
"""


@pytest.fixture
def guest(image: guests.GuestImage, tmp_path: Path) -> Iterator[Guest]:
    needs.program("qemu-system-x86_64")
    running = Guest(image.path, tmp_path)
    yield running
    running.process.kill()
    running.process.wait()


def test_boots_reports_answers_and_powers_off(guest: Guest) -> None:
    float(guest.wait_for("STACKLAB-PROBE booted ").split()[-1])
    assert guest.wait_for("STACKLAB-PROBE dhcp ") == "STACKLAB-PROBE dhcp 169.254.169.15/24"
    who = "instance-id=i-0001 hostname=probe-1.novalocal"
    assert guest.wait_for("STACKLAB-PROBE metadata ") == f"STACKLAB-PROBE metadata {who}"
    float(guest.wait_for("STACKLAB-PROBE ready ").split()[-1])
    with urllib.request.urlopen(f"http://127.0.0.1:{guest.port}/", timeout=10) as page:
        assert who in page.read().decode()
    guest.press_power_button()
    assert guest.process.returncode == 0
