"""The matrix of OpenStack releases (stacklab/data/releases.yaml)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from stacklab.errors import InvalidInput, Problem
from stacklab.yamlfile import read_own

DATA = Path(__file__).parent / "data"
STATUSES = ("maintained", "unmaintained", "end of life")


@dataclass(frozen=True)
class Release:
    """An OpenStack release and the Packstack that installs it.

    `distributions` are those that its packages run on, `python` is the EL platform's version;
    `enabling` is the package that adds the repositories, and `repositories` has their addresses by
    name. `packages` are what an EL node needs besides Packstack. `sha256` is that of Packstack's
    published wheel, empty where the package index has none. The first of `network_agents` is the
    default. `quirks` are sentences for people.
    """

    name: str
    series: str
    status: str
    distributions: tuple[str, ...]
    python: str
    enabling: str
    repositories: Mapping[str, str]
    packages: tuple[str, ...]
    packstack: str
    sha256: str
    network_agents: tuple[str, ...]
    quirks: tuple[str, ...]


@cache
def _table() -> dict[str, dict[str, Any]]:
    table: dict[str, dict[str, Any]] = read_own(DATA / "releases.yaml")
    return table


def names() -> tuple[str, ...]:
    """All releases, the oldest first."""
    return tuple(_table())


def release(name: str) -> Release:
    """The row of a release; InvalidInput for an unknown one."""
    if name not in _table():
        message = f"{name!r} is not known: take {', '.join(names())}"
        raise InvalidInput([Problem("", "release", message)])
    row = _table()[name]
    return Release(
        name=name,
        **{key: row[key] for key in ("series", "status", "python", "enabling")},
        distributions=tuple(row["distributions"]),
        repositories={path.rsplit("/", 1)[1]: f"{row['mirror']}/{path}/" for path in row["repositories"]},
        packages=tuple(row["packages"]),
        packstack=row["packstack"]["version"],
        sha256=row["packstack"]["sha256"] or "",
        network_agents=tuple(row["network_agents"]),
        quirks=tuple(row["quirks"]),
    )
