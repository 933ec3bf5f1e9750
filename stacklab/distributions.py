"""The table of distributions that golden images are built of (stacklab/data/distributions.yaml)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from stacklab.errors import InvalidInput, Problem
from stacklab.yamlfile import read_own

DATA = Path(__file__).parent / "data" / "distributions.yaml"

# All start from the same disk, which the table has under the first one's name.
MACHINES = ("libvirt", "virtualbox", "vmware_desktop")


@dataclass(frozen=True)
class Distribution:
    """What golden images are made of.

    `family` is debian or el, `version` what diskimage-builder calls DIB_RELEASE, `release` the
    default OpenStack release, `network` the service that configures a node's interfaces, `identity`
    the package whose version is the distribution's. The
    first of `builders` is the default; `network_agents`, where there are any, are those of a
    release's that work there. `elements` are diskimage-builder's, in order;
    `dashboard` is the path below which Horizon's packages are built to be served.
    `providers` has those that each provider adds. `archive` is the root of the public archive, empty for
    Debian, whose mirror is the build host's; `indexes` are the paths below it, and below that of
    the security archive, of what names all their packages.
    """

    name: str
    title: str
    family: str
    version: str
    release: str
    network: str
    identity: str
    builders: tuple[str, ...]
    elements: tuple[str, ...]
    environment: Mapping[str, str]
    providers: Mapping[str, tuple[str, ...]]
    archive: str
    indexes: Mapping[str, tuple[str, ...]]
    network_agents: tuple[str, ...]
    dashboard: str

    @property
    def runs_on(self) -> tuple[str, ...]:
        """The providers whose nodes can start from its images."""
        return tuple(
            name for form in self.providers for name in (MACHINES if form == MACHINES[0] else (form,))
        )

    def form(self, provider: str) -> str:
        """The one of `providers` whose image serves that provider too: virtual machines share a disk."""
        return MACHINES[0] if provider in MACHINES else provider


@cache
def _table() -> dict[str, Any]:
    table: dict[str, Any] = read_own(DATA)
    return table


def names() -> tuple[str, ...]:
    """All distributions, in the table's order."""
    return tuple(_table())


def advice(runs_on: Sequence[str]) -> str:
    """What to take for a lab of what runs on these distributions: one that golden images are built of."""
    built = [name for name in runs_on if name in _table()]
    nothing = (
        f"it runs on {', '.join(runs_on)} only, which no golden image is built of: `invoke answers` and "
    )
    return f"take {', '.join(built)}" if built else f"{nothing}`invoke releases` know it, labs do not"


def distribution(name: str) -> Distribution:
    """The row of a distribution; InvalidInput for an unknown one."""
    if name not in _table():
        message = f"{name!r} is not known: take {', '.join(names())}"
        raise InvalidInput([Problem("", "distribution", message)])
    row = _table()[name]
    return Distribution(
        name=name,
        **{key: row[key] for key in ("title", "family", "version", "release", "network", "identity")},
        builders=tuple(row["builders"]),
        elements=tuple(row["elements"]),
        environment=row.get("environment", {}),
        archive=row.get("archive", ""),
        indexes={key: tuple(paths) for key, paths in row.get("indexes", {}).items()},
        providers={key: tuple(elements) for key, elements in row["providers"].items()},
        network_agents=tuple(row.get("network_agents", ())),
        dashboard=row.get("dashboard", "/dashboard"),
    )
