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
