"""Provider libvirt: nodes are virtual machines, with KVM where it works, else emulated (QEMU's TCG).

Vagrant (vagrant-libvirt) makes them. Everything afterwards goes through virsh: it does
to all nodes at once what Vagrant does to one after the other.

The lab's networks are libvirt's, in the lab's own network namespace with a libvirtd of
its own, or in the host's network with the host's libvirtd (`Plan.isolated`).

A snapshot is of memory and disk, kept inside the nodes' qcow2 disks, of all nodes while
all of them are paused. Where libvirt refuses that (firmware in flash, disks of another
format), the disks alone are kept, as layers, and going back is a boot.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import time
from contextlib import suppress
from ipaddress import ip_network
from pathlib import Path
from typing import Any

from stacklab import clocks, files, interfaces, namespace
from stacklab.base import Golden
from stacklab.errors import CommandFailed
from stacklab.model import Node
from stacklab.plan import Plan
from stacklab.providers import disk_layers
from stacklab.providers.libvirtd import Daemon
from stacklab.providers.machines import Machines
from stacklab.run import Result, run

_SYSTEM_IMAGES = Path("/var/lib/libvirt/images")
"""Where the host's libvirtd may read, whoever QEMU runs as."""


class Libvirt(Machines):
    """The nodes of one lab as libvirt's domains."""

    def __init__(self, plan: Plan, golden: Golden) -> None:
        super().__init__(plan, golden)
        self.daemon = Daemon(plan) if plan.isolated else None
        self.uri = self.daemon.uri if self.daemon else "qemu:///system"
        self.images = (
            self.directory / "libvirt" / "images" if plan.isolated else _SYSTEM_IMAGES / plan.namespace
        )

    def virsh(self, *words: str, check: bool = True, timeout: float = 300) -> Result:
        """Run virsh on the lab's libvirtd."""
        return run(["virsh", "-q", "-c", self.uri, *words], log=self.log, check=check, timeout=timeout)

    # -- networks ----------------------------------------------------------------------

    def network(self, name: str) -> str:
        """The name in libvirt of the networks management, provider and tunnel."""
        return f"{self.plan.namespace}-{name}"

    def network_xml(self, name: str) -> str:
        """The definition of a network: a bridge with the host's addresses, no DHCP.

        Where the plan has a way out, the management network is one to the outside and answers for names.
        """
        topology = self.plan.topology
        management, provider = topology.management, topology.provider_network
        cidr, *hosts = {
            # A gateway of its own answers too, as if there were a router.
            "management": (management.cidr, management.host, management.gateway),
            "provider": (provider.cidr, provider.gateway),
            "tunnel": (topology.tunnel.cidr, topology.tunnel.host),
        }[name]
        netmask = ip_network(cidr).netmask
        addresses = "".join(
            f"<ip address='{host}' netmask='{netmask}'/>" for host in dict.fromkeys(hosts) if host
        )
        # Interfaces' names have at most 15 characters.
        bridge = f"sl{hashlib.sha256(self.plan.namespace.encode()).hexdigest()[:8]}-{name[0]}"
        # In a namespace there is nothing to protect the network from: no firewall rules.
        forward, names = "<forward mode='open'/>" if self.plan.isolated else "", "no"
        if self.plan.way_out and name == "management":
            forward, names = "<forward mode='nat'/>", "yes"
        return (
            f"<network><name>{self.network(name)}</name>{forward}"
            f"<bridge name='{bridge}' stp='off' delay='0'/><dns enable='{names}'/>{addresses}</network>\n"
        )

    def _networks(self) -> list[str]:
        return [one.network for one in interfaces.of(self.plan, self.plan.topology.nodes[0])]

    def _connect(self) -> None:
        """Make sure that there is a libvirtd to talk to."""
        if self.daemon is not None:
            namespace.create(self.plan, self.log)
            self.daemon.start(self.log)

    def _start_networks(self) -> None:
        self._connect()
        active = self.virsh("net-list", "--name").output.split()
        for name in self._networks():
            if self.network(name) not in active:
                self.virsh("net-start", self.network(name))

    # -- making and removing -----------------------------------------------------------

    def create_commands(self) -> list[list[str]]:
        """What `create` runs, for a dry run."""
        made = namespace.commands(self.plan) if self.plan.isolated else []
        nets = [["virsh", "net-start", self.network(name)] for name in self._networks()]
        return [*made, *nets, ["vagrant", "up"]]

    def clear(self) -> None:
        """Remove nodes, networks and images of an earlier `create`."""
        self.destroy()
        run(["rm", "-rf", "--one-file-system", self.directory / "libvirt"], timeout=300)

    def disc(self, node: Node) -> Path:
        """Beside the nodes' disks."""
        return self.images / f"{node.name}-seed.iso"

    def prepare(self) -> None:
        """Networks and the storage pool; they come back with libvirtd."""
        self._connect()
        for name in self._networks():
            xml = self.directory / "libvirt" / f"{name}.xml"
            files.write(xml, self.network_xml(name))
            self.virsh("net-define", str(xml))
            self.virsh("net-autostart", self.network(name))
        self._start_networks()
        pool = self.plan.namespace
        self.virsh("pool-define-as", pool, "dir", "--target", str(self.images))
        self.virsh("pool-autostart", pool)
        self.virsh("pool-start", pool)

    def settings(self) -> dict[str, Any]:
        """How the nodes are run, and where."""
        emulated = self.plan.emulated
        return {
            "uri": self.uri,
            "driver": "qemu" if emulated else "kvm",
            "cpu_mode": "maximum" if emulated else "host-passthrough",
            "nested": not emulated,
            # Emulated labs are tried, not kept: a host that loses its power loses their disks.
            "cache": "unsafe" if emulated else "writeback",
            "pool": self.plan.namespace,
            # A namespace is gone when the host starts again: `up` brings such a lab back.
            "autostart": not self.plan.isolated,
            "management": {
                "name": self.network("management"),
                "cidr": self.plan.topology.management.cidr,
            },
        }

    def node_settings(self, node: Node) -> dict[str, Any]:
        """Its interfaces, and where its console is written to."""
        management, *others = interfaces.of(self.plan, node)
        console = self.directory / "logs" / f"console-{node.name}.log"
        return {
            "mac": management.mac,
            "networks": [{"name": self.network(one.network), "mac": one.mac} for one in others],
            # The host's libvirtd may not write into a lab's directory.
            "console": str(console) if self.plan.isolated else "",
        }

    def destroy(self) -> None:
        """End the nodes and remove what they left outside the lab's directory."""
        if self.daemon is not None:
            self._end_processes()
            self.daemon.stop()
            namespace.delete(self.plan)
            return
        there = self.states()
        for node in self.plan.topology.nodes:
            if node.name in there:
                self.virsh("destroy", self.machine(node), check=False)
                self.virsh("undefine", self.machine(node), "--snapshots-metadata", "--managed-save")
        for name in ("management", "provider", "tunnel"):
            for command in ("net-destroy", "net-undefine"):
                self.virsh(command, self.network(name), check=False)
        for command in ("pool-destroy", "pool-undefine"):
            self.virsh(command, self.plan.namespace, check=False)
        shutil.rmtree(self.images, ignore_errors=True)

    def _end_processes(self) -> None:
        """End the lab's QEMUs, with or without a libvirtd that knows them."""
        for pid in self._processes():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        end = time.monotonic() + 20
        while self._processes() and time.monotonic() < end:
            time.sleep(0.1)

    def _processes(self) -> list[int]:
        names = {f"guest={self.machine(node)},".encode() for node in self.plan.topology.nodes}
        found = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with suppress(OSError):
                command = path.read_bytes()
                if b"qemu" in command and any(name in command for name in names):
                    found.append(int(path.parent.name))
        return found

    # -- running -----------------------------------------------------------------------

    def states(self) -> dict[str, str]:
        """By what libvirt lists; by its own files where its daemon does not run."""
        nodes = self.plan.topology.nodes
        if self.daemon is not None and self.daemon.pid() is None:
            place = self.daemon.directory / "etc" / "qemu"
            return {node.name: "off" for node in nodes if (place / f"{self.machine(node)}.xml").is_file()}
        made, running, paused = (self._listed(*words) for words in _LISTS)
        return {
            node.name: "running" if name in running else "paused" if name in paused else "off"
            for node in nodes
            if (name := self.machine(node)) in made
        }

    def _listed(self, *options: str) -> set[str]:
        argv = ["virsh", "-q", "-c", self.uri, "list", "--name", *options]
        # No answer is not an empty list: `down` would leave nodes that run and say that it is done.
        told = run(argv, timeout=60, merge_stderr=False, hint="does libvirtd run? `invoke doctor` looks")
        return set(told.output.split())

    def boot(self, node: Node) -> None:
        self.virsh("start", self.machine(node))

    def pause(self, node: Node) -> None:
        self.virsh("suspend", self.machine(node))

    def resume(self, node: Node) -> None:
        self.virsh("resume", self.machine(node))

    def ask_off(self, node: Node) -> None:
        self.virsh("shutdown", self.machine(node), check=False)

    def cut_off(self, node: Node) -> None:
        self.virsh("destroy", self.machine(node), check=False)

    def start(self) -> None:
        """Run all nodes, their networks before them."""
        self._start_networks()
        super().start()

    def step_clocks(self) -> None:
        """By the guests' agent, at once; by ssh where one does not answer."""
        told = self.each(lambda node: self.virsh("domtime", self.machine(node), "--now", check=False))
        clocks.step(self.plan, are_set=all(one.code == 0 for one in told))

    # -- snapshots ---------------------------------------------------------------------

    def keep(self, name: str) -> dict[str, Any]:
        """Memory and disks; only the disks where libvirt refused the first of this lab's snapshots."""
        layered = self.directory / "libvirt" / "layered"
        if not layered.is_file():
            try:
                self.each(lambda node: self.virsh("snapshot-create-as", self.machine(node), name))
                return {"kind": "memory", "name": name}
            except CommandFailed:
                self.each(lambda node: self._forget(node, name))
                # The two kinds do not go together on one disk.
                if any(self.each(self._snapshots)):
                    raise
            layered.touch()
        return {"kind": "layers", "name": name, "disks": disk_layers.push(self, name)}

    def _snapshots(self, node: Node) -> list[str]:
        return self.virsh("snapshot-list", self.machine(node), "--name", check=False).output.split()

    def _forget(self, node: Node, name: str) -> None:
        self.virsh("snapshot-delete", self.machine(node), "--snapshotname", name, check=False)

    def revert(self, payload: dict[str, Any]) -> None:
        """Put all nodes back to what `capture` returned `payload` for.

        They are paused after (none runs before all are back), or off where only disks were kept.
        """
        self._start_networks()
        if payload["kind"] == "layers":
            self.kill()
            disk_layers.revert(self, payload["disks"])
            return
        self.each(lambda node: self._go_back(node, payload["name"]))

    def _go_back(self, node: Node, name: str) -> None:
        """Read memory and disk of a snapshot back, into the node's QEMU where one runs.

        libvirt's own way always starts another QEMU, which takes longer than the reading.
        """
        machine = self.machine(node)
        for words in (("suspend", machine), ("qemu-monitor-command", "--hmp", machine, "loadvm", name)):
            told = self.virsh(*words, check=False, timeout=600)
            # The monitor's command always ends well; what it says is why it did not go.
            if told.code != 0 or told.output.strip():
                break
        else:
            return
        self.virsh("snapshot-revert", machine, "--snapshotname", name, "--paused", "--force", timeout=600)

    def prune(self, kept: list[dict[str, Any]]) -> None:
        """Free what neither the running nodes nor the snapshots `kept` need."""
        names = {payload["name"] for payload in kept}

        def forget(node: Node) -> None:
            for name in self._snapshots(node):
                if name not in names:
                    self._forget(node, name)

        self._connect()
        self.each(forget)
        disk_layers.prune(self, [payload["disks"] for payload in kept if payload["kind"] == "layers"])


_LISTS = (("--all",), ("--state-running",), ("--state-paused",))
