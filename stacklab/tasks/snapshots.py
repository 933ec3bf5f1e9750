"""Tasks on snapshots."""

from __future__ import annotations

from invoke import Context, task

from stacklab.tasks.common import LAB, edge, open_lab


@task(name="list", help={**LAB, "json": "as JSON on standard output"})
@edge
def list_(c: Context, lab: str = "", json: bool = False) -> None:
    """List the lab's snapshots: stage, age, size."""
    from stacklab import show

    show.all_snapshots(open_lab(c, lab), as_json=json)


@task(positional=["name"], help={**LAB, "name": "the new snapshot's name"})
@edge
def save(c: Context, name: str, lab: str = "") -> None:
    """Save all nodes as they are now, under a name."""
    from stacklab import lab as labs

    labs.save(open_lab(c, lab), name)


@task(positional=["name"], help={**LAB, "name": "the snapshot's name"})
@edge
def restore(c: Context, name: str, lab: str = "") -> None:
    """Bring all nodes back to a snapshot."""
    from stacklab import lab as labs

    labs.reset(open_lab(c, lab), name)


@task(positional=["name"], help={**LAB, "name": "the snapshot's name"})
@edge
def delete(c: Context, name: str, lab: str = "") -> None:
    """Delete a snapshot."""
    from stacklab import lab as labs

    labs.forget(open_lab(c, lab), name)


@task(
    positional=["file"],
    iterable=["snapshot"],
    help={
        **LAB,
        "file": "the file to write",
        "snapshot": "a snapshot to take along, again for more of them; the last stage's by default",
        "all": "take all snapshots along",
        "image": "take the golden image along, for machines that do not have this very one",
    },
)
@edge
def export(
    c: Context, file: str, snapshot: list[str], all: bool = False, image: bool = False, lab: str = ""
) -> None:
    """Write a whole lab to one file.

    It holds the lab's secrets.
    """
    from pathlib import Path

    from stacklab import handover

    handover.export(open_lab(c, lab), Path(file), snapshot, whole=all, image=image)


@task(
    name="import",
    positional=["file"],
    help={"file": "what snapshots.export wrote", "lab": "the lab's name here; by default the one it had"},
)
@edge
def import_(c: Context, file: str, lab: str = "") -> None:
    """Make a lab of an exported one and bring it up.

    Its nodes are root on this machine: take files from people you trust.
    """
    from pathlib import Path

    from stacklab import handover

    handover.take_in(Path(file), lab or c.lab)
