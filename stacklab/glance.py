"""Uploads to Glance that end with the right image or with none.

A failed upload never replaces a good image: the new one is private and named for what it is
until Glance's own hash of what it received equals the sha512 of the file.
"""

from __future__ import annotations

import os
import signal
import threading
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import datetime
from io import BufferedReader
from pathlib import Path
from typing import Any, Literal, NoReturn

from keystoneauth1 import exceptions as denied
from keystoneauth1.adapter import Adapter

from stacklab import files, glance_send, ui, upload_hash
from stacklab.errors import Busy, LabError
from stacklab.glance_api import (
    OWN_PROPERTIES,
    TAG,
    UNFINISHED,
    Glance,
    container,
    expect,
    explained,
    hashed,
    unfinished,
)
from stacklab.glance_keep import Listed, Pruned, Side, list_images, listed, of_name, prune, rotate
from stacklab.glance_send import Handover, Lost, Progress, Source, changed
from stacklab.guests import GuestImage

__all__ = [
    "METHODS",
    "Listed",
    "Method",
    "Pruned",
    "Side",
    "Upload",
    "Uploaded",
    "list_images",
    "listed",
    "prune",
    "sigterm_raises",
    "upload",
]

Method = Literal["", "glance-direct", "web-download"]
METHODS: tuple[Method, ...] = ("glance-direct", "web-download")

_DISCARD = 15.0  # seconds for getting rid of an unfinished image, whatever the deadline
# An unfinished image of another machine's may be in the making for as long; one of this machine's
# is known to be nobody's any more as soon as its lock is free.
_STALE = 86400.0


@dataclass(frozen=True)
class Uploaded:
    """What `upload` did: sent the data, found all as wished, or only changed properties."""

    id: str
    status: Literal["uploaded", "unchanged", "properties"]


def upload(
    adapter: Adapter,
    image: GuestImage,
    *,
    visibility: str,
    deadline: float,
    keep: int = 1,
    progress: Progress | None = None,
    method: Method = "",
    uri: str = "",
) -> Uploaded:
    """Have `image` in the project of `adapter`, active, verified and alone under its name.

    An image of ours with the same name and content is used again, hidden or not; images that are not
    tagged `stacklab` are never touched. Replaced ones are renamed NAME-<date> and hidden, the
    newest `keep` of them stay. `deadline` is in seconds over everything. `progress` is called with
    (bytes sent, bytes in all); it starts again when a broken upload is tried again. `method` is
    one of Glance's import methods, an empty one its plain upload; `uri` is where web-download finds
    the very bytes of `image.path`.

    Whatever ends the upload, SIGINT and SIGTERM too, no half image of ours is left behind.
    Raises LabError, saying what Glance said and what can be done.
    """
    with sigterm_raises(), explained(adapter):
        run = Upload(adapter, image, deadline, progress, method, uri)
        try:
            return run.run(visibility, keep)
        finally:
            for note in run.notes:
                ui.warn(note)


