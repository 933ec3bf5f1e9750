"""A libvirtd of a lab's own, in the lab's network namespace.

Its networks can have the addresses of the host's without a collision, and it needs
neither systemd nor the host's own libvirt. What it keeps is in the lab's directory;
its sockets are below /run, because their paths have to be short.
"""

from __future__ import annotations

import os
import shutil
import signal
import time
import uuid
from contextlib import suppress
from pathlib import Path

from stacklab import files
from stacklab.errors import LabError
from stacklab.plan import Plan
from stacklab.run import run

_SCRIPT = files.PROJECT / "scripts" / "own-libvirtd"
# Nodes are the lab's alone and run as root, like the containers of the provider lxc.
_QEMU_CONF = """\
user = "root"
group = "root"
security_driver = "none"
cgroup_controllers = [ ]
namespaces = [ ]
remember_owner = 0
stdio_handler = "file"
"""
_LIBVIRTD_CONF = """\
auth_unix_rw = "none"
auth_unix_ro = "none"
unix_sock_rw_perms = "0700"
log_filters = "3:util 3:network"
log_outputs = "2:file:/var/log/libvirt/libvirtd.log"
host_uuid = "{uuid}"
"""


class Daemon:
    """The libvirtd of one lab."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.directory = plan.directory / "libvirt"
        self.sockets = Path("/run/stacklab") / plan.namespace

    @property
    def uri(self) -> str:
        """How clients reach it, from any namespace."""
        return f"qemu+unix:///system?socket={self.sockets}/libvirt-sock"

    def pid(self) -> int | None:
        """The process, if it runs."""
        try:
            pid = int((self.sockets / "libvirtd.pid").read_text(encoding="utf-8"))
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
        except (OSError, ValueError):
            return None
        return pid if command.startswith(b"libvirtd\0") else None

    def start(self, log: Path) -> None:
        """Make it run; nothing to do where it does. Nodes that ran on without it are found again."""
        if self.pid() is not None:
            return
        conf = self.directory / "etc" / "libvirtd.conf"
        if not conf.is_file():
            # The same for good: without firmware tables libvirt would draw another at each start.
            files.write(conf, _LIBVIRTD_CONF.format(uuid=uuid.uuid4()))
        files.write(self.directory / "etc" / "qemu.conf", _QEMU_CONF)
        run(
            [_SCRIPT, self.plan.namespace, self.directory, self.sockets],
            log=log,
            timeout=60,
            hint=f"see {self.directory / 'log' / 'libvirtd.log'}",
        )
        end = time.monotonic() + 20
        while run(["virsh", "-q", "-c", self.uri, "version"], check=False, timeout=10).code != 0:
            if time.monotonic() > end:
                raise LabError(
                    "the lab's libvirtd does not answer",
                    hint=f"see {self.directory / 'log' / 'libvirtd.log'}",
                )
            time.sleep(0.2)

    def stop(self) -> None:
        """End it and remove its sockets. Nodes are to be ended before."""
        pid = self.pid()
        if pid is not None:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
            end = time.monotonic() + 20
            # Its pid file goes first, the process only then.
            while Path(f"/proc/{pid}/exe").exists() and time.monotonic() < end:
                time.sleep(0.1)
        shutil.rmtree(self.sockets, ignore_errors=True)
        with suppress(OSError):
            self.sockets.parent.rmdir()
