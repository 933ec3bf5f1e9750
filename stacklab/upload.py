"""Several images at once, to any cloud. Each ends as by `glance.upload`, whatever becomes of the others."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from keystoneauth1.adapter import Adapter

from stacklab import magic, ui, upload_bars, upload_hash
from stacklab.errors import InvalidInput, LabError, Problem
from stacklab.glance import Method, Upload, Uploaded, sigterm_raises
from stacklab.glance_api import Stopped, explained
from stacklab.glance_send import BLOCK
from stacklab.guests import GuestImage
from stacklab.upload_bars import Display

AT_ONCE = 4
FORMATS = ("raw", "qcow2", "vmdk", "vdi", "vhd", "vhdx", "iso", "ami", "aki", "ari")

_SLOWEST = 256 << 10  # bytes a second; slower, and an upload is given up
_LEAST = 900.0  # seconds that each upload may take, however small
_CLEANING = 20.0  # seconds that interrupted uploads have to clear up
_ENDING = 2.0  # seconds that their threads have to notice; no longer, since their images are gone

_LEAST_BLOCK = 128 << 10  # bytes

_ENDINGS = {"img": "raw", "vpc": "vhd", "qcow": "qcow2"}


@dataclass(frozen=True)
class Job:
    """An image and how it is to be in Glance.

    `keep` is the number of replaced versions that stay, hidden. `uri`, for web-download only, is where
    the cloud finds the very bytes of the image's file.
    """

    image: GuestImage
    visibility: str = "private"
    keep: int = 1
    uri: str = ""


@dataclass
class _Running:
    job: Job
    upload: Upload | None = None
    done: Uploaded | None = None
    error: BaseException | None = None
    thread: threading.Thread | None = field(default=None, repr=False)


def foreign(
    path: Path,
    *,
    name: str = "",
    disk_format: str = "",
    min_disk: int = 0,
    min_ram: int = 0,
    properties: Mapping[str, str] | None = None,
) -> GuestImage:
    """An image file that stacklab did not build. `min_disk` in GB, `min_ram` in MiB.

    The name is the file's without its ending. The format is what the file is, for those that tell;
    else its ending's. Where its sha512 was never taken, the upload does that while it sends. Raises
    InvalidInput for a file that is not there, and for a format that is unknown or not the file's.
    """
    try:
        sha512 = upload_hash.remembered(path)
    except LabError as error:
        raise InvalidInput([Problem("", "file", error.message)], hint=error.hint) from error
    found, ending = magic.kind(path), path.suffix.lstrip(".").lower()
    given = disk_format or (found if found in FORMATS else _ENDINGS.get(ending, ending))
    if given not in FORMATS and (disk_format or not found):
        hint = f"let its name end in what it is: {', '.join(FORMATS)}"
        raise InvalidInput([Problem(str(path), "", "the format cannot be told")], hint=hint)
    if problem := magic.against(path, given if given in FORMATS else "a disk image"):
        raise InvalidInput(
            [Problem(str(path), "", problem)], hint="give the image itself: unpack it, or convert it"
        )
    size = path.stat().st_size
    return GuestImage(name or path.stem, path, given, sha512, size, min_disk, min_ram, properties or {})


def images(
    adapter: Adapter,
    jobs: Sequence[Job],
    *,
    method: Method = "",
    deadline: float = 0.0,
    at_once: int = AT_ONCE,
) -> dict[str, Uploaded]:
    """Upload `jobs`, `at_once` of them at a time; what became of each, by name, in their order.

    `method` is "" for a plain upload, else "glance-direct" or "web-download", where the cloud offers
    them. `deadline` is in seconds for each image; by default it goes by the size. Ctrl-C and SIGTERM
    stop them all and leave nothing unfinished behind; a second Ctrl-C does not wait for that.

    Raises LabError when any fails, after the others have ended: with all that went wrong.
    """
    names = [job.image.name for job in jobs]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise LabError(
            f"several images are called {', '.join(twice)}", hint="each would hide the other: rename one"
        )
    running = [_Running(job) for job in jobs]
    with sigterm_raises():
        # One login for all of them, and one error where it fails.
        with explained(adapter):
            adapter.get_endpoint()
        with upload_bars.display() as shown:
            _run(adapter, running, method, deadline, max(1, at_once), shown)
    for one in running:
        for note in one.upload.notes if one.upload else ():
            ui.warn(note)
    _raise_failures(running)
    return {one.job.image.name: one.done for one in running if one.done}


def _run(
    adapter: Adapter, running: list[_Running], method: Method, deadline: float, at_once: int, shown: Display
) -> None:
    ended: queue.Queue[_Running] = queue.Queue()
    stopping = threading.Event()
    # All of them together take the memory of one.
    block = max(_LEAST_BLOCK, BLOCK // min(at_once, len(running) or 1))

    def work(one: _Running) -> None:
        try:
            _one(adapter, one, method, deadline, shown, stopping, block)
        except BaseException as error:
            one.error = error
        ended.put(one)

    waiting, alive = list(running), 0
    try:
        while waiting or alive:
            while waiting and alive < at_once:
                one = waiting.pop(0)
                # As daemons they cannot keep a process that was interrupted twice.
                one.thread = threading.Thread(target=work, args=(one,), daemon=True)
                one.thread.start()
                alive += 1
            ended.get()
            alive -= 1
    except BaseException:
        stopping.set()
        _stop([one for one in running if one.thread])
        raise


def _one(
    adapter: Adapter,
    one: _Running,
    method: Method,
    deadline: float,
    shown: Display,
    stopping: threading.Event,
    block: int,
) -> None:
    image, start = one.job.image, time.monotonic()
    seconds = deadline or _LEAST + image.size / _SLOWEST
    told = shown.begin(image.name, image.size)
    try:
        with explained(adapter):
            one.upload = Upload(adapter, image, seconds, told, method, one.job.uri, block)
            if stopping.is_set():
                raise Stopped
            one.done = one.upload.run(one.job.visibility, one.job.keep)
    except BaseException as error:
        shown.end(image.name, "stopped" if isinstance(error, Stopped) else "failed")
        if isinstance(error, LabError) and "should be active" in error.message:
            upload_hash.forget(image.path)
        raise
    text = {"uploaded": "uploaded", "unchanged": "is there already", "properties": "properties changed"}
    shown.end(image.name, f"{text[one.done.status]} in {ui.duration(time.monotonic() - start)}")


def _stop(running: list[_Running]) -> None:
    """Stop all uploads and wait until they have cleared up."""
    stops = [
        threading.Thread(target=one.upload.stop, daemon=True) for one in running if one.upload is not None
    ]
    for stop in stops:
        stop.start()
    threads = [one.thread for one in running if one.thread]
    for group, seconds in ((stops, _CLEANING), (threads, _ENDING)):
        end = time.monotonic() + seconds
        for thread in group:
            thread.join(max(0.0, end - time.monotonic()))


def _raise_failures(running: list[_Running]) -> None:
    failed = [(one.job.image.name, one.error) for one in running if one.error is not None]
    for _, error in failed:
        if not isinstance(error, LabError):
            raise error  # a bug: with its traceback
    known = [(name, error) for name, error in failed if isinstance(error, LabError)]
    if len(running) == 1 and known:
        raise known[0][1]
    if known:
        lines = "".join(f"\n  {name}: {error.message}" for name, error in known)
        hints = dict.fromkeys(error.hint for _, error in known if error.hint)
        raise LabError(
            f"{len(known)} of {len(running)} images were not uploaded:{lines}", hint="; ".join(hints)
        )
