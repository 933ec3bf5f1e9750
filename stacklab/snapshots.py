"""Snapshots of all nodes of a lab at one moment, by name. A stage's snapshot has the stage's name."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stacklab import files
from stacklab.errors import InvalidInput, LabError, Problem
from stacklab.plan import Plan, from_json
from stacklab.providers import Provider

NAME = re.compile(r"[a-z0-9][a-z0-9.-]{0,39}")


@dataclass(frozen=True)
class Snapshot:
    """`key` is that of the stage the lab was at; `created` in seconds since the epoch.

    `plan` is the lab's plan of that moment, as plain values.
    """

    name: str
    stage: str
    key: str
    created: int
    payload: dict[str, Any]
    plan: dict[str, Any] = field(default_factory=dict, compare=False)

    def planned(self, lab: Plan) -> Plan:
        """What the lab is once it is back at this snapshot; its name is the one that it has here."""
        return from_json({**self.plan, "lab": lab.lab}) if self.plan else lab


def _directory(plan: Plan) -> Path:
    return plan.directory / "snapshots"


def listed(plan: Plan) -> tuple[Snapshot, ...]:
    """The lab's snapshots, the oldest first. Only whole ones are ever there."""
    found = [Snapshot(**files.read_json(path)) for path in _directory(plan).glob("[!.]*.json")]
    return tuple(sorted(found, key=lambda snapshot: snapshot.created))


def get(plan: Plan, name: str) -> Snapshot:
    """The snapshot of that name; LabError names those that exist."""
    found = {snapshot.name: snapshot for snapshot in listed(plan)}
    if name not in found:
        names = ", ".join(found) or "none yet"
        raise LabError(f"there is no snapshot {name!r} of the lab {plan.lab}", hint=f"there are: {names}")
    return found[name]


def check_name(name: str, reserved: Sequence[str]) -> None:
    """Raise InvalidInput unless a user may give a snapshot this name."""
    if not NAME.fullmatch(name):
        raise InvalidInput(
            [Problem("", "name", f"{name!r}: take lower-case letters, digits, dashes and dots")]
        )
    if name in reserved:
        raise InvalidInput(
            [Problem("", "name", f"{name!r} is a name of stacklab's own snapshots: take another")]
        )


def save(plan: Plan, provider: Provider, name: str, stage: str, key: str) -> Snapshot:
    """Capture all nodes under `name`; one of that name is replaced once the new one is whole."""
    snapshot = Snapshot(name, stage, key, int(time.time()), provider.capture(), plan.as_json())
    files.write_json(_directory(plan) / f"{name}.json", snapshot.__dict__, mode=0o600)
    prune(plan, provider)
    return snapshot


def restore(plan: Plan, provider: Provider, snapshot: Snapshot) -> None:
    """Put all nodes back; they are stopped afterwards."""
    provider.revert(snapshot.payload)
    prune(plan, provider)


def delete(plan: Plan, provider: Provider, name: str) -> None:
    """Forget a snapshot and free what only it needed."""
    get(plan, name)
    (_directory(plan) / f"{name}.json").unlink()
    prune(plan, provider)


def forget_all(plan: Plan) -> None:
    """Forget every snapshot; `prune` then frees what they needed."""
    for path in _directory(plan).glob("*.json"):
        path.unlink()


def prune(plan: Plan, provider: Provider) -> None:
    """Free what neither the nodes nor a snapshot needs."""
    provider.prune([snapshot.payload for snapshot in listed(plan)])


@dataclass(frozen=True)
class Size:
    """Bytes on the disk over the golden image: of all that a snapshot needs, and of what only it needs."""

    whole: int
    own: int


def sizes(plan: Plan, provider: Provider) -> dict[str, Size]:
    """What each snapshot takes, by name. The running nodes share parts with those they were restored to."""
    parts = {snapshot.name: provider.parts(snapshot.payload) for snapshot in listed(plan)}
    users = Counter(part for needed in parts.values() for part in set(needed))
    usage = {part: files.disk_usage(part) for part in users}
    return {
        name: Size(sum(usage[p] for p in needed), sum(usage[p] for p in needed if users[p] == 1))
        for name, needed in parts.items()
    }
