"""Provider vmware_desktop: nodes are machines of VMware Workstation or Fusion.

Vagrant (vagrant-vmware-desktop, with its utility service) makes them; everything
afterwards goes through vmrun. A snapshot of a running machine has its memory.

Checked against command lines only: VMware does not run where stacklab is tested.
"""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

from stacklab.errors import LabError
from stacklab.model import Node
from stacklab.providers.machines import Machines
from stacklab.providers.virtualbox import network_settings
from stacklab.run import Result, run


class Vmware(Machines):
    """The nodes of one lab as VMware's machines."""

    def vmrun(self, command: str, *words: str, check: bool = True, timeout: float = 300) -> Result:
        """Run vmrun for the product of this system; a look at what runs is not logged."""
        product = "fusion" if platform.system() == "Darwin" else "ws"
        log = None if command == "list" else self.log
        return run(["vmrun", "-T", product, command, *words], log=log, check=check, timeout=timeout)

    # -- making and removing -----------------------------------------------------------

    def create_commands(self) -> list[list[str]]:
        """What `create` runs, for a dry run."""
        return [["vagrant", "up"]]

    def disc(self, node: Node) -> Path:
        """In the lab's directory: VMware runs as who runs stacklab."""
        return self.directory / "discs" / f"{node.name}-seed.iso"

    def prepare(self) -> None:
        """Nothing: Vagrant's utility makes the networks."""

    def clear(self) -> None:
        """Remove the machines of an earlier `create`."""
        self.destroy()

    def settings(self) -> dict[str, Any]:
        """What the Vagrantfile needs for all nodes."""
        return {"nested": True}

    def node_settings(self, node: Node) -> dict[str, Any]:
        """Its interfaces: the first is VMware's NAT, which the lab does not use."""
        return {"address": node.management, "networks": network_settings(self.plan, node)}

    def destroy(self) -> None:
        """End and remove the machines. Networks are VMware's, made once and shared."""
        self.kill()
        made = self.states()
        for node in self.plan.topology.nodes:
            if node.name in made:
                self.vmrun("deleteVM", str(self._vmx(node)))

    def _vmx(self, node: Node) -> Path | None:
        """The machine's file, where Vagrant noted it."""
        place = self.directory / "vagrant" / "state" / "machines" / node.name / "vmware_desktop" / "id"
        try:
            found = Path(place.read_text(encoding="utf-8").strip())
        except OSError:
            return None
        return found if found.is_file() else None

    def _of(self, node: Node) -> str:
        found = self._vmx(node)
        if found is None:
            raise LabError(f"Vagrant knows no machine {node.name}", hint="run `invoke up` or `invoke down`")
        return str(found)

    # -- running -----------------------------------------------------------------------

    def states(self) -> dict[str, str]:
        """By what vmrun lists; a paused machine's memory is in a file beside it."""
        running = self.vmrun("list").output.splitlines()
        found = {}
        for node in self.plan.topology.nodes:
            vmx = self._vmx(node)
            if vmx is not None:
                kept = any(vmx.parent.glob("*.vmss"))
                found[node.name] = "running" if str(vmx) in running else "paused" if kept else "off"
        return found

    def boot(self, node: Node) -> None:
        self.vmrun("start", self._of(node), "nogui")

    def pause(self, node: Node) -> None:
        self.vmrun("suspend", self._of(node), "hard")

    def resume(self, node: Node) -> None:
        self.boot(node)

    def ask_off(self, node: Node) -> None:
        self.vmrun("stop", self._of(node), "soft", check=False, timeout=300)

    def cut_off(self, node: Node) -> None:
        self.vmrun("stop", self._of(node), "hard", check=False)

    # -- snapshots ---------------------------------------------------------------------

    def keep(self, name: str) -> dict[str, Any]:
        """Memory and disks."""
        self.each(lambda node: self.vmrun("snapshot", self._of(node), name))
        return {"kind": "memory", "name": name}

    def revert(self, payload: dict[str, Any]) -> None:
        """Put all nodes back to what `capture` returned `payload` for; `start` lets them go on."""
        self.kill()
        self.each(lambda node: self.vmrun("revertToSnapshot", self._of(node), payload["name"]))

    def prune(self, kept: list[dict[str, Any]]) -> None:
        """Remove the snapshots that none of `kept` is."""
        names = {payload["name"] for payload in kept}

        def forget(node: Node) -> None:
            listed = self.vmrun("listSnapshots", self._of(node), check=False).output.splitlines()[1:]
            for name in listed:
                if name.strip() not in names:
                    self.vmrun("deleteSnapshot", self._of(node), name.strip(), timeout=1200)

        self.each(forget)
