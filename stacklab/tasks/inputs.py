"""Tasks on what golden images are started from."""

from __future__ import annotations

from invoke import Context, task

from stacklab.tasks.common import edge


@task(name="list")
@edge
def list_(c: Context) -> None:
    """List installers and cloud images, and what vouches for each."""
    from stacklab import inputs, ui

    rows = []
    for one in inputs.all_inputs():
        signed = f"signed by {one.fingerprint}" if one.fingerprint else "nobody signs; HTTPS only"
        rows.append((one.distribution, one.kind, one.name, one.sha256[:12] or "not pinned", signed))
    ui.table("Inputs", ("distribution", "kind", "file", "sha256", "list of checksums"), rows)


@task(
    help={
        "distribution": "whose installer or cloud image, as inputs.list has it; rocky-9 by default",
        "kind": "iso: the installer; cloud: the publisher's cloud image",
        "mirror": "the root of a mirror of the publisher's tree, asked first",
        "keyring": "a file with the publisher's key, where it cannot be fetched",
    }
)
@edge
def fetch(
    c: Context, distribution: str = "rocky-9", kind: str = "iso", mirror: str = "", keyring: str = ""
) -> None:
    """Fetch an installer or a cloud image and verify it.

    Goes on where a broken download stopped. Prints the file.
    """
    from pathlib import Path

    from stacklab import download, inputs, ui

    if mirror:
        download.use_mirror(mirror)
    wanted = inputs.find(distribution, kind)
    found = inputs.fetch(wanted, keyring=Path(keyring) if keyring else None)
    ui.say(f"{found.digest}: {found.proof}")
    ui.out(str(found.path))
