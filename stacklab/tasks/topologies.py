"""Tasks on topologies."""

from __future__ import annotations

import json

from invoke import Context, task

from stacklab.tasks.common import TOPOLOGY, edge, plan_of


@task(name="list")
@edge
def list_(c: Context) -> None:
    """List the topologies."""
    from stacklab import lab as labs
    from stacklab import show, topology

    show.topologies(topology.available(labs.TOPOLOGIES))


@task(positional=["topology"], help={"topology": TOPOLOGY["topology"]})
@edge
def show(c: Context, topology: str) -> None:
    """Print a topology with every default filled in."""
    import dataclasses

    from stacklab import lab as labs
    from stacklab import topology as topologies
    from stacklab import ui

    ui.out(json.dumps(dataclasses.asdict(topologies.load(topology, labs.TOPOLOGIES)), indent=2))


@task(positional=["topology"], help={"topology": TOPOLOGY["topology"]})
@edge
def validate(c: Context, topology: str) -> None:
    """Name everything that is wrong with a topology."""
    from stacklab import ui

    plan = plan_of(c, topology, "", "", "")
    ui.out(f"{plan.topology.file}: {len(plan.topology.nodes)} nodes, all right")


@task(
    positional=["topology"],
    help={
        "topology": TOPOLOGY["topology"],
        "output": "the file to write, .svg or .png; TOPOLOGY.svg by default",
    },
)
@edge
def diagram(c: Context, topology: str, output: str = "") -> None:
    """Draw a topology: its networks as bars, its nodes with roles, addresses and sizes."""
    from pathlib import Path

    from stacklab import diagram as diagrams
    from stacklab import lab as labs
    from stacklab import topology as topologies
    from stacklab import ui

    found = topologies.load(topology, labs.TOPOLOGIES)
    target = Path(output or f"{found.name}.svg")
    diagrams.write(found, target)
    ui.out(str(target))


@task
@edge
def schema(c: Context) -> None:
    """Print the JSON schema of topology files, for editors.

    topologies/schema.json is this; a file names it in its first line.
    """
    from stacklab import schema as schemas
    from stacklab import ui

    ui.out(schemas.text())
