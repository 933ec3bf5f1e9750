"""Swift: an object is put, listed and got back with the same bytes; it lies where objects belong.

A wrong checksum is refused.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Iterator
from typing import Any

from stacklab import remote, storage
from stacklab.errors import NotHealthy
from stacklab.verify.context import PREFIX, Context, Row, Timer

SIZE = 3 << 20  # bytes; several of Swift's 64 KiB chunks
OBJECT = "random-bytes"


def check(context: Context) -> Iterator[Row]:
    """Put and get an object of random bytes as demo, compared by checksum on both sides."""
    timer, swift = Timer(), context.demo.object_store
    content = secrets.token_bytes(SIZE)
    md5 = hashlib.md5(content, usedforsecurity=False).hexdigest()
    swift.create_container(name=PREFIX)
    place = f"/{PREFIX}/{OBJECT}"
    wrong = swift.put(place, data=content, headers={"ETag": "0" * 32})
    if wrong.status_code != 422:
        raise NotHealthy(f"Swift took an object with a wrong checksum: it answered {wrong.status_code}")
    _expect(201, swift.put(place, data=content, headers={"ETag": md5}))
    yield timer.row("object put", f"{SIZE >> 20} MiB, its checksum checked by Swift")
    names = [entry.name for entry in swift.objects(PREFIX)]
    got = _expect(200, swift.get(place))
    if hashlib.sha256(got.content).digest() != hashlib.sha256(content).digest():
        raise NotHealthy(f"Swift gave back other bytes than it got: {len(got.content)} of {SIZE}")
    if names != [OBJECT]:
        raise NotHealthy(f"Swift lists {names} instead of {OBJECT}")
    yield timer.row("object got", "the same bytes, by sha256")
    account = swift.get_endpoint().rpartition("/")[2]
    yield timer.row("object's place", _place(context, account))


def _place(context: Context, account: str) -> str:
    """The nodes and devices that the rings give the object to, each asked whether it has it."""
    import requests

    nodes = {node.management: node for node in storage.keepers(context.plan.topology, storage.OBJECT)}
    command = f"swift-get-nodes /etc/swift/object.ring.gz {account} {PREFIX} {OBJECT}"
    said = remote.ssh(context.plan, context.plan.topology.controller, command).output
    # It prints a command for each place; those after the replicas' are where one would go if theirs failed.
    found = re.findall(r'-XHEAD "(http://([\d.]+):\d+/([^/]+)/[^"]+)"(?!.*\[Handoff\])', said)
    if not found:
        raise NotHealthy(f"Swift's rings have no place for an object: {said[:200]}")
    session = requests.Session()
    session.trust_env = False
    places, missed = [], []
    for url, address, device in found:
        if address not in nodes:
            raise NotHealthy(f"Swift's rings place objects on {address} instead of {', '.join(nodes)}")
        status = session.head(url, timeout=context.limit(10)).status_code
        if status == 200:
            places.append(f"{nodes[address].name}, {device}")
        else:  # a replica may come later
            missed.append(f"{nodes[address].name}, {device} answers {status}")
    if not places:
        raise NotHealthy(f"the object is on none of its devices: {'; '.join(missed)}")
    return "; ".join(places)


def _expect(status: int, answer: Any) -> Any:
    if answer.status_code != status:
        raise NotHealthy(
            f"Swift answered {answer.status_code} instead of {status}: {answer.text[:200]}",
            hint="on the controller: journalctl -u 'swift-*'",
        )
    return answer


def sweep(context: Context) -> None:
    """Remove the container with its objects."""
    swift = context.demo.object_store
    if any(container.name == PREFIX for container in swift.containers()):
        for entry in list(swift.objects(PREFIX)):
            swift.delete_object(entry, container=PREFIX)
        swift.delete_container(PREFIX)
