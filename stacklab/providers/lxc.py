"""Provider lxc: nodes are system containers on an overlay of the golden image.

Vagrant (vagrant-lxc) creates them. Starting, stopping, capturing and reverting goes
straight to LXC: a Vagrant call costs seconds, and it has no snapshots of several nodes
at one moment.

A node's disk is a stack of layers: the golden image, then the layers of the snapshot
that the lab was last reverted to, then one writable layer. All nodes share one list of
layer names, kept in layers.json; a layer's directory holds one subdirectory a node.
"""

from __future__ import annotations

import gzip
import io
import json
import shutil
import tarfile
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from ipaddress import ip_network
from pathlib import Path
from typing import Any

from stacklab import files, interfaces, namespace, releases, seed
from stacklab.base import Golden
from stacklab.model import Node
from stacklab.plan import Plan
from stacklab.providers import layers, vagrant
from stacklab.run import run

_IN_NAMESPACE = files.PROJECT / "scripts" / "in-namespace"
_DATA = releases.DATA / "lxc"
# The names of all layers have to fit into one page of mount options: some 20 long ones do.
LONGEST_CHAIN = 6


class Lxc:
    """The nodes of one lab as containers."""

    def __init__(self, plan: Plan, golden: Golden) -> None:
        self.plan = plan
        self.golden = golden
        self.directory = plan.directory
        self.log = plan.directory / "logs" / "nodes.log"
        self._etc = self.directory / "etc-lxc"
        self._state = self.directory / "layers.json"

    # -- making and removing -----------------------------------------------------------

    def create(self) -> None:
        """Make and boot all nodes from the golden image; those that were there before are removed."""
        self.kill()
        for name in ("lxc", "vagrant", "rootfs"):
            run(["rm", "-rf", "--one-file-system", self.directory / name], timeout=300)
        self._prepare()
        self._set_layers([], uuid.uuid4().hex[:12])
        vagrant.Vagrant(self._vagrant(), self.log).up()

    def create_commands(self) -> list[list[str]]:
        """What `create` runs, for a dry run."""
        return [*namespace.commands(self.plan), ["vagrant", "up"]]

    def add(self, nodes: Sequence[Node]) -> None:
        """Make and boot these nodes of the plan; the others of it keep running."""
        self._prepare()
        state = files.read_json(self._state)
        for node in nodes:
            for name in (*state["base"], state["upper"]):
                self._layer(name, node).mkdir(parents=True, exist_ok=True)
        self._apply_layers()
        for node in nodes:
            vagrant.Vagrant(self._vagrant(), self.log).up(vm_name=node.name)

    def drop(self) -> None:
        """Remove the nodes that the plan does not have."""
        self.kill()
        names = {node.name for node in self.plan.topology.nodes}
        for pattern in ("lxc/*", "layers/*/*", "rootfs/*", "vagrant/state/machines/*"):
            for path in self.directory.glob(pattern):
                if path.name not in names:
                    run(["rm", "-rf", "--one-file-system", path], timeout=300)
        self._prepare()

    def _prepare(self) -> None:
        seed.write(self.plan)
        files.write(self._etc / "lxc.conf", f"lxc.lxcpath = {self.directory / 'lxc'}\n")
        files.write(self._etc / "default.conf", "lxc.net.0.type = empty\n")
        (self.directory / "lxc").mkdir(exist_ok=True)
        Path("/etc/lxc").mkdir(exist_ok=True)  # the mount point for the lab's own
        self._write_box()
        vagrant.prepare_home(self.plan)
        vagrant.write_plan(self.plan, self._vagrant())
        namespace.create(self.plan, self.log)

    def _write_box(self) -> None:
        """A Vagrant box whose template only stacks layers: nothing is copied per node."""
        with tarfile.open(self.directory / "stacklab.box", "w") as box:
            for path in (_DATA / "lxc-config", _DATA / "lxc-template"):
                box.add(path, path.name)
            for name, content in (
                ("metadata.json", json.dumps({"provider": "lxc", "version": "1.0.0"}).encode()),
                ("rootfs.tar.gz", gzip.compress(b"")),  # vagrant-lxc insists on one
            ):
                member = tarfile.TarInfo(name)
                member.size = len(content)
                box.addfile(member, io.BytesIO(content))

    def _vagrant(self) -> dict[str, Any]:
        """All that the Vagrantfile needs, so that nothing is computed there."""
        box = {"box": f"stacklab/{self.golden.name}", "box_url": f"file://{self.directory}/stacklab.box"}
        return {
            **vagrant.settings(self.plan, box, self._enter()),
            "nodes": [
                {"name": node.name, "address": node.management, "customize": self._customize(node)}
                for node in self.plan.topology.nodes
            ],
        }

    def _customize(self, node: Node) -> list[list[str]]:
        management = self.plan.topology.management
        prefix = ip_network(management.cidr).prefixlen
        pairs: list[list[str]] = []
        for number, (interface, bridge) in enumerate(
            zip(("eth0", "eth1", "eth2"), namespace.BRIDGES, strict=True)
        ):
            net = f"net.{number}"
            pairs += [
                [f"{net}.type", "veth"],
                [f"{net}.link", bridge],
                [f"{net}.name", interface],
                [f"{net}.flags", "up"],
                [f"{net}.hwaddr", interfaces.mac(self.plan, node, interface)],
            ]
            if interface == "eth0":
                # Packstack wants a default route, even for its --version.
                pairs += [
                    [f"{net}.ipv4.address", f"{node.management}/{prefix}"],
                    [f"{net}.ipv4.gateway", management.gateway],
                ]
        return pairs

    def destroy(self) -> None:
        """End the containers and remove what they left outside the lab's directory."""
        self.kill()
        namespace.delete(self.plan)
        # LXC keeps its locks under the path of the containers, all the way down.
        locks = Path("/run/lxc/lock")
        own = locks / (self.directory / "lxc").relative_to("/")
        shutil.rmtree(own, ignore_errors=True)
        for path in own.parents:
            if path == locks.parent or (path.exists() and any(path.iterdir())):
                break
            with suppress(FileNotFoundError):
                path.rmdir()

    # -- running -----------------------------------------------------------------------

    def _enter(self) -> list[str]:
        return [str(_IN_NAMESPACE), self.plan.namespace, str(self._etc)]

    def _lxc(self, command: str, name: str, *args: str, check: bool = True, timeout: float = 120) -> str:
        argv = [*self._enter(), command, "-n", name, *args]
        return run(argv, log=self.log, check=check, timeout=timeout).output

    def _each(self, command: str, *args: str, check: bool = True, timeout: float = 120) -> None:
        with ThreadPoolExecutor(len(self.plan.topology.nodes)) as pool:
            list(
                pool.map(
                    lambda node: self._lxc(command, node.name, *args, check=check, timeout=timeout),
                    self.plan.topology.nodes,
                )
            )

    def exists(self) -> bool:
        """Whether all nodes were made (running or not)."""
        return self._state.is_file() and all(
            (self.directory / "lxc" / node.name / "config").is_file() for node in self.plan.topology.nodes
        )

    def running(self) -> dict[str, bool]:
        """Which nodes run, by name."""
        whole = self.exists() and namespace.is_whole(self.plan)
        states = self._states() if whole else {}
        return {node.name: states.get(node.name) == "RUNNING" for node in self.plan.topology.nodes}

    def _states(self) -> dict[str, str]:
        """The states of the lab's containers by name, those too that the plan does not have."""
        listed = run(
            [*self._enter(), "lxc-ls", "--fancy", "--fancy-format", "NAME,STATE"],
            merge_stderr=False,
            hint="`invoke doctor` looks at LXC",
        ).output
        return dict(line.split()[:2] for line in listed.splitlines()[1:] if len(line.split()) >= 2)

    def start(self) -> None:
        """Boot all nodes at once."""
        namespace.create(self.plan, self.log)
        self._apply_layers()
        states = self._states()

        def run_one(node: Node) -> None:
            state = states.get(node.name)
            if state == "FROZEN":  # a capture was killed
                self._lxc("lxc-unfreeze", node.name)
            elif state != "RUNNING":
                self._lxc("lxc-start", node.name)

        with ThreadPoolExecutor(len(self.plan.topology.nodes)) as pool:
            list(pool.map(run_one, self.plan.topology.nodes))

    def stop(self) -> None:
        """Shut all nodes down cleanly, at once; after 90 seconds they are killed."""
        self._each("lxc-stop", "--timeout", "90", check=False, timeout=180)

    def kill(self) -> None:
        """Stop all nodes at once without asking them."""
        if not self._etc.is_dir() or not namespace.is_there(self.plan):
            return
        up = sorted(name for name, state in self._states().items() if state != "STOPPED")
        with ThreadPoolExecutor(max(len(up), 1)) as pool:
            list(pool.map(lambda name: self._lxc("lxc-stop", name, "--kill", check=False), up))

    # -- layers ------------------------------------------------------------------------

    def _layer(self, name: str, node: Node) -> Path:
        return self.directory / "layers" / name / node.name / "upper"

    def _set_layers(self, base: list[str], upper: str) -> None:
        """Choose the stack of layers; written at once, so a kill leaves the old or the new."""
        for node in self.plan.topology.nodes:
            self._layer(upper, node).mkdir(parents=True)
        files.write_json(self._state, {"base": base, "upper": upper})
        self._apply_layers()

    def _apply_layers(self) -> None:
        state = files.read_json(self._state)
        for node in self.plan.topology.nodes:
            stack = [*(str(self._layer(name, node)) for name in state["base"]), str(self.golden.rootfs)]
            value = ":".join(["overlay", *stack, str(self._layer(state["upper"], node))])
            files.write(self.directory / "rootfs" / node.name, value)
            config = self.directory / "lxc" / node.name / "config"
            if config.is_file():
                lines = config.read_text(encoding="utf-8").splitlines()
                lines = [
                    f"lxc.rootfs.path = {value}" if line.startswith("lxc.rootfs.path") else line
                    for line in lines
                ]
                files.write(config, "\n".join(lines) + "\n")

    @contextmanager
    def _frozen(self) -> Iterator[None]:
        try:
            self._each("lxc-freeze", timeout=60)
            yield
        finally:
            self._each("lxc-unfreeze", check=False, timeout=60)

    def capture(self) -> dict[str, Any]:
        """Copy the writable layers of all nodes at one moment, the nodes frozen meanwhile.

        What the copy holds is what a power cut at that moment would have left, and more:
        everything written, synced or not. Databases recover from that when they start.
        Nothing is stopped. Returns what `revert` needs.
        """
        state = files.read_json(self._state)
        name = uuid.uuid4().hex[:12]
        partial = self.directory / "layers" / f".part-{name}"
        states = set(self._states().values())
        if "FROZEN" in states:  # a capture was killed
            self._each("lxc-unfreeze", check=False, timeout=60)
        up = not states.isdisjoint({"RUNNING", "FROZEN"})
        try:
            with self._frozen() if up else _nothing():
                for node in self.plan.topology.nodes:
                    target = partial / node.name
                    target.mkdir(parents=True)
                    run(
                        ["cp", "-a", "--reflink=auto", self._layer(state["upper"], node), target / "upper"],
                        timeout=600,
                    )
            base = list(state["base"])
            whole = partial
            if len(base) >= LONGEST_CHAIN:
                whole, base = self._flattened(partial, base)
            # A power cut later must not leave a snapshot whose files never reached the disk.
            run(["sync", "--file-system", whole], timeout=300)
            whole.rename(self.directory / "layers" / name)
        finally:
            # On a full disk it must not be this that fills it. A kill leaves it to the next `prune`.
            for path in partial.parent.glob(f"{partial.name}*"):
                shutil.rmtree(path, ignore_errors=True)
        return {"layers": [name, *base]}

    def _flattened(self, top: Path, base: list[str]) -> tuple[Path, list[str]]:
        """The layer `top` with those below it as one; as they were where this kernel lets layers refer."""
        whole = top.with_name(f"{top.name}-whole")
        try:
            for node in self.plan.topology.nodes:
                below = [self._layer(name, node) for name in base]
                layers.merge([top / node.name / "upper", *below], whole / node.name / "upper")
        except layers.Entangled:
            return top, base
        return whole, []

    def revert(self, payload: dict[str, Any]) -> None:
        """Put all nodes back to what `capture` returned `payload` for; they are stopped after."""
        self.kill()
        self._set_layers(list(payload["layers"]), uuid.uuid4().hex[:12])

    def parts(self, payload: dict[str, Any]) -> list[Path]:
        """The directories of the layers over the golden image."""
        return [self.directory / "layers" / name for name in payload["layers"]]

    def prune(self, kept: list[dict[str, Any]]) -> None:
        """Remove the layers that neither the running nodes nor the snapshots `kept` need."""
        state = files.read_json(self._state) or {"base": [], "upper": ""}
        needed = {state["upper"], *state["base"], *(name for payload in kept for name in payload["layers"])}
        for path in (self.directory / "layers").glob("*"):
            if path.name not in needed:
                shutil.rmtree(path, ignore_errors=True)


@contextmanager
def _nothing() -> Iterator[None]:
    yield
