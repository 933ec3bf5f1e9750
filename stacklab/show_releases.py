"""What the tasks show of the OpenStack releases."""

from __future__ import annotations

import dataclasses
import json

from stacklab import distributions, ui
from stacklab.releases import Release, names, release


def releases(name: str, as_json: bool) -> None:
    """All releases in a table, or everything about one. Raises InvalidInput for an unknown one."""
    found = [release(one) for one in ((name,) if name else names())]
    if as_json:
        ui.out(json.dumps([dataclasses.asdict(row) for row in found], indent=2))
    elif name:
        _one(found[0])
    else:
        ui.table(
            "",
            ("release", "series", "status", "runs on", "Python", "Packstack", "network agents"),
            [
                (
                    *(row.name, row.series, row.status, ", ".join(row.distributions), row.python),
                    *(row.packstack, ", ".join(row.network_agents)),
                )
                for row in found
            ],
        )
        built = ", ".join(distributions.names())
        ui.out(f"status: as of the middle of 2026; golden images can be built of: {built}")


def _one(row: Release) -> None:
    """Everything about one release, a line each."""
    wheel = f"sha256 {row.sha256}" if row.sha256 else "not in the package index"
    lines = [
        ("series", row.series),
        ("status", row.status),
        ("runs on", ", ".join(row.distributions)),
        ("Python", row.python),
        ("Packstack", f"{row.packstack}, {wheel}"),
        ("network agents", ", ".join(row.network_agents)),
        ("enabling package", row.enabling),
        *(("repository", f"{name}: {url}") for name, url in row.repositories.items()),
        ("further packages", ", ".join(row.packages) or "none"),
        *(("note", quirk) for quirk in row.quirks),
    ]
    for label, text in lines:
        ui.out(f"{label + ':':18}{text}")
