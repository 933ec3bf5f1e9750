"""Tasks on OpenStack releases and on Packstack's answer files."""

from __future__ import annotations

from invoke import Context, task

from stacklab.tasks.common import TOPOLOGY, edge


@task(help={"release": "everything about this one", "json": "as JSON on standard output"})
@edge
def releases(c: Context, release: str = "", json: bool = False) -> None:
    """Show the OpenStack releases: where they run, with which Packstack, what is end of life."""
    from stacklab import show_releases

    show_releases.releases(release, as_json=json)


@task(
    help={
        "topology": TOPOLOGY["topology"],
        "release": "the OpenStack release; the topology's, or the distribution's, by default",
        "distribution": "what the nodes run; the topology's, debian-12 or what has the release, by default",
    }
)
@edge
def answers(c: Context, topology: str = "", release: str = "", distribution: str = "") -> None:
    """Print the answer file that Packstack would get.

    Each value says where it comes from. Passwords are drawn for this one file, and what depends on the
    machine is as for virtual machines without KVM: tunnels, Cinder's backend, what instances run by. A
    lab's own file is in its directory.
    """
    from stacklab import answers as answer_files
    from stacklab import lab as labs
    from stacklab import topology as topologies
    from stacklab import ui

    found = topologies.load(topology or c.topology, labs.TOPOLOGIES)
    # A file for something else than the lab that `up` would make need not fit what its nodes are.
    provider = "" if release or distribution else c.provider
    on = distribution or c.distribution
    ui.out(answer_files.of_release(found, release or "auto", on, provider))
