"""Tasks on golden images."""

from __future__ import annotations

from invoke import Context, task

from stacklab.tasks.common import TOPOLOGY, edge


@task(
    name="build-base",
    help={
        **{name: TOPOLOGY[name] for name in ("distribution", "provider")},
        "builder": "dib or packer; the distribution's first by default",
        "source": "packer starts from: iso, cloud, or a file: an .iso, else a disk",
    },
)
@edge
def build_base(
    c: Context, distribution: str = "debian-12", provider: str = "lxc", builder: str = "", source: str = ""
) -> None:
    """Build the golden image that nodes start from.

    Unchanged inputs: nothing to do. Prints the image's directory.
    """
    from stacklab import base, ui

    image = base.build(base.spec(distribution, provider, builder=builder, source=source))
    ui.out(str(image.directory))
