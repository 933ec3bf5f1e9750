"""Cinder: a volume keeps what an instance wrote until another instance reads it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from stacklab import storage
from stacklab.errors import NotHealthy
from stacklab.verify import instances
from stacklab.verify.context import PREFIX, Context, Row, Timer, until

SECONDS = 180.0  # for each step; attaching takes a few


def check(context: Context) -> Iterator[Row]:
    """Attach a new volume to one instance, which writes its name on it, then to another, which reads it.

    The probe guest does both by itself when a second disk appears, and says so on its console.
    """
    timer = Timer()
    volume = context.demo.block_storage.create_volume(name=PREFIX, size=1)
    _wait(context, volume, "available")
    yield timer.row("volume", f"1 GiB, available, on {_keeper(context, volume)}")
    writer, reader = context.servers["provider"], context.servers["tenant"]
    _attach(context, volume, writer)
    name = _said(context, writer, r"instance-id=(i-[0-9a-f]+)")
    _said(context, writer, "volume (written)")
    yield timer.row("volume attached", f"{name} wrote on it")
    _detach(context, volume, writer)
    _attach(context, volume, reader)
    held = _said(context, reader, r"volume held (\S*)")
    if held != name:
        raise NotHealthy(f"the volume held {held!r} where {name} was written")
    yield timer.row("volume attached elsewhere", f"holds what {name} wrote")
    _detach(context, volume, reader)


def _keeper(context: Context, volume: Any) -> str:
    """The node whose cinder-volume has the volume."""
    host = str(context.admin.block_storage.get_volume(volume.id).host)
    expected = storage.keepers(context.plan.topology, storage.BLOCK)
    for node in expected:
        if host.partition("@")[0] == node.fqdn:
            return node.name
    names = ", ".join(node.fqdn for node in expected)
    raise NotHealthy(
        f"the volume is on {host} instead of {names}", hint="`invoke status` shows what runs where"
    )


def _logs(context: Context) -> str:
    names = [node.name for node in storage.keepers(context.plan.topology, storage.BLOCK)]
    return (
        f"see /var/log/cinder on {', '.join(dict.fromkeys((*names, context.plan.topology.controller.name)))}"
    )


def _attach(context: Context, volume: Any, server: Any) -> None:
    context.demo.compute.create_volume_attachment(server, volume_id=volume.id)
    _wait(context, volume, "in-use")


def _detach(context: Context, volume: Any, server: Any) -> None:
    context.demo.compute.delete_volume_attachment(server, volume)
    _wait(context, volume, "available")


def _wait(context: Context, volume: Any, status: str) -> None:
    def reached() -> str:
        now = context.demo.block_storage.get_volume(volume.id).status
        if now.startswith("error"):
            raise NotHealthy(f"the volume is in {now}", hint=_logs(context))
        return str(now) if now == status else ""

    until(f"volume that is {status}", context.limit(SECONDS), reached)


def _said(context: Context, server: Any, pattern: str) -> str:
    def found() -> str:
        match = re.search(f"STACKLAB-PROBE .*{pattern}", instances.console(context.demo, server))
        return match[1] or "nothing" if match else ""

    return until(f"'{pattern}' on the console of {server.name}", context.limit(SECONDS), found)


def sweep(context: Context) -> None:
    """Remove the volume; one that is still attached is detached first."""
    storage = context.demo.block_storage
    volumes = [volume for volume in storage.volumes() if volume.name == PREFIX]
    for volume in volumes:
        for attachment in volume.attachments:
            context.demo.compute.delete_volume_attachment(attachment["server_id"], volume.id)
            _wait(context, volume, "available")
        storage.delete_volume(volume)
    for volume in volumes:
        storage.wait_for_delete(volume, wait=context.limit(SECONDS))
