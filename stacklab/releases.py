"""The table of OpenStack releases (stacklab/data/releases.yaml)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from stacklab.errors import InvalidInput, Problem

DATA = Path(__file__).parent / "data"


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


def _row(table: str, kind: str, name: str) -> dict[str, Any]:
    rows: dict[str, dict[str, Any]] = _table()[table]
    if name not in rows:
        message = f"{name!r} is not known: take {', '.join(rows)}"
        raise InvalidInput([Problem("", kind, message)])
    return rows[name]


def release(name: str) -> Release:
    """The row of a release; InvalidInput for an unknown one."""
    row = _row("releases", "release", name)
    return Release(
        name=name,
        distributions=tuple(row["distributions"]),
        packstack=row["packstack"]["version"],
        sha256=row["packstack"]["sha256"],
    )