class Upload:
    """One upload. `run` does it; `stop`, called by another thread, ends it. `notes`: warnings."""

    def __init__(
        self,
        adapter: Adapter,
        image: GuestImage,
        deadline: float,
        progress: Progress | None = None,
        method: Method = "",
        uri: str = "",
        block: int = glance_send.BLOCK,
    ) -> None:
        self.glance = Glance(adapter, time.monotonic() + deadline)
        self.image, self.progress, self.method, self.uri = image, progress, method, uri
        self.block = block
        self.notes: list[str] = []
        self._left_over: set[str] = set()
        self._handover = Handover()
        self._digests = {"sha512": upload_hash.Later(image.path, image.sha512)}

    def run(self, visibility: str, keep: int) -> Uploaded:
        """See `upload`."""
        self._possible()
        rows = self.glance.ours()
        self._sweep(rows)
        wanted = {
            "name": self.image.name,
            "visibility": visibility,
            "os_hidden": False,
            "min_disk": self.image.min_disk,
            "min_ram": self.image.min_ram,
            **self.image.properties,
            OWN_PROPERTIES: ",".join(sorted(self.image.properties)),
        }
        found = self._same_content(rows)
        if found is None:
            uploaded = Uploaded(self._send_new(wanted), "uploaded")
            rows = self.glance.ours()  # much may have happened meanwhile
        else:
            self._handover.commit(self.glance)
            uploaded = Uploaded(
                found["id"], "properties" if self.glance.patch(found, wanted) else "unchanged"
            )
            _lock_path(uploaded.id).unlink(missing_ok=True)
        self.notes += rotate(self.glance, rows, self.image.name, uploaded.id, keep)
        return uploaded

    def stop(self) -> None:
        """End the upload unless it is as good as done, and delete what there is of it."""
        image_id = self._handover.stop(self.glance)
        if image_id:
            # Glance ends a PUT to an image that is gone: so the other thread wakes up.
            self._discard(image_id)

    def _possible(self) -> None:
        """Raise where the cloud does not offer the import method."""
        if not self.method:
            return
        if self.method == "web-download" and not self.uri:
            raise LabError(
                f"web-download needs an address that {self.image.name} can be had from; it was built here",
                hint="use --import=glance-direct, or no --import",
            )
        offered = self.glance.import_methods()
        if self.method not in offered:
            raise LabError(
                f"this cloud does not offer the import method {self.method}",
                hint=f"it offers {', '.join(offered) or 'none'}; without --import it works everywhere",
            )

    def _same_content(self, rows: Iterable[dict[str, Any]]) -> dict[str, Any] | None:
        rows = [
            row
            for row in rows
            if row["disk_format"] == self.image.disk_format
            and (of_name(row, self.image.name) or row["id"] in self._left_over)
            and not self._wrong(row)
        ]
        # Of several the visible one, then the oldest: two runs at once have to choose the same.
        return min(
            rows, key=lambda row: (bool(row.get("os_hidden")), row["created_at"], row["id"]), default=None
        )

    def _wrong(self, row: Mapping[str, Any]) -> str:
        """What an image would be with the very content; '' where it is.

        Where the size differs, no hash is needed to tell.
        """
        wanted = f"active, {self.image.size} bytes"
        if (row["status"], row["size"]) != ("active", self.image.size):
            return wanted
        algorithm, theirs = hashed(row)
        later = self._digests.setdefault(algorithm, upload_hash.Later(self.image.path, "", algorithm))
        ours = later.value(self.glance.left)
        return "" if theirs == ours else f"{wanted}, {algorithm} {ours}"

    def _sweep(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Delete our unfinished images that nobody works on any more.

        One that is whole and the very one wanted, though never committed, is kept for `_same_content`.
        """
        for row in rows:
            if not unfinished(row) or not self._abandoned(row):
                continue
            if row["name"] == self.image.name + UNFINISHED and not self._wrong(row):
                self._left_over.add(row["id"])
            elif self.glance.delete(row["id"]) in (204, 404):
                _lock_path(row["id"]).unlink(missing_ok=True)

    def _abandoned(self, row: Mapping[str, Any]) -> bool:
        path = _lock_path(row["id"])
        if path.exists():
            try:
                with files.lock(path, "the upload"):
                    return True
            except Busy:
                return False
        age = self.glance.now - datetime.fromisoformat(row["updated_at"])
        return age.total_seconds() > _STALE

    def _send_new(self, wanted: Mapping[str, Any]) -> str:
        try:
            with self.image.path.open("rb") as handle:
                for _ in range(3):
                    image_id = str(uuid.uuid4())  # ours to choose: known even when the answer is lost
                    with _claimed(image_id):
                        try:
                            self._send_as(image_id, handle, wanted)
                        except Lost:
                            self._discard(image_id)
                        except BaseException:
                            self._discard(image_id)
                            raise
                        else:
                            _lock_path(image_id).unlink(missing_ok=True)
                            return image_id
        except FileNotFoundError:
            raise LabError(f"{self.image.path} is not there", hint="build the image again") from None
        raise LabError("Glance lost the upload three times over", hint="look at the log of glance-api")

    def _send_as(self, image_id: str, handle: BufferedReader, wanted: Mapping[str, Any]) -> None:
        before = _state(handle)
        if before[0] != self.image.size:
            raise changed(self.image.path)
        self._handover.begin(image_id)
        self._may_be(self._create(image_id, wanted), wanted["visibility"])
        self._digests["sha512"].start()  # of a file that is on its way already, the other core can take it
        source = Source(handle, self.image.name, self.image.size, self.progress, self.block)
        if self.method == "web-download":
            glance_send.web_download(self.glance, image_id, self.image.name, self.uri)
        elif self.method == "glance-direct":
            glance_send.direct(self.glance, image_id, source)
        else:
            glance_send.put(self.glance, image_id, source)
        if _state(handle) != before:
            raise changed(self.image.path)
        row = self._verified(image_id)
        self._handover.commit(self.glance)
        self.glance.patch(row, wanted)

    def _create(self, image_id: str, wanted: Mapping[str, Any]) -> dict[str, Any]:
        row = {
            **{name: value for name, value in wanted.items() if name != "os_hidden"},
            "id": image_id,
            "name": self.image.name + UNFINISHED,
            "visibility": "private",
            "container_format": container(self.image.disk_format),
            "disk_format": self.image.disk_format,
            "tags": [TAG],
        }
        response = self.glance.call("POST", "/v2/images", json=row)
        # 409: the first try came through, its answer did not.
        made = self.glance.get(image_id) if response.status_code == 409 else None
        if made is None:
            expect(response, f"create the image {self.image.name}", 201)
            made = self.glance.body(response, "id")
        return made

    def _may_be(self, row: Mapping[str, Any], visibility: str) -> None:
        """Refuse what the user may not do before there is anything sent."""
        if visibility in ("public", "community"):
            self.glance.patch(row, {"visibility": visibility})
            self.glance.patch({**row, "visibility": visibility}, {"visibility": "private"})

    def _verified(self, image_id: str) -> dict[str, Any]:
        row = self.glance.get(image_id)
        if row is None:
            raise glance_send.deleted(self.image.name)
        if wanted := self._wrong(row):
            raise LabError(
                f"Glance has {self.image.name} as {row['status']}, {row['size']} bytes, "
                f"{' '.join(hashed(row))}; it should be {wanted}",
                hint=f"the upload was deleted; does {self.uri or self.image.path} still have its sha512?"
                + (" or does the cloud convert what it imports?" if self.method else ""),
            )
        return row

    def _discard(self, image_id: str) -> None:
        end = time.monotonic() + _DISCARD
        while True:
            try:
                if (code := self.glance.delete(image_id)) in (204, 404):
                    _lock_path(image_id).unlink(missing_ok=True)
                    return
                trouble = str(code)
            except denied.ClientException as error:
                trouble = str(error)  # the first error is the one to raise
            if time.monotonic() > end:
                break
            # Glance may just be noticing that the connection is gone; its DELETE loses that race.
            time.sleep(glance_send.FIRST_PAUSE)
        self.notes.append(
            f"the unfinished image {image_id} is still there ({trouble}); a later upload will delete it"
        )


def _claimed(image_id: str) -> AbstractContextManager[None]:
    """Hold the lock that tells other processes of this machine that somebody works on the image.

    Its file outlives the lock only where the image may be left over: so a later run knows it.
    """
    return files.lock(_lock_path(image_id), f"the image {image_id}")


def _lock_path(image_id: str) -> Path:
    return files.cache_dir() / "uploads" / f"{image_id}.lock"


@contextmanager
def _no_signal() -> Iterator[None]:
    yield


def sigterm_raises() -> AbstractContextManager[None]:
    """Let SIGTERM unwind the stack as Ctrl-C does, where nobody else handles it."""
    main = threading.current_thread() is threading.main_thread()
    return _sigterm() if main and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL else _no_signal()


@contextmanager
def _sigterm() -> Iterator[None]:
    def leave(number: int, _frame: object) -> NoReturn:
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _state(handle: BufferedReader) -> tuple[int, int]:
    found = os.fstat(handle.fileno())
    return found.st_size, found.st_mtime_ns
