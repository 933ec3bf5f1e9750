"""The calls of Glance's API that uploads need, under one deadline, with errors that say what to do."""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, NoReturn

from keystoneauth1 import exceptions as denied
from keystoneauth1.adapter import Adapter

from stacklab.errors import LabError

TAG = "stacklab"
UNFINISHED = " (upload not finished)"
# An image's property that names its others: those that are ours to remove once they are not wanted.
OWN_PROPERTIES = "stacklab_properties"
# A property for a Glance older than Rocky, which cannot hide: the name of an image before it was replaced.
REPLACED = "stacklab_replaced"

STALLED = 60.0  # seconds without a byte going through, then the connection counts as dead
# An image on its way, or that never arrived; a deactivated one is whole, and an administrator's decision.
_ON_ITS_WAY = ("queued", "saving", "uploading", "importing", "killed")
# What a Glance that starts again answers, or the load balancer before it.
BUSY = (429, 500, 502, 503, 504)
_CLEANUP = 15.0  # seconds for each request that clears up; the deadline does not hold for these
_RETRIES = {"connect_retries": 3, "status_code_retries": 3, "retriable_status_codes": [500, 502, 503, 504]}
_PATCH = {"Content-Type": "application/openstack-images-v2.1-json-patch"}
# Where nobody handles them, Python writes its warnings to standard error.
logging.getLogger("keystoneauth").addHandler(logging.NullHandler())


class Stopped(Exception):
    """Another thread has called `Glance.stop`."""


class Unavailable(LabError):
    """Glance cannot answer just now, as while it starts again."""


