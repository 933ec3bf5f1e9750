"""Tasks on golden images."""

from __future__ import annotations

from invoke import Context, task

from stacklab.tasks.common import TOPOLOGY, edge


@task(name="build-base", help={name: TOPOLOGY[name] for name in ("distribution", "provider")})
@edge
def build_base(c: Context, distribution: str = "debian-12", provider: str = "lxc") -> None:
    """Build the golden image that nodes start from.

    Unchanged inputs: nothing to do. Prints the image's directory.
    """
    from stacklab import base, ui

    image = base.build(base.spec(distribution, provider))
    ui.out(str(image.directory))
