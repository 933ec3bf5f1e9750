"""The keys of one Packstack version's answer file: data/packstack/VERSION.json, as scripts/packstack-keys.py
made it from that version itself."""

from __future__ import annotations

import json
import secrets as random_source
import string
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from stacklab.errors import LabError

DATA = Path(__file__).resolve().parent / "data" / "packstack"

SECRET_LENGTH = 24
# puppet-heat takes 16, 24 or 32 characters only (heat::engine, auth_encryption_key).
SECRET_LENGTHS = {"CONFIG_HEAT_AUTH_ENC_KEY": 32}
# Two keys for the password of one Keystone user, "trove" (plugins/trove_850.py).
SAME_SECRET = {"CONFIG_TROVE_NOVA_PW": "CONFIG_TROVE_KS_PW"}


@dataclass(frozen=True)
class Key:
    """A parameter of one Packstack version.

    `runtime`: what Packstack computes the default from ("address", "host-name", "home",
    "secret"). It reads the key where `condition` (another key's value) holds; `always` is
    false also for conditions that only Packstack can tell.
    """

    name: str
    default: str | None
    runtime: str | None
    options: tuple[str, ...]
    validators: tuple[str, ...]
    masked: bool
    deprecates: tuple[str, ...]
    condition: tuple[str, str] | None
    always: bool


@cache
def table(packstack: str) -> Mapping[str, Key]:
    """Every key of this Packstack version by name, in Packstack's order. LabError where there is no table."""
    try:
        raw = json.loads((DATA / f"{packstack}.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        known = ", ".join(sorted(path.stem for path in DATA.glob("*.json")))
        raise LabError(
            f"no key table for Packstack {packstack} (there are: {known})",
            hint=f"scripts/packstack-keys.py {packstack}",
        ) from None
    conditions = {group["name"]: group["condition"] for group in raw["groups"]}
    return {row["name"]: _key(row, conditions[row["group"]]) for row in raw["parameters"]}


def _key(row: dict[str, Any], condition: dict[str, str] | None) -> Key:
    return Key(
        name=row["name"],
        default=None if row["default"] is None else str(row["default"]),
        runtime=row.get("runtime"),
        options=tuple(row.get("options", ())),
        validators=tuple(row.get("validators", ())),
        masked=row.get("masked", False),
        deprecates=tuple(row.get("deprecates", ())),
        condition=(condition["key"], condition["equals"]) if condition and "key" in condition else None,
        always=condition is None,
    )


def secret_names(packstack: str) -> tuple[str, ...]:
    """The keys that need a secret of the lab's own, in Packstack's order.

    Those that Packstack would draw itself. Other masked keys (LDAP, NetApp, subscription
    passwords) belong to something outside the lab and keep their empty default.
    """
    keys = table(packstack).items()
    return tuple(name for name, key in keys if key.runtime == "secret" and name not in SAME_SECRET)


def draw(packstack: str) -> dict[str, str]:
    """A new secret for each of `secret_names`: letters and digits.

    The first is a letter: Packstack replaces a value that reads as a number (process_string_nofloat).
    """
    alphabet = string.ascii_letters + string.digits
    return {
        name: random_source.choice(string.ascii_letters)
        + "".join(random_source.choice(alphabet) for _ in range(SECRET_LENGTHS.get(name, SECRET_LENGTH) - 1))
        for name in secret_names(packstack)
    }
