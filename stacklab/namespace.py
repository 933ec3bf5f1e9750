"""The network namespace of a lab: its networks live there and nowhere else.

10.0.0.0/24 and 203.0.113.0/24 may well be in use where the lab runs; inside a
namespace they collide with nothing.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import ip_interface, ip_network
from pathlib import Path

from stacklab import files
from stacklab.errors import LabError
from stacklab.plan import Plan
from stacklab.run import run

BRIDGES = ("br-mgmt", "br-provider", "br-tunnel")
_OWNERS = Path("/run/stacklab")
_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


def path(plan: Plan) -> Path:
    """Where the kernel shows the namespace."""
    return Path("/run/netns") / plan.namespace


def _owner(plan: Plan) -> Path:
    """The file that names the directory of the lab that made the namespace."""
    return _OWNERS / f"{plan.namespace}.owner"


def is_foreign(plan: Plan) -> bool:
    """Whether another checkout's lab of that name, or a ruin of one, has the namespace."""
    if not path(plan).exists():
        return False
    try:
        owner = Path(_owner(plan).read_text(encoding="utf-8"))
    except FileNotFoundError:
        owner = plan.directory
    # The directory of a checkout that was moved is not there any more.
    return not plan.directory.exists() or (owner != plan.directory and owner.exists())


def refuse_foreign(plan: Plan) -> None:
    """Raise LabError where the namespace is another checkout's."""
    if is_foreign(plan):
        hint = "take another name (--lab), or `invoke down` there; where that checkout is gone: "
        hint += f"`ip netns delete {plan.namespace}`"
        raise LabError(f"{path(plan)} belongs to a lab {plan.lab} of another checkout", hint=hint)


def commands(plan: Plan) -> list[list[str]]:
    """The commands that make the namespace with its bridges."""
    ip = ["ip", "-n", plan.namespace]
    topology = plan.topology
    provider = topology.provider_network
    management = topology.management
    addresses = {
        # A gateway of its own answers too, as if there were a router.
        "br-mgmt": [
            _with_prefix(address, management.cidr)
            for address in dict.fromkeys((management.host, management.gateway))
        ],
        "br-provider": [_with_prefix(provider.gateway, provider.cidr)],
    }
    made = [["ip", "netns", "add", plan.namespace], [*ip, "link", "set", "lo", "up"]]
    for bridge in bridges(plan):
        made.append([*ip, "link", "add", bridge, "type", "bridge"])
        for address in addresses.get(bridge, ()):
            made.append([*ip, "address", "add", address, "dev", bridge])
        made.append([*ip, "link", "set", bridge, "up"])
    if plan.datapath == "netdev" and bridges(plan):
        # A userspace Open vSwitch gets the host's packets as they are: their checksums must be complete.
        made.append([*enter(plan), "ethtool", "-K", "br-provider", "tx", "off"])
    return made


def bridges(plan: Plan) -> tuple[str, ...]:
    """The bridges that containers are connected to; a virtual machine's provider makes its own."""
    return BRIDGES if plan.provider == "lxc" else ()


def _with_prefix(address: str, cidr: str) -> str:
    return str(ip_interface(f"{address}/{ip_network(cidr).prefixlen}"))


def create(plan: Plan, log: Path) -> None:
    """Make the namespace, unless it is there and whole (a host forgets it when it reboots)."""
    if is_whole(plan):
        return
    delete(plan, log)
    files.write(_owner(plan), str(plan.directory))
    for command in commands(plan):
        run(command, log=log, timeout=30)


def is_whole(plan: Plan) -> bool:
    """Whether the namespace is there with all its bridges."""
    links = _links(plan)
    return links is not None and all(f" {bridge}:" in links for bridge in bridges(plan))


def is_there(plan: Plan) -> bool:
    """Whether the namespace can be entered: of one that ended with a reboot its file may be left."""
    return _links(plan) is not None


def _links(plan: Plan) -> str | None:
    if not path(plan).exists():
        return None
    links = run(["ip", "-n", plan.namespace, "-o", "link"], check=False, timeout=30)
    return links.output if links.code == 0 else None


def delete(plan: Plan, log: Path | None = None) -> None:
    """Remove the namespace and with it every interface inside; fine when there is none."""
    if path(plan).exists():
        run(["ip", "netns", "delete", plan.namespace], log=log, timeout=30)
    _owner(plan).unlink(missing_ok=True)


def enter(plan: Plan) -> list[str]:
    """The beginning of a command that runs where the lab's networks are."""
    if not plan.isolated:
        return []
    return ["nsenter", f"--net={path(plan)}"]


@contextmanager
def entered(plan: Plan) -> Iterator[None]:
    """Run the block with this thread where the lab's networks are; sockets made there stay there.

    Raises LabError where the lab should have a namespace and has none.
    """
    if not plan.isolated:
        yield
        return
    if threading.current_thread() is not threading.main_thread():
        raise RuntimeError("only the main thread enters a namespace")
    home = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        try:
            inside = os.open(path(plan), os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise LabError(f"the lab {plan.lab} has no network namespace", hint="run `invoke up`") from None
        try:
            _setns(inside)
        finally:
            os.close(inside)
        try:
            yield
        finally:
            _setns(home)
    finally:
        os.close(home)


def ping(address: str) -> bool:
    """Whether an address answers one ping, from where the main thread is."""
    return run(["ping", "-q", "-c", "1", "-W", "2", address], check=False, timeout=10).code == 0


def _setns(descriptor: int) -> None:
    if _libc.setns(descriptor, _CLONE_NEWNET) != 0:
        number = ctypes.get_errno()
        raise LabError(
            f"cannot enter the network namespace: {os.strerror(number)}", hint="stacklab needs root"
        )
