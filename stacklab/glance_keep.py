"""Order among the images in Glance: one visible under a name, older ones hidden, few of them kept."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from keystoneauth1.adapter import Adapter

from stacklab import glance_send
from stacklab.glance_api import REPLACED, TAG, Glance, explained
from stacklab.guests import GuestImage

_DATE = r"\d{8}-\d{6}"
_SECONDS = 60.0  # for all that is done here
_LARGE = 600.0


@dataclass(frozen=True)
class Listed:
    """An image as Glance has it. `size` in bytes, None while there is no data; `ours`: made by stacklab.

    `before`: the name that a replaced version had, else empty.
    """

    id: str
    name: str
    status: str
    visibility: str
    hidden: bool
    size: int | None
    sha512: str
    ours: bool
    before: str


@dataclass(frozen=True)
class Side:
    """A local image and one in Glance, side by side; either may be missing.

    `equal`: has Glance the bytes of the local one? None where there is nothing to compare.
    """

    name: str
    local: GuestImage | None
    remote: Listed | None
    equal: bool | None


@dataclass(frozen=True)
class Pruned:
    """An image that `prune` deletes. `done`: it is gone; else `why` it is still there. `size` in bytes."""

    id: str
    name: str
    size: int | None
    done: bool
    why: str


def list_images(adapter: Adapter) -> list[Listed]:
    """The images that the project of `adapter` sees, with its own hidden ones, by name.

    Raises LabError when Glance does not answer or refuses.
    """
    with explained(adapter):
        glance = Glance(adapter, time.monotonic() + _SECONDS)
        found = [*glance.images(), *glance.images(os_hidden="true", owner=glance.project)]
    listed = [
        Listed(
            id=row["id"],
            name=row["name"] or "",
            status=row["status"],
            visibility=row["visibility"],
            hidden=bool(row.get("os_hidden")),
            size=row["size"],
            sha512=(row.get("os_hash_value") or "") if row.get("os_hash_algo") == "sha512" else "",
            ours=TAG in row["tags"] and row["owner"] == glance.project,
            before=_before(row),
        )
        for row in found
    ]
    return sorted(listed, key=lambda entry: (entry.name, entry.id))


def listed(adapter: Adapter, local: Iterable[GuestImage]) -> list[Side]:
    """Local images beside what Glance has under their names, then all others that Glance has.

    Each local image comes with every version of it in Glance, the visible one first. Raises LabError
    as `list_images` does.
    """
    remote = list_images(adapter)
    sides: list[Side] = []
    for image in sorted(local, key=lambda image: (image.name, image.disk_format)):
        of_it = [entry for entry in remote if image.name in (entry.name, entry.before)]
        of_it.sort(key=lambda entry: (entry.hidden, entry.sha512 != image.sha512, entry.name))
        sides += [Side(image.name, image, entry, _equal(image, entry)) for entry in of_it]
        if not of_it:
            sides.append(Side(image.name, image, None, None))
    shown = {side.remote.id for side in sides if side.remote}
    return sides + [Side(entry.name, None, entry, None) for entry in remote if entry.id not in shown]


def _equal(image: GuestImage, entry: Listed) -> bool | None:
    return entry.sha512 == image.sha512 if entry.sha512 and image.sha512 else None


def prune(adapter: Adapter, names: Sequence[str], yes: bool = False) -> list[Pruned]:
    """Delete the hidden older versions of our images that Glance calls `names`, of all without names.

    Without `yes` nothing is deleted: the result is what would be. Visible images, those of others,
    and those that stacklab did not rename are never deleted. Raises LabError as `list_images` does.
    """
    with explained(adapter):
        glance = Glance(adapter, time.monotonic() + _LARGE)
        old = [
            row
            for row in glance.ours(status="active")
            if (before := _before(row)) and (not names or before in names)
        ]
        old.sort(key=lambda row: (row["name"], row["id"]))
        return [_prune(glance, row, yes) for row in old]


def _prune(glance: Glance, row: dict[str, Any], yes: bool) -> Pruned:
    code = 0
    if yes:
        code = 403 if row.get("protected") else glance.delete(row["id"])
    why = "" if not yes or code in (204, 404) else _kept(code)
    return Pruned(row["id"], row["name"], row["size"], yes and not why, why)


def _put_back(glance: Glance, name: str, image_id: str) -> None:
    """Put the image back in its place where none of ours is in it.

    Two uploads at once may have moved each other's away. Each looks after its last move, so that one
    at least stays; of two that stay, the next upload moves one.
    """
    # Glance would take what stands before a colon in the name for an operator.
    if any(row["name"] == name for row in glance.images(owner=glance.project, tag=TAG, status="active")):
        return
    row = glance.get(image_id)
    if row is None:
        raise glance_send.deleted(name)
    glance.patch(row, {"name": name, "os_hidden": False})


def _kept(code: int) -> str:
    return {403: "protected", 409: "in use"}.get(code, f"Glance answers {code}")


def of_name(row: Mapping[str, Any], name: str) -> bool:
    """Whether an image of ours has this name, or had it until stacklab replaced it."""
    return name in (row["name"], _before(row))


def _before(row: Mapping[str, Any]) -> str:
    """The name that an image had before stacklab renamed it; '' where that did not happen.

    A date in the name alone proves nothing: files of a user's may be called so.
    """
    found = re.fullmatch(rf"(.+)-{_DATE}", row["name"] or "")
    if found is None:
        return ""
    replaced = row["os_hidden"] if "os_hidden" in row else row.get(REPLACED) == found[1]
    return found[1] if replaced else ""


def rotate(glance: Glance, rows: Iterable[dict[str, Any]], name: str, image_id: str, keep: int) -> list[str]:
    """Rename and hide all others of our images with this name; of those keep the newest `keep`.

    `rows`: all of our images, as Glance lists them. Returns warnings: what could not be deleted.
    """
    others = [
        row for row in rows if row["id"] != image_id and row["status"] == "active" and of_name(row, name)
    ]
    others.sort(key=lambda row: (not row.get("os_hidden"), row["updated_at"], row["id"]), reverse=True)
    moved = False
    for row in others:
        made = datetime.fromisoformat(row["created_at"])
        mark = {"os_hidden": True} if "os_hidden" in row else {REPLACED: name}
        wanted = {"name": f"{name}-{made:%Y%m%d-%H%M%S}", **mark}
        # Two uploads at once keep the same order, so the other one may have deleted it.
        moved |= glance.patch(row, wanted, missing_ok=True)
    if moved:
        _put_back(glance, name, image_id)
    return [
        f"Glance keeps the old image {row['name']} ({row['id']}): {_kept(code)}"
        for row in others[keep:]
        if not _is_back(glance, name, row["id"]) and (code := glance.delete(row["id"])) not in (204, 404)
    ]


def _is_back(glance: Glance, name: str, image_id: str) -> bool:
    """Whether the upload that an image is of has put it back meanwhile: then it stays."""
    row = glance.get(image_id)
    return row is not None and bool(row["name"] == name)
