"""Tasks on guest images."""

from __future__ import annotations

from typing import Any

from invoke import Context, task

from stacklab.tasks.common import LAB, edge, open_lab

IMAGES = {
    "image": "a name of the catalogue, again for more of them; the probe guest by default",
    "catalogue": "a catalogue of your own; images.yaml of the checkout by default",
}
CLOUD = {**LAB, "cloud": "a cloud of clouds.yaml, or envvars for OS_* variables, instead of the lab"}


def _lab_or_none(c: Context, lab: str, cloud: str) -> Any:
    return None if cloud else open_lab(c, lab)


@task(name="list", help={**CLOUD, "catalogue": IMAGES["catalogue"]})
@edge
def list_(c: Context, catalogue: str = "", cloud: str = "", lab: str = "") -> None:
    """List guest images: in the cache, in the cloud."""
    from stacklab import show

    show.images(_lab_or_none(c, lab, cloud), cloud, catalogue)


@task(iterable=["image"], help={**IMAGES, "boot": "start each image once, under QEMU"})
@edge
def build(c: Context, image: list[str], catalogue: str = "", boot: bool = False) -> None:
    """Build the guest images that changed."""
    from stacklab import images, ui

    for built in images.build(image, catalogue, boot=boot):
        ui.out(str(built.path))


@task(
    iterable=["image"],
    help={
        **IMAGES,
        **CLOUD,
        "file": "an image file of your own instead of the catalogue's",
        "import": "glance-direct or web-download, where the cloud offers it",
    },
)
@edge
def upload(
    c: Context,
    image: list[str],
    catalogue: str = "",
    file: str = "",
    cloud: str = "",
    import_: str = "",
    lab: str = "",
) -> None:
    """Upload guest images to Glance and check them there.

    Identical ones are not sent again.
    """
    from stacklab import images

    with images.target(_lab_or_none(c, lab, cloud), cloud) as glance:
        images.send(glance, image, catalogue, file=file, method=import_)


@task(
    iterable=["image"],
    help={
        **IMAGES,
        **CLOUD,
        "image": "a name of the catalogue, again for more of them; by default all, those of files too",
        "yes": "really delete them",
    },
)
@edge
def prune(
    c: Context, image: list[str], catalogue: str = "", cloud: str = "", yes: bool = False, lab: str = ""
) -> None:
    """Delete older, hidden versions of guest images.

    Without --yes only list what would be deleted.
    """
    from stacklab import show

    show.pruned(_lab_or_none(c, lab, cloud), cloud, image, catalogue, yes)


@task(
    name="export-nodepool",
    positional=["directory"],
    help={"directory": "a new or an empty directory, or an earlier export", "catalogue": IMAGES["catalogue"]},
)
@edge
def export_nodepool(c: Context, directory: str, catalogue: str = "") -> None:
    """Write the catalogue for Zuul's nodepool-builder."""
    from pathlib import Path

    from stacklab import images, ui

    for path in images.export(Path(directory), catalogue):
        ui.out(str(path))
