"""Tasks on golden images."""

from __future__ import annotations

from invoke import Context, task

from stacklab.tasks.common import edge


@task(
    name="build-base",
    help={
        "distribution": "what the nodes run; debian-12 by default",
        "release": "the OpenStack release; the distribution's default where it is not given",
        "builder": "what builds it; the distribution's first where it is not given",
        "source": "packer starts from: iso, cloud, or a file: an .iso, else a disk",
        "provider": "what a node is; by default what works here",
        "services": "for labs with these services or presets, with commas between",
        "mirror": "where the distribution's packages are fetched from; leaves nothing in the image",
        "proxy": "an HTTP proxy for the build; leaves nothing in the image",
        "locked": "with exactly the packages of this golden image, by its name or its packages.txt",
        "refresh": "ask the repositories for news, and build anew if there are any",
        "dry-run": "only show what would be done",
    },
)
@edge
def build_base(
    c: Context,
    distribution: str = "",
    release: str = "",
    builder: str = "",
    provider: str = "",
    source: str = "",
    services: str = "beginner",
    mirror: str = "",
    proxy: str = "",
    locked: str = "",
    refresh: bool = False,
    dry_run: bool = False,
) -> None:
    """Build the golden image that nodes start from.

    By default the one that `up` would build. Unchanged inputs: nothing to do. Prints the image's directory.
    """
    from stacklab import base, choice, distributions, download, goldenshow, ui
    from stacklab.errors import InvalidInput, Problem
    from stacklab.services import extras, known

    if proxy:
        download.use_proxy(proxy)
    distribution = distribution or (c.distribution if c.distribution != "auto" else "debian-12")
    provider = provider or c.provider
    if provider == "auto":
        provider, why = choice.provider(distributions.distribution(distribution).runs_on)
        ui.say(f"provider: {provider} ({why})")
    more = extras(distribution, known(services.split(",")))
    if locked and refresh:
        raise InvalidInput(
            [Problem("", "refresh", "it asks for news, and --locked for none: take one of them")]
        )
    manifest = goldenshow.manifest(locked) if locked else None
    spec = base.spec(distribution, provider, release, builder, more, source, mirror, manifest)
    if dry_run:
        goldenshow.plan(spec)
        return
    image = base.refresh(spec) if refresh else base.build(spec)
    ui.out(str(image.directory))


@task(name="list")
@edge
def list_(c: Context) -> None:
    """List the golden images in the cache."""
    from stacklab import goldenshow, ui

    ui.table("Golden images", ("name", "builder", "release", "kernel", "built", "size"), goldenshow.rows())


@task(positional=["image"], help={"image": "a golden image's name, or how it begins", "json": "as JSON"})
@edge
def show(c: Context, image: str, json: bool = False) -> None:
    """Show what is known of a golden image.

    Inputs, packages, digests, and what a rebuild can promise.
    """
    from stacklab import goldenshow

    goldenshow.show(goldenshow.find(image), as_json=json)


@task(positional=["one", "other"], help={"one": "a golden image's name", "other": "another one's"})
@edge
def diff(c: Context, one: str, other: str) -> None:
    """Compare the packages of two golden images."""
    from stacklab import goldenshow, ui

    found = goldenshow.difference(goldenshow.find(one), goldenshow.find(other))
    ui.table("", ("package", one, other), found)
    ui.out(goldenshow.changes(found))


@task(
    positional=["image"],
    help={"image": "a golden image's name, or how it begins", "boot": "start it once, under QEMU"},
)
@edge
def verify(c: Context, image: str, boot: bool = False) -> None:
    """Check a golden image against the contract again."""
    from stacklab import goldenshow, ui

    found = goldenshow.find(image)
    report = goldenshow.verify(found, boot=boot)
    for name, value in sorted(report.items()):
        ui.out(f"{name}: {value}")
    ui.out(f"{found.name} keeps the contract")


@task(positional=["image"], help={"image": "a golden image's name, or how it begins"})
@edge
def delete(c: Context, image: str) -> None:
    """Remove a golden image that no lab stands on from the cache."""
    from stacklab import goldenshow, ui

    found = goldenshow.find(image)
    goldenshow.delete(found)
    ui.say(f"{found.name} is gone")
