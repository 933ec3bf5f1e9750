"""The JSON schema of topology files, for editors: made of the same tables as the check that counts.

It knows what a value looks like, not what it means: addresses that overlap, a missing role or a service
that a release does not have are found by `invoke topologies.validate` only.
"""

from __future__ import annotations

import json
from typing import Any

from stacklab import checker, services, topology
from stacklab.model import ROLES
from stacklab.networks import NETWORKS

Schema = dict[str, Any]

_ADDRESS: Schema = {"type": "string", "format": "ipv4", "pattern": r"^\d+\.\d+\.\d+\.\d+$"}
_SIZE: Schema = {"type": "string", "pattern": f"^{checker.SIZE}$"}

_NETWORK_TEXTS = {
    "management": "Nodes talk to each other, and you to them, over this one.",
    "tunnel": "Tunnels between nodes, where Open vSwitch runs without the kernel.",
    "provider": "The way out for instances, and where floating IPs come from.",
    "tenant": "The first project network, behind a router.",
}
_NETWORK_KEYS: dict[str, Schema] = {
    "host": {**_ADDRESS, "description": "The lab host's own address there."},
    "gateway": {**_ADDRESS, "description": "Where what is for elsewhere is sent."},
    "dns": {"type": "array", "items": _ADDRESS, "description": "Name servers that the nodes ask."},
    "pool": {
        "type": "string",
        "pattern": r"^[\d.]+ *- *[\d.]+$",
        "description": "Floating IPs, such as 203.0.113.101-203.0.113.250.",
    },
}


def schema() -> Schema:
    """The schema as plain values."""
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "A topology of stacklab",
        **_object(_top(), required=["name", "nodes"]),
    }


def text() -> str:
    """The schema as it is committed, topologies/schema.json."""
    return json.dumps(schema(), indent=1) + "\n"


def _object(properties: Schema, required: list[str] | None = None, empty: bool = False) -> Schema:
    """A mapping with these keys and no others; one that may be `empty` may also have no value at all."""
    found: Schema = {"type": ["object", "null"] if empty else "object", "properties": properties}
    return {**found, **({"required": required} if required else {}), "additionalProperties": False}


def _top() -> Schema:
    name = {"pattern": f"^{checker.HOSTNAME}$", "maxLength": topology.NAME_LENGTH}
    answer = {"type": ["string", "number", "boolean"]}
    word = {"enum": list(services.words())}
    found: Schema = {
        "name": {"type": "string", **name, "description": "Names the lab's directory and machines."},
        "description": {"type": "string"},
        "distribution": {"enum": list(topology.DISTRIBUTIONS), "description": "What runs on the nodes."},
        "release": {"enum": list(topology.RELEASES), "description": "The OpenStack release."},
        "provider": {"enum": list(topology.PROVIDERS), "description": "What a node is."},
        "domain": {
            "type": "string",
            "pattern": f"^{checker.DOMAIN}$",
            "maxLength": checker.DOMAIN_LENGTH,
            "description": "Nodes are called controller.DOMAIN and so on.",
        },
        "networks": _object({one: _network(one) for one in NETWORKS}, empty=True),
        "nodes": {
            "type": "object",
            "minProperties": 1,
            "propertyNames": {"pattern": f"^{checker.HOSTNAME}$", "maxLength": topology.NODE_NAME_LENGTH},
            "additionalProperties": _node(),
        },
        "services": {
            "anyOf": [word, {"type": "array", "items": word, "minItems": 1, "uniqueItems": True}],
            "description": "OpenStack services, or names that stand for several.",
        },
        "network_agent": {"enum": list(topology.NETWORK_AGENTS), "description": "Who connects instances."},
        "answers": {
            "type": ["object", "null"],
            "propertyNames": {"pattern": f"^{topology.ANSWER}$"},
            "additionalProperties": answer,
            "description": "Overrides of Packstack's answer file.",
        },
    }
    assert set(found) == set(topology.TOP_KEYS)
    return found


def _network(name: str) -> Schema:
    cidr = {"type": "string", "pattern": r"^[\d.]+/\d+$", "default": NETWORKS[name][0]}
    keys = {key: _NETWORK_KEYS[key] for key in NETWORKS[name][1]}
    return {**_object({"cidr": cidr, **keys}, empty=True), "description": _NETWORK_TEXTS[name]}


def _node() -> Schema:
    least, most = topology.COUNT
    few, many = topology.CPUS
    found: Schema = {
        "roles": {
            "type": "array",
            "items": {"enum": list(ROLES)},
            "minItems": 1,
            "uniqueItems": True,
            "description": "What the node is for.",
        },
        "count": {
            **{"type": "integer", "minimum": least, "maximum": most},
            "description": "So many of them, with consecutive addresses: compute1, compute2 …",
        },
        "management": {
            **_ADDRESS,
            "description": "The address, or the first one, on the management network.",
        },
        "cpus": {"type": "integer", "minimum": few, "maximum": many},
        "memory": {**_SIZE, "description": "Such as 4 GB; powers of two."},
        "disk": {**_SIZE, "description": "Such as 40 GB; powers of two."},
        "extra_disks": {
            **{"type": "array", "items": _SIZE, "maxItems": topology.MOST_DISKS},
            "description": "Further, empty disks, such as [20 GB].",
        },
    }
    assert set(found) == set(topology.NODE_KEYS)
    return _object(found, required=["roles", "management"])
