"""Tasks on Vagrant boxes of golden images."""

from __future__ import annotations

from invoke import Context, task

from stacklab.tasks.common import edge


@task(name="list")
@edge
def list_(c: Context) -> None:
    """List the boxes in the cache, with the catalogue of each."""
    from stacklab import boxes, ui

    rows = [(box.name, box.provider, box.version, str(box.catalogue)) for box in boxes.known()]
    ui.table("Boxes", ("name", "provider", "version", "catalogue"), rows)


@task(help={"distribution": "what is in it", "provider": "what it is for"})
@edge
def build(c: Context, distribution: str = "debian-12", provider: str = "libvirt") -> None:
    """Make a box of a golden image, which is built if need be.

    Prints the catalogue for `vagrant box add`; a changed image is a new version in it.
    """
    from stacklab import boxes, files, ui

    image = boxes.image(distribution, provider)
    box = boxes.box(image, provider, files.cache_dir() / "logs" / "boxes.log")
    ui.say(f"{box.name} {box.version}")
    ui.out(str(box.catalogue))


@task
@edge
def prune(c: Context) -> None:
    """Remove the boxes of images that are no longer in the cache."""
    from stacklab import base, boxes, ui

    for path in boxes.prune(base.built()):
        ui.out(str(path))
