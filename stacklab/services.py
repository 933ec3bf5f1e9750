"""Services by their project names: what each needs, who has it, and what it means elsewhere.

This is the only place that knows services; all of it comes from data/services.yaml.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from stacklab.errors import InvalidInput, Problem
from stacklab.model import Topology
from stacklab.releases import DATA
from stacklab.yamlfile import read_own

# What a topology has that names no services.
DEFAULT = "beginner"


@dataclass(frozen=True)
class Service:
    """One service. `switch` is Packstack's key for it, '' where it comes with what it needs.

    `api` is port and path of its API on the controller, '' for none; `api_before` a major version of
    Packstack and where the API was before it. `first` and `last` are the major versions that have the
    service; `last` 0 for the newest.
    """

    name: str
    about: str
    needs: tuple[str, ...]
    switch: str
    api: str
    api_before: tuple[int, str]
    first: int
    last: int

    def api_of(self, packstack: str) -> str:
        """Port and path of its API where this version of Packstack made it, '' for none."""
        version, place = self.api_before
        return place if _major(packstack) < version else self.api


def _major(packstack: str) -> int:
    return int(packstack.partition(".")[0])


@cache
def _data() -> dict[str, Any]:
    data: dict[str, Any] = read_own(DATA / "services.yaml")
    return data


@cache
def table() -> Mapping[str, Service]:
    """Every service by name, in the order in which they are shown."""
    found = {}
    for name, row in _data()["services"].items():
        first, last = row.get("packstack", (0, 0))
        found[name] = Service(
            name=name,
            about=row["about"],
            needs=tuple(row.get("needs", ())),
            switch=row.get("switch", ""),
            api=row.get("api", ""),
            api_before=tuple(row.get("api_before", (0, ""))),
            first=first,
            last=last,
        )
    return found


def presets() -> tuple[str, ...]:
    """The names that stand for several services."""
    return tuple(_data()["presets"])


def words() -> tuple[str, ...]:
    """All that may stand under `services:` of a topology."""
    return (*table(), *presets())


def expand(names: Iterable[str]) -> tuple[str, ...]:
    """The services that services and presets stand for, each once, in the table's order."""
    found: set[str] = set()
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        if name in table():
            found.add(name)
        else:
            waiting += _data()["presets"][name]
    return tuple(name for name in table() if name in found)


def known(names: Iterable[str]) -> tuple[str, ...]:
    """`expand` of names that a person typed. Raises InvalidInput for those that do not exist."""
    names = [name.strip() for name in names]
    message = f"unknown: take some of {', '.join(words())}"
    problems = [Problem("", f"services: '{name}'", message) for name in names if name not in words()]
    if problems:
        raise InvalidInput(problems)
    return expand(names)


def of_role(role: str) -> str:
    """The service whose data nodes of a role keep; '' where the role is for none."""
    return str(_data()["roles"].get(role, ""))


def missing(chosen: Iterable[str]) -> list[str]:
    """What these services need and is not among them, as messages."""
    chosen = tuple(chosen)
    found = []
    if chosen and "keystone" not in chosen:
        found.append("'keystone' is missing: add it, every other service needs it")
    for name in chosen:
        needs = [need for need in table()[name].needs if need not in (*chosen, "keystone")]
        if needs:
            found.append(f"'{name}' needs {', '.join(needs)}: add what is missing")
    return found


def obstacle(name: str, packstack: str, distribution: str) -> str:
    """Why this Packstack version on this distribution cannot have a service; '' when it can."""
    service = table()[name]
    major = _major(packstack)
    if service.first and major < service.first:
        return f"Packstack has it from {service.first} on, this is {packstack}"
    if service.last and major > service.last:
        return f"Packstack had it until {service.last}, this is {packstack}"
    row = _data()["distributions"].get(distribution, {})
    return str(row.get("without", {}).get(name, ""))


@dataclass(frozen=True)
class Choice:
    """The services of a lab; `left_out` says what a preset had to go without, and why."""

    services: tuple[str, ...]
    left_out: tuple[str, ...]
    problems: tuple[Problem, ...]


def choose(topology: Topology, packstack: str, distribution: str) -> Choice:
    """What of a topology's services this Packstack version on this distribution can have.

    A service that came with a preset is left out where it cannot be, with all that need it;
    one that is named itself is a problem then.
    """
    reasons: dict[str, str] = {}
    before = -1
    while len(reasons) > before:
        before = len(reasons)
        for name in topology.services:
            gone = [need for need in table()[name].needs if need in reasons]
            reason = obstacle(name, packstack, distribution) or (f"it needs {gone[0]}" if gone else "")
            if reason:
                reasons.setdefault(name, reason)
    return Choice(
        services=tuple(name for name in topology.services if name not in reasons),
        left_out=tuple(
            f"{name} is left out: {reason}"
            for name, reason in reasons.items()
            if name not in topology.named_services
        ),
        problems=tuple(
            Problem(topology.file, "services", f"'{name}' cannot be here: {reason}")
            for name, reason in reasons.items()
            if name in topology.named_services
        ),
    )


def extras(distribution: str, chosen: Iterable[str]) -> tuple[str, ...]:
    """The elements that a golden image needs for these services beside its usual ones."""
    row = _data()["distributions"].get(distribution, {})
    if "element" not in row or set(chosen) <= set(expand([row["image"]])):
        return ()
    return (row["element"],)


def switches() -> dict[str, str]:
    """Packstack's key for each service that has one, with the service's name."""
    return {service.switch: name for name, service in table().items() if service.switch}


def answers(topology: Topology, provider: str) -> dict[str, str]:
    """The answers that a provider asks for with these services; a topology's own win over them."""
    rows: dict[str, dict[str, str]] = _data()["answers"].get(provider, {})
    return {
        key: value.format(controller=topology.controller.management)
        for service, answers in rows.items()
        if service in topology.services
        for key, value in answers.items()
    }
