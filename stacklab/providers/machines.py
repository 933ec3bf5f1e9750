"""What the providers of virtual machines share: how nodes are made, started, stopped, kept at one moment."""

from __future__ import annotations

import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from stacklab import boxes, clocks, remote, seed, seed_disc
from stacklab.base import Golden
from stacklab.model import Node
from stacklab.plan import Plan
from stacklab.providers import vagrant
from stacklab.run import run

BOOT_SECONDS = 180.0
"""Until a node answers after its start, times the plan's patience. Emulated, on a busy core: 4 min."""


class Machines(ABC):
    """The nodes of one lab as virtual machines; see `Provider` for what is not said here."""

    def __init__(self, plan: Plan, golden: Golden) -> None:
        self.plan = plan
        self.golden = golden
        self.directory = plan.directory
        self.log = plan.directory / "logs" / "nodes.log"

    # -- what each provider does in its own way -----------------------------------------

    @abstractmethod
    def states(self) -> dict[str, str]:
        """The nodes that were made, by name: running, paused (its memory is kept) or off."""

    @abstractmethod
    def boot(self, node: Node) -> None:
        """Start a node that is off."""

    @abstractmethod
    def pause(self, node: Node) -> None:
        """Let a running node stand still."""

    @abstractmethod
    def resume(self, node: Node) -> None:
        """Let a paused node go on."""

    @abstractmethod
    def ask_off(self, node: Node) -> None:
        """Ask a running node to shut down; returns at once."""

    @abstractmethod
    def cut_off(self, node: Node) -> None:
        """End a running or paused node."""

    @abstractmethod
    def keep(self, name: str) -> dict[str, Any]:
        """Keep all nodes, which are paused or off, under `name`; what `revert` needs."""

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """What the Vagrantfile needs of this provider, beyond the nodes and what all providers have."""

    @abstractmethod
    def node_settings(self, node: Node) -> dict[str, Any]:
        """What the Vagrantfile needs of a node, beyond its name and sizes."""

    @abstractmethod
    def prepare(self) -> None:
        """Make what the nodes need before Vagrant makes them."""

    @abstractmethod
    def clear(self) -> None:
        """Remove what an earlier `create` left."""

    @abstractmethod
    def disc(self, node: Node) -> Path:
        """Where the disc with a node's seed lies."""

    # -- what is the same for all --------------------------------------------------------

    def create(self) -> None:
        """Make and boot all nodes from the golden image; what was there before is removed."""
        self.clear()
        run(["rm", "-rf", "--one-file-system", self.directory / "vagrant"], timeout=300)
        seed.write(self.plan)
        for node in self.plan.topology.nodes:
            self.disc(node).parent.mkdir(mode=0o711, parents=True, exist_ok=True)
            seed_disc.write(self.plan, node, self.disc(node))
        box = boxes.box(self.golden, self.plan.provider, self.log)
        settings = self.vagrant_settings(
            {"box": box.name, "box_url": box.url, "box_version": box.version},
        )
        vagrant.prepare_home(self.plan)
        vagrant.write_plan(self.plan, settings)
        self.prepare()
        vagrant.Vagrant(settings, self.log, timeout=3600).up()

    def vagrant_settings(self, box: dict[str, str]) -> dict[str, Any]:
        """All that the Vagrantfile needs, so that nothing is computed there."""
        return {
            **vagrant.settings(self.plan, box),
            "boot_timeout": round(BOOT_SECONDS * self.plan.patience * 2),
            "prefix": f"{self.plan.namespace}-",
            **self.settings(),
            "nodes": [
                {
                    "name": node.name,
                    "cpus": node.cpus,
                    "memory": node.memory,
                    "disk": node.disk,
                    "extra_disks": list(node.extra_disks),
                    "disc": str(self.disc(node)),
                    **self.node_settings(node),
                }
                for node in self.plan.topology.nodes
            ],
        }

    def machine(self, node: Node) -> str:
        """A node's name in the provider's own tools."""
        return f"{self.plan.namespace}-{node.name}"

    def each(self, act: Callable[[Node], Any], nodes: Iterable[Node] | None = None) -> list[Any]:
        """Do something to several nodes at once, to all where none are named."""
        chosen = list(self.plan.topology.nodes if nodes is None else nodes)
        if not chosen:
            return []
        with ThreadPoolExecutor(len(chosen)) as pool:
            return list(pool.map(act, chosen))

    def that_are(self, *states: str) -> list[Node]:
        """The nodes in one of these states."""
        found = self.states()
        return [node for node in self.plan.topology.nodes if found.get(node.name) in states]

    def exists(self) -> bool:
        """Whether all nodes were made (running or not); the provider's tools need not be there for none."""
        if not (self.directory / "vagrant").is_dir():
            return False  # where Vagrant keeps what it made
        return {node.name for node in self.plan.topology.nodes} <= self.states().keys()

    def running(self) -> dict[str, bool]:
        """Which nodes run, by name; a paused one does not."""
        found = self.states()
        return {node.name: found.get(node.name) == "running" for node in self.plan.topology.nodes}

    def start(self) -> None:
        """Run all nodes, and return when they answer: those that are off boot, paused ones go on."""
        found = self.states()
        paused, off = (
            [node for node in self.plan.topology.nodes if found.get(node.name) == state]
            for state in ("paused", "off")
        )
        self.each(self.resume, paused)
        self.each(self.boot, off)
        if paused:
            self.step_clocks()
        if off:
            remote.wait_for_ssh(self.plan, BOOT_SECONDS)

    def step_clocks(self) -> None:
        """Give nodes that stood still today's time, as soon as they answer."""
        clocks.step(self.plan)

    def stop(self) -> None:
        """Shut all nodes down cleanly, at once; those that take too long are killed."""
        self.each(self.ask_off, self.that_are("running"))
        end = time.monotonic() + BOOT_SECONDS * self.plan.patience
        while self.that_are("running") and time.monotonic() < end:
            time.sleep(0.5)
        self.kill()

    def kill(self) -> None:
        """Stop all nodes at once without asking them."""
        self.each(self.cut_off, self.that_are("running", "paused"))

    def capture(self) -> dict[str, Any]:
        """Keep all nodes at one moment, all of them paused meanwhile; their clocks are stepped after."""
        with self._paused() as up:
            payload = self.keep(uuid.uuid4().hex[:12])
        if up:
            self.step_clocks()
        return payload

    def parts(self, payload: dict[str, Any]) -> list[Path]:
        """None of its own: what is kept lies in the nodes' disks."""
        return []

    @contextmanager
    def _paused(self) -> Iterator[list[Node]]:
        up = self.that_are("running")
        try:
            self.each(self.pause, up)
            yield up
        finally:
            still = self.that_are("paused")
            self.each(self.resume, [node for node in up if node in still])
