"""Uploads to Glance that end with the right image or with none.

A failed upload never replaces a good image: the new one is private and named for what it is
until Glance's own hash of what it received equals the sha512 that was known before.
"""

from __future__ import annotations

import hashlib
import os
import re
import signal
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from io import BufferedReader
from typing import Any, Literal, NoReturn

from keystoneauth1 import exceptions as denied
from keystoneauth1.adapter import Adapter

from stacklab import ui
from stacklab.errors import LabError
from stacklab.glance_api import STALLED, TAG, Glance, expect, explained, retry_after, said
from stacklab.guests import GuestImage

Progress = Callable[[int, int], None]

_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 15.0
_ATTEMPTS = 8
_SAVING = 120.0  # seconds that a server may hold on to a connection that is gone
_DISCARD = 15.0  # seconds for getting rid of an unfinished image, whatever the deadline
_DATE = r"\d{8}-\d{6}"


@dataclass(frozen=True)
class Uploaded:
    """What `upload` did: sent the data, found all as wished, or only changed properties."""

    id: str
    status: Literal["uploaded", "unchanged", "properties"]


@dataclass(frozen=True)
class Listed:
    """An image as Glance has it. `size` in bytes, None while there is no data; `ours`: made by stacklab."""

    id: str
    name: str
    status: str
    visibility: str
    hidden: bool
    size: int | None
    sha512: str
    ours: bool


class _Lost(Exception):
    """Glance holds on to a dead connection: this image is given up, another one tried."""


def upload(
    adapter: Adapter,
    image: GuestImage,
    *,
    visibility: str,
    deadline: float,
    keep: int = 1,
    progress: Progress | None = None,
) -> Uploaded:
    """Have `image` in the project of `adapter`, active, verified and alone under its name.

    An image of ours with the same content is used again, hidden or not; images that are not
    tagged `stacklab` are never touched. Replaced ones are renamed NAME-<date> and hidden, the
    newest `keep` of them stay. `deadline` is in seconds over everything. `progress` is called with
    (bytes sent, bytes in all); it starts again at 0 when a broken upload is tried again.

    Whatever ends the upload, SIGINT and SIGTERM too, no half image of ours is left behind.
    Raises LabError, saying what Glance said and what can be done.
    """
    with _sigterm_raises(), explained(adapter):
        return _Upload(Glance(adapter, time.monotonic() + deadline), image, deadline, progress).run(
            visibility, keep
        )


def list_images(adapter: Adapter) -> list[Listed]:
    """The images that the project of `adapter` sees, with its own hidden ones, by name."""
    with explained(adapter):
        glance = Glance(adapter, time.monotonic() + 60)
        found = [*glance.images(), *glance.images(os_hidden="true", owner=glance.project)]
    listed = [
        Listed(
            id=row["id"],
            name=row["name"] or "",
            status=row["status"],
            visibility=row["visibility"],
            hidden=row["os_hidden"],
            size=row["size"],
            sha512=(row.get("os_hash_value") or "") if row.get("os_hash_algo") == "sha512" else "",
            ours=TAG in row["tags"] and row["owner"] == glance.project,
        )
        for row in found
    ]
    return sorted(listed, key=lambda entry: (entry.name, entry.id))


class _Body:
    """The file as requests reads it: never more or less than `size` bytes, within the deadline."""

    def __init__(
        self, handle: BufferedReader, size: int, left: Callable[[], float], progress: Progress | None
    ) -> None:
        handle.seek(0)
        self._handle, self._size, self._left, self._progress = handle, size, left, progress
        self._sent = self._told = 0

    def __len__(self) -> int:
        return self._size

    def read(self, amount: int = -1) -> bytes:
        self._left()
        rest = self._size - self._sent
        block = self._handle.read(rest if amount < 0 else min(amount, rest))
        if rest and not block:
            # Glance would wait half a minute for what is missing.
            raise _changed(self._handle.name)
        self._sent += len(block)
        if self._progress and (self._sent - self._told >= 1 << 20 or (block and self._sent == self._size)):
            self._told = self._sent
            self._progress(self._sent, self._size)
        return block


