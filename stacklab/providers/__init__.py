"""What a node is: one module a provider."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from stacklab.base import Golden
from stacklab.errors import InvalidInput, Problem
from stacklab.model import Node
from stacklab.plan import Plan


class Provider(Protocol):
    """The nodes of one lab. Everything is done to all of them at once.

    What a `Provider` runs is logged in the lab's logs/nodes.log; where a command fails or
    runs out of time it raises CommandFailed.
    """

    plan: Plan
    golden: Golden

    def create(self) -> None:
        """Make and boot all nodes from the golden image; those that were there before are removed.

        What `capture` kept stays until `prune`.
        """

    def create_commands(self) -> list[list[str]]:
        """What `create` runs, for a dry run."""

    def exists(self) -> bool:
        """Whether all nodes were made (running or not)."""

    def running(self) -> dict[str, bool]:
        """Which nodes run, by name."""

    def start(self) -> None:
        """Run all nodes, those too that the host's reboot or `revert` stopped."""

    def stop(self) -> None:
        """Shut all nodes down cleanly."""

    def kill(self) -> None:
        """Stop all nodes at once without asking them."""

    def destroy(self) -> None:
        """End the nodes and remove what they left outside the lab's directory."""

    def capture(self) -> dict[str, Any]:
        """Keep all nodes as they are at one moment; returns, as JSON values, what `revert` needs."""

    def revert(self, payload: dict[str, Any]) -> None:
        """Put all nodes back to what `capture` returned `payload` for; `start` runs them after."""

    def parts(self, payload: dict[str, Any]) -> list[Path]:
        """The files and directories, all below the lab's directory, that hold a capture of all nodes.

        With the golden image they are all that it takes to `create` nodes elsewhere and `revert`
        them. Empty where captures lie inside the nodes themselves and go with them.
        """

    def prune(self, kept: list[dict[str, Any]]) -> None:
        """Free what neither the nodes nor the captures `kept` need."""


@runtime_checkable
class Growing(Protocol):
    """A provider that can add nodes to a lab that runs."""

    def add(self, nodes: Sequence[Node]) -> None:
        """Make and boot these nodes of the plan; the others of it keep running."""

    def drop(self) -> None:
        """Remove the nodes that the plan does not have."""


def provider(plan: Plan, golden: Golden) -> Provider:
    """The provider that the plan chose. Raises InvalidInput for one that there is not."""
    # Each brings libraries of its own: only the chosen one is imported.
    if plan.provider == "lxc":
        from stacklab.providers.lxc import Lxc

        return Lxc(plan, golden)
    if plan.provider == "libvirt":
        from stacklab.providers.libvirt import Libvirt

        return Libvirt(plan, golden)
    if plan.provider == "virtualbox":
        from stacklab.providers.virtualbox import VirtualBox

        return VirtualBox(plan, golden)
    if plan.provider == "vmware_desktop":
        from stacklab.providers.vmware import Vmware

        return Vmware(plan, golden)
    raise InvalidInput([Problem("", "provider", f"{plan.provider!r} is not known")])
