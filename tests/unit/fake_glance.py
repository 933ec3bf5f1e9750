"""A Glance in memory, for what needs no real one: what is asked of it, and in which order."""

from __future__ import annotations

import hashlib
import json
from types import SimpleNamespace
from typing import Any

DATE = "2026-01-01T00:00:00Z"


class FakeGlance:
    """Stands in for a keystoneauth adapter. `rows` are the images by id, `asked` methods and paths.

    `algorithm` is its hashing_algorithm; an empty one makes it a Glance older than Rocky, which has
    md5 sums only and hides nothing.
    """

    def __init__(self, algorithm: str = "sha512") -> None:
        self.algorithm = algorithm
        self.rows: dict[str, dict[str, Any]] = {}
        self.asked: list[str] = []
        self.auth = None
        self.session = SimpleNamespace(auth=None)

    def get_project_id(self) -> str:
        return "ours"

    def get_endpoint(self) -> str:
        return "http://glance/v2"

    def add(self, image_id: str, **more: Any) -> dict[str, Any]:
        """An image of ours, whole and visible unless `more` says otherwise; `data` is its content."""
        data = more.pop("data", b"")
        row = {
            **{"id": image_id, "name": "probe", "owner": "ours", "tags": ["stacklab"], "status": "active"},
            **{"visibility": "private", "disk_format": "raw", "container_format": "bare"},
            **{"created_at": DATE, "updated_at": DATE, **self._hashed(data), **more},
        }
        self.rows[image_id] = {**({"os_hidden": False} if self.algorithm else {}), **row}
        return self.rows[image_id]

    def seen(self, name: str = "probe") -> list[str]:
        """The ids of the visible images of that name."""
        return [key for key, row in self.rows.items() if row["name"] == name and not row.get("os_hidden")]

    def _hashed(self, data: bytes) -> dict[str, Any]:
        found: dict[str, Any] = {"size": len(data), "checksum": hashlib.md5(data).hexdigest()}
        if self.algorithm:
            digest = hashlib.new(self.algorithm, data).hexdigest()
            found |= {"os_hash_algo": self.algorithm, "os_hash_value": digest}
        return found

    def request(self, url: str, method: str, **more: Any) -> Any:
        path = url.removeprefix("http://glance/v2/images").strip("/")
        self.asked.append(f"{method} {path}".strip())
        code, body = self._answer(method, path, more)
        # As it crosses the wire: what the caller has is a copy.
        text = json.dumps(body)
        return SimpleNamespace(status_code=code, text=text, headers={}, json=lambda: json.loads(text))

    def _answer(self, method: str, path: str, more: dict[str, Any]) -> tuple[int, Any]:
        if method == "POST":
            return 201, self.add(**{"image_id": more["json"].pop("id"), "status": "queued", **more["json"]})
        if not path:
            return self._listed(dict(more["params"]))
        row = self.rows.get(path.removesuffix("/file"))
        if row is None:
            return 404, {}
        if method == "DELETE":
            return 204, self.rows.pop(path) and {}
        if method == "PUT":
            row |= {"status": "active", **self._hashed(b"".join(bytes(block) for block in more["data"]))}
            return 204, {}
        return self._changed(row, more["json"]) if method == "PATCH" else (200, row)

    def _changed(self, row: dict[str, Any], changes: list[dict[str, Any]]) -> tuple[int, Any]:
        for change in changes:
            name = change["path"].removeprefix("/")
            if name not in row and not isinstance(change.get("value"), str):
                return 400, "a property is text"
            if change["op"] == "remove":
                del row[name]
            else:
                row[name] = change["value"]
        return 200, row

    def _listed(self, filters: dict[str, str]) -> tuple[int, Any]:
        # What stands before a colon is an operator: split_filter_op of glance/common/utils.py.
        operator, colon, _ = filters.get("name", "").partition(":")
        if colon and operator not in ("eq", "in"):
            return 400, f"Unable to filter by unknown operator '{operator}'."
        hidden = filters.pop("os_hidden", "false") == "true"
        tag = filters.pop("tag", "")
        if hidden and not self.algorithm:
            return 200, {"images": []}  # it takes this for the name of a property
        found = [
            row
            for row in self.rows.values()
            if bool(row.get("os_hidden")) == hidden
            and (not tag or tag in row["tags"])
            and all(row.get(name) == value for name, value in filters.items())
        ]
        return 200, {"images": found}
