"""The data's way into an image that Glance has already made: by PUT, or by its import.

Each function returns once Glance says that it has everything, and proves nothing: what it has is
for the caller to verify.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import BufferedReader
from typing import Any

from keystoneauth1 import exceptions as denied

from stacklab import glance_api
from stacklab.errors import LabError
from stacklab.glance_api import BUSY, Glance, Unavailable, expect, refused, retry_after, said

Progress = Callable[[int, int], None]

# Large blocks save half of the client's CPU time: urllib3 alone would take 16 KiB at a time.
BLOCK = 1 << 20
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 15.0
ATTEMPTS = 8
SAVING = 120.0  # seconds that a server may hold on to a connection that is gone
ANSWER = 120.0  # seconds that it may take to answer once it has all; then it is asked how far it is
UNHEARD = 60.0  # seconds that an import may wait before its first sign of life


class Lost(Exception):
    """Glance holds on to a dead connection: this image is given up, another one tried."""


@dataclass(frozen=True)
class Source:
    """An open image file, as it was when the upload began. `size` in bytes; sent in blocks of `block`."""

    handle: BufferedReader
    name: str
    size: int
    progress: Progress | None = None
    block: int = BLOCK


def changed(path: object) -> LabError:
    """The error for a file that is not what it was."""
    return LabError(
        f"{path} is changing while it is uploaded, or not what it was", hint="build the image again"
    )


class _Body:
    """The file as requests sends it: never more or less than its size, within the deadline."""

    def __init__(self, source: Source, left: Callable[[], float]) -> None:
        self.source, self.left = source, left
        self.sent = 0

    def __len__(self) -> int:
        return self.source.size

    def __iter__(self) -> Iterator[memoryview]:
        size, progress, descriptor = self.source.size, self.source.progress, self.source.handle.fileno()
        block = self.source.block
        view = memoryview(bytearray(block))
        while self.sent < size:
            self.left()
            got = os.preadv(descriptor, [view[: min(block, size - self.sent)]], self.sent)
            if not got:
                # Glance would wait half a minute for what is missing.
                raise changed(self.source.handle.name)
            yield view[:got]
            self.sent += got
            if progress is not None:
                progress(self.sent, size)


def put(glance: Glance, image_id: str, source: Source) -> None:
    """Send the data to the one id until Glance has all of it."""
    _until_through(glance, image_id, source, "file")


def direct(glance: Glance, image_id: str, source: Source) -> None:
    """Send the data to Glance's staging area, then have it imported from there."""
    _until_through(glance, image_id, source, "stage")
    _import(glance, image_id, source.name, {"name": "glance-direct"})


def web_download(glance: Glance, image_id: str, name: str, uri: str) -> None:
    """Have Glance fetch the data itself."""
    _import(glance, image_id, name, {"name": "web-download", "uri": uri})


def _until_through(glance: Glance, image_id: str, source: Source, where: str) -> None:
    pause, renewed = FIRST_PAUSE, False
    for _ in range(ATTEMPTS):
        body, start = _Body(source, glance.left), time.monotonic()
        try:
            response = _put(glance, f"{image_id}/{where}", body)
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
            glance.adapter.invalidate()
            continue
        if code not in (0, 404, 409, 410, *BUSY):
            refused(response, f"{source.name} ({source.size} bytes)", body.sent)
        if _arrived(glance, image_id, source, patience=max(SAVING, time.monotonic() - start)):
            return
        glance.pause(max(wait, pause))
        pause = min(2 * pause, LONGEST_PAUSE)
    raise LabError(
        f"Glance did not take {source.name}, {ATTEMPTS} times over; the last time: {trouble}",
        hint="the log of glance-api says why",
    )


