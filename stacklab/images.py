"""Guest images from the catalogue to a cloud: the lab's own, or any other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stacklab import catalogue, checker, clouds, glance, glance_keep, guestbuild, ui, upload, variants
from stacklab.errors import InvalidInput, LabError, Problem
from stacklab.guests import GuestImage

if TYPE_CHECKING:
    from stacklab.plan import Plan

# What `images.build` and `images.upload` take without names: the others want an EL mirror or a download.
DEFAULT = ("probe",)


def build(names: Sequence[str], own: str = "", *, boot: bool = False) -> list[GuestImage]:
    """The images of catalogue entries, built or fetched where they changed. LabError when one fails."""
    entries = catalogue.named(catalogue.load(own), list(names or DEFAULT))
    return [image for entry in entries for image in guestbuild.build(entry, boot=boot)]


def send(target: Any, names: Sequence[str], own: str = "", *, file: str = "", method: str = "") -> None:
    """Build what changed, and have it in the Glance of `target`, verified. LabError when one fails.

    An entry with several formats is uploaded in its first one. `file` is an image of the
    user's instead of the catalogue's; it goes up private. `method` is as for `upload.images`. Raises
    InvalidInput, before anything is built, for an unknown method, for web-download of what no cloud can
    fetch, and for names beside `file`.
    """
    if method and method not in glance.METHODS:
        raise InvalidInput([Problem("", "import", checker.unknown("method", method, glance.METHODS))])
    if file and names:
        raise InvalidInput([Problem("", "file", "it goes up instead of the catalogue's images: name none")])
    entries = [] if file else catalogue.named(catalogue.load(own), list(names or DEFAULT))
    if method == "web-download":
        here = [file] if file else [entry.name for entry in entries if not _published(entry)]
        what = "is made here, where no cloud can fetch it; use glance-direct"
        if here:
            raise InvalidInput([Problem("", "import", f"web-download: {name} {what}") for name in here])
    jobs = [upload.Job(upload.foreign(Path(file)))] if file else []
    for entry in entries:
        image = guestbuild.build(entry)[0]
        uri = _published(entry)
        jobs.append(upload.Job(image, visibility=entry.visibility, keep=entry.keep, uri=uri))
    done = upload.images(target, jobs, method=method)
    for name, result in done.items():
        ui.say(f"image {name}: {result.status}")


def _published(entry: catalogue.Entry) -> str:
    """Where a cloud can have the image from that goes up: published in this very form; "" for nowhere."""
    return entry.url if entry.formats[0] == entry.format else ""


@contextmanager
def target(plan: Plan | None, name: str) -> Iterator[Any]:
    """The Glance of the cloud `name` of clouds.yaml, envvars for the environment's, else of the lab."""
    if name:
        yield clouds.adapter(name)
        return
    if plan is None:
        hint = "say --cloud NAME, --cloud envvars for that of the OS_* variables, or `invoke up`"
        raise LabError("no lab is here, and no cloud was named", hint=hint)
    from stacklab import cloud, namespace  # another cloud needs nothing of the lab's

    with namespace.entered(plan):
        yield cloud.image_adapter(plan)


def beside(adapter: Any, own: str = "") -> list[glance_keep.Side]:
    """What is in the cache beside what is in Glance."""
    local = [image for entry in catalogue.load(own).values() for image in guestbuild.find(entry)]
    return list(glance_keep.listed(adapter, local))


def titles(names: Sequence[str], own: str = "") -> list[str]:
    """What Glance calls the images of catalogue entries; none for no names. InvalidInput for unknown ones."""
    entries = catalogue.named(catalogue.load(own), list(names)) if names else []
    return [variants.title(entry, disk_format) for entry in entries for disk_format in entry.formats]


def export(directory: Path, own: str = "") -> list[Path]:
    """The catalogue as a configuration of Zuul's nodepool-builder; returns the files written."""
    from stacklab import nodepool

    return nodepool.export(catalogue.load(own).values(), directory)