class Glance:
    """The few calls that are needed, with a deadline over all of them. `end`: of time.monotonic()."""

    def __init__(self, adapter: Adapter, end: float) -> None:
        self.adapter = adapter
        self.end = end
        self._stop = threading.Event()
        self.now = datetime.now(UTC)  # by the server's clock, once it has answered
        self.project: str = adapter.get_project_id() or ""
        self.root: str = re.sub(r"/v2$", "", (adapter.get_endpoint() or "").rstrip("/"))
        if not self.root:
            raise LabError("the cloud's catalogue has no image service", hint="is Glance deployed?")

    def stop(self) -> None:
        """Let whatever another thread does here end soon, by `Stopped`."""
        self._stop.set()

    def left(self) -> float:
        """Seconds until the deadline; raises LabError once there are none, Stopped after `stop`."""
        if self._stop.is_set():
            raise Stopped
        seconds = self.end - time.monotonic()
        if seconds <= 0:
            raise LabError(
                "Glance took longer than the deadline allows", hint="give it more time, or look at its log"
            )
        return seconds

    def pause(self, seconds: float) -> None:
        """Wait, for no longer than `left`."""
        self._stop.wait(min(seconds, self.left()))

    def call(self, method: str, path: str, **more: Any) -> Any:
        """One request without image data; a lost connection is tried again. Never raises on a status."""
        timeout = more.pop("timeout", None) or min(self.left(), STALLED)
        return self.adapter.request(
            self.root + path, method, raise_exc=False, timeout=timeout, **_RETRIES, **more
        )

    def body(self, response: Any, key: str) -> dict[str, Any]:
        """What an answer holds, `key` among it. Raises LabError where that is not what a Glance answers."""
        try:
            found = response.json()
        except ValueError:
            found = None
        if not isinstance(found, dict) or key not in found:
            raise LabError(
                f"what answers at {self.root} is no Glance: {said(response)[:100]}",
                hint="look at image_endpoint_override of the cloud in clouds.yaml",
            )
        return found

    def images(self, **filters: str) -> list[dict[str, Any]]:
        """All images that match; without os_hidden="true" only the visible ones."""
        found: list[dict[str, Any]] = []
        path: str | None = "/v2/images"
        parameters: dict[str, str] | None = filters
        while path:
            response = self.call("GET", path, params=parameters)
            expect(response, "list the images", 200)
            body = self.body(response, "images")
            found += body["images"]
            path, parameters = body.get("next"), None
            self.now = _date(response)
        return found

    def ours(self, **filters: str) -> list[dict[str, Any]]:
        """Our own images, visible and hidden."""
        wanted = {"owner": self.project, "tag": TAG, **filters}
        return [*self.images(**wanted), *self.images(**wanted, os_hidden="true")]

    def import_methods(self) -> list[str]:
        """The ways of `import` that this cloud offers; none where it knows nothing of that."""
        response = self.call("GET", "/v2/info/import")
        if response.status_code == 404:
            return []
        expect(response, "tell its import methods", 200)
        return [str(name) for name in self.body(response, "import-methods")["import-methods"]["value"]]

    def get(self, image_id: str) -> dict[str, Any] | None:
        response = self.call("GET", f"/v2/images/{image_id}")
        if response.status_code == 404:
            return None
        expect(response, "read the image", 200)
        return self.body(response, "status")

    def patch(self, row: Mapping[str, Any], wanted: Mapping[str, Any], *, missing_ok: bool = False) -> bool:
        """Make the image's attributes as `wanted`; False where they were so already.

        Where they are all that an upload wants, properties go that one of ours set before. With
        `missing_ok` the image may be gone, which is False too.
        """
        changes = [
            {"op": "replace" if name in row else "add", "path": f"/{name}", "value": value}
            for name, value in wanted.items()
            if (name not in row or row[name] != value)
            # Before Rocky, Glance cannot hide, and would take this for a property.
            and (name != "os_hidden" or name in row)
        ]
        if OWN_PROPERTIES in wanted:  # all of them, not one change
            dropped = {REPLACED, *str(row.get(OWN_PROPERTIES, "")).split(",")} - set(wanted)
            changes += [{"op": "remove", "path": f"/{name}"} for name in sorted(dropped & set(row))]
        if not changes:
            return False
        response = self.call("PATCH", f"/v2/images/{row['id']}", json=changes, headers=_PATCH)
        if response.status_code == 404 and missing_ok:
            return False
        if response.status_code == 403 and "visibility" in {
            name for name in wanted if row.get(name) != wanted[name]
        }:
            raise LabError(
                f"Glance does not let this user make an image {wanted['visibility']}: 403 {said(response)}",
                hint="make it `private` or `shared`, or use an administrator's credentials",
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
    except denied.CatalogException as error:
        raise LabError(
            f"{_who(adapter)} finds no image service: {error}", hint="is the region right, and the interface?"
        ) from error
    except denied.ClientException as error:
        # Of a login that fails in TLS only the text speaks of it.
        if isinstance(error, denied.SSLError) or "certificate verify failed" in str(error):
            raise _untrusted(str(error)) from error
        raise LabError(
            f"Glance cannot be reached as {_who(adapter)}: {error}",
            hint="is the cloud up, and its address right?",
        ) from error
    except OSError as error:
        # requests' own, of a file that it is to trust or to log in by.
        if "invalid path" not in str(error):
            raise
        raise LabError(
            str(error), hint="look at cacert, cert and key of the cloud in clouds.yaml, or at OS_CACERT"
        ) from error


def _untrusted(text: str) -> LabError:
    found = re.search(r"https://([^/\s'\"]*[^/\s'\":])|host='([^']+)', port=(\d+)", text)
    host = next((part for part in found.groups() if part), "the cloud") if found else "the cloud"
    if found and found[3]:
        host = f"{found[2]}:{found[3]}"
    cause = re.search(r"certificate verify failed: ([^(\"\\]+)", text)
    why = cause[1].strip() if cause else text[:200]
    if "expired" in why or "not yet valid" in why:
        hint = "it has to be renewed there; or is this machine's clock wrong? `date` tells"
    elif "mismatch" in why or "not valid for" in why:
        hint = "use the name that the certificate is for in `auth_url`"
    else:
        hint = (
            "name the file with the CA's certificate as `cacert` of the cloud in clouds.yaml, or in OS_CACERT"
        )
    return LabError(f"the certificate of {host} is not trusted: {why}", hint=hint)


def _who(adapter: Adapter) -> str:
    auth = adapter.auth or adapter.session.auth
    # Of what identifies a login only what is no secret.
    # auth_type: none has no such method.
    elements: dict[str, Any] = getattr(auth, "get_cache_id_elements", dict)() or {}
    known = {
        re.sub(r"^.*?(?=user|project|auth_url|application_)", "", str(k)): v for k, v in elements.items()
    }
    user = known.get("username") or known.get("user_id") or known.get("application_credential_name")
    user = user or known.get("application_credential_id") or "the user"
    project = known.get("project_name") or known.get("project_id") or "none"
    cloud = getattr(adapter, "cloud", "")
    where = f"{known.get('auth_url') or 'its address'}"
    return f"{user} (project {project}) at {f'the cloud {cloud}, {where}' if cloud else where}"


def expect(response: Any, what: str, code: int) -> None:
    """Raise unless Glance answered with `code`; `what` names the request: "list the images"."""
    if response.status_code == 401:
        raise denied.Unauthorized(f"401 {said(response)}")
    if response.status_code != code:
        error = Unavailable if response.status_code in BUSY else LabError
        raise error(
            f"Glance did not {what}: {response.status_code} {said(response)}", hint=_hint(response, 0)
        )


def refused(response: Any, what: str, sent: int) -> NoReturn:
    """Raise for data that Glance will not take, however often it is sent; `sent` in bytes."""
    raise LabError(
        f"Glance refused {what}: {response.status_code} {said(response)}", hint=_hint(response, sent)
    )


def _hint(response: Any, sent: int) -> str:
    text = said(response).lower()
    if response.status_code == 413 and "image is too large" in text:
        at_most = f", at most {sent / (1 << 20):.1f} MiB here," if sent else ""
        return f"image_size_cap of glance-api{at_most} is smaller: compress the image, or have it raised"
    if response.status_code == 413 or "quota" in text or "over limit" in text:
        return "a quota of the project is used up: `images.prune`, delete images, or have the quota raised"
    hints = {
        400: "does something between here and Glance, such as a proxy, change what is sent?",
        401: "the token was refused; are the credentials still valid?",
        403: "the policy of Glance forbids it to this user, or a quota is used up",
    }
    return hints.get(response.status_code, "") if sent or response.status_code == 403 else ""


def said(response: Any) -> str:
    """What the body of an answer says, without its HTML."""
    return " ".join(re.sub(r"<[^>]*>", " ", str(response.text)).split())[:300]


def container(disk_format: str) -> str:
    """The container format that goes with a disk format: itself for Amazon's three, else bare."""
    return disk_format if disk_format in ("ami", "aki", "ari") else "bare"


def hashed(row: Mapping[str, Any]) -> tuple[str, str]:
    """The algorithm by which Glance has hashed an image's data, and the digest in hex."""
    if algorithm := row.get("os_hash_algo"):
        return str(algorithm), str(row.get("os_hash_value"))
    return "md5", str(row.get("checksum"))  # before Rocky


def unfinished(row: Mapping[str, Any]) -> bool:
    """Whether an image of ours was never committed."""
    return row["status"] in _ON_ITS_WAY or (row["name"] or "").endswith(UNFINISHED)


def _date(response: Any) -> datetime:
    """The server's own time, which its images are dated by."""
    try:
        return parsedate_to_datetime(response.headers["Date"])
    except (KeyError, ValueError):
        return datetime.now(UTC)


def retry_after(response: Any) -> float:
    """Seconds that the server asks to wait, given as such or as a date; 0 where it does not ask."""
    text = response.headers.get("Retry-After", "")
    if text.isdecimal():
        return float(text)
    try:
        return max(0.0, (parsedate_to_datetime(text) - _date(response)).total_seconds())
    except (TypeError, ValueError):
        return 0.0