def _put(glance: Glance, path: str, body: _Body) -> Any:
    # keystoneauth would not rewind a half-read file, and get a silently short image: so it must
    # not try again by itself, neither after a cut connection nor after a 401 or a redirect.
    return glance.adapter.request(
        f"{glance.root}/v2/images/{path}",
        "PUT",
        raise_exc=False,
        connect_retries=0,
        status_code_retries=0,
        allow_reauth=False,
        redirect=False,
        timeout=(min(glance.left(), glance_api.STALLED), min(glance.left(), ANSWER)),
        data=body,
        headers={
            "Content-Type": "application/octet-stream",
            "X-OpenStack-Image-Size": str(len(body)),
        },
    )


def _arrived(glance: Glance, image_id: str, source: Source, patience: float) -> bool:
    """After a broken PUT: True where Glance has the data all the same, False where it takes it again.

    `patience` is the seconds that it may be in doubt, or not answer.
    """
    end = time.monotonic() + patience
    while True:
        try:
            row = glance.get(image_id)
        except (denied.ConnectionError, Unavailable):
            if time.monotonic() > end:
                raise
            glance.pause(FIRST_PAUSE)
            continue  # it may be starting again
        if row is None:
            raise deleted(source.name)
        if row["status"] == "queued":
            return False
        # Staged data has a size once it is whole.
        if row["status"] == "active" or (row["status"] == "uploading" and row["size"] == source.size):
            return True
        if row["status"] not in ("saving", "uploading") or time.monotonic() > end:
            raise Lost
        glance.pause(FIRST_PAUSE)


def deleted(name: str) -> LabError:
    """The error for an image that somebody deleted meanwhile."""
    return LabError(
        f"the image {name} was deleted while it was being uploaded",
        hint="somebody else cleans up in this project; upload it again",
    )


def _import(glance: Glance, image_id: str, name: str, method: dict[str, str]) -> None:
    response = glance.call("POST", f"/v2/images/{image_id}/import", json={"method": method})
    # 409: the first try came through, its answer did not.
    if response.status_code != 409:
        expect(response, f"import {name} by {method['name']}", 202)
    unheard, pause = time.monotonic() + UNHEARD, FIRST_PAUSE / 2
    while (row := glance.get(image_id)) is not None:
        state, why = _task(glance, image_id)
        # An import writes the whole image once more after it is active, which undoes what others
        # changed meanwhile (its name, its visibility): it is over when its task is.
        if row["status"] == "active" and state in ("", "success") and not row.get("os_glance_import_task"):
            return
        failed = state == "failure" or row.get("os_glance_failed_import") or row["status"] == "killed"
        silent = not state and row["status"] == "queued" and time.monotonic() > unheard
        if failed or silent:
            told = why or f"its state is {row['status']}"
            hint = (
                "can the cloud reach that address? `[import_filtering_opts]` of glance-api says which it may"
            )
            raise LabError(
                f"the cloud could not import {name} by {method['name']}: {told}",
                hint=hint if "uri" in method else "the log of glance-api says why",
            )
        glance.pause(pause)
        pause = min(1.5 * pause, 2.0)
    raise deleted(name)


def _task(glance: Glance, image_id: str) -> tuple[str, str]:
    """State and message of the newest import; empty where this Glance does not tell."""
    response = glance.call("GET", f"/v2/images/{image_id}/tasks")
    tasks = glance.body(response, "tasks")["tasks"] if response.status_code == 200 else []
    newest: dict[str, Any] = max(
        tasks, key=lambda task: str(task.get("updated_at") or task["created_at"]), default={}
    )
    return str(newest.get("status") or ""), str(newest.get("message") or "")


class Handover:
    """Whose it is to get rid of the unfinished image when another thread stops the upload."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._image_id = ""
        self._committed = False

    def begin(self, image_id: str) -> None:
        """From now on, an image of this id may be there."""
        with self._lock:
            self._image_id = image_id

    def commit(self, glance: Glance) -> None:
        """From now on the upload can no more be stopped. Raises Stopped where it was."""
        with self._lock:
            glance.left()
            self._committed = True

    def stop(self, glance: Glance) -> str:
        """Stop the upload; the id of the image to delete, an empty one where there is none to delete."""
        with self._lock:
            if self._committed:
                return ""
            glance.stop()
            return self._image_id
