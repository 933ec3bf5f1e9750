"""The table of distributions and OpenStack releases (stacklab/data/releases.yaml)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

DATA = Path(__file__).parent / "data"


@dataclass(frozen=True)
class Distribution:
    """What golden images are made of. `elements` are diskimage-builder's, in order."""

    name: str
    title: str
    codename: str
    release: str
    providers: tuple[str, ...]
    elements: tuple[str, ...]


@dataclass(frozen=True)
class Release:
    """An OpenStack release and the Packstack that installs it. `sha256` is its wheel's."""

    name: str
    distributions: tuple[str, ...]
    packstack: str
    sha256: str


@cache
def _table() -> dict[str, Any]:
    table: dict[str, Any] = yaml.safe_load((DATA / "releases.yaml").read_text(encoding="utf-8"))
    return table


def distribution(name: str) -> Distribution:
    """The row of a distribution; KeyError for an unknown one (a topology is checked before)."""
    row = _table()["distributions"][name]
    return Distribution(
        name=name,
        title=row["title"],
        codename=row["codename"],
        release=row["release"],
        providers=tuple(row["providers"]),
        elements=tuple(row["elements"]),
    )


def release(name: str) -> Release:
    """The row of a release; KeyError for an unknown one."""
    row = _table()["releases"][name]
    return Release(
        name=name,
        distributions=tuple(row["distributions"]),
        packstack=row["packstack"]["version"],
        sha256=row["packstack"]["sha256"],
    )
