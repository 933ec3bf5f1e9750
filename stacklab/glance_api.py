"""The calls of Glance's API that uploads need, under one deadline, with errors that say what to do."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, cast

from keystoneauth1 import exceptions as denied
from keystoneauth1.adapter import Adapter

from stacklab.errors import LabError

TAG = "stacklab"

STALLED = 60.0  # seconds without a byte going through, then the connection counts as dead
_CLEANUP = 15.0  # seconds for each request that clears up; the deadline does not hold for these
_PATCH = {"Content-Type": "application/openstack-images-v2.1-json-patch"}


class Glance:
    """The few calls that are needed, with a deadline over all of them."""

    def __init__(self, adapter: Adapter, end: float) -> None:
        self.adapter = adapter
        self.end = end
        self.now = datetime.now(UTC)  # by the server's clock, once it has answered
        self.project: str = adapter.get_project_id() or ""
        self.root: str = re.sub(r"/v2$", "", (adapter.get_endpoint() or "").rstrip("/"))
        if not self.root:
            raise LabError("the cloud's catalogue has no image service", hint="is Glance deployed?")

    def left(self) -> float:
        """Seconds until the deadline; raises LabError once there are none."""
        seconds = self.end - time.monotonic()
        if seconds <= 0:
            raise LabError(
                "Glance took longer than the deadline allows", hint="give it more time, or look at its log"
            )
        return seconds

    def pause(self, seconds: float) -> None:
        time.sleep(min(seconds, self.left()))

    def call(self, method: str, path: str, **more: Any) -> Any:
        """One request without image data; a lost connection is tried again. Never raises on a status."""
        timeout = more.pop("timeout", None) or min(self.left(), STALLED)
        return self.adapter.request(
            self.root + path, method, raise_exc=False, connect_retries=3, timeout=timeout, **more
        )

    def images(self, **filters: str) -> list[dict[str, Any]]:
        """All images that match; without os_hidden="true" only the visible ones."""
        found: list[dict[str, Any]] = []
        path: str | None = "/v2/images"
        parameters: dict[str, str] | None = filters
        while path:
            response = self.call("GET", path, params=parameters)
            expect(response, "list the images", 200)
            body = response.json()
            found += body["images"]
            path, parameters = body.get("next"), None
            self.now = _date(response)
        return found

    def ours(self, **filters: str) -> list[dict[str, Any]]:
        """Our own images, visible and hidden."""
        wanted = {"owner": self.project, "tag": TAG, **filters}
        return [*self.images(**wanted), *self.images(**wanted, os_hidden="true")]

    def get(self, image_id: str) -> dict[str, Any] | None:
        response = self.call("GET", f"/v2/images/{image_id}")
        if response.status_code == 404:
            return None
        expect(response, "read the image", 200)
        return cast(dict[str, Any], response.json())

    def patch(self, row: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
        """Make the image's attributes as `wanted`; False where they were so already."""
        changes = [
            {"op": "replace" if name in row else "add", "path": f"/{name}", "value": value}
            for name, value in wanted.items()
            if name not in row or row[name] != value
        ]
        if not changes:
            return False
        response = self.call("PATCH", f"/v2/images/{row['id']}", json=changes, headers=_PATCH)
        if response.status_code == 403 and "visibility" in {
            name for name in wanted if row.get(name) != wanted[name]
        }:
            raise LabError(
                f"Glance does not let this user make an image {wanted['visibility']}",
                hint="use an administrator's credentials, or visibility `private`",
            )
        expect(response, f"change the image {row['id']}", 200)
        return True

    def delete(self, image_id: str) -> int:
        """The status code: 204 deleted, 404 not there, 403 and 409 protected or in use."""
        return int(self.call("DELETE", f"/v2/images/{image_id}", timeout=_CLEANUP).status_code)


@contextmanager
def explained(adapter: Adapter) -> Iterator[None]:
    """keystoneauth's errors, which name neither cloud nor user, as ours."""
    try:
        yield
    except denied.Unauthorized as error:
        raise LabError(
            f"{_who(adapter)} was refused: {error}", hint="look at user, password and project"
        ) from error
    except denied.ClientException as error:
        raise LabError(
            f"Glance cannot be reached as {_who(adapter)}: {error}", hint="is the lab up? see `status`"
        ) from error


def _who(adapter: Adapter) -> str:
    auth = adapter.auth or adapter.session.auth
    # Of what identifies a login only what is no secret.
    known = {
        str(name).removeprefix("password_"): value for name, value in auth.get_cache_id_elements().items()
    }
    user = known.get("username") or known.get("user_id") or "the user"
    project = known.get("project_name") or known.get("project_id") or "none"
    return f"{user} (project {project}) at {known.get('auth_url', 'the cloud')}"


def expect(response: Any, what: str, code: int) -> None:
    """Raise unless Glance answered with `code`; `what` names the request: "list the images"."""
    if response.status_code == 401:
        raise denied.Unauthorized(f"401 {said(response)}")
    if response.status_code != code:
        raise LabError(f"Glance did not {what}: {response.status_code} {said(response)}")


def said(response: Any) -> str:
    """What the body of an answer says, without its HTML."""
    return " ".join(re.sub(r"<[^>]*>", " ", str(response.text)).split())[:300]


def _date(response: Any) -> datetime:
    """The server's own time, which its images are dated by."""
    try:
        return parsedate_to_datetime(response.headers["Date"])
    except (KeyError, ValueError):
        return datetime.now(UTC)


def retry_after(response: Any) -> float:
    """Seconds that the server asks to wait; 0 where it does not."""
    text = response.headers.get("Retry-After", "")
    return float(text) if text.isdecimal() else 0.0