class _Upload:
    def __init__(self, glance: Glance, image: GuestImage, deadline: float, progress: Progress | None) -> None:
        self.glance, self.image, self.deadline, self.progress = glance, image, deadline, progress

    def run(self, visibility: str, keep: int) -> Uploaded:
        self._sweep()
        wanted = {
            "name": self.image.name,
            "visibility": visibility,
            "os_hidden": False,
            "min_disk": self.image.min_disk,
            "min_ram": self.image.min_ram,
            **self.image.properties,
        }
        found = self._same_content()
        if found is None:
            uploaded = Uploaded(self._send_new(wanted), "uploaded")
        else:
            uploaded = Uploaded(
                found["id"], "properties" if self.glance.patch(found, wanted) else "unchanged"
            )
        self._rotate(uploaded.id, keep)
        return uploaded

    def _same_content(self) -> dict[str, Any] | None:
        rows = self.glance.ours(os_hash_value=self.image.sha512, status="active")
        rows = [row for row in rows if row["disk_format"] == self.image.disk_format]
        # Of several the visible one, then the oldest: two runs at once have to choose the same.
        return min(rows, key=lambda row: (row["os_hidden"], row["created_at"], row["id"]), default=None)

    def _sweep(self) -> None:
        """Delete our unfinished images that are older than an upload may take."""
        for row in self.glance.images(owner=self.glance.project, tag=TAG, status="in:queued,saving"):
            age = (self.glance.now - datetime.fromisoformat(row["updated_at"])).total_seconds()
            if age > self.deadline:
                self.glance.delete(row["id"])

    def _send_new(self, wanted: Mapping[str, Any]) -> str:
        try:
            with self.image.path.open("rb") as handle:
                for _ in range(3):
                    image_id = str(uuid.uuid4())  # ours to choose: known even when the answer is lost
                    try:
                        return self._send_as(image_id, handle, wanted)
                    except _Lost:
                        self._discard(image_id)
                    except BaseException:
                        self._discard(image_id)
                        raise
        except FileNotFoundError:
            raise LabError(f"{self.image.path} is not there", hint="build the image again") from None
        raise LabError("Glance lost the upload three times over", hint="look at the log of glance-api")

    def _send_as(self, image_id: str, handle: BufferedReader, wanted: Mapping[str, Any]) -> str:
        before = _state(handle)
        if before[0] != self.image.size:
            raise _changed(self.image.path)
        self._create(image_id, wanted)
        self._put_until_through(image_id, handle)
        if _state(handle) != before:
            raise _changed(self.image.path)
        self.glance.patch(self._verified(image_id, handle), wanted)
        return image_id

    def _create(self, image_id: str, wanted: Mapping[str, Any]) -> None:
        row = {
            **{name: value for name, value in wanted.items() if name != "os_hidden"},
            "id": image_id,
            "name": f"{self.image.name} (upload not finished)",
            "visibility": "private",
            "container_format": "bare",
            "disk_format": self.image.disk_format,
            "tags": [TAG],
        }
        response = self.glance.call("POST", "/v2/images", json=row)
        # 409: the first try came through, its answer did not.
        if response.status_code != 409 or self.glance.get(image_id) is None:
            expect(response, "create an image", 201)

    def _put_until_through(self, image_id: str, handle: BufferedReader) -> None:
        """Send the data to the one id until Glance has all of it."""
        pause, renewed = _FIRST_PAUSE, False
        for _ in range(_ATTEMPTS):
            try:
                response = self._put(image_id, handle)
                code, wait = int(response.status_code), retry_after(response)
                trouble = f"{code} {said(response)}"
            except denied.SSLError:
                raise
            except denied.ConnectionError as error:
                code, wait, trouble = 0, 0.0, str(error)
            if code == 204:
                return
            if code == 401 and not renewed:
                renewed = True
                self.glance.adapter.invalidate()
                continue
            if code not in (0, 404, 409, 410, 429, 500, 502, 503, 504):
                self._refused(response)
            if self._arrived(image_id):
                return
            ui.detail(f"upload broken ({trouble}), trying again")
            self.glance.pause(max(wait, pause))
            pause = min(2 * pause, _LONGEST_PAUSE)
        raise LabError(
            f"Glance did not take {self.image.name}, {_ATTEMPTS} times over; the last time: {trouble}"
        )

    def _put(self, image_id: str, handle: BufferedReader) -> Any:
        # keystoneauth would not rewind a half-read file, and get a silently short image: so it must
        # not try again by itself, neither after a cut connection nor after a 401 or a redirect.
        return self.glance.adapter.request(
            f"{self.glance.root}/v2/images/{image_id}/file",
            "PUT",
            raise_exc=False,
            connect_retries=0,
            status_code_retries=0,
            allow_reauth=False,
            redirect=False,
            timeout=(min(self.glance.left(), STALLED), self.glance.left()),
            data=_Body(handle, self.image.size, self.glance.left, self.progress),
            headers={
                "Content-Type": "application/octet-stream",
                "X-OpenStack-Image-Size": str(self.image.size),
            },
        )

    def _arrived(self, image_id: str) -> bool:
        """After a broken PUT: True where Glance has the data all the same, False where it takes it again."""
        patience = time.monotonic() + _SAVING
        while (row := self.glance.get(image_id)) is not None:
            if row["status"] in ("active", "queued"):
                return bool(row["status"] == "active")
            if row["status"] != "saving" or time.monotonic() > patience:
                raise _Lost
            self.glance.pause(_FIRST_PAUSE)
        raise LabError(
            f"the image {self.image.name} was deleted while it was being uploaded",
            hint="somebody else cleans up in this project; upload it again",
        )

    def _refused(self, response: Any) -> NoReturn:
        hints = {
            401: "the token was refused during the upload; are the credentials still valid?",
            403: "the policy of Glance forbids it to this user, or a quota is used up",
            413: "it is larger than image_size_cap of glance-api or than the project's quota",
        }
        size = f"{self.image.name} ({self.image.size} bytes)"
        code = response.status_code
        raise LabError(f"Glance refused {size}: {code} {said(response)}", hint=hints.get(code, ""))

    def _verified(self, image_id: str, handle: BufferedReader) -> dict[str, Any]:
        row = self.glance.get(image_id)
        if row is None:
            raise LabError(f"the image {self.image.name} was deleted before it could be verified")
        expected = self.image.sha512
        if (algorithm := row.get("os_hash_algo") or "sha512") != "sha512":
            handle.seek(0)
            expected = hashlib.file_digest(handle, algorithm).hexdigest()
        if (row["status"], row["size"], row.get("os_hash_value")) != ("active", self.image.size, expected):
            raise LabError(
                f"Glance has {self.image.name} as {row['status']}, {row['size']} bytes, {algorithm} "
                f"{row.get('os_hash_value')}; it should be active, {self.image.size} bytes, {expected}",
                hint=f"the upload was deleted; does {self.image.path} still have its sha512?",
            )
        return row

    def _rotate(self, image_id: str, keep: int) -> None:
        """Rename and hide all others of our images with this name; of those keep the newest `keep`."""
        family = re.compile(f"{re.escape(self.image.name)}(-{_DATE})?")
        others = [
            row
            for row in self.glance.ours(status="active")
            if row["id"] != image_id and family.fullmatch(row["name"] or "")
        ]
        others.sort(key=lambda row: (not row["os_hidden"], row["updated_at"], row["id"]), reverse=True)
        for row in others:
            made = datetime.fromisoformat(row["created_at"])
            self.glance.patch(row, {"name": f"{self.image.name}-{made:%Y%m%d-%H%M%S}", "os_hidden": True})
        for row in others[keep:]:
            if self.glance.delete(row["id"]) not in (204, 404):
                ui.warn(f"Glance keeps the old image {row['name']} ({row['id']}): protected or in use")

    def _discard(self, image_id: str) -> None:
        end = time.monotonic() + _DISCARD
        while time.monotonic() < end:
            try:
                if (code := self.glance.delete(image_id)) in (204, 404):
                    return
                trouble = str(code)
            except denied.ClientException as error:
                trouble = str(error)  # the first error is the one to raise
            # Glance may just be noticing that the connection is gone; its DELETE loses that race.
            time.sleep(_FIRST_PAUSE)
        ui.warn(f"the unfinished image {image_id} is still there ({trouble}); a later upload will delete it")


@contextmanager
def _sigterm_raises() -> Iterator[None]:
    """Let SIGTERM unwind the stack as Ctrl-C does, where nobody else handles it."""
    ours = (
        threading.current_thread() is threading.main_thread()
        and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    )

    def leave(number: int, _frame: object) -> NoReturn:
        raise SystemExit(128 + number)

    if ours:
        signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        if ours:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _state(handle: BufferedReader) -> tuple[int, int]:
    found = os.fstat(handle.fileno())
    return found.st_size, found.st_mtime_ns


def _changed(path: object) -> LabError:
    return LabError(
        f"{path} is changing while it is uploaded, or not what it was", hint="build the image again"
    )
