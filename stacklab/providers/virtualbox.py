"""Provider virtualbox: nodes are VirtualBox's machines, on two of its host-only networks.

Vagrant makes them; everything afterwards goes through VBoxManage, which does to all
nodes at once what Vagrant does to one after the other. A snapshot of a paused machine
has its memory; a machine that was put back to it is in the state "saved" until it starts.

Checked against command lines only: VirtualBox does not run where stacklab is tested.
"""

from __future__ import annotations

import re
from ipaddress import ip_network
from pathlib import Path
from typing import Any

from stacklab import files, interfaces
from stacklab.model import Node
from stacklab.plan import Plan
from stacklab.providers.machines import Machines
from stacklab.run import Result, run

_STATES = {
    "running": "running",
    "paused": "paused",
    "saved": "paused",
    "poweroff": "off",
    "aborted": "off",
    "aborted-saved": "paused",
}


class VirtualBox(Machines):
    """The nodes of one lab as VirtualBox's machines."""

    def manage(self, *words: str, check: bool = True, timeout: float = 300) -> Result:
        """Run VBoxManage."""
        return run(["VBoxManage", *words], log=self.log, check=check, timeout=timeout)

    def told(self, *words: str, check: bool = True) -> str:
        """What VBoxManage says when asked for something; the log is of what is done."""
        return run(["VBoxManage", *words], check=check, timeout=300).output

    # -- making and removing -----------------------------------------------------------

    def create_commands(self) -> list[list[str]]:
        """What `create` runs, for a dry run."""
        return [["vagrant", "up"]]

    def disc(self, node: Node) -> Path:
        """In the lab's directory: VirtualBox runs as who runs stacklab."""
        return self.directory / "discs" / f"{node.name}-seed.iso"

    def prepare(self) -> None:
        """Note the host-only networks that there are, to know those that Vagrant makes."""
        files.write_json(self._networks_file(), self._networks())

    def clear(self) -> None:
        """Remove the machines of an earlier `create`."""
        self.destroy()

    def settings(self) -> dict[str, Any]:
        """What the Vagrantfile needs for all nodes."""
        return {}

    def node_settings(self, node: Node) -> dict[str, Any]:
        """Its interfaces: the first is VirtualBox's NAT, which the lab does not use."""
        return {"address": node.management, "networks": network_settings(self.plan, node)}

    def destroy(self) -> None:
        """End and remove the machines, and the host-only networks that were made for them."""
        self.kill()
        made = self.states()
        for node in self.plan.topology.nodes:
            if node.name in made:
                self.manage("unregistervm", self.machine(node), "--delete")
        before = files.read_json(self._networks_file())
        if before is None:
            return
        for name, address in self._networks().items():
            if name not in before and address in self._hosts():
                self.manage("hostonlyif", "remove", name, check=False)
        self._networks_file().unlink()

    def _hosts(self) -> tuple[str, str]:
        return self.plan.topology.management.host, self.plan.topology.provider_network.gateway

    def _networks_file(self) -> Path:
        return self.directory / "hostonly-before.json"

    def _networks(self) -> dict[str, str]:
        """VirtualBox's host-only interfaces, with their addresses."""
        told = self.told("list", "hostonlyifs", check=False)
        pairs = re.findall(r"^Name:\s+(\S+)$.*?^IPAddress:\s+(\S+)$", told, re.MULTILINE | re.DOTALL)
        return dict(pairs)

    # -- running -----------------------------------------------------------------------

    def states(self) -> dict[str, str]:
        """By what VirtualBox tells of each machine."""
        listed = self.told("list", "vms")
        found = {}
        for node in self.plan.topology.nodes:
            if f'"{self.machine(node)}"' in listed:
                told = self.told("showvminfo", self.machine(node), "--machinereadable", check=False)
                state = re.search(r'^VMState="(.*)"$', told, re.MULTILINE)
                # Starting, stopping, saving: on its way, so neither here nor there.
                found[node.name] = _STATES.get(state[1] if state else "", "busy")
        return found

    def boot(self, node: Node) -> None:
        self.manage("startvm", self.machine(node), "--type", "headless")

    def pause(self, node: Node) -> None:
        self.manage("controlvm", self.machine(node), "pause")

    def resume(self, node: Node) -> None:
        told = self.told("showvminfo", self.machine(node), "--machinereadable")
        if 'VMState="paused"' in told:
            self.manage("controlvm", self.machine(node), "resume")
        else:
            self.boot(node)  # its memory is in a file

    def ask_off(self, node: Node) -> None:
        self.manage("controlvm", self.machine(node), "acpipowerbutton", check=False)

    def cut_off(self, node: Node) -> None:
        words = ("controlvm", self.machine(node), "poweroff")
        if self.manage(*words, check=False).code != 0:
            self.manage("discardstate", self.machine(node), check=False)

    # -- snapshots ---------------------------------------------------------------------

    def keep(self, name: str) -> dict[str, Any]:
        """Memory and disks."""
        self.each(lambda node: self.manage("snapshot", self.machine(node), "take", name))
        return {"kind": "memory", "name": name}

    def revert(self, payload: dict[str, Any]) -> None:
        """Put all nodes back to what `capture` returned `payload` for; `start` lets them go on."""
        self.kill()
        name = payload["name"]
        self.each(lambda node: self.manage("snapshot", self.machine(node), "restore", name))

    def prune(self, kept: list[dict[str, Any]]) -> None:
        """Remove the snapshots that none of `kept` is."""
        names = {payload["name"] for payload in kept}

        def forget(node: Node) -> None:
            told = self.manage("snapshot", self.machine(node), "list", "--machinereadable", check=False)
            for name in re.findall(r'^SnapshotName[-\d]*="(.*)"$', told.output, re.MULTILINE):
                if name not in names:
                    self.manage("snapshot", self.machine(node), "delete", name, timeout=1200)

        self.each(forget)


def network_settings(plan: Plan, node: Node) -> list[dict[str, str]]:
    """The lab's networks for Vagrant's `private_network`: each with the host's address on it."""
    management, provider = plan.topology.management, plan.topology.provider_network
    cidrs = {"management": management.cidr, "provider": provider.cidr}
    hosts = {"management": management.host, "provider": provider.gateway}
    found = []
    for one in interfaces.of(plan, node):
        network = ip_network(cidrs[one.network])
        # Vagrant finds the network by it; on the provider network no node has it.
        some = next(str(each) for each in network.hosts() if str(each) != hosts[one.network])
        found.append(
            {
                "mac": one.mac,
                "address": node.management if one.network == "management" else some,
                "netmask": str(network.netmask),
                "host": hosts[one.network],
            }
        )
    return found
